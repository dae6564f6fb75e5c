"""The payloads of x_tables matches: bytes -> value. The other way is `netpol.kernel.encode`.

Layouts are those of the kernel's UAPI headers (linux/netfilter/xt_*.h), in native byte order and alignment. What a value of
`netpol.rules.ruleset` cannot say - another revision, a flag we do not model - is `Opaque`: a value is only what encodes to the
same bytes again. A decoder takes any bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct as Layout
from typing import NamedTuple

from netpol.errors import MalformedKernelData
from netpol.kernel.blocks import NO_SETS, SetNumbers
from netpol.kernel.encode import encode_match
from netpol.model import Family
from netpol.rules.ruleset import (
    Addrtype,
    Connmark,
    Conntrack,
    Hashlimit,
    Icmp,
    Match,
    Multiport,
    Opaque,
    PortRange,
    Sctp,
    SetDirection,
    SetMatch,
    Tcp,
    Udp,
)

HEADER = Layout("=H29sB")
ALIGN = 8

# linux/netfilter/xt_conntrack.h: XT_CONNTRACK_STATE_*; the order is that of the values' documentation.
STATES = {"INVALID": 1, "NEW": 8, "RELATED": 4, "ESTABLISHED": 2, "UNTRACKED": 256, "SNAT": 64, "DNAT": 128}
DIRECTION = 4096  # XT_CONNTRACK_DIRECTION, a flag of what is asked for, and inverted: the reply's
HASHLIMIT_MODES = {"dstip": 1, "dstport": 2, "srcip": 4, "srcport": 8}

CONNTRACK = Layout("=146xHHH12x")
CONNMARK = Layout("=IIB3x")
TCP = Layout("=4H4B")
UDP = Layout("=4HB1x")
SCTP = Layout("=4H276xII")
MULTIPORT = Layout("=BB15H15sB")
SET = Layout("=HBB44x")
ADDRTYPE = Layout("=HHI")
HASHLIMIT = Layout("=256sQQ5I4xBB6x8x")
ICMP = Layout("=4B")


def c_string(raw: bytes) -> str:
    """The text before the first NUL. Bytes that are no UTF-8 become a text that does not encode to them again."""
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _decode_conntrack(data: bytes, family: Family) -> Match | None:
    flags, inverted, states = CONNTRACK.unpack_from(data)
    names = tuple(name for name, bit in STATES.items() if states & bit)
    if not flags & DIRECTION:
        return Conntrack(names, bool(inverted))
    return Conntrack(names, bool(inverted & ~DIRECTION), "REPLY" if inverted & DIRECTION else "ORIGINAL")


def _decode_connmark(data: bytes, family: Family) -> Match | None:
    mark, mask, invert = CONNMARK.unpack_from(data)
    return Connmark(mark, mask, bool(invert))


def _decode_tcp(data: bytes, family: Family) -> Match | None:
    s0, s1, d0, d1, option, mask, flags, inverted = TCP.unpack_from(data)
    not_source, not_destination, not_flags, not_option = (bool(inverted & bit) for bit in (1, 2, 4, 8))
    return Tcp((s0, s1), (d0, d1), not_source, not_destination, mask, flags, not_flags, option, not_option)


def _decode_udp(data: bytes, family: Family) -> Match | None:
    s0, s1, d0, d1, inverted = UDP.unpack_from(data)
    return Udp((s0, s1), (d0, d1), bool(inverted & 1), bool(inverted & 2))


def _decode_sctp(data: bytes, family: Family) -> Match | None:
    d0, d1, s0, s1, flags, inverted = SCTP.unpack_from(data)
    source: PortRange | None = (s0, s1) if flags & 1 else None
    destination: PortRange | None = (d0, d1) if flags & 2 else None
    return Sctp(source, destination, bool(inverted & 1), bool(inverted & 2))


def _decode_multiport(data: bytes, family: Family) -> Match | None:
    which, count, *ports, ranges, invert = MULTIPORT.unpack_from(data)
    if count > 15 or which > 2:
        return None
    found: list[PortRange] = []
    places = iter(range(count))
    for at in places:
        last = next(places, -1) if ranges[at] else at
        if last < 0:
            return None
        found.append((ports[at], ports[last]))
    return Multiport(tuple(found), ("sports", "dports", "ports")[which], bool(invert))


def _decode_addrtype(data: bytes, family: Family) -> Match | None:
    source, destination, flags = ADDRTYPE.unpack_from(data)
    return Addrtype(source, destination, *(bool(flags & bit) for bit in (1, 2, 4, 8)))


def _decode_hashlimit(data: bytes, family: Family) -> Match | None:
    raw, average, burst, mode, size, maximum, gc_interval, expire, source, destination = HASHLIMIT.unpack_from(data)
    names = tuple(sorted(name for name, bit in HASHLIMIT_MODES.items() if mode & bit))
    return Hashlimit(c_string(raw), average, burst, names, bool(mode & 16), size, maximum, gc_interval, expire, source, destination)


def _decode_icmp(data: bytes, family: Family) -> Match | None:
    kind, low, high, invert = ICMP.unpack_from(data)
    return Icmp(kind, (low, high), bool(invert))


class _Decoder(NamedTuple):
    size: int
    decode: Callable[[bytes, Family], Match | None]


_DECODERS: dict[tuple[str, int], _Decoder] = {
    ("addrtype", 1): _Decoder(ADDRTYPE.size, _decode_addrtype),
    ("connmark", 1): _Decoder(CONNMARK.size, _decode_connmark),
    ("conntrack", 3): _Decoder(CONNTRACK.size, _decode_conntrack),
    ("hashlimit", 3): _Decoder(HASHLIMIT.size, _decode_hashlimit),
    ("icmp", 0): _Decoder(ICMP.size, _decode_icmp),
    ("icmp6", 0): _Decoder(ICMP.size, _decode_icmp),
    ("multiport", 1): _Decoder(MULTIPORT.size, _decode_multiport),
    ("sctp", 0): _Decoder(SCTP.size, _decode_sctp),
    ("tcp", 0): _Decoder(TCP.size, _decode_tcp),
    ("udp", 0): _Decoder(UDP.size, _decode_udp),
}

# (name, revision) of all that we write: what a kernel must have.
REVISIONS: tuple[tuple[str, int], ...] = (*_DECODERS, ("set", 4))


def decode_match(raw: bytes, family: Family, sets: SetNumbers) -> Match:
    """The match that stands in an entry as these bytes, header included. Whatever would not encode to the same bytes again is `Opaque`.

    MalformedKernelData when the header itself has no such form.
    """
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] != len(raw) or len(raw) % ALIGN:
        raise MalformedKernelData("a match's length does not fit its entry")
    if raw[2:6] != b"set\0":
        return _decode(raw, family)
    _, _, revision = HEADER.unpack_from(raw)
    data = raw[HEADER.size :]
    if revision == 4 and len(data) == SET.size:
        index, dimensions, flags = SET.unpack_from(data)
        directions: tuple[SetDirection, ...] = tuple("src" if flags >> dim & 1 else "dst" for dim in range(1, dimensions + 1))
        match = SetMatch(sets.names.get(index, ""), directions, bool(flags & 1))
        if _is_same(match, raw, family, sets):
            return match
    return Opaque("set", revision, data)


@lru_cache(maxsize=1 << 14)
def _decode(raw: bytes, family: Family) -> Match:
    _, raw_name, revision = HEADER.unpack_from(raw)
    name, data = c_string(raw_name), raw[HEADER.size :]
    decoder = _DECODERS.get((name, revision))
    if decoder is not None and len(data) >= decoder.size:
        match = decoder.decode(data, family)
        if match is not None and _is_same(match, raw, family, NO_SETS):
            return match
    return Opaque(name, revision, data)


def _is_same(match: Match, raw: bytes, family: Family, sets: SetNumbers) -> bool:
    try:
        return encode_match(match, family, sets) == raw
    except ValueError:
        return False
