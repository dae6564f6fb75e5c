"""Laws of the compiler over random clusters: the interpreted rules are the specification, and events lead where a fresh start does."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.model import DIRECTIONS, Namespace, Node, Object, Pod, Policy
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import Verdict, verdict
from netpol.rules.compile import NodeState, Settings, compiled
from netpol.rules.diff import diff
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, ReplaceTable, Ruleset, Set, ShrinkSet, Step
from tests import clusters

ALLOW = Settings(unknown_pods="allow")
slow = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def here(cluster: Cluster, said: Verdict, source: bytes, destination: bytes) -> bool:
    """The part of a verdict that this node enforces: egress of its own pods, ingress of its own pods."""
    ends = {"egress": cluster.holder(source), "ingress": cluster.holder(destination)}
    sides = {"egress": said.egress, "ingress": said.ingress}
    return all(
        sides[direction].standing != "denied"
        for direction in DIRECTIONS
        if (pod := ends[direction]) is not None and pod.node == clusters.NODE
    )


@slow
@given(clusters.clusters())
def test_the_interpreted_rules_are_the_specification(items: tuple[Object, ...]) -> None:
    """For every flow that the node forwards, the packet passes exactly where the specification's verdict for this node's pods allows it."""
    cluster = clusters.build(items)
    ruleset = compiled(cluster, clusters.NODE, ALLOW)
    for flow in clusters.flows(cluster):
        said = verdict(cluster, flow)
        done = interpret(ruleset, Packet(flow.source, flow.destination, flow.protocol, flow.port, 40000))
        assert done.passes == here(cluster, said, flow.source, flow.destination), flow


events = st.lists(
    clusters.namespaces
    | clusters.pods()
    | clusters.policies()
    | clusters.nodes
    | st.tuples(st.just(Pod), st.sampled_from(clusters.NAMESPACES), st.sampled_from(("one", "two", "three", "four")))
    | st.tuples(st.just(Policy), st.sampled_from(clusters.NAMESPACES), st.sampled_from(("p", "q", "r")))
    | st.tuples(st.just(Namespace), st.just(""), st.sampled_from(clusters.NAMESPACES))
    | st.tuples(st.just(Node), st.just(""), st.just(clusters.NODE)),
    min_size=8,
    max_size=30,
)


def play(cluster: Cluster, event: object) -> object:
    if isinstance(event, tuple):
        kind, namespace, name = event
        return cluster.drop(kind, name, namespace)
    assert isinstance(event, Pod | Policy | Namespace | Node)
    return cluster.put(event)


@slow
@given(events, st.sampled_from(("auto", "deny", "allow")), st.integers(1, 5))
def test_any_sequence_of_events_ends_where_a_fresh_start_does(story: list[object], unknown: str, batch: int) -> None:
    """After any events the followed state is a fresh compile's; and the deltas, applied batch by batch, lead to the same kernel."""
    cluster = Cluster()
    wish = Settings(unknown_pods=unknown)  # type: ignore[arg-type]  # drawn from its three values
    state = NodeState(cluster, clusters.NODE, wish)
    kernel = Ruleset({}, {})
    for at, event in enumerate(story, 1):
        state.follow(play(cluster, event))  # type: ignore[arg-type]  # a Change
        if at % batch == 0:
            kernel = apply(kernel, diff(*state.pending()))
            state.applied()
    kernel = apply(kernel, diff(*state.pending()))
    state.applied()
    assert diff(*state.pending()) == ()
    fresh = compiled(cluster, clusters.NODE, wish)
    assert state.wanted() == fresh
    assert kernel.chains == fresh.chains
    assert kernel.sets == fresh.sets
    assert diff(fresh, kernel) == ()


@slow
@given(clusters.clusters(), st.randoms())
def test_the_order_of_unrelated_objects_does_not_matter(items: tuple[Object, ...], random: object) -> None:
    """Objects that share no address and no name give one state in any order, and their removal leaves nothing behind."""
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' random.Random
    cluster = Cluster()
    state = NodeState(cluster, clusters.NODE)
    for item in shuffled:
        state.follow(cluster.put(item))
    assert state.wanted() == compiled(clusters.build(items), clusters.NODE)
    for item in items:
        namespace = item.namespace if isinstance(item, Pod | Policy) else ""
        state.follow(cluster.drop(type(item), item.name, namespace))
    assert state.wanted() == compiled(Cluster(), clusters.NODE)
    state.applied()
    state.close()
    assert cluster.index.is_empty()


def apply(kernel: Ruleset, steps: tuple[Step, ...]) -> Ruleset:
    """What the kernel does with the steps; a set that is created twice, or destroyed in use, is an error."""
    chains, sets, hooked = dict(kernel.chains), dict(kernel.sets), set(kernel.hooked)
    for step in steps:
        if isinstance(step, CreateSet):
            assert step.set.name not in sets
            sets[step.set.name] = step.set
        elif isinstance(step, GrowSet | ShrinkSet):
            old = sets[step.name]
            grown = old.members | step.members if isinstance(step, GrowSet) else old.members - step.members
            sets[step.name] = Set(old.name, old.kind, old.family, grown)
        elif isinstance(step, ReplaceTable):
            chains[step.family] = step.chains
            hooked.add(step.family)
        else:
            assert isinstance(step, DestroySet)
            del sets[step.name]
    return Ruleset(chains, sets, frozenset(hooked), kernel.table)
