"""What has come of an answer in chunks is one read, and nothing is waited for: beside the standard library's reader, and on a socket."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from itertools import pairwise

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
    """Never more than one piece at once, nor more than was asked for."""
    buffer, left = Buffer(Pieces(pieces), 64), b"".join(pieces)
    for size in sizes:
        found = buffer.read1(size)
        assert left.startswith(found)
        assert len(found) <= (size if size >= 0 else 64)
        assert bool(found) == bool(left and size)
        left = left[len(found) :]


@given(PIECES, st.integers(0, 9), st.integers(1, 40))
def test_what_is_gathered_is_what_has_come(pieces: list[bytes], taken: int, room: int) -> None:
    """All of it, behind what waits, as far as there is room; none is lost and none comes twice."""
    buffer, whole = Buffer(Pieces(pieces), room), b"".join(pieces)
    front = buffer.read1(taken)
    buffer.gather()
    assert buffer._end - buffer._start == min(room, len(whole) - len(front))
    assert front + buffer.read() == whole


def test_what_goes_wrong_while_gathering_is_the_next_reads() -> None:
    """What came before it is read first."""

    class Broken(Pieces):
        def readinto(self, room: memoryview) -> int:  # type: ignore[override]
            if not self._pieces:
                raise ConnectionResetError
            return super().readinto(room)

    buffer = Buffer(Broken([b"one", b"two"]), 64)
    assert buffer.read1(1) == b"o"
    buffer.gather()
    assert buffer.read1() == b"netwo"
    with pytest.raises(ConnectionResetError):
        buffer.read1()


# What waits, how many bytes of a chunk are to come, and how many are wanted at most; the parts that are taken, how many bytes of the last
# chunk are to come, and what is left.
CHUNKS_THAT_WAIT: dict[str, tuple[bytes, int, int, list[bytes], int, bytes]] = {
    "a head and its chunk": (b"\r\n5\r\nhello", 0, 64, [b"hello"], 0, b""),
    "of many digits": (b"\r\n0000fF\r\nx", 0, 64, [b"x"], 254, b""),
    "nothing behind it": (b"\r\n5\r\n", 0, 64, [], 5, b""),
    "the end of one, one, and a part": (b"ab\r\n3\r\ncde\r\n4\r\nfg", 2, 64, [b"ab", b"cde", b"fg"], 2, b""),
    "a part of one": (b"ab", 5, 64, [b"ab"], 3, b""),
    "more than is wanted": (b"abcdef", 6, 4, [b"abcd"], 2, b"ef"),
    "more chunks than are wanted": (b"ab\r\n3\r\ncde", 2, 4, [b"ab", b"cd"], 1, b"e"),
    "as much as is wanted": (b"ab\r\n3\r\ncde", 2, 2, [b"ab"], 0, b"\r\n3\r\ncde"),
    "not whole": (b"\r\n5\r", 0, 64, [], 0, b"\r\n5\r"),
    "no line": (b"\r\n5", 0, 64, [], 0, b"\r\n5"),
    "an end": (b"a\r\n", 1, 64, [b"a"], 0, b"\r\n"),
    "nothing": (b"", 0, 64, [], 0, b""),
    "nothing of a chunk": (b"", 5, 64, [], 5, b""),
    "the last one": (b"\r\n0\r\n\r\n", 0, 64, [], 0, b"\r\n0\r\n\r\n"),
    "an extension": (b"a\r\n5;a=b\r\n", 1, 64, [b"a"], 0, b"\r\n5;a=b\r\n"),
    "a sign": (b"\r\n+5\r\n", 0, 64, [], 0, b"\r\n+5\r\n"),
    "no digits": (b"\r\nnone\r\n", 0, 64, [], 0, b"\r\nnone\r\n"),
    "too many digits": (b"\r\n123456789\r\n", 0, 64, [], 0, b"\r\n123456789\r\n"),
    "no end of the chunk": (b"ab5\r\n", 0, 64, [], 0, b"ab5\r\n"),
    "half an end of line": (b"\r\n5\nx", 0, 64, [], 0, b"\r\n5\nx"),
}


@pytest.mark.parametrize(("waits", "left", "most", "parts", "to_come", "rest"), CHUNKS_THAT_WAIT.values(), ids=CHUNKS_THAT_WAIT)
def test_the_chunks_that_wait(waits: bytes, left: int, most: int, parts: list[bytes], to_come: int, rest: bytes) -> None:
    """Plain ones are taken, any other is left for who knows more of them; nothing is waited for, and nothing lost."""
    buffer = Buffer(Pieces([b"." + waits, b"later"]), 64)
    assert buffer.read1(1) == b"."
    assert buffer.chunks(left, most) == (parts, to_come)
    assert buffer.read() == rest + b"later"


class Connection:
    """A socket of which bytes come in pieces, none of which has to be waited for."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def makefile(self, *_: object) -> io.RawIOBase | io.BufferedReader:
        return Pieces(self._pieces)

    def gettimeout(self) -> float:
        return 5.0

    def settimeout(self, timeout: float) -> None: ...


