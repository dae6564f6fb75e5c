"""Which connection tracking entries to ask for by name, from the list that the kernel writes for people: /proc/net/nf_conntrack.

A dump by ctnetlink takes a lock for each bucket of the kernel's table, 5 ms for the 262,144 of a machine with more than 4 GiB, however
few entries there are. The list is walked without locks, in a twentieth of that; but each of its lines takes longer than an entry of a
dump, and it says less of it. So where entries are few, the list says which of them can matter, and those are asked for one by one.

The list may leave an entry out: whoever reads it goes on, after each entry, by how many he has seen of its bucket, and another one of
that bucket may be removed just then. So it is read twice. What is left out both times had two such neighbours, in a table that is
nearly empty, each removed within the microsecond. Before Linux 6.17 the kernel counted over the whole table, where this would happen
often: there the list is not read. Nor is it believed when the table got another size meanwhile.

It asks the kernel for no entry and judges none; where it cannot say, it says so, and a dump tells.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection
from socket import AF_INET, AF_INET6, inet_pton

from msgspec import Struct

from netpol.model import Address, family_of
from netpol.rules.flows import ENTRY, HAS_PORTS, IS_ICMP, ZONE_REPLY

LIST = "/proc/thread-self/net/nf_conntrack"
BUCKETS = "/proc/sys/net/netfilter/nf_conntrack_buckets"
RELEASE = os.uname().release

_BY_BUCKET = 6, 17  # the first Linux that walks the list as the module says
_SHARE = 256  # buckets an entry at least: with more entries a dump costs less
_WANTED = 100  # entries that are asked for one by one at most
_PART = 1 << 16
_SIDE = re.compile(
    rb"(\S+) dst=(\S+) "
    rb"(?:sport=(\d+) dport=(\d+) |srckey=0x(\w+) dstkey=0x(\w+) |type=(\d+) code=(\d+) id=(\d+) |(?!sport|srckey|type))"
)
_ZONE = re.compile(rb"(?<= )zone(-reply)?=(\d+) ")
_FAMILIES = {b"2": (4, AF_INET), b"10": (6, AF_INET6)}


class Found(Struct, frozen=True):
    """Entries that can matter: packed, of which only the reply's tuple and the zone are meant, and the system calls that it took."""

    keys: bytes
    calls: int


def find(entries: int, ends: Collection[Address], bits: int) -> Found | None:
    """The entries, of the calling thread's network namespace, with an end among these addresses, or with one of `bits` in their mark.

    entries -- how many the namespace has. None where only a dump can tell, or costs less.
    """
    if not walks_by_bucket(RELEASE):
        return None
    wanted = frozenset(map(_text, ends))
    try:
        buckets = _read(BUCKETS)
        if entries * _SHARE > int(buckets[0]):
            return None
        parts = _read(LIST), _read(LIST)
        if _read(BUCKETS) != buckets:
            return None
        lines = {line for text in map(b"".join, parts) for line in text.splitlines()}
        keys = {_key(line) for line in lines if _matters(line, wanted, bits)}
    except (OSError, ValueError, LookupError, struct.error):
        return None
    calls = sum(map(_calls, (buckets, *parts, buckets)))
    return Found(b"".join(keys), calls) if len(keys) <= _WANTED else None


def walks_by_bucket(release: str) -> bool:
    """Whether a kernel of this release counts within a bucket."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= _BY_BUCKET


def _read(path: str) -> list[bytes]:
    """What it holds, as the kernel hands it over: a page at a time."""
    parts = []
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while part := os.read(file, _PART):
            parts.append(part)
    finally:
        os.close(file)
    return parts


def _calls(parts: list[bytes]) -> int:
    """How many system calls it took to read them."""
    return len(parts) + 3


def _text(address: Address) -> bytes:
    """An address as the list has it: an IPv6 one with all its digits."""
    return (".".join(map(str, address)) if family_of(address) == 4 else address.hex(":", 2)).encode()


def _matters(line: bytes, wanted: frozenset[bytes], bits: int) -> bool:
    """Whether one of its ends, which are the sources of its two tuples, is wanted, or its mark has one of the bits."""
    _, original, reply = line.split(b" src=")
    if original.partition(b" ")[0] in wanted or reply.partition(b" ")[0] in wanted:
        return True
    mark = reply.partition(b" mark=")[2]
    return bool(mark) and bool(int(mark.partition(b" ")[0]) & bits)


def _key(line: bytes) -> bytes:
    """The packed entry of a line: its protocol, its reply's tuple, and its zone, unless that is the original direction's only."""
    head, _, reply = line.split(b" src=")
    _, name, _, protocol = head.split(None, 4)[:4]
    side = _SIDE.match(reply)
    if side is None:
        raise ValueError("a tuple has two addresses, and numbers of its protocol's kind or none")
    source, destination, port, other_port, key, other_key, type, code, id = side.groups()
    first, second, flags = 0, 0, 0
    if port is not None:
        first, second, flags = int(port), int(other_port), HAS_PORTS
    elif key is not None:
        first, second, flags = int(key, 16), int(other_key, 16), HAS_PORTS
    elif type is not None:
        first, second, flags = int(id), int(type) << 8 | int(code), IS_ICMP
    zone = 0
    for word, number in _ZONE.findall(reply, side.end()):
        zone, flags = int(number), flags | (ZONE_REPLY if word else 0)
    family, socket_family = _FAMILIES[name]
    near, far = inet_pton(socket_family, source.decode()), inet_pton(socket_family, destination.decode())
    return ENTRY.pack(b"", b"", 0, family, int(protocol), b"", b"", 0, 0, near, far, first, second, 0, 0, zone, flags)
