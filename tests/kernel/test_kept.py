"""A table that was kept since it was left: what is put into it is what a splice would make, and what others did to it meanwhile stays."""

from __future__ import annotations

from random import Random

import pytest

from netpol.errors import KernelError
from netpol.kernel._native import ffi, lib
from netpol.kernel.blocks import NO_SETS, EncodedChain
from netpol.kernel.encode import encode_chain, encode_chains
from netpol.kernel.entries import ENTRY
from netpol.kernel.kept import Kept, kept
from netpol.kernel.table import Layout, splice
from netpol.kernel.xtables import TableSocket
from netpol.model import FAMILIES, TCP, Family
from netpol.rules.ruleset import ACCEPT, DROP, RETURN, ROOT, Chain, Goto, Jump, Rule, Tcp, is_ours
from tests.kernel.iptables import TOOL, restore, saved, table_text
from tests.referees import run

Chains = dict[str, EncodedChain]
NAMES = tuple(f"{ROOT}-{number:02}" for number in range(40))
FOREIGN = {"AAA": ["-p tcp -j RETURN", "-j MMM"], "MMM": [], "ZZZ": ["-j AAA"], "PREROUTING": ["-j ZZZ"]}


def made(names: dict[str, int], family: Family) -> Chains:
    """NETPOL, which jumps to all the others, and those: the number says what is in one, and the next by name is where it goes."""
    ordered = sorted(names)
    chains = [Chain(ROOT, tuple(Rule(Jump(name)) for name in ordered))]
    for name, after in zip(ordered, [*ordered[1:], ""], strict=True):
        rules = [Rule(RETURN, (Tcp(destination=(names[name], 60_000)),), protocol=TCP)] * (names[name] % 4)
        chains.append(Chain(name, (*rules, Rule(Goto(after)) if after else Rule(DROP))))
    return {chain.name: chain for chain in encode_chains(chains, family)}


def following(before: Chains, wanted: Chains) -> Chains:
    """The wanted chains, those of before where they are the same."""
    return {name: before[name] if before.get(name) == chain else chain for name, chain in wanted.items()}


