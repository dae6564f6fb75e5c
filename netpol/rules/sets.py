"""A set of the kernel as a value: its name, its type, and its members in one piece, packed as they cross into C.

Invariants: a set is frozen and hashable, and each member is in it once; only who asks for single members makes an object of each. A name
is at most 31 bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property
from struct import Struct as Packing
from typing import Literal, NamedTuple

from netpol.model import Address, Family, Network

SetKind = Literal["hash:ip", "hash:net", "hash:ip,port", "hash:net,port", "bitmap:ip"]

_FEW = 16  # members that are as quickly searched for as all of a large set are taken apart


class _PackedSet(NamedTuple):
    name: str
    kind: SetKind
    family: Family
    packed: bytes
    net: Network | None = None


class Set(_PackedSet):
    """An ipset. `members` are packed (see the end of this module), all of `family`; `net` is the range of a bitmap:ip, an IPv4 prefix of 16
    bits or more.

    It is its name, its type and its members one after another, each once, in no order that means anything: the form in which the kernel
    boundary takes them. So a set of 60,000 is one piece of memory, and a load of it touches no member. Two are equal that hold the same.
    """

    def __new__(
        cls, name: str, kind: SetKind, family: Family, members: AbstractSet[bytes] = frozenset(), net: Network | None = None
    ) -> Set:
        made = cls.of_packed(name, kind, family, b"".join(members), net)
        if isinstance(members, frozenset):
            made.__dict__["members"] = members
        return made

    @classmethod
    def of_packed(cls, name: str, kind: SetKind, family: Family, packed: bytes, net: Network | None = None) -> Set:
        """The set with these members, one after another, of which no two are the same."""
        return tuple.__new__(cls, (name, kind, family, packed, net))

    @cached_property
    def members(self) -> frozenset[bytes]:
        """The single members, once somebody has asked for them."""
        return frozenset(self.each())

    @property
    def entries(self) -> int:
        """How many members there are."""
        return len(self.packed) // member_size(self.kind, self.family)

    def with_members(self, members: AbstractSet[bytes]) -> Set:
        """A set of this name and type that holds others."""
        return Set(self.name, self.kind, self.family, members, self.net)

    def plus(self, members: AbstractSet[bytes]) -> Set:
        """With these members, too. Few cost no more than a copy of the piece and a search of it for each."""
        if len(members) > _FEW:
            new: Iterable[bytes] = frozenset(members).difference(self.each())
        else:
            new = [member for member in members if self._place(member) < 0]
        return self._replace(packed=self.packed + b"".join(new))

    def minus(self, members: AbstractSet[bytes]) -> Set:
        """Without these members. Few cost as much as in `plus`."""
        if len(members) > _FEW:
            return self._replace(packed=b"".join(itertools.filterfalse(members.__contains__, self.each())))
        left = self
        for member in members:
            if (place := left._place(member)) >= 0:
                left = left._replace(packed=left.packed[:place] + left.packed[place + len(member) :])
        return left

    def each(self) -> Iterator[bytes]:
        """The single members, one after another; nothing of it is kept."""
        return unpack(self.packed, member_size(self.kind, self.family))

    def _place(self, member: bytes) -> int:
        """Where a member begins, or -1."""
        size, place = len(member), self.packed.find(member)
        while place > 0 and place % size:
            place = self.packed.find(member, place + 1)
        return place

    def holds_same(self, other: Set) -> bool:
        """Whether another set has the same members."""
        if len(self.packed) != len(other.packed):
            return False
        return self.packed == other.packed or self.members == other.members

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Set) and self[:3] == other[:3] and self.net == other.net and self.holds_same(other)

    def __ne__(self, other: object) -> bool:  # a tuple's would compare the order of members
        return not self == other

    def __hash__(self) -> int:
        return hash((self[:3], len(self.packed)))

    def __repr__(self) -> str:
        return f"Set({self.name!r}, {self.kind!r}, {self.family}, {self.members!r}{f', {self.net!r}' if self.net else ''})"


# -- packed members ----------------------------------------------------------------------------------------------------
# The one form in which members of a set live in Python and cross into C, A being 4 or 16 bytes of address:
#   hash:ip        A                                  hash:net       A length(1) nomatch(1)
#   hash:ip,port   A protocol(1) port(2, big-endian)  hash:net,port  A length(1) nomatch(1) protocol(1) port(2, big-endian)
#   bitmap:ip      A


def net_member(net: Network, nomatch: bool = False) -> bytes:
    """A member of a hash:net set. `net` is at least a /1: the kernel has no /0."""
    return net.address + bytes((net.length, nomatch))


def port_member(address: Address, protocol: int, port: int) -> bytes:
    """A member of a hash:ip,port set."""
    return address + bytes((protocol,)) + port.to_bytes(2, "big")


def net_port_member(net: Network, protocol: int, port: int, nomatch: bool = False) -> bytes:
    """A member of a hash:net,port set."""
    return net.address + bytes((net.length, nomatch, protocol)) + port.to_bytes(2, "big")


def is_flagged(kind: SetKind) -> bool:
    """Whether the members of such a set carry the nomatch flag."""
    return "net" in kind


def member_size(kind: SetKind, family: Family) -> int:
    """Bytes of one packed member."""
    return (4 if family == 4 else 16) + (2 if "net" in kind else 0) + (3 if "port" in kind else 0)


def unpack(members: bytes, size: int) -> Iterator[bytes]:
    """The single members of a string of them, `size` bytes each."""
    return itertools.chain.from_iterable(Packing(f"{size}s").iter_unpack(members))
