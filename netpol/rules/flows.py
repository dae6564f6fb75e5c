"""Connection tracking entries as values, and the packed form in which many of them travel.

The kernel room reads entries and changes their marks, `netpol.rules.cut` judges them; this is what both of them speak. A busy node
has 100,000 entries, so that they stay packed between the two, `SIZE` bytes each: the layout of struct np_ct_flow in csrc/np_ct.h,
native byte order. Each begins with what a policy sees of it, its first packet in FORWARD (behind DNAT, before SNAT):
entries that no policy tells apart begin with the same bytes.

It does not talk to the kernel and judges nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from msgspec import Struct

from netpol.model import PROTOCOL_NAMES, Address, Family, format_address

ENTRY = struct.Struct("=16s16sHBB 16s16sHH 16s16sHH IIHH")
SIZE = ENTRY.size
FIRST = struct.Struct("=16s16sHBB")
"""Source, destination, destination port (type << 8 | code for ICMP), family, protocol."""
SCAN = struct.Struct("=36s 72x IIHH")
"""The bytes of FIRST, mark, status, zone, flags."""

HAS_PORTS, IS_ICMP, PICKED_UP, ZONE_ORIGINAL, ZONE_REPLY = 1, 2, 4, 8, 16
"""Bits of `Entry.flags`: what the numbers of the tuples are; conntrack met the TCP connection in its middle; the zone holds for one
direction only."""

EXPECTED = 1
"""The bit of `Entry.status` (IPS_EXPECTED) of a connection that another one announced: its first packet was RELATED."""

_STATE, _ZONE = SIZE - 12, SIZE - 4  # where mark and status begin in an entry, and where they end
_ENDS = struct.Struct("=16s16sHB85x")


class Tuple(Struct, frozen=True, gc=False):
    """One direction of a flow. For ICMP `source_port` is the id and `destination_port` is type << 8 | code; 0 for what has neither."""

    source: Address
    destination: Address
    source_port: int = 0
    destination_port: int = 0


class Entry(Struct, frozen=True):
    """A connection tracking entry. `reply` is what its replies look like: their source is the destination behind DNAT."""

    protocol: int
    original: Tuple
    reply: Tuple
    mark: int = 0
    status: int = 0
    zone: int = 0
    flags: int = HAS_PORTS

    @property
    def family(self) -> Family:
        return 4 if len(self.original.source) == 4 else 6

    def __str__(self) -> str:
        name = PROTOCOL_NAMES.get(self.protocol, f"protocol {self.protocol}")
        sides = (
            f"{format_address(side.source)}:{side.source_port} > {format_address(side.destination)}:{side.destination_port}"
            for side in (self.original, self.reply)
        )
        return f"{name} {', replies '.join(sides)}" + (f", zone {self.zone}" if self.zone else "")


def pack(entries: Iterable[Entry]) -> bytes:
    """Entries in their packed form, one after another."""
    return b"".join(map(_packed, entries))


def _packed(entry: Entry) -> bytes:
    original, reply, service = entry.original, entry.reply, 0
    if entry.flags & (HAS_PORTS | IS_ICMP):
        service = original.destination_port if entry.flags & IS_ICMP else reply.source_port
    first = original.source, reply.source, service, entry.family, entry.protocol
    sides = (value for side in (original, reply) for value in (side.source, side.destination, side.source_port, side.destination_port))
    return ENTRY.pack(*first, *sides, entry.mark, entry.status, entry.zone, entry.flags)


def unpack(packed: bytes) -> Iterator[Entry]:
    """The entries of a packed string of them; its length is a multiple of SIZE."""
    for _, _, _, family, protocol, *rest in ENTRY.iter_unpack(packed):
        width = 4 if family == 4 else 16
        a, b, c, d, e, f, g, h, mark, status, zone, flags = rest
        yield Entry(protocol, Tuple(a[:width], b[:width], c, d), Tuple(e[:width], f[:width], g, h), mark, status, zone, flags)


def each_once(packed: bytes) -> bytes:
    """Packed entries without those of a flow that came before, whatever mark and status it had then."""
    entries = (packed[place : place + SIZE] for place in range(0, len(packed), SIZE))
    return b"".join({entry[:_STATE] + entry[_ZONE:]: entry for entry in entries}.values())


def ends(packed: bytes) -> frozenset[Address]:
    """Both ends of each entry, as FORWARD saw them, in a packed string of them."""
    found: set[Address] = set()
    for source, destination, _, family in _ENDS.iter_unpack(packed):
        width = 4 if family == 4 else 16
        found.update((source[:width], destination[:width]))
    return frozenset(found)
