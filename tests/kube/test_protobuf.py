"""Watches in protobuf: they say what the same watches in JSON say, whatever pods are like and however the bytes are cut; and any bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netpol.kube.protobuf import Frames
from netpol.kube.watch import MAX_LINE, Bookmark, Change, FrameStream, Status, WatchEvent, read_status
from netpol.policy.decode import decode_pod
from tests.kube import fake, test_watch
from tests.kube.protobuf import added, bookmark, deleted, envelope, error, field, frame, message, modified, status, varint, wrapped

POD = fake.pod("web", 7, app="web")
Json = dict[str, Any]


def events(*chunks: bytes, limit: int = MAX_LINE) -> tuple[list[WatchEvent], str]:
    """What a stream of frames says of these chunks, and the words of its end, if it had one."""
    return test_watch.events(*chunks, stream=FrameStream(limit))


def read(found: list[WatchEvent]) -> list[object]:
    """Events with their pods as they are decoded."""
    return [
        (one.type, one.name, one.namespace, one.version, repr(decode_pod(one.object))) if isinstance(one, Change) else one for one in found
    ]


# -- as JSON -----------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["", "a", "http", 'q"uo\\te', "\n\x00\x1f\x7f", "é\u2028\U0001f600", "x" * 300]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
NUMBERS = st.sampled_from([-1, 0, 1, 80, 65535, 65536, 2**31 - 1, -(2**31)])
ADDRESSES = st.sampled_from(["10.0.0.1", "fd00::1", "", "none", "10.0.0.300"])


def _maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({}, optional=fields)


def _pairs(keys: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(keys, TEXTS, max_size=4)


PORTS = st.lists(
    st.fixed_dictionaries(
        {"containerPort": NUMBERS},
        optional={"name": TEXTS, "protocol": st.sampled_from(["TCP", "UDP", "SCTP", "", "X"]), "hostPort": NUMBERS, "hostIP": TEXTS},
    ),
    max_size=3,
)
CONTAINERS = st.lists(
    _maybe(name=TEXTS, image=TEXTS, ports=PORTS, restartPolicy=st.sampled_from(["Always", "OnFailure"]), stdin=st.booleans()), max_size=3
)
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": TEXTS, "namespace": TEXTS, "resourceVersion": st.sampled_from(["1", "99999999999"])},
            optional={
                "uid": TEXTS,
                "generation": NUMBERS,
                "labels": _pairs(),
                "annotations": _pairs(),
                "creationTimestamp": st.just("2026-11-26T23:46:41Z"),
                "deletionTimestamp": st.just("2026-11-26T23:46:41Z"),
                "finalizers": st.lists(TEXTS, max_size=2),
            },
        )
    },
    optional={
        "spec": _maybe(
            nodeName=TEXTS,
            hostNetwork=st.booleans(),
            containers=CONTAINERS,
            initContainers=CONTAINERS,
            ephemeralContainers=CONTAINERS,
            restartPolicy=TEXTS,
            nodeSelector=_pairs(),
        ),
        "status": _maybe(
            phase=st.sampled_from(["Running", "Succeeded", "Failed", "Pending", ""]),
            podIP=ADDRESSES,
            podIPs=st.lists(st.fixed_dictionaries({"ip": ADDRESSES}), max_size=3),
            hostIP=ADDRESSES,
            startTime=st.just("2026-11-26T23:46:41Z"),
        ),
    },
)


def without_empty(value: Any) -> Any:
    """As an API server writes JSON: without texts that are empty, but in maps."""
    if isinstance(value, list):
        return [without_empty(item) for item in value]
    if not isinstance(value, dict):
        return value
    maps = ("labels", "annotations", "nodeSelector")
    return {name: item if name in maps else without_empty(item) for name, item in value.items() if item != ""}


KINDS: dict[str, tuple[Callable[..., bytes], Callable[..., bytes]]] = {
    "ADDED": (added, fake.added),
    "MODIFIED": (modified, fake.modified),
    "DELETED": (deleted, fake.deleted),
}
WATCHES = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), PODS), max_size=4)


@given(WATCHES, st.lists(st.integers(0, 5000), max_size=5))
@example([("ADDED", POD), ("DELETED", POD)], list(range(700)))
def test_it_says_what_json_says(watch: list[tuple[str, Json]], cuts: list[int]) -> None:
    """The same events, with the same pods and the same errors in them, however the bytes are cut."""
    frames = b"".join(KINDS[kind][0](one) for kind, one in watch)
    lines = b"".join(KINDS[kind][1](without_empty(one)) for kind, one in watch)
    found, end = test_watch.events(lines, limit=MAX_LINE)
    assert len(found) == len(watch)
    places = sorted({0, len(frames), *(cut for cut in cuts if cut < len(frames))})
    again, bad = events(*[frames[at:to] for at, to in pairwise(places)])
    assert (read(again), bad) == (read(found), end)


def test_of_a_pod_only_what_policy_needs_is_left() -> None:
    """All of it, and nothing else; a text that is not there and one that is empty are the same."""
    rich = {
        "metadata": {
            **POD["metadata"],
            "annotations": {"a": "b"},
            "labels": {"app": "", 'a"\\\n': "é"},
            "deletionTimestamp": "2026-11-26T23:46:41Z",
        },
        "spec": {
            "nodeName": "node",
            "hostNetwork": True,
            "containers": [
                {"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"name": "dns", "containerPort": -1, "hostPort": 1}]},
                {},
            ],
            "initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 9090}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "hostIP": "192.0.2.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    }
    (line,) = Frames(MAX_LINE).feed(added(rich))
    assert json.loads(line) == {
        "type": "ADDED",
        "object": {
            "metadata": {
                "name": "web",
                "namespace": "default",
                "resourceVersion": "7",
                "labels": {"app": "", 'a"\\\n': "é"},
                "deletionTimestamp": "",
            },
            "spec": {
                "nodeName": "node",
                "hostNetwork": True,
                "containers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}, {"name": "dns", "containerPort": -1}]}, {}],
                "initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 9090}]}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        },
    }


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(bookmark("9"), Bookmark("9", False), id="bookmark"),
        pytest.param(bookmark("9", initial_end=True), Bookmark("9", True), id="the end of what was there"),
        pytest.param(frame("BOOKMARK", envelope("Node", b"")), Bookmark("", False), id="an empty bookmark, of anything"),
        pytest.param(error(410, "Expired", "too old"), Status(410, "Expired", "too old"), id="error"),
        pytest.param(error(504, retry_after=2), Status(504, retry_after=2), id="retry"),
        pytest.param(error(0), Status(), id="an error that says nothing"),
    ],
)
def test_what_is_no_pod(data: bytes, expected: WatchEvent) -> None:
    """Bookmarks, and errors in the midst of a watch."""
    assert events(data) == ([expected], "")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(status(403, "Forbidden", 'pods is "forbidden"'), Status(403, "Forbidden", 'pods is "forbidden"'), id="status"),
        pytest.param(status(429, retry_after=3), Status(429, retry_after=3), id="retry"),
        pytest.param(status(500, "", "\x01" * 5000), Status(500, "", "\x01" * 5000), id="what grows six times"),
        pytest.param(wrapped("Pod", POD), Status(), id="a pod"),
        pytest.param(status(403)[:-9], Status(), id="cut off"),
        pytest.param(b"k8s\0", Status(), id="nothing"),
    ],
)
def test_the_status_of_a_refusal(body: bytes, expected: Status) -> None:
    """An answer that is no watch comes in protobuf too, from a server that was asked for it."""
    assert read_status(body) == expected


# -- any bytes ---------------------------------------------------------------------------------------------------------


def pod_of(body: bytes) -> bytes:
    """An event with a pod of these bytes."""
    return frame("ADDED", envelope("Pod", body))


def event_of(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


META = field(1, "a") + field(6, "7")
NAMED = field(1, META)
MALFORMED = {
    "a frame of nothing": event_of(b""),
    "a type that is none": frame("SYNC", wrapped("Pod", POD)),
    "a type that is a number": event_of(field(1, 5) + field(2, field(1, wrapped("Pod", POD)))),
    "a type that begins well": frame("ADD", wrapped("Pod", POD)),
    "a type in eight bytes": event_of(varint(1 << 3 | 1) + b"MODIFIED" + field(2, field(1, wrapped("Pod", POD)))),
    "an object that is a number": event_of(field(1, "ADDED") + field(2, 5)),
    "an event that ends early": event_of(field(1, "ADDED") + b"\x12\x50"),
    "an object's bytes that end early": event_of(field(1, "ADDED") + field(2, b"\x0a\x50")),
    "an object's bytes that something follows": event_of(field(1, "ADDED") + field(2, field(1, wrapped("Pod", POD)) + b"\x80")),
    "no object": event_of(field(1, "ADDED")),
    "no envelope": frame("ADDED", message("Pod", POD)),
    "an envelope that begins otherwise": frame("ADDED", b"k8t\0" + wrapped("Pod", POD)[4:]),
    "an envelope of a kind that begins well": frame("ADDED", envelope("Po", NAMED)),
    "an envelope of another kind": frame("ADDED", envelope("Node", NAMED)),
    "an envelope without a kind": frame("ADDED", b"k8s\0" + field(2, NAMED)),
    "an envelope without an object": frame("ADDED", b"k8s\0" + field(1, field(2, "Pod"))),
    "an envelope whose object is a number": frame("ADDED", b"k8s\0" + field(1, field(2, "Pod")) + field(2, 5)),
    "a kind that is a number": frame("ADDED", b"k8s\0" + field(1, field(2, 5)) + field(2, NAMED)),
    "a kind that ends early": frame("ADDED", b"k8s\0" + field(1, b"\x12\x50") + field(2, NAMED)),
    "an envelope that ends early": frame("ADDED", envelope("Pod", NAMED) + b"\x80"),
    "an object that is compressed": frame("ADDED", envelope("Pod", NAMED, encoding="gzip")),
    "an object in JSON": frame("ADDED", envelope("Pod", b"{}", content="application/json")),
    "a bookmark without an envelope": frame("BOOKMARK", b""),
    "an error that is no status": frame("ERROR", wrapped("Pod", POD)),
    "a varint without an end": pod_of(NAMED + b"\xff"),
    "a varint of 70 bits": pod_of(NAMED + b"\x38" + b"\x80" * 10 + b"\x01"),
    "a varint of 65 bits": pod_of(NAMED + b"\x38" + b"\xff" * 9 + b"\x02"),
    "a field of number 0": pod_of(NAMED + b"\x02\x00"),
    "a number that no field has": pod_of(NAMED + varint(1 << 40) + b"\x00"),
    "a group": pod_of(NAMED + b"\x3b\x3c"),
    "a size beyond the end": pod_of(NAMED + b"\x3a\x05abc"),
    "a size without an end": pod_of(NAMED + b"\x3a\xff"),
    "eight bytes that end early": pod_of(NAMED + b"\x39abc"),
    "four bytes that end early": pod_of(NAMED + b"\x3dabc"),
    "a name that is a number": pod_of(field(1, field(1, 5))),
    "a port that is a text": pod_of(NAMED + field(2, field(2, field(6, field(3, "80"))))),
    "labels that are a number": pod_of(field(1, META + field(11, 5))),
    "a label's key that is a number": pod_of(field(1, META + field(11, field(1, 5)))),
    "a label that ends early": pod_of(field(1, META + field(11, b"\x0a\x50"))),
    "a name twice": pod_of(field(1, field(1, "a") + field(1, "b"))),
    "a spec twice": pod_of(NAMED + field(2, b"") + field(2, b"")),
    "a name behind the labels": pod_of(field(1, field(11, field(1, "a")) + field(1, "b"))),
    "labels in two places": pod_of(field(1, field(3, "a") + field(11, field(1, "a")) + field(6, "7") + field(11, field(1, "b")))),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_event_ends_the_stream(data: bytes) -> None:
    """After what came before it; in words that can be printed."""
    found, end = events(added(POD) + data + added(POD))
    assert [one.name for one in found if isinstance(one, Change)] == ["web"]
    assert end.startswith("a frame of a watch is no event (")
    assert end.isprintable()
    assert len(end) < 300


def replaced(data: bytes) -> str:
    """A text as an API server writes it in JSON: of what is no UTF-8, each byte is a replacement character."""
    text = ""
    while data:
        size = next((size for size in range(1, 5) if _is_character(data[:size])), 0)
        text += data[:size].decode() or "\ufffd"
        data = data[size or 1 :]
    return text


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


EDGES = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, ord('"'))


@given(st.lists(st.sampled_from(EDGES), max_size=8).map(bytes) | TEXTS.map(str.encode))
@example(b"\xed\x9f\xbf\xed\xa0\x80\xe0\x9f\xbf\xe0\xa0\x80\xf0\x8f\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\xf4\x90\x80\x80")
@example(b"\xc2")
@example(b"\xe2\x82a")
@example(b"\xe2\x82")
@example(b"\xf5\x80\x80\x80")
def test_text_that_is_no_utf_8(data: bytes) -> None:
    """A pod whose phase is no text is there all the same: whoever may write a status can write any bytes."""
    # What comes behind it begins with a byte that could be the rest of a character.
    (line,) = Frames(MAX_LINE).feed(pod_of(NAMED + field(3, field(1, data) + field(32, ""))))
    assert json.loads(line)["object"]["status"].get("phase", "") == replaced(data)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(field(99, 5) + field(98, "x") + varint(97 << 3 | 1) + b"8 bytes!" + varint(96 << 3 | 5) + b"four", id="at the end"),
        pytest.param(varint((1 << 32) - 1 << 3) + b"\x05", id="of the highest number"),
    ],
)
def test_fields_that_are_not_known_mean_nothing(extra: bytes) -> None:
    """A later version has some, of any form, in any order."""
    found, end = events(pod_of(field(1, META + extra) + extra))
    assert not end
    assert read(found) == [("ADDED", "a", "", "7", repr(decode_pod(b'{"metadata":{"name":"a"}}')))]


def test_a_time_that_is_none() -> None:
    """It is null in JSON."""
    meta = json.loads(b"".join(Frames(MAX_LINE).feed(pod_of(field(1, field(1, "a") + field(9, b"")) + field(3, b"")))))
    assert meta["object"] == {"metadata": {"name": "a"}, "status": {}}


def test_the_last_part_of_a_label_counts() -> None:
    """A key that has no value, and a pair of nothing, are texts that are empty; of parts that come twice the last one counts."""
    pairs = (field(1, "a"), field(2, "b"), field(1, "c") + field(1, "d") + field(2, "e") + field(7, 5))
    (line,) = Frames(MAX_LINE).feed(pod_of(field(1, META + b"".join(field(11, pair) for pair in pairs))))
    assert json.loads(line)["object"]["metadata"]["labels"] == {"a": "", "": "b", "d": "e"}


@given(st.lists(st.sampled_from([*MALFORMED.values(), added(POD), bookmark("9"), b"\0\0\0", b"\0\0\0\x05abc"]) | st.binary(max_size=20)))
def test_any_bytes_cut_anywhere(parts: list[bytes]) -> None:
    """Events, then at most one MalformedAnswer; the same for bytes that come one by one."""
    data = b"".join(parts)
    found, end = events(data)
    again, bad = events(*[data[at : at + 1] for at in range(len(data))])
    assert (again, bool(bad)) == (found, bool(end))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_frame_that_is_too_long() -> None:
    """It is refused when its size has come, and not kept until all of it has."""
    whole = added({"metadata": {"name": "a", "annotations": {"long": "x" * 1000}}})
    assert events(whole, limit=len(whole) - 4)[1] == ""
    found, end = events(whole[:4], limit=len(whole) - 5)
    assert (found, end) == ([], f"a frame of a watch is longer than {len(whole) - 5} bytes")


def test_a_line_that_is_too_long() -> None:
    """What is short as a frame may be long as a line."""
    grows = added({"metadata": {"name": "a", "labels": {"k": "\x01" * 1000}}})
    assert events(grows, limit=len(grows))[1] == f"a frame of a watch is longer than {len(grows)} bytes"
    ((change,), end) = events(grows, limit=7 * len(grows))
    assert isinstance(change, Change)
    assert (json.loads(change.object)["metadata"]["labels"], end) == ({"k": "\x01" * 1000}, "")


def test_lines_that_do_not_fit_at_once() -> None:
    """Many frames at once are many pieces of lines, and one line that is longer than a piece is a piece of its own."""
    large = {"metadata": {"name": "large", "labels": {"k": "x" * 3_000_000}}}
    pods = [fake.pod(f"pod-{number}", number) for number in range(2000)]
    pieces = list(Frames(MAX_LINE).feed(added(*pods, large, *pods)))
    assert len(pieces) > 3
    assert all(piece.endswith(b"\n") for piece in pieces)
    names = [json.loads(line)["object"]["metadata"]["name"] for line in b"".join(pieces).splitlines()]
    assert names == [one["metadata"]["name"] for one in (*pods, large, *pods)]
