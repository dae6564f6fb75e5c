"""What the conformance cases do not exercise, on the wire: random clusters, ICMP, the node, Services, the hairpin, unknown addresses.

The ids carry the numbers of the semantics. Services are made with the real `iptables-legacy`, as kube-proxy makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from msgspec.structs import replace

from netpol.cli.connections import by_packets, by_rules, by_spec, connections, disagreements, services
from netpol.kernel.apply import Kernel
from netpol.lab import NODE, Answer, Host, Lab, Probe
from netpol.model import (
    EVERYTHING,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    ContainerPort,
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
    network,
    parse_address,
)
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings
from netpol.rules.diff import diff
from tests import clusters
from tests.referees import run

A4, B4, C4 = (parse_address(f"10.244.0.{i}") for i in (10, 20, 30))
A6, B6, C6 = (parse_address(f"fd00:244::{i}") for i in (10, 20, 30))
NODE_ADDRESSES = (parse_address("192.168.77.1"), parse_address("fd00:77::1"))
CIDRS = (network(A4, 24), network(A6, 64))
LISTENS = ((TCP, 80), (UDP, 80))
HOSTS = (Host("a", (A4, A6), LISTENS), Host("b", (B4, B6), LISTENS), Host("c", (C4, C6), LISTENS))
A, B = Pod("x", "a", addresses=(A4, A6), node="n"), Pod("x", "b", (("app", "b"),), addresses=(B4, B6), node="n")
BASE: tuple[Object, ...] = (Namespace("x"), Node("n", NODE_ADDRESSES, CIDRS), A, B)
NAT = ("iptables-legacy", "-w", "-t", "nat", "-A")
OWN_NAMESPACE = Query("x", EVERYTHING, EVERYTHING)


class World:
    """A lab of three hosts whose kernel follows a cluster. Pods a and b are known to it, c is an address and no more."""

    def __init__(self, lab: Lab, kernel: Kernel, wish: Settings) -> None:
        self.lab, self.kernel = lab, kernel
        self.cluster = Cluster()
        self.state = NodeState(self.cluster, "n", wish)

    def put(self, *items: Object) -> None:
        for item in items:
            self.state.follow(self.cluster.put(item))
        with self.lab.entered():
            self.kernel.apply(diff(*self.state.pending()))
        self.state.applied()

    def probe(self, source: str, destination: bytes, protocol: int = TCP, port: int = 80) -> Answer:
        def dropped() -> int:
            with self.lab.entered():
                return self.kernel.dropped()

        return self.lab.probe([Probe(source, destination, protocol, port)], dropped=dropped)[0]

    def tool(self, *command: str) -> str:
        with self.lab.entered():
            return run(*command)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


@contextmanager
def world(wish: Settings | None = None) -> Iterator[World]:
    with Lab(HOSTS, NODE_ADDRESSES) as lab:
        with lab.entered():
            kernel = Kernel((wish or Settings()).table)
        with kernel:
            made = World(lab, kernel, wish or Settings())
            made.put(*BASE)
            yield made


def isolate(name: str, pods: str, ingress: tuple[PolicyRule, ...] | None = None, egress: tuple[PolicyRule, ...] | None = None) -> Policy:
    selector = Selector((Requirement("app", "In", (pods,)),)) if pods else EVERYTHING
    return Policy("x", name, selector, ingress, egress)


@pytest.mark.usefixtures("lock")
@settings(max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(clusters.clusters())
def test_random_clusters_three_ways(items: tuple[Object, ...]) -> None:
    """Specification, interpreted rules and real packets agree on every connection of a random cluster."""
    cluster = clusters.build(items)
    asked = connections(cluster, services(cluster))
    wish = Settings(unknown_pods="allow")
    said = {
        "spec": by_spec(cluster, asked),
        "rules": by_rules(cluster, asked, wish),
        "packets": by_packets(cluster, asked, wish, lambda words: None) if asked else [],
    }
    assert disagreements(asked, said) == []  # type: ignore[arg-type]  # the keys are engines


@pytest.mark.usefixtures("lock")
def test_25_other_protocols_pass_rules_without_ports_only() -> None:
    """Ping reaches an isolated pod by a rule without ports, and not by one with ports, in both families."""
    with world() as w:
        w.put(isolate("p", "b", ingress=(PolicyRule(),)))
        assert w.probe("a", B4, ICMP, 0).outcome == "reached"
        assert w.probe("a", B6, ICMPV6, 0).outcome == "reached"
        w.put(isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(TCP, 0, 65535), NumberedPort(UDP, 0, 65535))),)))
        assert w.probe("a", B4, ICMP, 0).outcome == "silent"
        assert w.probe("a", B6, ICMPV6, 0).outcome == "silent"
        assert w.probe("a", B6, UDP).outcome == "reached"


@pytest.mark.usefixtures("lock")
def test_25_errors_of_an_allowed_flow_come_back() -> None:
    """A port where nobody listens answers "refused" through b's isolation: the ICMP error is RELATED to the flow that was allowed."""
    with world() as w:
        w.put(isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(UDP, 7, 7),)),), egress=()))
        assert w.probe("a", B4, UDP, 7).outcome == "refused"
        assert w.probe("a", B6, UDP, 7).outcome == "refused"
        assert w.probe("a", B4, UDP, 8).outcome == "silent"


