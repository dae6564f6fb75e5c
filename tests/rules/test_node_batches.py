"""The batches of a node's state: they hold what was touched and no more, and what concerns nobody here computes nothing again."""

from __future__ import annotations

import pytest
from msgspec import structs

from netpol.model import FAMILIES, TCP, Address, ContainerPort, NamedPort, Object, Pod, Policy, parse_address
from netpol.rules.compile import Settings
from netpol.rules.ruleset import EGRESS, INGRESS, GrowSet, ShrinkSet, TableName
from netpol.rules.sets import Set, port_member
from tests.rules.watched import THERE, A, B, C, D, Watched, app, class_chains, own, peers, pod, policy, port

SQL = peers(own("db"), ports=(NamedPort(TCP, "sql"),))


def deny(name: str, target: str) -> Policy:
    return policy(name, target)


@pytest.mark.parametrize(
    ("before", "events"),
    [
        pytest.param((), (deny("q", "nobody"),), id="a policy for nobody here"),
        pytest.param((deny("q", "nobody"),), (policy("q", "nobody", peers()),), id="such a policy changes"),
        pytest.param((), (pod("web2", B, node=THERE),), id="an address goes from one remote pod to another"),
        pytest.param((), (pod("web1", B, node=THERE, label="x"),), id="a remote pod's labels change"),
        pytest.param((), (pod("api", C, node=THERE),), id="a remote pod comes"),
    ],
)
def test_what_changes_no_chain_computes_none(before: tuple[Object, ...], events: tuple[Object, ...]) -> None:
    """The chains are the very same object: nothing of this node was looked at again."""
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))), pod("web1", B, node=THERE), *before)
    state.steps()
    chains = state.state.pending()[0].chains
    state.put(*events)
    assert state.state.pending()[0].chains is chains


def test_pods_that_a_policy_makes_isolated_and_free() -> None:
    """Who is isolated is told anew where somebody begins or ceases to be; the others stay, and those of another class."""
    policies = deny("p", "db"), policy("q", "api", peers(own("web")), egress=())
    state = Watched(pod("db", A), pod("api", B), *policies)

    def isolated() -> frozenset[Address]:
        now = state.state.pending()[2]
        assert now == state.state.judged
        state.steps()
        return now

    assert isolated() == {A, B}
    state.drop(Policy, "q")
    assert isolated() == {A}
    state.put(policies[1])
    assert isolated() == {A, B}
    state.put(policy("q", "api", egress=()))
    assert isolated() == {A, B}


def test_the_only_policy_that_changes_for_nobody_computes_no_chain() -> None:
    """Neither the first nor the last: it was one and is one."""
    state = Watched(pod("db", A), deny("q", "nobody"))
    state.steps()
    chains = state.state.pending()[0].chains
    state.put(policy("q", "nobody", peers()))
    assert state.state.pending()[0].chains is chains


def test_a_change_of_no_member_is_in_no_batch() -> None:
    """A pod that stays in its sets, by address and by port, is not even compared."""
    sql = (ContainerPort("sql", TCP, 3306),)
    named, plain = Policy("ns", "q", app("web"), None, (SQL,)), Policy("ns", "p", app("api"), None, (peers(own("db")),))
    state = Watched(pod("web", A), pod("api", C), named, plain, pod("db", B, node=THERE, ports=sql))
    state.steps()
    changed = pod("db", B, node=THERE, ports=sql)
    state.put(structs.replace(changed, labels=(*changed.labels, ("extra", ""))))
    wanted, found, _ = state.state.pending()
    assert (wanted.sets, found.sets) == ({}, {})


def test_a_batch_has_members_with_ports_of_both_families() -> None:
    """What is looked up again is the address that a member begins with, 4 bytes of it or 16."""
    sql = (ContainerPort("sql", TCP, 3306),)
    mapped = {4: D, 6: parse_address("fd00::4")}
    state = Watched(pod("web", A, parse_address("fd00::1")), Policy("ns", "p", app("web"), None, (SQL,)))
    state.steps()
    state.put(pod("db", *mapped.values(), node=THERE, ports=sql))
    grown = {step.family: step.members for step in state.steps() if isinstance(step, GrowSet)}
    assert grown == {family: {port_member(address, TCP, 3306)} for family, address in mapped.items()}


def test_one_event_touches_sets_of_addresses_and_sets_of_ports() -> None:
    """A pod that comes with ports is a member of both."""
    state = Watched(pod("web", A), Policy("ns", "p", app("web"), None, (SQL, peers(own("api"), ports=(port(80),)))))
    state.steps()
    state.put(pod("api", C, node=THERE, ports=(ContainerPort("x", TCP, 1),)))
    assert [step.members for step in state.steps() if isinstance(step, GrowSet)] == [frozenset({C})]
    state.put(pod("db", D, node=THERE, ports=(ContainerPort("sql", TCP, 3306),)))
    assert [step.kind for step in state.steps() if isinstance(step, GrowSet)] == ["hash:ip,port"]


