"""Rules and chains as the entries of an x_tables blob, and back.

A chain is encoded by itself: its jumps stay open, as (place of the verdict, name of the chain), until `netpol.kernel.table` knows
where everything stands. So the bytes of a chain can be kept as long as the chain lives; only the numbers of the sets in it tie
them to one kernel. Bytes are those that `iptables-restore` would write (tests compare them).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct as Layout
from typing import NamedTuple

from msgspec import Struct

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel.matches import HEADER, c_string, decode_match, encode_match, encode_set_match
from netpol.kernel.targets import decode_target, encode_target, error_target, standard
from netpol.model import Family, Network
from netpol.rules.ruleset import Chain, Continue, Goto, Jump, Match, OpaqueTarget, Rule, SetMatch, Target

# linux/netfilter_ipv4/ip_tables.h: struct ipt_entry, split at target_offset; ip6_tables.h: struct ip6t_entry likewise.
HEAD4, TAIL4 = Layout("=4s4s4s4s16s16s16s16sHBBI"), Layout("=HHIQQ")
HEAD6, TAIL6 = Layout("=16s16s16s16s16s16s16s16sHBBB3xI"), Layout("=HHI4xQQ")
ENTRY: dict[Family, int] = {4: HEAD4.size + TAIL4.size, 6: HEAD6.size + TAIL6.size}
OFFSETS_AT: dict[Family, int] = {4: HEAD4.size, 6: HEAD6.size}
_OFFSETS = Layout("=HH")

FRAGMENT, GOTO_4 = 1, 2
PROTOCOL_6, GOTO_6 = 1, 4
_INVERSE = (
    ("not_in_interface", 1),
    ("not_out_interface", 2),
    ("not_source", 8),
    ("not_destination", 16),
    ("not_fragment", 32),
    ("not_protocol", 64),
)

RETURN_VERDICT = -5


class EncodedChain(Struct, frozen=True):
    """A user chain as bytes.

    data -- from its ERROR head to its RETURN tail; entries -- how many there are, head and tail included; jumps -- (offset of the
    verdict in data, chain it goes to, or "" for a rule without a target), in order; sets -- (name, number) of each set used.
    """

    name: str
    data: bytes
    entries: int
    jumps: tuple[tuple[int, str], ...]
    sets: tuple[tuple[str, int], ...]


class _Where(NamedTuple):
    """What of a rule stands in the entry's own fields. Most rules of a table have few of these: they are encoded once."""

    source: Network | None
    destination: Network | None
    protocol: int
    in_interface: str
    out_interface: str
    inverse: int
    fragment: bool
    goto: bool


def encode_chain(chain: Chain, family: Family, set_numbers: Mapping[str, int]) -> EncodedChain:
    """A chain as bytes. KernelError names the rule and the set, when a set has no number; ValueError a value that does not fit."""
    head = entry(family, error_target(chain.name))
    parts = [head]
    offset = len(head)
    jumps: list[tuple[int, str]] = []
    sets: dict[str, int] = {}
    size = ENTRY[family]
    for number, rule in enumerate(chain.rules):
        target = rule.target
        matches = []
        for match in rule.matches:
            if isinstance(match, SetMatch):
                if match.name not in set_numbers:
                    raise KernelError(2, "iptables rule", f"{chain.name}, rule {number + 1}", f"there is no set {match.name}")
                sets[match.name] = set_numbers[match.name]
                matches.append(encode_set_match(match, sets[match.name]))
            else:
                matches.append(encode_match(match, family))
        body = b"".join(matches)
        payload = encode_target(target, family)
        at = size + len(body)
        parts += (_where(rule, family), _offsets(family, at, at + len(payload)), body, payload)
        if isinstance(target, Jump | Goto):
            jumps.append((offset + at + HEADER.size, target.chain))
        elif isinstance(target, Continue):
            jumps.append((offset + at + HEADER.size, ""))
        offset += at + len(payload)
    parts.append(entry(family, standard(RETURN_VERDICT)))
    return EncodedChain(chain.name, b"".join(parts), len(chain.rules) + 2, tuple(jumps), tuple(sets.items()))


@lru_cache(maxsize=1024)
def entry(family: Family, target: bytes) -> bytes:
    """An entry that matches every packet."""
    at = ENTRY[family]
    return _encode_where(family, _ANYWHERE) + _offsets(family, at, at + len(target)) + target


@lru_cache(maxsize=4096)
def _offsets(family: Family, target: int, end: int) -> bytes:
    return (TAIL4 if family == 4 else TAIL6).pack(target, end, 0, 0, 0)


def _where(rule: Rule, family: Family) -> bytes:
    if rule.source is None and rule.destination is None and not rule.in_interface and not rule.out_interface and not rule.not_protocol:
        return _plain(family, rule.protocol, isinstance(rule.target, Goto), rule.fragment, rule.not_fragment)
    inverse = sum(bit for name, bit in _INVERSE if getattr(rule, name))
    return _encode_where(
        family,
        _Where(
            rule.source,
            rule.destination,
            rule.protocol,
            rule.in_interface,
            rule.out_interface,
            inverse,
            rule.fragment,
            isinstance(rule.target, Goto),
        ),
    )


