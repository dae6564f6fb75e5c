"""A table of x_tables as it was read, and how our chains are put into it beside everybody else's.

`Snapshot` knows where the chains stand and where each jump goes, and nothing of what the rules mean: foreign rules stay bytes.
`splice` lays out a new table: built-in chains by hook, then user chains by name, as iptables does. Foreign chains go in as they were
(only the offsets in their jumps move); ours are dropped and the given ones put in; `-j NETPOL` is FORWARD's first rule and stands
nowhere else in it. A chain of ours that a foreign rule still jumps to stays until that rule is gone: somebody else's
stray rule must not stop us, nor point into nothing.

Counters are moved too: those of foreign rules always, ours as long as a rule of the same bytes stays in a chain of the same name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from netpol.errors import MalformedKernelData
from netpol.kernel._native import ffi, lib
from netpol.kernel.entries import EncodedChain, entry, entry_end
from netpol.kernel.targets import error_target, standard
from netpol.model import Family
from netpol.rules.ruleset import HOOK, ROOT, TableName

HOOK_NAMES = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
FORWARD = HOOK_NAMES.index(HOOK)
COUNTER = 16  # bytes: packets and bytes, 64 bits each


def sizes(family: Family) -> Any:
    """struct np_xt_sizes of a family. Stays in this room."""
    found = ffi.new("struct np_xt_sizes *")
    lib.np_xt_sizes(family, found)
    return found


_SIZES: dict[Family, Any] = {4: sizes(4), 6: sizes(6)}


class Span(Struct, frozen=True):
    """A chain in a table: `data` without counters, from head to tail; its place, and the index of its first entry."""

    name: str
    hook: int
    offset: int
    data: bytes
    first: int
    entries: int


class Snapshot:
    """A table as the kernel handed it out.

    blob -- its entries, cleared of counters; spans -- its chains in order; counters -- packed (packets, bytes) of every entry.
    MalformedKernelData when the bytes do not have the form that every writer of tables gives them.
    """

    def __init__(self, family: Family, table: TableName, info: Any, blob: bytearray) -> None:
        self.family, self.table = family, table
        self.valid_hooks, self.entries, self.size = int(info.valid_hooks), int(info.num_entries), len(blob)
        layout = ffi.new(
            "struct np_xt_table *",
            {
                "valid_hooks": info.valid_hooks,
                "hook_entry": list(info.hook_entry),
                "underflow": list(info.underflow),
                "entries": info.num_entries,
            },
        )
        self._chains = ffi.new("struct np_xt_chain[]", self.entries + 1)
        self._jumps = ffi.new("struct np_xt_jump[]", self.entries + 1)
        count, where = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        native = ffi.from_buffer(blob)
        chains = lib.np_xt_split(
            *(native, len(blob), family, layout, self._chains, self.entries + 1, self._jumps, self.entries + 1, count, where)
        )
        if chains < 0:
            raise MalformedKernelData(f"the {table} table of IPv{family} has no such form as iptables writes, at byte {where[0]}")
        self.jump_count = int(count[0])
        counters = bytearray(self.entries * COUNTER)
        lib.np_xt_normalise(native, len(blob), family, ffi.from_buffer(counters), self.entries)
        self.counters = bytes(counters)
        self.blob = bytes(blob)
        self.spans = tuple(self._span(i) for i in range(chains))

    def _span(self, i: int) -> Span:
        chain = self._chains[i]
        name = HOOK_NAMES[chain.hook] if chain.hook >= 0 else ffi.string(chain.name).decode("latin-1")
        data = self.blob[chain.offset : chain.offset + chain.size]
        return Span(name, int(chain.hook), int(chain.offset), data, int(chain.first), int(chain.entries))

    def jumps(self, span: Span | None = None) -> Iterator[tuple[int, int, int, str]]:
        """(offset of the verdict, offset of the entry, its index, chain it goes to or "") of all jumps, or those of one chain."""
        start, end = (0, self.size) if span is None else (span.offset, span.offset + len(span.data))
        for i in range(bisect_left(range(self.jump_count), start, key=lambda i: self._jumps[i].at), self.jump_count):
            jump = self._jumps[i]
            if jump.at >= end:
                return
            yield int(jump.at), int(jump.entry), int(jump.index), self.spans[jump.chain].name if jump.chain >= 0 else ""

    def relocate(self, start: int, end: int, target: int, renumber: Any, out: Any, room: int) -> int:
        """Copies the jumps of [start, end) for bytes that stand at `target` now; how many."""
        done = int(
            lib.np_xt_relocate(self._jumps, self.jump_count, start, end, target, renumber, len(self.spans), out, room),
        )
        if done < 0:
            raise MalformedKernelData(f"a rule of the {self.table} table jumps to a chain that is not there")
        return done


class _Piece(Struct, frozen=True):
    """Bytes of the new table: of the old one from `start`, with its jumps and counters; or ours, with jumps by name."""

    data: bytes
    entries: int
    start: int = -1
    first: int = -1
    jumps: tuple[tuple[int, str], ...] = ()


class Layout:
    """A new table, ready to be written: its bytes, and its struct np_xt_table in `native`."""

    def __init__(self, old: Snapshot, names: list[str], pieces: list[list[_Piece]], blob: bytes, native: Any) -> None:
        self._old, self._names, self._pieces, self.blob, self.native = old, names, pieces, blob, native

    def move_counters(self, counters: bytes) -> bytes:
        """The counters of the old entries, packed, as those of the new ones: 0 where an entry is new."""
        parts = [
            counters[first * COUNTER : (first + count) * COUNTER] if first >= 0 else bytes(count * COUNTER)
            for first, count in _sources(self._old, self._names, self._pieces)
        ]
        return b"".join((*parts, counters[-COUNTER:]))


def splice(old: Snapshot, chains: Mapping[str, EncodedChain], hooked: bool, owns: Callable[[str], bool]) -> Layout:
    """The table with all chains that we own (by name) replaced by the given ones, everything else as it was."""
    kept = {span.name: span for span in old.spans if span.hook >= 0 or not owns(span.name)}
    _keep_referenced(old, kept, chains)
    built_in = sorted((span for span in kept.values() if span.hook >= 0), key=lambda span: span.hook)
    users = sorted({span.name for span in kept.values() if span.hook < 0} | chains.keys(), key=lambda name: name.encode("latin-1"))
    names = [span.name for span in built_in] + users
    pieces = [_forward(old, span, hooked) if span.hook == FORWARD else [_whole(span)] for span in built_in]
    pieces += [[_ours(chains[name]) if name in chains else _whole(kept[name])] for name in users]
    return _link(old, names, [span.hook for span in built_in] + [-1] * len(users), pieces)


def _keep_referenced(old: Snapshot, kept: dict[str, Span], chains: Mapping[str, EncodedChain]) -> None:
    """Adds to `kept` the chains of ours that go, but that a kept rule (or one that is kept for it) jumps to."""
    by_name = {span.name: span for span in old.spans}
    waiting = list(kept.values())
    while waiting:
        span = waiting.pop()
        for _, _, _, destination in old.jumps(span):
            hooks_us = span.hook == FORWARD and destination == ROOT
            if destination and destination not in kept and destination not in chains and not hooks_us:
                kept[destination] = by_name[destination]
                waiting.append(kept[destination])


def _whole(span: Span) -> _Piece:
    return _Piece(span.data, span.entries, span.offset, span.first)


def _forward(old: Snapshot, span: Span, hooked: bool) -> list[_Piece]:
    """FORWARD with the jump to NETPOL first, or without one. A first rule that is that jump already keeps its counters."""
    family = old.family
    hook_rule = entry(family, standard(0))
    pieces: list[_Piece] = []
    ours = [(at, where, index) for at, where, index, destination in old.jumps(span) if destination == ROOT]
    if hooked:
        source = next((index for _, where, index in ours if where == span.offset), -1)
        pieces.append(_Piece(hook_rule, 1, -1, source, ((len(hook_rule) - 8, ROOT),)))
    start, first = span.offset, span.first
    for _, where, index in ours:
        pieces.append(_part(old, start, where, first, index - first))
        start, first = entry_end(old.blob, where, family), index + 1
    pieces.append(_part(old, start, span.offset + len(span.data), first, span.first + span.entries - first))
    return [piece for piece in pieces if piece.entries]


def _part(old: Snapshot, start: int, end: int, first: int, entries: int) -> _Piece:
    return _Piece(old.blob[start:end], entries, start, first)


def _ours(chain: EncodedChain) -> _Piece:
    return _Piece(chain.data, chain.entries, -1, -1, chain.jumps)


def _link(old: Snapshot, names: list[str], hooks: list[int], pieces: list[list[_Piece]]) -> Layout:
    number = {name: i for i, name in enumerate(names)}
    renumber = ffi.new("int32_t[]", [number.get(span.name, -1) for span in old.spans] or [-1])
    chains = ffi.new("struct np_xt_chain[]", max(1, len(names)))
    room = old.jump_count + sum(len(piece.jumps) for parts in pieces for piece in parts) + 1
    jumps = ffi.new("struct np_xt_jump[]", room)
    count = offset = 0
    for i, (hook, parts) in enumerate(zip(hooks, pieces, strict=True)):
        chain = chains[i]
        chain.hook, chain.offset = hook, offset
        for piece in parts:
            if piece.start >= 0:
                end = piece.start + len(piece.data)
                count += old.relocate(piece.start, end, offset, renumber, jumps + count, room - count)
            for at, destination in piece.jumps:
                jump = jumps[count]
                jump.at, jump.chain = offset + at, number[destination] if destination else -1
                count += 1
            offset += len(piece.data)
            chain.entries += piece.entries
        chain.size = offset - chain.offset
    last = entry(old.family, error_target("ERROR"))
    blob = bytearray(b"".join(piece.data for parts in pieces for piece in parts) + last)
    native = ffi.new("struct np_xt_table *")
    if lib.np_xt_link(ffi.from_buffer(blob), len(blob), old.family, chains, len(names), jumps, count, native) < 0:
        raise MalformedKernelData(f"the {old.table} table of IPv{old.family} could not be put together")
    return Layout(old, names, pieces, bytes(blob), native)


def _sources(old: Snapshot, names: list[str], pieces: list[list[_Piece]]) -> Iterator[tuple[int, int]]:
    """Where counters come from: kept bytes from where they stood, ours from the old chain of that name, rule by rule."""
    by_name = {span.name: span for span in old.spans}
    for name, parts in zip(names, pieces, strict=True):
        for piece in parts:
            before = by_name.get(name)
            if piece.first >= 0 or before is None or before.hook >= 0:
                yield piece.first, piece.entries
            else:
                yield from _same_rules(old, before, piece)


def _same_rules(old: Snapshot, span: Span, piece: _Piece) -> Iterator[tuple[int, int]]:
    places = {at - span.offset: destination for at, _, _, destination in old.jumps(span)}
    if places == dict(piece.jumps) and _without_verdicts(span.data, places) == piece.data:
        yield span.first, span.entries
        return
    before = {key: span.first + i for i, key in enumerate(_rule_keys(span.data, places, old.family))}
    for key in _rule_keys(piece.data, dict(piece.jumps), old.family):
        yield before.get(key, -1), 1


def _without_verdicts(data: bytes, places: Mapping[int, str]) -> bytearray:
    cleared = bytearray(data)
    for at in places:
        cleared[at : at + 4] = bytes(4)
    return cleared


def _rule_keys(data: bytes, jumps: Mapping[int, str], family: Family) -> Iterator[tuple[bytes, str | None]]:
    """Each entry's bytes without the place it jumps to, and the name of that instead."""
    offset = 0
    while offset < len(data):
        end = entry_end(data, offset, family)
        destination = jumps.get(end - 8)
        yield (data[offset:end] if destination is None else data[offset : end - 8]), destination
        offset = end
