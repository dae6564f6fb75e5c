"""What the kernel does with a packet that it forwards, worked out from a `Ruleset` alone.

Written from the netfilter documentation; it shares nothing with `netpol.rules.compile`, so that it can convict it. A rule applies
when everything it asks for holds. RETURN, and the end of a chain, go back to the rule behind the last jump; a goto leaves no
place to come back to. Behind NETPOL other owners' rules decide: for us such a packet passes.

Only what netpol emits is interpreted; a match or target beyond that is a ValueError, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from netpol.model import Address, Family, Network, family_of
from netpol.rules.ruleset import (
    ROOT,
    Chain,
    Connmark,
    Conntrack,
    Continue,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Match,
    Multiport,
    Nflog,
    PortRange,
    Reject,
    Rule,
    Ruleset,
    Sctp,
    SetMatch,
    Tcp,
    Udp,
    Verdict,
)
from netpol.rules.sets import Set


class Packet(Struct, frozen=True):
    """A packet in FORWARD, with what conntrack knows of it. Ports are None where the protocol has none."""

    source: Address
    destination: Address
    protocol: int
    destination_port: int | None = None
    source_port: int | None = None
    state: Literal["NEW", "ESTABLISHED", "RELATED", "INVALID"] = "NEW"
    reply: bool = False
    connmark: int = 0
    icmp_type: int | None = None
    icmp_code: int = 0


class Hit(Struct, frozen=True):
    """A rule that applied: its chain, and its place there counted from 0."""

    chain: str
    index: int
    rule: Rule


class Decision(Struct, frozen=True):
    """Whether the packet passes, and the rules that applied, in order."""

    passes: bool
    hits: tuple[Hit, ...]


def interpret(ruleset: Ruleset, packet: Packet, start: str = ROOT) -> Decision:
    """Sends one packet through the chains of its family, from the one called `start` on: NETPOL, or one side's alone."""
    family = family_of(packet.source)
    if family not in ruleset.hooked:
        return Decision(True, ())
    chains = ruleset.chains[family]
    hits: list[Hit] = []
    calls: list[tuple[Chain, int]] = []  # where to go on after a return
    chain, at = chains[start], 0
    while True:
        if at == len(chain.rules):
            if not calls:
                return Decision(True, tuple(hits))
            chain, at = calls.pop()
            continue
        rule, at = chain.rules[at], at + 1
        if not _applies(rule, packet, ruleset.sets, family):
            continue
        hits.append(Hit(chain.name, at - 1, rule))
        target = rule.target
        if isinstance(target, Jump):
            calls.append((chain, at))
            chain, at = chains[target.chain], 0
        elif isinstance(target, Goto):
            chain, at = chains[target.chain], 0
        elif isinstance(target, Reject):
            return Decision(False, tuple(hits))
        elif isinstance(target, Verdict):
            if target.name != "RETURN":
                return Decision(target.name == "ACCEPT", tuple(hits))
            if not calls:
                return Decision(True, tuple(hits))
            chain, at = calls.pop()
        elif not isinstance(target, Continue | Nflog):
            raise ValueError(f"{chain.name}: the target {target} is not interpreted")


def _applies(rule: Rule, packet: Packet, sets: Mapping[str, Set], family: Family) -> bool:
    if rule.in_interface or rule.out_interface or rule.fragment:
        raise ValueError("rules that look at interfaces or fragments are not interpreted")
    return (
        (rule.source is None or (packet.source in rule.source) != rule.not_source)
        and (rule.destination is None or (packet.destination in rule.destination) != rule.not_destination)
        and (rule.protocol == 0 or (packet.protocol == rule.protocol) != rule.not_protocol)
        and all(_matches(match, packet, sets, family) for match in rule.matches)
    )


def _matches(match: Match, packet: Packet, sets: Mapping[str, Set], family: Family) -> bool:
    if isinstance(match, Conntrack):
        if match.direction and (match.direction == "REPLY") != packet.reply:
            return False
        return (packet.state in match.states) != match.invert
    if isinstance(match, Connmark):
        return (packet.connmark & match.mask == match.mark) != match.invert
    if isinstance(match, Tcp | Udp):
        if isinstance(match, Tcp) and (match.flags_mask or match.option):
            raise ValueError("TCP flags and options are not interpreted")
        return (_in(packet.destination_port, match.destination) != match.not_destination) and (
            _in(packet.source_port, match.source) != match.not_source
        )
    if isinstance(match, Sctp):
        return (match.destination is None or _in(packet.destination_port, match.destination) != match.not_destination) and (
            match.source is None or _in(packet.source_port, match.source) != match.not_source
        )
    if isinstance(match, Multiport):
        ports = {
            "dports": (packet.destination_port,),
            "sports": (packet.source_port,),
            "ports": (packet.source_port, packet.destination_port),
        }
        return any(_in(port, ports_range) for port in ports[match.which] for ports_range in match.ports) != match.invert
    if isinstance(match, SetMatch):
        return _in_set(sets[match.name], match.directions, packet, family) != match.invert
    if isinstance(match, Icmp):
        found = packet.icmp_type == match.type and match.codes[0] <= packet.icmp_code <= match.codes[1]
        return found != match.invert
    if isinstance(match, Hashlimit):
        return True  # a limit is about many packets; one alone is below it
    raise ValueError(f"the match {match} is not interpreted")


def _in(port: int | None, ports: PortRange) -> bool:
    """A packet whose ports the interpreter was not told is taken to have one that is in the full range only."""
    return ports == (0, 65535) if port is None else ports[0] <= port <= ports[1]


def _in_set(found: Set, directions: tuple[str, ...], packet: Packet, family: Family) -> bool:
    """Whether the set answers yes. A set of another family never does; hash:net answers by its longest prefix."""
    if found.family != family:
        return False
    address = packet.source if directions[0] == "src" else packet.destination
    if found.kind in ("hash:ip", "bitmap:ip"):
        return address in found.members
    suffix = b""
    if "port" in found.kind:
        port = packet.source_port if directions[1] == "src" else packet.destination_port
        if port is None:
            return False
        suffix = bytes((packet.protocol,)) + port.to_bytes(2, "big")
    if found.kind == "hash:ip,port":
        return address + suffix in found.members
    size = len(address)
    best = max(
        (
            (member[size], member[size + 1])
            for member in found.members
            if member[size + 2 :] == suffix and address in _network(member, size)
        ),
        default=None,
    )
    return best is not None and not best[1]


def _network(member: bytes, size: int) -> Network:
    return Network(member[:size], member[size])