@pytest.mark.usefixtures("lock")
def test_26_replies_pass_and_only_replies() -> None:
    """b may not speak first, yet its answers to a reach a."""
    with world() as w:
        w.put(isolate("p", "b", ingress=(PolicyRule(),), egress=()))
        assert w.probe("a", B4).outcome == "reached"
        assert w.probe("b", A4).outcome == "silent"


@pytest.mark.usefixtures("lock")
def test_27_the_node_and_its_pods_always_reach_each_other() -> None:
    """Both ways, both families, while b is isolated from everybody."""
    with world() as w:
        w.put(isolate("p", "b", ingress=(), egress=()))
        assert w.probe("a", B4).outcome == "silent"
        assert w.probe(NODE, B4).outcome == "reached"
        assert w.probe(NODE, B6, UDP).outcome == "reached"
        # Nobody listens on the node: that it refuses shows that it was reached.
        assert [w.probe("b", address).outcome for address in NODE_ADDRESSES] == ["refused", "refused"]


@pytest.mark.usefixtures("lock")
def test_28_a_pod_reaches_itself_through_a_service() -> None:
    """A Service whose backend is the client: DNAT and masquerade bring its own packet back; isolation does not stop it."""
    with world() as w:
        w.put(isolate("p", "b", ingress=(), egress=()))
        w.tool(*NAT, "PREROUTING", "-d", "10.96.0.1", "-j", "DNAT", "--to-destination", "10.244.0.20")
        w.tool(*NAT, "POSTROUTING", "-s", "10.244.0.20", "-d", "10.244.0.20", "-j", "MASQUERADE")
        service = parse_address("10.96.0.1")
        assert w.probe("b", service) == Answer("reached", "b")
        assert w.probe("a", service).outcome == "silent"


@pytest.mark.usefixtures("lock")
def test_21_policies_see_the_backend_and_the_client() -> None:
    """Behind a Service with another port, ingress is judged by the pod's own port, and egress by the pod's own address."""
    with world() as w:
        w.tool(*NAT, "PREROUTING", "-p", "tcp", "-d", "10.96.0.1", "--dport", "8080", "-j", "DNAT", "--to-destination", "10.244.0.20:80")
        service = parse_address("10.96.0.1")
        w.put(isolate("p", "b", ingress=(PolicyRule((IPBlock(Network(A4, 32)),), (NumberedPort(TCP, 80, 80),)),)))
        assert w.probe("a", service, TCP, 8080) == Answer("reached", "b")
        w.put(isolate("p", "b", ingress=(PolicyRule((IPBlock(Network(A4, 32)),), (NumberedPort(TCP, 8080, 8080),)),)))
        assert w.probe("a", service, TCP, 8080).outcome == "silent"
        w.put(isolate("p", "b", ingress=(PolicyRule(),)), isolate("q", "", egress=(PolicyRule((IPBlock(Network(service, 32)),)),)))
        assert w.probe("a", service, TCP, 8080).outcome == "silent"


STARTING = Pod("x", "late", (("app", "b"),), node="n")


