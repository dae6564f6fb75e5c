"""The set in front of a tree: when there is one, what it holds, how it changes with the table, and that the rules say the same with it."""

from __future__ import annotations

import pytest

from netpol.model import DIRECTIONS, Address, Direction, Family, Network, Pod, Policy, parse_address, parse_network
from netpol.rules.compile import Settings
from netpol.rules.compile.front import Front, changed, front, front_net, without_fronts
from netpol.rules.ruleset import (
    NEW,
    CreateSet,
    DestroySet,
    GrowSet,
    ReplaceTable,
    Ruleset,
    SetMatch,
    ShrinkSet,
    beside,
    beside_what,
    front_match,
    front_name,
    is_front,
)
from netpol.rules.sets import Set
from tests.rules.watched import OUT, PODS, THERE, A, B, C, D, Watched, app, kinds, own, peers, pod, policy, port

A6, B6 = parse_address("fd00::1"), parse_address("fd00::2")
IN4, OUT4 = "NETPOL4-INGRESS", "NETPOL4-EGRESS"
RANGE = parse_network("10.0.0.0/16")


def watched(least: int, *objects: Pod | Policy) -> Watched:
    return Watched(*objects, settings=Settings(front_from=least))


def whole(*members: Address) -> Set:
    return front("ingress", 4, Front(frozenset(members), RANGE))


def fronts(ruleset: Ruleset) -> dict[str, frozenset[bytes]]:
    return {name: found.members for name, found in ruleset.sets.items() if is_front(name)}


FAR = parse_address("10.1.0.1")


@pytest.mark.parametrize(
    ("family", "leaves", "unknown", "least", "there"),
    [
        pytest.param(4, (A, B), (), 2, True, id="enough"),
        pytest.param(4, (A,), (), 2, False, id="too few"),
        pytest.param(4, (), (), 1, False, id="nobody"),
        pytest.param(4, (A, B), (), 0, False, id="not wanted"),
        pytest.param(4, (A, B), (PODS,), 1, False, id="unknown addresses are denied"),
        pytest.param(4, (A, FAR), (), 2, False, id="of two ranges"),
        pytest.param(6, (A6, B6), (), 2, False, id="no bitmap has IPv6"),
    ],
)
def test_when_there_is_one(family: Family, leaves: tuple[Address, ...], unknown: tuple[Network, ...], least: int, there: bool) -> None:
    """From so many leaves of one range on, and while a tree is about those only."""
    assert front_net(family, leaves, unknown, least) == (RANGE if there else None)


@pytest.mark.parametrize(("family", "direction", "name"), [(4, "ingress", IN4), (4, "egress", OUT4), (6, "ingress", "NETPOL6-INGRESS")])
def test_its_name_is_its_own(family: Family, direction: Direction, name: str) -> None:
    """By family and direction; the small sets beside it, and sets of selections, are none."""
    assert front_name(family, direction) == name
    assert is_front(name)
    assert beside_what(beside(name, "a")) == (name, "a")
    assert not is_front(beside(name, "a"))
    assert not is_front("NETPOL4-0123456789abcdef0123456")
    assert front(direction, family, Front(frozenset((A, B)), RANGE)) == Set(name, "bitmap:ip", family, frozenset((A, B)), RANGE)
    assert front_match(family, direction) == SetMatch(name, ("src" if direction == "egress" else "dst",))


def test_what_changed_of_it() -> None:
    """As far as the two differ; all of one that comes, and the name of one that goes; all of both, when the range is another one."""
    old, new, none = (Front(frozenset(found), RANGE) for found in ((A, B), (B, C), ()))
    assert changed(new, old) == (Front({C}, RANGE), Front({A}, RANGE))
    assert changed(new, None) == (new, None)
    assert changed(None, old) == (None, none)
    assert changed(None, None) == (None, None)
    moved = Front(frozenset((FAR,)), parse_network("10.1.0.0/16"))
    assert changed(moved, old) == (moved, old)


def test_each_side_has_its_own() -> None:
    """Whoever is isolated there, of any class: no free pod, and none of another node. IPv6 goes by the tree alone."""
    state = watched(1, pod("db", A, A6), pod("api", B), pod("free", C), pod("db2", D, node=THERE), policy("p", "db"))
    assert fronts(state.wanted()) == {IN4: {A}}
    state.put(Policy("ns", "q", app("api"), (), ()))
    assert fronts(state.wanted()) == {IN4: {A, B}, OUT4: {B}}
    rules = state.wanted().chains[4][NEW].rules
    assert [rule.matches for rule in rules] == [(front_match(4, direction),) for direction in reversed(DIRECTIONS)]
    assert [rule for rule in state.wanted().chains[6][NEW].rules if any(isinstance(match, SetMatch) for match in rule.matches)] == []


