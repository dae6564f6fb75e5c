"""Each form that bytes must have, broken by itself: what is wrong is refused, and what we cannot say stays bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from netpol.errors import MalformedKernelData
from netpol.kernel._native import ffi, lib
from netpol.kernel.blocks import EncodedChain, SetNumbers
from netpol.kernel.encode import encode_chain, encode_match, encode_target
from netpol.kernel.entries import decode_chain
from netpol.kernel.matches import decode_match
from netpol.kernel.table import Layout, Snapshot
from netpol.kernel.targets import decode_target
from netpol.kernel.xtables import read_ours
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    Addrtype,
    Chain,
    Connmark,
    Conntrack,
    Continue,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Match,
    Multiport,
    Nflog,
    Opaque,
    OpaqueTarget,
    Reject,
    Rule,
    Sctp,
    SetMatch,
    Tcp,
    Udp,
)

SETS = SetNumbers({"NETPOL-a": 3})
ENTRY: dict[Family, int] = {4: 112, 6: 168}
OFFSETS: dict[Family, int] = {4: 88, 6: 140}

A = Chain("NETPOL-A", (Rule(Jump("NETPOL-B"), (Tcp(), Opaque("limit", 0, bytes(40)))), Rule(Goto("NETPOL-B")), Rule(Continue())))
B = Chain("NETPOL-B", (Rule(DROP, (Udp(),)), Rule(Nflog(1))))
D = Chain("NETPOL-D", (Rule(Jump("NETPOL-B")),))


class Made(NamedTuple):
    """A table under construction: its entries, the numbers of its info, and where its chains are."""

    blob: bytearray
    numbers: dict[str, Any]
    at: dict[str, int]


class Loose(NamedTuple):
    """A chain of any bytes."""

    name: str
    data: bytes
    entries: int
    jumps: tuple[tuple[int, str], ...] = ()


def whole(family: Family, chains: Sequence[EncodedChain | Loose] | None = None) -> Made:
    """The mangle table's five built-in chains with nothing in them, and A, B and D behind."""
    if chains is None:
        chains = [encode_chain(chain, family) for chain in (A, B, D)]
    end = encode_chain(Chain("ERROR", ()), family).data[: ENTRY[family] + 64]
    policy = encode_chain(Chain("x", (Rule(ACCEPT),)), family).data[len(end) :][: ENTRY[family] + 40]
    places = [hook * len(policy) for hook in range(5)]
    blob, at, entries = bytearray(policy * 5), {}, 6
    starts = {}
    for chain in chains:
        starts[chain.name] = len(blob)
        blob += chain.data
        entries += chain.entries
    for chain in chains:
        for place, to in chain.jumps:
            place += starts[chain.name]
            struct.pack_into("=i", blob, place, starts[to] + len(end) if to else place + 8)
    at = {**starts, "end": len(blob)}
    return Made(blob + end, {"valid_hooks": 31, "hook_entry": places, "underflow": list(places), "num_entries": entries}, at)


def snapshot(family: Family, made: Made) -> Snapshot:
    info = ffi.new("struct np_xt_info *", {key: value for key, value in made.numbers.items() if not isinstance(value, list)})
    info.hook_entry, info.underflow = made.numbers["hook_entry"], made.numbers["underflow"]
    return Snapshot(family, "mangle", info, ffi.new("uint8_t[]", list(made.blob)))


Break = Callable[[Made, Family], object]


def entry_of(chain: str, number: int, family: Family, made: Made) -> int:
    """Where an entry of a chain begins; the head is number 0."""
    at = made.at[chain]
    for _ in range(number):
        at += int(struct.unpack_from("=H", made.blob, at + OFFSETS[family] + 2)[0])
    return at


def offsets(chain: str, number: int, target: int | None = None, size: int | None = None, more: int = 0) -> Break:
    """Another target_offset or next_offset of an entry; `more` is added to what the size was."""

    def change(made: Made, family: Family) -> None:
        at = entry_of(chain, number, family, made) + OFFSETS[family]
        old = struct.unpack_from("=HH", made.blob, at)
        struct.pack_into("=HH", made.blob, at, old[0] if target is None else target, (old[1] if size is None else size) + more)

    return change


