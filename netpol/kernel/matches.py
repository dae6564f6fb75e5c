"""The payloads of x_tables matches: value -> bytes as `iptables-restore` writes them, and back.

Layouts are those of the kernel's UAPI headers (linux/netfilter/xt_*.h), in native byte order and alignment. What a value of
`netpol.rules.ruleset` cannot say - another revision, a flag we do not model - decodes to `Opaque`, which encodes to the same bytes.
A decoder takes any bytes: it answers with a value, and never raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from struct import Struct as Layout
from typing import NamedTuple

from netpol.errors import MalformedKernelData
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
HASHLIMIT_MODES = {"dstip": 1, "dstport": 2, "srcip": 4, "srcport": 8}

CONNTRACK = Layout("=128s2I5H4H4H2x")
CONNMARK = Layout("=IIB3x")
TCP = Layout("=4H4B")
UDP = Layout("=4HB1x")
SCTP = Layout("=4H256sI12siII")
MULTIPORT = Layout("=BB15H15sB")
SET = Layout("=HBB4x16s16sI4x")
ADDRTYPE = Layout("=HHI")
HASHLIMIT = Layout("=256sQQ6I2B6xQ")
ICMP = Layout("=4B")

# What iptables leaves in a part that it was not asked about.
NO_CONNTRACK = bytes(128)
NO_CHUNKS = b"\xff\0\0" * 4


def pack(name: str, revision: int, data: bytes) -> bytes:
    """A match or target with its header, filled up to the kernel's alignment."""
    padded = data + bytes(-len(data) % ALIGN)
    return HEADER.pack(HEADER.size + len(padded), name.encode(), revision) + padded


