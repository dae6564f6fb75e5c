"""Fuzz target: the bytes of a watch.

Invariant: whatever the bytes are and wherever they are cut, `WatchStream` gives events and then, at most once, `MalformedAnswer`, whose
words are printable and short. Every chunking gives the same. No line changes what another one says, and each is read in the same way
whether an API server or somebody else has written it; a line that Python's own reader of JSON takes for an event is that event, with
that object. A `Reflector` takes the same bytes without raising anything, and every chunking leaves it in the same state.
"""

from __future__ import annotations

import json
import random
import zlib
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from netpol.errors import LONGEST, MalformedAnswer
from netpol.kube.events import Event
from netpol.kube.reflector import PODS, Reflector
from netpol.kube.watch import CHANGES, Change, WatchEvent, WatchStream
from tests.fuzz.hostile import OBJECTS, PIECES, as_json, damaged_bytes, damaged_objects

LIMIT = 8192  # bytes of a line


def _line(kind: str, value: Any) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), as_json(value))


_BOOKMARK = {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}}
_STATUS = {"kind": "Status", "code": 410, "reason": "Expired", "message": "\x1b[2J", "details": {"retryAfterSeconds": 2}}
_GOOD = (*(_line(kind, value) for kind in CHANGES for value in OBJECTS), _line("BOOKMARK", _BOOKMARK), _line("ERROR", _STATUS))
_DAMAGED = st.builds(_line, st.sampled_from((*CHANGES, "BOOKMARK", "ERROR", "", "X")), damaged_objects())
_ONE = st.sampled_from(_GOOD) | _DAMAGED | st.sampled_from(PIECES) | st.binary(max_size=20) | st.just(b"\n")
INPUTS = damaged_bytes(st.lists(_ONE, max_size=6).map(b"".join))


def check(data: bytes) -> None:
    """The invariant."""
    whole = _events([data])
    state = _followed([data])
    dice = random.Random(zlib.crc32(data))
    few = [dice.randrange(len(data) + 1) for _ in range(4)]
    for cuts in (few, range(0, len(data), 7 if len(data) > 2000 else 1), range(0, len(data), 256)):
        at = sorted({0, len(data), *cuts})
        chunks = [data[start:end] for start, end in pairwise(at)]
        assert _events(chunks) == whole
        assert _followed(chunks) == state
    found, end = whole
    assert end.isprintable()
    assert len(end) < 2 * LONGEST
    assert _each_line_alone(data) == (found, bool(end))


def _events(chunks: list[bytes]) -> tuple[list[WatchEvent], str]:
    """What a stream says, and the words of its end, if it had one."""
    stream, found = WatchStream(LIMIT), list[WatchEvent]()
    try:
        for chunk in chunks:
            for event in stream.feed(chunk):
                found.append(event)
    except MalformedAnswer as error:
        return found, str(error)
    return found, ""


def _each_line_alone(data: bytes) -> tuple[list[WatchEvent], bool]:
    """The same by streams of one line each, with a space before it: so it is not read by the short way."""
    found: list[WatchEvent] = []
    *lines, tail = data.split(b"\n")
    for line in lines:
        events, end = _events([line[:1], line[1:] + b"\n"])
        if end:
            return found, True
        if len(line) < LIMIT:
            assert _events([b" " + line + b"\n"]) == (events, "")
        _compare(line, events)
        found += events
    return found, len(tail) > LIMIT


def _compare(line: bytes, events: list[WatchEvent]) -> None:
    """With what Python's own reader of JSON says, where that is sure of it."""
    try:
        value = json.loads(line, object_pairs_hook=_unique, parse_constant=_unique)
    except (ValueError, RecursionError):
        return
    if value["type"] in CHANGES:
        (event,) = events
        assert isinstance(event, Change)
        assert event.type == value["type"]
        assert json.loads(event.object) == value["object"]
        meta = value["object"].get("metadata", {}) if isinstance(value["object"], dict) else {}
        names = [meta.get(key, "") for key in ("name", "namespace", "resourceVersion")] if isinstance(meta, dict) else [None]
        good = all(isinstance(name, str) for name in names)
        assert [event.name, event.namespace, event.version] == (names if good else ["", "", ""])


def _unique(pairs: Any) -> dict[str, Any]:
    """Keys that are there twice, and NaN, are read in one way here and in another there."""
    if isinstance(pairs, str) or len(dict(pairs)) < len(pairs):
        raise ValueError(pairs)
    return dict(pairs)


def _followed(chunks: list[bytes]) -> tuple[Any, ...]:
    """What a reflector says of a watch that begins with everything, and how it stands after it."""
    reflector = Reflector(PODS, clock=lambda: 0.0, random=lambda: 0.5)
    reflector.next()
    events: list[Event] = []
    said: list[str] = []
    for chunk in chunks:
        if reflector.reading:
            heard = reflector.receive(chunk)
            events += heard.events
            said += map(str, heard.invalid)
    if reflector.reading:
        reflector.end("timeout")
    assert all(words.isprintable() for words in said)
    assert reflector.trouble is None or reflector.trouble.message.isprintable()
    # Errors are compared by their words.
    return repr(events), said, reflector.trouble, reflector.phase, reflector.version, reflector.synced, reflector.next()
