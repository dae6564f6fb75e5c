"""Fuzz target: API objects.

Invariant: of any bytes each decoder gives a value, or errors, or both, and always the same; nothing is raised. An error names the object
by its kind and, where that can be read, by its name; its field is a path of JSON fields; its reason says something; all of it can be
printed on one line of bounded length. A policy that has errors isolates at least one direction. How the JSON is spaced means nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from netpol.errors import LONGEST, InvalidObject
from netpol.model import Policy
from netpol.policy.decode import Decoded, decode_namespace, decode_node, decode_pod, decode_policy
from tests.fuzz.hostile import OBJECTS, as_json, damaged_bytes, damaged_objects

DECODERS: dict[str, Callable[[bytes], Decoded[Any]]] = {
    "Pod": decode_pod,
    "Namespace": decode_namespace,
    "Node": decode_node,
    "NetworkPolicy": decode_policy,
}
# What stands in brackets: a place in a list, a label's key, or * for any key.
STEP = r"\w+(\[(\d+|\*|[A-Za-z0-9][-A-Za-z0-9_./]*)\])*"
FIELD = re.compile(rf"({STEP}(\.{STEP})*)?")
_SEEDS = tuple(as_json(value) for value in OBJECTS)

INPUTS = damaged_objects().map(as_json) | damaged_bytes(_SEEDS)


def check(data: bytes) -> None:
    """The invariant."""
    name = _name(data)
    for kind, decode in DECODERS.items():
        decoded = decode(data)
        assert decoded.value is not None or decoded.errors
        assert _words(decode(data)) == _words(decoded)
        for error in decoded.errors:
            complains_well(error, kind)
            assert name is None or not name.isprintable() or len(name) > 400 or error.object.endswith(name)
        if isinstance(decoded.value, Policy) and decoded.errors:
            assert (decoded.value.ingress, decoded.value.egress) != (None, None)
        if name is not None:
            spaced = json.dumps(json.loads(data), indent=1).encode()
            assert _words(decode(spaced)) == _words(decoded)


def complains_well(error: InvalidObject, kind: str) -> None:
    """What holds of each error: it says what and where, in words that can be printed and are not without end."""
    assert error.object.startswith(kind)
    assert FIELD.fullmatch(error.field), error.field
    assert error.reason
    assert str(error).isprintable()
    assert str(error).encode()
    assert all(len(part) <= LONGEST + 3 for part in (error.object, error.field, error.reason))


def _name(data: bytes) -> str | None:
    """The object's name, where Python's own reader of JSON finds exactly one object and one name."""
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_unique)
        name, namespace = value["metadata"]["name"], value["metadata"].get("namespace", "")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    return (
        name
        if isinstance(name, str) and isinstance(namespace, str) and not re.search(r"[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
        else None
    )


def _unique(pairs: Any) -> dict[str, Any]:
    if isinstance(pairs, str) or len(dict(pairs)) < len(pairs):
        raise ValueError(pairs)
    return dict(pairs)


def _words(decoded: Decoded[Any]) -> tuple[Any, list[str]]:
    return decoded.value, [str(error) for error in decoded.errors]
