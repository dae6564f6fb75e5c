"""Which running flows are cut: each entry judged as its first packet was, by the rules in force."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from netpol.model import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Address,
    IPBlock,
    Namespace,
    Network,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Requirement,
    Selector,
    network,
    parse_address,
    parse_network,
)
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import verdict
from netpol.rules import ruleset
from netpol.rules.compile import NodeState, Settings
from netpol.rules.cut import Judge
from netpol.rules.flows import EXPECTED, HAS_PORTS, IS_ICMP, PICKED_UP, SIZE, Entry, Tuple, each_once, ends, pack, unpack
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, Ruleset, SetMatch
from netpol.rules.sets import Set, net_member, net_port_member
from tests import clusters

BIT, OTHERS = 0x10000000, 0x4005
WEB, DB, FREE = (parse_address(f"10.244.0.{i}") for i in (1, 2, 3))
WEB6, DB6 = parse_address("fd00:244::1"), parse_address("fd00:244::2")
OUTSIDE, OUTSIDE6, SERVICE = parse_address("192.0.2.9"), parse_address("2001:db8::9"), parse_address("10.96.0.1")
BRIDGE = parse_address("10.244.0.254")
PODS = (WEB, DB, FREE, WEB6, DB6)
LOCAL = (BRIDGE, parse_address("192.168.0.1"))


def pod(name: str, *addresses: Address) -> Pod:
    return Pod("x", name, (("app", name),), "n", addresses)


def selecting(name: str) -> Selector:
    return Selector((Requirement("app", "In", (name,)),))


BASE: tuple[Object, ...] = (Namespace("x"), Node("n"), pod("web", WEB, WEB6), pod("db", DB, DB6), pod("free", FREE))
ONLY_OUTSIDE = (IPBlock(network(OUTSIDE, 24)), IPBlock(network(OUTSIDE6, 32)))
# web answers to the outside on 80 and speaks to nobody; db speaks to anybody, is spoken to by web alone, who may not speak.
RULES: tuple[Object, ...] = (
    Policy("x", "web", selecting("web"), (PolicyRule(ONLY_OUTSIDE, (NumberedPort(TCP, 80, 80),)),), ()),
    Policy("x", "db", selecting("db"), (PolicyRule((IPBlock(network(WEB, 32)),), None),), None),
)


def ruleset_of(*items: Object) -> Ruleset:
    cluster = Cluster()
    for item in items:
        cluster.put(item)
    return NodeState(cluster, "n", Settings()).wanted()


IN_FORCE = ruleset_of(*BASE, *RULES)


def entry(
    source: Address,
    destination: Address,
    port: int = 80,
    protocol: int = TCP,
    via: Address = b"",
    flags: int = HAS_PORTS,
    source_port: int = 40000,
) -> Entry:
    """A flow to a port of a destination; `via` the address, port 8080, at which its client knows it."""
    original = Tuple(source, via or destination, source_port, 8080 if via else port)
    return Entry(protocol, original, Tuple(destination, source, port, source_port), flags=flags)


def echo(source: Address, destination: Address, type: int) -> Entry:
    protocol = ICMP if len(source) == 4 else ICMPV6
    return Entry(protocol, Tuple(source, destination, 7, type << 8), Tuple(destination, source, 7, 0), flags=IS_ICMP)


def masqueraded(found: Entry, by: Address) -> Entry:
    return replace(found, reply=replace(found.reply, destination=by, destination_port=1025))


JUDGED: dict[str, tuple[Entry, bool]] = {
    "allowed by ingress": (entry(OUTSIDE, WEB), False),
    "denied by ingress, port": (entry(OUTSIDE, WEB, 81), True),
    "denied by ingress, protocol": (entry(OUTSIDE, WEB, 80, UDP), True),
    "denied by ingress, SCTP": (entry(OUTSIDE, WEB, 80, SCTP), True),
    "denied by ingress, a protocol without ports": (entry(OUTSIDE, WEB, 0, 47, flags=0), True),
    "denied by egress": (entry(WEB, OUTSIDE), True),
    "ipv6 allowed": (entry(OUTSIDE6, WEB6), False),
    "ipv6 denied": (entry(WEB6, OUTSIDE6), True),
    "both ends here, one denies": (entry(WEB, DB), True),
    "both ends here, the other denies": (entry(FREE, DB), True),
    "both ends here and free": (entry(DB, FREE), False),
    "not isolated": (entry(OUTSIDE, FREE, 22), False),
    "translated, allowed by the backend's port": (entry(OUTSIDE, WEB, 80, via=SERVICE), False),
    "translated, denied by the backend's port": (entry(OUTSIDE, WEB, 8080, via=SERVICE), True),
    "translated, denied by the backend": (entry(FREE, DB, via=SERVICE), True),
    "a service's address is no end": (entry(OUTSIDE, OUTSIDE, via=WEB), False),
    "a node port": (entry(OUTSIDE, WEB, 81, via=LOCAL[1]), True),
    "masqueraded, judged by its true source": (masqueraded(entry(WEB, OUTSIDE), LOCAL[1]), True),
    "masqueraded and free": (masqueraded(entry(FREE, OUTSIDE), LOCAL[1]), False),
    "ping denied": (echo(FREE, DB, 8), True),
    "ping allowed": (echo(WEB, OUTSIDE, 8), True),
    "ping of IPv6 denied": (echo(OUTSIDE6, DB6, 128), True),
    "ICMPv6 that always passes": (echo(OUTSIDE6, DB6, 135), False),
    "no end is ours": (entry(OUTSIDE, parse_address("10.9.9.9")), False),
    "the node to a pod": (entry(BRIDGE, DB, 5432), False),
    "a pod to the node": (entry(WEB, LOCAL[1], 53, UDP), False),
    "a pod to itself": (entry(WEB, WEB, 81), False),
    "a pod to itself through a service": (masqueraded(entry(WEB, WEB, 81, via=SERVICE), BRIDGE), False),
    "announced by another connection": (replace(entry(OUTSIDE, WEB, 81), status=EXPECTED), False),
    # db may be called by web, and web may not call: reversed roles.
    "picked up as it was": (entry(OUTSIDE, WEB, 80, flags=HAS_PORTS | PICKED_UP), False),
    "picked up, server speaking, allowed": (entry(WEB, OUTSIDE, 40000, flags=HAS_PORTS | PICKED_UP, source_port=80), False),
    "picked up, server speaking, denied": (entry(WEB, OUTSIDE, 40000, flags=HAS_PORTS | PICKED_UP, source_port=81), True),
    "picked up, client speaking, denied": (entry(WEB, OUTSIDE, 443, flags=HAS_PORTS | PICKED_UP), True),
    "picked up, nobody knows, one way allowed": (entry(DB, OUTSIDE, 50051, flags=HAS_PORTS | PICKED_UP), False),
    "picked up, nobody knows, the other way allowed": (entry(OUTSIDE, DB, 50051, flags=HAS_PORTS | PICKED_UP), False),
    "picked up, nobody knows, both denied": (entry(WEB, OUTSIDE, 50051, flags=HAS_PORTS | PICKED_UP), True),
    "picked up, no port is a client's, both denied": (entry(WEB, OUTSIDE, 443, flags=HAS_PORTS | PICKED_UP, source_port=1024), True),
    "picked up, no port is a client's, one allowed": (entry(WEB, OUTSIDE, 443, flags=HAS_PORTS | PICKED_UP, source_port=80), False),
}


@pytest.mark.parametrize(("found", "denied"), JUDGED.values(), ids=JUDGED)
def test_judged(found: Entry, denied: bool) -> None:
    """Whether an entry is denied, alone and among many; it is to be marked then, and un-marked where it has the bit and is not."""
    judge = Judge(IN_FORCE, PODS, LOCAL)
    assert judge.denied(found) is denied
    clear, cut = replace(found, mark=OTHERS), replace(found, mark=OTHERS | BIT)
    for _ in range(2):
        cuts = judge.sort_out(pack([clear, cut, clear, cut]), BIT)
        assert list(unpack(cuts.mark)) == ([clear] * 2 if denied else [])
        assert list(unpack(cuts.unmark)) == ([] if denied else [cut] * 2)


def test_nothing_is_denied_where_nothing_is_in_force() -> None:
    """Without rules, without a jump to them, or with no policy: whatever has the bit loses it."""
    entries = pack(replace(found, mark=BIT) for found, _ in JUDGED.values())
    for found in (Ruleset({}, {}), replace(IN_FORCE, hooked=frozenset()), ruleset_of(*BASE)):
        cuts = Judge(found, PODS, LOCAL).sort_out(entries, BIT)
        assert (cuts.mark, cuts.unmark) == (b"", entries)


def test_an_address_that_is_no_pod_s_any_more() -> None:
    """While the rules are still there and the pod is not: its flows are nobody's, and lose the bit."""
    denied = pack([replace(entry(OUTSIDE, DB), mark=BIT)])
    assert Judge(IN_FORCE, PODS).sort_out(denied, BIT).unmark == b""
    assert Judge(IN_FORCE, (WEB, FREE)).sort_out(denied, BIT).unmark == denied


