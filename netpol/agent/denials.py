"""Why a packet was denied on this node, from the state that was enforced: what a logged packet does not say itself.

Only the sides that are pods of this node, or of no known pod in ranges that are denied, are judged, egress before ingress, as the rules do
it. A packet that neither denies was denied all the same: it belongs to a flow that was cut (its other direction is what is denied), it went
between link-local addresses; or the state has moved on since, and says so.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from netpol.kernel.nflog import Packet
from netpol.model import Address, Direction, Flow, format_address
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import Side, verdict
from netpol.rules.compile import NodeState
from netpol.rules.ruleset import LINK_LOCAL

Reason = Literal["policy", "cut", "unknown_pod", "link_local", "changed", "unjudged"]


class Denial(Struct, frozen=True):
    """direction -- the side that denied, as the flow goes, None where there is none; policies -- those that isolate it there.

    source, destination -- namespace/pod, or the address of what is no pod; is_reply -- the packet came back on a flow that was cut, so
    that the source of the packet is the destination of what is denied.
    """

    reason: Reason
    direction: Direction | None = None
    policies: tuple[str, ...] = ()
    source: str = ""
    destination: str = ""
    is_reply: bool = False


def unjudged(packet: Packet) -> Denial:
    """What can be said without the state."""
    return Denial("unjudged", source=format_address(packet.source), destination=format_address(packet.destination))


def judge(state: NodeState, packet: Packet) -> Denial:
    """See the module. For the thread that owns the state."""
    cluster = state.cluster
    source, destination = named(cluster, packet.source), named(cluster, packet.destination)
    port = packet.ports[1] if packet.ports is not None else None
    there = _sides(state, Flow(packet.source, packet.destination, packet.protocol, port), packet)
    for (direction, side), address in zip(there, (packet.source, packet.destination), strict=True):
        if side.standing == "denied":
            return Denial("policy", direction, side.isolated_by, source, destination)
        if cluster.holder(address) is None and any(address in net for net in state.unknown):
            return Denial("unknown_pod", direction, (), source, destination)
    back = Flow(packet.destination, packet.source, packet.protocol, packet.ports[0] if packet.ports is not None else None)
    for direction, side in _sides(state, back, packet):
        if side.standing == "denied":
            return Denial("cut", direction, side.isolated_by, source, destination, is_reply=True)
    if packet.source in LINK_LOCAL or packet.destination in LINK_LOCAL:
        return Denial("link_local", None, (), source, destination)
    return Denial("changed", None, (), source, destination)


def named(cluster: Cluster, address: Address) -> str:
    """The pod that holds an address, or the address."""
    holder = cluster.holder(address)
    return format_address(address) if holder is None else str(holder)


def _sides(state: NodeState, flow: Flow, packet: Packet) -> tuple[tuple[Direction, Side], tuple[Direction, Side]]:
    """How its ends stand, in the order of the rules."""
    found = verdict(state.cluster, flow, packet.icmp[0] if packet.icmp is not None else None, state.isolating)
    return ("egress", found.egress), ("ingress", found.ingress)
