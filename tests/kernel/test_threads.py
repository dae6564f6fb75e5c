"""Threads: what several of them do with one handle of the kernel room is refused with an error or waits, and never mixes.

A thread is stopped inside a method, by its own trace function, after the method has begun and before it has done anything; so what meets
it there meets it every time, however many processors there are.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import netpol.kernel
from netpol.errors import InUse, KernelError
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.kernel.conntrack import ConntrackSocket
from netpol.kernel.inotify import Watcher
from netpol.kernel.ipset import Add, Create, Delete, Destroy, IpsetSocket, Records
from netpol.kernel.judge import Index, Sorting
from netpol.kernel.netlink import NetlinkSocket
from netpol.kernel.nflog import NflogSocket
from netpol.kernel.proofs import Look
from netpol.kernel.turns import Closing, Handle
from netpol.kernel.watch import Bell
from netpol.kernel.xtables import TableSocket
from netpol.model import FAMILIES, parse_address
from netpol.rules.ruleset import CreateSet, DestroySet, Ruleset
from netpol.rules.sets import Set

ADDRESS = parse_address("10.0.0.1")


class Case(NamedTuple):
    """A handle, and a call of each of its methods. free -- what any thread may call or read at any time."""

    open: Callable[[Path], Any]
    calls: dict[str, tuple[Any, ...]]
    free: tuple[str, ...] = ("calls", "fileno")
    ends: str = "close"


def table_socket(_: Path) -> TableSocket:
    socket = TableSocket(4)
    socket.read("mangle")
    socket.shape("mangle")
    return socket


def whole_kernel(_: Path) -> Kernel:
    for family in FAMILIES:
        with TableSocket(family) as socket:
            socket.read("mangle")
    return Kernel()


def ipset_socket(_: Path) -> IpsetSocket:
    socket = IpsetSocket()
    socket.run([Create("t1", "hash:ip", 4, ADDRESS)])
    return socket


def sorting(_: Path) -> Sorting:
    index = Index()
    assert index.build(Ruleset({}, {}), (), ())
    return index.sorting(1)


CASES: dict[str, Case] = {
    "IpsetSocket": Case(
        ipset_socket,
        {
            "run": ([Add("t1", "hash:ip", 4, ADDRESS)],),
            "headers": (),
            "numbers": (),
            "number": ("t1",),
            "members": ("t1",),
            "read": ("t1",),
            "names": ("t",),
            "records": (["t1"],),
            "watched": (Records(b""),),
        },
        ("calls", "fileno", "sent"),
    ),
    "TableSocket": Case(
        table_socket,
        {
            "read": ("mangle",),
            "entries": ("mangle",),
            "shape": ("mangle",),
            "watched": ("mangle",),
            "change": ("mangle", {}, False),
            "write": ("mangle", {}, False),
            "has_revision": ("set", 1),
            "missing_revisions": (),
        },
        ("calls", "exists", "locked"),
    ),
    "ConntrackSocket": Case(
        lambda _: ConntrackSocket(),
        {
            "count": (),
            "settle": (),
            "flows": ((ADDRESS,),),
            "flows_at": ((ADDRESS,),),
            "marked": (1,),
            "mark": (b"", 1),
            "unmark": (b"", 1),
        },
    ),
    "NflogSocket": Case(lambda _: NflogSocket(77, "netpol"), {"receive": ()}, ("calls", "fileno", "counts")),
    "Kernel": Case(
        whole_kernel,
        {
            "apply": ([CreateSet(Set("NETPOL4-x", "hash:ip", 4, frozenset({ADDRESS}))), DestroySet("NETPOL4-x")],),
            "read": (),
            "sizes": (),
            "counted": (4,),
            "counters": (4,),
            "dropped": (),
            "touched": (),
            "rest": (Bell(), 0.0, 1.0, 0.0),
            "look": (),
            "reread": (Ruleset({}, {}), Look(sets=frozenset({"NETPOL4-x"}))),
        },
        ("calls", "longest_hold", "lost_counters", "moved"),
    ),
    "Watcher": Case(lambda folder: Watcher([str(folder)]), {"refresh": (), "wait": (0,), "close": ()}, (), ""),
    "Index": Case(lambda _: Index(), {"build": (Ruleset({}, {}), (), ()), "sorting": (1,)}, (), ""),
    "Sorting": Case(sorting, {"take": ((), 0)}, ("mark", "unmark", "ask"), ""),
}
BASES = (Handle, Closing, NetlinkSocket)
CLOSING = [name for name, case in CASES.items() if case.ends]


class Caller:
    """Another thread, in the middle of a call of a method."""

    def __init__(self, handle: object, method: str, *args: object) -> None:
        self.outcome: list[object] = []
        inside = "_run" if method == "run" else method
        self._code = inspect.unwrap(getattr(type(handle), inside)).__code__
        self._inside, self._leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(getattr(handle, method), args))
        self.thread.start()
        assert self._inside.wait(30)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self.thread.join(30)

    def finish(self) -> object:
        """Lets it go on to its end; what it returned or raised."""
        self._leave.set()
        self.thread.join(30)
        return self.outcome[0]

    def _run(self, call: Callable[..., object], args: tuple[object, ...]) -> None:
        sys.settrace(self._trace)
        try:
            self.outcome.append(call(*args))
        except BaseException as error:
            self.outcome.append(error)
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is self._code:
            self._inside.set()
            self._leave.wait(30)


def handles() -> Iterator[type]:
    for module in pkgutil.iter_modules(netpol.kernel.__path__, "netpol.kernel."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and (hasattr(kind, "close") or issubclass(kind, Handle)) and kind not in BASES:
                yield kind


def test_every_handle_and_every_method_is_held_here() -> None:
    """What can be closed or belongs to one thread is a row of the table above, with all that it has in public."""
    found = {kind.__name__: {name for name in dir(kind) if not name.startswith("_")} for kind in handles()}
    assert found == {name: {*case.calls, *case.free, *filter(None, [case.ends])} for name, case in CASES.items()}


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Any]:
    handle = CASES[name].open(folder)
    try:
        yield handle
    finally:
        getattr(handle, "close", lambda: None)()


@pytest.mark.parametrize(("name", "method"), [(name, method) for name, case in CASES.items() for method in case.calls])
def test_a_call_beside_another_is_refused(name: str, method: str, netns: int, tmp_path: Path) -> None:
    """While a thread is in one method every method is refused to others by name, and does nothing; then all can be called again."""
    case = CASES[name]
    with opened(name, tmp_path) as handle, Caller(handle, method, *case.calls[method]) as caller:
        for other, args in case.calls.items():
            with pytest.raises(InUse, match=rf"^{name}\.{other}: another thread is using this {name}") as refused:
                getattr(handle, other)(*args)
            assert (refused.value.handle, refused.value.method) == (name, other)
        for free in case.free:
            getattr(handle, free)
        assert not isinstance(outcome := caller.finish(), BaseException), outcome
        if method == "close":
            return
        for other, args in case.calls.items():
            getattr(handle, other)(*args)


@pytest.mark.parametrize("name", CLOSING)
def test_closing_waits_for_the_call(name: str, netns: int, tmp_path: Path) -> None:
    """A handle that another thread closes meanwhile is closed when the call is done, which had its descriptor to the end. Who calls later
    is told so, also when the number of the descriptor is something else's by then."""
    case = CASES[name]
    method, args = next(iter(case.calls.items()))
    handle = case.open(tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    caller = Caller(handle, method, *args)
    closer = threading.Thread(target=handle.close)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    assert not isinstance(outcome := caller.finish(), BaseException), outcome
    closer.join(30)
    assert not closer.is_alive()
    assert len(os.listdir("/proc/self/fd")) < len(before)
    others = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in before]
    try:
        for later, args in case.calls.items():
            if later in ("touched", "rest", "watched", "settle", "mark", "unmark"):  # which have nothing to ask the kernel here
                continue
            with pytest.raises(KernelError, match="it is closed") as error:
                getattr(handle, later)(*args)
            assert error.value.code == errno.EBADF
        handle.close()
        assert all(os.fstat(other) for other in others)
    finally:
        for other in others:
            os.close(other)


