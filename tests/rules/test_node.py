"""One node's wanted state over time: what a batch of events changes in it, what it leaves alone, and what concerns this node."""

from __future__ import annotations

import pytest
from msgspec import structs

from netpol.model import EVERYTHING, FAMILIES, TCP, ContainerPort, Namespace, Pod, Policy, Query, parse_address, parse_network
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings
from netpol.rules.diff import diff
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, NEW, ROOT, CreateSet, DestroySet, GrowSet, ReplaceTable, ShrinkSet
from tests.rules.watched import HERE, OUT, THERE, A, B, C, D, Watched, class_chains, kinds, own, peers, pod, policy, port


def test_a_peer_is_one_delta_and_no_table() -> None:
    """The churn of a peer costs one member of one set."""
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))))
    assert kinds(state.steps()) == [CreateSet, ReplaceTable, ReplaceTable]
    state.put(pod("web1", B, node=THERE))
    (step,) = state.steps()
    assert isinstance(step, GrowSet)
    assert step.members == {B}
    state.put(pod("web1", B, node=THERE, ports=(ContainerPort("x", TCP, 1),)))
    assert state.steps() == ()
    state.drop(Pod, "web1")
    (step,) = state.steps()
    assert isinstance(step, ShrinkSet)
    assert step.members == {B}


@pytest.mark.parametrize("there_before", [False, True], ids=["not in the set before", "in the set before"])
def test_an_address_that_comes_back_within_a_batch_is_nothing(there_before: bool) -> None:
    """Of what happened between two looks only the first before and the last after count."""
    web = pod("web", B, node=THERE)
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))), *([web] if there_before else []))
    state.steps()
    for _ in range(2):
        if there_before:
            state.drop(Pod, "web")
            state.put(web)
        else:
            state.put(web)
            state.drop(Pod, "web")
    assert state.steps() == ()


def test_an_address_that_changes_its_pod_within_a_batch() -> None:
    """From one member of the set to another pod that is one too: nothing; to one that is none: it goes."""
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))), pod("web1", B, node=THERE))
    state.steps()
    state.drop(Pod, "web1")
    state.put(pod("web2", B, node=THERE))
    assert state.steps() == ()
    state.put(pod("other", B, node=THERE))
    assert kinds(state.steps()) == [ShrinkSet]


def test_a_batch_that_was_not_applied_is_asked_for_again() -> None:
    """What `pending` said is wanted until `applied`; what happens in between is added."""
    state = Watched(pod("db", A), policy("p", "db", peers(own("web"))))
    state.steps()
    state.put(pod("web1", B, node=THERE))
    first = diff(*state.state.pending())
    assert diff(*state.state.pending()) == first
    state.put(pod("web2", C, node=THERE))
    (step,) = state.steps()
    assert isinstance(step, GrowSet)
    assert step.members == {B, C}


def test_a_policy_that_changes_under_its_name_changes_the_chain() -> None:
    """The class is the same by its policies' names; its chain is not."""
    state = Watched(pod("db", A), policy("p", "db", peers(ports=(port(80),))))
    assert (state.passes(OUT, A, 80), state.passes(OUT, A, 81)) == (True, False)
    before = class_chains(state.wanted())
    state.put(policy("p", "db", peers(ports=(port(81),))))
    steps = state.steps()
    assert kinds(steps) == [ReplaceTable]
    assert (state.passes(OUT, A, 80), state.passes(OUT, A, 81)) == (False, True)
    assert class_chains(state.wanted()) != before


def test_a_policy_that_changes_its_subject() -> None:
    """The pods that it selected are free, others are isolated."""
    state = Watched(pod("db", A), pod("web", B), policy("p", "db"))
    assert [state.passes(OUT, address) for address in (A, B)] == [False, True]
    state.put(policy("p", "web"))
    assert [state.passes(OUT, address) for address in (A, B)] == [True, False]
    state.put(policy("q", "db"))
    state.put(policy("p", "db"))
    state.drop(Policy, "q")
    assert [state.passes(OUT, address) for address in (A, B)] == [False, True]


def test_policies_come_and_go_beside_others() -> None:
    """One more on a pod, one that changes from nobody's to a pod's and back, one less: each is seen, though neither first nor last."""
    eighty = peers(ports=(port(80),))
    state = Watched(pod("db", A), policy("p", "db"), policy("q", "nobody"))
    seen = [state.passes(OUT, A)]
    for change in (policy("r", "db", eighty), policy("r", "nobody"), policy("r", "db", eighty)):
        state.put(change)
        seen.append(state.passes(OUT, A))
    state.drop(Policy, "r")
    assert [*seen, state.passes(OUT, A)] == [False, True, False, True, False]


def test_an_address_concerns_the_sets_of_its_family() -> None:
    """A peer's IPv4 address is a delta of one set, though the pod here has both families."""
    state = Watched(pod("db", A, parse_address("fd00::1")), policy("p", "db", peers(own("web"))))
    state.steps()
    state.put(pod("web1", B, node=THERE))
    assert [step.family for step in state.steps() if isinstance(step, GrowSet)] == [4]
    state.put(pod("web1", B, parse_address("fd00::2"), node=THERE))
    assert [step.family for step in state.steps() if isinstance(step, GrowSet)] == [6]


