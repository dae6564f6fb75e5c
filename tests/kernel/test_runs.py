"""Addresses as runs of neighbours: the same runs, whether they were marked in a bitmap or sorted."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.bench.members import pod_addresses, scattered_addresses
from netpol.kernel._native import ffi, lib

LAST = 0xFFFFFFFF

Run = tuple[int, int, int]


def packed(addresses: list[int]) -> bytes:
    return b"".join(address.to_bytes(4, "big") for address in addresses)


def begun(addresses: list[int]) -> tuple[Any, object]:
    """(the runs before the first one, what has to live as long)."""
    runs, members = ffi.new("struct np_runs *"), packed(addresses)
    scratch = ffi.new("uint8_t[]", 2 * len(members))
    assert lib.np_runs_begin(runs, members, len(addresses), scratch) == 0
    return runs, scratch


def found(addresses: list[int], most: int = lib.NP_IPSET_RUN) -> list[Run]:
    """(first, last, how many members) of each run, as C has them."""
    runs, _scratch = begun(addresses)
    run, all_runs = ffi.new("struct np_run *"), []
    while runs.left:
        lib.np_runs_next(runs, most, run)
        all_runs.append((int(run.first), int(run.last), int(run.members)))
    return all_runs


def expected(addresses: list[int], most: int = lib.NP_IPSET_RUN) -> list[Run]:
    """The same by sorting."""
    runs: list[Run] = []
    for address in sorted(addresses):
        if runs and address - runs[-1][1] <= 1 and runs[-1][2] < most:
            first, _, members = runs.pop()
            runs.append((first, address, members + 1))
        else:
            runs.append((address, address, 1))
    return runs


# Bits are read in words of 64: what begins, ends or lies across one has its case.
BASE = 10 << 24
CASES = {
    "none": [],
    "one": [BASE],
    "a whole word": list(range(BASE, BASE + 64)),
    "up to the end of a word": list(range(BASE + 60, BASE + 64)) + list(range(BASE + 70, BASE + 90)),
    "across words": list(range(BASE + 60, BASE + 260)),
    "one on each side": [BASE + 63, BASE + 64, BASE + 66, BASE + 127, BASE + 129, *range(BASE + 191, BASE + 193)],
    "words between": [*range(BASE, BASE + 8), *range(BASE + 448, BASE + 456)],
    "the first addresses": list(range(100)),
    "the last addresses": list(range(LAST - 99, LAST + 1)),
    "both ends": [0, 1, LAST - 1, LAST],
    "across the middle": list(range((1 << 31) - 50, (1 << 31) + 50)),
    "a bitmap as large as its room": [BASE + 63 + 64 * number for number in range(64)],
    "the same twice": [BASE + 1, BASE, BASE + 1, BASE + 2, *range(BASE + 70, BASE + 80)],
    "the same only": [BASE] * 20,
}


@pytest.mark.parametrize("most", [1, 3, 64, 65, lib.NP_IPSET_RUN])
@pytest.mark.parametrize("addresses", CASES.values(), ids=CASES)
def test_runs_of_addresses(addresses: list[int], most: int) -> None:
    """In their order, none longer than it may be, whatever the order they came in."""
    assert found(addresses, most) == expected(addresses, most)
    assert found(addresses[::-1], most) == expected(addresses, most)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, LAST - 5000), st.lists(st.integers(0, 5000), min_size=1, max_size=400), st.booleans(), st.integers(1, 70))
def test_any_addresses(base: int, offsets: list[int], distinct: bool, most: int) -> None:
    """Close together or not, with some the same or without."""
    addresses = [base + offset for offset in (dict.fromkeys(offsets) if distinct else offsets)]
    assert found(addresses, most) == expected(addresses, most)


def test_pods_addresses_are_not_sorted() -> None:
    """Those of a cluster are marked in a bitmap; those that lie anywhere, or of which two are the same, are sorted."""
    pods, scattered = ([int.from_bytes(member, "big") for member in make(2000)] for make in (pod_addresses, scattered_addresses))
    assert begun(pods)[0].sorted == ffi.NULL
    assert begun(scattered)[0].sorted != ffi.NULL
    assert begun([*pods, pods[0]])[0].sorted != ffi.NULL


@pytest.mark.parametrize("apart", [1, 2, 31, 33, 64, 65, 100])
def test_a_bitmap_stays_in_the_room_that_it_has(apart: int) -> None:
    """A prefix with more than 64 addresses for each member would need more: those are sorted, and nothing is written behind the room."""
    addresses = [BASE + apart * number for number in range(1024)]
    Random(1).shuffle(addresses)
    members, runs = packed(addresses), ffi.new("struct np_runs *")
    room = ffi.new("uint8_t[]", b"\xaa" * (2 * len(members) + 4096))
    assert lib.np_runs_begin(runs, members, len(addresses), room) == 0
    assert bytes(room[2 * len(members) : len(room)]).rstrip(b"\0") == b"\xaa" * 4096
    assert (runs.sorted == ffi.NULL) == (apart <= 64)
