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
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property, partial
from heapq import merge
from itertools import repeat
from struct import Struct as Packing
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel._native import ffi, lib
from netpol.kernel.blocks import NO_SETS, Arrays, Assembly, Block, EncodedChain, SetNumbers, gathered
from netpol.kernel.encode import encode_chain
from netpol.kernel.entries import ENTRY, Key, rule_keys
from netpol.kernel.matches import HEADER
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import HOOK, ROOT, Chain, Jump, Rule

HOOK_NAMES = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
FORWARD = HOOK_NAMES.index(HOOK)
COUNTER = 16  # bytes: packets and bytes, 64 bits each

_allocate = ffi.new_allocator(should_clear_after_alloc=False)
_COUNTS = Packing("=QQ")
_NAME, _CHAIN = Packing("=32si16x"), Packing("=32xiIIII")  # struct np_xt_chain: the name, and the rest
_REPLACE: int = ffi.sizeof("struct np_xt_replace")
NOBODY: Mapping[int, int | None] = MappingProxyType({})
_VERDICT = 8  # bytes of a standard target behind its header

_END = {family: encode_chain(Chain("ERROR", ()), family).data[: ENTRY[family] + HEADER.size + 32] for family in FAMILIES}
_HOOK_RULE = {
    family: encode_chain(Chain("-", (Rule(Jump(ROOT)),)), family).data[len(_END[family]) :][: ENTRY[family] + HEADER.size + _VERDICT]
    for family in FAMILIES
}


Shape = tuple[int, ...]


def _let_go(owner: object, pointer: Any) -> None:
    """Nothing: that it knows the array is what it is for."""


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


class Table:
    """A table, read or written.

    family, table -- which one; block -- its chains in order, the built-in ones among them; shape -- what the kernel says about it; blob --
    its entries, without counters, as a buffer whose slices are bytes.
    """

    def __init__(self, table: str, block: Block, shape: Shape) -> None:
        self.family, self.table, self.block, self.shape = block.family, table, block, shape
        self.size, (_, self.entries, self.valid_hooks, *_) = block.size, shape
        # A pointer keeps nothing alive but what lets go of it, and a buffer only its pointer.
        self.blob = ffi.buffer(ffi.gc(block.native, partial(_let_go, block)), block.size)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Its chains in order."""
        names, raw = self.block.names, ffi.buffer(self.block.chains, len(self.block.names) * _CHAIN.size)
        return tuple([Span(name, *fields) for name, fields in zip(names, _CHAIN.iter_unpack(raw), strict=True)])

    def span(self, number: int) -> Span:
        """One of them."""
        chain = self.block.chains[number]
        return Span(self.block.names[number], chain.hook, chain.offset, chain.size, chain.entries, chain.first)

    @cached_property
    def by_name(self) -> dict[str, Span]:
        return {span.name: span for span in self.spans}

    def data(self, span: Span) -> bytes:
        """A chain's bytes, from its head to its tail."""
        return bytes(self.blob[span.offset : span.offset + span.size])

    def places_of(self, span: Span) -> dict[int, str]:
        """Offset in the chain of each verdict that is a jump -> the chain it goes to, or "" for a rule without a target."""
        jumps = self.block.jumps_between(span.offset, span.offset + span.size)
        return {at - span.offset: self.block.names[to] if to >= 0 else "" for at, _, to in jumps}

    def places(self) -> list[dict[int, str]]:
        """The same of all chains."""
        found: list[dict[int, str]] = [{} for _ in self.spans]
        starts = [span.offset for span in self.spans]
        for at, _, to in self.block.all_jumps():
            number = bisect_right(starts, at) - 1
            found[number][at - starts[number]] = self.block.names[to] if to >= 0 else ""
        return found

    def jumps_to(self, chains: Collection[int]) -> Iterator[tuple[int, int, int]]:
        """(offset of the entry, chain it stands in, chain it goes to), the chains by number, of all jumps to these chains."""
        starts = [span.offset for span in self.spans]
        for at, entry, to in self.block.all_jumps():
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
        jumps = self.block.jumps_between(span.offset, span.offset + span.size)
        return [entry for _, entry, to in jumps if to == root and self.blob[entry : entry + len(bare)] == bare]

    @property
    def is_hooked(self) -> bool:
        """Whether FORWARD begins with the jump to NETPOL, and has no other."""
        return self.forward is not None and self.hooks() == [self.forward.offset]


