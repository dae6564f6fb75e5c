"""A table of x_tables as it was read, and how our chains are put into it beside everybody else's.

`Snapshot` knows where the chains stand and where each jump goes, and nothing of what the rules mean: foreign rules stay bytes.
`splice` lays out a new table: built-in chains by hook, then user chains. Foreign chains go in as they were and in the order they had
(only the offsets in their jumps move), ours among them by name, as iptables sorts them. `-j NETPOL` is FORWARD's first rule and
stands nowhere else in it. A chain of ours that a foreign rule still jumps to stays until that rule is gone: somebody else's stray rule
must not stop us, nor point into nothing.

Counters are moved too: those of foreign rules always, ours as long as a rule of the same bytes stays in a chain of the same name. A rule
that a change puts for a moment over small sets beside a live one is the same rule all the time (`netpol.rules.diff`).

The lock of all tables is held while this runs, so the work is a share of each chain, and of each rule only in C: neighbours that stay
are copied together, and single rules are compared only in chains that changed.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from heapq import merge
from struct import Struct as Packing
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel._native import ffi, lib
from netpol.kernel.encode import EncodedChain, encode_chain
from netpol.kernel.entries import ENTRY, Key, rule_keys
from netpol.kernel.matches import HEADER
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import HOOK, ROOT, Chain, Jump, Rule

HOOK_NAMES = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
FORWARD = HOOK_NAMES.index(HOOK)
COUNTER = 16  # bytes: packets and bytes, 64 bits each

_allocate = ffi.new_allocator(should_clear_after_alloc=False)
_COUNTS = Packing("=QQ")
_CHAIN = Packing("=32siIIII")
_JUMP = Packing("=IIi")
_REPLACE: int = ffi.sizeof("struct np_xt_replace")
NOBODY: Mapping[int, int | None] = MappingProxyType({})
_VERDICT = 8  # bytes of a standard target behind its header

_END = {family: encode_chain(Chain("ERROR", ()), family).data[: ENTRY[family] + HEADER.size + 32] for family in FAMILIES}
_HOOK_RULE = {
    family: encode_chain(Chain("-", (Rule(Jump(ROOT)),)), family).data[len(_END[family]) :][: ENTRY[family] + HEADER.size + _VERDICT]
    for family in FAMILIES
}


Shape = tuple[int, ...]


def shape_of(native: Any, size: int | None = None) -> Shape:
    """What the kernel says about a table at once: size, number of entries, and where its built-in chains begin and end.

    native -- a struct np_xt_info; or an np_xt_table, with the size.
    """
    hooks = [hook for hook in range(len(HOOK_NAMES)) if native.valid_hooks >> hook & 1]
    ends = [(native.hook_entry[hook], native.underflow[hook]) for hook in hooks]
    numbers = (native.size, native.num_entries) if size is None else (size, native.entries)
    return (*numbers, native.valid_hooks, *(number for pair in ends for number in pair))


class Span(Struct, frozen=True):
    """A chain in a table: where it stands, from head to tail, and the index of its first entry. `hook` is -1 for a user chain."""

    name: str
    hook: int
    offset: int
    size: int
    entries: int
    first: int


class Snapshot:
    """A table as the kernel handed it out.

    blob -- its entries, cleared of counters, as a buffer whose slices are bytes; spans -- its chains in order; counters -- packed (packets,
    bytes) of every entry. MalformedKernelData when the bytes do not have the form that every writer of tables gives them.
    """

    def __init__(self, family: Family, table: str, info: Any, native: Any) -> None:
        """`info` is a struct np_xt_info, `native` the entries that belong to it, as an array, which is changed here and kept."""
        self.family, self.table, self.shape = family, table, shape_of(info)
        self.valid_hooks, self.entries, self.size = int(info.valid_hooks), int(info.num_entries), len(native)
        if self.entries * (ENTRY[family] + HEADER.size) > self.size:
            raise self._malformed("more entries than bytes")
        layout = ffi.new("struct np_xt_table *", {"valid_hooks": info.valid_hooks, "entries": info.num_entries})
        layout.hook_entry, layout.underflow = info.hook_entry, info.underflow
        room = self.entries + 1
        self.chains, self.jumps = _allocate("struct np_xt_chain[]", room), _allocate("struct np_xt_jump[]", room)
        count, where = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        found = lib.np_xt_split(native, self.size, family, layout, self.chains, room, self.jumps, room, count, where)
        if found < 0:
            raise self._malformed(f"an entry of another form, at byte {where[0]}")
        self.jump_count = int(count[0])
        counters = bytearray(self.entries * COUNTER)
        lib.np_xt_normalise(native, self.size, family, ffi.from_buffer(counters), self.entries)
        self.counters = bytes(counters)
        self.native, self.blob = native, ffi.buffer(native)
        raw = ffi.buffer(self.chains, found * _CHAIN.size)
        self.spans = tuple([_span(*fields) for fields in _CHAIN.iter_unpack(raw)])
        self.by_name = {span.name: span for span in self.spans}
        if len(self.by_name) != len(self.spans):
            raise self._malformed("two chains of one name")

    def _malformed(self, what: str) -> MalformedKernelData:
        return MalformedKernelData(f"the {self.table} table of IPv{self.family} has no such form as iptables writes: {what}")

    def data(self, span: Span) -> bytes:
        """A chain's bytes, from its head to its tail."""
        return bytes(self.blob[span.offset : span.offset + span.size])

    def places_of(self, span: Span) -> dict[int, str]:
        """Offset in the chain of each verdict that is a jump -> the chain it goes to, or "" for a rule without a target."""
        jumps = _jumps_between(self.jumps, self.jump_count, span.offset, span.offset + span.size)
        return {at - span.offset: self.spans[to].name if to >= 0 else "" for at, _, to in jumps}

    def places(self) -> list[dict[int, str]]:
        """The same of all chains."""
        found: list[dict[int, str]] = [{} for _ in self.spans]
        starts = [span.offset for span in self.spans]
        for at, _, to in _JUMP.iter_unpack(ffi.buffer(self.jumps, self.jump_count * _JUMP.size)):
            number = bisect_right(starts, at) - 1
            found[number][at - starts[number]] = self.spans[to].name if to >= 0 else ""
        return found

    def jumps_to(self, chains: Collection[int]) -> Iterator[tuple[int, int, int]]:
        """(offset of the entry, chain it stands in, chain it goes to), the chains by number, of all jumps to these chains."""
        starts = [span.offset for span in self.spans]
        for at, entry, to in _JUMP.iter_unpack(ffi.buffer(self.jumps, self.jump_count * _JUMP.size)):
            if to in chains:
                yield entry, bisect_right(starts, at) - 1, to

    @property
    def forward(self) -> Span | None:
        """The built-in chain, where the table has it."""
        return next((span for span in self.spans if span.hook == FORWARD), None)

    def hooks(self) -> list[int]:
        """The offsets of the rules in FORWARD that are the jump to NETPOL as netpol puts it there: no condition, nothing else."""
        span, bare = self.forward, _HOOK_RULE[self.family][:-_VERDICT]
        if span is None or ROOT not in self.by_name:
            return []
        root = self.spans.index(self.by_name[ROOT])
        jumps = _jumps_between(self.jumps, self.jump_count, span.offset, span.offset + span.size)
        return [entry for _, entry, to in jumps if to == root and self.blob[entry : entry + len(bare)] == bare]

    @property
    def is_hooked(self) -> bool:
        """Whether FORWARD begins with the jump to NETPOL, and has no other."""
        return self.forward is not None and self.hooks() == [self.forward.offset]