def test_an_address_that_changed_its_holder() -> None:
    """db's address is a free pod's, then web's: flows of the old holder that the new one may not have are cut, others are not."""
    others = [item for item in BASE if item is not BASE[3]]
    calls, called = entry(DB, OUTSIDE), entry(OUTSIDE, DB)
    expected = {"db": [called], "free": [], "web": [calls]}
    for name, cut in expected.items():
        found = ruleset_of(*others, replace(pod("new", DB), labels=(("app", name),)), *RULES)
        assert list(unpack(Judge(found, PODS).sort_out(pack([calls, called]), BIT).mark)) == cut


@given(clusters.clusters(), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_specification_agrees(items: tuple[Object, ...], data: st.DataObject) -> None:
    """Of any cluster: a flow of this node's pods is cut exactly when one of its two ends here denies it."""
    cluster = clusters.build(items)
    pods = {a for pod in cluster.all_pods() if pod.node == clusters.NODE and not pod.host_network for a in pod.addresses}
    pods = {address for address in pods if (holder := cluster.holder(address)) is not None and holder.node == clusters.NODE}
    judge = Judge(NodeState(cluster, clusters.NODE, Settings(unknown_pods="allow")).wanted(), pods, cluster.nodes[clusters.NODE].addresses)
    for flow in data.draw(st.lists(st.sampled_from(clusters.flows(cluster)), max_size=40)):
        found = entry(flow.source, flow.destination, flow.port or 0, flow.protocol, flags=0 if flow.port is None else HAS_PORTS)
        if flow.protocol == ICMP:
            found = echo(flow.source, flow.destination, 8)
        said = verdict(cluster, flow)
        denied = (flow.source in pods and said.egress.standing == "denied") or (
            flow.destination in pods and said.ingress.standing == "denied"
        )
        assert judge.denied(found) is (denied and flow.source != flow.destination), flow


NEAR = (OUTSIDE, parse_address("192.0.2.200"), parse_address("192.0.3.1"), DB)
FILLER = [parse_network(f"198.18.{i}.0/{25 + i % 8}") for i in range(100)]
networks = st.tuples(st.builds(network, st.sampled_from(NEAR), st.integers(20, 32)), st.booleans())


@given(st.sets(networks, max_size=12), st.sampled_from(("src", "dst")), st.booleans())
@settings(max_examples=100, deadline=None)
def test_large_sets_of_networks_are_judged_as_small_ones(
    nets: set[tuple[Network, bool]], direction: Literal["src", "dst"], ports: bool
) -> None:
    """Looking up only the members around an address gives what the interpreter finds in the whole set, nomatch and ports included."""
    every = {*nets, *((net, False) for net in FILLER)}
    if ports:
        asked = SetMatch("s", (direction, "dst"))
        found = Set("s", "hash:net,port", 4, frozenset(net_port_member(net, UDP, 53, nomatch) for net, nomatch in every))
    else:
        asked, found = SetMatch("s", (direction,)), Set("s", "hash:net", 4, frozenset(net_member(net, nomatch) for net, nomatch in every))
    chain = Chain(ROOT, (ruleset.Rule(RETURN, (asked,)), ruleset.Rule(DROP)))
    whole = Ruleset({4: {ROOT: chain}}, {"s": found}, frozenset((4,)))
    judge = Judge(whole, PODS)
    for source in (*NEAR[:-1], parse_address("198.18.3.5")):
        for port in (53, 54):
            plain = interpret(whole, Packet(source, DB, UDP, port)).passes
            assert judge.denied(entry(source, DB, port, UDP)) is not plain


def test_the_ends_of_packed_entries() -> None:
    """Of both families; of a Service's flow the backend, and not the Service's address."""
    to_service = Entry(TCP, Tuple(OUTSIDE, SERVICE, 40000, 80), Tuple(WEB, OUTSIDE, 8080, 40000))
    assert ends(pack([to_service, entry(DB6, OUTSIDE6)])) == {OUTSIDE, WEB, DB6, OUTSIDE6}
    assert ends(b"") == frozenset()


def test_packed_and_unpacked() -> None:
    """Entries come out of their packed form as they went in, and say what they are."""
    entries = [found for found, _ in JUDGED.values()] + [replace(entry(OUTSIDE, WEB), mark=1, status=2, zone=3)]
    packed = pack(entries)
    assert len(packed) == len(entries) * SIZE
    assert list(unpack(packed)) == entries
    assert str(entries[-1]) == "TCP 192.0.2.9:40000 > 10.244.0.1:80, replies 10.244.0.1:80 > 192.0.2.9:40000, zone 3"
    assert [found.family for found in entries[:8]] == [4, 4, 4, 4, 4, 4, 6, 6]


def test_each_flow_once() -> None:
    """What it is known by counts, and of that all: not its mark, nor its status. The later word holds, in the place of the first."""
    flow = Entry(TCP, Tuple(WEB, DB, 1000, 80), Tuple(DB, WEB, 80, 1000), 1, 2, 3)
    others = [replace(flow, zone=4), replace(flow, flags=HAS_PORTS | PICKED_UP), replace(flow, protocol=UDP)]
    others += [replace(flow, original=Tuple(WEB, DB, 1001, 80)), replace(flow, reply=Tuple(DB, WEB, 80, 1001))]
    assert each_once(pack([flow, *others, *others, replace(flow, mark=5, status=6)])) == pack([replace(flow, mark=5, status=6), *others])
    assert each_once(b"") == b""
