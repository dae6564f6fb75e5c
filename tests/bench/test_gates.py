"""Exact gates: how many system calls and netlink messages each kind of change makes, and how long those are. More fail the build.

The figures are our own counters'; strace shows that they are true.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from netpol.bench import Case
from netpol.bench.cases import node_cases
from netpol.bench.measure import Session
from netpol.kernel.ipset import IpsetSocket
from tests.referees import require, run


class Sent(NamedTuple):
    """What one change takes. Messages and bytes are those of ipset; a table is one system call, however long."""

    calls: int
    messages: int
    bytes: int


# row of `netpol bench --quick` -> what it takes
MOST = {
    "600 members into hash:ip": Sent(2, 4, 1468),
    "600 members into hash:net, 10% nomatch": Sent(2, 5, 19964),
    "1 member added to 600": Sent(2, 2, 100),
    "50 members added to 600": Sent(2, 2, 1276),
    "2 sets swapped, one of 50": Sent(2, 2, 84),
    "a set of 50 destroyed": Sent(2, 2, 64),
    "600 members read": Sent(2, 1, 48),
    "200 rules into a table": Sent(6, 0, 0),
    "200 rules into a table, IPv6": Sent(6, 0, 0),
    "1 chain changed in a table of 100 rules": Sent(7, 0, 0),
    "1 rule appended in a table of 100 rules": Sent(6, 0, 0),
    "policy change, 200 pods": Sent(8, 4, 304),
}
CASES = {case.row: case for case in node_cases(quick=True) if case.row in MOST}


class Counting:
    """Cases whose runs are counted: all sockets of ipset that a case opens, by the counters of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sockets: list[IpsetSocket] = []
        opened, known = IpsetSocket.__init__, self._sockets.append

        def init(socket: IpsetSocket, *arguments: int) -> None:
            opened(socket, *arguments)
            known(socket)

        monkeypatch.setattr(IpsetSocket, "__init__", init)

    def run(self, case: Case, mark: str = "") -> tuple[Sent, int]:
        """What one run of ours takes, and of how many changes, one after another, it consists."""
        self._sockets.clear()
        with Session(case) as session:
            session.verify()
            session.prepare()
            before = self._sent()
            marked(mark)
            session.ours()
            marked(mark)
            after = self._sent()
            calls = session.result().system_calls
            return Sent(calls, *((now - then) // session.operations for now, then in zip(after, before, strict=True))), session.operations

    def _sent(self) -> tuple[int, int]:
        pairs = [socket.sent for socket in self._sockets]
        return sum(messages for messages, _ in pairs), sum(size for _, size in pairs)


def marked(mark: str) -> None:
    """A line in the log of strace."""
    if mark:
        Path(f"/mark/{mark}").exists()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_change_takes_no_more_than_it_did(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are exact: one that fell is written down here, one that grew is a regression."""
    taken, _ = Counting(monkeypatch).run(case)
    assert taken == MOST[case.row]


def test_every_gate_has_a_case() -> None:
    """A renamed row does not open its gate."""
    assert CASES.keys() == MOST.keys()


# Python asks for memory and gives it back when it likes to.
MEMORY = {"brk", "madvise", "mmap", "mremap", "munmap"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(strace's log of all cases, each between two marks; what the counters of the process that ran them said)."""
    require("strace")
    log = tmp_path_factory.mktemp("strace") / "log"
    # Without -f: the programs that ours are compared with are others' processes. In full, for messages are to be counted.
    said = run("strace", "-v", "-s", "0", "-o", str(log), sys.executable, "-m", "tests.bench.test_gates", seconds=300)
    return log.read_text(), said


@pytest.mark.parametrize("row", CASES)
def test_the_counters_are_true(traced: tuple[str, str], row: str) -> None:
    """Between its marks the process made as many system calls as it says, and sent as much."""
    log, said = traced
    number = list(CASES).index(row)
    calls, messages, size, operations = map(int, re.findall(rf"^{number}: (\d+) (\d+) (\d+) (\d+)$", said, re.MULTILINE)[0])
    made = [line for line in log.split(f'"/mark/{number}"')[1].splitlines()[1:-1] if line.partition("(")[0] not in MEMORY]
    sends = [line for line in made if line.startswith("sendto(")]
    assert len(made) == calls * operations, "\n".join(made)
    assert sum(line.count("nlmsg_len=") for line in sends) == messages * operations
    assert sum(int(line.rpartition(" = ")[2]) for line in sends) == size * operations


def main() -> None:
    """Runs every case once, and says what its counters say."""
    with pytest.MonkeyPatch.context() as patch:
        counting = Counting(patch)
        for number, case in enumerate(CASES.values()):
            taken, operations = counting.run(case, str(number))
            print(f"{number}:", *taken, operations)


if __name__ == "__main__":
    main()
