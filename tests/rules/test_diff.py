"""(wanted, found) -> steps: what they are, their order, and that nothing is done for nothing.

That no step opens a window is a law over whole clusters (tests/rules/test_laws.py); here are the forms that steps take.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from netpol.model import FAMILIES, Address, Family, Network, parse_address, parse_network
from netpol.rules.diff import diff
from netpol.rules.ruleset import (
    DROP,
    RETURN,
    ROOT,
    Chain,
    CreateSet,
    DestroySet,
    Goto,
    GrowSet,
    OpaqueTarget,
    ReplaceTable,
    Rule,
    Ruleset,
    SetMatch,
    ShrinkSet,
    Step,
    beside_what,
)
from netpol.rules.sets import Set, SetKind, net_member, net_port_member, port_member
from tests.rules.test_laws import apply

A, B, C = (parse_address(f"10.0.0.{i}") for i in (1, 2, 3))
S, ADDED, REMOVED = "NETPOL4-S", "NETPOL4aS", "NETPOL4rS"


def chains(*rules: Rule) -> dict[str, Chain]:
    return {ROOT: Chain(ROOT, rules)}


USES, DROPS, PASSES = chains(Rule(RETURN, (SetMatch(S, ("src",)),)), Rule(DROP)), chains(Rule(DROP)), chains(Rule(RETURN))
BOTH: dict[Family, dict[str, Chain]] = {4: USES, 6: DROPS}


NETS = Set(S, "hash:net", 4, frozenset((A + b"\x20\0",)))


def ips(name: str, *members: bytes) -> Set:
    return Set(name, "hash:ip", 4, frozenset(members))


def ruleset(*sets: Set, chains: dict[Family, dict[str, Chain]] = BOTH, hooked: tuple[Family, ...] = (4, 6)) -> Ruleset:
    return Ruleset(chains, {one.name: one for one in sets}, frozenset(hooked))


def grow(*members: bytes) -> GrowSet:
    return GrowSet(S, "hash:ip", 4, frozenset(members))


def shrink(*members: bytes) -> ShrinkSet:
    return ShrinkSet(S, "hash:ip", 4, frozenset(members))


@pytest.mark.parametrize(
    ("wanted", "found", "steps"),
    [
        pytest.param(ruleset(ips(S, A)), ruleset(ips(S, A)), (), id="nothing"),
        pytest.param(ruleset(ips(S, A)), ruleset(), (CreateSet(ips(S, A)),), id="a new set, full"),
        pytest.param(ruleset(), ruleset(ips(S, A)), (DestroySet(S),), id="a set that is not needed"),
        pytest.param(ruleset(ips(S, A, B)), ruleset(ips(S, A)), (grow(B),), id="only growing"),
        pytest.param(ruleset(ips(S)), ruleset(ips(S, A)), (shrink(A),), id="only shrinking"),
        pytest.param(
            ruleset(ips(S, A)),
            ruleset(NETS, chains={4: DROPS, 6: DROPS}),
            (DestroySet(S), CreateSet(ips(S, A)), ReplaceTable(4, "mangle", USES, True)),
            id="a set of another type that no rule uses",
        ),
        pytest.param(
            ruleset(ips(S, A), chains={4: DROPS, 6: DROPS}),
            ruleset(Set(S, "hash:ip", 6, frozenset()), chains={4: DROPS, 6: DROPS}),
            (DestroySet(S), CreateSet(ips(S, A))),
            id="of another family",
        ),
        pytest.param(
            ruleset(chains={4: USES, 6: PASSES}), ruleset(), (ReplaceTable(6, "mangle", PASSES, True),), id="the table of one family"
        ),
        pytest.param(
            ruleset(ips(S, A), chains={4: USES, 6: PASSES}),
            ruleset(ips(S)),
            (grow(A), ReplaceTable(6, "mangle", PASSES, True)),
            id="a set of the other family",
        ),
        pytest.param(ruleset(), ruleset(hooked=(6,)), (ReplaceTable(4, "mangle", USES, True),), id="the hook is gone"),
        pytest.param(ruleset(hooked=(4,)), ruleset(), (ReplaceTable(6, "mangle", DROPS, False),), id="the hook is not wanted"),
        pytest.param(
            ruleset(ips(S)),
            Ruleset({}, {}),
            (CreateSet(ips(S)), ReplaceTable(4, "mangle", USES, True), ReplaceTable(6, "mangle", DROPS, True)),
            id="an empty kernel",
        ),
        pytest.param(
            Ruleset({}, {}),
            ruleset(ips(S)),
            (ReplaceTable(4, "mangle", {}, False), ReplaceTable(6, "mangle", {}, False), DestroySet(S)),
            id="uninstalling",
        ),
    ],
)
def test_steps(wanted: Ruleset, found: Ruleset, steps: tuple[Step, ...]) -> None:
    """One difference, one step; sets come before the table that uses them, and go after it."""
    assert diff(wanted, found) == steps


REMOVED_TOO = SetMatch(REMOVED, ("src",), invert=True)
BESIDE = chains(
    Rule(RETURN, (SetMatch(S, ("src",)), REMOVED_TOO)), Rule(RETURN, (SetMatch(ADDED, ("src",)),)), Rule(DROP)
)  # the new state, over the set as it was


def test_members_that_come_and_go_change_beside_the_live_set() -> None:
    """The table first, over two small sets; the live set while nobody can tell; the table again, and the small sets go."""
    assert diff(ruleset(ips(S, A, B)), ruleset(ips(S, B, C))) == (
        CreateSet(ips(ADDED, A)),
        CreateSet(ips(REMOVED, C)),
        ReplaceTable(4, "mangle", BESIDE, True),
        grow(A),
        shrink(C),
        ReplaceTable(4, "mangle", USES, True),
        DestroySet(ADDED),
        DestroySet(REMOVED),
    )


def test_a_set_of_another_type_that_no_rule_uses_goes_and_comes() -> None:
    """First of all, also while other sets of the family take the detour."""
    other = "NETPOL4-T"
    steps = diff(
        ruleset(ips(S, A), ips(other, B)),
        ruleset(ips(S, C), NETS._replace(name=other), chains={4: {**USES, "X": Chain("X", ())}, 6: DROPS}),
    )
    assert steps[:2] == (DestroySet(other), CreateSet(ips(other, B)))
    assert CreateSet(ips(ADDED, A)) in steps
    assert [step.name for step in steps if isinstance(step, DestroySet)] == [other, ADDED, REMOVED]


def test_a_set_of_another_type_is_made_anew_beside_itself() -> None:
    """Rules use it: all of it stands beside it, and they use that, while the set itself goes and comes."""
    added = chains(Rule(RETURN, (SetMatch(ADDED, ("src",)),)), Rule(DROP))
    for members in ((A,), ()):
        assert diff(ruleset(ips(S, *members)), ruleset(NETS)) == (
            CreateSet(ips(ADDED, *members)),
            ReplaceTable(4, "mangle", added, True),
            DestroySet(S),
            CreateSet(ips(S, *members)),
            ReplaceTable(4, "mangle", USES, True),
            DestroySet(ADDED),
        )


LEFT = {"NETPOL4aS": (A,), "NETPOL4rS": (C,), "NETPOL4bS": (B,), "NETPOL4sS": (A,), "NETPOL4cS": (B,)}


@pytest.mark.parametrize(
    ("left", "used", "first", "letters"),
    [
        pytest.param("a", "a", "", "bs", id="a change that broke off"),
        pytest.param("r", "r", "", "bs", id="one that only took away"),
        pytest.param("abs", "bs", "", "ct", id="two"),
        pytest.param("absc", "c", "a", "ar", id="three, of which the first is used no more"),
        pytest.param("arbc", "ar", "b", "bs", id="three, of which the first is used"),
    ],
)
def test_what_a_broken_change_left_is_not_in_the_way(left: str, used: str, first: str, letters: str) -> None:
    """The small sets of the next one have other names; those that are left go at its end, or first where names are short."""
    rules = [Rule(RETURN, (SetMatch(f"NETPOL4{letter}S", ("src",)),)) for letter in used]
    found = ruleset(
        ips(S, B, C), *(ips(name, *LEFT[name]) for letter in left if (name := f"NETPOL4{letter}S")), chains={4: chains(*rules), 6: DROPS}
    )
    steps = diff(ruleset(ips(S, A, B)), found)
    names = [step.name for step in steps if not isinstance(step, ReplaceTable)]
    small = [f"NETPOL4{letter}S" for letter in letters]
    stale = [f"NETPOL4{letter}S" for letter in first]
    last = sorted(f"NETPOL4{letter}S" for letter in left if letter not in first)
    assert names == [*stale, *small, S, S, *small, *last]


def test_names_that_are_all_taken_end_in_an_error() -> None:
    """Of chains that somebody edited nobody knows what they use: nothing is destroyed first, and the kernel says what is in the way."""
    opaque = chains(Rule(OpaqueTarget("", 0, b"")))
    found = ruleset(ips(S, B, C), *(ips(name, *members) for name, members in LEFT.items()), chains={4: opaque, 6: DROPS})
    assert [type(step) for step in diff(ruleset(ips(S, A, B)), found)][:2] == [CreateSet, CreateSet]


def test_a_changed_table_takes_its_changed_sets_along() -> None:
    """The old rules with the new members would be neither state; what only comes needs one small set, with the rule's other matches."""
    port = SetMatch("NETPOL4-P", ("dst",))
    wanted = chains(Rule(RETURN, (port, SetMatch(S, ("src",)), port), source=parse_network("10.0.0.0/8")), Rule(DROP))
    small = Rule(RETURN, (port, SetMatch(ADDED, ("src",)), port), source=parse_network("10.0.0.0/8"))
    over_old = chains(wanted[ROOT].rules[0], small, Rule(DROP))
    assert diff(ruleset(ips(S, A), chains={4: wanted, 6: DROPS}), ruleset(ips(S))) == (
        CreateSet(ips(ADDED, A)),
        ReplaceTable(4, "mangle", over_old, True),
        grow(A),
        ReplaceTable(4, "mangle", wanted, True),
        DestroySet(ADDED),
    )


