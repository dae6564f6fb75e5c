"""What the kernel should hold, or was found to hold, as values: rules, chains, and the sets of `netpol.rules.sets`.

The vocabulary is that of iptables and ipset. A `Ruleset` is netpol's own part only: the chains called NETPOL or NETPOL-*,
the sets called NETPOL*, and, in `hooked`, whether FORWARD's first rule jumps to NETPOL. Other people's rules never become
values of this module; they stay opaque bytes at the kernel boundary.

Invariants: everything is frozen and hashable; a chain's rules mean the same wherever the chain stands; a name is at most 28
characters for a chain and 31 for a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from netpol.model import ICMPV6, Direction, Family, Network
from netpol.rules.sets import Set, SetKind, is_flagged

PortRange = tuple[int, int]
ANY_PORT: PortRange = (0, 65535)

HOOK = "FORWARD"
ROOT = "NETPOL"
NEW = "NETPOL-NEW"
EGRESS = "NETPOL-EGRESS"
INGRESS = "NETPOL-INGRESS"
DENY = "NETPOL-DENY"

TableName = Literal["mangle", "filter"]
SetDirection = Literal["src", "dst"]


def is_ours(chain: str) -> bool:
    """Whether a chain of this name belongs to netpol."""
    return chain == ROOT or chain.startswith(ROOT + "-")


def is_our_set(name: str) -> bool:
    """Whether a set of this name belongs to netpol."""
    return name.startswith("NETPOL")


def front_name(family: Family, direction: Direction) -> str:
    """The name of the set in front of the tree of a direction: the addresses for which that has a leaf. Others are not looked up."""
    return f"NETPOL{family}-{direction.upper()}"


def is_front(name: str) -> bool:
    """Whether a set of this name is one in front of a tree."""
    return name[7:] in ("-EGRESS", "-INGRESS")


Default = TypeVar("Default")


def _always(default: Default) -> Default:
    """A default that is packed all the same. msgspec leaves out a value that is the very object of its field's default; only where equal
    values are one object (None, booleans, small numbers, what is empty) are equal rules equal bytes."""
    return msgspec.field(default_factory=lambda: default)


# The letters of small sets, in pairs: what a live set is to get, and what it is to lose. A change takes a pair that no other change,
# which broke off on its way, left behind.
BESIDE = (("a", "r"), ("b", "s"), ("c", "t"))


def beside(live: str, letter: str) -> str:
    """The name of the small set that holds, for the length of a change, what a live set is to get or to lose, by one of BESIDE's letters.

    NETPOL4-... -> NETPOL4a...: as long, and no selection's.
    """
    return live.replace("-", letter)


def beside_what(name: str) -> tuple[str, Literal["a", "r"]] | None:
    """(live set, "a" for what it is to get or "r" for what it is to lose) of a small set's name; None where it is no small set's."""
    head, letter, rest = name[:7], name[7:8], name[8:]
    if head not in ("NETPOL4", "NETPOL6"):
        return None
    for gained, lost in BESIDE:
        if letter in (gained, lost):
            return f"{head}-{rest}", "a" if letter == gained else "r"
    return None


# -- matches -----------------------------------------------------------------------------------------------------------


class Conntrack(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m conntrack --ctstate`; `states` by iptables' names, in the order INVALID, NEW, RELATED, ESTABLISHED, UNTRACKED, SNAT, DNAT.

    `direction` is `--ctdir`, "" for both; `invert` does not concern it.
    """

    states: tuple[str, ...]
    invert: bool = False
    direction: Literal["", "ORIGINAL", "REPLY"] = ""


