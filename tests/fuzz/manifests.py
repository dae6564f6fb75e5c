"""Fuzz target: manifests, YAML and JSON.

Invariant: any file gives objects or `InvalidManifests`, and nothing else; each of its errors names the file, an object (or the place in
the file), and a reason, in words that can be printed on one line of bounded length. The documents of a file come to a bounded multiple of
its size, whatever its aliases say. JSON that Python's own reader takes, with no key twice, is read as the same value.
"""

from __future__ import annotations

import json
import os
from typing import Any

import yaml
from hypothesis import strategies as st

from netpol.errors import LONGEST, InvalidManifests, InvalidObject
from netpol.kube.documents import MAX_DEPTH, MAX_EXPANSION, Unreadable, documents
from netpol.kube.manifests import load
from tests.fuzz.hostile import OBJECTS, as_json, damaged_bytes, damaged_objects

_ALIASES = b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c {<<: {k: *b}, l: *b}\nd: {<<: [*c, *c], m: *c}\n"
_TEXTS = tuple(as_json(value) for value in OBJECTS) + tuple(yaml.safe_dump(value).encode() for value in OBJECTS)
_ALL = yaml.safe_dump_all(OBJECTS).encode()
_LIST = as_json({"apiVersion": "v1", "kind": "List", "items": OBJECTS})

INPUTS = damaged_objects().map(as_json) | damaged_bytes((*_TEXTS, _ALIASES, _ALL, _LIST)) | st.binary(max_size=60)


def check(data: bytes) -> None:
    """The invariant."""
    file = os.memfd_create("manifest")
    try:
        os.write(file, data)
        _check_file(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    _check_documents(data)


def _check_file(path: str) -> None:
    errors: tuple[InvalidObject, ...] | None = None
    try:
        load([path])
    except InvalidManifests as found:
        errors = found.errors
    assert errors != ()
    for error in errors or ():
        assert error.source == path
        assert error.object
        assert error.reason
        assert str(error).isprintable()
        assert str(error).encode()
        assert all(len(part) <= LONGEST + 3 for part in (error.object, error.field, error.reason))


def _check_documents(data: bytes) -> None:
    try:
        found = [value for _, value in documents(data)]
    except (Unreadable, RecursionError):
        return
    assert sum(_weight(value) for value in found) <= MAX_EXPANSION * (len(data) + 100)
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_unique)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        assert found == [value]
    assert _depth(value) <= max(MAX_DEPTH, 1000)


def _weight(value: Any) -> int:
    """How much text a value stands for, each alias by itself."""
    if isinstance(value, dict):
        return 1 + sum(len(key) + _weight(item) for key, item in value.items())
    if isinstance(value, list):
        return 1 + sum(map(_weight, value))
    return len(value) if isinstance(value, str) else 1


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _unique(pairs: Any) -> dict[str, Any]:
    if isinstance(pairs, str) or len(dict(pairs)) < len(pairs):
        raise ValueError(pairs)
    return dict(pairs)
