"""The specification itself: (cluster, flow) -> allowed or denied, and why. Written to be read beside the Kubernetes documentation.

It looks at every policy for every question and shares nothing with `netpol.rules.compile`, so that it can convict it. The quoted
words are those of the Kubernetes documentation ("Network Policies").

A flow is the first packet of a connection, with the addresses as the node sees them when it forwards (after DNAT, before SNAT:
SEMANTICS 21); replies follow their connection (26). What never passes through forwarding - a node and its own pods, a pod and
itself - is allowed here as the documentation has it (27, 28).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from netpol.model import (
    EVERYONE,
    ICMPV6,
    Address,
    Direction,
    Flow,
    IPBlock,
    NumberedPort,
    Peer,
    Pod,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
)
from netpol.policy.cluster import Cluster
from netpol.policy.selectors import matches

Standing = Literal["not isolated", "allowed", "denied"]
Isolating = Callable[[Pod, Direction], tuple[Policy, ...]]

# ICMPv6 without which IPv6 does not work: multicast listener discovery (130-132, 143) and neighbour discovery (133-137).
ALWAYS_ALLOWED_ICMPV6 = frozenset((*range(130, 138), 143))


class RuleReference(Struct, frozen=True):
    """One rule of a policy: `ingress` or `egress`, counted from 0."""

    policy: str
    direction: Direction
    index: int

    def __str__(self) -> str:
        return f"{self.policy} {self.direction}[{self.index}]"


class Side(Struct, frozen=True):
    """One end of a flow: how it stands, which policies isolate it there, and the rules that allow the flow."""

    standing: Standing
    isolated_by: tuple[str, ...] = ()
    allowed_by: tuple[RuleReference, ...] = ()


FREE = Side("not isolated")


class Verdict(Struct, frozen=True):
    """Whether a flow may pass, and how each side stands. `exempt` says why, where policies were not asked."""

    allowed: bool
    egress: Side = FREE
    ingress: Side = FREE
    exempt: str = ""


def verdict(cluster: Cluster, flow: Flow, icmp_type: int | None = None, isolating: Isolating | None = None) -> Verdict:
    """What the policies of the cluster say of a flow. `icmp_type` is the type of an ICMP or ICMPv6 packet, where it is known.

    isolating -- says which policies isolate a pod, for whoever knows without looking at each of them.
    """
    if flow.protocol == ICMPV6 and icmp_type in ALWAYS_ALLOWED_ICMPV6:
        return Verdict(True, exempt="IPv6 neighbour discovery")
    if flow.source == flow.destination:
        return Verdict(True, exempt="a pod cannot block access to itself")
    source, destination = cluster.holder(flow.source), cluster.holder(flow.destination)
    if _own_node(cluster, source, flow.destination) or _own_node(cluster, destination, flow.source):
        return Verdict(True, exempt="traffic between a pod and its node")
    # "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod and the
    # ingress policy on the destination pod need to allow the connection."
    policies = isolating or functools.partial(isolating_policies, cluster)
    egress = _side(cluster, "egress", source, flow.destination, destination, flow, policies)
    ingress = _side(cluster, "ingress", destination, flow.source, destination, flow, policies)
    return Verdict(egress.standing != "denied" and ingress.standing != "denied", egress, ingress)


def _own_node(cluster: Cluster, pod: Pod | None, address: Address) -> bool:
    """Whether an address is that of the node this pod runs on."""
    node = cluster.nodes.get(pod.node) if pod is not None else None
    return node is not None and address in node.addresses


def _side(
    cluster: Cluster, direction: Direction, pod: Pod | None, other: Address, destination: Pod | None, flow: Flow, policies: Isolating
) -> Side:
    """How one end of the flow stands. `pod` is that end, `other` the address of the other end."""
    if pod is None:
        return FREE
    # "By default, a pod is non-isolated [...]; a pod is isolated if there is any NetworkPolicy that both selects the pod and has
    # [the direction] in its policyTypes."
    isolating = policies(pod, direction)
    if not isolating:
        return FREE
    # "The effects of those lists combine additively." The order of evaluation does not matter.
    allowing = tuple(
        RuleReference(str(policy), direction, index)
        for policy in isolating
        for index, rule in enumerate(policy.rules(direction) or ())
        if _allows(cluster, rule, other, destination, flow)
    )
    return Side("allowed" if allowing else "denied", tuple(map(str, isolating)), allowing)


def _allows(cluster: Cluster, rule: PolicyRule, other: Address, destination: Pod | None, flow: Flow) -> bool:
    """ "The traffic must match both" ports and peers; either one that is not given matches all."""
    return (rule.peers is None or any(_is_peer(cluster, peer, other) for peer in rule.peers)) and (
        rule.ports is None or any(_is_port(cluster, port, destination, flow) for port in rule.ports)
    )


def _is_peer(cluster: Cluster, peer: Peer, address: Address) -> bool:
    if isinstance(peer, IPBlock):
        # "except" belongs to its own block: another peer may allow what it excepts.
        return address in peer.cidr and not any(address in excepted for excepted in peer.excepts)
    holder = cluster.holder(address)
    return holder is not None and _selects(cluster, peer, holder)


def _is_port(cluster: Cluster, port: PolicyPort, destination: Pod | None, flow: Flow) -> bool:
    if port.protocol != flow.protocol or flow.port is None:
        return False
    if isinstance(port, NumberedPort):
        return port.first <= flow.port <= port.last
    # A named port is looked up on the destination pod, by name and protocol.
    return (
        destination is not None
        and _selects(cluster, EVERYONE, destination)
        and any(
            declared.name == port.name and declared.protocol == port.protocol and declared.port == flow.port
            for declared in destination.ports
        )
    )


def _selects(cluster: Cluster, query: Query, pod: Pod) -> bool:
    """Whether a query selects a pod. A namespace that is not known is in no selection; a host-network pod is the node, not a pod."""
    namespace = cluster.namespaces.get(pod.namespace)
    if namespace is None or pod.host_network or pod.finished:
        return False
    in_scope = pod.namespace == query.namespace if query.namespace else matches(query.namespaces, namespace.labels)
    return in_scope and matches(query.pods, pod.labels)


def isolating_policies(cluster: Cluster, pod: Pod, direction: Direction) -> tuple[Policy, ...]:
    """The policies that isolate a pod in a direction, by name."""
    found = (p for p in cluster.policies.values() if p.rules(direction) is not None and _selects(cluster, p.subject, pod))
    return tuple(sorted(found, key=str))
