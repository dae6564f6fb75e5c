"""What a policy costs to decide grows with what is written in it, and not with products of that: one that an API server takes is at most
1.5 MB, and must not hold up everybody's events. Counted, not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from netpol.model import (
    EVERYONE,
    EVERYTHING,
    TCP,
    ContainerPort,
    IPBlock,
    NamedPort,
    Namespace,
    NumberedPort,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    network,
    parse_address,
    parse_network,
)
from netpol.policy.cluster import Cluster
from netpol.policy.index import QueryIndex
from netpol.policy.selectors import holds
from netpol.rules.compile import NodeState, classes, prefixes, selections
from netpol.rules.compile.ranges import merge_ranges, subtract_ranges

MANY = 500
HERE = parse_address("10.0.0.1")


class Counted:
    """How often a function of a module, or a method of a class, is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls, real = 0, getattr(owner, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)


def state(*policies: Policy, pods: int = 0, ports: Callable[[int], tuple[ContainerPort, ...]] = lambda number: ()) -> NodeState:
    """A node with one pod that policies of its namespace select, beside so many of another node."""
    cluster = Cluster()
    objects: tuple[Namespace | Pod | Policy, ...] = (Namespace("x"), Pod("x", "here", (), "n", (HERE,)), *policies)
    for item in objects:
        cluster.put(item)
    for number in range(pods):
        cluster.put(Pod("x", f"there-{number}", (), "m", (bytes((10, 1, number >> 8, number & 255)),), ports=ports(number)))
    return NodeState(cluster, "n")


def blocks(count: int) -> tuple[IPBlock, ...]:
    """Far apart."""
    draw = Random(1)
    return tuple(IPBlock(network(bytes((0x20,)) + draw.randbytes(15), 128)) for _ in range(count))


def numbered(count: int) -> tuple[NumberedPort, ...]:
    return tuple(NumberedPort(TCP, 2 * number + 1, 2 * number + 1) for number in range(count))


def by_key(number: int) -> Query:
    return Query("x", EVERYTHING, Selector((Requirement(f"key-{number}", "DoesNotExist"),)))


def test_ports_are_put_together_once_for_all_peers_that_have_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of many peers and many ports; and one for everyone, whose ports they need not be told."""
    looks = Counted(monkeypatch, classes, "merge_ranges")
    rules = (
        PolicyRule(tuple(map(by_key, range(MANY))), numbered(MANY)),
        PolicyRule(ports=(NumberedPort(TCP, 1, 9),)),
    )
    found = classes.services("ingress", 4, [Policy("x", "p", EVERYTHING, rules, None)], {})
    assert {len(peers.queries) for peers in found.values()} == {0, MANY}
    assert looks.calls <= 10


class Walked(tuple[Any, ...]):
    """How often somebody looked at an item of it, whoever goes through it too."""

    def __getitem__(self, place: Any) -> Any:
        self.looks = getattr(self, "looks", 0) + 1
        return super().__getitem__(place)

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))

    def __contains__(self, item: object) -> bool:
        return any(one == item for one in self)


def test_ranges_are_taken_from_ranges_in_one_walk() -> None:
    """Neither list is begun anew for each of the other; of many, few are looked at for one."""
    ranges, less = tuple((4 * i, 4 * i + 2) for i in range(MANY)), Walked((4 * i + 1, 4 * i + 1) for i in range(MANY))
    assert len(subtract_ranges(ranges, less)) == 2 * MANY
    assert less.looks <= 20 * MANY
    less = Walked(less)
    assert subtract_ranges(((1500, 1502),), less) == ((1500, 1500), (1502, 1502))
    assert less.looks <= 20


def test_what_everyone_may_use_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many peers have ports of their own besides, and each is looked for among those."""
    seen = list[int]()

    def merged(ranges: Any) -> Any:
        made = list(ranges)
        seen.append(len(made))
        return merge_ranges(made)

    monkeypatch.setattr(classes, "merge_ranges", merged)
    own = (PolicyRule((by_key(number),), (NumberedPort(TCP, 2 * number + 2, 2 * number + 2),)) for number in range(MANY))
    found = classes.services("ingress", 4, [Policy("x", "p", EVERYTHING, (PolicyRule(ports=numbered(MANY)), *own), None)], {})
    assert len(found) == MANY + 1
    assert sum(seen) <= 3 * MANY