def c_string(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("latin-1")


# -- encoders ----------------------------------------------------------------------------------------------------------


def _flags(*flags: bool) -> int:
    return sum(1 << bit for bit, on in enumerate(flags) if on)


def _conntrack(match: Conntrack, family: Family) -> bytes:
    states = sum(STATES[state] for state in match.states)
    return CONNTRACK.pack(NO_CONNTRACK, 0, 0, 0, 0, 0, 0, 0, 1, int(match.invert), states, 0, 0, 0, 0, 0)


def _connmark(match: Connmark, family: Family) -> bytes:
    return CONNMARK.pack(match.mark, match.mask, match.invert)


def _tcp(match: Tcp, family: Family) -> bytes:
    inverted = _flags(match.not_source, match.not_destination, match.not_flags, match.not_option)
    return TCP.pack(*match.source, *match.destination, match.option, match.flags_mask, match.flags_set, inverted)


def _udp(match: Udp, family: Family) -> bytes:
    return UDP.pack(*match.source, *match.destination, _flags(match.not_source, match.not_destination))


def _sctp(match: Sctp, family: Family) -> bytes:
    source, destination = match.source, match.destination
    looked_at = _flags(source is not None, destination is not None)
    inverted = _flags(match.not_source, match.not_destination)
    return SCTP.pack(*(destination or (0, 0)), *(source or (0, 0)), bytes(256), 0, NO_CHUNKS, 0, looked_at, inverted)


def _multiport(match: Multiport, family: Family) -> bytes:
    ports: list[int] = []
    ranges: list[int] = []
    for low, high in match.ports:
        ports += [low] if low == high else [low, high]
        ranges += [0] if low == high else [1, 0]
    if not 1 <= len(ports) <= 15:
        raise ValueError(f"a multiport match has 1 to 15 places, not {len(ports)}")
    count = len(ports)
    which = ("sports", "dports", "ports").index(match.which)
    return MULTIPORT.pack(which, count, *ports, *[0] * (15 - count), bytes(ranges), match.invert)


def _addrtype(match: Addrtype, family: Family) -> bytes:
    flags = _flags(match.not_source, match.not_destination, match.limit_in, match.limit_out)
    return ADDRTYPE.pack(match.source, match.destination, flags)


def _hashlimit(match: Hashlimit, family: Family) -> bytes:
    mode = sum(HASHLIMIT_MODES[name] for name in match.mode) | (16 if match.above else 0)
    name = match.name.encode()
    if not 1 <= len(name) < 255:
        raise ValueError(f"a hashlimit's name has 1 to 254 bytes, not {len(name)}")
    return HASHLIMIT.pack(
        name,
        match.average,
        match.burst,
        mode,
        match.size,
        match.maximum,
        match.gc_interval,
        match.expire,
        0,
        match.source_length,
        match.destination_length,
        0,
    )


def _icmp(match: Icmp, family: Family) -> bytes:
    return ICMP.pack(match.type, *match.codes, match.invert)


@lru_cache(maxsize=1 << 16)
def encode_match(match: Match, family: Family) -> bytes:
    """A match other than `SetMatch` as it stands in an entry. ValueError for a value that the kernel's form cannot hold."""
    if isinstance(match, Opaque):
        return pack(match.name, match.revision, match.data)
    codec = _CODECS[type(match)]
    return pack("icmp6" if isinstance(match, Icmp) and family == 6 else codec.name, codec.revision, codec.encode(match, family))


@lru_cache(maxsize=1 << 16)
def encode_set_match(match: SetMatch, index: int) -> bytes:
    """A set match; `index` is the kernel's number of the set."""
    dimensions = len(match.directions)
    flags = _flags(match.invert, *(direction == "src" for direction in match.directions))
    return pack("set", 4, SET.pack(index, dimensions, flags, bytes(16), bytes(16), 0))


# -- decoders ----------------------------------------------------------------------------------------------------------


def _decode_conntrack(data: bytes, family: Family) -> Match | None:
    _, *numbers = CONNTRACK.unpack_from(data)
    flags, inverted, states = numbers[7], numbers[8], numbers[9]
    if flags != 1 or inverted not in (0, 1):
        return None
    return Conntrack(tuple(name for name, bit in STATES.items() if states & bit), bool(inverted))


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
    d0, d1, s0, s1, _, _, _, _, flags, inverted = SCTP.unpack_from(data)
    source: PortRange | None = (s0, s1) if flags & 1 else None
    destination: PortRange | None = (d0, d1) if flags & 2 else None
    return Sctp(source, destination, bool(inverted & 1), bool(inverted & 2))


def _decode_multiport(data: bytes, family: Family) -> Match | None:
    which, count, *ports, ranges, invert = MULTIPORT.unpack_from(data)
    if count > 15 or which > 2:
        return None
    found: list[PortRange] = []
    at = 0
    while at < count:
        if ranges[at]:
            if at + 1 >= count:
                return None
            found.append((ports[at], ports[at + 1]))
            at += 1
        else:
            found.append((ports[at], ports[at]))
        at += 1
    return Multiport(tuple(found), ("sports", "dports", "ports")[which], bool(invert)) if found else None


def _decode_addrtype(data: bytes, family: Family) -> Match | None:
    source, destination, flags = ADDRTYPE.unpack_from(data)
    return Addrtype(source, destination, *(bool(flags & bit) for bit in (1, 2, 4, 8)))


def _decode_hashlimit(data: bytes, family: Family) -> Match | None:
    raw, average, burst, mode, size, maximum, gc_interval, expire, _, source, destination, _ = HASHLIMIT.unpack_from(data)
    names = tuple(sorted(name for name, bit in HASHLIMIT_MODES.items() if mode & bit))
    return Hashlimit(c_string(raw), average, burst, names, bool(mode & 16), size, maximum, gc_interval, expire, source, destination)


def _decode_icmp(data: bytes, family: Family) -> Match | None:
    kind, low, high, invert = ICMP.unpack_from(data)
    return Icmp(kind, (low, high), bool(invert))


class _Codec(NamedTuple):
    name: str
    revision: int
    size: int
    encode: Callable[..., bytes]
    decode: Callable[[bytes, Family], Match | None]


_CODECS: dict[type[Match], _Codec] = {
    Conntrack: _Codec("conntrack", 3, CONNTRACK.size, _conntrack, _decode_conntrack),
    Connmark: _Codec("connmark", 1, CONNMARK.size, _connmark, _decode_connmark),
    Tcp: _Codec("tcp", 0, TCP.size, _tcp, _decode_tcp),
    Udp: _Codec("udp", 0, UDP.size, _udp, _decode_udp),
    Sctp: _Codec("sctp", 0, SCTP.size, _sctp, _decode_sctp),
    Multiport: _Codec("multiport", 1, MULTIPORT.size, _multiport, _decode_multiport),
    Addrtype: _Codec("addrtype", 1, ADDRTYPE.size, _addrtype, _decode_addrtype),
    Hashlimit: _Codec("hashlimit", 3, HASHLIMIT.size, _hashlimit, _decode_hashlimit),
    Icmp: _Codec("icmp", 0, ICMP.size, _icmp, _decode_icmp),
}
_BY_NAME: dict[tuple[str, int], _Codec] = {(codec.name, codec.revision): codec for codec in _CODECS.values()}
_BY_NAME["icmp6", 0] = _CODECS[Icmp]

# (name, revision) of all that we write: what a kernel must have.
REVISIONS: tuple[tuple[str, int], ...] = (*sorted(_BY_NAME), ("set", 4))


def decode_match(raw: bytes, family: Family, set_names: Mapping[int, str]) -> Match:
    """The match that stands in an entry as these bytes, header included.

    set_names -- the kernel's numbers of sets -> their names. Whatever would not encode to the same bytes again is `Opaque`.
    MalformedKernelData when the header itself has no such form.
    """
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] != len(raw) or len(raw) % ALIGN:
        raise MalformedKernelData("a match's length does not fit its entry")
    _, raw_name, revision = HEADER.unpack_from(raw)
    name, data = c_string(raw_name), raw[HEADER.size :]
    opaque = Opaque(name, revision, data)
    if (name, revision) == ("set", 4) and len(data) == SET.size:
        index, dimensions, flags, *_ = SET.unpack_from(data)
        directions: tuple[SetDirection, ...] = tuple("src" if flags >> dim & 1 else "dst" for dim in range(1, min(dimensions, 6) + 1))
        match = SetMatch(set_names.get(index, ""), directions, bool(flags & 1))
        return match if match.name and encode_set_match(match, index) == raw else opaque
    codec = _BY_NAME.get((name, revision))
    if codec is None or len(data) < codec.size or (name == "icmp6") != (family == 6 and codec.name == "icmp"):
        return opaque
    found = codec.decode(data, family)
    return found if found is not None and encode_match(found, family) == raw else opaque
