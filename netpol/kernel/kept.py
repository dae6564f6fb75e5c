"""A table as it was left, kept so that the next change of it costs what it changes.

Every change reads the whole table under the lock, whoever wrote it last: nothing else tells that nobody did. Mostly nobody did: then what
was read is, byte by byte, what was left, and needs not be taken apart again; the new table is the old one with a few chains more or fewer,
and was put together before the lock was taken. Otherwise `netpol.kernel.table.splice` does it, from what was read.

What is here makes no table that `splice` would not make, byte for byte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from netpol.kernel._native import lib
from netpol.kernel.blocks import Block, EncodedChain
from netpol.kernel.table import Layout, Shape, Table


class Kept:
    """A table that stands as it was put together, all chains of ours in it being wanted.

    ours -- the chains that it has of ours; hooked -- FORWARD begins with the jump to NETPOL.
    """

    def __init__(self, table: str, layout: Layout, ours: Iterable[str], hooked: bool) -> None:
        self.table, self.block, self.shape, self.hooked = table, layout.block, layout.shape, hooked
        self._built_in, self._number, self._ours = layout.built_in, layout.number, frozenset(ours)
        self._foreign = self._number.keys() - self._ours

    def is_as(self, found: Any, size: int, shape: Shape) -> bool:
        """Whether that is what the kernel holds: entries as it handed them out, `size` bytes of them, and what it says about them."""
        return shape == self.shape and size == self.block.size and lib.np_xt_same(self.block.native, found, size, self.block.family) == 1

    def as_table(self) -> Table:
        return Table(self.table, self.block, self.shape)

    def with_chains(self, chains: Mapping[str, EncodedChain], hooked: bool) -> Layout | None:
        """The table with these chains of ours; None where `splice` is to do it: much changed, or a rule of others has a say."""
        block, number, names = self.block, self._number, list(self.block.names)
        changed = [name for name, chain in chains.items() if chain.block is not block]
        gone = self._ours.difference(chains)
        few = 2 * (len(changed) + len(gone)) <= len(names)
        if not few or hooked != self.hooked or not self._foreign.isdisjoint(changed):
            return None
        left = sorted([number[name] for name in (*gone, *changed) if name in number])
        for place in sorted([number[name] for name in gone], reverse=True):
            del names[place]
        for name in changed:
            if name not in number:
                names.insert(bisect_left(names, name, lo=self._built_in), name)
        layout = Layout(self.as_table(), names, self._built_in)
        places = sorted([bisect_left(names, name, lo=self._built_in) for name in changed])
        _fill(layout, block, left, [chains[names[place]] for place in places], places)
        try:
            layout.link()
        except KeyError:
            # A chain that a jump goes to would be gone. `splice` lets it stay if the jump is somebody else's, or says which it is.
            return None
        return layout


def _fill(layout: Layout, block: Block, left: list[int], chains: list[EncodedChain], places: list[int]) -> None:
    """Puts chains at their places, and between them those of the block, in order, but for the ones `left` out."""
    first, done, total = 0, 0, len(block.names) - len(left) + len(chains)
    ends = iter([*left, len(block.names)])
    end = next(ends)
    for place, chain in [*zip(places, chains, strict=True), (total, None)]:
        while done < place:
            if first == end:
                first, end = end + 1, next(ends)
                continue
            count = min(place - done, end - first)
            layout.add_run(block, first, first + count)
            first, done = first + count, done + count
        if chain is not None:
            layout.add(chain)
            done += 1


def kept(table: str, layout: Layout, ours: Iterable[str], hooked: bool) -> Kept | None:
    """The table that is in force now, if it is worth to be kept: not where it is mostly other people's, nor where a chain of ours is there
    only because others jump to it, nor where chains are in an order that is not iptables'."""
    user = layout.block.names[layout.built_in :]
    if not layout.is_plain or layout.is_mostly_foreign or user != sorted(user):
        return None
    return Kept(table, layout, ours, hooked)