class Library(Connection):
    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(Pieces(self._pieces))


CHUNKS = st.lists(
    st.tuples(st.binary(min_size=1, max_size=30), st.sampled_from(["%x", "%X", "%04x", "%x;ext=1", "+%x", "%x "])), max_size=12
)
ENDS = st.sampled_from([b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"", b"5\r\nab", b"zz\r\n", b"5;"])


@given(CHUNKS, ENDS, st.lists(st.integers(0, 400), max_size=6), st.sampled_from([-1, 1, 7, 64, CHUNK]))
def test_chunks_are_read_as_the_standard_library_reads_them(
    chunks: list[tuple[bytes, str]], end: bytes, cuts: list[int], most: int
) -> None:
    """Whatever their heads, their end, and the pieces they come in: the same bytes, and an error where it has one."""
    body = b"".join((form % len(data)).encode() + b"\r\n" + data + b"\r\n" for data, form in chunks) + end
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [HEAD, *(body[at:to] for at, to in pairwise(places))]

    def read(response: HTTPResponse) -> tuple[bytes, type[Exception] | None]:
        response.begin()
        found = b""
        try:
            while part := response.read1(most):
                found += part
        except Exception as error:
            return found, type(error)
        return found, None

    ours, theirs = (read(kind(sock(pieces), method="GET")) for kind, sock in ((_Response, Connection), (HTTPResponse, Library)))  # type: ignore[arg-type]
    assert ours == theirs


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
    """The error is the next read's."""
    server, response = wire
    server.sendall(chunk(b"hello") + b"none\r\n")
    assert response.read1(CHUNK) == b"hello"
    with pytest.raises(IncompleteRead):
        response.read1(CHUNK)


def test_a_size_with_a_minus_is_a_broken_chunk(wire: tuple[socket.socket, _Response]) -> None:
    """The library takes all that waits for its chunk, and a size of less than nothing to come then: nothing is read twice."""
    server, response = wire
    server.sendall(chunk(b"hello") + b"-5\r\nx")
    assert response.read1(CHUNK) == b"hello"
    server.sendall(b"yz")
    with pytest.raises(IncompleteRead):
        response.read1(CHUNK)


@pytest.mark.parametrize("behind", [b"0\r\n", b"5;a=b\r\n", b"000000005\r\n"], ids=["a half end", "an extension", "many digits"])
def test_what_has_come_is_not_held_back(wire: tuple[socket.socket, _Response], behind: bytes) -> None:
    """For a chunk of another form, of which nothing has come yet."""
    server, response = wire
    server.sendall(chunk(b"abc") + behind)
    assert response.read1(CHUNK) == b"abc"
    server.sendall(b"\r\n" if behind == b"0\r\n" else b"hello\r\n0\r\n\r\n")
    assert response.read1(CHUNK) == (b"" if behind == b"0\r\n" else b"hello")
    assert response.read1(CHUNK) == b""


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