def target_of(chain: str, number: int, layout: str, value: int | bytes, by: int = 0) -> Break:
    """Another number or bytes in the target of an entry, `by` bytes from its beginning."""

    def change(made: Made, family: Family) -> None:
        at = entry_of(chain, number, family, made)
        at += struct.unpack_from("=H", made.blob, at + OFFSETS[family])[0]
        struct.pack_into(layout, made.blob, at + by, value)

    return change


def match_of(chain: str, number: int, size: int) -> Break:
    """Another size of the first match of an entry."""
    return lambda made, family: struct.pack_into("=H", made.blob, entry_of(chain, number, family, made) + ENTRY[family], size)


def verdict(place: Callable[[Made, Family], int]) -> Break:
    """Another place for the jump of A to go to."""
    return lambda made, family: target_of("NETPOL-A", 1, "=i", place(made, family), 32)(made, family)


def info(key: str, value: int, index: int | None = None) -> Break:
    def change(made: Made, family: Family) -> None:
        if index is None:
            made.numbers[key] += value
        else:
            made.numbers[key][index] += value

    return change


def cut(size: Callable[[Made, Family], int]) -> Break:
    def change(made: Made, family: Family) -> None:
        del made.blob[size(made, family) :]

    return change


BROKEN: dict[str, Break] = {
    "no target": offsets("NETPOL-A", 3, target=0),
    "a target inside the entry": offsets("NETPOL-A", 3, target=104),
    "a target that is not aligned": offsets("NETPOL-B", 2, target=180),
    "a target that is cut off": offsets("NETPOL-A", 3, more=-16),
    "no next entry": offsets("NETPOL-A", 3, size=0),
    "a next entry that is not aligned": offsets("NETPOL-B", 2, more=4),
    "an entry beyond the end": offsets("end", 0, more=8),
    "an entry far beyond the end": offsets("end", 0, size=65528),
    "an entry that is not all there": cut(lambda made, family: len(made.blob) - 72),
    "only a part of an entry": cut(lambda made, family: made.at["end"] + 8),
    "no end": cut(lambda made, family: made.at["end"]),
    "nothing": cut(lambda made, family: 0),
    "a standard target that is too long": lambda made, family: (
        target_of("NETPOL-B", 2, "=7s", b"", 2)(made, family),
        target_of("NETPOL-B", 2, "=i", -2, 32)(made, family),
    ),
    "an ERROR entry that is too long": offsets("NETPOL-A", 0, more=8),
    "an ERROR target in a rule": target_of("NETPOL-B", 1, "=6s", b"ERROR\0", 2),
    "a match without a size": match_of("NETPOL-A", 1, 0),
    "a match that is too short": match_of("NETPOL-A", 1, 24),
    "a match that is not aligned": match_of("NETPOL-A", 1, 44),
    "a match that is longer than its entry": match_of("NETPOL-A", 1, 4096),
    "matches that leave a rest": match_of("NETPOL-A", 1, 112),
    "a target without a size": target_of("NETPOL-B", 2, "=H", 0),
    "a target that is longer than its entry": target_of("NETPOL-B", 2, "=H", 120),
    "a name without an end": target_of("NETPOL-A", 0, "=30s", b"NETPOL-" + b"x" * 23, 32),
    "no name": target_of("NETPOL-A", 0, "=30s", b"", 32),
    "a chain twice": target_of("NETPOL-A", 0, "=30s", b"NETPOL-B", 32),
    "a user chain called FORWARD": target_of("NETPOL-A", 0, "=30s", b"FORWARD", 32),
    "a jump into a chain": verdict(lambda made, family: entry_of("NETPOL-B", 2, family, made)),
    "a jump to the head of a chain": verdict(lambda made, family: made.at["NETPOL-B"]),
    "a jump to a built-in chain": verdict(lambda made, family: ENTRY[family] + 40),
    "a jump to where a built-in chain would have its first rule": verdict(
        lambda made, family: 2 * (ENTRY[family] + 40) + ENTRY[family] + 64
    ),
    "a jump to the beginning": verdict(lambda made, family: 0),
    "a jump beyond the end": verdict(lambda made, family: len(made.blob) + 8),
    "one hook more": info("valid_hooks", 32),
    "a hook that is elsewhere": info("hook_entry", 8, 1),
    "a hook on a user chain": lambda made, family: made.numbers["hook_entry"].__setitem__(1, made.at["NETPOL-A"]),
    "two hooks on one chain": lambda made, family: made.numbers["hook_entry"].__setitem__(1, 0),
    "a first chain without a hook": lambda made, family: made.numbers.update(valid_hooks=30),
    "a hook without a chain": lambda made, family: made.numbers["hook_entry"].__setitem__(4, len(made.blob)),
    "a hook on the end": lambda made, family: made.numbers["hook_entry"].__setitem__(4, made.at["end"]),
    "a policy elsewhere": info("underflow", 8, 2),
    "one entry more": info("num_entries", 1),
    "one entry less": info("num_entries", -1),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_refused(change: Break, family: Family) -> None:
    """The table as it is can be read; with one thing of it wrong it cannot."""
    made = whole(family)
    ours = read_ours(snapshot(family, made), SETS)
    assert ours.chains == {"NETPOL-A": A, "NETPOL-B": B, "NETPOL-D": D}
    change(made, family)
    with pytest.raises(MalformedKernelData, match=f"the mangle table of IPv{family} has no such form as iptables writes"):
        snapshot(family, made)


@pytest.mark.parametrize("family", FAMILIES)
def test_chains_without_an_end_are_refused(family: Family) -> None:
    """A user chain that ends with a rule, or has a head only, is not one that iptables could have written."""
    encoded = encode_chain(Chain("NETPOL-A", (Rule(DROP, (Tcp(),)),)), family)
    tail, head = ENTRY[family] + 40, ENTRY[family] + 64
    for data, entries in ((encoded.data[:-tail], 2), (encoded.data[:head], 1)):
        made = whole(family, [Loose("NETPOL-A", data, entries)])
        with pytest.raises(MalformedKernelData, match="has no such form"):
            snapshot(family, made)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_that_is_longer_than_iptables_allows(family: Family) -> None:
    """The kernel would take 29 characters: the table is read, and a chain of ours with such a name is one that we never wrote."""
    made = whole(family)
    name = "NETPOL-" + "x" * 22
    struct.pack_into("=30s", made.blob, made.at["NETPOL-A"] + ENTRY[family] + 32, name.encode())
    ours = read_ours(snapshot(family, made), SETS)
    assert set(ours.chains) == {name, "NETPOL-B", "NETPOL-D"}
    assert set(ours.known) == {"NETPOL-B", "NETPOL-D"}
    assert isinstance(ours.chains[name].rules[0].target, OpaqueTarget)


# What no value of ours says: a match of ours, a place in its data, what stands there instead.
UNSAID: dict[str, tuple[Family, Match, int, bytes]] = {
    "conntrack of another thing": (4, Conntrack(("NEW",)), 146, b"\3"),
    "conntrack inverting another thing": (4, Conntrack(("NEW",)), 148, b"\2"),
    "conntrack with an address": (4, Conntrack(("NEW",)), 0, b"\1"),
    "conntrack with an unknown state": (4, Conntrack(("NEW",)), 151, b"\4"),
    "connmark inverted twice": (4, Connmark(1), 8, b"\2"),
    "tcp with an unknown flag": (4, Tcp(), 11, b"\x10"),
    "udp with an unknown flag": (4, Udp(), 8, b"\4"),
    "sctp with chunks": (4, Sctp(), 8, b"\1"),
    "sctp with an unknown flag": (4, Sctp(), 284, b"\4"),
    "sctp with ports that nobody looks at": (4, Sctp(), 0, b"\1"),
    "multiport of another kind": (4, Multiport(((1, 1),)), 0, b"\3"),
    "multiport of too many": (4, Multiport(((1, 1),)), 1, b"\x10"),
    "multiport of none": (4, Multiport(((1, 1),)), 1, b"\0"),
    "multiport with a rest": (4, Multiport(((1, 1),)), 4, b"\1"),
    "multiport with half a range": (4, Multiport(((1, 1),)), 32, b"\1"),
    "multiport with a range of one": (4, Multiport(((1, 1), (1, 1))), 32, b"\1"),
    "multiport inverted twice": (4, Multiport(((1, 1),)), 47, b"\2"),
    "set that is not there": (4, SetMatch("NETPOL-a", ("src",)), 0, b"\4"),
    "set without dimensions": (4, SetMatch("NETPOL-a", ("src",)), 2, b"\0"),
    "set of too many dimensions": (4, SetMatch("NETPOL-a", ("src",)), 2, b"\7"),
    "set with a flag that looks at nomatch": (4, SetMatch("NETPOL-a", ("src",)), 40, b"\1"),
    "set with directions of no dimension": (4, SetMatch("NETPOL-a", ("src",)), 3, b"\6"),
    "set with counters": (4, SetMatch("NETPOL-a", ("src",)), 8, b"\1"),
    "addrtype with an unknown flag": (4, Addrtype(1), 4, b"\x10"),
    "hashlimit of bytes": (4, Hashlimit("h", 1, 1), 272, b"\x20"),
    "hashlimit by interval": (4, Hashlimit("h", 1, 1), 292, b"\1"),
    "hashlimit of a mask that cannot be": (4, Hashlimit("h", 1, 1), 296, b"\x21"),
    "hashlimit of an average that we do not hold": (4, Hashlimit("h", 1, 1), 263, b"\x80"),
    "hashlimit of a name that is no text": (4, Hashlimit("h", 1, 1), 0, b"\xff"),
    "hashlimit with something behind the name": (4, Hashlimit("h", 1, 1), 2, b"h"),
    "icmp with an unknown flag": (4, Icmp(1), 3, b"\2"),
    "icmp of the other family": (6, Icmp(1), -26, b"\0"),
    "icmp6 with an unknown flag": (6, Icmp(1), 3, b"\2"),
    "a name of other bytes": (4, Tcp(), -25, b"x"),
    "another revision": (4, Multiport(((1, 1),)), -1, b"\0"),
}


@pytest.mark.parametrize(("family", "match", "at", "data"), UNSAID.values(), ids=UNSAID)
def test_a_match_that_we_cannot_say_stays_bytes(family: Family, match: Match, at: int, data: bytes) -> None:
    """A form of one of our matches that no value has is opaque, and is the same bytes again; or the whole rule is none of ours."""
    raw = bytearray(encode_match(match, family, SETS))
    assert decode_match(bytes(raw), family, SETS) == match
    raw[32 + at : 32 + at + len(data)] = data
    found = decode_match(bytes(raw), family, SETS)
    assert isinstance(found, Opaque)
    if at >= 0:
        assert encode_match(found, family, SETS) == bytes(raw)


def test_an_opaque_target_stays_bytes() -> None:
    """An NFLOG that does what we do not model, and a REJECT with an answer that does not exist, are opaque and the same bytes again."""
    for value, at, data in ((Nflog(1), 10, b"\2"), (Nflog(1), 4, b"\1\0\1\0\1"), (Reject("tcp-reset"), 0, b"\4"), (Nflog(1), 12, b"\xff")):
        raw = bytearray(encode_target(value, 4))
        raw[32 + at : 32 + at + len(data)] = data
        found = decode_target(bytes(raw), 4)
        if isinstance(found, OpaqueTarget):
            assert encode_target(found, 4) == bytes(raw)
        else:
            assert encode_target(found, 4) == bytes(raw)
            assert found != value


CHAINS: dict[str, Callable[[bytearray], object]] = {
    "cut off": lambda raw: raw.__delitem__(slice(-1, None)),
    "cut off in an entry's head": lambda raw: raw.__delitem__(slice(260, None)),
    "empty": lambda raw: raw.clear(),
    "an entry without a size": lambda raw: struct.pack_into("=HH", raw, 176 + 88, 112, 0),
    "an entry that goes back": lambda raw: struct.pack_into("=HH", raw, 176 + 88, 112, 104),
    "an entry beyond the end": lambda raw: struct.pack_into("=HH", raw, 176 + 88, 112, 8000),
    "a target inside the entry": lambda raw: struct.pack_into("=HH", raw, 176 + 88, 96, 200),
    "a match without a size": lambda raw: struct.pack_into("=H", raw, 176 + 112, 0),
    "a match that is longer than its entry": lambda raw: struct.pack_into("=H", raw, 176 + 112, 400),
    "a match that is cut off": lambda raw: struct.pack_into("=H", raw, 176 + 112, 40),
    "a target of another size": lambda raw: struct.pack_into("=H", raw, 176 + 160, 48),
}


@pytest.mark.parametrize("change", CHAINS.values(), ids=CHAINS)
def test_a_broken_chain_is_refused(change: Callable[[bytearray], object]) -> None:
    """Bytes that are no chain end in an error, and end."""
    raw = bytearray(encode_chain(Chain("NETPOL-A", (Rule(DROP, (Tcp(),)),)), 4).data)
    change(raw)
    with pytest.raises(MalformedKernelData):
        decode_chain("NETPOL-A", bytes(raw), 4, {}, SETS)


# -- counters of unchanged chains, which C moves --


def carried(old: Snapshot, chains: list[EncodedChain]) -> tuple[int, list[int], list[int]]:
    """How many chains C takes for unchanged, which, and the packets of all entries of the new table; entry n of the old had n + 1."""
    names = [*(span.name for span in old.spans[:5]), *(chain.name for chain in chains)]
    new = Layout(old, names, 5)
    for span in old.spans[:5]:
        new.begin(span.hook, span.size, span.entries)
        new.keep(old.block, span.offset, span.offset + span.size)
    for chain in chains:
        new.add(chain)
    new.link()
    entries = int(new.table.entries)
    before, after = old.block.view(old.entries), new.block.view(entries)
    counters = ffi.new("uint8_t[]", b"".join(struct.pack("=QQ", n + 1, 0) for n in range(old.entries)))
    out, same = ffi.new("uint8_t[]", 16 * entries), ffi.new("uint8_t[]", len(names))
    count = lib.np_xt_carry(before, after, new.renumber(), counters, out, same)
    packets = [packets for packets, _ in struct.iter_unpack("=QQ", bytes(ffi.buffer(out)))]
    whole_counters = ffi.new("uint8_t[]", 16 * entries)
    new.carry(counters, whole_counters)
    for c_made, all_made in zip(packets, struct.iter_unpack("=QQ", bytes(ffi.buffer(whole_counters))), strict=True):
        assert c_made in (0, all_made[0])
    return count, list(same), packets


C = "NETPOL-C"
FIRST, SECOND, LAST = A.rules
MATCHES = FIRST.matches
OPTION = (Tcp(option=1), MATCHES[1])
# The chains of the new table, and which of them are as they were.
MOVES: dict[str, tuple[list[Chain], list[str]]] = {
    "nothing": ([A, B], [A.name, B.name]),
    "another chain before": ([Chain("NETPOL", (Rule(Goto(C)),)), A, B, Chain(C, ())], [A.name, B.name]),
    "another order": ([B, A], [A.name, B.name]),
    "a jump to another chain": ([Chain(A.name, (Rule(Jump(C), MATCHES), SECOND, LAST)), B, Chain(C, B.rules)], [B.name]),
    "a jump to a chain that is gone": ([Chain(A.name, (Rule(Jump(C), MATCHES), Rule(Goto(C)), LAST)), Chain(C, B.rules)], []),
    "on to the next rule": ([Chain(A.name, (Rule(Continue(), MATCHES), Rule(Goto(C)), LAST)), Chain(C, ())], []),
    "on instead of to a chain that is gone": ([Chain(D.name, (Rule(Continue()),))], []),
    "a jump for a rule without a target": ([Chain(A.name, (FIRST, SECOND, Rule(Jump(B.name)))), B], [B.name]),
    "a goto for a jump": ([Chain(A.name, (Rule(Goto(B.name), MATCHES), SECOND, LAST)), B], [B.name]),
    "another byte behind the last jump": ([A, Chain(B.name, (B.rules[0], Rule(Nflog(2))))], [A.name]),
    "another byte before the first jump": ([Chain(A.name, (Rule(Jump(B.name), OPTION), SECOND, LAST)), B], [B.name]),
    "a rule more": ([A, Chain(B.name, (*B.rules, Rule(DROP)))], [A.name]),
    "a rule less": ([A, Chain(B.name, B.rules[:1])], [A.name]),
}


@pytest.mark.parametrize(("chains", "unchanged"), MOVES.values(), ids=MOVES)
def test_which_chains_are_unchanged(chains: list[Chain], unchanged: list[str]) -> None:
    """C takes for unchanged the chains with the same rules that go to the same chains, and moves the counters of all their entries."""
    old = snapshot(4, whole(4))
    new = [encode_chain(chain, 4) for chain in chains]
    count, same, packets = carried(old, new)
    assert [chain.name for chain, is_same in zip(new, same[5:], strict=True) if is_same] == sorted(
        unchanged, key=[c.name for c in chains].index
    )
    assert count == 5 + len(unchanged)
    assert packets[:5] == [1, 2, 3, 4, 5]
    at = 5
    for chain in new:
        span = old.by_name.get(chain.name)
        expected = range(span.first + 1, span.first + span.entries + 1) if span and chain.name in unchanged else [0] * chain.entries
        assert packets[at : at + chain.entries] == list(expected)
        at += chain.entries
