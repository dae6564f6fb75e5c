"""The kernel's numbers of sets, as C looks them up: a change of some is what a fresh start with all would be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netpol.kernel._native import ffi
from netpol.kernel.blocks import SetNumbers

NAMES = st.sampled_from(["a", "b", "NETPOL4-0", "NETPOL4-1", "NETPOL4a0", "\udcff", "ä", "\U0001f600"])


def numbered(names: list[str], first: int) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


@given(st.lists(NAMES, unique=True), st.sets(NAMES), st.lists(NAMES, unique=True))
def test_some_change(old: list[str], gone: set[str], new: list[str]) -> None:
    """Whatever goes and whatever comes, also under the same name or with the number of one that went; the old value stays."""
    before = SetNumbers(numbered(old, 0))
    wanted = {name: number for name, number in numbered(old, 0).items() if name not in gone | set(new)}
    free = next(number for number in range(100) if number not in wanted.values())
    coming = numbered(new, 20) | dict.fromkeys(new[:1], free)
    found, fresh = before.changed(gone | set(new), coming), SetNumbers(wanted | coming)
    assert (found.pairs, found.names, {name: found.get(name) for name in old + new}) == (
        fresh.pairs,
        fresh.names,
        {name: fresh.get(name) for name in old + new},
    )
    assert bytes(ffi.buffer(found.native)) == bytes(ffi.buffer(fresh.native))
    assert before.pairs == SetNumbers(numbered(old, 0)).pairs


def test_a_number_is_that_of_one_set() -> None:
    """Whose number another set has by now is no more; and the other one stays known when the first comes again, and goes as any does."""
    taken = SetNumbers({"a": 0, "b": 1}).changed(["c"], {"c": 0})
    assert (taken.pairs, taken.names) == ((("b", 1), ("c", 0)), {1: "b", 0: "c"})
    again = taken.changed(["a"], {"a": 2})
    assert (again.get("a"), again.names) == (2, {0: "c", 1: "b", 2: "a"})
    assert again.changed(["c"], {}).names == {1: "b", 2: "a"}