class Snapshot(Table):
    """A table as the kernel handed it out.

    counters -- packed (packets, bytes) of every entry. MalformedKernelData when the bytes do not have the form that every writer of tables
    gives them.
    """

    def __init__(self, family: Family, table: str, info: Any, array: Any, start: int = 0) -> None:
        """`info` is a struct np_xt_info, `array` the entries that belong to it, from `start` on, which are changed here and kept."""
        self.family, self.table, self.entries, self.size = family, table, int(info.num_entries), len(array) - start
        native = array + start
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
        self._counters = _allocate("uint8_t[]", self.entries * COUNTER)
        lib.np_xt_normalise(native, self.size, family, self._counters, self.entries)
        names = [_name(*fields) for fields in _NAME.iter_unpack(ffi.buffer(self.chains, found * _NAME.size))]
        arrays = Arrays(ffi.cast("uint8_t *", native), self.size, self.chains, self.jumps, self.jump_count)
        super().__init__(table, Block(family, names, names, NO_SETS, arrays, array), shape_of(info))
        if len(set(names)) != len(names):
            raise self._malformed("two chains of one name")

    @cached_property
    def counters(self) -> bytes:
        return bytes(ffi.buffer(self._counters))

    def _malformed(self, what: str) -> MalformedKernelData:
        return MalformedKernelData(f"the {self.table} table of IPv{self.family} has no such form as iptables writes: {what}")


def _name(raw: bytes, hook: int) -> str:
    return HOOK_NAMES[hook] if hook >= 0 else raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class Layout(Assembly):
    """A new table, as it is being put together from its beginning to its end, and then ready to be written.

    Once `finish` was called: request -- a struct np_xt_replace, not filled in, and the entries behind it, as a pointer to `length` bytes;
    table -- the struct np_xt_table of it; block -- its chains.
    """

    def __init__(self, old: Table, names: list[str], built_in: int) -> None:
        super().__init__(old.family, names, built_in)
        self._old, self.built_in = old, built_in
        self.foreign = 0
        """Bytes of other people's chains."""
        self.is_plain = True
        """Whether it has no chain of ours but those that it is to have."""

    def link(self) -> None:
        """Puts everything into place, and writes the verdicts of all jumps into the bytes. KeyError as for `finish`."""
        old = self._old
        self.put(_END[old.family])
        self.block = block = self.finish(_REPLACE)
        self.request, self.length = block.native - _REPLACE, _REPLACE + block.size
        self.table = ffi.new("struct np_xt_table *")
        chains, jumps = (block.chains, len(block.names)), (block.jumps, block.jump_count)
        if lib.np_xt_link(block.native, block.size, old.family, *chains, *jumps, self.table) < 0:
            raise MalformedKernelData(f"the {old.table} table of IPv{old.family} could not be put together")

    @property
    def blob(self) -> Any:
        """The entries, as a buffer."""
        return ffi.buffer(self.block.native, self.block.size)

    @property
    def shape(self) -> Shape:
        """What the kernel will say about it."""
        return shape_of(self.table, self.block.size)

    @property
    def is_mostly_foreign(self) -> bool:
        return 2 * self.foreign > self.block.size

    def kept(self, names: Collection[str], sets: SetNumbers) -> dict[str, EncodedChain]:
        """Chains of it, in a block that may be kept: of a table that is mostly other people's, theirs are not kept with them."""
        if self.is_mostly_foreign:
            return gathered(self.block, {name: self.number[name] for name in names}, sets)
        block, number = self.block.numbered(sets), self.number
        return {name: EncodedChain(block, number[name]) for name in names}

    @cached_property
    def is_new(self) -> bool:
        """Whether it differs from the old table."""
        return self.block.size != self._old.size or bool(self.blob != self._old.blob)

    def renumber(self) -> Any:
        """The new number of each chain of the old table, or -1, as an array."""
        number = dict(zip(self._names, range(len(self._names)), strict=True))
        return ffi.new("int32_t[]", list(map(number.get, self._old.block.names, repeat(-1))) or 1)

    def carry(self, counters: Any, carried: Any, stands_for: Mapping[int, int | None] = NOBODY) -> None:
        """Adds to `carried`, which has room for the counters of all entries and holds zeros, those that the old entries had.

        stands_for -- numbers of sets that are there for the length of a change only -> the set that each stands for: a rule with the one is
        the rule with the other; None: a match of it is as none.
        """
        old, renumber = self._old, self.renumber()
        before, after = old.block.view(old.entries), self.block.view(self.table.entries)
        done = ffi.new("uint8_t[]", len(self._names) + 1)
        if lib.np_xt_carry(before, after, renumber, counters, carried, done) < 0:
            raise MalformedKernelData(f"the counters of the {old.table} table of IPv{old.family} do not fit it")
        for before_number, number in enumerate(ffi.unpack(renumber, len(old.block.names))):
            if number >= 0 and not done[number]:
                for index, source in self._same_rules(old.span(before_number), number, stands_for):
                    _add(carried + index * COUNTER, counters + source * COUNTER)

    def _same_rules(self, span: Span, number: int, stands_for: Mapping[int, int | None]) -> Iterator[tuple[int, int]]:
        """(index in the new table, index in the old one) of the rules that a changed chain kept. Of equal rules, the first is the first;
        where a change had made two of one, both become that one again."""
        family = self._old.family
        before: defaultdict[Key, deque[int]] = defaultdict(deque)
        last: dict[Key, int] = {}
        for i, key in enumerate(rule_keys(self._old.data(span), self._old.places_of(span), family, stands_for)):
            before[key].append(span.first + i)
        chain, block = self._chains[number], self.block
        start, end, first = chain.offset, chain.offset + chain.size, chain.first
        places = {at - start: self._names[to] if to >= 0 else "" for at, _, to in block.jumps_between(start, end)}
        data = bytes(ffi.buffer(block.native + start, chain.size))
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