@pytest.mark.parametrize("least", [1, 2, 3])
def test_the_rules_say_the_same_with_it(least: int) -> None:
    """To isolated pods, from them, to free ones, between them."""
    state = watched(
        least,
        *(pod(name, at) for name, at in (("db", A), ("api", B), ("free", C))),
        policy("p", "db", peers(own("api"))),
        policy("q", "api", egress=()),
    )
    plain = Watched(*state.cluster.all_pods(), *state.cluster.policies.values())
    ends = (A, B, C, D, OUT)
    assert [state.passes(x, y) for x in ends for y in ends] == [plain.passes(x, y) for x in ends for y in ends]


def test_a_pod_comes_and_goes() -> None:
    """One member of a set, before the table and after it; the set stays while its members come and go."""
    state = watched(1, policy("p", "db"), pod("db1", A))
    state.steps()
    state.put(pod("db2", B))
    steps = state.steps()
    assert kinds(steps) == [GrowSet, ReplaceTable]
    assert steps[0] == GrowSet(IN4, "bitmap:ip", 4, frozenset({B}))
    state.drop(Pod, "db1")
    steps = state.steps()
    assert kinds(steps) == [ReplaceTable, ShrinkSet]
    assert steps[1] == ShrinkSet(IN4, "bitmap:ip", 4, frozenset({A}))
    state.put(pod("db2", C))
    steps = state.steps()
    assert kinds(steps) == [GrowSet, ReplaceTable, ShrinkSet]
    assert (steps[0], steps[2]) == (GrowSet(IN4, "bitmap:ip", 4, frozenset({C})), ShrinkSet(IN4, "bitmap:ip", 4, frozenset({B})))


def test_a_pod_that_changes_its_class_changes_no_member() -> None:
    """The table alone."""
    state = watched(1, policy("p", "db"), policy("q", "api", peers(own("web"))), pod("db1", A), pod("db2", B))
    state.steps()
    state.put(pod("db1", A, label="api"))
    assert not any(isinstance(step, GrowSet | ShrinkSet) for step in state.steps())


def test_it_comes_with_enough_pods_and_goes_with_them() -> None:
    """Full before the table that asks it; destroyed when no rule does."""
    state = watched(2, policy("p", "db"), pod("db1", A))
    assert fronts(state.wanted()) == {}
    state.put(pod("db2", B))
    steps = state.steps()
    assert steps[0] == CreateSet(whole(A, B))
    assert kinds(steps) == [CreateSet, ReplaceTable]
    state.drop(Pod, "db1")
    steps = state.steps()
    assert kinds(steps) == [ReplaceTable, DestroySet]
    assert steps[1] == DestroySet(IN4)
    assert fronts(state.wanted()) == {}


def test_a_kernel_without_such_sets_gets_none() -> None:
    """From then on the state is that of a tree alone, and nothing else is otherwise; also what comes later."""
    one, other = (watched(least, policy("p", "db"), pod("db1", A), pod("free", C)) for least in (1, 0))
    state, tree = one.state, other.state
    assert fronts(state.wanted()) == {IN4: {A}}
    state.forgo_fronts()
    assert state.wanted() == tree.wanted()
    for each in (one, other):
        each.put(pod("db2", B))
    assert state.wanted() == tree.wanted()


def test_a_whole_state_without_them() -> None:
    """Exactly what is compiled where there are none, other sets and matches included; the empty state stays so."""
    items = (pod("db", A, A6), pod("api", B), policy("p", "db", peers(own("api"), ports=(port(80),))), policy("q", "api", egress=()))
    one, other = (watched(least, *items).state.wanted() for least in (1, 0))
    assert set(fronts(one)) == {IN4, OUT4}
    assert without_fronts(one) == other == without_fronts(other)
    assert without_fronts(Ruleset({}, {})) == Ruleset({}, {})


def test_while_unknown_addresses_are_denied_there_is_none() -> None:
    """An isolated pod without an address has all of the range denied; with its address the set is there again."""
    state = Watched(policy("p", "db"), pod("db1", A), settings=Settings(front_from=1, pod_cidrs=(PODS,)))
    assert fronts(state.wanted()) == {IN4: {A}}
    state.put(pod("db2"))
    assert fronts(state.wanted()) == {}
    assert not state.passes(OUT, D)
    state.put(pod("db2", B))
    assert fronts(state.wanted()) == {IN4: {A, B}}
    assert state.passes(OUT, D)


def test_pods_of_two_ranges_have_none_and_another_range_is_another_set() -> None:
    """Then there is a tree, as ever. When all have moved to another range the set is made anew beside itself."""
    state = watched(1, policy("p", "db"), pod("db1", A))
    state.steps()
    state.put(pod("db2", FAR))
    assert kinds(state.steps()) == [ReplaceTable, DestroySet]
    state.drop(Pod, "db1")
    assert kinds(state.steps()) == [CreateSet, ReplaceTable]
    state.put(pod("db2", A))
    steps = state.steps()
    assert kinds(steps) == [CreateSet, ReplaceTable, DestroySet, CreateSet, ReplaceTable, DestroySet]
    assert isinstance(steps[0], CreateSet)
    assert steps[0] == CreateSet(whole(A)._replace(name=steps[0].set.name))
    assert steps[3] == CreateSet(whole(A))
