"""Other people's rules: any table that they wrote comes out of our changes as it was, with its counters."""

from __future__ import annotations

import re
import subprocess
from typing import cast

import pytest

from netpol.errors import KernelError
from netpol.kernel.blocks import NO_SETS, EncodedChain
from netpol.kernel.encode import encode_chains
from netpol.kernel.table import Layout, Snapshot
from netpol.kernel.xtables import TableSocket, read_ours
from netpol.model import FAMILIES, TCP, Family
from netpol.rules.ruleset import ACCEPT, DROP, RETURN, ROOT, Chain, Conntrack, Continue, Goto, Jump, Rule, TableName, Tcp, is_ours
from tests.kernel.iptables import HOOKS, TOOL, restore, saved, table_text
from tests.referees import run

A, B, C = "NETPOL-A", "NETPOL-B", "NETPOL-C"

# Rules of which we know nothing. Where a kernel lacks some, the others are left.
ANYWHERE = [
    '-m comment --comment "somebody was here"',
    "-m limit --limit 3/min --limit-burst 7 -j RETURN",
    "-m string --algo bm --string secret -j DROP",
    '-m string --algo kmp --hex-string "|00ff|" --to 100',
    '-m u32 --u32 "0>>22&0x3C@0&0xFF=1"',
    "-m recent --name seen --update --seconds 60 --hitcount 4 --rsource -j DROP",
    "-m recent --name seen --set --rdest",
    "-m statistic --mode random --probability 0.25 -j RETURN",
    "-m statistic --mode nth --every 3 --packet 1 -j RETURN",
    '-m bpf --bytecode "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0" -j RETURN',
    "-m mark ! --mark 0x1/0xff -j RETURN",
    "-m connmark --mark 0x2/0xff",
    "-m length --length 100:1500",
    "-m mac --mac-source 00:01:02:03:04:05 -j DROP",
    "-m time --timestart 08:00 --timestop 18:30 --weekdays Mon,Tue -j RETURN",
    "-m pkttype --pkt-type multicast",
    "-m quota --quota 1000000",
    "-m quota ! --quota 7 -j RETURN",
    "-m physdev --physdev-in veth0 -j RETURN",
    "-m connlimit --connlimit-above 10 --connlimit-mask 24 -j DROP",
    "-m connbytes --connbytes 10000:100000 --connbytes-dir both --connbytes-mode bytes",
    "-m connlabel --label 7 --set",
    "-m helper --helper ftp",
    "-m conntrack --ctproto 6 --ctdir ORIGINAL --ctstatus ASSURED",
    "-m state --state NEW -j ACCEPT",
    "-p tcp -m tcpmss --mss 536 -j DROP",
    "-m dscp --dscp 0x2e -j ACCEPT",
    "-m tos --tos 0x10/0x3f",
    "-m hashlimit --hashlimit-above 1mb/s --hashlimit-mode srcip --hashlimit-name bytes -j DROP",
    "-m devgroup --src-group 3",
    "-m cpu --cpu 1",
    "-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 0xdeadbeef",
    "-p esp -m esp --espspi 500 -j ACCEPT",
    "-p dccp -m dccp --dport 80 --dccp-types REQUEST",
    "-p sctp -m sctp --chunk-types any DATA:Be,INIT -j ACCEPT",
    "-m policy --dir in --pol none",
    "-m realm --realm 0x10/0x20",
    "-m rpfilter --loose",
    "-p tcp -m osf --genre Linux --ttl 1",
    '-j LOG --log-prefix "gone: " --log-level 7 --log-tcp-options',
    "-j NFLOG --nflog-group 5 --nflog-prefix theirs --nflog-size 64",
    "-j NFQUEUE --queue-balance 0:3 --queue-bypass",
    "-j CONNMARK --set-xmark 0x5/0xff",
    "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
    "-j MARK --set-xmark 0x4000/0x4000",
    "-j AUDIT --type drop",
    "-j IDLETIMER --timeout 30 --label theirs",
    "-j TRACE",
]
ONLY: dict[str, list[str]] = {
    "mangle": [
        "-j DSCP --set-dscp 0x0a",
        "-j TOS --set-tos 0x10/0x3f",
        "-j CLASSIFY --set-class 1:10",
        "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-p tcp -m tcp --tcp-flags SYN SYN -j TCPMSS --set-mss 1400",
        "-p tcp -j TCPOPTSTRIP --strip-options 2,3",
        "-j CHECKSUM --checksum-fill",
        "-j HMARK --hmark-tuple src,dst --hmark-mod 10 --hmark-rnd 0xdeafbeef",
        "-p tcp -j TPROXY --on-port 3128 --on-ip {address} --tproxy-mark 0x1/0x1",
    ],
    "filter": ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT"],
    "raw": ["-j CT --notrack", "-j CT --zone 7", "-j NOTRACK", "-p tcp -j CT --helper ftp", "-j CT --ctevents new,destroy"],
}
FAMILY_ONLY: dict[Family, list[str]] = {
    4: [
        "-m ttl --ttl-gt 3",
        "-m iprange --src-range 10.0.0.1-10.0.0.9 ! --dst-range 10.0.1.1-10.0.1.2",
        "-m addrtype --dst-type BROADCAST",
        "-m ecn --ecn-ip-ect 2",
        "-p ah -m ah --ahspi 1:500",
        "-s 10.0.0.0/255.0.255.0 -j DROP",
        "-j TEE --gateway 10.9.9.9",
        "-f -j DROP",
        "! -s 0.0.0.0/0",
    ],
    6: [
        "-m hl --hl-gt 3",
        "-m iprange --src-range fd00::1-fd00::9",
        "-m rt --rt-type 0 -j DROP",
        "-m frag --fragid 1:2 --fragfirst",
        "-m hbh --hbh-opts 1:4",
        "-m dst --dst-opts 1:4",
        "-m eui64",
        "-m ipv6header --header frag --soft",
        "-m ah --ahspi 1:500 --ahlen 20 --ahres",
        "-m srh --srh-next-hdr-eq 17",
        "-p icmpv6 -m icmp6 --icmpv6-type 128/0 -j ACCEPT",
        "-s fd00::/ff00::ff -j DROP",
        "-j TEE --gateway fd00::9",
    ],
}


