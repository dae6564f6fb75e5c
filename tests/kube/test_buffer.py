"""What has come of an answer in chunks is one read, and nothing is waited for: beside the standard library's reader, and on a socket."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from http.client import IncompleteRead

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.kube.buffer import Buffer
from netpol.kube.client import CHUNK, _Response


class Pieces(io.RawIOBase):
    """A connection whose bytes come in these pieces; each reading of it brings one at most."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]  # of the buffers that there are it is given this one
        if not self._pieces:
            return 0
        found = self._pieces[0][: len(room)]
        room[: len(found)] = found
        self._pieces[0] = self._pieces[0][len(found) :]
        if not self._pieces[0]:
            self._pieces.pop(0)
        return len(found)


PIECES = st.lists(st.binary(min_size=1, max_size=9) | st.sampled_from([b"\n", b"\r\n", b"ab\r\ncd\n"]), max_size=12)
SIZES = st.none() | st.integers(-1, 12)


@given(PIECES, st.lists(st.tuples(st.sampled_from(["read", "readline"]), SIZES), max_size=12), st.integers(1, 16))
def test_it_reads_as_the_standard_library_does(pieces: list[bytes], calls: list[tuple[str, int | None]], room: int) -> None:
    """Whatever the pieces, the calls and its size: the same bytes, in the same calls."""
    ours, theirs = Buffer(Pieces(pieces), room), io.BufferedReader(Pieces(pieces), room)
    for name, size in calls:
        assert getattr(ours, name)(size) == getattr(theirs, name)(size)
    assert ours.read() == theirs.read()


@given(PIECES, st.lists(st.integers(-1, 12), max_size=20))
def test_what_comes_first_is_all_that_is_waited_for(pieces: list[bytes], sizes: list[int]) -> None:
    """Never more than one piece at once, nor more than was asked for; what it says of the bytes that wait is so."""
    buffer, left = Buffer(Pieces(pieces), 64), b"".join(pieces)
    for size in sizes:
        waits = buffer._end - buffer._start
        assert [buffer.has(count) for count in range(waits + 2)] == [count < waits for count in range(waits + 2)]
        assert [buffer.has_line(skipped) for skipped in range(3)] == [b"\n" in left[skipped:waits] for skipped in range(3)]
        found = buffer.read1(size)
        assert left.startswith(found)
        assert len(found) <= (size if size >= 0 else 64)
        assert bool(found) == bool(left and size)
        left = left[len(found) :]


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, _Response]]:
    """A server's end of a connection, and the answer at the other one, whose head has come. Nothing waits longer than 5 s."""
    server, client = socket.socketpair()
    with server, client:
        client.settimeout(5.0)
        response = _Response(client, method="GET")
        server.sendall(HEAD)
        response.begin()
        yield server, response
        response.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_all_chunks_that_have_come_are_one_read(wire: tuple[socket.socket, _Response]) -> None:
    """A thousand of them; what was not asked for stays for the next read."""
    server, response = wire
    server.sendall(b"".join(chunk(b"%04d\n" % number) for number in range(1000)))
    whole = b"".join(b"%04d\n" % number for number in range(1000))
    assert response.read1(2002) == whole[:2002]
    assert response.read1(CHUNK) == whole[2002:]


@pytest.mark.parametrize(
    "more", [b"\r\n5", b"\r\n5\r", b"\r\n", b"\r", b""], ids=["half a size", "no line", "an end", "half an end", "no end"]
)
def test_no_read_waits_for_a_chunk_that_has_not_come(wire: tuple[socket.socket, _Response], more: bytes) -> None:
    """However much of the next one's frame is there; when the rest comes, it is read."""
    server, response = wire
    server.sendall(b"5\r\nhello" + more)
    assert response.read1(CHUNK) == b"hello"
    server.sendall((b"\r\n5\r\nworld\r\n0\r\n\r\n")[len(more) :])
    assert response.read1(CHUNK) == b"world"
    assert response.read1(CHUNK) == b""


def test_a_part_of_a_chunk_is_read_as_it_comes(wire: tuple[socket.socket, _Response]) -> None:
    server, response = wire
    server.sendall(chunk(b"one") + b"a\r\n01234")
    assert response.read1(CHUNK) == b"one01234"
    server.sendall(b"56789\r\n0\r\n\r\n")
    assert response.read1(CHUNK) == b"56789"
    assert response.read1(CHUNK) == b""


def test_what_came_before_a_broken_chunk_is_read(wire: tuple[socket.socket, _Response]) -> None:
    """The error is the next read's, and that of each one after it."""
    server, response = wire
    server.sendall(chunk(b"hello") + b"none\r\n")
    assert response.read1(CHUNK) == b"hello"
    for _ in range(2):
        with pytest.raises(IncompleteRead):
            response.read1(CHUNK)


def test_an_answer_that_is_not_in_chunks() -> None:
    """One with a length is read as ever, and no further than its end."""
    server, client = socket.socketpair()
    with server, client:
        client.settimeout(5.0)
        response = _Response(client, method="GET")
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200")
        response.begin()
        assert response.read1(CHUNK) == b"hello"
        assert response.read1(CHUNK) == b""
        response.close()
