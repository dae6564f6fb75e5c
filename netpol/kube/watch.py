"""What an API server's bytes say: the lines of a watch, the pages of a list, the Status of a refusal. Bytes in, values out, no I/O.

A watch is one JSON object a line; one in protobuf is made so first (`netpol.kube.protobuf`). Where the bytes are cut on their way has no
meaning: any chunking of the same bytes gives the same events, and a last line without its end is no event at all. Objects stay JSON:
`netpol.policy.decode` is their one reader.

Invariants: whatever the bytes are, nothing but `MalformedAnswer` is raised; an object that cannot be read is an event like any other
(without a name, if that is what is broken) and never ends the stream; no line is kept beyond `MAX_LINE` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from netpol.errors import MalformedAnswer
from netpol.kube import protobuf

T = TypeVar("T")
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]
CHANGES: tuple[ChangeType, ...] = ("ADDED", "MODIFIED", "DELETED")

# An object has at most 1.5 MB in etcd, 3 MB in a request, and somewhat more as JSON.
MAX_LINE = 16 << 20
INITIAL_EVENTS_END = "k8s.io/initial-events-end"
GONE = 410

# What msgspec raises for bytes that are not the JSON asked for: broken UTF-8 and bottomless nesting come as Python's own errors.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Change(Struct, frozen=True, gc=False):
    """An object was added, modified or deleted. `name`, `namespace` and `version` (its resourceVersion) are "" where unreadable."""

    type: ChangeType
    name: str
    namespace: str
    version: str
    object: bytes


class Bookmark(Struct, frozen=True, gc=False):
    """All changes up to a resourceVersion have been said; `initial_end`: all objects that were there at the start, too."""

    version: str
    initial_end: bool


class Status(Struct, frozen=True, gc=False):
    """Why an API server does not do as asked: an ERROR event, or the body of an HTTP error. `code` is 0 where it says none."""

    code: int = 0
    reason: str = ""
    message: str = ""
    retry_after: float | None = None  # seconds


WatchEvent = Change | Bookmark | Status


class Page(Struct, frozen=True):
    """A part of a list. `next` is what to continue with, "" on the last page; `version` is the resourceVersion of the whole list.

    The items are parts of the page's bytes, and no copies.
    """

    version: str
    next: str
    items: tuple[Raw, ...]


class _Line(Struct, gc=False):
    type: str
    object: Raw


class _Meta(Struct, gc=False):
    name: str = ""
    namespace: str = ""
    resourceVersion: str = ""


class _Object(Struct, gc=False):
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _BookmarkMeta(Struct, gc=False):
    resourceVersion: str = ""
    annotations: dict[str, str] | None = None


class _Bookmark(Struct, gc=False):
    metadata: _BookmarkMeta = msgspec.field(default_factory=_BookmarkMeta)


class _StatusDetails(Struct, gc=False):
    retryAfterSeconds: int | None = None


class _Status(Struct, gc=False):
    kind: str
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _StatusDetails | None = None


class _ListMeta(Struct, gc=False):
    resourceVersion: str = ""
    next: str = msgspec.field(default="", name="continue")


class _Page(Struct, gc=False):
    metadata: _ListMeta
    items: list[Raw] | None = None


_LINE, _OBJECT, _BOOKMARK = msgspec.json.Decoder(_Line), msgspec.json.Decoder(_Object), msgspec.json.Decoder(_Bookmark)
_FRONTS = tuple((f'{{"type":"{kind}","object":'.encode(), kind) for kind in CHANGES)
_STATUS, _PAGE = msgspec.json.Decoder(_Status), msgspec.json.Decoder(_Page)


# -- watches -----------------------------------------------------------------------------------------------------------


class WatchStream:
    """The bytes of one watch. After it has raised it is spent."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._tail = bytearray()  # of a line whose end has not come; in one piece, for a piece a byte would take forty times the room

    def feed(self, data: bytes) -> Iterator[WatchEvent]:
        """The events that end in these bytes. To be taken to the end: what was not taken is lost.

        Raises MalformedAnswer, after the events before it, for a line that is none of a watch or is longer than the limit.
        """
        *lines, tail = data.split(b"\n")
        for line in lines:
            if self._tail:
                line = b"".join((self._tail, line))
                self._tail.clear()
            self._check(len(line))
            if line and not line.isspace():
                yield read_line(line)
        if tail:
            self._tail += tail
            self._check(len(self._tail))

    def _check(self, size: int) -> None:
        if size > self._max_line:
            raise MalformedAnswer(f"a line of a watch is longer than {self._max_line} bytes")


