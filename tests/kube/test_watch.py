"""The bytes of a watch and of a list: any chunking, any bytes."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from netpol.errors import MalformedAnswer
from netpol.kube.watch import Bookmark, Change, FrameStream, Page, Status, WatchEvent, WatchStream, read_page, read_status
from tests.kube.fake import added, bookmark, deleted, error, line, modified, pod

LIMIT = 4096
POD = pod("web", 7)


def events(*chunks: bytes, limit: int = LIMIT, stream: WatchStream | FrameStream | None = None) -> tuple[list[WatchEvent], str]:
    """What a stream says of these chunks, and the words of its end, if it had one; a stream of lines, where no other is given."""
    stream, found = stream or WatchStream(limit), list[WatchEvent]()
    try:
        for chunk in chunks:
            for event in stream.feed(chunk):
                found.append(event)
    except MalformedAnswer as malformed:
        return found, str(malformed)
    return found, ""


def encoded(object: dict[str, object]) -> bytes:
    return json.dumps(object).encode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(added(POD), Change("ADDED", "web", "default", "7", encoded(POD)), id="added"),
        pytest.param(modified(POD), Change("MODIFIED", "web", "default", "7", encoded(POD)), id="modified"),
        pytest.param(deleted(POD), Change("DELETED", "web", "default", "7", encoded(POD)), id="deleted"),
        pytest.param(bookmark("9"), Bookmark("9", False), id="bookmark"),
        pytest.param(bookmark("9", initial_end=True), Bookmark("9", True), id="the end of what was there"),
        pytest.param(
            line("BOOKMARK", '{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"false"}}}'),
            Bookmark("9", False),
            id="an end that is none",
        ),
        pytest.param(line("BOOKMARK", "{}"), Bookmark("", False), id="an empty bookmark"),
        pytest.param(error(410, "Expired", "too old"), Status(410, "Expired", "too old"), id="error"),
        pytest.param(line("ERROR", '{"kind":"Pod","code":500}'), Status(), id="an error without a status"),
        pytest.param(line("ERROR", "5"), Status(), id="an error that is a number"),
        pytest.param(
            line("ERROR", '{"kind":"Status","code":504,"details":{"retryAfterSeconds":2}}'), Status(504, retry_after=2), id="retry"
        ),
        pytest.param(line("ADDED", '{"metadata":{"name":5}}'), Change("ADDED", "", "", "", b'{"metadata":{"name":5}}'), id="no name"),
        pytest.param(line("ADDED", "[]"), Change("ADDED", "", "", "", b"[]"), id="no object"),
        pytest.param(b'{"type":"ADDED","object":{}, "type":"DELETED"}\n', Change("DELETED", "", "", "", b"{}"), id="a type twice"),
        pytest.param(b' {"object" : {} , "more":1,\t"type":"ADDED"}\r\n', Change("ADDED", "", "", "", b"{}"), id="other order and spaces"),
    ],
)
def test_a_line_is_an_event(data: bytes, expected: WatchEvent) -> None:
    """Each type of line, well made or not."""
    assert events(data) == ([expected], "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"hello\n", "no event", id="no JSON"),
        pytest.param(b"{}\n", "no event", id="no type"),
        pytest.param(b'{"type":"ADDED"}\n', "no event", id="no object"),
        pytest.param(b'{"type":"ADDED","object":{}}x\n', "no event", id="more after it"),
        pytest.param(b'{"type":"ADDED","object":{}x\n', "no event", id="something else at its end"),
        pytest.param(b'{"type":"ADDED","object":{},}\n', "no event", id="a comma too many"),
        pytest.param(b'{"type":"ADDED","object":{}}}\n', "no event", id="a brace too many"),
        pytest.param(b'{"type":"ADDED","object":}\n', "no event", id="an object too few"),
        pytest.param(b'{"type":"RENAMED","object":{}}\n', "RENAMED", id="an unknown type"),
        pytest.param(b'{"type":"ADDED","object":{"a":"' + b"\xff" * 9 + b"\n", "no event", id="cut, then a line's end"),
        pytest.param(b"[" * (LIMIT - 1) + b"\n", "no event", id="bottomless"),
        pytest.param(b"x" * (LIMIT + 1), "longer than 4096", id="a line without an end"),
        pytest.param(added({"a": "x" * LIMIT}), "longer than 4096", id="a line that is too long"),
    ],
)
def test_what_is_no_event_ends_the_stream_after_the_events_before_it(data: bytes, words: str) -> None:
    """The error says what is wrong, and what came before is not lost."""
    found, end = events(added(POD) + data + added(POD))
    assert len(found) == 1
    assert words in end


def test_empty_lines_and_a_cut_tail_are_nothing() -> None:
    """Neither is an event, nor an error."""
    assert events(b"\n\r\n  \n" + added(POD)[:-1]) == ([], "")


def test_the_limit_is_a_lines_own() -> None:
    """Many lines in pieces are more than one may be; one without an end is given up before it fills the memory."""
    halves = [half for _ in range(50) for half in (added(POD)[:100], added(POD)[100:])]
    assert [len(found) if isinstance(found, list) else found for found in events(*halves)] == [50, ""]
    assert "longer than 4096" in events(*[b"x" * 1000] * 5)[1]
    assert "longer than 4096" in events(b"x" * 5000)[1]


def test_a_line_in_tiny_pieces_takes_no_more_than_the_line() -> None:
    """Whoever sends two bytes at a time makes us keep them, and not an object for each."""
    stream = WatchStream()
    pieces = [bytes([i % 251 + 1, 65]).replace(b"\n", b"x") for i in range(1000)]
    tracemalloc.start()
    try:
        for i in range(200_000):
            list(stream.feed(bytes(pieces[i % 1000])[:1] + b"x"))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 400_000


_OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["metadata", "name", "resourceVersion", "é"]), inner),
    max_leaves=8,
)
_LINES = st.one_of(
    st.builds(lambda kind, object: line(kind, json.dumps(object)), st.sampled_from(["ADDED", "DELETED", "BOOKMARK", "ERROR"]), _OBJECTS),
    st.sampled_from([added(POD), bookmark("5", True), error(500), b"\n", b"\r\n", b"{}\n", added({"x": "y" * LIMIT}), b"y" * 5000]),
    st.binary(max_size=40),
)


@given(st.lists(_LINES, max_size=8).map(b"".join), st.lists(st.integers(0, 9000), max_size=12))
def test_any_chunking_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    """However the bytes are cut on their way; and whatever they are, they are events or the one error."""
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[start:end] for start, end in pairwise(at)]
    whole = events(data)
    assert events(*chunks) == whole
    assert events(*(data[i : i + 1] for i in range(len(data)))) == whole


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{"kind":"PodList","metadata":{"resourceVersion":"5","continue":"abc"},"items":[{},5]}',
            Page("5", "abc", (Raw(b"{}"), Raw(b"5"))),
            id="page",
        ),
        pytest.param(b'{"metadata":{"resourceVersion":"5"},"items":null}', Page("5", "", ()), id="no items"),
    ],
)
def test_a_page(body: bytes, expected: Page) -> None:
    """Its items stay JSON."""
    assert read_page(body) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"items":[]}', b'{"metadata":{},"items":{}}', b"\xff", b"[" * 100_000])
def test_what_is_no_page(body: bytes) -> None:
    """It is the one error."""
    with pytest.raises(MalformedAnswer):
        read_page(body)


@given(st.binary(max_size=60))
def test_any_body_is_a_status_or_none(body: bytes) -> None:
    """What stands between us and an API server answers whatever it likes."""
    assert read_status(body) == Status()
