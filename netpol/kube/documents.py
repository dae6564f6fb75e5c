"""The documents of a file, JSON or YAML, as plain values: what an API server would have been sent.

Stricter than the usual readers, for a manifest that says something else than its author thinks is an open door: a key that is given
twice is an error where they would keep the last one; so are tags that JSON has no value for. Dates are text, as for kubectl.

Invariants: any bytes give documents or one of the errors that `documents` names; a document takes memory in proportion to its file,
whatever its aliases say; YAML nests no deeper than `MAX_DEPTH`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from yaml.constructor import SafeConstructor
from yaml.reader import ReaderError
from yaml.resolver import Resolver

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML without libyaml: slower, the same
    from yaml import SafeLoader  # type: ignore[assignment]  # a twin of the other

# Deeper than any object of Kubernetes; and how many times its own size a file may come to when its aliases are put in.
MAX_DEPTH = 100
MAX_EXPANSION = 10
MAX_BITS = 1024  # of an integer: as large as a JSON number is, where it is a double
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


class Unreadable(Exception):
    """Why a file cannot be read, and the line where, if it is known."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        self.reason, self.line = reason, line
        super().__init__(reason)


class Document(NamedTuple):
    """One value: dict, list, str, int, float, bool; and the line where it starts."""

    line: int
    value: Any


def documents(data: bytes) -> Iterator[Document]:
    """The documents of a file; empty ones are skipped. Raises Unreadable, and RecursionError for JSON that nests without end.

    What begins like a JSON object is tried as JSON first, which is far faster; what is no JSON after all is read as YAML, which has
    about the same syntax and says where it is broken.
    """
    if data.lstrip().startswith(b"{"):
        try:
            yield from list(_json_documents(data.decode()))
            return
        except (json.JSONDecodeError, UnicodeDecodeError):
            pass
    yield from _yaml_documents(data)


# -- JSON --------------------------------------------------------------------------------------------------------------


_SPACE = re.compile(r"[ \t\r\n]*")


def _json_documents(text: str) -> Iterator[Document]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
    at, line = 0, 1
    while True:
        start = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty text too
        line += text.count("\n", at, start)
        if start == len(text):
            return
        value, at = decoder.raw_decode(text, start)
        yield Document(line, value)
        line += text.count("\n", start, at)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unreadable(f"the key {_second(pairs)!r} is given twice in one mapping")
    return found


def _second(pairs: list[tuple[str, Any]]) -> str:
    """The first key that was there before."""
    seen: set[str] = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # its None is the no


def _no_constant(text: str) -> float:
    raise Unreadable(f"{text} is no value of JSON")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # thousands of digits
        raise Unreadable(str(error)) from None


# -- YAML --------------------------------------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"


class _Scalars(SafeConstructor, Resolver):
    """What plain text in YAML stands for. Dates are text, as they are for kubectl."""

    def __init__(self) -> None:
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    def value(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        """The value of a scalar; Unreadable for a number that is none, or a tag that JSON has no value for."""
        text, tag = event.value, event.tag
        if tag is None or tag == "!":
            tag = self.resolve(yaml.ScalarNode, text, event.implicit)  # type: ignore[no-untyped-call]  # its stub has no types
        kind, node = tag.removeprefix(_TAG), yaml.ScalarNode(tag, text)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return bool(self.construct_yaml_bool(node))
            # 1:20 would be a number to the base of 60. Nobody means that; and an IPv6 address can look like one.
            if kind == "int" and ":" not in text:
                return _bounded(int(self.construct_yaml_int(node)))
            if kind == "float" and ":" not in text:
                return float(self.construct_yaml_float(node))
        except (ValueError, LookupError):
            raise Unreadable(f"{text[:40]!r} is no {kind}", _line(event)) from None
        if kind in ("str", "int", "float", "timestamp", "binary", "value", "merge"):
            return text
        raise Unreadable(f"the tag {tag!r} is not known", _line(event))


def _bounded(number: int) -> int:
    """The number; ValueError where it is beyond what JSON has numbers for: hexadecimal ones can be so large that none can be printed."""
    if number.bit_length() > MAX_BITS:
        raise ValueError(number.bit_length())
    return number


class _YAML:
    """The documents of a stream as plain values, built from the parser's events: aliases and merge keys put in, nothing given twice.

    PyYAML's own composer recurses in C as deep as the text nests, and would end the process. `_room` is how much text all values
    together may come to: a few lines of aliases of aliases could stand for more than there is memory.
    """

    def __init__(self, data: bytes) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(data, Loader=SafeLoader)
        self._scalars = _Scalars()
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._room = MAX_EXPANSION * (len(data) + 100)

    def documents(self) -> Iterator[Document]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                first = next(self._events)
                value = self._value(first, 0)
                if value is not None:
                    yield Document(_line(first), value)

    def _value(self, event: yaml.Event, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise Unreadable(TOO_DEEP, _line(event))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise Unreadable(f"the alias {event.anchor!r} has no anchor before it", _line(event))
            value, size = self._anchors[event.anchor]
            self._take(size, event)
            return value
        assert isinstance(event, yaml.NodeEvent)
        room = self._room
        value = self._new_value(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, room - self._room
        return value

    def _new_value(self, event: yaml.NodeEvent, depth: int) -> Any:
        self._take(1, event)
        if isinstance(event, yaml.ScalarEvent):
            self._take(len(event.value), event)
            return self._scalars.value(event)
        assert isinstance(event, yaml.CollectionStartEvent)
        if event.tag not in (None, "!", _TAG + "map", _TAG + "seq"):
            raise Unreadable(f"the tag {event.tag!r} is not known", _line(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        return [self._value(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)]

    def _mapping(self, depth: int) -> dict[str, Any]:
        """Keys are text, as they are written. What a merge key ("<<") brings gives way to what stands in the mapping itself."""
        own: dict[str, Any] = {}
        merged: list[Any] = []
        for key in self._until(yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise Unreadable("a key that is no text", _line(key))
            self._take(len(key.value), key)
            value = self._value(next(self._events), depth + 1)
            merges = key.value == "<<" and key.implicit[0]
            if key.value in own or (merges and merged):
                raise Unreadable(f"the key {key.value!r} is given twice in one mapping", _line(key))
            if not merges:
                own[key.value] = value
                continue
            merged = value if isinstance(value, list) else [value]
            if not all(isinstance(base, dict) for base in merged):
                raise Unreadable("only mappings can be merged with <<", _line(key))
        for base in merged:
            for name, value in base.items():
                own.setdefault(name, value)
        return own

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        """The events that begin the items of a collection; whoever takes one reads that item to its end."""
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _take(self, size: int, event: yaml.Event) -> None:
        self._room -= size
        if self._room < 0:
            raise Unreadable("its aliases stand for too much text", _line(event))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _yaml_documents(data: bytes) -> Iterator[Document]:
    try:
        yield from _YAML(data).documents()
    except yaml.MarkedYAMLError as error:
        mark, reason = error.problem_mark or error.context_mark, error.problem or error.context or "is no YAML"
        if "nesting depth" in reason:  # a libyaml that has a limit of its own may meet it first, for it reads ahead
            reason = TOO_DEEP
        raise Unreadable(reason, mark.line + 1 if mark else None) from None
    except ReaderError as error:
        raise Unreadable(f"is no text: {error.reason} (at {error.position})") from None
