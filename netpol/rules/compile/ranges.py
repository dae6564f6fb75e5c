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
    for low, high in ranges:
        for cut_low, cut_high in less:
            if cut_high < low or cut_low > high:
                continue
            if low < cut_low:
                left.append((low, cut_low - 1))
            low = cut_high + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)
