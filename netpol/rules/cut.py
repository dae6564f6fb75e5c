"""Which flows are cut: connection tracking entries whose first packet the rules in force would not let pass today.

An entry is judged as its first packet was: NEW, in its original direction, with the addresses and ports that FORWARD saw, behind
DNAT and before SNAT, by the interpreter, over the rules that the kernel holds. One that is denied is to get the cut bit, one that
has the bit and is allowed, or none of ours any more, is to lose it. Both ends' rules are in one ruleset: a flow between two pods of
this node is judged by both sides at once.

What is never denied
- A flow of which no end is a pod of this node: others enforce it. An IPv6 link-local address may be that of any pod on a bridge.
- One between the node and a pod: it does not pass FORWARD, and the rules, which do not say so, are not asked.
- A connection that another one announced (a helper's data connection): its first packet was RELATED.

TCP that conntrack met in its middle (it came after the connection, or forgot it) has for its original direction whoever spoke first
since. Such an entry may be the wrong way round, and to judge it as it stands could cut an allowed flow: a server that may answer but
not call. The ports say which end is the client where only one of them is ephemeral; where they do not, the entry is denied only
if it is denied both ways. So a denied flow may live on until the kernel forgets it, and an allowed one is lost only where a server's
port is ephemeral and its client's is not. UDP and SCTP entries say nothing of the kind and are judged as they stand, which is how the
kernel judged them.

A flow is judged once for all that look alike to a policy (source, destination, protocol, destination port or ICMP type).

It reads no kernel and marks nothing: `netpol.kernel.conntrack` does, `netpol.agent.cutter` brings the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from netpol.model import ICMP, ICMPV6, SCTP, TCP, UDP, Address, network
from netpol.rules.flows import EXPECTED, FIRST, PICKED_UP, SCAN, SIZE, Entry, unpack
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import LINK_LOCAL, Ruleset
from netpol.rules.sets import Set

EPHEMERAL = 32768
"""The first port that Linux gives to a client by itself (net.ipv4.ip_local_port_range); node ports end below it."""

_FEW = 64  # members of a set that are as quickly looked through as looked up


class Cuts(Struct, frozen=True):
    """Packed entries: those that are to get the bit, and those that are to lose it."""

    mark: bytes
    unmark: bytes


class Judge:
    """Judges flows by one ruleset, remembering what it said; for as long as the ruleset is in force.

    ruleset -- what the kernel holds; pods -- addresses of this node's pods; local -- the node's own addresses.
    """

    def __init__(self, ruleset: Ruleset, pods: Collection[Address], local: Collection[Address] = ()) -> None:
        self.ruleset = ruleset
        self.pods = frozenset(pods)
        self.local = frozenset(local)
        self._lengths = {
            name: tuple({member[_width(found)] for member in found.members})
            for name, found in ruleset.sets.items()
            if "net" in found.kind and found.entries > _FEW
        }
        self._known: dict[bytes, bool] = {}

    def sort_out(self, entries: bytes, bit: int) -> Cuts:
        """What is to be done about packed entries, given the connmark bit of those that are cut."""
        wrong: tuple[list[bytes], list[bytes]] = ([], [])  # by whether they are denied
        known = self._known
        start = 0
        for first, mark, status, _, flags in SCAN.iter_unpack(entries):
            if flags & PICKED_UP or status & EXPECTED:
                denied = self.denied(next(unpack(entries[start : start + SIZE])))
            else:
                said = known.get(first)
                denied = self._judge(first) if said is None else said
            if denied is not bool(mark & bit):
                wrong[denied].append(entries[start : start + SIZE])
            start += SIZE
        return Cuts(b"".join(wrong[True]), b"".join(wrong[False]))

    def denied(self, entry: Entry) -> bool:
        """Whether this flow is now denied."""
        if entry.status & EXPECTED:
            return False
        return all(self._denies(packet) for packet in first_packets(entry))

    def _judge(self, first: bytes) -> bool:
        source, destination, service, family, protocol = FIRST.unpack(first)
        width = 4 if family == 4 else 16
        self._known[first] = denied = self._denies(_packet(source[:width], destination[:width], protocol, service))
        return denied

    def _denies(self, packet: Packet) -> bool:
        ends = packet.source, packet.destination
        if not self.local.isdisjoint(ends) or (self.pods.isdisjoint(ends) and not any(end in LINK_LOCAL for end in ends)):
            return False
        return not interpret(replace(self.ruleset, sets=_Near(self.ruleset.sets, self._lengths, packet)), packet).passes


def first_packets(entry: Entry) -> tuple[Packet, ...]:
    """What the first packet of an entry was in FORWARD; both ways round where nobody can say which it was."""
    forward = _packet(entry.original.source, entry.reply.source, entry.protocol, _service(entry))
    if not entry.flags & PICKED_UP:
        return (forward,)
    backward = _packet(entry.reply.source, entry.original.source, entry.protocol, entry.original.source_port)
    client, server = entry.original.source_port >= EPHEMERAL, entry.reply.source_port >= EPHEMERAL
    if client == server:
        return forward, backward
    return (forward,) if client else (backward,)


def _service(entry: Entry) -> int:
    return entry.original.destination_port if entry.protocol in (ICMP, ICMPV6) else entry.reply.source_port


def _packet(source: Address, destination: Address, protocol: int, service: int) -> Packet:
    """A first packet. No rule of ours looks at the source port; other protocols' numbers are none that a policy knows."""
    if protocol in (TCP, UDP, SCTP):
        return Packet(source, destination, protocol, service)
    if protocol in (ICMP, ICMPV6):
        return Packet(source, destination, protocol, icmp_type=service >> 8, icmp_code=service & 255)
    return Packet(source, destination, protocol)


class _Near(Mapping[str, Set]):
    """A ruleset's sets, of which a large one of networks shows only those of its members that a packet's ends lie in.

    What the interpreter answers is the same; it looks through all members of a set.
    """

    def __init__(self, sets: Mapping[str, Set], lengths: Mapping[str, tuple[int, ...]], packet: Packet) -> None:
        self._sets, self._lengths, self._packet = sets, lengths, packet

    def __getitem__(self, name: str) -> Set:
        found = self._sets[name]
        lengths = self._lengths.get(name)
        if lengths is None or _width(found) != len(self._packet.source):
            return found
        return found.with_members(frozenset(member for member in self._around(found, lengths) if member in found.members))

    def _around(self, found: Set, lengths: tuple[int, ...]) -> Iterator[bytes]:
        packet = self._packet
        suffix = b""
        if "port" in found.kind:
            suffix = bytes((packet.protocol,)) + (packet.destination_port or 0).to_bytes(2, "big")
        for address in (packet.source, packet.destination):
            for length in lengths:
                base = network(address, length).address
                yield base + bytes((length, 0)) + suffix
                yield base + bytes((length, 1)) + suffix

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)


def _width(found: Set) -> int:
    return 4 if found.family == 4 else 16
