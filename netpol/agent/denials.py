"""Why a packet was denied on this node, from the state that was enforced: what a logged packet does not say itself.

Only the sides that are pods of this node, or of no known pod in ranges that are denied, are judged, egress before ingress, as the rules do
it. Of a packet of a flow that was cut, which the rules say, it is judged how that began: as connection tracking has it, or, where that met
the connection in its middle, the other way round. What neither side denies went from or to a link-local address; or the state has moved
on since, and says so.
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
    source, destination = format_address(packet.source), format_address(packet.destination)
    return Denial("unjudged", source=source, destination=destination, is_reply=packet.cut == "reply")


def judge(state: NodeState, packet: Packet) -> Denial:
    """See the module. For the thread that owns the state."""
    cluster = state.cluster
    source, destination = named(cluster, packet.source), named(cluster, packet.destination)
    source_port, port = packet.ports or (None, None)
    there = Flow(packet.source, packet.destination, packet.protocol, port)
    back = Flow(packet.destination, packet.source, packet.protocol, source_port)
    if packet.cut is None:
        return Denial(*_denied(state, there, packet), source, destination)
    for flow in (there, back) if packet.cut == "original" else (back, there):
        reason, direction, policies = _denied(state, flow, packet)
        if reason != "changed":
            return Denial("cut", direction, policies, source, destination, flow is back)
    return Denial("changed", None, (), source, destination, packet.cut == "reply")


def _denied(state: NodeState, flow: Flow, packet: Packet) -> tuple[Reason, Direction | None, tuple[str, ...]]:
    """Why a flow is denied now, by which side and which policies; the packet is of it, whichever way."""
    found = verdict(state.cluster, flow, packet.icmp[0] if packet.icmp is not None else None, state.isolating)
    sides: tuple[tuple[Direction, Side], ...] = (("egress", found.egress), ("ingress", found.ingress))
    for (direction, side), address in zip(sides, (flow.source, flow.destination), strict=True):
        if side.standing == "denied":
            return "policy", direction, side.isolated_by
        if state.cluster.holder(address) is None and any(address in net for net in state.unknown):
            return "unknown_pod", direction, ()
    if packet.source in LINK_LOCAL or packet.destination in LINK_LOCAL:
        return "link_local", None, ()
    return "changed", None, ()


def named(cluster: Cluster, address: Address) -> str:
    """The pod that holds an address, or the address."""
    holder = cluster.holder(address)
    return format_address(address) if holder is None else str(holder)
