"""Chains as bytes, many of them end to end in one block: as they were encoded, as they were read, or as they were written.

What is done for each chain is done in C for neighbours together; bytes of a single chain are cut out when somebody asks for them.
Of the bytes only the verdicts of jumps ever change: they say where in a table the chains stand that they go to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import repeat
from struct import Struct as Layout
from typing import Any, NamedTuple

from msgspec import Struct

from netpol.kernel._native import ffi, lib
from netpol.model import Family

_SET = Layout("=32sH")
_JUMP = Layout("=IIi")
_NUMBERS = 1 << 16  # of sets
_RAW = ("utf-8", "surrogateescape")
_allocate = ffi.new_allocator(should_clear_after_alloc=False)

Jumps = tuple[tuple[int, str], ...]


class Arrays(NamedTuple):
    """The bytes of chains, and where in them what stands; see `Block`."""

    native: Any
    size: int
    chains: Any
    jumps: Any
    jump_count: int


def _raw(pair: tuple[str, int]) -> bytes:
    return pair[0].encode(*_RAW)


class SetNumbers:
    """The kernel's numbers of the sets, by name, in the form in which C looks them up. It does not change.

    names -- the same the other way round.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = dict(numbers)
        self.names = {number: name for name, number in numbers.items()}
        self.pairs = tuple(sorted(numbers.items(), key=_raw))
        self._packed = b"".join([_SET.pack(_raw(pair), pair[1]) for pair in self.pairs])
        self.native = ffi.from_buffer("struct np_xt_set[]", self._packed)

    def changed(self, gone: Iterable[str], new: Mapping[str, int]) -> SetNumbers:
        """The same without some of them, and then with others that are not among the rest. Costs what changes, and a copy.

        Of the rest, a set of which another one has the number now is gone too: somebody else destroyed it.
        """
        found = SetNumbers.__new__(SetNumbers)
        numbers, names, pairs, packed = self._numbers.copy(), self.names.copy(), list(self.pairs), bytearray(self._packed)
        for name in {*gone, *[names[number] for number in new.values() if number in names]}:
            number = numbers.pop(name, None)
            if number is not None:
                place = bisect_left(pairs, _raw((name, 0)), key=_raw)
                del names[number], pairs[place], packed[place * _SET.size : (place + 1) * _SET.size]
        for pair in new.items():
            place = bisect_left(pairs, _raw(pair), key=_raw)
            pairs.insert(place, pair)
            packed[place * _SET.size : place * _SET.size] = _SET.pack(_raw(pair), pair[1])
        numbers.update(new)
        found._numbers, found.names, found.pairs, found._packed = numbers, names, tuple(pairs), bytes(packed)
        found.names.update((number, name) for name, number in new.items())
        found.native = ffi.from_buffer("struct np_xt_set[]", found._packed)
        return found

    def get(self, name: str) -> int | None:
        return self._numbers.get(name)

    def changes(self, sets: SetNumbers) -> AbstractSet[tuple[str, int]]:
        """The sets, with their numbers, that have other numbers in `sets`, or are not there."""
        return self._numbers.items() - sets._numbers.items()


NO_SETS = SetNumbers({})


