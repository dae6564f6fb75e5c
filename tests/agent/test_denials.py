"""Why a packet was denied, from the state alone: each reason, and the specification's word for all that policies deny."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.agent.denials import Denial, judge, unjudged
from netpol.agent.drops import as_it_began
from netpol.agent.limiter import Limiter
from netpol.kernel.nflog import Cut, Packet
from netpol.model import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Flow,
    Namespace,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Selector,
    network,
    parse_address,
)
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import verdict
from netpol.rules.compile import NodeState, Settings
from tests import clusters

NODE, HERE, THERE, FREE, HELD = (parse_address(f"10.0.0.{number}") for number in (1, 2, 3, 4, 5))
ALL = Selector()
OBJECTS: tuple[Object, ...] = (
    Namespace("x"),
    Namespace("y"),
    Namespace("z"),
    Node("n", (NODE,), (network(NODE, 24),)),
    Pod("x", "here", (), "n", (HERE,)),
    Pod("x", "there", (), "other", (THERE,)),
    Pod("y", "free", (), "n", (FREE,)),
    Pod("z", "held", (), "n", (HELD,)),
    Policy("x", "in", ALL, (PolicyRule(ports=(NumberedPort(TCP, 80, 80),)),), None),
    Policy("x", "more", ALL, (), None),
    Policy("z", "out", ALL, None, (PolicyRule(ports=(NumberedPort(TCP, 443, 443),)),)),
)
OUTSIDE = parse_address("192.0.2.1")
UNKNOWN = parse_address("10.0.0.99")


def state(settings: Settings | None = None) -> NodeState:
    made = NodeState(Cluster(), "n", settings)
    for item in OBJECTS:
        made.follow(made.cluster.put(item))
    made.wanted()
    return made


def packet(
    source: bytes, destination: bytes, protocol: int = TCP, ports: tuple[int, int] | None = (4000, 81), cut: Cut | None = None
) -> Packet:
    icmp = (8, 0) if protocol in (ICMP, ICMPV6) else None
    return Packet(0, source, destination, protocol, None if icmp else ports, icmp, 0, 0, False, False, cut)


CASES = {
    "into a pod": (packet(FREE, HERE), Denial("policy", "ingress", ("x/in", "x/more"), "y/free", "x/here")),
    "from outside": (packet(OUTSIDE, HERE, ICMP), Denial("policy", "ingress", ("x/in", "x/more"), "192.0.2.1", "x/here")),
    "without ports": (packet(FREE, HERE, TCP, None), Denial("policy", "ingress", ("x/in", "x/more"), "y/free", "x/here")),
    "out of a pod": (packet(HELD, OUTSIDE, UDP), Denial("policy", "egress", ("z/out",), "z/held", "192.0.2.1")),
    "out of one into another": (packet(HELD, HERE), Denial("policy", "egress", ("z/out",), "z/held", "x/here")),
    "into a pod that is denied there": (
        packet(HELD, HERE, TCP, (1, 443)),
        Denial("policy", "ingress", ("x/in", "x/more"), "z/held", "x/here"),
    ),
    "into a pod of another node": (packet(FREE, THERE), Denial("changed", None, (), "y/free", "x/there")),
    "from an unknown pod": (packet(UNKNOWN, OUTSIDE), Denial("unknown_pod", "egress", (), "10.0.0.99", "192.0.2.1")),
    "to an unknown pod": (packet(OUTSIDE, UNKNOWN), Denial("unknown_pod", "ingress", (), "192.0.2.1", "10.0.0.99")),
    "what is denied the other way round": (packet(HERE, FREE, TCP, (81, 4000)), Denial("changed", None, (), "x/here", "y/free")),
    "what is allowed by now": (packet(FREE, HERE, TCP, (4000, 80)), Denial("changed", None, (), "y/free", "x/here")),
    "from a link-local address": (
        packet(parse_address("fe80::1"), parse_address("fd00:99::2")),
        Denial("link_local", None, (), "fe80::1", "fd00:99::2"),
    ),
    "between link-local addresses": (
        packet(parse_address("fe80::1"), parse_address("fe80::2")),
        Denial("link_local", None, (), "fe80::1", "fe80::2"),
    ),
}

# Of flows that were cut.
CUT = {
    "there": (packet(FREE, HERE, cut="original"), Denial("cut", "ingress", ("x/in", "x/more"), "y/free", "x/here")),
    "back": (
        packet(HERE, FREE, TCP, (81, 4000), "reply"),
        Denial("cut", "ingress", ("x/in", "x/more"), "x/here", "y/free", is_reply=True),
    ),
    "back between two that are isolated": (
        packet(HERE, HELD, TCP, (81, 4000), "reply"),
        Denial("cut", "egress", ("z/out",), "x/here", "z/held", is_reply=True),
    ),
    "there, and met in its middle": (
        packet(HERE, FREE, TCP, (81, 4000), "original"),
        Denial("cut", "ingress", ("x/in", "x/more"), "x/here", "y/free", is_reply=True),
    ),
    "to an unknown pod": (packet(OUTSIDE, UNKNOWN, cut="original"), Denial("cut", "ingress", (), "192.0.2.1", "10.0.0.99")),
    "back to an unknown pod": (
        packet(OUTSIDE, UNKNOWN, cut="reply"),
        Denial("cut", "egress", (), "192.0.2.1", "10.0.0.99", is_reply=True),
    ),
    "between link-local addresses": (
        packet(parse_address("fe80::1"), parse_address("fe80::2"), cut="original"),
        Denial("cut", None, (), "fe80::1", "fe80::2"),
    ),
    "allowed again": (packet(FREE, HERE, TCP, (4000, 80), "original"), Denial("changed", None, (), "y/free", "x/here")),
    "allowed again, back": (
        packet(HERE, FREE, TCP, (80, 4000), "reply"),
        Denial("changed", None, (), "x/here", "y/free", is_reply=True),
    ),
}


@pytest.mark.parametrize(("logged", "denial"), [*CASES.values(), *CUT.values()], ids=[*CASES, *(f"cut, {name}" for name in CUT)])
def test_reasons(logged: Packet, denial: Denial) -> None:
    """Names, the side that denied, and the policies that isolate it."""
    assert judge(state(Settings(unknown_pods="deny")), logged) == denial


@pytest.mark.parametrize("unknown_pods", ["allow", "auto"])
def test_unknown_addresses_where_they_are_allowed(unknown_pods: Literal["allow", "auto"]) -> None:
    """They are no reason then, nor while no pod waits for an address; a flow that was cut is one, also when its client is gone."""
    made = state(Settings(unknown_pods=unknown_pods))
    assert judge(made, packet(OUTSIDE, UNKNOWN)).reason == "changed"
    made.follow(made.cluster.drop(Pod, "free", "y"))
    made.wanted()
    reply = Denial("cut", "ingress", ("x/in", "x/more"), "x/here", "10.0.0.4", is_reply=True)
    assert judge(made, packet(HERE, FREE, TCP, (81, 4000), "reply")) == reply


def test_unknown_addresses_while_a_pod_waits_for_one() -> None:
    """They are the reason until it has one; before a policy of the other side, as the rules do it."""
    made = state()
    made.follow(made.cluster.put(Pod("x", "new", (), "n", ())))
    made.wanted()
    assert judge(made, packet(UNKNOWN, HERE)) == Denial("unknown_pod", "egress", (), "10.0.0.99", "x/here")
    assert judge(made, packet(HELD, UNKNOWN, UDP)) == Denial("policy", "egress", ("z/out",), "z/held", "10.0.0.99")
    made.follow(made.cluster.put(Pod("x", "new", (), "n", (UNKNOWN,))))
    made.wanted()
    assert judge(made, packet(UNKNOWN, HERE)) == Denial("policy", "ingress", ("x/in", "x/more"), "x/new", "x/here")


def test_without_the_state() -> None:
    """Addresses and nothing else."""
    assert unjudged(packet(FREE, HERE)) == Denial("unjudged", None, (), "10.0.0.4", "10.0.0.2")
    assert unjudged(packet(HERE, FREE, cut="reply")) == Denial("unjudged", None, (), "10.0.0.2", "10.0.0.4", is_reply=True)


@settings(max_examples=60, deadline=None)
@given(clusters.clusters(), st.data())
def test_what_the_specification_denies_is_said_as_it_says_it(objects: tuple[Object, ...], data: st.DataObject) -> None:
    """In any cluster: a flow that a side on this node denies has that side's direction and its policies, egress first."""
    node = data.draw(st.sampled_from(sorted({item.node for item in objects if isinstance(item, Pod)} or {"here"})))
    made = NodeState(Cluster(), node)
    cluster = made.cluster
    for item in objects:
        made.follow(cluster.put(item))
    found = sorted({address for item in objects if isinstance(item, Pod) for address in item.addresses if len(address) == 4})
    ends = st.sampled_from([*found, OUTSIDE])
    for _ in range(8):
        source, destination, port = data.draw(ends), data.draw(ends), data.draw(st.sampled_from([80, 443, 8080, 9]))
        word = verdict(cluster, Flow(source, destination, TCP, port))
        denied = [
            (direction, side.isolated_by)
            for direction, side, address in (("egress", word.egress, source), ("ingress", word.ingress, destination))
            if side.standing == "denied" and (holder := cluster.holder(address)) is not None and holder.node == node
        ]
        said = judge(made, packet(source, destination, TCP, (4000, port)))
        if denied:
            assert (said.reason, said.direction, said.policies) == ("policy", *denied[0])
        else:
            assert said.reason != "policy"