def assert_same(ready: Layout, spliced: Layout) -> None:
    assert list(ready.block.names) == list(spliced.block.names)
    assert bytes(ready.blob) == bytes(spliced.blob)
    assert ready.shape == spliced.shape
    assert [*ready.block.all_jumps()] == [*spliced.block.all_jumps()]
    count = len(ready.block.names)
    fields = [[(c.hook, c.offset, c.size, c.entries, c.first) for c in layout.block.chains[0:count]] for layout in (ready, spliced)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("foreign", [{}, FOREIGN], ids=["alone", "beside others"])
def test_it_makes_what_a_splice_makes(netns: int, family: Family, foreign: dict[str, list[str]]) -> None:
    """Chains come, go and change at random places, at both ends too: the same bytes, chains and jumps, and the kernel takes them."""
    restore(family, table_text("mangle", foreign))
    random, ready = Random(family), 0
    names = dict.fromkeys(NAMES[5:30], 1)
    with TableSocket(family) as socket:
        chains = made(names, family)
        last = after(socket, chains)
        for _ in range(60):
            for _ in range(random.randint(0, 5)):
                name = random.choice(NAMES)
                if random.random() < 0.4:
                    names.pop(name, None)
                else:
                    names[name] = random.randint(1, 9)
            chains = following(of(last), made(names, family))
            layout, spliced = last.with_chains(chains, True), splice(socket.read("mangle"), chains, True, is_ours)
            if layout is not None:
                ready += 1
                assert_same(layout, spliced)
            last = after(socket, chains)
    assert ready > 50


def after(socket: TableSocket, chains: Chains) -> Kept:
    """Writes them; what is kept then."""
    layout = socket.write("mangle", chains, True)
    last = kept("mangle", layout, chains, True)
    assert last is not None
    return last


def of(last: Kept) -> Chains:
    block = last.block
    return {name: EncodedChain(block, number) for number, name in enumerate(block.names) if is_ours(name)}


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that were spliced."""
    found: list[str] = []

    def counting(*arguments: object) -> Layout:
        found.append("")
        return splice(*arguments)  # type: ignore[arg-type]  # as they come

    monkeypatch.setattr("netpol.kernel.xtables.splice", counting)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_used_while_nobody_else_writes(netns: int, family: Family, spliced: list[str]) -> None:
    """The first change takes the table apart; later ones do not, whatever counters say."""
    with TableSocket(family) as socket:
        chains: Chains = {}
        for number in range(4):
            chains = following(chains, made(dict.fromkeys(NAMES[: 9 + number], 1), family))
            chains = socket.write("mangle", chains, True).kept(chains, NO_SETS)
            assert [line for line in saved(family) if line.startswith(f":{ROOT}")] == [f":{name} -" for name in sorted(chains)]
    assert len(spliced) == 1


# What others do, none of which makes the table longer or shorter, and what is in it then.
MEDDLING = {
    "a policy": (["-P", "PREROUTING", "DROP"], ":PREROUTING DROP"),
    "a foreign rule": (["-R", "AAA", "1", "-p", "udp", "-j", "RETURN"], "-A AAA -p udp -j RETURN"),
    "a foreign name": (["-E", "ZZZ", "ZZY"], ":ZZY -"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("arguments", "line"), MEDDLING.values(), ids=MEDDLING)
def test_what_others_did_meanwhile_stays(netns: int, family: Family, arguments: list[str], line: str, spliced: list[str]) -> None:
    """A change of the same size by somebody else, between two of ours, is found."""
    restore(family, table_text("mangle", FOREIGN))
    with TableSocket(family) as socket:
        socket.write("mangle", made({"NETPOL-A": 1}, family), True)
        run(TOOL[family], "-t", "mangle", *arguments)
        assert line in saved(family)
        socket.write("mangle", made({"NETPOL-B": 1}, family), True)
        assert line in saved(family)
        assert ":NETPOL-B -" in saved(family)
    assert len(spliced) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_others_did_to_ours_does_not(netns: int, family: Family) -> None:
    """A rule of ours that somebody replaced by one as long comes back with the next change, of another chain."""
    wanted = made(dict.fromkeys(NAMES[:9], 2), family)
    with TableSocket(family) as socket:
        chains = socket.write("mangle", wanted, True).kept(wanted, wanted[ROOT].block.sets)
        before = saved(family)
        run(TOOL[family], "-t", "mangle", "-R", NAMES[3], "1", "-p", "tcp", "-m", "tcp", "--dport", "7", "-j", "RETURN")
        assert saved(family) != before
        more = chains | {"NETPOL-X": encode_chains([Chain("NETPOL-X", (Rule(ACCEPT),))], family)[0]}
        socket.write("mangle", more, True)
        assert [line for line in saved(family) if "NETPOL-X" not in line] == before


def test_a_chain_that_others_jump_to_stays(netns: int) -> None:
    """A foreign rule jumps to a chain of ours that goes: that is no case for what was kept."""
    with TableSocket(4) as socket:
        socket.write("mangle", made(dict.fromkeys(NAMES[:9], 1), 4), True)
        run(TOOL[4], "-t", "mangle", "-A", "INPUT", "-j", NAMES[8])
        chains = made(dict.fromkeys(NAMES[:9], 1), 4)
        chains = socket.write("mangle", chains, True).kept(chains, chains[ROOT].block.sets)
        fewer = following(chains, made(dict.fromkeys(NAMES[:8], 1), 4))
        socket.write("mangle", fewer, True)
        assert f"-A INPUT -j {NAMES[8]}" in saved(4)
        assert f"-A {NAMES[8]} -p tcp -m tcp --dport 1:60000 -j RETURN" in saved(4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_byte_counts(netns: int, family: Family) -> None:
    """But those that the kernel fills in: the counters of each entry, and where it was come from."""
    restore(family, table_text("mangle", FOREIGN))
    with TableSocket(family) as socket:
        table = socket.read("mangle")
    blob = bytes(table.blob)
    at = {4: 92, 6: 144}[family]
    filled = {0, 1, 2, 3} | set(range(ENTRY[family] - 16 - at, ENTRY[family] - at))
    starts, offset = [], 0
    while offset < len(blob):
        starts.append(offset)
        offset += int.from_bytes(blob[offset + at - 2 : offset + at], "little")
    free = {start + at + byte for start in starts for byte in filled}
    assert len(free) == 20 * table.entries
    found = ffi.new("uint8_t[]", blob)
    for place in range(len(blob)):
        found[place] ^= 0x80
        assert lib.np_xt_same(table.block.native, found, len(blob), family) == (place in free), place
        found[place] ^= 0x80


def test_what_is_not_kept(netns: int) -> None:
    """Tables that are mostly other people's, those with a chain that stays for others' sake, and those in another order than iptables'."""
    with TableSocket(4) as socket:
        few = encode_chains([Chain(ROOT, ())], 4)
        restore(4, table_text("mangle", {f"F{number}": ["-j ACCEPT"] * 3 for number in range(9)}))
        layout = socket.write("mangle", {ROOT: few[0]}, True)
        assert layout.is_mostly_foreign
        assert kept("mangle", layout, [ROOT], True) is None
        layout = socket.write("mangle", made(dict.fromkeys(NAMES[:30], 1), 4), True)
        layout.is_plain = False
        assert kept("mangle", layout, [ROOT], True) is None
        layout.is_plain = True
        assert kept("mangle", layout, [ROOT], True) is not None
        layout.block.names = sorted(layout.block.names, reverse=True)
        assert kept("mangle", layout, [ROOT], True) is None


def test_what_a_splice_is_for(netns: int) -> None:
    """The jump from FORWARD goes and comes; a name that is somebody else's, and a jump that leads nowhere, are told as ever."""
    restore(4, table_text("mangle", FOREIGN))
    with TableSocket(4) as socket:
        last = after(socket, made(dict.fromkeys(NAMES[:9], 1), 4))
        chains = of(last)
        for hooked in (False, True):
            socket.write("mangle", chains, hooked)
            assert (f"-A FORWARD -j {ROOT}" in saved(4)) == hooked
        chains = of(after(socket, chains))
        with pytest.raises(KernelError, match="the chain AAA is there already"):
            socket.write("mangle", chains | {"AAA": encode_chain(Chain("AAA", ()), 4)}, True)
        chains = of(after(socket, chains))
        with pytest.raises(KernelError, match="the chain NETPOL-A jumps to NETPOL-B, which is not there"):
            socket.write("mangle", chains | {"NETPOL-A": encode_chain(Chain("NETPOL-A", (Rule(Jump("NETPOL-B")),)), 4)}, True)
