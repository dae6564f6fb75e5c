"""The cluster's state: who holds an address (SEMANTICS 17-20), and that each event says exactly what it changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from netpol.model import (
    EVERYONE,
    EVERYTHING,
    Address,
    ContainerPort,
    Namespace,
    Node,
    Object,
    Pod,
    Policy,
    Query,
    Requirement,
    Selector,
    parse_address,
)
from netpol.policy.cluster import KEEP, NO_CHANGE, Change, Cluster, Move, Standing
from netpol.policy.selectors import matches
from tests import clusters

A, B, A6 = parse_address("10.0.0.1"), parse_address("10.0.0.2"), parse_address("fd00::1")
NS = Namespace("ns")


def pod(name: str, *addresses: Address, **changes: object) -> Pod:
    values: dict[str, object] = {"namespace": "ns", "name": name, "addresses": addresses, **changes}
    return Pod(**values)  # type: ignore[arg-type]  # by name


def cluster(*objects: Object) -> Cluster:
    """A cluster with the namespace "ns" and these, put in their order."""
    made = Cluster()
    for item in (NS, *objects):
        made.put(item)
    return made


def holder(of: Cluster, address: Address = A) -> str | None:
    found = of.holder(address)
    return found.name if found is not None else None


# -- who holds an address ----------------------------------------------------------------------------------------------


def test_18_a_finished_pod_owns_no_address() -> None:
    """Its address is free the moment it ends, though the API goes on showing it; a terminating pod's is not."""
    state = cluster(pod("one", A))
    change = state.put(pod("one", A, finished=True))
    assert holder(state) is None
    assert change.moves == (Move(A, Standing(pod("one", A), frozenset()), None),)
    assert state.pod("ns", "one") == pod("one", A, finished=True)


def test_17_a_host_network_pod_owns_no_address() -> None:
    """Its address is the node's: no query selects it and nobody holds it."""
    state = cluster(pod("one", A, host_network=True))
    state.index.register(EVERYONE)
    assert holder(state) is None
    assert state.queries(pod("one", A, host_network=True)) == frozenset()
    assert list(state.members(EVERYONE)) == []


def test_19_a_new_pod_takes_the_address_and_the_old_one_goes_later() -> None:
    """The deletion of the old pod removes nothing, and says so."""
    state = cluster(pod("old", A))
    taken = state.put(pod("new", A))
    assert [(move.before and move.before.pod.name, move.after and move.after.pod.name) for move in taken.moves] == [("old", "new")]
    gone = state.drop(Pod, "old", "ns")
    assert holder(state) == "new"
    assert gone == Change(pods=((pod("old", A), None),))
    state.drop(Pod, "new", "ns")
    assert holder(state) is None


@pytest.mark.parametrize("change", [{"labels": (("app", "x"),)}, {"node": "n"}, {"ports": ()}])
def test_19_an_update_of_the_old_pod_takes_nothing_back(change: dict[str, object]) -> None:
    """A late status of the pod that had the address before does not make it the holder again."""
    state = cluster(pod("old", A), pod("new", A))
    said = state.put(pod("old", A, **change))
    assert holder(state) == "new"
    assert said.moves == ()


def test_19_the_old_pod_finishes_later() -> None:
    """As a deletion."""
    state = cluster(pod("old", A), pod("new", A))
    assert state.put(pod("old", A, finished=True)).moves == ()
    assert holder(state) == "new"


def test_19_the_holder_ends_while_an_older_claimant_lives() -> None:
    """The address falls back to the latest claimant that still lives, not to the first."""
    state = cluster(pod("one", A), pod("two", A), pod("three", A))
    assert holder(state) == "three"
    moved = state.drop(Pod, "three", "ns")
    assert holder(state) == "two"
    assert moved.moves == (Move(A, Standing(pod("three", A), frozenset()), Standing(pod("two", A), frozenset())),)
    state.put(pod("two", A, finished=True))
    assert holder(state) == "one"
    state.put(pod("one", B))
    assert holder(state) is None
    assert holder(state, B) == "one"


def test_19_a_claim_in_the_middle_ends() -> None:
    """The holder stays; when it ends, the claimant that went is not asked."""
    state = cluster(pod("one", A), pod("two", A), pod("three", A))
    assert state.drop(Pod, "two", "ns").moves == ()
    assert holder(state) == "three"
    state.drop(Pod, "three", "ns")
    assert holder(state) == "one"


