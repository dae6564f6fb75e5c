"""How many rules the first packet of a flow is compared with: counted, whatever the machine."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from netpol.model import EVERYTHING, Address, Namespace, Pod, Policy, parse_address
from netpol.policy.cluster import Cluster
from netpol.rules.compile import Settings, compiled
from netpol.rules.compile.skeleton import FRONT_FROM
from netpol.rules.ruleset import ROOT, Connmark, Conntrack, Goto, Jump, Match, Rule, Ruleset, SetMatch

COUNT = 2000
ELSEWHERE = parse_address("192.0.2.1")


def address(number: int) -> Address:
    return (0x0AF50001 + number).to_bytes(4, "big")


class Way(NamedTuple):
    """What a packet meets: rules compared with, matches asked (of rules whose addresses fit), chains gone to; and the last of them."""

    compared: int
    matches: int
    gone: int
    end: str


def isolating(numbers: list[int], egress: bool = True) -> Ruleset:
    """A node with these pods, that one policy isolates, both ways or for ingress only, and allows nothing."""
    cluster = Cluster()
    cluster.put(Namespace("ns"))
    for number in numbers:
        cluster.put(Pod("ns", f"pod-{number}", (), "node", (address(number),)))
    cluster.put(Policy("ns", "all", EVERYTHING, (), () if egress else None))
    return compiled(cluster, "node", Settings(unknown_pods="allow"))


def way(ruleset: Ruleset, source: Address, destination: Address) -> Way:
    """Of a new flow's packet, until it falls off a chain or comes to that of a class."""
    chains = ruleset.chains[4]
    compared = matches = gone = 0
    name, left = ROOT, [iter(chains[ROOT].rules)]
    while left and not name.startswith(("NETPOL-I-", "NETPOL-E-")):
        rule = next(left[-1], None)
        if rule is None:
            left.pop()
            continue
        compared += 1
        if not fits(rule, source, destination):
            continue
        matches += len(rule.matches)  # of these rules none has two
        if all(holds(match, ruleset, source, destination) for match in rule.matches):
            assert isinstance(rule.target, Jump | Goto)
            gone += 1
            if isinstance(rule.target, Goto):
                left.pop()
            name = rule.target.chain
            left.append(iter(chains[name].rules))
    return Way(compared, matches, gone, name)


def fits(rule: Rule, source: Address, destination: Address) -> bool:
    """The addresses that a rule has in its head; these the kernel compares before it asks any match."""
    return (rule.source is None or (source in rule.source) is not rule.not_source) and (
        rule.destination is None or (destination in rule.destination) is not rule.not_destination
    )


def holds(match: Match, ruleset: Ruleset, source: Address, destination: Address) -> bool:
    if isinstance(match, SetMatch):
        return {"src": source, "dst": destination}[match.directions[0]] in ruleset.sets[match.name].members
    return isinstance(match, Conntrack) and match.invert


def some(of: int, count: int) -> tuple[list[int], list[int]]:
    """(so many numbers of pods below `of`, the others): the first and the last are among the pods."""
    numbers = list(range(1, of - 1))
    random.Random(of).shuffle(numbers)
    return [0, of - 1, *numbers[: count - 2]], numbers[count - 2 :]


@pytest.mark.parametrize("of", [2001, 2500, 4000, 60000])
def test_a_free_pod_among_many_isolated_ones(of: int) -> None:
    """One match of the connection, one prefix for each side that has isolated pods, and one look into a set: however many those are."""
    isolated, free = some(of, COUNT)
    both, ingress = isolating(isolated), isolating(isolated, egress=False)
    assert {way(both, address(number), ELSEWHERE)[:3] for number in free} == {(3, 2, 1)}
    assert {way(both, ELSEWHERE, address(number))[:3] for number in free} == {(3, 2, 1)}
    assert {way(ingress, ELSEWHERE, address(number))[:3] for number in free} == {(2, 2, 1)}
    assert {way(both, address(free[0]), address(number))[:3] for number in free} == {(3, 3, 1)}


@pytest.mark.parametrize("of", [FRONT_FROM, 2 * FRONT_FROM, 60000])
def test_a_free_pod_among_few_isolated_ones(of: int) -> None:
    """One match, a prefix, and two rules a bit of the tree: no look into a set."""
    isolated, free = some(of, FRONT_FROM - 1)
    ways = [way(isolating(isolated, egress=False), ELSEWHERE, address(number)) for number in free[:500]]
    assert {found.matches for found in ways} == {1}
    assert max(found.compared for found in ways) <= 2 + 12
    assert max(found.gone for found in ways) <= 2 + 3


@pytest.mark.parametrize("of", [2000, 4000, 60000])
def test_an_isolated_pod_among_many(of: int) -> None:
    """The set is a match more, and nothing else: two rules a bit of the tree at most."""
    isolated, _ = some(of, COUNT)
    ruleset = isolating(isolated, egress=False)
    ways = [way(ruleset, ELSEWHERE, address(number)) for number in isolated]
    assert {found.matches for found in ways} == {2}
    assert {found.end in ruleset.chains[4] and found.end.startswith("NETPOL-I-") for found in ways} == {True}
    assert max(found.compared for found in ways) <= 2 + 22
    assert max(found.gone for found in ways) <= 2 + 6 + 1


def test_a_packet_from_and_to_elsewhere() -> None:
    """It meets the gate and a prefix for each side, and goes no further: no set is asked."""
    assert way(isolating(list(range(COUNT))), ELSEWHERE, parse_address("192.0.2.2"))[:3] == (3, 1, 1)
    assert way(isolating(list(range(COUNT)), egress=False), ELSEWHERE, parse_address("192.0.2.2"))[:3] == (2, 1, 1)


def test_a_packet_of_a_known_connection() -> None:
    """Two matches, in one chain: whatever the policies, it meets nothing else."""
    first, second = isolating(list(range(COUNT))).chains[4][ROOT].rules
    assert first.matches == (Conntrack(("RELATED", "ESTABLISHED"), invert=True),)
    assert [type(match) for match in second.matches] == [Connmark]