def test_a_selection_that_leaves_and_comes_back_before_it_was_applied() -> None:
    """The set was never destroyed; what happened to its members meanwhile is not lost, one way and the other."""
    allow, deny = policy("p", "db", peers(own("web"))), policy("p", "db")
    state = Watched(pod("db", A), allow, pod("web1", B, node=THERE))
    state.steps()
    state.put(deny)
    assert kinds(diff(*state.state.pending())) == [ReplaceTable, DestroySet]
    state.put(pod("web2", C, node=THERE))
    state.drop(Pod, "web1")
    state.put(allow)
    steps = state.steps()
    assert [step.members for step in steps if isinstance(step, GrowSet)] == [frozenset({C})]
    assert [step.members for step in steps if isinstance(step, ShrinkSet)] == [frozenset({B})]
    assert not [step for step in steps if isinstance(step, DestroySet) and "-" in step.name]


def test_a_selection_that_comes_and_leaves_before_it_was_applied() -> None:
    """Nothing is made, nothing destroyed, and nothing of it stays registered."""
    state = Watched(pod("db", A))
    state.steps()
    state.put(policy("p", "db", peers(own("web"))))
    diff(*state.state.pending())
    state.drop(Policy, "p")
    assert state.steps() == ()
    assert not state.left_behind()


def test_a_set_that_left_is_made_anew_later() -> None:
    """Once it was destroyed, it comes with all its members."""
    allow = policy("p", "db", peers(own("web")))
    state = Watched(pod("db", A), allow, pod("web1", B, node=THERE))
    state.steps()
    state.drop(Policy, "p")
    assert kinds(state.steps()) == [ReplaceTable, ReplaceTable, DestroySet]
    state.put(pod("web2", C, node=THERE), allow)
    created = [step.set for step in state.steps() if isinstance(step, CreateSet) and step.set.family == 4]
    assert [one.members for one in created] == [{B, C}]
    assert not state.left_behind()


# -- what concerns this node -------------------------------------------------------------------------------------------


def test_a_policy_that_selects_nobody_here_is_nothing() -> None:
    """No chain, no set; and no table is written when it comes, changes or goes."""
    state = Watched(pod("web", A), pod("db", B, node=THERE))
    state.steps()
    state.put(policy("p", "db", peers(own("web"))))
    assert state.steps() == ()
    wanted = state.state.wanted()
    assert wanted.sets == {}
    assert all(set(wanted.chains[family]) == {ROOT, NEW, DENY} for family in FAMILIES)
    state.put(policy("p", "db"))
    state.drop(Policy, "p")
    assert state.steps() == ()


def test_only_isolated_pods_of_this_node_are_leaves() -> None:
    """Free ones, those of other nodes, host-network and finished ones are not; an address in a direction that is free is not either."""
    everyone = Policy("ns", "p", EVERYTHING, (), None)
    others = [
        pod("far", B, node=THERE),
        structs.replace(pod("host", C), host_network=True),
        structs.replace(pod("done", D), finished=True),
        pod("unbound", parse_address("10.0.0.9"), node=""),
    ]
    wanted = Watched(pod("db", A), everyone, *others).wanted()
    (leaf,) = wanted.chains[4][INGRESS].rules
    assert leaf.destination is not None
    assert leaf.destination.address == A
    assert EGRESS not in wanted.chains[4]
    assert class_chains(wanted, 6) == []


def test_a_namespace_that_comes_late_isolates_its_pods() -> None:
    """Its pods were free until it was known; so were they as peers."""
    cluster = Cluster()
    state = NodeState(cluster, HERE)
    for item in (pod("db", A), policy("p", "db")):
        state.follow(cluster.put(item))
    assert interpret(state.wanted(), Packet(OUT, A, TCP, 80, 1)).passes
    state.follow(cluster.put(Namespace("ns")))
    assert not interpret(state.wanted(), Packet(OUT, A, TCP, 80, 1)).passes
    state.follow(cluster.drop(Namespace, "ns"))
    assert interpret(state.wanted(), Packet(OUT, A, TCP, 80, 1)).passes


@pytest.mark.parametrize("taker", [HERE, THERE])
def test_an_address_that_another_pod_took_is_no_leaf_of_the_old_one(taker: str) -> None:
    """The old pod is isolated and still in the API: the new holder, here or elsewhere, is free (SEMANTICS 19); until it goes."""
    state = Watched(pod("db", A), policy("p", "db"))
    assert not state.passes(OUT, A)
    state.put(pod("web", A, node=taker))
    assert state.passes(OUT, A)
    state.drop(Pod, "web")
    assert not state.passes(OUT, A)
    state.put(pod("web", A, node=taker))
    state.drop(Pod, "db")
    assert state.passes(OUT, A)


def test_a_local_pod_takes_the_address_of_a_remote_one() -> None:
    """It is isolated at once, and stays so when the old one goes."""
    state = Watched(pod("web", A, node=THERE), policy("p", "db"), pod("db", A))
    assert not state.passes(OUT, A)
    state.drop(Pod, "web")
    assert not state.passes(OUT, A)