def _jumps_between(jumps: Any, count: int, start: int, end: int) -> list[tuple[int, int, int]]:
    """(offset of the verdict, offset of the entry, number of the chain it goes to or -1) of the jumps that stand in a part of a table."""
    first = bisect_left(range(count), start, key=lambda i: jumps[i].at)
    last = bisect_left(range(count), end, lo=first, key=lambda i: jumps[i].at)
    return list(_JUMP.iter_unpack(ffi.buffer(jumps + first, (last - first) * _JUMP.size)))


def _span(raw: bytes, hook: int, offset: int, size: int, entries: int, first: int) -> Span:
    name = HOOK_NAMES[hook] if hook >= 0 else raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return Span(name, hook, offset, size, entries, first)


class Layout:
    """A new table, as it is being put together from its beginning to its end, and then ready to be written.

    request -- a struct np_xt_replace, and the entries behind it, once `finish` was called; table -- the struct np_xt_table of it.
    """

    def __init__(self, old: Snapshot, names: list[str], jumps: int) -> None:
        self._old, self._names, self._number = old, names, {name: i for i, name in enumerate(names)}
        self._renumber = ffi.new("int32_t[]", [self._number.get(span.name, -1) for span in old.spans] or 1)
        self._room = old.jump_count + jumps
        self._jumps, self._jump_count = _allocate("struct np_xt_jump[]", self._room), 0
        self._parts: list[bytes] = [bytes(_REPLACE)]
        self._chains: list[bytes] = []
        self._size = self._first = 0
        self._start = self._end = 0  # of what is to be copied from the old table next

    def begin(self, hook: int, size: int, entries: int) -> None:
        """A chain of which the bytes come next."""
        offset = self._size + self._end - self._start
        self._chains.append(_CHAIN.pack(b"", hook, offset, size, entries, self._first))
        self._first += entries

    def keep(self, start: int, end: int) -> None:
        """Bytes of the old table, from `start` to `end`, with its jumps."""
        if start != self._end:
            self._copy()
            self._start = start
        self._end = end

    def _copy(self) -> None:
        start, end, self._start, self._end = self._start, self._end, 0, 0
        if start == end:
            return
        old, rest = self._old, (self._jumps + self._jump_count, self._room - self._jump_count)
        moved = lib.np_xt_relocate(old.jumps, old.jump_count, start, end, self._size, self._renumber, len(old.spans), *rest)
        if moved < 0:
            raise MalformedKernelData(f"a rule of the {old.table} table jumps to a chain that is not there")
        self._jump_count += moved
        self._append(old.blob[start:end])

    def add(self, chain: EncodedChain) -> None:
        """A whole chain of ours: `begin` and `put`."""
        self._copy()
        self._chains.append(_CHAIN.pack(b"", -1, self._size, len(chain.data), chain.entries, self._first))
        self._first += chain.entries
        if chain.jumps:
            self.put(chain.data, chain.jumps)
        else:
            self._append(chain.data)

    def put(self, data: bytes, jumps: tuple[tuple[int, str], ...]) -> None:
        """Bytes of ours."""
        self._copy()
        if jumps:
            start, number = self._size, self._number
            raw = b"".join([_JUMP.pack(start + at, 0, number[to] if to else -1) for at, to in jumps])
            ffi.memmove(self._jumps + self._jump_count, raw, len(raw))
            self._jump_count += len(jumps)
        self._append(data)

    def _append(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)

    def finish(self) -> None:
        """Writes the verdicts of all jumps into the bytes."""
        self._copy()
        self._append(_END[self._old.family])
        self.request = bytearray().join(self._parts)
        self._packed = b"".join(self._chains)
        chains = ffi.from_buffer("struct np_xt_chain[]", self._packed)
        entries = ffi.from_buffer(self.request) + _REPLACE
        self.table = ffi.new("struct np_xt_table *")
        family = self._old.family
        if lib.np_xt_link(entries, self._size, family, chains, len(chains), self._jumps, self._jump_count, self.table) < 0:
            raise MalformedKernelData(f"the {self._old.table} table of IPv{family} could not be put together")

    @property
    def shape(self) -> Shape:
        """What the kernel will say about it."""
        return shape_of(self.table, self._size)

    @property
    def is_new(self) -> bool:
        """Whether it differs from the old table."""
        return self._size != self._old.size or not self.request.endswith(self._old.blob)

    def carry(self, counters: Any, carried: Any, stands_for: Mapping[int, int | None] = NOBODY) -> None:
        """Adds to `carried`, which has room for the counters of all entries and holds zeros, those that the old entries had.

        stands_for -- numbers of sets that are there for the length of a change only -> the set that each stands for: a rule with the one is
        the rule with the other; None: a match of it is as none.
        """
        old, chains = self._old, ffi.from_buffer("struct np_xt_chain[]", self._packed)
        entries = ffi.from_buffer(self.request) + _REPLACE
        was = {"blob": old.native, "size": old.size, "chains": old.chains, "chain_count": len(old.spans), "entries": old.entries}
        now = {"blob": entries, "size": self._size, "chains": chains, "chain_count": len(chains), "entries": self.table.entries}
        before = ffi.new("struct np_xt_view *", {**was, "jumps": old.jumps, "jump_count": old.jump_count})
        after = ffi.new("struct np_xt_view *", {**now, "jumps": self._jumps, "jump_count": self._jump_count})
        same = ffi.new("uint8_t[]", len(chains) + 1)
        if lib.np_xt_carry(before, after, self._renumber, counters, carried, same) < 0:
            raise MalformedKernelData(f"the counters of the {old.table} table of IPv{old.family} do not fit it")
        for number, span in zip(self._renumber, old.spans, strict=False):
            if number >= 0 and not same[number]:
                for index, source in self._same_rules(span, number, stands_for):
                    _add(carried + index * COUNTER, counters + source * COUNTER)

    def _same_rules(self, span: Span, number: int, stands_for: Mapping[int, int | None]) -> Iterator[tuple[int, int]]:
        """(index in the new table, index in the old one) of the rules that a changed chain kept. Of equal rules, the first is the first;
        where a change had made two of one, both become that one again."""
        family = self._old.family
        before: defaultdict[Key, deque[int]] = defaultdict(deque)
        last: dict[Key, int] = {}
        for i, key in enumerate(rule_keys(self._old.data(span), self._old.places_of(span), family, stands_for)):
            before[key].append(span.first + i)
        _, _, offset, size, _, first = _CHAIN.unpack_from(self._packed, number * _CHAIN.size)
        jumps = _jumps_between(self._jumps, self._jump_count, offset, offset + size)
        places = {at - offset: self._names[to] if to >= 0 else "" for at, _, to in jumps}
        data = bytes(self.request[_REPLACE + offset : _REPLACE + offset + size])
        for i, key in enumerate(rule_keys(data, places, family, stands_for)):
            if before[key]:
                last[key] = first + i
                yield first + i, before[key].popleft()
        if stands_for:
            yield from ((index, source) for key, index in last.items() for source in before[key])