@lru_cache(maxsize=4096)
def _plain(family: Family, protocol: int, goto: bool, fragment: bool, not_fragment: bool) -> bytes:
    return _encode_where(family, _Where(None, None, protocol, "", "", 32 if not_fragment else 0, fragment, goto))


_ANYWHERE = _Where(None, None, 0, "", "", 0, False, False)


def _encode_where(family: Family, where: _Where) -> bytes:
    source, source_mask = _address(where.source, family)
    destination, destination_mask = _address(where.destination, family)
    in_name, in_mask = _interface(where.in_interface)
    out_name, out_mask = _interface(where.out_interface)
    if family == 4:
        flags = (FRAGMENT if where.fragment else 0) | (GOTO_4 if where.goto else 0)
        return HEAD4.pack(
            *(source, destination, source_mask, destination_mask, in_name, out_name, in_mask, out_mask),
            *(where.protocol, flags, where.inverse, 0),
        )
    if where.fragment:
        raise ValueError("IPv6 rules have no fragment flag")
    flags = (PROTOCOL_6 if where.protocol else 0) | (GOTO_6 if where.goto else 0)
    return HEAD6.pack(
        *(source, destination, source_mask, destination_mask, in_name, out_name, in_mask, out_mask),
        *(where.protocol, 0, flags, where.inverse, 0),
    )


def _address(net: Network | None, family: Family) -> tuple[bytes, bytes]:
    width = 4 if family == 4 else 16
    if net is None:
        return bytes(width), bytes(width)
    if len(net.address) != width:
        raise ValueError(f"{net} in a rule of IPv{family}")
    mask = ((1 << net.length) - 1) << (width * 8 - net.length)
    return net.address, mask.to_bytes(width, "big")


def _interface(name: str) -> tuple[bytes, bytes]:
    """The mask covers the name and its end, or, where it ends in +, what stands before."""
    raw = name.encode()
    if len(raw) > 15:
        raise ValueError(f"{name!r} is too long for an interface")
    covered = 0 if not raw else len(raw) - 1 if raw.endswith(b"+") else len(raw) + 1
    return raw, b"\xff" * covered


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode_chain(name: str, data: bytes, family: Family, jumps: Mapping[int, str], set_names: Mapping[int, str]) -> Chain:
    """The chain that these bytes (of one that `np_xt_split` found, from head to tail) are.

    jumps -- offset of each verdict that is a jump -> the chain it goes to, "" for a rule without a target. MalformedKernelData
    when an entry has no form that a `Rule` can have (such as a mask that is no prefix): netpol wrote no such rule.
    """
    rules: list[Rule] = []
    offset = entry_end(data, 0, family)
    while (end := entry_end(data, offset, family)) < len(data):
        rules.append(_decode_rule(data, offset, end, family, jumps, set_names))
        offset = end
    return Chain(name, tuple(rules))


def entry_end(data: bytes, offset: int, family: Family) -> int:
    """Where the entry that begins at `offset` ends; MalformedKernelData when it is not in the data."""
    at = offset + OFFSETS_AT[family]
    if at + ENTRY[family] - OFFSETS_AT[family] > len(data):
        raise MalformedKernelData("an entry is cut off")
    target, size = _OFFSETS.unpack_from(data, at)
    if not ENTRY[family] <= target < size or offset + size > len(data):
        raise MalformedKernelData("an entry's offsets do not fit its chain")
    return int(offset + size)


def _decode_rule(data: bytes, offset: int, end: int, family: Family, jumps: Mapping[int, str], set_names: Mapping[int, str]) -> Rule:
    head = (HEAD4 if family == 4 else HEAD6).unpack_from(data, offset)
    at, *_ = (TAIL4 if family == 4 else TAIL6).unpack_from(data, offset + OFFSETS_AT[family])
    matches: list[Match] = []
    place, target_at = offset + ENTRY[family], offset + at
    while place < target_at:
        size = HEADER.unpack_from(data, place)[0] if place + HEADER.size <= target_at else 0
        if size < HEADER.size or place + size > target_at:
            raise MalformedKernelData("a match's length does not fit its entry")
        matches.append(decode_match(data[place : place + size], family, set_names))
        place += size
    protocol = head[8]
    flags, inverse, goto = (head[9], head[10], GOTO_4) if family == 4 else (head[10], head[11], GOTO_6)
    target: Target = decode_target(data[target_at:end], family)
    if isinstance(target, OpaqueTarget) and target_at + HEADER.size in jumps:
        destination = jumps[target_at + HEADER.size]
        target = Continue() if not destination else Goto(destination) if flags & goto else Jump(destination)
    rule = Rule(
        target,
        tuple(matches),
        _decode_address(head[0], head[2]),
        _decode_address(head[1], head[3]),
        protocol,
        c_string(head[4]),
        c_string(head[5]),
        **{name: bool(inverse & bit) for name, bit in _INVERSE},
        fragment=family == 4 and bool(flags & FRAGMENT),
    )
    if _where(rule, family)[: OFFSETS_AT[family] - 4] != data[offset : offset + OFFSETS_AT[family] - 4]:
        raise MalformedKernelData("a rule asks for something that netpol does not write")
    return rule


def _decode_address(address: bytes, mask: bytes) -> Network | None:
    length = bin(int.from_bytes(mask, "big")).count("1")
    return Network(address, length) if length else None