FRONT = "NETPOL4-INGRESS"


def test_a_set_in_front_of_a_tree_grows_before_the_table_and_shrinks_after_it() -> None:
    """No small sets and no second table, with other live sets that change beside them, too: those take their detour in between."""
    asks = chains(Rule(Goto("T"), (SetMatch(FRONT, ("dst",)),)), *USES[ROOT].rules)
    wanted: dict[Family, dict[str, Chain]] = {4: {**asks, "T": Chain("T", (Rule(DROP),))}, 6: DROPS}
    found: dict[Family, dict[str, Chain]] = {4: {**asks, "T": Chain("T", ())}, 6: DROPS}
    new, old = ips(FRONT, A, B), ips(FRONT, B, C)
    more, less = GrowSet(FRONT, "hash:ip", 4, frozenset({A})), ShrinkSet(FRONT, "hash:ip", 4, frozenset({C}))
    assert diff(ruleset(new, chains=wanted), ruleset(old, chains=found)) == (more, ReplaceTable(4, "mangle", wanted[4], True), less)
    steps = diff(ruleset(new, ips(S, A), chains=wanted), ruleset(old, ips(S), chains=found))
    assert [type(step) for step in steps] == [CreateSet, GrowSet, ReplaceTable, GrowSet, ShrinkSet, ReplaceTable, DestroySet]
    assert (steps[1], steps[4]) == (more, less)
    assert not any(isinstance(step, CreateSet) and beside_what(step.set.name) == (FRONT, "a") for step in steps)