class Block:
    """Chains end to end.

    names -- of the chains, in order; targets -- names of the chains that its jumps go to, which say by place in here where they go; sets --
    the numbers that stand in the bytes; native -- the bytes, as a pointer to `size` of them; chains, jumps -- arrays of struct np_xt_chain
    and np_xt_jump, the latter in the order of their places; margin -- so many bytes before and behind are free for others.
    """

    __slots__ = ("_kept", "_outdated", "chains", "family", "jump_count", "jumps", "margin", "names", "native", "sets", "size", "targets")

    def __init__(
        self, family: Family, names: Sequence[str], targets: Sequence[str], sets: SetNumbers, arrays: Arrays, kept: object, margin: int = 0
    ) -> None:
        """`kept` is what must live as long as the arrays do."""
        self.family, self.names, self.targets, self.sets = family, names, targets, sets
        self.native, self.size, self.chains, self.jumps, self.jump_count = arrays
        self.margin, self._kept = margin, kept
        self._outdated: tuple[SetNumbers, Collection[int]] = sets, ()

    def numbered(self, sets: SetNumbers) -> Block:
        """The block itself: its bytes have the numbers of these sets in them."""
        self.sets, self._outdated = sets, (sets, ())
        return self

    def outdated(self, sets: SetNumbers) -> Collection[int]:
        """The chains, by number, that match a set which has another number by now, or is no more."""
        known, found = self._outdated
        if known is not sets:
            found = self._matching([number for _, number in self.sets.changes(sets)])
            self._outdated = sets, found
        return found

    def _matching(self, numbers: Collection[int]) -> Collection[int]:
        if not numbers:
            return ()
        wanted, count = bytearray(_NUMBERS // 8), len(self.names)
        for number in numbers:
            wanted[number // 8] |= 1 << number % 8
        users = ffi.new("uint8_t[]", count)
        if lib.np_xt_users(self.native, self.size, self.family, self.chains, count, ffi.from_buffer(wanted), users) < 0:
            # An extension that is kept as bytes may have any form.
            return range(count)
        return frozenset(i for i, is_user in enumerate(users) if is_user)

    def view(self, entries: int) -> Any:
        """A struct np_xt_view of it, for as long as the block lives."""
        arrays = {"blob": self.native, "size": self.size, "chains": self.chains, "chain_count": len(self.names)}
        return ffi.new("struct np_xt_view *", {**arrays, "jumps": self.jumps, "jump_count": self.jump_count, "entries": entries})

    def all_jumps(self) -> Iterator[tuple[int, int, int]]:
        """The same of all jumps as `jumps_between` has of some."""
        return _JUMP.iter_unpack(ffi.buffer(self.jumps, self.jump_count * _JUMP.size))

    def jumps_between(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(offset of the verdict, offset of the entry, place among the targets or -1) of the jumps in a part of the bytes."""
        jumps, count = self.jumps, self.jump_count
        first = bisect_left(range(count), start, key=lambda i: jumps[i].at)
        last = bisect_left(range(count), end, lo=first, key=lambda i: jumps[i].at)
        return list(_JUMP.iter_unpack(ffi.buffer(jumps + first, (last - first) * _JUMP.size)))


class EncodedChain(Struct, frozen=True, gc=False, eq=False):
    """A user chain as bytes: the one of that number in a block. Equal chains have the same name, the same bytes and the same jumps."""

    block: Block
    number: int

    @property
    def name(self) -> str:
        return self.block.names[self.number]

    @property
    def data(self) -> bytes:
        """From its ERROR head to its RETURN tail; the verdict of each jump is 0."""
        block, chain = self.block, self.block.chains[self.number]
        data = bytes(ffi.buffer(block.native + chain.offset, chain.size))
        return without_verdicts(data, [at for at, _ in self.jumps])

    @property
    def entries(self) -> int:
        """How many there are, head and tail included."""
        return int(self.block.chains[self.number].entries)

    @property
    def jumps(self) -> Jumps:
        """(offset in data of the verdict, chain it goes to, or "" for a rule without a target), in order."""
        block, chain = self.block, self.block.chains[self.number]
        start, targets = int(chain.offset), block.targets
        jumps = block.jumps_between(start, start + chain.size)
        return tuple((at - start, targets[to] if to >= 0 else "") for at, _, to in jumps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodedChain) and (self.name, self.data, self.jumps) == (other.name, other.data, other.jumps)

    def __hash__(self) -> int:
        return hash((self.name, self.data))

    def is_of(self, sets: SetNumbers) -> bool:
        """Whether its sets still have the numbers that stand in its bytes."""
        return self.number not in self.block.outdated(sets)


def without_verdicts(data: bytes, places: Iterable[int]) -> bytes:
    """The bytes with 0 for each jump, as an encoded chain has them."""
    cleared = bytearray(data)
    for at in places:
        cleared[at : at + 4] = bytes(4)
    return bytes(cleared)


class Assembly:
    """Chains out of other blocks, as they are being put end to end, and then a new block of them.

    names -- of all chains that come, in order: built-in ones, `built_in` of them, stand first, and no jump goes there; beyond -- names of
    others that jumps may go to. number -- where each chain stands that a jump may go to.
    """

    def __init__(self, family: Family, names: Sequence[str], built_in: int = 0, beyond: Iterable[str] = ()) -> None:
        self._family, self._names, self._targets = family, names, [*names, *beyond]
        self.number = dict(zip(self._targets[built_in:], range(built_in, len(self._targets)), strict=True))
        self._parts: list[tuple[Block, int, int] | tuple[bytes, Jumps]] = []
        self._chains, self._chain_count = _allocate("struct np_xt_chain[]", len(names)), 0
        self._size = self._first = 0
        self._run: tuple[Block, int, int] | None = None  # chains that come next, from the one number to the other

    def begin(self, hook: int, size: int, entries: int) -> None:
        """A chain of which the bytes come next."""
        self._end_run()
        chain = self._chains[self._chain_count]
        chain.name, chain.hook, chain.offset, chain.size = b"", hook, self._size, size
        chain.entries, chain.first = entries, self._first
        self._first += entries
        self._chain_count += 1

    def keep(self, block: Block, start: int, end: int) -> None:
        """Bytes of a block, from `start` to `end`, with the jumps in them."""
        self._end_run()
        if start == end:
            return
        last = self._parts[-1] if self._parts else None
        if last and len(last) == 3 and last[0] is block and last[2] == start:
            self._parts[-1] = block, last[1], end
        else:
            self._parts.append((block, start, end))
        self._size += end - start

    def put(self, data: bytes, jumps: Jumps = ()) -> None:
        """Bytes, with jumps as `EncodedChain` has them."""
        self._end_run()
        self._parts.append((data, jumps))
        self._size += len(data)

    def add(self, *chains: EncodedChain) -> None:
        """Whole chains."""
        block, first, end = self._run or (None, 0, 0)
        for chain in chains:
            if chain.block is block and chain.number == end:
                end += 1
                continue
            if block is not None:
                self._run = block, first, end
                self._end_run()
            block, first, end = chain.block, chain.number, chain.number + 1
        if block is not None:
            self._run = block, first, end

    def add_run(self, block: Block, first: int, end: int) -> None:
        """Whole chains that stand one behind the other in a block, by number."""
        self._end_run()
        self._run = block, first, end

    def _end_run(self) -> None:
        if not self._run:
            return
        (block, first, end), self._run = self._run, None
        start, last = block.chains[first], block.chains[end - 1]
        lib.np_xt_place(block.chains + first, end - first, self._size, self._first, self._chains + self._chain_count)
        self._chain_count += end - first
        self._first += last.first + last.entries - start.first
        self.keep(block, start.offset, last.offset + last.size)

    def finish(self, head: int = 0) -> Block:
        """Puts everything into place. Before the bytes are `head` that the caller fills. KeyError when there is no chain of that name that
        a jump goes to."""
        self._end_run()
        native, kept = self._place(head)
        blocks = {id(part[0]): part[0] for part in self._parts if len(part) == 3}
        room = sum(block.jump_count for block in blocks.values()) + sum(len(part[1]) for part in self._parts if len(part) == 2)
        jumps, count = _allocate("struct np_xt_jump[]", room), 0
        renumber = {key: ffi.new("int32_t[]", self._renumbered(block)) for key, block in blocks.items()}
        where = 0
        for part in self._parts:
            if len(part) == 3:
                block, start, end = part
                rest = jumps + count, room - count
                moved = lib.np_xt_relocate(block.jumps, block.jump_count, start, end, where, renumber[id(block)], len(block.targets), *rest)
                if moved < 0:
                    raise KeyError
                if native + where != block.native + start:
                    ffi.memmove(native + where, block.native + start, end - start)
                count += moved
                where += end - start
            else:
                data, own_jumps = part
                for at, to in own_jumps:
                    jumps[count] = (where + at, where, self.number[to] if to else -1)
                    count += 1
                ffi.memmove(native + where, data, len(data))
                where += len(data)
        arrays = Arrays(native, self._size, self._chains, jumps, count)
        return Block(self._family, self._names, self._targets, NO_SETS, arrays, kept)

    def _place(self, head: int) -> tuple[Any, object]:
        """Where the bytes come: around a part that has room before and behind it, which stays where it is then; or anew."""
        where = 0
        for part in self._parts:
            if len(part) == 3:
                block, start, end = part
                around = head + where, self._size - where - end
                if (start, end) == (0, block.size) and max(around) <= block.margin:
                    block.margin = 0
                    return block.native - where, block
            where += len(part[0]) if len(part) == 2 else part[2] - part[1]
        own = _allocate("uint8_t[]", head + self._size)
        return own + head, own

    def _renumbered(self, block: Block) -> list[int]:
        return list(map(self.number.get, block.targets, repeat(-1)))


def gathered(block: Block, numbers: Mapping[str, int], sets: SetNumbers) -> dict[str, EncodedChain]:
    """Some chains of a block, by name, in one of their own that holds nothing else; sets -- the numbers that stand in their bytes."""
    names = sorted(numbers, key=lambda name: numbers[name])
    assembly = Assembly(block.family, names, beyond=[name for name in block.targets if name not in numbers])
    assembly.add(*[EncodedChain(block, numbers[name]) for name in names])
    found = assembly.finish().numbered(sets)
    return {name: EncodedChain(found, number) for number, name in enumerate(names)}