EVIL = Denial("policy", "ingress", ("x/in",), "x/evil", "x/here")
GOOD = Denial("policy", "ingress", ("x/in",), "x/good", "x/here")
CHANGED = Denial("changed", None, (), "x/evil", "x/here")
UNJUDGED = Denial("unjudged", None, (), "10.0.0.4", "10.0.0.2")


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        pytest.param([EVIL, EVIL], [EVIL, EVIL], id="all stays as it is"),
        pytest.param([EVIL, GOOD, GOOD], [EVIL, EVIL, GOOD], id="another pod has the address"),
        pytest.param([EVIL, CHANGED], [EVIL, CHANGED], id="the policies change"),
        pytest.param([EVIL, UNJUDGED, EVIL], [EVIL, EVIL, EVIL], id="nobody answers once"),
        pytest.param([EVIL, UNJUDGED, GOOD, GOOD], [EVIL, EVIL, EVIL, GOOD], id="nobody answers while another pod gets the address"),
        pytest.param([UNJUDGED, UNJUDGED, EVIL], [UNJUDGED, UNJUDGED, EVIL], id="nobody answers first"),
    ],
)
def test_a_line_that_sums_up_names_the_pods_of_its_packets(judged: list[Denial], said: list[Denial]) -> None:
    """It is written when they are past, and the pod that has the address by then did not send them."""
    limiter = Limiter(interval=10)
    told = limiter.hear(packet(FREE, HERE), 0.0)
    found = []
    for number, denial in enumerate(judged, 1):
        assert told is not None
        found.append(as_it_began(told, denial))
        limiter.hear(packet(FREE, HERE), 10.0 * number - 5)
        (told,) = limiter.due(10.0 * number)
    assert found == said