def test_19_a_pod_that_comes_back_claims_last() -> None:
    """Losing an address and getting it again is a new claim."""
    state = cluster(pod("one", A), pod("two", A))
    state.put(pod("one", B))
    state.put(pod("one", A))
    assert holder(state) == "one"


def test_19_a_host_network_pod_becomes_a_pod() -> None:
    """The claim begins when the address is the pod's own."""
    state = cluster(pod("one", A, host_network=True), pod("two", A))
    assert holder(state) == "two"
    state.put(pod("one", A))
    assert holder(state) == "one"


@pytest.mark.parametrize("first", ["going", "new"])
def test_19_one_that_terminates_has_lost_it(first: str) -> None:
    """Against a pod that stays, whoever is heard of first: a list after a restart has them in the order of their names."""
    pods = {"going": pod("going", A, terminating=True), "new": pod("new", A)}
    state = cluster(pods.pop(first), *pods.values())
    assert holder(state) == "new"
    state.drop(Pod, "new", "ns")
    assert holder(state) == "going"


def test_19_the_holder_begins_to_terminate() -> None:
    """Alone it keeps its address; where an older claimant stays, that one has it."""
    state = cluster(pod("one", A))
    state.put(pod("one", A, terminating=True))
    assert holder(state) == "one"
    state = cluster(pod("one", A), pod("two", A))
    state.put(pod("two", A, terminating=True))
    assert holder(state) == "one"
    state.put(pod("one", A, terminating=True))
    assert holder(state) == "two"


def test_20_the_same_name_with_a_new_address() -> None:
    """A relist shows a pod that was replaced in between: the old address is free and the new one held."""
    state = cluster(pod("one", A, A6))
    change = state.put(pod("one", B))
    assert [holder(state, address) for address in (A, A6, B)] == [None, None, "one"]
    assert {move.address for move in change.moves} == {A, A6, B}


def test_addresses_move_one_by_one() -> None:
    """Of two families, one can be contested and the other not."""
    state = cluster(pod("one", A, A6), pod("two", A))
    assert [holder(state, address) for address in (A, A6)] == ["two", "one"]
    assert sorted(state.members(EVERYONE)) == []
    state.index.register(EVERYONE)
    assert {(address, found.name) for address, found in state.members(EVERYONE)} == {(A, "two"), (A6, "one")}
    assert (state.addresses(EVERYONE, 4), state.addresses(EVERYONE, 16)) == ([A], [A6])


# -- what an event says ------------------------------------------------------------------------------------------------

POLICY = Policy("ns", "p", EVERYTHING, (), None)
NODE = Node("n", (A,))


@pytest.mark.parametrize("item", [pod("one", A), NS, POLICY, NODE], ids=lambda item: type(item).__name__)
def test_the_same_again_changes_nothing(item: Object) -> None:
    """Most status updates are such events."""
    state = cluster(item)
    assert state.put(item) is NO_CHANGE


@pytest.mark.parametrize("kind", [Pod, Policy, Namespace, Node])
def test_dropping_what_is_not_there_changes_nothing(kind: type[Object]) -> None:
    """Deletions may come twice, or for what was never seen."""
    assert Cluster().drop(kind, "one", "ns") is NO_CHANGE


def test_policies_and_nodes_are_told_as_pairs() -> None:
    """Before and after, None for what is not there."""
    state = cluster()
    other = Policy("ns", "p", EVERYTHING, None, ())
    assert state.put(POLICY) == Change(policies=((None, POLICY),))
    assert state.put(other) == Change(policies=((POLICY, other),))
    assert state.policies == {("ns", "p"): other}
    assert state.drop(Policy, "p", "ns") == Change(policies=((other, None),))
    assert state.put(NODE) == Change(nodes=((None, NODE),))
    assert state.put(Node("n")) == Change(nodes=((NODE, Node("n")),))
    assert state.nodes == {"n": Node("n")}
    assert state.drop(Node, "n") == Change(nodes=((Node("n"), None),))
    assert (state.policies, state.nodes) == ({}, {})


