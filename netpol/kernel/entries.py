"""The entries of an x_tables blob -> rules and chains. The other way is `netpol.kernel.encode`.

A chain is decoded only into what encodes to the same bytes again: whatever else stands there, by whomever, is no rule of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct as Layout
from typing import NamedTuple

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel.blocks import EncodedChain, SetNumbers, without_verdicts
from netpol.kernel.encode import encode_chain
from netpol.kernel.matches import HEADER, c_string, decode_match
from netpol.kernel.targets import decode_target
from netpol.model import Family, Network
from netpol.rules.ruleset import Chain, Continue, Goto, Jump, Match, Opaque, OpaqueTarget, Rule, Target

# linux/netfilter_ipv4/ip_tables.h: struct ipt_entry up to target_offset, and from it; ip6_tables.h: struct ip6t_entry likewise.
HEAD: dict[Family, Layout] = {4: Layout("=4s4s4s4s16s16s32xHBB4x"), 6: Layout("=16s16s16s16s16s16s32xHxBB7x")}

ENTRY: dict[Family, int] = {4: 112, 6: 168}
OFFSETS = Layout("=HH")
_NUMBER = Layout("=H")  # of a set, behind its match's header
_VERDICT = 8  # bytes of a standard target behind its header
Key = tuple[bytes, str | None]

FRAGMENT = 1
GOTO: dict[Family, int] = {4: 2, 6: 4}
_INVERSE = (
    ("not_in_interface", 1),
    ("not_out_interface", 2),
    ("not_source", 8),
    ("not_destination", 16),
    ("not_fragment", 32),
    ("not_protocol", 64),
)


class Known(NamedTuple):
    """A chain and its bytes.

    is_sure -- whether all sets that it matches had names: one that was made after those were asked has a number only, and what the bytes
    say is seen the next time.
    """

    chain: Chain
    encoded: EncodedChain
    is_sure: bool = True

    def is_of(self, sets: SetNumbers) -> bool:
        """Whether its sets still have the numbers that stand in its bytes."""
        return self.encoded.is_of(sets)


def decode_chain(name: str, data: bytes, family: Family, jumps: Mapping[int, str], sets: SetNumbers) -> Known:
    """The chain that these bytes (of one that `np_xt_split` found, from head to tail) are.

    jumps -- offset of each verdict that is a jump -> the chain it goes to, "" for a rule without a target. MalformedKernelData
    when no chain of ours encodes to these bytes (they have a mask that is no prefix, an end that is no RETURN, ...).
    """
    rules: list[Rule] = []
    offset = entry_end(data, 0, family)
    while (end := entry_end(data, offset, family)) < len(data):
        rules.append(_decode_rule(data, offset, end, family, jumps, sets))
        offset = end
    try:
        chain = Chain(name, rules)
        again = encode_chain(chain, family, sets)
    except (ValueError, KernelError):
        raise _unwritten(name) from None
    if again.data != without_verdicts(data, jumps):
        raise _unwritten(name)
    return Known(chain, again, not any(isinstance(match, Opaque) and match.name == "set" for rule in rules for match in rule.matches))


def _unwritten(name: str) -> MalformedKernelData:
    return MalformedKernelData(f"the chain {name} asks for something that netpol does not write")


def entry_end(data: bytes, offset: int, family: Family) -> int:
    """Where the entry that begins at `offset` ends; MalformedKernelData when it is not in the data."""
    if offset + ENTRY[family] > len(data):
        raise MalformedKernelData("an entry is cut off")
    target, size = OFFSETS.unpack_from(data, offset + HEAD[family].size)
    if not ENTRY[family] <= target < size or offset + size > len(data):
        raise MalformedKernelData("an entry's offsets do not fit its chain")
    return int(offset + size)


def extensions(data: bytes, family: Family) -> set[tuple[str, str, int]]:
    """("match" or "target", name, revision) of all that the rules of an encoded chain use, standard targets left out."""
    return {(kind, name, revision) for kind, name, revision, _ in _extensions(data, family)} - {("target", "", 0)}


def used_sets(chain: EncodedChain) -> tuple[str, ...]:
    """The names of the sets that the rules of a chain match, each once, as they come."""
    found = [data for kind, name, _, data in _extensions(chain.data, chain.block.family) if (kind, name) == ("match", "set")]
    numbers = dict.fromkeys(_NUMBER.unpack_from(data)[0] for data in found if len(data) >= _NUMBER.size)
    return tuple(chain.block.sets.names[number] for number in numbers if number in chain.block.sets.names)


def _extensions(data: bytes, family: Family) -> Iterator[tuple[str, str, int, bytes]]:
    """("match" or "target", name, revision, data behind the header) of all that the rules of an encoded chain use."""
    offset = entry_end(data, 0, family)
    while offset < len(data):
        end = entry_end(data, offset, family)
        target = offset + OFFSETS.unpack_from(data, offset + HEAD[family].size)[0]
        place = offset + ENTRY[family]
        while place < end:
            size, name, revision = HEADER.unpack_from(data, place)
            yield "match" if place < target else "target", c_string(name), revision, data[place + HEADER.size : place + size]
            place += size
        offset = end


def _decode_rule(data: bytes, offset: int, end: int, family: Family, jumps: Mapping[int, str], sets: SetNumbers) -> Rule:
    source, destination, source_mask, destination_mask, in_name, out_name, protocol, flags, inverse = HEAD[family].unpack_from(data, offset)
    target_at = offset + OFFSETS.unpack_from(data, offset + HEAD[family].size)[0]
    matches: list[Match] = []
    place = offset + ENTRY[family]
    while place < target_at:
        size = HEADER.unpack_from(data, place)[0] if place + HEADER.size <= target_at else 0
        if size < HEADER.size or place + size > target_at:
            raise MalformedKernelData("a match's length does not fit its entry")
        matches.append(decode_match(data[place : place + size], family, sets))
        place += size
    target: Target = decode_target(data[target_at:end], family)
    if isinstance(target, OpaqueTarget) and target_at + HEADER.size in jumps:
        to = jumps[target_at + HEADER.size]
        target = Continue() if not to else Goto(to) if flags & GOTO[family] else Jump(to)
    return Rule(
        target,
        tuple(matches),
        _decode_address(source, source_mask),
        _decode_address(destination, destination_mask),
        protocol,
        c_string(in_name),
        c_string(out_name),
        fragment=family == 4 and bool(flags & FRAGMENT),
        **{name: bool(inverse & bit) for name, bit in _INVERSE},
    )


def _decode_address(address: bytes, mask: bytes) -> Network | None:
    length = int.from_bytes(mask, "big").bit_count()
    return Network(address, length) if length else None


def rule_keys(data: bytes, jumps: Mapping[int, str], family: Family, stands_for: Mapping[int, int | None]) -> Iterator[Key]:
    """What rules are the same by: each entry's bytes without the place it jumps to, and the name of that instead.

    stands_for -- numbers of sets -> that of the set which each stands for; None where a match of it is as none.
    """
    offset = 0
    while offset < len(data):
        end = entry_end(data, offset, family)
        to = jumps.get(end - _VERDICT)
        entry = data[offset:end] if to is None else data[offset : end - _VERDICT]
        yield (_standing_for(entry, family, stands_for) if stands_for else entry), to
        offset = end


def _standing_for(entry: bytes, family: Family, stands_for: Mapping[int, int | None]) -> bytes:
    """An entry without its lengths, and with the sets in it that others stand for."""
    target_at = OFFSETS.unpack_from(entry, HEAD[family].size)[0]
    parts = [entry[: HEAD[family].size], entry[HEAD[family].size + OFFSETS.size : ENTRY[family]]]
    at = ENTRY[family]
    while at < target_at:
        size, name, _ = HEADER.unpack_from(entry, at)
        match = entry[at : at + size]
        is_set = c_string(name) == "set" and size >= HEADER.size + _NUMBER.size
        number = int(_NUMBER.unpack_from(match, HEADER.size)[0]) if is_set else -1
        if number not in stands_for:
            parts.append(match)
        elif (live := stands_for[number]) is not None:
            parts.append(match[: HEADER.size] + _NUMBER.pack(live) + match[HEADER.size + _NUMBER.size :])
        at += size
    return b"".join((*parts, entry[target_at:]))