def _add(target: Any, source: Any) -> None:
    """Adds one entry's counters to another's."""
    (packets, size), (more, larger) = _COUNTS.unpack(ffi.buffer(target, COUNTER)), _COUNTS.unpack(ffi.buffer(source, COUNTER))
    _COUNTS.pack_into(ffi.buffer(target, COUNTER), 0, packets + more, size + larger)


def _name(source: Span | EncodedChain) -> str:
    return source.name


def splice(old: Snapshot, chains: Mapping[str, EncodedChain], hooked: bool, owns: Callable[[str], bool]) -> Layout:
    """The table with all chains that we own (by name) replaced by the given ones, everything else as it was.

    KernelError when a chain of ours jumps to one that is not there, or when FORWARD is to be hooked and there is none, or no NETPOL.
    """
    owned = {i for i, span in enumerate(old.spans) if span.hook < 0 and owns(span.name)}
    foreign = [span for i, span in enumerate(old.spans) if span.hook < 0 and i not in owned]
    ours = _saved(old, chains, owned) | dict(chains)
    built_in = sorted((span for span in old.spans if span.hook >= 0), key=lambda span: span.hook)
    by_name = sorted(ours.values(), key=_name)
    sources: list[Span | EncodedChain] = [*built_in, *(merge(foreign, by_name, key=_name) if foreign else by_name)]
    names = [source.name for source in sources]
    _check(old, chains, names, hooked)
    layout = Layout(old, names, sum([len(chain.jumps) for chain in chains.values()]) + 1)
    for source in sources:
        if isinstance(source, EncodedChain):
            layout.add(source)
        elif source.hook == FORWARD:
            _put_forward(layout, old, source, hooked)
        else:
            layout.begin(source.hook, source.size, source.entries)
            layout.keep(source.offset, source.offset + source.size)
    layout.finish()
    return layout