def test_a_change_of_labels_alone_moves_the_address() -> None:
    """The holder is the same pod by name, but other queries select it."""
    query = Query("ns", EVERYTHING, Selector((Requirement("app", "Exists"),)))
    state = cluster(pod("one", A))
    state.index.register(query)
    before, after = pod("one", A), pod("one", A, labels=(("app", "x"),))
    assert state.put(after) == Change(
        moves=(Move(A, Standing(before, frozenset()), Standing(after, frozenset({query}))),), pods=((before, after),)
    )


def test_11_a_namespace_that_comes_late_brings_its_pods() -> None:
    """Until it is known no query selects them; then they are regrouped, once; and again when it goes."""
    state = Cluster()
    state.index.register(EVERYONE)
    one = pod("one", A)
    assert state.put(one).moves == (Move(A, None, Standing(one, frozenset())),)
    known = state.put(NS)
    assert known == Change(moves=(Move(A, Standing(one, frozenset()), Standing(one, frozenset({EVERYONE}))),), regrouped=(one,))
    assert state.put(Namespace("ns", (("a", "b"),))) == NO_CHANGE
    gone = state.drop(Namespace, "ns")
    assert gone.regrouped == (one,)
    assert list(state.members(EVERYONE)) == []


def test_nothing_is_left_behind() -> None:
    """A cluster whose objects are all gone is an empty one."""
    state = cluster(pod("one", A, labels=(("a", "b"),)), pod("two", A), POLICY, NODE)
    for kind, name in ((Pod, "one"), (Pod, "two"), (Policy, "p"), (Node, "n"), (Namespace, "ns")):
        state.drop(kind, name, "ns")
    assert [dict(state.pods), state.policies, state.nodes, state.namespaces] == [{}, {}, {}, {}]
    assert list(state.all_pods()) == []
    assert state.pod("ns", "one") is None
    assert state.index.is_empty()
    assert holder(state) is None


def test_pods_share_what_they_have_in_common() -> None:
    """One object each for the namespace, labels, node and ports of all that are alike: 100,000 pods are held in memory by that."""

    def parsed(name: str) -> Pod:
        def text(*letters: str) -> str:
            return "".join(letters)  # a new object each time, as a decoder makes them

        labels, ports = ((text("a", "b"), text("c", "d")),), (ContainerPort(text("w", "b"), 6, 80),)
        return Pod(text("n", "s"), name, labels, text("n", "1"), ports=ports)

    state = cluster(parsed("one"), parsed("two"))
    one, two = state.pods["ns"].values()
    assert (one.namespace is two.namespace, one.labels is two.labels, one.node is two.node, one.ports is two.ports) == (True,) * 4


def test_what_pods_of_the_past_shared_is_forgotten() -> None:
    """Nodes that come and go, and pods with a port each, leave a bounded number of them; pods that are there go on sharing theirs."""
    state = cluster()
    ports = (ContainerPort("web", 6, 80),)
    state.put(Pod("ns", "first", (), "steady", ports=ports))
    for number in range(5 * KEEP):
        state.put(Pod("ns", "other", (), f"node-{number}", ports=(ContainerPort(f"p{number}", 6, 80),)))
        assert len(state._shared) <= 2 * KEEP
    state.put(Pod("ns", "last", (), "".join(("stea", "dy")), ports=(ContainerPort("web", 6, 80),)))
    first, last = (state.pods["ns"][name] for name in ("first", "last"))
    assert (first.node is last.node, first.ports is last.ports) == (True, True)


