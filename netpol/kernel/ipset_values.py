"""What goes to ipset and what comes back, as values: commands, headers, packed members.

A command is valid when it exists: a bad name or a length that does not fit is a ValueError where it is made. Members cross as packed
bytes (the layout is at the end of `netpol.rules.sets`), one string for all of them. Nothing here touches the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct as Packing

from msgspec import Struct

from netpol.kernel.digests import Content
from netpol.model import PROTOCOL_NAMES, Address, Family, Network, format_address, network
from netpol.rules.sets import Set, SetKind, member_size

# -- commands and headers ----------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """ValueError for what cannot be a set's name."""
    raw = name.encode("utf-8", "surrogateescape")
    if not 0 < len(raw) < 32 or 0 in raw:
        raise ValueError(f"{name!r} is not a set name: it takes 1 to 31 bytes")


def _check_members(kind: SetKind, family: Family, members: bytes) -> None:
    if len(members) % member_size(kind, family):
        raise ValueError(f"{len(members)} bytes are no whole number of {kind} members of IPv{family}")


class Create(Struct, frozen=True, tag=True, gc=False):
    """A new set with these packed members. That it exists already is an error, but does not keep its members out.

    maxelem -- the most members it may ever have; hashsize -- buckets, a power of two: both are sized from the members where they are 0
    (no resize while the set is filled, and room to grow to twice as many, 65,536 at least); net -- the range of a bitmap:ip, which has
    neither: a prefix of IPv4 of 16 bits or more.
    """

    name: str
    kind: SetKind
    family: Family
    members: bytes = b""
    maxelem: int = 0
    hashsize: int = 0
    net: Network | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_members(self.kind, self.family, self.members)
        if (self.kind == "bitmap:ip") != (self.net is not None and self.family == self.net.family == 4 and 16 <= self.net.length < 32):
            raise ValueError("a bitmap:ip, and nothing else, has a range: an IPv4 prefix of 16 to 31 bits")
        if not (0 <= self.maxelem < 1 << 32 and 0 <= self.hashsize < 1 << 32):
            raise ValueError("maxelem and hashsize have 32 bits")


class Add(Struct, frozen=True, tag=True, gc=False):
    """Packed members put into a set. A network that is there with the other `nomatch` gets this one."""

    name: str
    kind: SetKind
    family: Family
    members: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_members(self.kind, self.family, self.members)


class Delete(Struct, frozen=True, tag=True, gc=False):
    """Packed members taken out of a set. A network goes, whatever its `nomatch` is."""

    name: str
    kind: SetKind
    family: Family
    members: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_members(self.kind, self.family, self.members)


class Swap(Struct, frozen=True, tag=True, gc=False):
    """The contents of two sets of one type and family change places; rules that use a name see the other content from then on."""

    first: str
    second: str

    def __post_init__(self) -> None:
        check_name(self.first)
        check_name(self.second)


class Destroy(Struct, frozen=True, tag=True, gc=False):
    """A set that nothing refers to goes away."""

    name: str

    def __post_init__(self) -> None:
        check_name(self.name)


class Number(Struct, frozen=True, tag=True, gc=False):
    """The number by which rules refer to a set is asked for."""

    name: str

    def __post_init__(self) -> None:
        check_name(self.name)


Command = Create | Add | Delete | Swap | Destroy | Number


class Header(Struct, frozen=True, gc=False):
    """What the kernel says about a set of any type and owner.

    kind -- its type; behind that an option with which its members are others than those that were added, or do not stay (timeout,
    netmask, bitmask, forceadd), so that "hash:ip timeout" is no type that netpol reads; family -- 4, 6, or 0 for a type without one;
    index -- by which rules refer to it; entries -- members now; references -- rules and sets that use it; hashsize and maxelem are 0 for
    a type that has none; net -- the range of a set of addresses, where it is a prefix.
    """

    name: str
    kind: str
    family: int
    index: int
    entries: int
    references: int
    hashsize: int
    maxelem: int
    net: Network | None = None


class Record(Struct, frozen=True, gc=False):
    """A set's header, and the digest of its members; of a type that netpol does not read there is none. revision -- of its type."""

    header: Header
    revision: int
    content: Content


_RECORD = Packing("=32s32sIIIIHBB4s4sIQQ")
_NUMBERED = Packing("=32s48xH30x")  # a record's name and number


class Records(Struct, frozen=True):
    """Records as C wrote them: equal bytes are equal sets."""

    raw: bytes

    def decoded(self) -> Iterator[Record]:
        """The single records."""
        for fields in _RECORD.iter_unpack(self.raw):
            name, kind = (raw.partition(b"\0")[0].decode("utf-8", "surrogateescape") for raw in fields[:2])
            entries, references, hashsize, maxelem, index, family, revision, first, last, members, *sums = fields[2:]
            header = Header(name, kind, family, index, entries, references, hashsize, maxelem, range_of(first, last))
            yield Record(header, revision, Content(members, (sums[0], sums[1])))

    def numbers(self) -> dict[str, int]:
        """The number of each set by its name."""
        return {raw.partition(b"\0")[0].decode("utf-8", "surrogateescape"): number for raw, number in _NUMBERED.iter_unpack(self.raw)}


def range_of(first: Address, last: Address) -> Network | None:
    """The prefix from the first to the last of IPv4 addresses; None where that is none, as where both are 0.0.0.0: no set has that one."""
    low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    bits = (low ^ high).bit_length()
    found = network(first, 32 - bits)
    return found if high and found.address == first and low | ((1 << bits) - 1) == high else None


# -- packed members ----------------------------------------------------------------------------------------------------


def pack(members: Set | Iterable[bytes]) -> bytes:
    """Packed members one after another, in any order: what a command carries."""
    return members.packed if isinstance(members, Set) else b"".join(members)


def member_text(kind: SetKind, family: Family, member: bytes) -> str:
    """A packed member as `ipset` writes it: 10.0.0.1 - 10.0.0.0/8 nomatch - 10.0.0.1,tcp:80."""
    size = 4 if family == 4 else 16
    text, rest, nomatch = format_address(member[:size]), member[size:], ""
    if "net" in kind:
        text, nomatch, rest = f"{text}/{rest[0]}", " nomatch" if rest[1] else "", rest[2:]
    if "port" in kind:
        text += f",{PROTOCOL_NAMES.get(rest[0], str(rest[0])).lower()}:{int.from_bytes(rest[1:], 'big')}"
    return text + nomatch
