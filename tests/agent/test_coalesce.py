"""Events left out of a batch make no difference: held against a cluster that gets them all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.agent.coalesce import coalesced
from netpol.kube.events import Gone, Put
from netpol.model import EVERYTHING, Namespace, Node, Pod, Policy, PolicyRule
from netpol.policy.cluster import Cluster

HOSTS = [bytes((10, 0, 0, last)) for last in range(1, 4)]

PODS = st.builds(
    Pod,
    st.sampled_from(["x", "y"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([(), (("app", "web"),)]),
    st.just("n"),
    st.lists(st.sampled_from(HOSTS), max_size=2, unique=True).map(tuple),
    host_network=st.booleans(),
    finished=st.booleans(),
)
OBJECTS = st.one_of(
    PODS,
    st.builds(Namespace, st.sampled_from(["x", "y"]), st.sampled_from([(), (("a", "b"),)])),
    st.builds(Policy, st.just("x"), st.sampled_from(["p", "q"]), st.just(EVERYTHING), st.sampled_from([None, (PolicyRule(),)]), st.none()),
    st.builds(Node, st.just("n"), st.lists(st.sampled_from(HOSTS), max_size=1).map(tuple)),
)
EVENTS = st.lists(
    st.one_of(
        st.builds(Put, OBJECTS),
        st.builds(Gone, st.just(Pod), st.sampled_from(["a", "b"]), st.sampled_from(["x", "y"])),
        st.builds(Gone, st.just(Policy), st.sampled_from(["p", "q"]), st.just("x")),
        st.builds(Gone, st.just(Namespace), st.sampled_from(["x", "y"])),
    ),
    max_size=30,
)


def after(cluster: Cluster, events: list[Put | Gone]) -> tuple[object, ...]:
    """All there is to know of a cluster after events."""
    for event in events:
        if isinstance(event, Put):
            cluster.put(event.object)
        else:
            cluster.drop(event.kind, event.name, event.namespace)
    holders = {host: cluster.holder(host) for host in HOSTS}
    return {pod.key: pod for pod in cluster.all_pods()}, dict(cluster.policies), dict(cluster.namespaces), dict(cluster.nodes), holders


@settings(max_examples=300, deadline=None)
@given(EVENTS, EVENTS)
def test_what_is_left_out_makes_no_difference(before: list[Put | Gone], events: list[Put | Gone]) -> None:
    """Who holds which address included, whatever the cluster held before."""
    whole, less = Cluster(), Cluster()
    after(whole, before)
    after(less, before)
    assert after(whole, events) == after(less, coalesced(events))


X, Y = Pod("x", "a", (), "n", (HOSTS[0],)), Pod("x", "a", (("app", "web"),), "n", (HOSTS[0],))
MOVED, OTHER = Pod("x", "a", (), "n", (HOSTS[1],)), Pod("x", "b", (), "n", (HOSTS[0],))
GONE = Gone(Pod, "a", "x")


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        pytest.param([Put(X), Put(Y)], [Put(Y)], id="a pod's labels"),
        pytest.param([Put(X), Put(OTHER), Put(Y)], [Put(Y), Put(OTHER)], id="a pod keeps its turn"),
        pytest.param([Put(X), Put(MOVED)], [Put(X), Put(MOVED)], id="a pod's address"),
        pytest.param([Put(X), GONE, Put(Y)], [Put(X), GONE, Put(Y)], id="a pod that went between"),
        pytest.param([GONE, Put(X), Put(Y)], [GONE, Put(Y)], id="after it went"),
        pytest.param([Put(Namespace("x")), Put(Namespace("x", (("a", "b"),)))], [Put(Namespace("x", (("a", "b"),)))], id="a namespace"),
        pytest.param([Put(Namespace("x")), Put(Node("x"))], [Put(Namespace("x")), Put(Node("x"))], id="kinds are apart"),
    ],
)
def test_which_events_count(events: list[Put | Gone], kept: list[Put | Gone]) -> None:
    """Case by case."""
    assert coalesced(events) == kept
