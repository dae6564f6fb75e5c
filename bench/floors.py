"""How far we are from the least: a set and a table loaded by us, beside bare loops in C that do the same and nothing else.

The loops are bench/floor/*.c, built when a row runs. They are given what they need in the form that suits them best: sorted addresses in
one piece, three numbers for each rule. Ours starts where it always does, from values; so a ratio of 1 would mean that sorting, splitting,
errors with names, locks and counters cost nothing. Goals are ratios of the peer's time to ours: 1/1.15 allows us 1.15 of the loop's.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, socket
from struct import Struct

from netpol.bench import sets, tables
from netpol.bench.cases import MEMBERS, RULES, short
from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.bench.members import Make, pod_addresses, scattered_addresses
from netpol.kernel.ipset import IpsetSocket, room
from netpol.kernel.table import COUNTER
from netpol.rules.ruleset import ROOT

SOURCES = Path(__file__).parent / "floor"
WARNINGS = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
FLOOR = "a bare loop in C"
GOAL = 1 / 1.15
SEQ = 7
_NAME, _RULE = Struct("=30s"), Struct("=HHH")  # struct name, struct rule
_ENTRY = 512  # bytes, more than any entry takes


def floor_cases(members: int = MEMBERS, rules: int = RULES[-1]) -> tuple[Case, ...]:
    """The rows: of the goal where there is one."""
    return (
        Case(f"{short(members)} members, the least", 21, partial(_fill, pod_addresses, members), {FLOOR: GOAL}),
        Case(f"{short(members)} scattered members, the least", 21, partial(_fill, scattered_addresses, members), {FLOOR: GOAL}),
        Case(f"{short(rules)} rules, the least", 11, partial(_load, rules)),
    )


def built(name: str, directory: Path) -> ctypes.CDLL:
    """The loop of that name as a library; BenchError with the compiler's words."""
    library = directory / f"{name}.so"
    command = [os.environ.get("CC", "cc"), *WARNINGS, "-shared", "-fPIC", "-o", str(library), str(SOURCES / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr}")
    return ctypes.CDLL(str(library))


@contextmanager
def _fill(make: Make, count: int, directory: Path) -> Iterator[Contest]:
    with sets.fill("", "hash:ip", make, count, 1, {}).open(directory) as contest:
        loop = Fill(built("sets", directory), make(count))
        with closing(loop.open()) as fd:
            yield _beside(contest, lambda: loop.run(fd))


@contextmanager
def _load(rules: int, directory: Path) -> Iterator[Contest]:
    with tables.load("", rules, 4, 1).open(directory) as contest, socket(AF_INET, SOCK_DGRAM) as any_socket:
        loop = Load(built("tables", directory), rules)
        yield _beside(contest, lambda: loop.run(any_socket.fileno()))


def _beside(contest: Contest, loop: Callable[[], int]) -> Contest:
    """The same contest with the loop as the only peer."""

    def run() -> None:
        if code := loop():
            raise BenchError(f"the loop failed: {os.strerror(-code)}")

    return contest._replace(peers={FLOOR: Contender(contest.ours.prepare, run, contest.ours.verify)})


class Fill:
    """The loop over a set's members, which stand sorted in memory."""

    def __init__(self, library: ctypes.CDLL, members: frozenset[bytes]) -> None:
        self._library, self._members, self._count = library, b"".join(sorted(members)), len(members)

    def open(self) -> int:
        """A socket in the calling thread's network namespace."""
        fd = int(self._library.floor_open())
        if fd < 0:
            raise BenchError(f"no netlink socket: {os.strerror(-fd)}")
        return fd

    def run(self, fd: int) -> int:
        """0 or -errno."""
        buckets = 1 << (self._count - 1).bit_length()
        count = ctypes.c_size_t(self._count)
        return int(self._library.floor_fill(fd, SEQ, sets.NAME.encode(), self._members, count, buckets, room(self._count)))


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """The descriptor, which is closed at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


class Load:
    """The loop over a table's rules; the sets that they refer to are there."""

    def __init__(self, library: ctypes.CDLL, rules: int) -> None:
        count = rules // tables.CHAIN_LENGTH
        with IpsetSocket() as ipset:
            numbers = [ipset.number(tables.set_name(number)) for number in range(tables.SETS)]
        places = [place for number in range(count) for place in tables.places(number)]
        self._library, self._count = library, ctypes.c_size_t(count)
        self._names = b"".join(_NAME.pack(name.encode()) for name in (ROOT, *map(tables.chain_name, range(count))))
        self._rules = b"".join(_RULE.pack(numbers[which], first, second) for which, first, second in places)
        entries = rules + 3 * count + 20
        self._data, self._counters = (ctypes.create_string_buffer(size * entries) for size in (_ENTRY, COUNTER))

    def run(self, fd: int) -> int:
        """0 or -errno."""
        length = ctypes.c_size_t(tables.CHAIN_LENGTH)
        arrays = self._rules, length, self._data, self._counters
        return int(self._library.floor_load(fd, tables.TABLE.encode(), self._names, self._count, *arrays))