class FrameStream:
    """The same of a watch of pods in protobuf."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._frames = protobuf.Frames(max_line)

    def feed(self, data: bytes) -> Iterator[WatchEvent]:
        """As that of a WatchStream."""
        for lines in self._frames.feed(data):
            yield from map(read_line, lines.split(b"\n")[:-1])


def read_line(line: bytes) -> WatchEvent:
    """The event of one line; MalformedAnswer for what is none."""
    for front, kind in _FRONTS:
        # As every API server writes it: what stands between this front and the last brace is the object, if it is one JSON value.
        if line.startswith(front) and line.endswith(b"}"):
            data = line[len(front) : -1]
            try:
                return _change(_OBJECT.decode(data).metadata, kind, data)
            except UNREADABLE:
                break
    return _read_any_line(line)


def _read_any_line(line: bytes) -> WatchEvent:
    try:
        event = _LINE.decode(line)
    except UNREADABLE as error:
        raise MalformedAnswer(f"a line of a watch is no event: {error} ({_excerpt(line)})") from None
    kind = event.type
    if kind in CHANGES:
        return read_object(bytes(event.object), kind)
    if kind == "BOOKMARK":
        meta = _read(_BOOKMARK, event.object, _Bookmark()).metadata
        return Bookmark(meta.resourceVersion, (meta.annotations or {}).get(INITIAL_EVENTS_END) == "true")
    if kind == "ERROR":
        return read_status(bytes(event.object))
    raise MalformedAnswer(f"a line of a watch has the type {kind[:40]!r}, which is none of an event's")


def read_object(data: bytes, kind: ChangeType) -> Change:
    """An object as a change: what an item of a list is, too."""
    return _change(_read(_OBJECT, data, _Object()).metadata, kind, data)


def _change(meta: _Meta, kind: ChangeType, data: bytes) -> Change:
    return Change(kind, meta.name, meta.namespace, meta.resourceVersion, data)


# -- lists and refusals ------------------------------------------------------------------------------------------------


def read_page(body: bytes) -> Page:
    """A page of a list; MalformedAnswer for what is none."""
    try:
        page = _PAGE.decode(body)
    except UNREADABLE as error:
        raise MalformedAnswer(f"the page of a list cannot be read: {error} ({_excerpt(body)})") from None
    return Page(page.metadata.resourceVersion, page.metadata.next, tuple(page.items or ()))


def read_status(body: bytes) -> Status:
    """The Status that an answer holds; `Status()` where it holds none: what stands between us and an API server answers too."""
    if body.startswith(protobuf.MAGIC):
        body = protobuf.read_status(body)
    status = _read(_STATUS, body, None)
    if status is None or status.kind != "Status":
        return Status()
    after = status.details.retryAfterSeconds if status.details is not None else None
    return Status(status.code, status.reason, status.message, after)


def _read(decoder: msgspec.json.Decoder[T], data: bytes | Raw, otherwise: T | None) -> T:
    try:
        return decoder.decode(data)
    except UNREADABLE:
        return otherwise  # type: ignore[return-value]  # None only where the caller passes it


def _excerpt(data: bytes) -> str:
    return ascii(data[:60].decode(errors="replace")) + ("..." if len(data) > 60 else "")