class Connmark(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m connmark --mark value/mask`."""

    mark: int
    mask: int = _always(0xFFFFFFFF)
    invert: bool = False


class Tcp(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m tcp`: port ranges (inclusive), and `--tcp-flags mask comp` as bytes of the TCP header; `option` 0 is none."""

    source: PortRange = _always(ANY_PORT)
    destination: PortRange = _always(ANY_PORT)
    not_source: bool = False
    not_destination: bool = False
    flags_mask: int = 0
    flags_set: int = 0
    not_flags: bool = False
    option: int = 0
    not_option: bool = False


class Udp(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m udp`: port ranges (inclusive)."""

    source: PortRange = _always(ANY_PORT)
    destination: PortRange = _always(ANY_PORT)
    not_source: bool = False
    not_destination: bool = False


class Sctp(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m sctp`: port ranges (inclusive); None does not look. Chunk matches are not covered (they stay `Opaque`)."""

    source: PortRange | None = None
    destination: PortRange | None = None
    not_source: bool = False
    not_destination: bool = False


class Multiport(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m multiport`: at most 15 places, of which a range takes two. A single port is (n, n)."""

    ports: tuple[PortRange, ...]
    which: Literal["sports", "dports", "ports"] = _always("dports")
    invert: bool = False


class SetMatch(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m set --match-set name directions`; one direction for each dimension of the set's type."""

    name: str
    directions: tuple[SetDirection, ...]
    invert: bool = False


def front_match(family: Family, direction: Direction) -> SetMatch:
    """The match of the set in front of the tree of a direction."""
    return SetMatch(front_name(family, direction), ("src" if direction == "egress" else "dst",))


class Addrtype(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m addrtype`: bit sets of kernel RTN_* types (1 << type); 0 does not look."""

    source: int = 0
    destination: int = 0
    not_source: bool = False
    not_destination: bool = False
    limit_in: bool = False
    limit_out: bool = False


class Hashlimit(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m hashlimit --hashlimit-upto` (or `-above`) as revision 3 has it.

    average -- the kernel's own figure: scale units (1,000,000) times seconds for one event; burst in events;
    mode -- sorted names out of srcip, srcport, dstip, dstport; times in milliseconds; masks in bits.
    """

    name: str
    average: int
    burst: int
    mode: tuple[str, ...] = ()
    above: bool = False
    size: int = 0
    maximum: int = 0
    gc_interval: int = _always(1000)
    expire: int = _always(1000)
    source_length: int = 32
    destination_length: int = 32


class Icmp(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-m icmp` or, in a rule of family 6, `-m icmp6`: a type and an inclusive range of codes. Type 255 is any (IPv4)."""

    type: int
    codes: tuple[int, int] = _always((0, 255))
    invert: bool = False


class Opaque(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """A match that netpol does not know, or a form of one that it does not model: its bytes as the kernel had them."""

    name: str
    revision: int
    data: bytes


Match = Conntrack | Connmark | Tcp | Udp | Sctp | Multiport | SetMatch | Addrtype | Hashlimit | Icmp | Opaque


# -- targets -----------------------------------------------------------------------------------------------------------


class Verdict(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-j ACCEPT`, `-j DROP` or `-j RETURN`."""

    name: Literal["ACCEPT", "DROP", "RETURN"]


class Jump(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-j chain`."""

    chain: str


class Goto(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-g chain`: the end of that chain is the end of this one too."""

    chain: str


class Continue(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """A rule without a target: it counts, and the next rule is looked at."""


class Reject(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-j REJECT --reject-with`, by iptables' name of the answer (icmp-port-unreachable, tcp-reset, icmp6-adm-prohibited ...)."""

    answer: str


class Nflog(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """`-j NFLOG`: a netlink group, a prefix of at most 63 bytes, `threshold` packets a message.

    `size` is --nflog-size in bytes of a packet; 0 copies whole packets.
    """

    group: int
    prefix: str = ""
    size: int = 0
    threshold: int = 0


class OpaqueTarget(Struct, frozen=True, tag_field="kind", tag=True, gc=False, omit_defaults=True):
    """A target that netpol does not know: its bytes as the kernel had them."""

    name: str
    revision: int
    data: bytes


Target = Verdict | Jump | Goto | Continue | Reject | Nflog | OpaqueTarget

ACCEPT, DROP, RETURN = Verdict("ACCEPT"), Verdict("DROP"), Verdict("RETURN")


# -- rules, chains, rulesets -----------------------------------------------------------------------------------------------


class Rule(Struct, frozen=True, gc=False, omit_defaults=True):
    """One rule. `protocol` 0 and an empty interface name mean any; an interface name that ends in + is a prefix.

    `fragment` is iptables' -f (IPv4 only). Matches are tried in their order.
    """

    target: Target
    matches: tuple[Match, ...] = ()
    source: Network | None = None
    destination: Network | None = None
    protocol: int = 0
    in_interface: str = ""
    out_interface: str = ""
    not_source: bool = False
    not_destination: bool = False
    not_protocol: bool = False
    not_in_interface: bool = False
    not_out_interface: bool = False
    fragment: bool = False
    not_fragment: bool = False


LINK_LOCAL = Network(b"\xfe\x80" + bytes(14), 10)
MULTICAST = Network(b"\xff" + bytes(15), 8)
ROUTER_ADVERTISEMENT = 134  # of ICMPv6


def link_local_rules() -> tuple[Rule, ...]:
    """What is new to an IPv6 link-local address, or from one, is denied; not what goes from one to many, but for router advertisements:
    one of a pod would give all others on the bridge addresses that no policy knows."""
    return (
        Rule(Goto(DENY), destination=LINK_LOCAL),
        Rule(Goto(DENY), source=LINK_LOCAL, destination=MULTICAST, not_destination=True),
        Rule(Goto(DENY), (Icmp(ROUTER_ADVERTISEMENT),), source=LINK_LOCAL, protocol=ICMPV6),
    )


class _Packed(NamedTuple):
    name: str
    packed: bytes


class Chain(_Packed):
    """A user chain; a packet that falls off its end returns to the caller.

    It is its name and its rules as MessagePack, field by name, without those that have their defaults: the form that the kernel boundary
    reads. So a chain is packed once, where it is made; it takes a sixth of what its rules take as objects, and two are compared as bytes.
    ValueError names a rule that has no such form (a number of more than 64 bits, half a surrogate pair).
    """

    __slots__ = ()

    def __new__(cls, name: str, rules: Iterable[Rule]) -> Chain:
        return cls.of_packed(name, pack_rules(rules, name))

    @classmethod
    def of_packed(cls, name: str, packed: bytes) -> Chain:
        """The chain of that name with the rules that `pack_rules` packed."""
        return tuple.__new__(cls, (name, packed))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules as values; those of chains that were asked for lately are kept."""
        return _unpacked(self.packed)

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, {self.rules!r})"


def pack_rules(rules: Iterable[Rule], chain: str = "") -> bytes:
    """Rules as `Chain` keeps them. `chain` is for the words of the ValueError."""
    values = tuple(rules)
    try:
        return _pack(values)
    except (OverflowError, UnicodeEncodeError):
        # msgspec does not say where.
        raise ValueError(_unpackable(values, chain)) from None


def _unpackable(rules: tuple[Rule, ...], chain: str) -> str:
    for number, rule in enumerate(rules, 1):
        try:
            _pack(rule)
        except (OverflowError, UnicodeEncodeError) as error:
            return f"{chain}, rule {number}: {error}: {rule}"
    raise AssertionError("rules that can be packed one by one can be packed together")


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[Rule, ...]).decode
# Values take six times as much as what they are packed in: of long chains, which a policy of a thousand peers has, few are kept.
_SHORT = 512  # bytes
_kept_short, _kept_long = lru_cache(4096)(_unpack), lru_cache(16)(_unpack)


def _unpacked(packed: bytes) -> tuple[Rule, ...]:
    return (_kept_short if len(packed) <= _SHORT else _kept_long)(packed)


class Ruleset(Struct, frozen=True):
    """netpol's part of one table of the kernel, both families, and the sets its rules use.

    chains -- for each family: name -> chain; hooked -- the families whose FORWARD begins with `-j NETPOL`; sets -- name -> set;
    whole -- where a ruleset holds live sets in part, the names of those that are here with all their members.
    """

    chains: Mapping[Family, Mapping[str, Chain]]
    sets: Mapping[str, Set]
    hooked: frozenset[Family] = frozenset()
    table: TableName = "mangle"
    whole: frozenset[str] = frozenset()


# -- steps: what `netpol.rules.diff` plans and `netpol.kernel.apply` does ------------------------------------------------


class CreateSet(Struct, frozen=True, tag=True):
    """A set that does not exist yet, with all its members."""

    set: Set

    @property
    def name(self) -> str:
        return self.set.name


class GrowSet(Struct, frozen=True, tag=True):
    """Members that a live set gets. One that differs from a member it has only in its nomatch flag replaces that one."""

    name: str
    kind: SetKind
    family: Family
    members: frozenset[bytes]


def grown(found: Set, step: GrowSet) -> Set:
    """A set after it has got these members."""
    if is_flagged(found.kind):
        at = 5 if found.family == 4 else 17
        found = found.minus({member[:at] + bytes((not member[at],)) + member[at + 1 :] for member in step.members})
    return found.plus(step.members)


class ReplaceTable(Struct, frozen=True, tag=True):
    """All chains of ours in one table of a family, in one replace; FORWARD begins with the jump to NETPOL when `hooked`."""

    family: Family
    table: TableName
    chains: Mapping[str, Chain]
    hooked: bool


class ShrinkSet(Struct, frozen=True, tag=True):
    """Members that a live set loses; with what is `left` of it where more go than stay."""

    name: str
    kind: SetKind
    family: Family
    members: frozenset[bytes]
    left: Set | None = None


# So many members at least go out of a set before it is worth while to ask how many stay.
MANY_GO = 1024


class DestroySet(Struct, frozen=True, tag=True):
    """A set that no rule refers to any more."""

    name: str


SetStep = CreateSet | GrowSet | ShrinkSet | DestroySet
Step = SetStep | ReplaceTable


def last_destroyed(steps: Sequence[Step]) -> tuple[DestroySet, ...]:
    """The sets that are destroyed behind all other steps: others go on the way, to be made anew."""
    last: list[DestroySet] = []
    for step in reversed(steps):
        if not isinstance(step, DestroySet):
            break
        last.append(step)
    return tuple(reversed(last))