def test_pods_move_between_classes_by_their_labels() -> None:
    """One replace; the address stays."""
    state = Watched(pod("db", A), pod("other", B), policy("p", "db"), policy("q", "other"))
    state.steps()
    state.put(pod("db", A, label="free"))
    assert kinds(state.steps()) == [ReplaceTable]
    assert state.passes(OUT, A)


def test_bridged_link_local_traffic_is_denied_while_a_pod_is_isolated() -> None:
    """It would be a way around between pods of one bridge; without an isolated pod it is nobody's business."""
    source, destination, many = parse_address("fe80::1"), parse_address("fe80::2"), parse_address("ff02::fb")
    for addresses in ((A, parse_address("fd00::1")), (A,)):
        state = Watched(pod("db", *addresses), policy("p", "db"))
        for one, other in ((source, destination), (source, parse_address("fd00::9")), (parse_address("fd00::9"), destination)):
            assert not state.passes(one, other)
            assert interpret(state.wanted(), Packet(one, other, 58, icmp_type=135)).passes
        assert state.passes(source, many)
        # A router's advertisement gives addresses to whoever hears it, and is heeded from such a source only.
        for other in (many, destination, parse_address("fd00::9")):
            assert not interpret(state.wanted(), Packet(source, other, 58, icmp_type=134)).passes
        assert interpret(
            state.wanted(), Packet(parse_address("fd00::9"), addresses[-1] if len(addresses) > 1 else many, 58, icmp_type=134)
        ).passes
        state.drop(Policy, "p")
        assert state.passes(source, destination)
        assert interpret(state.wanted(), Packet(source, many, 58, icmp_type=134)).passes


def test_bridged_link_local_traffic_is_denied_while_ranges_are() -> None:
    """A pod that starts has such an address before anybody knows any other of it."""
    state = Watched(pod("free", A), policy("p", "none"), settings=Settings(unknown_pods="deny", pod_cidrs=(parse_network("10.0.0.0/16"),)))
    assert not state.passes(parse_address("fe80::1"), parse_address("fe80::2"))


def test_settings_shape_the_skeleton() -> None:
    """Another table, another bit, a log before the drop."""
    settings = Settings(table="filter", cut_bit=0x20000000, log_group=5)
    wanted = Watched(pod("db", A), policy("p", "db"), settings=settings).wanted()
    assert wanted.table == "filter"
    assert len(wanted.chains[4][DENY].rules) == 4
    cut = Packet(OUT, A, TCP, 80, 1, state="ESTABLISHED", connmark=0x20000001)
    assert not interpret(wanted, cut).passes
    assert interpret(wanted, structs.replace(cut, connmark=0x10000000)).passes


def test_who_isolates_a_pod() -> None:
    """The policies that select it and isolate that direction, by name; a pod of another node is isolated there."""
    out = Policy("ns", "out", own("db").pods, None, ())
    state = Watched(
        pod("db", A),
        pod("db2", B, node=THERE),
        pod("web", C),
        policy("b", "db"),
        policy("a", "db"),
        out,
        policy("w", "web", peers(Query("ns", EVERYTHING, EVERYTHING))),
    )
    state.steps()
    here = state.cluster.pod("ns", "db")
    there = state.cluster.pod("ns", "db2")
    assert here is not None
    assert there is not None
    assert [found.name for found in state.state.isolating(here, "ingress")] == ["a", "b"]
    assert state.state.isolating(here, "egress") == (out,)
    assert state.state.isolating(there, "ingress") == ()


def test_only_what_can_concern_a_pod_enters_the_trees() -> None:
    """Each side's jump asks for the prefix of the pods that are isolated on that side, and no other."""
    out = Policy("ns", "out", own("web").pods, None, ())
    state = Watched(pod("db", A), pod("db2", B), pod("web", D), policy("p", "db"), out)
    egress, ingress = state.wanted().chains[4][NEW].rules
    assert (egress.source, egress.destination) == (parse_network("10.0.0.4/32"), None)
    assert (ingress.source, ingress.destination) == (None, parse_network("10.0.0.0/30"))


def test_a_policy_looks_at_the_pods_that_it_can_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this node in its namespace, however many others the node and the namespace have."""
    elsewhere = [structs.replace(pod(f"web{n}", bytes((10, 1, 0, n))), namespace="other") for n in range(20)]
    far = [pod(f"far{n}", bytes((10, 2, 0, n)), node=THERE) for n in range(40)]
    watched = Watched(Namespace("other"), *elsewhere, *far, pod("web", A), pod("db", B), policy("first", "web"))
    watched.state.wanted()
    watched.state.applied()
    asked: list[str] = []
    queries = watched.cluster.queries

    def counted(pod: Pod) -> frozenset[Query]:
        asked.append(pod.name)
        return queries(pod)

    monkeypatch.setattr(watched.cluster, "queries", counted)
    watched.put(policy("second", "db"))
    watched.state.pending()
    assert set(asked) == {"web", "db"}
    assert len(asked) <= 3
