"""Flows that a change denied are cut in the background: told after each enforcement, it sweeps the connection tracking table.

`Cutting` has a thread of its own. `changed` only leaves a report there, so that cutting costs the thread that applies rules nothing
but that. The thread knows what the kernel holds from the steps that it was told (`netpol.rules.replay`), and judges by that.

When it sweeps (`Ration`)
- At once after a change that can concern a flow, and on average at most once in `PERIOD` seconds: what changes meanwhile is gathered.
  After a cheap sweep another one may come at once, `BURST` in a row: a flow that was cut and is allowed again is to live again soon.
- First it waits some milliseconds for the packets that are under way: no flow of theirs is to be missed. Where that cannot be waited for
  it sweeps once more a `PERIOD` later, for entries that no packet had confirmed yet.
- Not after a change that only lets more through, as long as no flow is cut: there is nothing to give back.
- Once everything when it begins, and whenever nobody can say whose flows a change concerns.
- After a failure, again: soon at first, then less often. An error is told once, until it is another one.

After a change that failed on its way nobody knows what is in force: nothing is swept until all of it is known again (`doubted`).

A change that comes while a sweep runs may find flows marked by the state before; it is followed by a sweep of its own within a `PERIOD`.

With `cut` off nothing is ever marked, and marks that are there are taken away once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from netpol.agent import cutter, enforcer
from netpol.agent.cutter import Cutter
from netpol.model import Address
from netpol.rules.replay import Replay, opens

PERIOD = 1.0
PATIENCE = 60.0
"""Seconds between two sweeps at least (in the long run), and between two tries at most."""
BURST = 3
CHEAP = 0.05
"""So many sweeps may follow one another at once as long as none of them took more seconds than that."""

Touched = frozenset[Address] | None
NOBODY: frozenset[Address] = frozenset()


class Ration:
    """Whose flows are to be looked at, and when: no clock, no thread. Times are seconds of one clock; None for addresses is all."""

    def __init__(self, period: float = PERIOD, patience: float = PATIENCE) -> None:
        self._period, self._patience = period, patience
        self._fresh: Touched = NOBODY  # not looked at since they were touched
        self._once: Touched = NOBODY  # looked at once
        self._last = float("-inf")  # when the last sweep was taken
        self._rested = float("-inf")  # when the next one may be, whatever the last one cost
        self._saved = BURST - 1.0  # sweeps that may come sooner than that
        self._cheap = False
        self._failures = 0

    def tell(self, touched: Touched) -> None:
        """The flows of these addresses may be judged otherwise from now on."""
        self._fresh = _both(self._fresh, touched)

    def due(self) -> float | None:
        """The time from which on a sweep is due; None while none is."""
        if self._fresh != NOBODY:
            return self._last if self._cheap and self._saved >= 1 else self._rested
        return self._rested if self._once != NOBODY else None

    def take(self, now: float, settled: bool = False) -> Touched:
        """Whose flows the sweep that begins now has to look at. `settled`: it will miss none of them, and no second look is needed."""
        if now < self._rested:
            # Too soon for the second look at what was looked at once: that waits for a period from now.
            self._saved -= 1
            found, again = self._fresh, _both(self._once, self._fresh)
        else:
            self._saved = min(self._saved + max(0.0, now - self._rested) / self._period, BURST - 1.0)
            found, again = _both(self._fresh, self._once), self._fresh
        if settled:
            found, again = _both(self._fresh, self._once), NOBODY
        self._once = again
        self._fresh, self._cheap = NOBODY, False
        self._last, self._rested = now, now + self._period
        return found

    def succeeded(self, seconds: float) -> None:
        """The sweep that was taken is done; it took so long."""
        self._failures = 0
        self._cheap = seconds <= CHEAP

    def failed(self, touched: Touched, now: float) -> None:
        """The sweep that was taken for these is to be done again; nobody, where none could be taken."""
        self.tell(touched)
        self._cheap = False
        self._failures += 1
        self._rested = now + min(self._period * 2 ** (self._failures - 1), self._patience)


def _both(one: Touched, other: Touched) -> Touched:
    return None if one is None or other is None else one | other


class Sweeper:
    """What the thread does, for one thread and without waiting; a context manager that closes the cutter.

    cut -- whether flows are cut; without it marks are forgotten once; swept -- told of each sweep and its seconds; failed -- of an error.
    """

    def __init__(
        self,
        open: Callable[[], Cutter],
        clock: Callable[[], float],
        swept: Callable[[cutter.Report, float], None],
        failed: Callable[[Exception], None],
        cut: bool = True,
    ) -> None:
        self._open, self._clock, self._swept, self._failed, self._cut = open, clock, swept, failed, cut
        self._stack = ExitStack()
        self._cutter: Cutter | None = None
        self._replay: Replay | None = None
        self._pods: frozenset[Address] = NOBODY
        self._ration = Ration()
        self._told = ""

    def __enter__(self) -> Sweeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def follow(self, report: enforcer.Report) -> None:
        """This was enforced. Before the first report of a whole state nothing is known, and nothing is swept."""
        if self._replay is None and not self._cut:
            self._ration.tell(None)
        touched = report.touched
        if report.whole is not None:
            self._replay = Replay(report.whole)
        elif self._replay is None:
            return
        elif self._cut:
            denied = self._replay.denies_link_local
            self._replay.follow(report.steps)
            if self._replay.denies_link_local != denied:
                touched = None  # addresses that nobody knows are concerned
        self._pods = report.pods
        is_idle = report.whole is None and opens(report.steps) and self._cutter is not None and self._cutter.is_clear
        if self._cut and not is_idle:
            self._ration.tell(touched)

    def doubt(self) -> None:
        """Nobody knows what is in force, until a report says all of it: who judged by what was would cut flows that are allowed."""
        if self._cut:
            self._replay = None

    def turn(self) -> float | None:
        """Sweeps, if it is time to; then the time at which it should be called again, None while nothing is to be done."""
        now = self._clock()
        due = self._ration.due()
        if due is None or due > now or self._replay is None:
            return due if self._replay is not None else None
        touched: Touched = NOBODY  # as long as none are taken
        try:
            ready = self._ready()
            settled = self._cut and ready.settle()
            now = self._clock()
            touched = self._ration.take(now, settled)
            done = ready.sweep(self._replay.ruleset(), self._pods, touched) if self._cut else ready.forget()
        except Exception as error:  # whatever it is, rules are in force without cutting, and it may work next time
            self._ration.failed(touched, self._clock())
            if str(error) != self._told:
                self._told = str(error)
                self._failed(error)
        else:
            self._told = ""
            seconds = self._clock() - now
            self._ration.succeeded(seconds)
            self._swept(done, seconds)
        return self._ration.due()

    def _ready(self) -> Cutter:
        if self._cutter is None:
            self._cutter = self._stack.enter_context(self._open())
        return self._cutter


class Cutting:
    """See the module. A context manager; its thread lives in the network namespace of the thread that made it.

    bit -- the connmark bit of flows that are cut (`Settings.cut_bit`); swept and failed are called by its own thread, and so are clock,
    seconds that only go forward, and wait, which waits for a condition, or for so many seconds.
    """

    def __init__(
        self,
        bit: int,
        *,
        cut: bool = True,
        swept: Callable[[cutter.Report, float], None] = lambda report, seconds: None,
        failed: Callable[[Exception], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
    ) -> None:
        self._clock, self._wait = clock, wait
        self._sweeper = Sweeper(lambda: Cutter(bit), clock, swept, failed, cut)
        self._wake = threading.Condition(threading.Lock())
        self._told: deque[enforcer.Report | None] = deque()  # None: in doubt
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="cutting", daemon=True)
        self._thread.start()

    def __enter__(self) -> Cutting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def changed(self, report: enforcer.Report) -> None:
        """This was enforced, by `Enforcer.enforce`, `adopt` or `audit`: each report is to be given, in their order. Waits for nothing."""
        self._tell(report)

    def doubted(self) -> None:
        """An enforcement, or an audit, failed: a part of it may be in force. Waits for nothing."""
        self._tell(None)

    def _tell(self, report: enforcer.Report | None) -> None:
        with self._wake:
            self._told.append(report)
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread after the sweep at hand, if there is one; marks stay. A second time does nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        due: float | None = None
        with self._sweeper as sweeper:
            while True:
                with self._wake:
                    while not self._told and not self._closing and (due is None or due > self._clock()):
                        self._wait(self._wake, None if due is None else due - self._clock())
                    if self._closing:
                        return
                    told, self._told = self._told, deque()
                for report in told:
                    if report is None:
                        sweeper.doubt()
                    else:
                        sweeper.follow(report)
                due = sweeper.turn()
