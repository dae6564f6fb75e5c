"""Dispatch by address: every address comes to its own leaf and no other, in few comparisons, whatever the addresses are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.model import DIRECTIONS, TCP, Address, Direction, Family, Network, family_of, format_address, parse_address, parse_network
from netpol.rules.compile.tree import FEW, Tree, scope, tree
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import ACCEPT, DENY, DROP, EGRESS, INGRESS, RETURN, ROOT, Chain, Goto, Jump, Rule, Ruleset

ELSEWHERE: dict[Family, Address] = {4: parse_address("192.0.2.1"), 6: parse_address("2001:db8::1")}
ROOTS: dict[Direction, str] = {"egress": EGRESS, "ingress": INGRESS}
V4 = [parse_address(f"10.0.{i}.{j}") for i in (0, 3, 255) for j in (0, 1, 2, 3, 4, 63, 64, 255)]
V6 = [parse_address(f"fd00::{i}:{j}") for i in ("0", "8000") for j in ("0", "1", "2", "ffff")]
APART = [parse_address(text) for text in ("0.0.0.0", "1.2.3.4", "127.255.255.255", "128.0.0.0", "200.1.2.3", "255.255.255.255")]


def outcome(chains: Mapping[str, Chain], direction: Direction, source: Address, destination: Address) -> str:
    """Where a packet that the tree is asked about ends: in the chain of a class, in NETPOL-DENY, or back in NETPOL ("returned")."""
    if not chains:
        return "returned"
    ends = {rule.target.chain for chain in chains.values() for rule in chain.rules if isinstance(rule.target, Goto)} | {DENY}
    found = {name: Chain(name, (Rule(DROP),)) for name in ends} | dict(chains)
    found[ROOT] = Chain(ROOT, (Rule(Jump(ROOTS[direction])), Rule(ACCEPT)))
    decision = interpret(Ruleset({4: found, 6: found}, {}, frozenset((4, 6))), Packet(source, destination, TCP, 80))
    return decision.hits[-1].chain if not decision.passes else "returned"


def ask(chains: Mapping[str, Chain], direction: Direction, address: Address, other: Address | None = None) -> str:
    """The outcome for a packet from (egress) or to (ingress) an address."""
    other = other or ELSEWHERE[family_of(address)]
    return outcome(chains, direction, address, other) if direction == "egress" else outcome(chains, direction, other, address)


def net(text: str) -> Network:
    return parse_network(text)


A, B = parse_address("10.0.0.1"), parse_address("10.0.0.2")


def test_one_leaf_each_way() -> None:
    """The rules that one would write oneself: to the class chain, but not for the hairpin."""
    own, other = net("10.0.0.1/32"), net("10.0.0.2/32")
    assert tree("egress", {A: "E"}) == {EGRESS: Chain(EGRESS, (Rule(Goto("E"), source=own, destination=own, not_destination=True),))}
    assert tree("ingress", {B: "I"}) == {INGRESS: Chain(INGRESS, (Rule(Goto("I"), source=other, not_source=True, destination=other),))}


def test_two_leaves_of_a_half_are_rules_and_no_chain() -> None:
    """A chain of their own would cost their packets, and all behind them, another step."""
    leaves = {**dict.fromkeys((A, B), "I"), **{parse_address(f"10.128.0.{number}"): "I" for number in range(FEW)}}
    (root,) = tree("ingress", leaves).values()
    assert [rule.destination for rule in root.rules] == [Network(address, 32) for address in leaves]


def test_no_leaves_are_no_tree() -> None:
    """Where there are ranges it is one chain."""
    assert tree("egress", {}) == {}
    assert tree("ingress", {}, (net("10.0.0.0/8"),)) == {INGRESS: Chain(INGRESS, (Rule(Goto(DENY), destination=net("10.0.0.0/8")),))}


def test_beside_unknown_addresses_known_ones_return() -> None:
    """A free pod has a leaf then, and the hairpin of an isolated one comes back before the range is denied."""
    one, two = net("10.0.0.1/32"), net("10.0.0.2/32")
    assert tree("ingress", {B: None, A: "I"}, (net("10.0.0.0/8"),))[INGRESS].rules == (
        Rule(Goto("I"), source=one, not_source=True, destination=one),
        Rule(RETURN, destination=one),
        Rule(RETURN, destination=two),
        Rule(Goto(DENY), destination=net("10.0.0.0/8")),
    )


RANGES = ("10.0.0.0/8", "10.0.3.0/24", "128.0.0.0/1")
leaves = st.sampled_from((V4, V6, APART, V4 + APART)).flatmap(
    lambda addresses: st.dictionaries(st.sampled_from(addresses), st.sampled_from(("NETPOL-X", "NETPOL-Y")), max_size=len(addresses))
)


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(leaves=leaves)
def test_every_address_comes_to_its_leaf(direction: Direction, leaves: dict[Address, str]) -> None:
    """And to itself from nowhere else; an address without a leaf comes back to NETPOL."""
    chains = tree(direction, leaves)
    for address in {*V4, *V6, *APART}:
        if not leaves or len(address) == len(next(iter(leaves))):
            assert ask(chains, direction, address) == leaves.get(address, "returned")
            assert ask(chains, direction, address, address) == "returned"


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(
    leaves=leaves, free=st.sets(st.sampled_from(V4 + APART)), unknown=st.sets(st.sampled_from(("10.0.0.0/8", "10.0.3.0/24", "128.0.0.0/1")))
)
def test_unknown_addresses_are_denied_in_their_ranges_only(
    direction: Direction, leaves: dict[Address, str], free: set[Address], unknown: set[str]
) -> None:
    """Wherever in the tree the packet falls off; known pods, isolated or free, and the hairpin do not."""
    if not unknown or any(len(address) == 16 for address in leaves):
        return
    ranges = tuple(sorted(map(net, unknown)))
    chains = tree(direction, {**dict.fromkeys(free), **leaves}, ranges)
    for address in {*V4, *APART}:
        denied = DENY if address not in free and any(address in one for one in ranges) else "returned"
        assert ask(chains, direction, address) == leaves.get(address, denied), format_address(address)
        if address in leaves or address in free:
            assert ask(chains, direction, address, address) == "returned"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("count", "depth", "longest"), [(4, 1, 4), (16, 2, 8), (64, 3, 12), (256, 4, 16), (2048, 6, 22)])
def test_the_tree_is_flat(direction: Direction, count: int, depth: int, longest: int) -> None:
    """Of so many neighbouring addresses each is found within `depth` chains, and past two rules a bit at most."""
    addresses = [(0x0A000000 + i).to_bytes(4, "big") for i in range(count)]
    chains = tree(direction, dict.fromkeys(addresses, "NETPOL-X"))

    def most(name: str) -> int:
        rules = list(enumerate(chains[name].rules, 1))
        inner = [place + most(r.target.chain) for place, r in rules if isinstance(r.target, Goto) and r.target.chain in chains]
        return max([len(rules), *inner])

    assert most(ROOTS[direction]) == longest

    def deepest(name: str) -> int:
        inner = [rule.target.chain for rule in chains[name].rules if isinstance(rule.target, Goto)]
        return 1 + max((deepest(inner_name) for inner_name in inner if inner_name in chains), default=0)

    assert deepest(ROOTS[direction]) == depth


def test_as_many_addresses_as_a_chain_may_test_are_one_chain() -> None:
    """However they lie: three of them close together are no branch."""
    addresses = [*V4[:3], parse_address("200.0.0.1")]
    assert len(addresses) == FEW
    assert tree("egress", dict.fromkeys(addresses, "NETPOL-X")).keys() == {EGRESS}


@given(leaves)
def test_names(leaves: dict[Address, str]) -> None:
    """They fit and say the direction; each chain is referred to once, is worth it, and is named by its content, not the order of leaves."""
    for direction in DIRECTIONS:
        chains = tree(direction, leaves)
        root, prefix = ROOTS[direction], "NETPOL-TE-" if direction == "egress" else "NETPOL-TI-"
        assert all(len(name) <= 28 and name.startswith((prefix, root)) and chain.name == name for name, chain in chains.items())
        assert all(len(chain.rules) > 1 for name, chain in chains.items() if name != root)
        gotos = [rule.target.chain for chain in chains.values() for rule in chain.rules if isinstance(rule.target, Goto)]
        assert sorted(name for name in gotos if name in chains) == sorted(chains.keys() - {root})
        assert tree(direction, dict(reversed(leaves.items()))) == chains


def test_a_change_of_one_leaf_keeps_the_other_branches() -> None:
    """Chains are named by their content: only those on the way to the leaf have new names."""
    addresses = [(0x0A000000 + i).to_bytes(4, "big") for i in range(256)]
    before = tree("egress", dict.fromkeys(addresses, "NETPOL-X"))
    after = tree("egress", {**dict.fromkeys(addresses, "NETPOL-X"), addresses[77]: "NETPOL-Y"})
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 2
    assert ask(after, "egress", addresses[77]) == "NETPOL-Y"


def test_the_two_directions_share_no_chain() -> None:
    """They look at other addresses of the packet."""
    addresses = dict.fromkeys(V4, "NETPOL-X")
    assert not tree("egress", addresses).keys() & tree("ingress", addresses).keys()


@pytest.mark.parametrize(
    ("leaves", "unknown", "expected"),
    [
        pytest.param((), (), None, id="nothing"),
        pytest.param(("10.0.0.1",), (), "10.0.0.1/32", id="one pod"),
        pytest.param(("10.0.0.1", "10.0.0.6", "10.0.0.2"), (), "10.0.0.0/29", id="some pods, in no order"),
        pytest.param(("10.0.0.1", "10.0.0.2"), ("10.0.0.0/24",), "10.0.0.0/24", id="a range around them"),
        pytest.param(("10.0.0.1", "10.0.0.2"), ("10.0.1.0/24",), "10.0.0.0/23", id="a range beside them"),
        pytest.param((), ("10.0.4.0/24", "10.0.0.0/24"), "10.0.0.0/21", id="ranges alone"),
        pytest.param((), ("0.0.0.0/0",), "0.0.0.0/0", id="everything"),
        pytest.param(("1.0.0.1", "200.0.0.1"), (), "0.0.0.0/0", id="from everywhere"),
        pytest.param(("fd00::1", "fd00::ff"), (), "fd00::/120", id="IPv6"),
    ],
)
def test_what_the_trees_decide_about_lies_in_one_prefix(leaves: tuple[str, ...], unknown: tuple[str, ...], expected: str | None) -> None:
    """The longest that holds all of it."""
    found = scope([parse_address(leaf) for leaf in leaves], tuple(map(parse_network, unknown)))
    assert found == (parse_network(expected) if expected else None)


@pytest.mark.parametrize(
    ("numbers", "tested"),
    [
        pytest.param(
            [0, *range(0x80000001, 0x80000006)],
            ["0.0.0.0/32", "128.0.0.1/32", "128.0.0.2/31", "128.0.0.4/32", "128.0.0.5/32"],
            id="the first one is far from the others",
        ),
        pytest.param([*range(1, 6), 0x80000000], ["0.0.0.0/30", "0.0.0.4/31", "128.0.0.0/32"], id="the last one is far from the others"),
    ],
)
def test_branches_part_where_the_addresses_do(numbers: list[int], tested: list[str]) -> None:
    """Both halves of the lower half, then the upper one: the bits that all of them share are not looked at."""
    addresses = [number.to_bytes(4, "big") for number in numbers]
    rules = tree("ingress", dict.fromkeys(addresses, "I"))[INGRESS].rules
    assert [rule.destination for rule in rules] == [net(text) for text in tested]


@pytest.mark.parametrize(("direction", "begins"), [("egress", "NETPOL-TE-"), ("ingress", "NETPOL-TI-")])
def test_branches_are_named_by_their_side(direction: Direction, begins: str) -> None:
    """Small ones and large ones."""
    addresses = [number.to_bytes(4, "big") for number in range(100)]
    names = set(tree(direction, dict.fromkeys(addresses, "X"))) - {ROOTS[direction]}
    assert names
    assert all(name.startswith(begins) for name in names)


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(states=st.lists(st.tuples(leaves, st.sampled_from(((), ("10.0.0.0/8",), ("10.0.3.0/24",)))), min_size=2, max_size=5))
def test_a_tree_that_changes_is_as_a_new_one(direction: Direction, states: list[tuple[dict[Address, str], tuple[str, ...]]]) -> None:
    """Whatever it was before, and whatever ranges it had."""
    kept = Tree(direction)
    for found, unknown in states:
        ranges = () if any(len(address) == 16 for address in found) else tuple(map(net, unknown))
        assert kept.chains(found, ranges) == tree(direction, found, ranges)


@pytest.mark.parametrize("change", ["changes", "goes", "comes"])
def test_what_did_not_change_is_not_made_again(change: str) -> None:
    """Of 1,024 neighbours one after another differs: the chains on its own way down are others, all the rest are the very same values."""
    leaves: dict[Address, str] = {(0x0A000000 + i).to_bytes(4, "big"): "NETPOL-X" for i in range(0, 2048, 2)}
    kept = Tree("ingress")
    before = kept.chains(leaves)
    for number in (700, 10, 2000, 702):
        address = (0x0A000000 + number + (change == "comes")).to_bytes(4, "big")
        leaves = {**leaves, address: "NETPOL-Y"}
        if change == "goes":
            del leaves[address]
        after = kept.chains(leaves)
        assert after == tree("ingress", leaves)
        made = [name for name, chain in after.items() if chain is not before.get(name)]
        assert INGRESS in made
        assert len(made) <= 6 < len(after) // 20
        before = after