def test_a_set_in_front_of_a_tree_opposes_nobody() -> None:
    """What comes and goes in it is allowed neither more nor less: what others get needs no detour for its sake."""
    assert diff(ruleset(ips(S, A), ips(FRONT, B)), ruleset(ips(S), ips(FRONT, C))) == (
        GrowSet(FRONT, "hash:ip", 4, frozenset({B})),
        grow(A),
        ShrinkSet(FRONT, "hash:ip", 4, frozenset({C})),
    )


@pytest.mark.parametrize(
    ("gains", "losses", "local", "plain"),
    [
        pytest.param({A}, {C}, None, False, id="any address might be ours"),
        pytest.param({A}, {C}, {A, C}, False, id="both are ours"),
        pytest.param({A}, {C}, {A}, True, id="only one is ours"),
        pytest.param({A}, {C}, set(), True, id="none is ours"),
        pytest.param({A, B}, {C}, {B, C}, False, id="one of each is ours"),
        pytest.param({A}, {C}, {A, B}, True, id="only what is allowed more is ours"),
        pytest.param({A}, {C}, {B, C}, True, id="only what is allowed less is ours"),
        pytest.param({A}, {B, C}, {B, C}, True, id="two are ours and both are allowed less"),
    ],
)
def test_who_takes_the_detour(gains: set[Address], losses: set[Address], local: set[Address] | None, plain: bool) -> None:
    """A batch that widens and narrows needs it where two addresses of this node's pods are concerned."""
    steps = diff(ruleset(ips(S, *gains)), ruleset(ips(S, *losses)), local)
    assert (steps == (grow(*gains), shrink(*losses))) == plain


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("gain", "loss", "plain"),
    [
        pytest.param((1, 80), (2, 80), False, id="two of ours"),
        pytest.param((1, 80), (3, 80), True, id="one of ours"),
        pytest.param((1, 80), (1, 81), True, id="two ports of one of ours"),
    ],
)
def test_the_address_of_a_member_is_its_beginning(family: Family, gain: tuple[int, int], loss: tuple[int, int], plain: bool) -> None:
    """Of an address with a port only the address can be one of this node's pods."""
    addresses = [bytes(3 if family == 4 else 15) + bytes((number,)) for number in range(4)]
    wanted, found = (
        ruleset(Set(S, "hash:ip,port", family, frozenset({port_member(addresses[number], 6, port)}))) for number, port in (gain, loss)
    )
    steps = diff(wanted, found, {addresses[1], addresses[2]})
    assert ([type(step) for step in steps] == [GrowSet, ShrinkSet]) == plain


