"""Laws of the compiler over random clusters: the interpreted rules are the specification, and events lead where a fresh start does."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.model import DIRECTIONS, EVERYTHING, Namespace, Network, Node, Object, Pod, Policy, PolicyRule, Query, Requirement, Selector
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import Verdict, verdict
from netpol.rules.compile import NodeState, Settings, compiled
from netpol.rules.compile.skeleton import FRONT_FROM
from netpol.rules.diff import diff
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, ReplaceTable, Ruleset, ShrinkSet, Step
from tests import clusters

fronts = st.sampled_from((FRONT_FROM, 1, 2))  # pods from which on a tree has a set in front: never so many here, always, now and then
MANY = settings().max_examples  # as many as the profile allows
slow = settings(max_examples=MANY * 3 // 2, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


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
@given(clusters.clusters(), fronts)
def test_the_interpreted_rules_are_the_specification(items: tuple[Object, ...], front_from: int) -> None:
    """For every flow that the node forwards, the packet passes exactly where the specification's verdict for this node's pods allows it."""
    cluster = clusters.build(items)
    ruleset = compiled(cluster, clusters.NODE, Settings(unknown_pods="allow", front_from=front_from))
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
@given(events, st.sampled_from(("auto", "deny", "allow")), st.sampled_from(((), clusters.RANGES)), st.integers(1, 5), fronts)
def test_any_sequence_of_events_ends_where_a_fresh_start_does(
    story: list[object], unknown: str, cidrs: tuple[Network, ...], batch: int, front_from: int
) -> None:
    """After any events the followed state is a fresh compile's; and the deltas, applied batch by batch, lead to the same kernel."""
    cluster = Cluster()
    wish = Settings(unknown_pods=unknown, pod_cidrs=cidrs, front_from=front_from)  # type: ignore[arg-type]  # one of its three values
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
    started = NodeState(cluster, clusters.NODE, wish)
    assert state.pending()[2] == started.pending()[2]
    assert state.judged == started.judged


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


@settings(slow, max_examples=MANY)
@given(clusters.clusters(), st.data(), fronts)
def test_a_change_is_never_a_window(items: tuple[Object, ...], data: st.DataObject, front_from: int) -> None:
    """Between any two steps of any batch: what old and new both allow passes, what both deny does not (SEMANTICS 30)."""
    cluster = clusters.build(items)
    state = NodeState(cluster, clusters.NODE, Settings(front_from=front_from))
    kernel = apply(Ruleset({}, {}), diff(*state.pending()))
    state.applied()
    for _ in range(3):
        for event in data.draw(st.lists(clusters.alterations(cluster), min_size=1, max_size=4)):
            state.follow(play(cluster, event))  # type: ignore[arg-type]  # a Change
        old, steps = kernel, diff(*state.pending())
        state.applied()
        new = apply(old, steps)
        asked = packets(cluster)
        before, after = passing(old, asked), passing(new, asked)
        for done, step in enumerate(steps, 1):
            kernel = apply(kernel, (step,))
            now = passing(kernel, asked)
            assert before & after <= now, (done, steps)
            assert now <= before | after, (done, steps)
        assert kernel == new
        assert new.sets == state.wanted().sets


@settings(slow, max_examples=MANY)
@given(clusters.clusters(), st.data())
def test_a_change_that_breaks_off_is_taken_up_from_where_it_is(items: tuple[Object, ...], data: st.DataObject) -> None:
    """After any steps of a batch, and of a second and a third that break off too, what is found is made into what is wanted: by the law."""
    cluster = clusters.build(items)
    state = NodeState(cluster, clusters.NODE)
    kernel = apply(Ruleset({}, {}), diff(*state.pending()))
    for _ in range(4):
        for event in data.draw(st.lists(clusters.alterations(cluster), max_size=4)):
            state.follow(play(cluster, event))  # type: ignore[arg-type]  # a Change
        wanted = state.wanted()
        steps = diff(wanted, kernel)
        asked = packets(cluster)
        before, after = passing(kernel, asked), passing(wanted, asked)
        for step in steps[: data.draw(st.integers(0, len(steps)))]:
            kernel = apply(kernel, (step,))
            now = passing(kernel, asked)
            assert before & after <= now <= before | after, steps
    kernel = apply(kernel, diff(state.wanted(), kernel))
    assert kernel == state.wanted()