def test_a_watcher_that_was_closed_says_so(tmp_path: Path) -> None:
    """It waits for nothing, and watches nothing more; closing it again is nothing."""
    watcher = Watcher([str(tmp_path)])
    watcher.close()
    watcher.close()
    for call in (watcher.wait, watcher.refresh):
        with pytest.raises(KernelError, match="it is closed"):
            call()


def test_a_thread_may_call_from_inside_a_call(netns: int) -> None:
    """The lock of a handle is held for the block of `locked`, by its own thread: others are refused, it may go on."""
    with TableSocket(4) as socket, socket.locked():
        assert "FORWARD" in socket.read("mangle").by_name
        caught: list[object] = []

        def call() -> None:
            try:
                with socket.locked():
                    caught.append("in")
            except InUse as error:
                caught.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join(30)
        assert caught == ["TableSocket.locked: another thread is using this TableSocket: each needs its own, or a lock"]


THREADS, ROUNDS = 4, 300


def test_threads_that_share_a_socket_get_right_answers_or_none(netns: int) -> None:
    """Many threads at once, each with members of its own: whatever was not refused was done, and every answer is to its own question."""
    with IpsetSocket() as socket:
        socket.run([Create(f"t{i}", "hash:ip", 4) for i in range(THREADS)])
        wrong: list[object] = []

        def work(i: int) -> None:
            there: set[bytes] = set()
            for n in range(ROUNDS):
                member = bytes((10, i, n >> 8, n & 255))
                try:
                    socket.run([Add(f"t{i}", "hash:ip", 4, member)])
                    there.add(member)
                    if n % 3 == 0:
                        socket.run([Delete(f"t{i}", "hash:ip", 4, member)])
                        there.remove(member)
                except InUse:
                    pass
                except BaseException as error:
                    wrong.append(error)
                try:
                    found = socket.read(f"t{i}")
                except InUse:
                    continue
                if found.members != there:
                    wrong.append((i, found.members ^ there))

        run_all([lambda i=i: work(i) for i in range(THREADS)])  # type: ignore[misc]  # mypy does not infer such a lambda
        assert wrong == []
        socket.run([Destroy(f"t{i}") for i in range(THREADS)])


def test_threads_with_handles_of_their_own_do_not_meet(netns: int) -> None:
    """Each in a namespace of its own, at once: each sees its own sets and tables only, and nothing is refused."""
    wrong: list[object] = []

    def work(i: int) -> None:
        namespace = namespaces.create()
        try:
            with namespaces.entered(namespace), Kernel() as kernel:
                for n in range(30):
                    wanted = Set(f"NETPOL4-{i}", "hash:ip", 4, frozenset({bytes((10, i, 0, n))}))
                    kernel.apply([CreateSet(wanted)])
                    if kernel.read().sets != {wanted.name: wanted} or kernel.look():
                        wrong.append((i, n))
                    kernel.apply([DestroySet(wanted.name)])
        except BaseException as error:
            wrong.append(error)
        finally:
            os.close(namespace)

    run_all([lambda i=i: work(i) for i in range(THREADS)])  # type: ignore[misc]  # mypy does not infer such a lambda
    assert wrong == []


def run_all(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
