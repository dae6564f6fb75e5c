"""Objects in an API server's protobuf, written from their JSON by the numbers of its .proto files: those that are read here, and some more.

As an API server does it: fields by their numbers, texts also where they are empty, every object in an envelope that says what it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Json = dict[str, Any]


class Field(NamedTuple):
    """A field: its number, and what it is: text, number, pairs, time, or the name of a message. `always`: where it is empty too."""

    number: int
    kind: str
    always: bool = False


def _text(number: int) -> Field:
    return Field(number, "text", always=True)


MESSAGES: dict[str, dict[str, Field]] = {
    "Pod": {"metadata": Field(1, "ObjectMeta"), "spec": Field(2, "PodSpec"), "status": Field(3, "PodStatus")},
    "ObjectMeta": {
        "name": _text(1),
        "generateName": _text(2),
        "namespace": _text(3),
        "selfLink": _text(4),
        "uid": _text(5),
        "resourceVersion": _text(6),
        "generation": Field(7, "number"),
        "creationTimestamp": Field(8, "time"),
        "deletionTimestamp": Field(9, "time"),
        "labels": Field(11, "pairs"),
        "annotations": Field(12, "pairs"),
        "finalizers": Field(14, "text"),
    },
    "PodSpec": {
        "containers": Field(2, "Container"),
        "restartPolicy": _text(3),
        "dnsPolicy": _text(6),
        "nodeSelector": Field(7, "pairs"),
        "nodeName": _text(10),
        "hostNetwork": Field(11, "number"),
        "hostname": _text(16),
        "initContainers": Field(20, "Container"),
        "ephemeralContainers": Field(34, "Container"),
    },
    "Container": {
        "name": _text(1),
        "image": _text(2),
        "ports": Field(6, "ContainerPort"),
        "stdin": Field(16, "number"),
        "restartPolicy": Field(24, "text"),
    },
    "ContainerPort": {
        "name": _text(1),
        "hostPort": Field(2, "number"),
        "containerPort": Field(3, "number"),
        "protocol": _text(4),
        "hostIP": _text(5),
    },
    "PodStatus": {
        "phase": _text(1),
        "message": _text(3),
        "hostIP": _text(5),
        "podIP": _text(6),
        "startTime": Field(7, "time"),
        "podIPs": Field(12, "PodIP"),
    },
    "PodIP": {"ip": _text(1)},
    "Status": {
        "status": _text(2),
        "message": _text(3),
        "reason": _text(4),
        "details": Field(5, "StatusDetails"),
        "code": Field(6, "number"),
    },
    "StatusDetails": {"name": _text(1), "retryAfterSeconds": Field(5, "number")},
}


def varint(number: int) -> bytes:
    """Negative ones as 64 bits."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def field(number: int, value: bytes | str | int) -> bytes:
    """One field."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode(errors="surrogatepass") if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(kind: str, value: Json) -> bytes:
    """A message of MESSAGES."""
    known = sorted(MESSAGES[kind].items(), key=lambda item: item[1].number)
    return b"".join(field(one.number, part) for name, one in known for part in _parts(one, value.get(name)))


def _parts(one: Field, value: Any) -> Iterable[bytes | str | int]:
    if value is None:
        return ("",) if one.always else ()
    if isinstance(value, list):
        return [part for item in value for part in _parts(one, item)]
    if one.kind == "pairs":
        return [field(1, key) + field(2, text) for key, text in value.items()]
    if one.kind == "time":
        return (field(1, 1_764_201_600) + field(2, 0),)
    if one.kind == "number":
        return (int(value),)
    return (value,) if one.kind == "text" else (message(one.kind, value),)


def envelope(kind: str, body: bytes, encoding: str = "", content: str = "") -> bytes:
    """An object with what it is."""
    return b"k8s\0" + field(1, field(1, "v1") + field(2, kind)) + field(2, body) + field(3, encoding) + field(4, content)


def wrapped(kind: str, value: Json) -> bytes:
    """An object, written whole."""
    return envelope(kind, message(kind, value))


def frame(type: str, object: bytes) -> bytes:
    """An event of a watch."""
    event = field(1, type) + field(2, field(1, object))
    return len(event).to_bytes(4, "big") + event


def added(*objects: Json) -> bytes:
    return b"".join(frame("ADDED", wrapped("Pod", one)) for one in objects)


def modified(*objects: Json) -> bytes:
    return b"".join(frame("MODIFIED", wrapped("Pod", one)) for one in objects)


def deleted(*objects: Json) -> bytes:
    return b"".join(frame("DELETED", wrapped("Pod", one)) for one in objects)


def bookmark(version: str, initial_end: bool = False) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"} if initial_end else None
    return frame(
        "BOOKMARK", wrapped("Pod", {"metadata": {"resourceVersion": version, "annotations": annotations}, "spec": {}, "status": {}})
    )


def status(code: int, reason: str = "", text: str = "", retry_after: int = 0) -> bytes:
    """The body of a refusal."""
    details = {"retryAfterSeconds": retry_after}
    return wrapped("Status", {"status": "Failure", "message": text, "reason": reason, "details": details, "code": code})


def error(code: int, reason: str = "", text: str = "", retry_after: int = 0) -> bytes:
    return frame("ERROR", status(code, reason, text, retry_after))