def labelled(name: str, address: int, **labels: str) -> Pod:
    return Pod("red", name, tuple(sorted(labels.items())), clusters.NODE, (bytes((10, 0, 0, address)),))


def selecting(**labels: str) -> Selector:
    return Selector(tuple(Requirement(key, "In", (value,)) for key, value in sorted(labels.items())))


def rule_for(**labels: str) -> PolicyRule:
    return PolicyRule((Query("red", EVERYTHING, selecting(**labels)),))


OPPOSED = (
    # p may reach who has y; q accepts who has x. First p has x and q lacks y, then the reverse: never both.
    (
        labelled("p", 1, app="p", x="1"),
        labelled("q", 2, app="q"),
        Policy("red", "out", selecting(app="p"), None, (rule_for(y="1"),)),
        Policy("red", "in", selecting(app="q"), (rule_for(x="1"),), None),
    ),
    (labelled("p", 1, app="p"), labelled("q", 2, app="q", y="1")),
)
A_RULE_COMES = (
    # m leaves the peers with x while b begins to accept them: b never accepts m.
    (
        labelled("m", 1, x="1"),
        labelled("a", 2, app="a"),
        labelled("b", 3, app="b"),
        Policy("red", "a", selecting(app="a"), (rule_for(x="1"),), None),
        Policy("red", "b", selecting(app="b"), (), None),
    ),
    (labelled("m", 1), Policy("red", "b", selecting(app="b"), (rule_for(x="1"),), None)),
)
A_RULE_GOES = (
    # m joins the peers with x while b ceases to accept them: b never accepts m.
    (
        labelled("m", 1),
        labelled("a", 2, app="a"),
        labelled("b", 3, app="b"),
        Policy("red", "a", selecting(app="a"), (rule_for(x="1"),), None),
        Policy("red", "b", selecting(app="b"), (rule_for(x="1"),), None),
    ),
    (labelled("m", 1, x="1"), Policy("red", "b", selecting(app="b"), (), None)),
)


# The source may not send any more; the destination may receive.
ISOLATION_MOVES: tuple[tuple[Object, ...], tuple[Object, ...]] = (
    (
        labelled("k", 0, app="a"),
        labelled("l", 1, app="b"),
        labelled("m", 2, app="c"),
        Policy("red", "a", selecting(app="b"), (), None),
        Policy("red", "c", selecting(app="c"), (), ()),
    ),
    (labelled("l", 1), Policy("red", "b", selecting(app="a"), None, ())),
)


@pytest.mark.parametrize("front_from", [1, FRONT_FROM])
@pytest.mark.parametrize(
    ("items", "batch"),
    [
        pytest.param(*OPPOSED, id="two-ends"),
        pytest.param(*A_RULE_COMES, id="a-rule-comes"),
        pytest.param(*A_RULE_GOES, id="a-rule-goes"),
        pytest.param(*ISOLATION_MOVES, id="isolation-moves"),
    ],
)
def test_the_traps_of_a_change(items: tuple[Object, ...], batch: tuple[Object, ...], front_from: int) -> None:
    """The orders that would open a window, each made by hand: on the way nothing passes that neither state allows."""
    cluster = clusters.build((Namespace("red"), *items))
    state = NodeState(cluster, clusters.NODE, Settings(front_from=front_from))
    kernel = apply(Ruleset({}, {}), diff(*state.pending()))
    state.applied()
    for item in batch:
        state.follow(cluster.put(item))
    steps = diff(*state.pending())
    asked = packets(cluster)
    before, after = passing(kernel, asked), passing(apply(kernel, steps), asked)
    for step in steps:
        kernel = apply(kernel, (step,))
        now = passing(kernel, asked)
        assert before & after <= now <= before | after, step


def packets(cluster: Cluster) -> list[Packet]:
    """Flows between all addresses in use, on the few ports that policies can tell apart here."""
    return [Packet(f.source, f.destination, f.protocol, f.port, 40000) for f in clusters.flows(cluster) if f.port in (None, 80, 443)]


def passing(kernel: Ruleset, asked: list[Packet]) -> set[Packet]:
    return {packet for packet in asked if interpret(kernel, packet).passes}


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
            sets[step.name] = old.with_members(grown)
        elif isinstance(step, ReplaceTable):
            chains[step.family] = step.chains
            hooked.add(step.family)
        else:
            assert isinstance(step, DestroySet)
            del sets[step.name]
    return Ruleset(chains, sets, frozenset(hooked), kernel.table)
