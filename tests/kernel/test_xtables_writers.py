"""Several writers of one table: iptables' lock, tables that change under our hands, and what a change costs in system calls."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netpol.errors import Contended, KernelError, MalformedKernelData
from netpol.kernel.apply import Kernel
from netpol.kernel.encode import encode_chain
from netpol.kernel.proofs import Look
from netpol.kernel.table import Layout, Snapshot, splice
from netpol.kernel.xtables import TRIES, TableSocket, lock_path
from netpol.rules.ruleset import ACCEPT, DROP, ROOT, Addrtype, Chain, Connmark, Rule
from tests.kernel.iptables import restore, saved, table_text
from tests.referees import require, run

OURS = {ROOT: encode_chain(Chain(ROOT, (Rule(DROP),)), 4)}
MORE = OURS | {"NETPOL-A": encode_chain(Chain("NETPOL-A", (Rule(ACCEPT),)), 4)}


@contextmanager
def held(path: str) -> Iterator[None]:
    """The lock is somebody else's inside the block."""
    fd = os.open(path, os.O_CREAT | os.O_RDONLY, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# -- the lock --


def test_a_lock_that_is_not_given_up(netns: int) -> None:
    """We wait as long as we were told, say whose file it is, and change nothing; afterwards the same socket works."""
    with TableSocket(4, wait_ms=20) as socket:
        before = socket.calls
        with held(lock_path()), pytest.raises(Contended, match=re.escape(lock_path()) + r": another program has held it for 0.02 s"):
            socket.change("mangle", OURS, True)
        # open, tries, the pauses of a fifth of a millisecond between them, close: as many as there was time for
        tries, odd = divmod(socket.calls - before, 2)
        assert odd
        assert 2 < tries <= 102
        assert not any("NETPOL" in line for line in saved(4))
        assert socket.change("mangle", OURS, True)


def test_a_signal_is_heeded_while_we_wait_for_the_lock(netns: int) -> None:
    """What Python does for it is done in the middle of the wait: here it is what gives the lock back. Then the wait goes on."""
    fd = os.open(lock_path(), os.O_CREAT | os.O_RDONLY, 0o600)
    before = signal.signal(signal.SIGALRM, lambda *_: os.close(fd))
    try:
        with TableSocket(4, wait_ms=3000) as socket:
            fcntl.flock(fd, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert socket.change("mangle", OURS, True)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_we_wait_for_the_lock(netns: int) -> None:
    """While another program holds it nothing is read or written; when it lets go, the change is made."""
    with TableSocket(4) as socket:
        done: list[bool] = []
        with held(lock_path()):
            waiting = threading.Thread(target=lambda: done.append(socket.change("mangle", OURS, True)))
            before = socket.calls
            waiting.start()
            while socket.calls - before < 8:
                pass
            assert not done
            assert not any("NETPOL" in line for line in saved(4))
        waiting.join()
        assert done == [True]
        assert "-A FORWARD -j NETPOL" in saved(4)


def test_iptables_waits_for_us(netns: int) -> None:
    """While we hold the lock the real tool waits: for as long as it was told, then it gives up; or until we are done."""
    require("iptables-legacy")
    command = ["iptables-legacy", "-t", "mangle", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT"]
    with TableSocket(4) as socket:
        with socket.locked():
            refused = subprocess.run([*command, "-w", "1"], capture_output=True, text=True, timeout=60)
            assert refused.returncode == 4
            assert "xtables lock" in refused.stderr
            patient = subprocess.Popen([*command, "-w"])
            old = socket.read("mangle")
            assert socket._replace(old, splice(old, OURS, True, lambda name: True), {})
            assert "-A INPUT -p tcp -j ACCEPT" not in saved(4)
            assert patient.poll() is None
        assert patient.wait(timeout=60) == 0
    assert {"-A INPUT -p tcp -j ACCEPT", "-A FORWARD -j NETPOL"} <= set(saved(4))


def test_the_lock_is_let_go_when_something_fails(netns: int) -> None:
    """An error inside, ours or the kernel's, leaves the lock free and no descriptor behind."""
    with TableSocket(4, wait_ms=0) as socket:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), socket.locked():
                raise ZeroDivisionError
            with pytest.raises(KernelError, match="there is no chain NETPOL"):
                socket.change("mangle", {}, True)
        descriptors = os.listdir("/proc/self/fd")
        with pytest.raises(KernelError):
            socket.change("mangle", {}, True)
        assert len(os.listdir("/proc/self/fd")) == len(descriptors)
        assert socket.change("mangle", OURS, True)


def test_the_place_of_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is iptables' own file, unless XTABLES_LOCKFILE names another."""
    monkeypatch.setenv("XTABLES_LOCKFILE", "/somewhere/else")
    assert lock_path() == "/somewhere/else"
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("XTABLES_LOCKFILE")
        else:
            monkeypatch.setenv("XTABLES_LOCKFILE", value)
        assert lock_path() == "/run/xtables.lock"


def test_a_lock_that_cannot_be_made(netns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file and says how to name another."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "missing" / "lock"))
    with TableSocket(4) as socket, pytest.raises(KernelError, match=r"iptables lock .*missing/lock: No such file.*XTABLES_LOCKFILE"):
        socket.change("mangle", OURS, True)


def test_two_writers_lose_no_rule(netns: int) -> None:
    """A hundred changes of ours and a hundred rules of the real tool, at the same time: all of them are there, in their order."""
    with TableSocket(4) as socket:
        changed: list[bool] = []
        finished = threading.Event()

        def write() -> None:
            # The pause leaves the lock to the other side now and then: a lock file has no queue.
            while len(changed) < 100 or not finished.wait(0.0005):
                changed.append(socket.change("mangle", OURS if len(changed) % 2 else MORE, True))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for i in range(100):
                run("iptables-legacy", "-w", "-t", "mangle", "-A", "FORWARD", "-p", str(i + 101), "-m", "comment", "--comment", f"rule {i}")
        finally:
            finished.set()
            writer.join()
        assert len(changed) >= 100
        assert all(changed)
        socket.change("mangle", MORE, True)
    lines = saved(4)
    assert re.findall(r'"rule (\d+)"', "\n".join(lines)) == [str(i) for i in range(100)]
    assert next(line for line in lines if line.startswith("-A FORWARD")) == "-A FORWARD -j NETPOL"
    assert [line for line in lines if line.startswith("-A NETPOL")] == ["-A NETPOL -j DROP", "-A NETPOL-A -j ACCEPT"]


# -- writers without the lock --


class Disturbed(TableSocket):
    """Somebody adds a rule, without the lock, after each of the first `times` reads (or, `early`, after asking for the size)."""

    def __init__(self, times: int, early: bool = False) -> None:
        self.other = TableSocket(4)
        super().__init__(4)
        self.times, self.early, self.tries = times, early, 0

    def close(self) -> None:
        super().close()
        self.other.close()

    def disturb(self) -> None:
        self.tries += 1
        if self.tries <= self.times:
            old = self.other.read("mangle")
            name = f"THEIRS-{self.tries:02}"
            assert self.other._replace(old, splice(old, {name: encode_chain(Chain(name, ()), 4)}, False, lambda name: False), {})

    def read(self, table: str) -> Snapshot:
        found = super().read(table)
        if not self.early:
            self.disturb()
        return found

    def _info(self, table: str) -> object:
        info = super()._info(table)
        if self.early:
            self.disturb()
        return info


@pytest.mark.parametrize("early", [False, True], ids=["before the replace", "before the entries"])
def test_a_table_that_changes_is_read_again(netns: int, early: bool) -> None:
    """Up to the last try but one, somebody else's changes cost only another try; theirs and ours are all there."""
    with Disturbed(TRIES - 1, early) as socket:
        assert socket.change("mangle", OURS, True)
        assert socket.tries == TRIES
    assert [line for line in saved(4) if line.startswith(":THEIRS")] == [f":THEIRS-{i:02} -" for i in range(1, TRIES)]
    assert "-A FORWARD -j NETPOL" in saved(4)


@pytest.mark.parametrize(
    ("early", "words"),
    [(False, "iptables replace mangle: somebody without iptables' lock"), (True, "iptables read mangle: somebody changed it 10 times")],
    ids=["before the replace", "before the entries"],
)
def test_a_table_that_changes_for_ever(netns: int, early: bool, words: str) -> None:
    """After a bounded number of tries we give up, say why, and have changed nothing."""
    with Disturbed(1000, early) as socket:
        with pytest.raises(Contended, match=words):
            socket.change("mangle", OURS, True)
        assert socket.tries == TRIES
    assert not any("NETPOL" in line for line in saved(4))


class Exchanged(Disturbed):
    """Somebody exchanges rules for others that are as many bytes, but not as many rules, after each of the first `times` questions for the
    size: the kernel hands out the others' entries all the same."""

    FORMS = (
        encode_chain(Chain("THEIRS", (Rule(ACCEPT), Rule(ACCEPT), Rule(ACCEPT))), 4),
        encode_chain(Chain("THEIRS", (Rule(ACCEPT, (Connmark(1),) * 3 + (Addrtype(1),) * 4),)), 4),
    )

    def __init__(self, times: int) -> None:
        super().__init__(times, early=True)
        assert len(self.FORMS[0].data) == len(self.FORMS[1].data)

    def disturb(self) -> None:
        self.tries += 1
        if self.tries <= self.times:
            old = self.other.read("mangle")
            chains = {"THEIRS": self.FORMS[self.tries % 2]} | (OURS if old.is_hooked else {})
            assert self.other._replace(old, splice(old, chains, old.is_hooked, chains.__contains__), {})


def test_entries_of_another_table_as_large(netns: int) -> None:
    """They are seen to be none of the table that was announced, and it is read again."""
    restore(4, table_text("mangle", {"THEIRS": ["-j ACCEPT"] * 3}))
    with Exchanged(TRIES - 1) as socket:
        assert socket.change("mangle", OURS, True)
        assert socket.tries == TRIES
    assert {"-A FORWARD -j NETPOL", "-A NETPOL -j DROP"} <= set(saved(4))


def test_looking_at_entries_of_another_table(netns: int) -> None:
    """A whole look says that the table is another one, and whoever reads it then finds it as it was written."""
    restore(4, table_text("mangle", {"THEIRS": ["-j ACCEPT"] * 3}))
    with Kernel() as kernel, Exchanged(1) as socket:
        socket.other.change("mangle", OURS, True)
        written = kernel.read()
        kernel._there[4].socket.close()
        kernel._there[4].socket = socket
        assert kernel.look().tables == {4}
        assert kernel.reread(written, Look(frozenset({4}), frozenset(), frozenset())) == written
        assert kernel.look().tables == set()


def test_entries_of_another_table_for_ever(netns: int) -> None:
    """After a bounded number of tries we give up, and have changed nothing."""
    restore(4, table_text("mangle", {"THEIRS": ["-j ACCEPT"] * 3}))
    with Exchanged(1000) as socket:
        with pytest.raises(MalformedKernelData):
            socket.change("mangle", OURS, True)
        assert socket.tries == TRIES
    assert not any("NETPOL" in line for line in saved(4))


def test_counters_that_cannot_be_given_back(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without the lock writes a table with more rules just after us: the kernel refuses the counters, the change is made, and
    it is counted that they are lost."""
    carry = Layout.carry
    restore(4, "*mangle\n[7:700] -A FORWARD -p udp\nCOMMIT\n", "-c")

    def late(layout: Layout, *arguments: Any) -> None:
        monkeypatch.setattr(Layout, "carry", carry)
        carry(layout, *arguments)
        old, chains = other.read("mangle"), MORE | {"THEIRS": encode_chain(Chain("THEIRS", ()), 4)}
        assert other._replace(old, splice(old, chains, True, chains.__contains__), chains)

    monkeypatch.setattr(Layout, "carry", late)
    with TableSocket(4) as socket, TableSocket(4) as other:
        assert socket.change("mangle", OURS, True)
        assert (socket.lost_counters, other.lost_counters) == (1, 0)
        assert {"-A FORWARD -j NETPOL", ":THEIRS -"} <= set(saved(4))
        assert socket.change("mangle", OURS, True)
        assert socket.lost_counters == 1


# -- system calls --

SCRIPT = """
import os
from netpol.kernel.encode import encode_chain
from netpol.kernel.xtables import TableSocket
from netpol.rules.ruleset import *
def chains(*rules):
    return {"NETPOL": encode_chain(Chain("NETPOL", rules), 4)}
one, two = chains(Rule(DROP)), chains(Rule(DROP), Rule(ACCEPT))
with TableSocket(4) as socket:
    last = socket.calls
    for chains, hooked in ((one, True), (one, True), (two, True), ({}, False), ({}, False)):
        os.write(2, b"MARK")
        socket.change("mangle", chains, hooked)
        print(socket.calls - last)
        last = socket.calls
    os.write(2, b"MARK")
"""

LOOK = ["open", "flock", "GET_INFO", "GET_ENTRIES", "close"]
WRITE = [*LOOK[:-1], "SET_REPLACE", "close"]
WITH_COUNTERS = [*LOOK[:-1], "SET_REPLACE", "SET_ADD_COUNTERS", "close"]


def traced(tmp_path: Path) -> list[list[str]]:
    """What the script does between its marks: the names of its system calls, of socket options those of the options."""
    require("strace")
    log = tmp_path / "log"
    # musl opens by open, which not every architecture has.
    calls = ("?open", "openat", "flock", "getsockopt", "setsockopt", "close", "write", "nanosleep")
    out = run("strace", "-e", f"trace={','.join(calls)}", "-o", str(log), sys.executable, "-c", SCRIPT)
    parts: list[list[str]] = []
    for line in log.read_text().splitlines():
        name = line.partition("(")[0].replace("openat", "open")
        option = re.search(r"IPT_SO_(\w+)", line)
        if name == "write" and "MARK" in line:
            parts.append([])
        elif parts and re.match(r"\w+\(", line) and name != "write":
            parts[-1].append(option[1] if option else name)
    assert [len(part) for part in parts[:-1]] == [int(number) for number in out.split()]
    return parts[:-1]


def test_what_a_change_costs(netns: int, tmp_path: Path) -> None:
    """Writing is one replace under one lock; nothing is written that is there; and `calls` counts just these calls."""
    assert traced(tmp_path) == [WRITE, LOOK, WRITE, WRITE, LOOK]


def test_counters_cost_one_more_call(netns: int, tmp_path: Path) -> None:
    """Only where something has been counted, the counters are given back, in one call for the whole table."""
    restore(4, "*mangle\n:INPUT DROP [5:500]\nCOMMIT\n", "-c")
    assert traced(tmp_path) == [WITH_COUNTERS, LOOK, WITH_COUNTERS, WITH_COUNTERS, LOOK]
    assert ":INPUT DROP [5:500]" in saved(4, counters=True)