def _saved(old: Snapshot, chains: Mapping[str, EncodedChain], ours: set[int]) -> dict[str, Span | EncodedChain]:
    """The chains of ours that go, but that a rule of somebody else (or one in a chain that is kept for it) jumps to."""
    gone = {i for i in ours if old.spans[i].name not in chains}
    if not gone:
        return {}
    saved: dict[str, Span | EncodedChain] = {}
    staying = set(range(len(old.spans))) - ours
    # The hook goes with the chain.
    hooks = set(old.hooks())
    jumps = [(source, to) for entry, source, to in old.jumps_to(gone) if entry not in hooks]
    while needed := {to for source, to in jumps if source in staying} - staying:
        staying |= needed
        saved |= {old.spans[to].name: old.spans[to] for to in needed}
    return saved


def _check(old: Snapshot, chains: Mapping[str, EncodedChain], names: Collection[str], hooked: bool) -> None:
    op = f"{'iptables' if old.family == 4 else 'ip6tables'} replace"
    known = set(names)
    if len(known) != len(names):
        taken = ", ".join(sorted(name for name in chains if list(names).count(name) > 1))
        raise KernelError(errno.EEXIST, op, old.table, f"the chain {taken} is there already, and is not ours")
    for chain in chains.values():
        for _, to in chain.jumps:
            if to and (to not in known or to in HOOK_NAMES):
                raise KernelError(errno.ENOENT, op, old.table, f"the chain {chain.name} jumps to {to}, which is not there")
    if hooked and (ROOT not in chains or old.forward is None):
        missing = HOOK if old.forward is None else ROOT
        raise KernelError(errno.ENOENT, op, old.table, f"there is no chain {missing}, and {HOOK} is to jump to {ROOT}")


def _put_forward(layout: Layout, old: Snapshot, span: Span, hooked: bool) -> None:
    """FORWARD with the jump to NETPOL first, or without one."""
    rule, hooks = _HOOK_RULE[old.family], old.hooks()
    count = hooked - len(hooks)
    layout.begin(span.hook, span.size + count * len(rule), span.entries + count)
    if hooked:
        layout.put(rule, ((len(rule) - _VERDICT, ROOT),))
    start = span.offset
    for where in hooks:
        layout.keep(start, where)
        start = where + len(rule)
    layout.keep(start, span.offset + span.size)
