"""Sets of whole numbers, ports or addresses, as ranges with both ends inside."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
Ranges = tuple[Range, ...]


def merge_ranges(ranges: Iterable[Range]) -> Ranges:
    """Sorted ranges that neither overlap nor touch."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def subtract_ranges(ranges: Ranges, less: Ranges) -> Ranges:
    """The numbers of `ranges` that are not in `less`; both are merged, and so is the result."""
    left: list[Range] = []
    first = 0  # of those of `less` that may reach into this range or a later one
    for low, high in ranges:
        while first < len(less) and less[first][1] < low:
            first += 1
        at = first
        while at < len(less) and less[at][0] <= high:
            if low < less[at][0]:
                left.append((low, less[at][0] - 1))
            low = less[at][1] + 1
            at += 1
        if low <= high:
            left.append((low, high))
    return tuple(left)
