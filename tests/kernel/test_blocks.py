"""Chains in blocks: put around each other or copied, cut out, gathered, and kept from one change to the next."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest

from netpol.errors import KernelError
from netpol.kernel._native import lib
from netpol.kernel.apply import Kernel
from netpol.kernel.blocks import Assembly, EncodedChain, SetNumbers, gathered
from netpol.kernel.encode import MARGIN, encode_chain, encode_chains, pack_chains
from netpol.kernel.ipset import Create, IpsetSocket
from netpol.kernel.table import splice
from netpol.kernel.xtables import TableSocket
from netpol.model import FAMILIES, TCP, Family
from netpol.rules.ruleset import (
    DROP,
    RETURN,
    ROOT,
    Chain,
    Continue,
    CreateSet,
    DestroySet,
    Goto,
    Jump,
    Nflog,
    ReplaceTable,
    Rule,
    SetMatch,
    Tcp,
    is_ours,
)
from netpol.rules.sets import Set
from tests.kernel.iptables import restore, saved, table_text

SETS = SetNumbers({"one": 1, "nine": 9, "hundred": 100})
_MATCHES = (SetMatch("one", ("src",)), Tcp())
A = Chain("NETPOL-A", (Rule(Jump("NETPOL-B")), Rule(RETURN, _MATCHES, protocol=TCP), Rule(Continue()), Rule(Goto("NETPOL-C"))))
B = Chain("NETPOL-B", (Rule(DROP, (SetMatch("hundred", ("dst",)), SetMatch("nine", ("src",)))), Rule(Jump("NETPOL-C"))))
C = Chain("NETPOL-C", ())
D = Chain("NETPOL-D", (Rule(Nflog(1)),) * 3)
CHAINS = (A, B, C, D)


def named(chains: Iterable[EncodedChain]) -> dict[str, EncodedChain]:
    return {chain.name: chain for chain in chains}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("foreign", [0, 3, 2 * MARGIN // 152])
def test_a_table_is_the_same_around_a_block_and_copied(netns: int, family: Family, foreign: int) -> None:
    """The first table that a block goes into is put around it, where there is room; one that comes again is as it was."""
    names = [f"AAA-{number:03}" for number in range(foreign // 2)] + [f"ZZZ-{number:03}" for number in range(foreign - foreign // 2)]
    restore(family, table_text("mangle", {name: ["-p tcp -j RETURN"] for name in names}))
    with TableSocket(family) as socket:
        old = socket.read("mangle")
        together = named(encode_chains(CHAINS, family, SETS))
        alone = {chain.name: encode_chain(chain, family, SETS) for chain in CHAINS}
        whole = next(iter(together.values())).block
        before = whole.native + 0
        tables = [splice(old, chains, False, is_ours) for chains in (together, together, alone)]
        blobs = [bytes(table.blob) for table in tables]
        assert blobs[0] == blobs[1] == blobs[2]
        at = tables[0].block.chains[5 + foreign // 2].offset
        assert (tables[0].block.native + at == before) == (foreign < 10)
        assert tables[1].block.native + at != before
        assert together == alone
        assert tables[0].shape == tables[1].shape == tables[2].shape


def test_chains_out_of_several_blocks() -> None:
    """In whatever order chains come, each keeps its bytes and goes where it went; without the chain that one goes to, there is no block."""
    together, alone = encode_chains(CHAINS, 4, SETS), [encode_chain(chain, 4, SETS) for chain in CHAINS]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 0, 3)):
        for pieces in ([together[n] for n in order], [alone[n] for n in order], [(together, alone)[n % 2][n] for n in order]):
            assembly = Assembly(4, [piece.name for piece in pieces])
            for piece in pieces:
                assembly.add(piece)
            block = assembly.finish()
            assert [EncodedChain(block, number) for number in range(4)] == pieces
            assert [block.chains[n].first for n in range(4)] == [sum(piece.entries for piece in pieces[:n]) for n in range(4)]
    assembly = Assembly(4, [A.name, B.name])
    assembly.add(together[0])
    assembly.add(together[1])
    with pytest.raises(KeyError):
        assembly.finish()


def test_chains_are_gathered_with_what_they_go_to() -> None:
    """Some chains of a block, and nothing else of it: where they go to others, those are still named."""
    together = encode_chains(CHAINS, 4, SETS)
    found = gathered(together[0].block, {D.name: 3, A.name: 0}, SETS)
    assert found == {A.name: together[0], D.name: together[3]}
    block = found[A.name].block
    assert block is found[D.name].block
    assert block.names == [A.name, D.name]
    assert block.size == len(together[0].data) + len(together[3].data)
    assert [to for _, to in found[A.name].jumps] == ["NETPOL-B", "", "NETPOL-C"]


MOVED: dict[str, tuple[dict[str, int], list[str]]] = {
    "nothing": ({"one": 1, "nine": 9, "hundred": 100, "new": 2}, []),
    "one": ({"one": 2, "nine": 9, "hundred": 100}, [A.name]),
    "nine": ({"one": 1, "nine": 8, "hundred": 100}, [B.name]),
    "two that were exchanged": ({"one": 100, "nine": 9, "hundred": 1}, [A.name, B.name]),
    "one that is gone": ({"one": 1, "nine": 9}, [B.name]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("numbers", "expected"), MOVED.values(), ids=MOVED)
def test_chains_of_which_sets_have_other_numbers(family: Family, numbers: dict[str, int], expected: list[str]) -> None:
    """Those chains are out of date, and no others, that match a set which has another number by now or is gone."""
    chains = encode_chains(CHAINS, family, SETS)
    assert [chain.name for chain in chains if not chain.is_of(SetNumbers(numbers))] == expected
    assert all(chain.is_of(SETS) for chain in chains)


@pytest.mark.parametrize("foreign", [1, 200])
def test_what_was_written_is_kept(netns: int, monkeypatch: pytest.MonkeyPatch, foreign: int) -> None:
    """Of the next change only what is new is encoded, beside few foreign rules and beside many; and of the one after it."""
    restore(4, table_text("mangle", {f"{'AZ'[n % 2]}-{n:03}": ["-p tcp -j DROP"] * 3 for n in range(foreign)}))
    theirs = saved(4)
    seen: list[list[str]] = []

    def watched(chains: Iterable[Chain], family: Family, sets: SetNumbers) -> list[EncodedChain]:
        values = list(chains)
        seen.append([chain.name for chain in values])
        return encode_chains(values, family, sets)

    monkeypatch.setattr("netpol.kernel.held_table.encode_chains", watched)
    with Kernel() as kernel, IpsetSocket() as ipset, Kernel() as reader:
        ipset.run([Create(name, "hash:ip", 4) for name in ("one", "nine", "hundred")])
        kernel.read()
        chains = {ROOT: Chain(ROOT, (Rule(Jump(A.name)),)), **{chain.name: chain for chain in CHAINS}}
        for change in ({}, {D.name: Chain(D.name, D.rules[:1])}, {B.name: Chain(B.name, (*B.rules, Rule(DROP)))}, {}):
            chains = {**chains, **change}
            kernel.apply([ReplaceTable(4, "mangle", chains, True)])
            assert reader.read().chains[4] == chains
        assert seen == [list(chains), [D.name], [B.name], []]
        kernel.apply([ReplaceTable(4, "mangle", {}, False)])
        assert saved(4) == theirs


def test_chains_that_a_caller_changes_later_are_encoded(netns: int) -> None:
    """The mapping of a change is the caller's: what he puts into it afterwards is not taken for what was written."""
    chains = {ROOT: Chain(ROOT, (Rule(DROP),))}
    with Kernel() as kernel, Kernel() as reader:
        kernel.apply([ReplaceTable(4, "mangle", chains, True)])
        chains[ROOT] = Chain(ROOT, (Rule(RETURN),))
        kernel.apply([ReplaceTable(4, "mangle", chains, True)])
        assert reader.read().chains[4] == chains