@pytest.mark.parametrize("local", [None, {A}])
def test_an_address_that_moves_from_set_to_set_takes_none(local: set[Address] | None) -> None:
    """It gains and loses alone; growth comes first."""
    other = "NETPOL4-T"
    wanted, found = ruleset(ips(S), ips(other, A)), ruleset(ips(S, A), ips(other))
    assert diff(wanted, found, local) == (GrowSet(other, "hash:ip", 4, frozenset({A})), shrink(A))


def test_order_within_each_kind_is_by_name() -> None:
    """The same difference gives the same steps, always."""
    wanted, found = ruleset(ips("new2"), ips("new1"), ips("b", A), ips("a", A)), ruleset(ips("old2"), ips("old1"), ips("b"), ips("a"))
    steps = diff(wanted, found)
    assert [step.set.name for step in steps if isinstance(step, CreateSet)] == ["new1", "new2"]
    assert [step.name for step in steps if isinstance(step, GrowSet)] == ["a", "b"]
    assert [step.name for step in steps if isinstance(step, DestroySet)] == ["old1", "old2"]


def nets(*members: bytes, kind: SetKind = "hash:net", family: Family = 4) -> Ruleset:
    return ruleset(Set(S, kind, family, frozenset(members)), chains={})


V4, V6 = parse_network("10.0.0.0/8"), parse_network("fd00::/8")


@pytest.mark.parametrize("nomatch", [False, True])
@pytest.mark.parametrize(
    ("kind", "family", "net"), [("hash:net", 4, V4), ("hash:net", 6, V6), ("hash:net,port", 4, V4), ("hash:net,port", 6, V6)]
)
def test_a_flip_of_nomatch_is_one_add(kind: SetKind, family: Family, net: Network, nomatch: bool) -> None:
    """The add replaces the flag in place; a delete afterwards would take the prefix away and open or close what it covers."""
    if kind == "hash:net":
        new, old, gone = net_member(net, nomatch), net_member(net, not nomatch), net_member(Network(net.address, 9), nomatch)
    else:
        new, old = net_port_member(net, 6, 80, nomatch), net_port_member(net, 6, 80, not nomatch)
        gone = net_port_member(net, 6, 81, not nomatch)
    steps = diff(nets(new, kind=kind, family=family), nets(old, gone, kind=kind, family=family))
    assert steps == (GrowSet(S, kind, family, frozenset({new})), ShrinkSet(S, kind, family, frozenset({gone})))
    assert diff(nets(new, kind=kind, family=family), nets(old, kind=kind, family=family)) == steps[:1]