@pytest.mark.parametrize("stay", [False, True], ids=["one after the other", "all together"])
def test_what_pods_of_the_past_shared_is_looked_for_now_and_then(stay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods are looked through once for each many that came, and not for each."""
    state, looks, all_pods = Cluster(), list[int](), Cluster.all_pods

    def looked(self: Cluster) -> Iterator[Pod]:
        looks.append(1)
        return all_pods(self)

    monkeypatch.setattr(Cluster, "all_pods", looked)
    for number in range(5 * KEEP):
        state.put(Pod("red", str(number * stay), (), f"node-{number}"))
    assert 1 <= len(looks) <= 8


def test_labels_that_nobody_asks_for_are_shared_too() -> None:
    """The pods of both ReplicaSets of a roll-out are one profile; each takes its labels from the one that is like it."""
    state = cluster()
    state.index.register(Query("ns", EVERYTHING, Selector((Requirement("app", "Exists"),))))
    for name, version in (("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")):
        state.put(pod(name, labels=(("app", "web"), ("version", version))))
    labels = {name: found.labels for name, found in state.pods["ns"].items()}
    assert labels["one"] is labels["three"] is not labels["two"]
    assert labels["two"] is labels["four"]
    assert len(set(state.index.profile("ns", labels["one"]).names)) == 4


# -- any events --------------------------------------------------------------------------------------------------------

QUERIES = (
    EVERYONE,
    Query("red", EVERYTHING, EVERYTHING),
    Query("", EVERYTHING, Selector((Requirement("app", "In", ("a",)),))),
    Query("", Selector((Requirement("tier", "DoesNotExist"),)), EVERYTHING),
)
ADDRESSES = (*clusters.V4, *clusters.V6)


class ClusterAndNaive(RuleBasedStateMachine):
    """A cluster, and beside it the claims on each address in the order in which they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.pods: dict[tuple[str, str], Pod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.claims: dict[Address, list[tuple[str, str]]] = {address: [] for address in ADDRESSES}

    @initialize()
    def register(self) -> None:
        for query in QUERIES:
            self.cluster.index.register(query)

    def queries(self, pod: Pod) -> frozenset[Query]:
        namespace = self.namespaces.get(pod.namespace)
        if namespace is None:
            return frozenset()
        return frozenset(
            query
            for query in QUERIES
            if (pod.namespace == query.namespace if query.namespace else matches(query.namespaces, namespace.labels))
            and matches(query.pods, pod.labels)
        )

    def standings(self) -> dict[Address, Standing | None]:
        held: dict[Address, Pod | None] = {}
        for address, claims in self.claims.items():
            claimants = [self.pods[key] for key in claims]
            staying = [pod for pod in claimants if not pod.terminating]
            last = staying or claimants
            held[address] = last[-1] if last else None
        return {address: Standing(pod, self.queries(pod)) if pod is not None else None for address, pod in held.items()}

    def replace_pod(self, key: tuple[str, str], pod: Pod | None) -> None:
        if pod is None:
            self.pods.pop(key, None)
        else:
            self.pods[key] = pod
        owned = pod.addresses if pod is not None and not pod.finished and not pod.host_network else ()
        for address, claims in self.claims.items():
            if address in owned and key not in claims:
                claims.append(key)
            elif address not in owned and key in claims:
                claims.remove(key)

    @rule(pod=clusters.pods())
    def put_pod(self, pod: Pod) -> None:
        before = self.standings()
        self.replace_pod(pod.key, pod)
        self.check(before, self.cluster.put(pod))

    @rule(namespace=st.sampled_from(clusters.NAMESPACES), name=st.sampled_from(("one", "two", "three", "four")))
    def drop_pod(self, namespace: str, name: str) -> None:
        before = self.standings()
        self.replace_pod((namespace, name), None)
        self.check(before, self.cluster.drop(Pod, name, namespace))

    @rule(namespace=clusters.namespaces)
    def put_namespace(self, namespace: Namespace) -> None:
        before = self.standings()
        self.namespaces[namespace.name] = namespace
        self.check(before, self.cluster.put(namespace))

    @rule(name=st.sampled_from(clusters.NAMESPACES))
    def drop_namespace(self, name: str) -> None:
        before = self.standings()
        self.namespaces.pop(name, None)
        self.check(before, self.cluster.drop(Namespace, name))

    def check(self, before: dict[Address, Standing | None], change: Change) -> None:
        """The change tells exactly the addresses whose standing is another one, and the state is the naive one."""
        after = self.standings()
        moved = {address for address in ADDRESSES if before[address] != after[address]}
        assert sorted(move.address for move in change.moves) == sorted(moved)
        for move in change.moves:
            assert (move.before, move.after) == (before[move.address], after[move.address])
        for address in ADDRESSES:
            holder = self.cluster.holder(address)
            assert (Standing(holder, self.cluster.queries(holder)) if holder is not None else None) == after[address]
        for query in QUERIES:
            expected = {
                (address, standing.pod) for address, standing in after.items() if standing is not None and query in standing.queries
            }
            found = list(self.cluster.members(query))
            assert set(found) == expected
            assert len(found) == len(expected)
        assert {pod.key: pod for pod in self.cluster.all_pods()} == self.pods


TestCluster = ClusterAndNaive.TestCase
TestCluster.settings = settings(stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
