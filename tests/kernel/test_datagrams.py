"""Receiving: a datagram that does not fit is an error and never half a datagram, and how many come at once is bounded."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from netpol.kernel._native import ffi, lib

EACH = 8


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of datagrams, of which one is the kernel's part."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(("size", "code"), [(EACH - 1, EACH - 1), (EACH, EACH), (EACH + 1, -errno.EMSGSIZE)])
def test_one_datagram(pair: tuple[socket.socket, socket.socket], size: int, code: int) -> None:
    """It fits or it is refused; nothing is written behind the room."""
    ours, theirs = pair
    theirs.send(b"x" * size)
    buffer, calls = ffi.new("uint8_t[]", EACH + 1), ffi.new("uint64_t *")
    assert lib.np_sys_recv(ours.fileno(), buffer, EACH, 0, calls) == code
    assert buffer[EACH] == 0
    assert lib.np_sys_recv(ours.fileno(), buffer, EACH, 0, calls) == -errno.EAGAIN


@pytest.mark.parametrize(("lengths", "code"), [((1, EACH), 2), ((1, EACH + 1, 1), -errno.EMSGSIZE), ((), -errno.EAGAIN)])
def test_several_datagrams(pair: tuple[socket.socket, socket.socket], lengths: tuple[int, ...], code: int) -> None:
    """Each stands at its place with its size; where one did not fit, all are refused."""
    ours, theirs = pair
    for length in lengths:
        theirs.send(b"x" * length)
    buffer, sizes, calls = ffi.new("uint8_t[]", 4 * EACH), ffi.new("uint32_t[4]"), ffi.new("uint64_t *")
    assert lib.np_sys_recv_many(ours.fileno(), buffer, EACH, 4, sizes, calls) == code
    if code > 0:
        assert list(sizes) == [*lengths, 0, 0]


@pytest.mark.parametrize("most", [-1, 0, lib.NP_DATAGRAMS + 1])
def test_no_more_than_there_is_room_for(pair: tuple[socket.socket, socket.socket], most: int) -> None:
    """More at once than C has places for is refused before anything is received."""
    ours, theirs = pair
    theirs.send(b"x")
    calls = ffi.new("uint64_t *")
    assert lib.np_sys_recv_many(ours.fileno(), ffi.new("uint8_t[64]"), EACH, most, ffi.new("uint32_t[1]"), calls) == -errno.EINVAL
    assert (calls[0], ours.recv(1)) == (0, b"x")