def splice(old: Table, chains: Mapping[str, EncodedChain], hooked: bool, owns: Callable[[str], bool]) -> Layout:
    """The table with all chains that we own (by name) replaced by the given ones, everything else as it was.

    KernelError when a chain of ours jumps to one that is not there, or when FORWARD is to be hooked and there is none, or no NETPOL.
    """
    user = {span.name: i for i, span in enumerate(old.spans) if span.hook < 0}
    foreign = [name for name in user if not owns(name)]
    by_name = sorted([*chains, *_saved(old, chains, set(user.values()).difference([user[name] for name in foreign]))])
    built_in = sorted((span for span in old.spans if span.hook >= 0), key=lambda span: span.hook)
    ordered = [*merge(foreign, by_name)] if foreign else by_name
    names = [*[span.name for span in built_in], *ordered]
    _check(old, chains, names, hooked)
    layout = Layout(old, names, len(built_in))
    layout.foreign = sum([old.by_name[name].size for name in foreign])
    layout.is_plain = len(ordered) == len(chains) + len(foreign)
    hooks = old.hooks()
    for span in built_in:
        if span.hook == FORWARD and hooks != [span.offset] * hooked:
            _put_forward(layout, old, span, hooked)
        else:
            layout.add(EncodedChain(old.block, old.spans.index(span)))
    pieces = chains
    if len(ordered) != len(chains):
        pieces = {**{name: EncodedChain(old.block, number) for name, number in user.items()}, **chains}
    layout.add(*[pieces[name] for name in ordered])
    try:
        layout.link()
    except KeyError:
        raise _leads_nowhere(old, chains, names) from None
    return layout


def _saved(old: Table, chains: Mapping[str, EncodedChain], ours: set[int]) -> set[str]:
    """The chains of ours that go, but that a rule of somebody else (or one in a chain that is kept for it) jumps to."""
    gone = {i for i in ours if old.spans[i].name not in chains}
    if not gone:
        return set()
    saved: set[str] = set()
    staying = set(range(len(old.spans))) - ours
    # The hook goes with the chain.
    hooks = set(old.hooks())
    jumps = [(source, to) for entry, source, to in old.jumps_to(gone) if entry not in hooks]
    while needed := {to for source, to in jumps if source in staying} - staying:
        staying |= needed
        saved |= {old.spans[to].name for to in needed}
    return saved


def _check(old: Table, chains: Mapping[str, EncodedChain], names: Collection[str], hooked: bool) -> None:
    op = _operation(old)
    known = set(names)
    if len(known) != len(names):
        taken = ", ".join(sorted(name for name in chains if list(names).count(name) > 1))
        raise KernelError(errno.EEXIST, op, old.table, f"the chain {taken} is there already, and is not ours")
    if hooked and (ROOT not in chains or old.forward is None):
        missing = HOOK if old.forward is None else ROOT
        raise KernelError(errno.ENOENT, op, old.table, f"there is no chain {missing}, and {HOOK} is to jump to {ROOT}")


def _leads_nowhere(old: Table, chains: Mapping[str, EncodedChain], names: Collection[str]) -> Exception:
    """The exception for a table with a jump to a chain that is not there."""
    known = set(names).difference(HOOK_NAMES)
    for chain in chains.values():
        for _, to in chain.jumps:
            if to and to not in known:
                words = f"the chain {chain.name} jumps to {to}, which is not there"
                return KernelError(errno.ENOENT, _operation(old), old.table, words)
    return MalformedKernelData(f"a rule of the {old.table} table jumps to a chain that is not there")


def _operation(old: Table) -> str:
    return f"{'iptables' if old.family == 4 else 'ip6tables'} replace"


def _put_forward(layout: Layout, old: Table, span: Span, hooked: bool) -> None:
    """FORWARD with the jump to NETPOL first, or without one."""
    rule, hooks = _HOOK_RULE[old.family], old.hooks()
    count = hooked - len(hooks)
    layout.begin(span.hook, span.size + count * len(rule), span.entries + count)
    if hooked:
        layout.put(rule, ((len(rule) - _VERDICT, ROOT),))
    start = span.offset
    for where in hooks:
        layout.keep(old.block, start, where)
        start = where + len(rule)
    layout.keep(old.block, start, span.offset + span.size)
