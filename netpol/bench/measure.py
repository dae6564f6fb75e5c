"""How a case is measured: contenders in turn, in one process, in a network namespace that nobody else sees.

A round runs every peer once and ours once, each from the same state of the kernel, which `prepare` brings about outside the clock; so
each run of a peer has one of ours next to it to be compared with. Before every run there is a pause: what the kernel frees
late (sets, tables) would otherwise be paid by whoever comes next. A contest in which nothing is freed has none.

Invariants: before anything is timed, every contender has run once and what the kernel holds afterwards was found to be what was asked for;
a session leaves nothing behind, neither in this namespace nor in the environment. What a case does is `netpol.bench.sets` and
`netpol.bench.tables`; no verdict on a ratio is given here. `netpol.bench.apart` does it in a fresh process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import NamedTuple

from msgspec import Struct

from netpol.bench.result import Result, summarise
from netpol.errors import NetpolError
from netpol.kernel import namespaces

PAUSE = 0.03  # seconds
_ENCODERS = "netpol.kernel."


class BenchError(NetpolError):
    """A contender failed, or the kernel does not hold afterwards what it was asked for."""


class Contender(NamedTuple):
    """One way to do it.

    prepare -- brings the kernel to the state that the run starts from, and makes the values that it starts with; not timed. run -- what is
    timed. verify -- given what `run` returned, raises BenchError unless the kernel holds, or `run` found, what was asked for.
    """

    prepare: Callable[[], None]
    run: Callable[[], object]
    verify: Callable[[object], None]


class Contest(NamedTuple):
    """The contenders of a case, ready in the calling thread's namespace.

    calls -- system calls of ours so far; operations -- how many operations, one after another, a run consists of; pause -- seconds before
    each run.
    """

    ours: Contender
    peers: Mapping[str, Contender]
    calls: Callable[[], int]
    operations: int = 1
    pause: float = PAUSE


class Case(Struct, frozen=True):
    """One row. `open` makes the contest, and may write its files into the directory it is given; `goals` are ratios by peer.

    pairs -- how many it takes for a figure to be kept, and `few` for one to be looked at."""

    row: str
    pairs: int
    open: Callable[[Path], AbstractContextManager[Contest]]
    goals: Mapping[str, float] = {}
    few: int = 7


class Session:
    """A case in a private namespace, as a context manager; for one thread.

    A round is `prepare`, then `ours`: two calls, so that another clock than ours can be put around the second one.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._stack = ExitStack()
        self._ours: list[float] = []
        self._peers: dict[str, list[float]] = {}
        self._system_calls = 0

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="netpol-bench-")))
            stack.enter_context(namespaces.private_lock())
            namespace = namespaces.create()
            stack.callback(os.close, namespace)
            stack.enter_context(namespaces.entered(namespace))
            self._contest = stack.enter_context(self.case.open(directory))
            self._peers = {name: [] for name in self._contest.peers}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def operations(self) -> int:
        """How many operations one run consists of."""
        return self._contest.operations

    def run(self, pairs: int = 0) -> None:
        """Verifies, then does so many rounds, or as many as the case asks for."""
        self.verify()
        for _ in range(pairs or self.case.pairs):
            self.prepare()
            self.ours()

    def verify(self) -> None:
        """Runs every contender once, unmeasured. BenchError names the one that did not do what was asked."""
        for name, contender in {**self._contest.peers, "netpol": self._contest.ours}.items():
            contender.prepare()
            outcome = contender.run()
            try:
                contender.verify(outcome)
            except BenchError as error:
                raise BenchError(f"{self.case.row}: {name}: {error}") from error

    def prepare(self) -> None:
        """The peers' half of a round, measured; afterwards everything is ready for ours."""
        for name, peer in self._contest.peers.items():
            peer.prepare()
            self._peers[name].append(self._time(peer.run))
        self._contest.ours.prepare()
        time.sleep(self._contest.pause)

    def ours(self) -> None:
        """Our half of a round."""
        before = self._contest.calls()
        start = time.perf_counter()
        self._contest.ours.run()
        self._ours.append((time.perf_counter() - start) / self._contest.operations)
        self._system_calls = (self._contest.calls() - before) // self._contest.operations

    def _time(self, run: Callable[[], object]) -> float:
        time.sleep(self._contest.pause)
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / self._contest.operations

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of each of our runs so far, all its operations together."""
        return tuple(time * self._contest.operations for time in self._ours)

    def result(self) -> Result:
        """The row so far. There has been a round at least."""
        return summarise(self.case.row, self._ours, self._peers, self.case.goals, self._system_calls)


def measure(case: Case, pairs: int = 0) -> Result:
    """Verifies and measures a case, here, in `pairs` rounds or as many as it asks for. BenchError when it does not do what it should."""
    with Session(case) as session:
        session.run(pairs)
        return session.result()


def forget() -> None:
    """Empties all caches of the kernel room's functions: the next encoding is paid in full, as by a process that has just started."""
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith(_ENCODERS) else ():
            clear = getattr(value, "cache_clear", None)
            if clear is not None:
                clear()
