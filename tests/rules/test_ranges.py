"""Ranges of numbers are merged and subtracted as the sets that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.rules.compile.ranges import Range, Ranges, merge_ranges, subtract_ranges

TOP = 12
ranges = st.lists(st.tuples(st.integers(0, TOP), st.integers(0, TOP)).map(lambda pair: (min(pair), max(pair))), max_size=5)


def numbers(found: Ranges | list[Range]) -> set[int]:
    return {number for low, high in found for number in range(low, high + 1)}


def as_ranges(found: set[int]) -> Ranges:
    """The one form of a set of numbers: each run that is as long as can be, in order."""
    starts = [number for number in sorted(found) if number - 1 not in found]
    ends = [number for number in sorted(found) if number + 1 not in found]
    return tuple(zip(starts, ends, strict=True))


@given(ranges, ranges)
def test_ranges_are_sets_of_numbers(some: list[Range], others: list[Range]) -> None:
    """Merged and subtracted as sets are, in the one form that they have."""
    assert merge_ranges(some) == as_ranges(numbers(some))
    assert subtract_ranges(merge_ranges(some), merge_ranges(others)) == as_ranges(numbers(some) - numbers(others))


@pytest.mark.parametrize(
    ("some", "less", "left"),
    [
        pytest.param(((1, 9),), ((3, 5),), ((1, 2), (6, 9)), id="out of the middle"),
        pytest.param(((1, 9),), ((2, 3), (5, 6)), ((1, 1), (4, 4), (7, 9)), id="two pieces"),
        pytest.param(((1, 9),), ((0, 1), (9, 12)), ((2, 8),), id="both ends"),
        pytest.param(((5, 6), (8, 9)), ((1, 2), (6, 7), (9, 9)), ((5, 5), (8, 8)), id="beside, and across a gap"),
        pytest.param(((5, 6),), ((1, 4), (7, 9)), ((5, 6),), id="what touches takes nothing"),
        pytest.param(((5, 6),), ((5, 6),), (), id="all of it"),
        pytest.param(((0, 1), (3, 9)), ((1, 4),), ((0, 0), (5, 9)), id="one that reaches into two"),
        pytest.param(((0, 1), (3, 4), (6, 9)), ((1, 7),), ((0, 0), (8, 9)), id="one that reaches into three"),
    ],
)
def test_subtraction_by_hand(some: Ranges, less: Ranges, left: Ranges) -> None:
    """What is left over is neither more nor less."""
    assert subtract_ranges(some, less) == left
