"""Random small clusters, biased to the ugly corners: few labels and addresses, so that things coincide."""

from __future__ import annotations

from itertools import product
from typing import Literal

from hypothesis import strategies as st
from msgspec.structs import replace

from netpol.model import (
    EVERYTHING,
    SCTP,
    TCP,
    UDP,
    Address,
    ContainerPort,
    Flow,
    IPBlock,
    NamedPort,
    Namespace,
    Network,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    canonical,
    network,
    parse_address,
)
from netpol.policy.cluster import Cluster

NODE = "here"
NAMESPACES = ("red", "blue", "gone")
KEYS, VALUES = ("app", "tier"), ("a", "b")
NAMES = ("web", "dns")
V4 = tuple(parse_address(f"10.0.{i}.{j}") for i in (0, 1) for j in (1, 2, 3, 129))
V6 = tuple(parse_address(f"fd00::{i}:{j}") for i in (0, 1) for j in (1, 2, 9))
RANGES = network(V4[0], 24), network(V6[0], 112)  # in which some of these are
OUTSIDE = (parse_address("10.0.0.77"), parse_address("192.0.2.1"), parse_address("fd00::77"), parse_address("2001:db8::1"))
PROTOCOLS = (TCP, UDP, SCTP)
PORTS = (1, 80, 81, 443, 65535)

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2).map(lambda d: tuple(sorted(d.items())))


@st.composite
def _requirements(draw: st.DrawFn) -> Requirement:
    operators: tuple[Literal["In", "NotIn", "Exists", "DoesNotExist"], ...] = ("In", "NotIn", "Exists", "DoesNotExist")
    operator = draw(st.sampled_from(operators))
    values = draw(st.sets(st.sampled_from(VALUES), min_size=1)) if operator in ("In", "NotIn") else set()
    return Requirement(draw(st.sampled_from(KEYS)), operator, tuple(sorted(values)))


selectors = st.just(EVERYTHING) | st.sets(_requirements(), min_size=1, max_size=2).map(lambda found: Selector(tuple(sorted(found))))


def seldom() -> st.SearchStrategy[bool]:
    """True about once in ten times. (The engine's own booleans and integers lean to the ends of their range.)"""
    return st.sampled_from((False,) * 9 + (True,))


@st.composite
def blocks(draw: st.DrawFn) -> IPBlock:
    """An ipBlock around one of the addresses in use, with excepts inside it."""
    base = draw(st.sampled_from(V4 + V6 + OUTSIDE))
    width = len(base) * 8
    lengths = st.sampled_from((0, 1, 8, 16, 23, 24, 25, 31, 32) if width == 32 else (0, 1, 16, 64, 112, 127, 128))
    cidr = network(base, draw(lengths))
    excepts: set[Network] = set()
    for _ in range(draw(st.integers(0, 2))):
        inner = network(draw(st.sampled_from([a for a in V4 + V6 + OUTSIDE if a in cidr])), draw(lengths))
        if inner.length > cidr.length:
            excepts.add(inner)
    return IPBlock(cidr, tuple(sorted(excepts)))


@st.composite
def _queries(draw: st.DrawFn, own: str) -> Query:
    if draw(st.booleans()):
        return Query(own, EVERYTHING, draw(selectors))
    return Query("", draw(selectors), draw(selectors))


@st.composite
def _ports(draw: st.DrawFn) -> NumberedPort | NamedPort:
    protocol = draw(st.sampled_from(PROTOCOLS))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return NamedPort(protocol, draw(st.sampled_from(NAMES)))
    if kind == 1:
        return NumberedPort(protocol, 0, 65535)
    first, last = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
    return NumberedPort(protocol, first, last if kind == 2 else first)


