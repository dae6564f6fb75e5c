"""The bare loops in C do the same work as we do: the same bytes to the kernel, the same table in it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.floors import FLOOR, SEQ, Fill, built, floor_cases
from netpol.bench import Case, measure
from netpol.bench.measure import BenchError, Contender
from netpol.bench.members import Make, pod_addresses, scattered_addresses
from netpol.bench.sets import NAME
from netpol.kernel._native import ffi, lib
from netpol.kernel.ipset import pack, room
from netpol.kernel.xtables import TableSocket

CASES = floor_cases(300, 30)


def sent(write: Callable[[int], object]) -> bytes:
    """What is written to a descriptor, all of it."""
    near, far = socket.socketpair()
    received = bytearray()

    def read() -> None:
        while piece := far.recv(1 << 20):
            received.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with near, far:
        write(near.fileno())
        near.shutdown(socket.SHUT_WR)
        reader.join()
    return bytes(received)


def ours(members: bytes, count: int) -> Callable[[int], object]:
    """What a run of one new set sends."""

    def write(fd: int) -> None:
        buffer = ffi.new("uint8_t[]", 1 << 20)
        native = ffi.new("struct np_ipset *", {"buffer": buffer, "room": 1 << 20, "fd": fd, "limit": 1 << 20})
        hashsize = 1 << (count - 1).bit_length()
        scratch = ffi.new("uint8_t[]", 2 * len(members))
        assert lib.np_ipset_create(native, SEQ, NAME.encode(), b"hash:ip", 0, 4, hashsize, room(count)) == 0
        assert lib.np_ipset_members(native, SEQ, lib.NP_IPSET_ADD, NAME.encode(), 0, 4, members, len(members), scratch) == 0
        lib.np_ipset_finish(native, ffi.new("struct np_ipset_outcome *", {"first": SEQ, "commands": 1}))

    return write


@pytest.mark.parametrize("make", [pod_addresses, scattered_addresses], ids=["runs", "scattered"])
def test_the_loop_sends_our_very_bytes(make: Make, tmp_path: Path) -> None:
    """60,000 members, which is more than one message and, scattered, more than one send: no byte differs."""
    members = make(60_000)
    loop = Fill(built("sets", tmp_path), members)
    bare = sent(loop.run)
    assert bare == sent(ours(pack(members), len(members)))
    assert len(bare) > 60_000


def test_the_loop_loads_our_very_table(netns: int, tmp_path: Path) -> None:
    """The kernel holds the same entries, byte for byte, in the same order."""
    with CASES[-1].open(tmp_path) as contest, TableSocket(4) as reader:

        def loaded(contender: Contender) -> bytes:
            contender.prepare()
            contender.run()
            return bytes(reader.read("mangle").blob)

        bare = loaded(contest.peers[FLOOR])
        assert bare == loaded(contest.ours)
        assert len(bare) > 30 * 300


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_a_loop_is_verified_and_gives_a_row(case: Case) -> None:
    """The loop is the one peer; what the kernel holds afterwards is looked at as after any other."""
    result = measure(case, pairs=1)
    assert set(result.peers) == {FLOOR}
    assert result.peers[FLOOR].goal == case.goals.get(FLOOR)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_a_loop_that_does_nothing_is_found_out(case: Case, netns: int, tmp_path: Path) -> None:
    """What `prepare` leaves is not what is asked for."""
    with case.open(tmp_path) as contest:
        contest.peers[FLOOR].prepare()
        with pytest.raises(BenchError):
            contest.peers[FLOOR].verify(None)


def test_a_loop_that_fails_is_an_error(netns: int, tmp_path: Path) -> None:
    """A set of that name is there already: the kernel's word reaches whoever measures."""
    with CASES[0].open(tmp_path) as contest:
        contest.ours.run()
        with pytest.raises(BenchError, match="the loop failed"):
            contest.peers[FLOOR].run()


def test_what_does_not_compile_is_an_error_in_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without its loop would be no row."""
    monkeypatch.setattr("bench.floors.SOURCES", tmp_path)
    (tmp_path / "sets.c").write_text("int broken(void) { return nothing; }\n")
    with pytest.raises(BenchError, match="nothing"):
        built("sets", tmp_path)