def test_a_set_that_is_no_more(netns: int) -> None:
    """Bytes that were kept, with the number of a set that is gone, are not written: the set is named."""
    chains = {ROOT: Chain(ROOT, (Rule(DROP, (SetMatch("NETPOL-s", ("src",)),)),))}
    with Kernel() as kernel:
        kernel.apply([CreateSet(Set("NETPOL-s", "hash:ip", 4)), ReplaceTable(4, "mangle", chains, True)])
        restore(4, "*mangle\nCOMMIT\n")
        kernel.apply([DestroySet("NETPOL-s")])
        with pytest.raises(KernelError, match="there is no set NETPOL-s"):
            kernel.apply([ReplaceTable(4, "mangle", chains, True)])


@pytest.mark.parametrize("count", [0, 15, 16, 70_000])
def test_rules_are_counted_before_they_are_encoded(count: int) -> None:
    """However many there are; and bytes that are cut off, or of another form, are none."""
    packed = pack_chains([Chain(ROOT, (Rule(DROP),) * 3), Chain(A.name, (Rule(RETURN),) * count)])
    assert lib.np_xt_count(packed, len(packed)) == 3 + count
    for broken in (packed[:-1], packed[:3], b"\x91\x92\xa1A\xc4\1\xc0", b"\x91\x91\xa1A", b"\x91\x92\xa1A\xc4\5\xdd\xff\xff\xff\xff"):
        assert lib.np_xt_count(broken, len(broken)) == -errno.EPROTO