@st.composite
def _rules(draw: st.DrawFn, own: str) -> PolicyRule:
    peers = [] if draw(seldom()) else draw(st.lists(_queries(own) | blocks(), min_size=1, max_size=5))
    ports = draw(st.just([]) | st.lists(_ports(), min_size=1, max_size=3))
    return PolicyRule(canonical(peers) if peers else None, canonical(ports) if ports else None)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    own = draw(st.sampled_from(NAMESPACES[:2] * 4 + NAMESPACES))
    rules = st.lists(_rules(own), min_size=1, max_size=3).map(tuple) | st.sampled_from((None, ()))
    return Policy(own, draw(st.sampled_from(("p", "q", "r"))), draw(selectors), draw(rules), draw(rules))


container_ports = st.sets(
    st.builds(ContainerPort, st.sampled_from(("", *NAMES)), st.sampled_from(PROTOCOLS), st.sampled_from(PORTS)), max_size=3
).map(lambda found: tuple(sorted(found)))


@st.composite
def pods(draw: st.DrawFn, taken: set[Address] | None = None) -> Pod:
    """A pod; with `taken` its addresses are not in it, and go into it."""
    addresses = []
    for pool in (V4, V6):
        free = [address for address in pool if taken is None or address not in taken]
        if free and not draw(seldom()):
            addresses.append(draw(st.sampled_from(free)))
    if taken is not None:
        taken.update(addresses)
    return Pod(
        namespace=draw(st.sampled_from(NAMESPACES[:2] * 4 + NAMESPACES)),
        name=draw(st.sampled_from(("one", "two", "three", "four"))),
        labels=draw(labels),
        node=draw(st.sampled_from((NODE, NODE, NODE, "there", ""))),
        addresses=tuple(addresses),
        ports=draw(container_ports),
        host_network=draw(seldom()),
        finished=draw(seldom()),
        terminating=draw(seldom()),
    )


namespaces = st.builds(Namespace, st.sampled_from(NAMESPACES[:2]), labels)
nodes = st.builds(Node, st.just(NODE), st.just((parse_address("192.0.2.10"),)), st.sampled_from(((), RANGES)))


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Object, ...]:
    """The objects of a cluster in which no address is held twice and no name stands twice, namespaces first."""
    taken: set[Address] = set()
    found: dict[object, Object] = {}
    for name in NAMESPACES[:2]:
        if not draw(seldom()):
            found[Namespace, name] = Namespace(name, draw(labels))
    for _ in range(draw(st.integers(3, 8))):
        pod = draw(pods(taken))
        found.setdefault((Pod, pod.key), pod)
    for policy in draw(st.lists(policies(), min_size=1, max_size=5)):
        found[Policy, policy.key] = policy
    node = draw(nodes)
    found[Node, node.name] = node
    return tuple(found.values())


@st.composite
def alterations(draw: st.DrawFn, cluster: Cluster) -> object:
    """An event that changes what is there: a pod's labels or ports, a namespace's labels, a policy; at times one goes or comes."""
    pods_there = sorted(cluster.all_pods(), key=str)
    if pods_there and not draw(seldom()) and draw(st.sampled_from((True, True, False))):
        pod = draw(st.sampled_from(pods_there))
        if draw(seldom()):
            return Pod, pod.namespace, pod.name
        return replace(pod, labels=draw(labels), ports=draw(st.just(pod.ports) | container_ports))
    return draw(namespaces | policies() | policies() | pods({a for pod in pods_there for a in pod.addresses}))


def build(items: tuple[Object, ...]) -> Cluster:
    cluster = Cluster()
    for item in items:
        cluster.put(item)
    return cluster


def flows(cluster: Cluster) -> list[Flow]:
    """Every flow that a policy of such a cluster could tell apart, that this node forwards: not a pod to itself by way of the node."""
    addresses = sorted({a for pod in cluster.all_pods() for a in pod.addresses} | set(OUTSIDE))
    services: list[tuple[int, int | None]] = [*product(PROTOCOLS, (1, 2, 80, 81, 82, 443, 65535)), (1, None), (47, None)]
    return [
        Flow(source, destination, protocol, port)
        for source, destination in product(addresses, addresses)
        if len(source) == len(destination)
        for protocol, port in services
    ]
