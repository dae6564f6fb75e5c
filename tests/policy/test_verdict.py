"""What a verdict says beside yes and no: how each side stands, who isolates it, which rules allow, and why nobody was asked.

That it allows and denies as the specification says is held by tests/rules/test_semantics.py and the conformance cases.
"""

from __future__ import annotations

import pytest
from msgspec import structs

from netpol.model import (
    EVERYTHING,
    ICMPV6,
    TCP,
    Address,
    Direction,
    Flow,
    Namespace,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    parse_address,
)
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import FREE, RuleReference, Side, Verdict, isolating_policies, verdict

A, B, NODE = parse_address("10.0.0.1"), parse_address("10.0.0.2"), parse_address("192.0.2.1")
PORTS = tuple((NumberedPort(TCP, number, number),) for number in (80, 443, 80))
RULES = tuple(PolicyRule(None, ports) for ports in PORTS)


def cluster(*policies: Policy) -> Cluster:
    made = Cluster()
    pods = Pod("ns", "a", node="n", addresses=(A,)), Pod("ns", "b", addresses=(B,))
    objects: tuple[Object, ...] = (Namespace("ns"), Node("n", (NODE,)), *pods, *policies)
    for item in objects:
        made.put(item)
    return made


def policy(name: str, ingress: tuple[PolicyRule, ...] | None = None, egress: tuple[PolicyRule, ...] | None = None) -> Policy:
    return Policy("ns", name, EVERYTHING, ingress, egress)


POLICIES = cluster(policy("second", RULES, ()), policy("first", RULES[1:]), policy("other", None, RULES[:1]))


def test_both_sides_of_an_allowed_flow() -> None:
    """Policies by name; each rule that allows, by its place in its policy."""
    said = verdict(POLICIES, Flow(A, B, TCP, 80))
    assert said == Verdict(
        True,
        Side("allowed", ("ns/other", "ns/second"), (RuleReference("ns/other", "egress", 0),)),
        Side(
            "allowed",
            ("ns/first", "ns/second"),
            (
                RuleReference("ns/first", "ingress", 1),
                RuleReference("ns/second", "ingress", 0),
                RuleReference("ns/second", "ingress", 2),
            ),
        ),
    )
    assert [str(rule) for rule in said.ingress.allowed_by] == ["ns/first ingress[1]", "ns/second ingress[0]", "ns/second ingress[2]"]


def test_one_side_denies() -> None:
    """The flow is denied though the other side allows it; a denied side names who isolates and no rule."""
    said = verdict(POLICIES, Flow(A, B, TCP, 443))
    assert not said.allowed
    assert said.egress == Side("denied", ("ns/other", "ns/second"))
    assert said.ingress.standing == "allowed"
    assert said.exempt == ""


def test_sides_that_nobody_isolates() -> None:
    """A pod that no policy selects, and an address that is no pod's, stand the same."""
    assert verdict(cluster(), Flow(A, B, TCP, 80)) == Verdict(True, FREE, FREE)
    said = verdict(POLICIES, Flow(parse_address("198.51.100.1"), B, TCP, 80))
    assert (said.egress, said.ingress.standing) == (Side("not isolated"), "allowed")


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "exempt"),
    [
        pytest.param(A, A, TCP, "a pod cannot block access to itself", id="28-itself"),
        pytest.param(NODE, A, TCP, "traffic between a pod and its node", id="27-from its node"),
        pytest.param(A, NODE, TCP, "traffic between a pod and its node", id="27-to its node"),
        pytest.param(A, B, ICMPV6, "IPv6 neighbour discovery", id="25-neighbour discovery"),
    ],
)
def test_why_nobody_was_asked(source: Address, destination: Address, protocol: int, exempt: str) -> None:
    """The flow passes, and no side is judged."""
    denying = cluster(policy("p", (), ()))
    assert verdict(denying, Flow(source, destination, protocol), 135) == Verdict(True, FREE, FREE, exempt)


@pytest.mark.parametrize(("direction", "names"), [("ingress", ["first", "second"]), ("egress", ["other", "second"])])
def test_whom_policies_isolate(direction: Direction, names: list[str]) -> None:
    """Live pods of a known namespace; neither those of the host network nor finished ones (SEMANTICS 11, 17, 18)."""
    pod = Pod("ns", "c")
    assert [found.name for found in isolating_policies(POLICIES, pod, direction)] == names
    for changes in ({"host_network": True}, {"finished": True}, {"namespace": "late"}):
        assert isolating_policies(POLICIES, structs.replace(pod, **changes), direction) == ()
