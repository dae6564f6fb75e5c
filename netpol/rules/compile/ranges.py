"""Sets of whole numbers, ports or addresses, as ranges with both ends inside."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import itemgetter

Range = tuple[int, int]
Ranges = tuple[Range, ...]

_end = itemgetter(1)


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
    """The numbers of `ranges` that are not in `less`; both are merged, and so is the result. Few of the one may meet many of the other."""
    left: list[Range] = []
    at = 0
    for low, high in ranges:
        at = bisect_left(less, low, at, key=_end)  # the first that may reach into this range or a later one
        while at < len(less) and less[at][0] <= high:
            if low < less[at][0]:
                left.append((low, less[at][0] - 1))
            low = less[at][1] + 1
            at += 1
        at = max(at - 1, 0)  # it may reach into the next one, too
        if low <= high:
            left.append((low, high))
    return tuple(left)
