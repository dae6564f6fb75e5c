"""The bare loop in C that the set load is measured beside sends the same bytes as we do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.floors import SEQ, Fill, built
from netpol.bench.members import Make, pod_addresses, scattered_addresses
from netpol.bench.sets import NAME
from netpol.kernel._native import ffi, lib
from netpol.kernel.ipset import pack, room


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
        assert lib.np_ipset_create(native, SEQ, NAME.encode(), b"hash:ip", 0, 4, hashsize, room(count), 0) == 0
        assert lib.np_ipset_members(native, SEQ, lib.NP_IPSET_ADD, NAME.encode(), 0, 4, members, len(members), scratch, ffi.NULL) == 0
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