@pytest.mark.parametrize(("kind", "length"), [("hash:ip", 16), ("hash:ip,port", 7)])
def test_a_flag_is_a_flag_only_where_there_are_prefixes(kind: SetKind, length: int) -> None:
    """Members of other types that differ in what would be the flag's byte are different members."""
    for place in range(length):
        one = bytes(length)
        other = bytes(place) + b"\1" + bytes(length - place - 1)
        assert [type(step) for step in diff(nets(one, kind=kind), nets(other, kind=kind))] == [GrowSet, ShrinkSet]


# -- laws --------------------------------------------------------------------------------------------------------------

NAMES = ("NETPOL4-p", "NETPOL4-q", "NETPOL4-r")


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    """Sets, and chains of both families that use some of them, or no chains at all."""
    members = st.frozensets(st.sampled_from((A, B, C)))
    sets = {name: ips(name, *draw(members)) for name in NAMES if draw(st.booleans())}
    matches = [SetMatch(name, ("src",), invert) for name in sets for invert in (False, True)]
    rules = st.lists(st.sampled_from((DROP, RETURN)), max_size=2).map(lambda targets: tuple(map(Rule, targets)))
    if matches:
        rules = st.lists(st.sampled_from([Rule(target, (match,)) for match in matches for target in (DROP, RETURN)]), max_size=3).map(tuple)
    found: dict[Family, dict[str, Chain]] = {family: {ROOT: Chain(ROOT, draw(rules))} for family in FAMILIES if draw(st.booleans())}
    return Ruleset(found, sets, frozenset(family for family in found if draw(st.booleans())))


@given(rulesets())
def test_what_is_as_wanted_needs_no_step(one: Ruleset) -> None:
    """diff(x, x) is empty."""
    assert diff(one, one) == ()


@given(rulesets(), rulesets(), st.none() | st.frozensets(st.sampled_from((A, B, C))))
def test_the_steps_lead_from_found_to_wanted(wanted: Ruleset, found: Ruleset, local: frozenset[Address] | None) -> None:
    """Applied one by one they make it so; whatever a table refers to exists all the time; a second diff finds nothing."""
    now = found
    for step in diff(wanted, found, local):
        now = apply(now, (step,))
        for held in now.chains.values():
            used = {match.name for chain in held.values() for rule in chain.rules for match in rule.matches if isinstance(match, SetMatch)}
            assert used <= now.sets.keys(), step
    assert now.sets == wanted.sets
    for family in FAMILIES:
        assert now.chains.get(family, {}) == wanted.chains.get(family, {})


@pytest.mark.parametrize(
    ("leave", "stay", "is_whole", "says"),
    [(1024, 1023, True, True), (1024, 1024, True, False), (1023, 0, True, False), (5000, 1, True, True), (5000, 1, False, False)],
)
def test_what_is_left_of_a_set_that_most_leave(leave: int, stay: int, is_whole: bool, says: bool) -> None:
    """The step says it where 1,024 go and fewer stay, of a set that is known to be here as a whole."""
    gone, left = (
        frozenset((start + number).to_bytes(4, "big") for number in range(count)) for start, count in ((0, leave), (1 << 24, stay))
    )
    wanted = replace(ruleset(Set(S, "hash:ip", 4, left)), whole=frozenset({S} if is_whole else ()))
    (step,) = diff(wanted, ruleset(Set(S, "hash:ip", 4, gone | left)))
    assert step == ShrinkSet(S, "hash:ip", 4, gone, Set(S, "hash:ip", 4, left) if says else None)