def available(family: Family, table: str) -> list[str]:
    """The rules above that this kernel takes in that table."""
    address = "10.0.0.1" if family == 4 else "fd00::1"
    rules = [rule.format(address=address) for rule in ANYWHERE + ONLY[table] + FAMILY_ONLY[family]]

    def takes(some: list[str]) -> bool:
        text = table_text(table, {"TRY": some})
        return not subprocess.run((f"{TOOL[family]}-restore",), input=text, text=True, capture_output=True).returncode

    def good(some: list[str]) -> list[str]:
        if takes(some):
            return some
        return [] if len(some) == 1 else good(some[: len(some) // 2]) + good(some[len(some) // 2 :])

    found = good(rules)
    restore(family, f"*{table}\nCOMMIT\n")
    return found


def foreign_text(family: Family, table: str, chains: int, each: int) -> str:
    """A table of `chains` * `each` foreign rules, each with counters of its own; policies DROP, chains that jump on, chains in no order."""
    rules, number = available(family, table), 0
    assert len(rules) > 40, f"this kernel knows few extensions: {rules}"
    names = [f"{'ANZ'[i % 3]}-{i * 7919 % chains:04}" for i in range(chains)]
    lines = [f"*{table}", *(f":{hook} DROP [{i + 1}:{i + 1000}]" for i, hook in enumerate(HOOKS[table]))]
    lines += [f":{name} - [0:0]" for name in [*names, REACHED]]
    for i, name in enumerate(names):
        # Only on to chains that come later: a loop would be refused.
        jump = f"-p udp -{'jg'[i % 2]} {names[i + 1]}" if i + 1 < chains else "-p udp"
        for rule in [*(rules[(number + n) % len(rules)] for n in range(each - 2)), jump, ""]:
            number += 1
            lines.append(f"[{number}:{number * 1500}] -A {name} {rule}")
    # The hooks reach only what is legal in all of them.
    address = "10.1.1.1" if family == 4 else "fd00::1"
    lines += [f"[{i + 7}:{2**40 + i}] -A {hook} -s {address} -j {REACHED}" for i, hook in enumerate(HOOKS[table])]
    lines += [f"[{i}:{i}] -A {REACHED} {rule}" for i, rule in enumerate(ANYWHERE[:10], 3)]
    return "\n".join([*lines, "COMMIT"]) + "\n"


REACHED = "M-REACHED"
OURS = re.compile(r"^(:NETPOL[ -]|(\[\d+:\d+\] )?-A (NETPOL[ -]|FORWARD -j NETPOL$))")


def others(lines: list[str]) -> list[str]:
    return [line for line in lines if not OURS.match(line)]


def meaning(snapshot: Snapshot) -> dict[str, tuple[bytes, dict[int, str], bytes]]:
    """All that a table says of foreign chains: bytes without verdicts, where the jumps go, counters."""
    found = {}
    for span in snapshot.spans:
        if span.hook < 0 and is_ours(span.name):
            continue
        data, places = bytearray(snapshot.data(span)), snapshot.places_of(span)
        for at in places:
            data[at : at + 4] = bytes(4)
        found[span.name] = bytes(data), places, snapshot.counters[span.first * 16 : (span.first + span.entries) * 16]
    return found


def chains(family: Family, **rules: tuple[Rule, ...]) -> dict[str, EncodedChain]:
    """Chains of ours, by the last part of their names; ROOT for NETPOL itself."""
    names = {"ROOT": ROOT}
    encoded = encode_chains([Chain(names.get(name, f"NETPOL-{name}"), part) for name, part in rules.items()], family)
    return {chain.name: chain for chain in encoded}


def states(family: Family) -> list[tuple[dict[str, EncodedChain], bool]]:
    """Chains of ours one after the other: they come, change, grow, shrink, and go; with and without the hook."""
    tcp = Rule(RETURN, (Tcp(destination=(80, 80)),), protocol=TCP)
    gate = Rule(RETURN, (Conntrack(("ESTABLISHED",)),))
    return [
        (chains(family, ROOT=(gate,)), True),
        (chains(family, ROOT=(gate, Rule(Jump(A))), A=(tcp, Rule(Goto(B))), B=(Rule(DROP),)), True),
        (chains(family, ROOT=(gate, Rule(Jump(A)), Rule(Goto(C))), A=(Rule(Goto(B)),), B=(tcp,) * 50, C=()), True),
        (chains(family, ROOT=(Rule(Continue()),), C=(Rule(ACCEPT),)), False),
        (chains(family, A=()), False),
        ({}, False),
    ]


@pytest.mark.parametrize(("family", "table", "count"), [(4, "mangle", 100), (6, "mangle", 100), (4, "filter", 5), (6, "filter", 5)])
def test_ten_thousand_foreign_rules_survive(netns: int, family: Family, table: TableName, count: int) -> None:
    """Whatever we do beside them, `iptables-save -c` shows them as before, and the kernel holds the same bytes."""
    restore(family, foreign_text(family, table, count, 100), "-c")
    before = saved(family, table, counters=True)
    assert sum(line.startswith("[") for line in before) >= count * 100
    with TableSocket(family) as socket:
        said = meaning(socket.read(table))
        for ours, hooked in states(family):
            assert socket.change(table, ours, hooked)
            now = socket.read(table)
            assert meaning_without_hook(now) == said
            assert now.is_hooked == hooked
            assert {span.name for span in now.spans if is_ours(span.name)} == set(ours)
            if len(ours) in (0, 4):
                assert others(saved(family, table, counters=True)) == before
            assert not socket.change(table, ours, hooked)


def meaning_without_hook(snapshot: Snapshot) -> dict[str, tuple[bytes, dict[int, str], bytes]]:
    """The same for a table with the jump to NETPOL first in FORWARD, which is left out."""
    found = meaning(snapshot)
    if snapshot.is_hooked:
        data, places, counters = found["FORWARD"]
        size = 152 if snapshot.family == 4 else 208
        found["FORWARD"] = data[size:], {at - size: to for at, to in places.items() if at > size}, counters[16:]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_without_forward(netns: int, family: Family) -> None:
    """Chains may stand in `raw` too, beside its rules; but there is no FORWARD to hook into, and that is said."""
    restore(family, foreign_text(family, "raw", 3, 100), "-c")
    before = saved(family, "raw", counters=True)
    raw = cast(TableName, "raw")
    with TableSocket(family) as socket:
        assert socket.change(raw, chains(family, ROOT=(), A=(Rule(Jump(B)),), B=()), False)
        assert others(saved(family, "raw", counters=True)) == before
        with pytest.raises(KernelError, match="there is no chain FORWARD"):
            socket.change(raw, chains(family, ROOT=()), True)
        assert socket.change(raw, {}, False)
    assert saved(family, "raw", counters=True) == before


# -- the hook --

FORWARD: dict[str, tuple[list[str], list[str]]] = {
    "empty": ([], []),
    "there": ([f"-j {ROOT}"], []),
    "moved": (["-p tcp", f"-j {ROOT}", "-p udp"], ["-p tcp", "-p udp"]),
    "last": (["-p tcp", "-p udp", f"-j {ROOT}"], ["-p tcp", "-p udp"]),
    "twice": ([f"-j {ROOT}", f"-j {ROOT}", "-p tcp"], ["-p tcp"]),
    "first and last": ([f"-j {ROOT}", "-p tcp", f"-j {ROOT}"], ["-p tcp"]),
    "with a condition": ([f"-p tcp -j {ROOT}", "-p udp"], [f"-p tcp -j {ROOT}", "-p udp"]),
    "a goto": ([f"-g {ROOT}"], [f"-g {ROOT}"]),
    "to another chain of ours": ([f"-j {A}", "-p tcp"], [f"-j {A}", "-p tcp"]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORWARD)
def test_the_hook_comes_back_once_and_first(netns: int, family: Family, name: str) -> None:
    """Wherever someone moved it, FORWARD's first rule is the jump to NETPOL, and no other of them is left; conditions make it theirs."""
    given, left = FORWARD[name]
    restore(family, table_text("mangle", {ROOT: [], A: [], "THEIRS": ["-j RETURN"], "FORWARD": given}))
    ours = chains(family, ROOT=(), A=())
    with TableSocket(family) as socket:
        was_right = given[:1] == [f"-j {ROOT}"] and f"-j {ROOT}" not in given[1:]
        assert socket.read("mangle").is_hooked == was_right
        assert socket.change("mangle", ours, True) != was_right
        assert forward(family) == [f"-j {ROOT}", *left]
        assert socket.read("mangle").is_hooked
        assert socket.change("mangle", ours, False)
        assert forward(family) == left
        assert not socket.read("mangle").is_hooked


def forward(family: Family) -> list[str]:
    lines = [line.removeprefix("-A FORWARD ") for line in saved(family) if line.startswith("-A FORWARD ")]
    return [line.replace("-m tcp ", "") for line in lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_of_ours_that_is_still_jumped_to_stays(netns: int, family: Family) -> None:
    """A foreign rule keeps the chain it jumps to, and what that one jumps to, until it is gone; we go on meanwhile."""
    with TableSocket(family) as socket:
        first = chains(family, ROOT=(Rule(Jump(A)),), A=(Rule(Jump(B)),), B=(Rule(DROP),), C=(Rule(Jump(B)),))
        assert socket.change("mangle", first, True)
        run(TOOL[family], "-t", "mangle", "-A", "INPUT", "-p", "tcp", "-j", A)
        assert socket.change("mangle", chains(family, ROOT=()), True)
        kept = [":NETPOL -", f":{A} -", f":{B} -", "-A INPUT -p tcp -j NETPOL-A", "-A FORWARD -j NETPOL"]
        kept += [f"-A {A} -j {B}", f"-A {B} -j DROP"]
        assert [line for line in saved(family) if "NETPOL" in line] == kept
        assert not socket.change("mangle", chains(family, ROOT=()), True)
        # What is wanted under that name takes its place; what nobody needs goes.
        assert socket.change("mangle", chains(family, ROOT=(), A=(Rule(ACCEPT),)), True)
        assert [line for line in saved(family) if line.startswith("-A NETPOL")] == [f"-A {A} -j ACCEPT"]
        assert socket.change("mangle", {}, False)
        assert [line for line in saved(family) if "NETPOL" in line] == [f":{A} -", "-A INPUT -p tcp -j NETPOL-A", f"-A {A} -j ACCEPT"]
        run(TOOL[family], "-t", "mangle", "-F", "INPUT")
        assert socket.change("mangle", {}, False)
        assert not [line for line in saved(family) if "NETPOL" in line]


def test_a_conditional_jump_to_us_keeps_netpol_when_we_go(netns: int) -> None:
    """A rule of somebody else in FORWARD that jumps to NETPOL is not our hook: it stays, and so does the chain, without the hook."""
    with TableSocket(4) as socket:
        assert socket.change("mangle", chains(4, ROOT=(Rule(DROP),)), True)
        run("iptables-legacy", "-t", "mangle", "-A", "FORWARD", "-p", "udp", "-j", ROOT)
        assert socket.change("mangle", {}, False)
        assert [line for line in saved(4) if "NETPOL" in line] == [":NETPOL -", "-A FORWARD -p udp -j NETPOL", "-A NETPOL -j DROP"]


def test_foreign_chains_in_no_order_stay_in_theirs(netns: int) -> None:
    """Another writer may leave its chains unsorted: they keep it, ours stand somewhere among them, and the same again is no change."""
    theirs = encode_chains([Chain(name, (Rule(Jump("b")) if name != "b" else Rule(ACCEPT),)) for name in ("c", "MM", "b", "a")], 4)
    with TableSocket(4) as socket:
        old = socket.read("mangle")
        layout = Layout(old, [*HOOKS["mangle"], *(chain.name for chain in theirs)], len(HOOKS["mangle"]))
        for span in old.spans:
            layout.begin(span.hook, span.size, span.entries)
            layout.keep(old.block, span.offset, span.offset + span.size)
        for chain in theirs:
            layout.add(chain)
        layout.link()
        with socket.locked():
            assert socket._replace(old, layout, {})
        before = saved(4)
        assert "-A c -j b" in before
        ours = chains(4, ROOT=(Rule(Jump(A)),), A=())
        assert not socket.change("mangle", {}, False)
        assert socket.change("mangle", ours, False)
        assert not socket.change("mangle", ours, False)
        names = [span.name for span in socket.read("mangle").spans]
        assert [name for name in names[5:] if not is_ours(name)] == ["c", "MM", "b", "a"]
        assert others(saved(4)) == before
        assert socket.change("mangle", {}, False)
        assert saved(4) == before


# -- counters --


def counted(family: Family, chain: str) -> list[str]:
    return [line for line in saved(family, counters=True) if f"-A {chain} " in line]


@pytest.mark.parametrize("family", FAMILIES)
def test_counters_stay_with_their_rules(netns: int, family: Family) -> None:
    """A rule of ours keeps its counters as long as the chain of that name keeps it, wherever both go; a new rule starts at 0."""
    one, two, three, four = (Rule(RETURN, protocol=number) for number in (201, 202, 203, 204))
    jump = Rule(Jump(B), protocol=205)
    text = (
        f"*mangle\n:{ROOT} - [0:0]\n:{A} - [0:0]\n:{B} - [0:0]\n:M - [0:0]\n"
        f"[9:90] -A FORWARD -j {ROOT}\n[8:80] -A FORWARD -p 199 -j M\n[1:10] -A {A} -p 201 -j RETURN\n[2:20] -A {A} -p 202 -j RETURN\n"
        f"[3:30] -A {A} -p 203 -j RETURN\n[4:40] -A {A} -p 202 -j RETURN\n[5:50] -A {A} -p 205 -j {B}\n[6:60] -A {B} -p 201 -j RETURN\n"
        f"[7:70] -A M -p 201\nCOMMIT\n"
    )
    restore(family, text, "-c")
    foreign = [counted(family, "M"), counted(family, "FORWARD")]
    with TableSocket(family) as socket:
        # The chain is shorter, in another order, and behind a new one; of two equal rules one is left.
        assert socket.change("mangle", chains(family, ROOT=(), A=(jump, three, four, two, one), AA=(one,), B=(one,)), True)
        assert counted(family, A) == [
            f"[5:50] -A {A} -p 205 -j {B}",
            f"[3:30] -A {A} -p 203 -j RETURN",
            f"[0:0] -A {A} -p 204 -j RETURN",
            f"[2:20] -A {A} -p 202 -j RETURN",
            f"[1:10] -A {A} -p 201 -j RETURN",
        ]
        assert counted(family, "NETPOL-AA") == ["[0:0] -A NETPOL-AA -p 201 -j RETURN"]
        assert counted(family, B) == [f"[6:60] -A {B} -p 201 -j RETURN"]
        assert [counted(family, "M"), counted(family, "FORWARD")] == foreign
        read = read_ours(socket.read("mangle"), NO_SETS).counters
        assert read[A] == ((5, 50), (3, 30), (0, 0), (2, 20), (1, 10))
        # A jump to another chain is another rule, and so is one with another target.
        assert socket.change("mangle", chains(family, ROOT=(), A=(Rule(Jump(C), protocol=205), Rule(DROP, protocol=201)), C=()), True)
        assert counted(family, A) == [f"[0:0] -A {A} -p 205 -j {C}", f"[0:0] -A {A} -p 201 -j DROP"]
        assert socket.change("mangle", {}, False)
        assert [counted(family, "M"), counted(family, "FORWARD")] == [foreign[0], foreign[1][1:]]


def test_a_moved_hook_keeps_its_counters(netns: int) -> None:
    """The jump to NETPOL that someone moved behind another rule comes back with what it had counted, and the other keeps its own."""
    restore(4, f"*mangle\n:{ROOT} - [0:0]\n[1:10] -A FORWARD -p 199\n[2:20] -A FORWARD -j {ROOT}\n[3:30] -A FORWARD -p 199\nCOMMIT\n", "-c")
    with TableSocket(4) as socket:
        assert socket.change("mangle", chains(4, ROOT=()), True)
    assert counted(4, "FORWARD") == [f"[2:20] -A FORWARD -j {ROOT}", "[1:10] -A FORWARD -p 199", "[3:30] -A FORWARD -p 199"]