def test_sets_that_come_and_go_together_are_looked_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule with a port of its own has a set of its own: thousands of them are begun, and ended, at once."""
    changes, counts = Counted(monkeypatch, QueryIndex, "_assign"), Counted(monkeypatch, QueryIndex, "_count")
    made = state()
    rules = tuple(PolicyRule((by_key(number),), (NumberedPort(TCP, number + 1, number + 1),)) for number in range(MANY))
    before = changes.calls
    made.follow(made.cluster.put(Policy("x", "p", EVERYTHING, rules, None)))
    assert len(made.wanted().sets) == MANY
    made.applied()
    made.follow(made.cluster.drop(Policy, "p", "x"))
    assert made.wanted().sets == {}
    made.applied()
    assert changes.calls - before <= 10
    assert counts.calls <= 10
    assert by_key(1) not in made.cluster.index._uses


def test_an_address_is_looked_for_among_many_prefixes() -> None:
    """By what it begins with, and not one after the other."""
    many = Walked(prefixes.prefixes(prefixes.union(blocks(MANY), 6), 6))
    for net, _ in many:
        many.looks = 0
        assert selections.covers(many, net.address)
        assert not selections.covers(many, net.address[:-1] + bytes((net.address[-1] ^ 1,)))
        assert many.looks <= 200


def test_a_value_is_looked_for_among_many() -> None:
    """That a selector asks for, or will not have."""
    values = Walked(sorted(f"v{number:04}" for number in range(MANY)))
    for operator, value, expected in (("In", "v0007", True), ("In", "v", False), ("NotIn", "v0007", False), ("NotIn", "w", True)):
        values.looks = 0
        assert holds(Requirement("k", operator, values), (("k", value),)) is expected  # type: ignore[arg-type]  # one of the two
        assert values.looks <= 20


@pytest.mark.parametrize("holes", [False, True], ids=["blocks", "excepts"])
def test_prefixes_cost_what_their_blocks_are_many(monkeypatch: pytest.MonkeyPatch, holes: bool) -> None:
    """Not a step for each of the 128 bits that lead to one, whether they are allowed or left out."""
    steps = Counted(monkeypatch, prefixes, "_summarise")
    some = blocks(MANY)
    if holes:
        some = (IPBlock(parse_network("::/0"), tuple(block.cidr for block in some)),)
    assert len(prefixes.prefixes(prefixes.union(some, 6), 6)) >= MANY
    assert steps.calls <= 8 * MANY


def test_blocks_are_put_together_once_for_all_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name of a port is a service of its own, with the same blocks behind it."""
    times = Counted(monkeypatch, classes, "union")
    names = tuple(NamedPort(TCP, f"p{number}") for number in range(50))
    made = classes.class_chain("egress", 6, [Policy("x", "p", EVERYTHING, None, (PolicyRule(blocks(MANY), names),))], {})
    assert len(made.selections) == 50
    assert times.calls == 1


def test_only_pods_that_declare_a_port_are_looked_for_among_the_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many does, of the many names that a policy asks for."""
    looks = Counted(monkeypatch, selections, "covers")
    names = tuple(NamedPort(TCP, f"p{number}") for number in range(20))
    peers = tuple(IPBlock(network(bytes((10, 1, number, 0)), 24)) for number in range(4))
    policy = Policy("x", "p", EVERYTHING, None, (PolicyRule(peers, names),))
    wanted = state(policy, pods=100, ports=lambda number: (ContainerPort("p7", TCP, 80),) if number == 3 else ()).wanted()
    assert sorted(len(found.members) for found in wanted.sets.values() if found.kind == "hash:ip,port") == [0] * 19 + [1]
    assert looks.calls == 1


def test_queries_that_come_and_go_together_change_a_profile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are: of each combination of them there would be a set of that many."""
    changes, counts = Counted(monkeypatch, QueryIndex, "_assign"), Counted(monkeypatch, QueryIndex, "_count")
    policy = Policy("x", "p", EVERYTHING, (PolicyRule(tuple(map(by_key, range(MANY)))),), None)
    made = state(policy)
    before = changes.calls
    members = [found.members for found in made.wanted().sets.values() if HERE in found.members]
    assert members == [frozenset((HERE,))]
    assert changes.calls - before <= 3
    assert counts.calls <= 3  # the keys that they ask for
    assert not made.cluster.queries(made.cluster.pods["x"]["here"]).isdisjoint(map(by_key, range(MANY)))
    before = changes.calls
    made.close()
    assert changes.calls - before <= 3
    assert made.cluster.index.is_empty() is False  # the pods and the namespace are there
    assert EVERYONE not in made.cluster.index._uses
