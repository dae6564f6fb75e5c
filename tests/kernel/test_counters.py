"""Our counters through a change that goes by small sets beside the live ones: each rule goes on from where it was."""

from __future__ import annotations

import pytest

from netpol.kernel.apply import Kernel
from netpol.model import FAMILIES, Family
from netpol.rules.diff import diff
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, ReplaceTable, Rule, Ruleset, SetMatch, beside, beside_what
from netpol.rules.sets import Set
from tests.kernel.iptables import TOOL, saved
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")


def address(family: Family, number: int) -> bytes:
    return bytes((10, 0, 0, number)) if family == 4 else b"\xfd" + bytes(14) + bytes((number,))


def state(family: Family, one: tuple[int, ...], two: tuple[int, ...], protocol: int) -> Ruleset:
    """A chain with a rule for each of two sets and one for no set, and another chain, whose rule is for a protocol."""
    names = f"NETPOL{family}-one", f"NETPOL{family}-two"
    sets = {
        name: Set(name, "hash:ip", family, frozenset(address(family, n) for n in given))
        for name, given in zip(names, (one, two), strict=True)
    }
    rules = (*(Rule(RETURN, (SetMatch(name, ("src",)),)) for name in names), Rule(RETURN, protocol=99), Rule(DROP))
    chains = {ROOT: Chain(ROOT, (Rule(RETURN, protocol=protocol),)), "NETPOL-A": Chain("NETPOL-A", rules)}
    return Ruleset({family: chains}, sets, frozenset((family,)))


def count(family: Family, rule: int, packets: int) -> None:
    """As if so many packets had met a rule of the chain, 10 bytes each."""
    line = [line for line in saved(family) if line.startswith("-A NETPOL-A")][rule - 1]
    words = line.removeprefix("-A NETPOL-A").split()
    run(TOOL[family], "-w", "-t", "mangle", "-R", "NETPOL-A", str(rule), *words, "-c", str(packets), str(10 * packets))


def counted(family: Family) -> list[str]:
    return [line.split("]")[0] + "]" for line in saved(family, counters=True) if "-A NETPOL-A" in line]


CHANGES = {
    "gains": ((1, 2, 3), (5,), 5),
    "losses": ((1,), (5,), 4),
    "both": ((1, 3), (5,), 5),
    "both, in both sets": ((1, 3), (6, 7), 6),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("one", "two", "rules_between"), [(one, two, count) for one, two, count in CHANGES.values()], ids=CHANGES)
def test_counters_live_through_a_detour(family: Family, one: tuple[int, ...], two: tuple[int, ...], rules_between: int) -> None:
    """Rules over live sets that change are written twice, over small sets and without them; what any form of a rule counted is the
    rule's in the end."""
    old, new = state(family, (1, 2), (5,), 201), state(family, one, two, 202)
    with Kernel() as kernel:
        kernel.apply(diff(old, kernel.read()))
        for rule, packets in ((1, 7), (2, 8), (3, 9), (4, 100)):
            count(family, rule, packets)
        steps = diff(new, kernel.read())
        replaces = [at for at, step in enumerate(steps) if isinstance(step, ReplaceTable)]
        assert len(replaces) == 2
        kernel.apply(steps[: replaces[0] + 1])
        between = counted(family)
        assert len(between) == rules_between
        assert sorted(between) == sorted(["[7:70]", "[8:80]", "[9:90]", "[100:1000]", *["[0:0]"] * (len(between) - 4)])
        # Packets meet the second form of the first rule, where it has one.
        extra = 0
        if between[1] == "[0:0]":
            count(family, 2, 3)
            extra = 3
        kernel.apply(steps[replaces[0] + 1 :])
        assert counted(family) == [f"[{7 + extra}:{70 + 10 * extra}]", "[8:80]", "[9:90]", "[100:1000]"]
        assert kernel.read() == new


def test_a_rule_that_goes_takes_its_counters_along() -> None:
    """Without small sets two equal rules of which one goes are not added up."""
    rule = Rule(RETURN, protocol=99)
    with Kernel() as kernel:
        kernel.apply([ReplaceTable(4, "mangle", {ROOT: Chain(ROOT, ()), "NETPOL-A": Chain("NETPOL-A", (rule, rule))}, True)])
        count(4, 1, 5)
        count(4, 2, 6)
        kernel.apply([ReplaceTable(4, "mangle", {ROOT: Chain(ROOT, ()), "NETPOL-A": Chain("NETPOL-A", (rule,))}, True)])
    assert counted(4) == ["[5:50]"]


@pytest.mark.parametrize("letter", ["a", "r"])
def test_the_name_of_a_small_set_tells_whose_it_is(letter: str) -> None:
    """Both ways; and no live set's name is taken for one."""
    live = "NETPOL4-a5020577952718015dd9d9a"
    small = beside(live, letter)
    assert (len(small), beside_what(small)) == (len(live), (live, letter))
    assert beside_what(live) is beside_what("NETPOL-BENCH-1") is beside_what("theirs") is beside_what("NETPOL4") is None
