"""What a node's wanted state shares: sets by what they select, chains by class, rules by ports and peers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from msgspec import structs

from netpol.model import (
    EVERYTHING,
    TCP,
    UDP,
    ContainerPort,
    IPBlock,
    NamedPort,
    Namespace,
    NumberedPort,
    Peer,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    parse_address,
    parse_network,
)
from netpol.rules.compile import NodeState, Settings, node
from netpol.rules.ruleset import DestroySet, GrowSet, Multiport, SetMatch, ShrinkSet, Tcp
from netpol.rules.sets import port_member
from tests.rules.watched import OUT, PODS, THERE, A, B, C, D, Watched, app, class_chains, kinds, own, peers, pod, policy, port

FEW = 4  # classes and isolations that may be kept for one pod, of which the most it has are three


def test_sets_are_shared_by_what_they_select() -> None:
    """Two policies for two pods, in both directions, with the same peer: one set a family."""
    rule = peers(own("web"))
    db, api = pod("db", A, parse_address("fd00::1")), pod("api", B, parse_address("fd00::2"))
    state = Watched(db, api, policy("p", "db", rule), policy("q", "api", rule, egress=(rule,)))
    wanted = state.wanted()
    assert sorted(one.family for one in wanted.sets.values()) == [4, 6]
    assert len(class_chains(wanted)) == 2
    state.drop(Policy, "p")
    assert not [step for step in state.steps() if isinstance(step, DestroySet)]
    state.drop(Policy, "q")
    assert len([step for step in state.steps() if isinstance(step, DestroySet)]) == 2


def test_set_names_stay_while_members_change() -> None:
    """A name is a hash of what the set selects, in its family; over restarts too."""
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))))
    before = set(state.wanted().sets)
    state.put(pod("web", B))
    assert set(state.wanted().sets) == before
    assert all(len(name) == 31 and name.startswith(f"NETPOL{one.family}-") for name, one in state.wanted().sets.items())


def test_pods_of_one_class_share_a_chain() -> None:
    """Those that the same policies select; one more policy on one of them is another class."""
    state = Watched(pod("db1", A), pod("db2", B), pod("web", C), policy("p", "db"))
    assert len(class_chains(state.wanted())) == 1
    only_one = Policy("ns", "q", Selector((Requirement("extra", "Exists"),)), (peers(ports=(port(80),)),), None)
    state.put(only_one, structs.replace(pod("db2", B), labels=(("app", "db"), ("extra", ""))))
    assert len(class_chains(state.wanted())) == 2
    assert [state.passes(OUT, address) for address in (A, B, C)] == [False, True, True]


def test_classes_that_say_the_same_share_a_chain() -> None:
    """A chain is named by its content: two policies that deny are one chain."""
    state = Watched(pod("db", A), pod("web", B), policy("p", "db"), policy("q", "web"))
    assert len(class_chains(state.wanted())) == 1


def test_named_ports_split_classes() -> None:
    """Pods of one policy that declare another number under its name have chains of their own; other ports of theirs do not matter."""
    named = policy("p", "db", peers(ports=(NamedPort(TCP, "sql"),)))
    state = Watched(
        pod("db1", A, ports=(ContainerPort("sql", TCP, 3306),)),
        pod("db2", B, ports=(ContainerPort("sql", TCP, 5432),)),
        pod("db3", C, ports=(ContainerPort("sql", TCP, 5432), ContainerPort("x", TCP, 1))),
        pod("db4", D),
        named,
    )
    assert len(class_chains(state.wanted())) == 3
    assert [[state.passes(OUT, address, number) for number in (3306, 5432)] for address in (A, B, C, D)] == [
        [True, False],
        [False, True],
        [False, True],
        [False, False],
    ]
    state.put(pod("db1", A, ports=(ContainerPort("sql", TCP, 5432),)))
    assert len(class_chains(state.wanted())) == 2
    state.drop(Policy, "p")
    assert class_chains(state.wanted()) == []


def test_classes_of_pods_that_are_gone_are_forgotten() -> None:
    """Pods that come and go, each with another number behind the name, leave few chains behind."""
    state = Watched(policy("p", "db", peers(ports=(NamedPort(TCP, "sql"),))))
    for number in range(1, 50):
        state.put(pod(f"db{number // 2}", A, ports=(ContainerPort("sql", TCP, number),)))
        assert state.passes(OUT, A, number)
        assert len(state.state._classes) + len(state.state._isolations) <= FEW
        if number % 2:
            state.drop(Pod, f"db{number // 2}")
            assert state.passes(OUT, A, 1)
    assert not state.state._addresses_again


def test_only_what_an_event_concerned_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pod of the node, whatever of it changed, or those that a policy selects; what isolates pods of the same labels is found once."""
    names = [f"{app}{number}" for app in ("db", "web") for number in range(20)]
    calls: list[str] = []
    for name in ("_way", "_isolation"):
        real = getattr(NodeState, name)

        def counted(state: NodeState, what: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append(name)
            return real(state, what)

        monkeypatch.setattr(NodeState, name, counted)

    def counts() -> tuple[int, int]:
        state.state.pending()
        state.state.applied()
        found = calls.count("_way"), calls.count("_isolation")
        calls.clear()
        return found

    state = Watched(*(pod(name, bytes((10, 0, 0, 10 + at))) for at, name in enumerate(names)), policy("p", "db"))
    assert counts() == (40, 2)
    state.put(pod("db1", bytes((10, 0, 0, 11)), label="api"))
    assert counts() == (1, 0)  # nothing selects it, as the pods of web
    state.put(pod("db2", bytes((10, 0, 0, 200))))
    assert counts() == (1, 0)
    state.put(policy("q", "web"))
    assert counts() == (20, 1)
    state.put(Namespace("elsewhere"), pod("far", A, node=THERE, label="web"))
    assert counts() == (0, 0)
    judged = state.state.judged
    state.put(policy("r", "db"))
    assert counts() == (19, 1)
    assert state.state.judged is judged


@pytest.mark.parametrize("broken", ["class_chain", "skeleton"])
def test_what_could_not_be_computed_is_computed_again(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error on the way (no memory, say) loses nothing of what is to be found again, be it some pods or all of them."""
    state = Watched(pod("db", A), pod("web", B), settings=Settings(unknown_pods="deny", pod_cidrs=(PODS,)))
    state.steps()
    for change, isolated in ((policy("p", "db"), {A}), (policy("q", "web"), {A, B}), (pod("web", B, label="db"), {A, B})):
        with monkeypatch.context() as patched:
            patched.setattr(node, broken, fails)
            state.put(change)
            with suppress(MemoryError):
                state.state.pending()
        assert state.state.pending()[2] == isolated
        assert state.state.judged == {A, B}
        state.steps()


def fails(*arguments: object) -> None:
    raise MemoryError


def test_classes_that_policies_leave_behind_are_few() -> None:
    """Each policy more makes another class of a pod; those that it was of before do not gather."""
    state = Watched(pod("db", A), policy("p", "db"))
    for number in range(50):
        state.put(policy(f"q{number}", "db", peers(ports=(port(80 + number),))))
        assert len(class_chains(state.wanted())) == 1
        assert len(state.state._classes) + len(state.state._isolations) <= FEW


def test_who_is_isolated_follows_policies() -> None:
    """A policy that comes isolates a pod, one that goes frees it: the others stay what they were."""
    state = Watched(pod("db", A), pod("web", B), policy("p", "db"))
    for comes, isolated in ((True, {A, B}), (False, {A}), (True, {A, B})):
        if comes:
            state.put(policy("q", "web"))
        else:
            state.drop(Policy, "q")
        assert state.state.pending()[2] == isolated
        assert state.state.judged == isolated


def test_named_ports_of_peers_are_members() -> None:
    """An egress rule with a named port is a set of addresses and numbers, which follows the ports of pods on any node."""
    state = Watched(pod("web", A), Policy("ns", "p", app("web"), None, (peers(own("db"), ports=(NamedPort(TCP, "sql"),)),)))
    state.put(pod("db1", B, node=THERE, ports=(ContainerPort("sql", TCP, 3306),)))
    state.steps()
    others = (ContainerPort("other", TCP, 1), ContainerPort("sql", UDP, 2))
    state.put(pod("db1", B, node=THERE, ports=(ContainerPort("sql", TCP, 5432), *others)))
    steps = state.steps()
    assert [step.members for step in steps if isinstance(step, GrowSet)] == [frozenset({port_member(B, TCP, 5432)})]
    assert [step.members for step in steps if isinstance(step, ShrinkSet)] == [frozenset({port_member(B, TCP, 3306)})]
    state.put(pod("db1", B, node=THERE, ports=(ContainerPort("sql", TCP, 5432),)))
    assert state.steps() == ()


def test_named_ports_inside_a_block_follow_all_pods() -> None:
    """A block with a named port has the pods inside it as members, whatever selects them."""
    block = IPBlock(parse_network("10.0.0.0/31"))
    state = Watched(pod("web", B), Policy("ns", "p", app("web"), None, (peers(block, ports=(NamedPort(TCP, "sql"),)),)))
    state.steps()
    sql = (ContainerPort("sql", TCP, 3306),)
    state.put(pod("in", A, node=THERE, ports=sql), pod("beside", C, node=THERE, ports=sql))
    assert [step.members for step in state.steps() if isinstance(step, GrowSet)] == [frozenset({port_member(A, TCP, 3306)})]


def test_a_thousand_policies_are_one_rule_and_one_set() -> None:
    """Each allows another peer on port 80 to one pod: a new flow pays for one of them."""
    policies = [policy(f"p{i}", "db", peers(own(f"web{i}"), ports=(port(80),))) for i in range(1000)]
    webs = [pod(f"web{i}", (0x0A010000 + i).to_bytes(4, "big"), node=THERE, label=f"web{i}") for i in range(1000)]
    state = Watched(pod("db", A), *policies, *webs)
    wanted = state.wanted()
    (chain,) = (wanted.chains[4][name] for name in class_chains(wanted))
    (merged,) = (one for one in wanted.sets.values() if one.family == 4)
    assert len(chain.rules) == 2
    assert chain.rules[0].matches == (Tcp(destination=(80, 80)), SetMatch(merged.name, ("src",)))
    assert merged.members == {one.addresses[0] for one in webs}
    state.drop(Pod, "web7")
    assert kinds(state.steps()) == [ShrinkSet]


def test_a_pod_of_two_queries_stays_while_one_of_them_selects_it() -> None:
    """The same address may come into a merged set twice: one way of leaving is not leaving."""
    queries = [own(name) for name in ("a", "b", "c")]
    every = Query("ns", EVERYTHING, Selector((Requirement("extra", "Exists"),)))
    web = Pod("ns", "x", (("app", "a"), ("extra", "")), THERE, (B,))
    state = Watched(pod("db", A), policy("p", "db", peers(*queries, every)), web)
    state.steps()
    state.put(structs.replace(web, labels=(("app", "z"), ("extra", ""))))
    assert state.steps() == ()
    state.put(structs.replace(web, labels=(("app", "a"),)))
    assert state.steps() == ()
    state.put(structs.replace(web, labels=(("app", "z"),)))
    assert kinds(state.steps()) == [ShrinkSet]


def test_ports_of_one_peer_are_put_together() -> None:
    """Rules of several policies for the same peer are one rule with all their ports."""
    rules = [peers(own("web"), ports=(port(number),)) for number in (80, 443, 81)]
    state = Watched(pod("db", A), *(policy(f"p{i}", "db", rule) for i, rule in enumerate(rules)))
    wanted = state.wanted()
    (chain,) = (wanted.chains[4][name] for name in class_chains(wanted))
    assert [rule.matches[0] for rule in chain.rules[:-1]] == [Multiport(((80, 81), (443, 443)))]


@pytest.mark.parametrize("everyone", [(), (IPBlock(parse_network("0.0.0.0/0")),)], ids=["no peers", "all addresses"])
def test_what_everyone_may_is_not_said_again(everyone: tuple[Peer, ...]) -> None:
    """A rule for everyone swallows those for the same ports; a peer that may do everything needs no ports."""
    both = (port(80), port(81))
    rules = (peers(*everyone, ports=(port(80),)), peers(own("web"), ports=(port(80),)), peers(own("web"), ports=both), peers(own("api")))
    wanted = Watched(pod("db", A), policy("p", "db", *rules)).wanted()
    (chain,) = (wanted.chains[4][name] for name in class_chains(wanted))
    assert [(rule.protocol, len(rule.matches)) for rule in chain.rules] == [(TCP, 1), (0, 1), (TCP, 2), (0, 0)]
    assert chain.rules[2].matches[0] == Tcp(destination=(81, 81))


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        pytest.param((peers(), peers(own("web")), peers(ports=(port(80),))), 1, id="everyone may everything"),
        pytest.param((peers(IPBlock(parse_network("0.0.0.0/0"))), peers(own("web"))), 1, id="all addresses are everyone"),
        pytest.param((peers(own("web"), ports=(NumberedPort(TCP, 0, 65535), NamedPort(TCP, "sql"))),), 1, id="a name among all ports"),
        pytest.param(
            (peers(ports=(NamedPort(TCP, "sql"),)), peers(own("web"), ports=(NamedPort(TCP, "sql"),))), 1, id="a name for everyone"
        ),
        pytest.param((peers(*(own(name) for name in ("a", "b", "c"))),), 3, id="few peers, a set each"),
        pytest.param((peers(*(own(name) for name in ("a", "b", "c", "d"))),), 1, id="more peers, one set"),
    ],
)
def test_how_many_rules(rules: tuple[PolicyRule, ...], count: int) -> None:
    """The fewest that say it; the last one of a class chain denies."""
    wanted = Watched(pod("db", A), Policy("ns", "p", app("db"), None, rules)).wanted()
    (chain,) = (wanted.chains[4][name] for name in class_chains(wanted))
    assert len(chain.rules) == count + 1
