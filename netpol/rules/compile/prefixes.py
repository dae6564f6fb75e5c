"""The shortest list of prefixes that says what several ipBlocks with their excepts say together.

A hash:net set answers by the longest prefix that covers an address: a plain one matches, one marked nomatch does not. Put into
one set as they stand, the `except` of one block would shadow the addresses that another block allows. So the union is taken first,
as disjoint ranges of numbers, and then written as the least number of match and nomatch prefixes (the construction known for
routing tables as ORTC: from the leaves up, what could a node say for all below it; from the root down, say it where it differs).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from netpol.model import Family, IPBlock, Network
from netpol.rules.compile.ranges import Range, Ranges, merge_ranges, subtract_ranges

Prefixes = tuple[tuple[Network, bool], ...]  # (prefix, nomatch), sorted


def union(blocks: Iterable[IPBlock], family: Family) -> Ranges:
    """The addresses of that family in any of the blocks, as sorted ranges that neither overlap nor touch."""
    return merge_ranges(part for block in blocks if block.cidr.family == family for part in _block_ranges(block))


def whole(family: Family) -> Range:
    """All addresses of a family."""
    return 0, (1 << (32 if family == 4 else 128)) - 1


def prefixes(ranges: Ranges, family: Family) -> Prefixes:
    """The shortest list for these ranges. Nothing in it is shorter than a /1, for a set cannot hold a /0."""
    if not ranges:
        return ()
    width = 32 if family == 4 else 128
    half = 1 << (width - 1)
    found: list[tuple[Network, bool]] = []
    for start in (0, half):
        _emit(_summarise(ranges, start, half), start, half, False, width, found)
    return tuple(sorted(found))


def _block_ranges(block: IPBlock) -> Ranges:
    return subtract_ranges((_range(block.cidr),), merge_ranges(map(_range, block.excepts)))


def _range(net: Network) -> Range:
    start = int.from_bytes(net.address, "big")
    return start, start + (1 << (len(net.address) * 8 - net.length)) - 1


class _Node:
    """A prefix and what it could say (match, no match, or either) at the same cost. Where it is mixed: children, its halves; or `within`,
    where and how long the only prefix is that anything of it lies in, at least two levels below."""

    __slots__ = ("children", "says", "within")

    def __init__(
        self, says: frozenset[bool], children: tuple[_Node, _Node] | None = None, within: tuple[_Node, int, int] | None = None
    ) -> None:
        self.says, self.children, self.within = says, children, within


_MATCH, _NO_MATCH = _Node(frozenset([True])), _Node(frozenset([False]))


def _summarise(ranges: Ranges, start: int, size: int) -> _Node:
    at = bisect_left(ranges, (start + 1,)) - 1  # the last range that begins here or before
    if at >= 0 and ranges[at][1] >= start + size - 1:
        return _MATCH
    touches_before = at >= 0 and ranges[at][1] >= start
    touches_after = at + 1 < len(ranges) and ranges[at + 1][0] < start + size
    if not touches_before and not touches_after:
        return _NO_MATCH
    # Work follows the ranges, or the holes between them, and not the levels. What lies beside all of them says one thing, and two levels up
    # nothing else is as cheap.
    last = start + size - 1
    final = ranges[bisect_left(ranges, (start + size,)) - 1]
    touched = start if touches_before else ranges[at + 1][0], min(final[1], last)
    holes = ranges[at][1] + 1 if touches_before else start, last if final[1] < last else final[0] - 1
    for beside, (low, high) in ((_NO_MATCH, touched), (_MATCH, holes)):
        inner = 1 << (low ^ high).bit_length()
        if inner <= size >> 2:
            base = low & -inner
            return _Node(beside.says, within=(_summarise(ranges, base, inner), base, inner))
    half = size >> 1
    left, right = _summarise(ranges, start, half), _summarise(ranges, start + half, half)
    return _Node(left.says & right.says or left.says | right.says, (left, right))


def _emit(node: _Node, start: int, size: int, inherited: bool, width: int, found: list[tuple[Network, bool]]) -> None:
    says = inherited if inherited in node.says else not inherited
    if says != inherited:
        length = width - (size.bit_length() - 1)
        found.append((Network(start.to_bytes(width // 8, "big"), length), not says))
    if node.within is not None:
        inner, base, extent = node.within
        _emit(inner, base, extent, says, width, found)
    if node.children is not None:
        half = size >> 1
        _emit(node.children[0], start, half, says, width, found)
        _emit(node.children[1], start + half, half, says, width, found)