@pytest.mark.parametrize("table", ["mangle", "filter"])
def test_what_a_batch_holds(table: TableName) -> None:
    """Of a live set the members that were touched, of a leaving one its name, of a new one all; both sides of one table and hooked."""
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))), pod("web1", B, node=THERE), settings=Settings(table=table))
    empty = state.state.pending()[1]
    assert (empty.chains, empty.sets, empty.hooked, empty.table) == ({}, {}, frozenset(), table)
    state.steps()
    (live,) = (one for one in state.wanted().sets.values() if one.family == 4)
    state.put(pod("web2", C, node=THERE))
    state.drop(Pod, "web1")
    wanted, found, isolated = state.state.pending()
    assert (wanted.table, found.table, isolated) == (table, table, frozenset({A}))
    assert wanted.hooked == found.hooked == frozenset(FAMILIES)
    assert wanted.sets == {live.name: Set(live.name, "hash:ip", 4, frozenset({C}))}
    assert found.sets == {live.name: Set(live.name, "hash:ip", 4, frozenset({B}))}
    state.steps()
    leaving = state.wanted().sets
    state.put(policy("p", "db", peers(own("api"))), pod("api", D, node=THERE))
    wanted, found, _ = state.state.pending()
    assert found.sets == {name: one.with_members(frozenset()) for name, one in leaving.items()}
    assert [sorted(one.members) for one in wanted.sets.values() if one.family == 4] == [[D]]


def test_two_sets_with_one_query_each_follow_it() -> None:
    """When one of them goes, the other one still hears of its members: of addresses, and of ports."""
    others = tuple(own(name) for name in ("a", "b", "c"))
    alone, merged = policy("p", "db", peers(own("web"))), policy("q", "api", peers(own("web"), *others))
    state = Watched(pod("db", A), pod("api", B), alone, merged)
    state.steps()
    state.drop(Policy, "p")
    state.steps()
    state.put(pod("web1", C, node=THERE))
    assert [step.members for step in state.steps() if isinstance(step, GrowSet)] == [frozenset({C})]


def test_a_set_that_went_is_forgotten() -> None:
    """Nothing is kept for it: neither by its queries nor by those with named ports; while another uses the query, that one's place is."""
    named, plain = Policy("ns", "q", app("web"), None, (SQL,)), Policy("ns", "p", app("api"), None, (peers(own("db")),))
    state = Watched(pod("web", A), pod("api", B), named, plain)
    state.steps()
    assert [len(held) for held in state.state._sets._users.values()] == [2]
    assert [len(held) for held in state.state._sets._port_users.values()] == [1]
    state.drop(Policy, "q")
    state.steps()
    assert [len(held) for held in state.state._sets._users.values()] == [1]
    assert state.state._sets._port_users == {}
    state.drop(Policy, "p")
    state.steps()
    assert state.state._sets._users == {}


def test_what_stays_is_not_made_again() -> None:
    """A new pod of another class leaves the chain of the first class, and the dispatch of the other direction, the very objects."""
    state = Watched(pod("web", A), Policy("ns", "p", app("web"), None, (peers(own("db")),)), policy("q", "api"))
    before = state.wanted().chains[4]
    (name,) = class_chains(state.wanted())
    (isolation,) = state.state._isolations.values()
    (ways,) = state.state._ways.values()
    state.put(pod("api", B))
    after = state.wanted().chains[4]
    assert any(found is isolation for found in state.state._isolations.values())
    assert any(found is ways for found in state.state._ways.values())
    assert after[name] is before[name]
    assert after[EGRESS] is before[EGRESS]
    assert INGRESS not in before
    assert after[INGRESS].rules


def test_another_pod_of_a_class_takes_its_chain() -> None:
    """Its chain is the very object: one that is used is computed once, also when another class is forgotten meanwhile."""
    state = Watched(pod("db1", A), deny("p", "db"), policy("q", "api", peers(own("web"))))
    before = state.wanted().chains[4]
    (name,) = class_chains(state.wanted())
    state.put(pod("db2", B))
    assert state.wanted().chains[4][name] is before[name]
    state.put(pod("api", C))
    assert len(class_chains(state.wanted())) == 2
    state.drop(Pod, "api", "db2")
    state.steps()
    state.put(pod("db2", B))
    assert state.wanted().chains[4][name] is before[name]


def test_a_class_of_egress_does_not_look_at_the_ports_of_its_pods() -> None:
    """Its named ports are those of the destination: pods that declare different numbers are one class."""
    ports = [(ContainerPort("sql", TCP, number),) for number in (1, 2)]
    both = Policy("ns", "p", app("db"), (SQL,), (SQL,))
    state = Watched(pod("db1", A, ports=ports[0]), pod("db2", B, ports=ports[1]), both)
    state.steps()
    assert sorted(key.direction for key in state.state._classes) == ["egress", "ingress", "ingress"]


@pytest.mark.parametrize(("go", "stay"), [(1024, 1000), (1024, 1024), (1023, 0), (3000, 10)])
def test_a_set_that_most_members_leave(go: int, stay: int) -> None:
    """All of it is in the batch, before and after, where many go and fewer stay: so the step can say what is left. Who comes meanwhile
    comes as ever."""
    pods = [pod(f"web{number}", (0x0A800000 + number).to_bytes(4, "big"), node=THERE) for number in range(go + stay)]
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))), *pods)
    state.steps()
    for one in pods[:go]:
        state.drop(Pod, one.name)
    state.put(pod("web", B, node=THERE))
    grow, shrink = state.steps()
    assert isinstance(grow, GrowSet)
    assert isinstance(shrink, ShrinkSet)
    assert grow.members == {B}
    assert len(shrink.members) == go
    left = {B, *(one.addresses[0] for one in pods[go:])}
    assert (shrink.left.members if shrink.left is not None else None) == (left if go >= 1024 and len(left) < go else None)