@pytest.mark.usefixtures("lock")
@pytest.mark.parametrize(
    ("mode", "policies", "items", "outcome"),
    [
        pytest.param("allow", True, (STARTING,), "reached", id="allow"),
        pytest.param("deny", True, (), "silent", id="deny"),
        pytest.param("deny", False, (), "reached", id="deny-without-any-policy"),
        pytest.param("auto", True, (), "reached", id="auto-while-none-starts"),
        pytest.param("auto", True, (STARTING,), "silent", id="auto-while-an-isolated-pod-starts"),
        pytest.param("auto", True, (replace(STARTING, labels=()),), "reached", id="auto-while-a-free-pod-starts"),
    ],
)
def test_29_unknown_addresses(mode: str, policies: bool, items: tuple[Object, ...], outcome: str) -> None:
    """c has an address of the node's ranges and is no known pod. Known pods, free or isolated, and the node are as they were."""
    with world(Settings(unknown_pods=mode)) as w:  # type: ignore[arg-type]  # one of the three
        w.put(*items, *((isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(TCP, 80, 80),)),)),) if policies else ()))
        assert [w.probe("a", address).outcome for address in (C4, C6)] == [outcome, outcome]
        assert w.probe("c", A4).outcome == outcome
        assert w.probe(NODE, C4).outcome == "reached"
        assert w.probe("a", B4).outcome == "reached"
        assert w.probe("b", A6).outcome == "reached"
        assert w.probe("a", B4, UDP).outcome == ("silent" if policies else "reached")
        # The pod becomes known, with labels that no policy selects: it is free at once.
        w.put(Pod("x", "late", addresses=(C4, C6), node="n"))
        assert [w.probe("a", address).outcome for address in (C4, C6)] == ["reached", "reached"]


@pytest.mark.usefixtures("lock")
def test_19_an_address_is_its_new_holder_s_at_once() -> None:
    """b's address goes to a free pod while the old one is still listed: it is free; when b goes for good nothing changes."""
    with world() as w:
        w.put(isolate("p", "b", ingress=()))
        assert w.probe("a", B4).outcome == "silent"
        w.put(Pod("x", "new", addresses=(B4,), node="n"))
        assert w.probe("a", B4).outcome == "reached"
        assert w.probe("a", B6).outcome == "silent"
        w.state.follow(w.cluster.drop(Pod, "b", "x"))
        w.put(Namespace("unrelated"))
        assert w.probe("a", B4).outcome == "reached"


@pytest.mark.usefixtures("lock")
def test_24_a_named_port_follows_the_pod() -> None:
    """Egress to a named port reaches the number that the destination declares under it, and follows when another pod takes its place."""
    named = replace(A, ports=(ContainerPort("web", TCP, 80),))
    with world() as w:
        w.put(named, isolate("p", "b", egress=(PolicyRule((OWN_NAMESPACE,), (NamedPort(TCP, "web"),)),)))
        assert w.probe("b", A4).outcome == "reached"
        assert w.probe("b", A4, UDP).outcome == "silent"
        w.put(replace(A, ports=(ContainerPort("web", TCP, 81),)))
        assert w.probe("b", A4).outcome == "silent"
        assert w.probe("b", A4, TCP, 81).outcome == "refused"


@pytest.mark.usefixtures("lock")
@pytest.mark.parametrize("family", [4, 6])
def test_35_untracked_packets_are_judged_as_new(family: int) -> None:
    """UDP that somebody's raw table does not track passes where a rule allows it, both ways; its answer where one allows the answer."""
    to, tool = (B4, "iptables-legacy") if family == 4 else (B6, "ip6tables-legacy")
    everything = PolicyRule(ports=(NumberedPort(UDP, 1, 65535),))
    with world() as w:
        w.put(isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(UDP, 80, 80),)),)))
        w.put(isolate("q", "", egress=(everything,)))
        w.tool(tool, "-w", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "CT", "--notrack")
        assert w.probe("a", to, UDP).outcome == "reached"
        w.put(isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(UDP, 81, 81),)),)))
        assert w.probe("a", to, UDP).outcome == "silent"
        w.put(isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(UDP, 80, 80),)),)))
        # A tracked answer would pass: it is a new packet here, that nobody may send to a.
        w.put(Policy("x", "r", Selector((Requirement("app", "DoesNotExist"),)), (), None))
        assert w.probe("a", to, UDP).outcome == "silent"
        w.tool(tool, "-w", "-t", "raw", "-F", "PREROUTING")
        assert w.probe("a", to, UDP).outcome == "reached"
