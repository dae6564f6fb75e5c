"""What the fuzz targets of Python are fed: objects as an API server hands them out, damaged in their values or in their bytes.

A piece of bytes that some reader stumbles over goes to `PIECES`, a value to `VALUES`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

OBJECTS: tuple[dict[str, Any], ...] = (
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7", "labels": {"app": "web", "example.org/a": ""}},
        "spec": {
            "nodeName": "n",
            "hostNetwork": False,
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "metrics", "containerPort": 9090}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]},
    },
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "blue"}}},
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n"},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n"}]},
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}],
                    "ports": [{"port": 80, "endPort": 90}, {"port": "http"}],
                },
                {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]},
            ],
            "egress": [{"to": [{"namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}}]}, {}],
        },
    },
)

_ODD_TEXTS = (
    "",
    "x",
    "\x1b[2J\n",
    "\0",
    "\u202e",
    "\x9b",
    "\ud800",
    "é" * 300,
    "a" * 5000,
    " - at `$.spec",
    "10.0.0.0/40",
    "::ffff:1.2.3.4",
    "1e9",
    "%s%n{}",
)
# 4300 digits are the most that Python makes a text of.
_ODD_NUMBERS = (-1, 0, 65536, 2**63, 2**64, 10**4299, 1.5, 80.0, float("inf"), float("nan"), 1e308)


def nested(depth: int, inner: Any = None) -> Any:
    """Lists and mappings in turn, so many of them."""
    for level in range(depth):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, [{}], [None], {"x": 1}, nested(60), nested(400)),
    *_ODD_TEXTS,
    *_ODD_NUMBERS,
    *([text] for text in _ODD_TEXTS),
    *({text: text} for text in _ODD_TEXTS),
    *({text: 1} for text in _ODD_TEXTS),
)
PIECES: tuple[bytes, ...] = (
    *(bytes([char]) for char in b"{}[]:,\"'#&*!|>%@`?-~=.\\/\t\n\r\0\x1b\x7f"),
    *("\x85".encode(), "\u2028".encode(), "\ufeff".encode()),
    *(b" ", b"\xff", b"\xed\xa0\x80", b"\xff\xfe", b"\xfe\xff\0", b"\xc0\x80", b"\\ud800", b"\\u0000", b'\\"'),
    *(b"\n---\n", b"\n...\n", b"%YAML 9.9\n---\n", b"%TAG ! x:\n---\n", b"\n- ", b"\n? ", b": |2\n ", b": >-\n", b"<<: ", b"<<: *a, "),
    *(b"&a ", b"*a", b"&a [*a, *a]", b"!!int ", b"!!python/object:os.system ", b"!!binary ", b"!!set ", b"!<x> ", b"!!float _"),
    *(b"NaN", b"Infinity", b"-", b".inf", b"1e999", b"9" * 5000, b"0x" + b"f" * 5000, b"0b" + b"1" * 5000, b"1_0", b"0o7", b"1:20", b"yes"),
    *(
        b"null",
        b"true",
        b"[" * 2000,
        b'{"a":' * 2000,
        b"{a: " * 2000,
        b"- " * 2000,
        b'"name":"b",',
        b'"kind":"List","items":[',
        b"x" * 5000,
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a value of JSON, its own included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def damaged(value: Any, path: tuple[Any, ...], junk: Any, key: str | None = None) -> Any:
    """A copy with something else at that path; with a key, that is put beside what is there."""
    found = copy.deepcopy(value)
    at = found
    for step in path[:-1]:
        at = at[step]
    inside = at[path[-1]] if path else at
    if key is not None and isinstance(inside, dict):
        inside[key] = junk
    elif path:
        at[path[-1]] = junk
    return found


_PLACES = tuple((value, path) for value in OBJECTS for path in places(value))
_JUNK = st.sampled_from(VALUES) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_objects(draw: st.DrawFn) -> Any:
    """An object with up to three values of it replaced, or fields added."""
    value, path = draw(st.sampled_from(_PLACES))
    for _ in range(draw(st.integers(1, 3))):
        value = damaged(value, path, draw(_JUNK), draw(st.none() | st.sampled_from(_ODD_TEXTS)))
        path = draw(st.sampled_from(tuple(places(value))))
    return value


def as_json(value: Any) -> bytes:
    """A value as JSON, what JSON has no word for included: NaN, and surrogates as escapes."""
    return json.dumps(value).encode()


@st.composite
def damaged_bytes(draw: st.DrawFn, seeds: Sequence[bytes] | st.SearchStrategy[bytes]) -> bytes:
    """The bytes of a seed with some pieces put in, put over others, taken out or said twice; or cut off."""
    data = draw(seeds if isinstance(seeds, st.SearchStrategy) else st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start, size = draw(st.integers(0, len(data))), draw(st.integers(0, 30))
        piece = draw(
            st.one_of(_PIECE, _PIECE.map(data[start : start + size].__add__), st.just(b""), st.just(2 * data[start : start + size]))
        )
        data = data[:start] + piece + data[start + size :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


_PIECE = st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4)
