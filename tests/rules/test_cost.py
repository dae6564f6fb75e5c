"""How many rules the first packet of a flow is compared with: counted, whatever the machine."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from netpol.model import EVERYTHING, Address, Namespace, Pod, Policy, parse_address
from netpol.policy.cluster import Cluster
from netpol.rules.compile import Settings, compiled
from netpol.rules.ruleset import ROOT, Chain, Connmark, Conntrack, Goto, Jump, Rule

COUNT = 2000
ELSEWHERE = parse_address("192.0.2.1")


def address(number: int) -> Address:
    return (0x0AF50001 + number).to_bytes(4, "big")


def chains(isolated: list[int], egress: bool = True) -> Mapping[str, Chain]:
    """Those of a node with so many pods that one policy isolates, both ways or for ingress only, and allows nothing."""
    cluster = Cluster()
    cluster.put(Namespace("ns"))
    for number in isolated:
        cluster.put(Pod("ns", f"pod-{number}", (), "node", (address(number),)))
    cluster.put(Policy("ns", "all", EVERYTHING, (), () if egress else None))
    return compiled(cluster, "node", Settings(unknown_pods="allow")).chains[4]


def applies(rule: Rule, source: Address, destination: Address) -> bool:
    """To a new flow's packet, of the rules that one of a free pod can meet: their match is one of its connection's state."""
    return (
        all(isinstance(match, Conntrack) and match.invert for match in rule.matches)
        and (rule.source is None or source in rule.source)
        and (rule.destination is None or destination in rule.destination)
    )


def way(found: Mapping[str, Chain], source: Address, destination: Address) -> tuple[int, int, int]:
    """Rules compared with, those of them that have a match, and chains gone to: for a packet that nothing denies."""
    compared = matches = gone = 0
    left = [iter(found[ROOT].rules)]
    while left:
        rule = next(left[-1], None)
        if rule is None:
            left.pop()
            continue
        compared, matches = compared + 1, matches + len(rule.matches)
        if applies(rule, source, destination):
            assert isinstance(rule.target, Jump | Goto)
            gone += 1
            if isinstance(rule.target, Goto):
                left.pop()
            left.append(iter(found[rule.target.chain].rules))
    return compared, matches, gone


@pytest.mark.parametrize("of", [2001, 2500, 4000, 60000])
def test_a_free_pod_among_isolated_ones(of: int) -> None:
    """Of 500 places among 2,000 and between: one match, two rules of prefixes, and two rules a bit of the tree; each way.

    Where nobody is isolated for egress there is one rule of prefixes."""
    numbers = list(range(of))
    random.Random(of).shuffle(numbers)
    isolated, free = numbers[:COUNT], numbers[COUNT : COUNT + 500]
    both, ingress = chains(isolated), chains(isolated, egress=False)
    for found, source, destination, prefixes in ((both, ELSEWHERE, None, 2), (both, None, ELSEWHERE, 2), (ingress, ELSEWHERE, None, 1)):
        ways = [way(found, source or address(number), destination or address(number)) for number in free]
        assert {matches for _, matches, _ in ways} == {1}
        assert max(compared for compared, _, _ in ways) <= 1 + prefixes + 22
        assert max(gone for _, _, gone in ways) <= 2 + 5


def test_a_packet_from_and_to_elsewhere() -> None:
    """It meets the gate and a prefix for each side, and goes no further."""
    assert way(chains(list(range(COUNT))), ELSEWHERE, parse_address("192.0.2.2")) == (3, 1, 1)
    assert way(chains(list(range(COUNT)), egress=False), ELSEWHERE, parse_address("192.0.2.2")) == (2, 1, 1)


def test_a_packet_of_a_known_connection() -> None:
    """Two matches, in one chain: whatever the policies, it meets nothing else."""
    first, second = chains(list(range(COUNT)))[ROOT].rules
    assert first.matches == (Conntrack(("RELATED", "ESTABLISHED"), invert=True),)
    assert [type(match) for match in second.matches] == [Connmark]
