"""The text of rules and sets, letter by letter. That the real tools print the same is held in tests/kernel/test_text.py."""

from __future__ import annotations

import pytest

from netpol.model import Family, Network, parse_address, parse_network
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    RETURN,
    ROOT,
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
    Ruleset,
    Sctp,
    SetMatch,
    Target,
    Tcp,
    Udp,
)
from netpol.rules.sets import Set, SetKind, net_member, net_port_member, port_member
from netpol.rules.text import chain_lines, ipset_save, iptables_save, rule_text, set_lines

UPTO = "-m hashlimit --hashlimit-upto"
MATCHES: tuple[tuple[Match, str], ...] = (
    (Conntrack(("RELATED", "ESTABLISHED")), "-m conntrack --ctstate RELATED,ESTABLISHED"),
    (Conntrack(("NEW",), invert=True), "-m conntrack ! --ctstate NEW"),
    (Conntrack(("NEW",), True, "REPLY"), "-m conntrack ! --ctstate NEW --ctdir REPLY"),
    (Connmark(0xAB), "-m connmark --mark 0xab"),
    (Connmark(0xAB, 0xFF, invert=True), "-m connmark ! --mark 0xab/0xff"),
    (Tcp(), "-m tcp"),
    (Tcp((1, 2), (80, 80), not_source=True), "-m tcp ! --sport 1:2 --dport 80"),
    # iptables-save leaves an inverted full range out, and what it prints then lets through what this rule stops.
    (Tcp((5, 5), (0, 65535), not_destination=True), "-m tcp --sport 5 ! --dport 0:65535"),
    (Tcp((0, 65534), (1, 65535)), "-m tcp --sport 0:65534 --dport 1:65535"),
    (Tcp(flags_mask=0x17, flags_set=0x02), "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN"),
    (Tcp(flags_mask=0x3F, not_flags=True), "-m tcp ! --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE"),
    (Tcp(option=5), "-m tcp --tcp-option 5"),
    (Tcp(option=5, not_option=True), "-m tcp ! --tcp-option 5"),
    (Udp(destination=(53, 54), not_destination=True), "-m udp ! --dport 53:54"),
    (Udp((7, 7)), "-m udp --sport 7"),
    (Sctp(), "-m sctp"),
    (Sctp(destination=(0, 65535)), "-m sctp --dport 0:65535"),
    (Sctp((7, 9), (8, 8), not_source=True), "-m sctp ! --sport 7:9 --dport 8"),
    (Multiport(((1, 1), (5, 9))), "-m multiport --dports 1,5:9"),
    (Multiport(((1, 1), (2, 2)), "sports", invert=True), "-m multiport ! --sports 1,2"),
    (Multiport(((1, 3),), "ports"), "-m multiport --ports 1:3"),
    (SetMatch("A", ("src",), invert=True), "-m set ! --match-set A src"),
    (SetMatch("B", ("src", "dst")), "-m set --match-set B src,dst"),
    (Addrtype(source=1 << 2), "-m addrtype --src-type LOCAL"),
    (Addrtype(source=1 << 2, not_source=True), "-m addrtype ! --src-type LOCAL"),
    (
        Addrtype(source=0b111111, destination=1 << 1, not_destination=True),
        "-m addrtype --src-type UNSPEC,UNICAST,LOCAL,BROADCAST,ANYCAST,MULTICAST ! --dst-type UNICAST",
    ),
    (Addrtype(destination=0b111111 << 6), "-m addrtype --dst-type BLACKHOLE,UNREACHABLE,PROHIBIT,THROW,NAT,XRESOLVE"),
    (Addrtype(source=1 << 1, limit_in=True), "-m addrtype --src-type UNICAST --limit-iface-in"),
    (Addrtype(source=1 << 1, limit_out=True), "-m addrtype --src-type UNICAST --limit-iface-out"),
    (
        Hashlimit("x", 500_000, 7, ("dstport", "srcip"), above=True, size=64, maximum=100, expire=5000, source_length=24),
        "-m hashlimit --hashlimit-above 2/sec --hashlimit-burst 7 --hashlimit-mode srcip,dstport --hashlimit-name x"
        " --hashlimit-htable-size 64 --hashlimit-htable-max 100 --hashlimit-htable-expire 5000 --hashlimit-srcmask 24",
    ),
    (
        Hashlimit("y", 6_000_000, 5, ("dstip", "srcport"), gc_interval=200, expire=60_000, destination_length=8),
        f"{UPTO} 10/min --hashlimit-burst 5 --hashlimit-mode srcport,dstip --hashlimit-name y --hashlimit-htable-gcinterval 200"
        " --hashlimit-dstmask 8",
    ),
    (Hashlimit("s", 1_000_000, 5), f"{UPTO} 1/sec --hashlimit-burst 5 --hashlimit-name s"),
    (
        Hashlimit("s", 1_000_000, 5, size=1, maximum=1),
        f"{UPTO} 1/sec --hashlimit-burst 5 --hashlimit-name s --hashlimit-htable-size 1 --hashlimit-htable-max 1",
    ),
    (Hashlimit("m", 1_000_001, 5, expire=60_000), f"{UPTO} 59/min --hashlimit-burst 5 --hashlimit-name m"),
    (Hashlimit("m", 60_000_000, 5, expire=60_000), f"{UPTO} 1/min --hashlimit-burst 5 --hashlimit-name m"),
    (Hashlimit("h", 600_000_000, 5, expire=3_600_000), f"{UPTO} 6/hour --hashlimit-burst 5 --hashlimit-name h"),
    (Hashlimit("h", 3_600_000_000, 5, expire=3_600_000), f"{UPTO} 1/hour --hashlimit-burst 5 --hashlimit-name h"),
    (Hashlimit("d", 14_400_000_000, 5, expire=86_400_000), f"{UPTO} 6/day --hashlimit-burst 5 --hashlimit-name d"),
    (Hashlimit("d", 86_400_000_000, 1, expire=86_400_000), f"{UPTO} 1/day --hashlimit-burst 1 --hashlimit-name d"),
    (Icmp(8), "-m icmp --icmp-type 8"),
    (Icmp(3, (4, 4), invert=True), "-m icmp ! --icmp-type 3/4"),
    (Icmp(3, (1, 3)), "-m icmp --icmp-type 3/1"),  # the tool too says the first of several codes
    (Icmp(255), "-m icmp --icmp-type any"),
    (Opaque("recent", 1, b"x"), "-m recent"),
)
MATCHES_6: tuple[tuple[Match, str], ...] = (
    (Icmp(135), "-m icmp6 --icmpv6-type 135"),
    (Icmp(255), "-m icmp6 --icmpv6-type 255"),
    (Icmp(1, (3, 3)), "-m icmp6 --icmpv6-type 1/3"),
    (
        Hashlimit("z", 1_000_000, 5, source_length=128, destination_length=64),
        f"{UPTO} 1/sec --hashlimit-burst 5 --hashlimit-name z --hashlimit-dstmask 64",
    ),
    (
        Hashlimit("z", 1_000_000, 5, source_length=32, destination_length=128),
        f"{UPTO} 1/sec --hashlimit-burst 5 --hashlimit-name z --hashlimit-srcmask 32",
    ),
)
TARGETS: tuple[tuple[Target, str], ...] = (
    (ACCEPT, "-j ACCEPT"),
    (DROP, "-j DROP"),
    (RETURN, "-j RETURN"),
    (Jump("A"), "-j A"),
    (Goto("A"), "-g A"),
    (Continue(), ""),
    (Reject("tcp-reset"), "-j REJECT --reject-with tcp-reset"),
    (Nflog(0), "-j NFLOG"),
    (Nflog(3, "x", size=60, threshold=4), "-j NFLOG --nflog-prefix x --nflog-group 3 --nflog-size 60 --nflog-threshold 4"),
    (Nflog(1, size=1, threshold=1), "-j NFLOG --nflog-group 1 --nflog-size 1 --nflog-threshold 1"),
    (OpaqueTarget("CLASSIFY", 0, b"x"), "-j CLASSIFY"),
)
NET = parse_network("10.1.0.0/16")
ENTRIES: tuple[tuple[Rule, str], ...] = (
    (Rule(DROP, source=NET), "-s 10.1.0.0/16 -j DROP"),
    (Rule(DROP, destination=NET, in_interface="eth+"), "-d 10.1.0.0/16 -i eth+ -j DROP"),
    (Rule(DROP, (Tcp(), Connmark(1)), protocol=6, out_interface="lo"), "-o lo -p tcp -m tcp -m connmark --mark 0x1 -j DROP"),
    (
        Rule(DROP, (), NET, NET, 253, "a", "b", True, True, True, True, True),
        "! -s 10.1.0.0/16 ! -d 10.1.0.0/16 ! -i a ! -o b ! -p 253 -j DROP",
    ),
    (Rule(DROP, fragment=True), "-f -j DROP"),
    (Rule(DROP, fragment=True, not_fragment=True), "! -f -j DROP"),
    (Rule(DROP, not_fragment=True), "-j DROP"),
    *((Rule(DROP, protocol=number), f"-p {name} -j DROP") for number, name in ((1, "icmp"), (17, "udp"), (58, "ipv6-icmp"), (132, "sctp"))),
)
RULES = [
    *((Rule(DROP, (match,)), 4, f"{text} -j DROP") for match, text in MATCHES),
    *((Rule(DROP, (match,)), 6, f"{text} -j DROP") for match, text in MATCHES_6),
    *((Rule(target), 4, text) for target, text in TARGETS),
    *((rule, 4, text) for rule, text in ENTRIES),
]


@pytest.mark.parametrize(("rule", "family", "text"), [pytest.param(*row, id=f"{row[1]} {row[2]}") for row in RULES])
def test_a_rule(rule: Rule, family: Family, text: str) -> None:
    """What stands behind `-A chain`: what the entry says, its matches in order, its target; nothing that is the tool's default."""
    assert rule_text(rule, family) == text


def test_a_rule_that_only_counts_ends_without_a_blank() -> None:
    """Neither matches nor a target: the line is the chain's name alone."""
    assert list(chain_lines(Chain("A", (Rule(Continue()), Rule(DROP))), 4)) == ["-A A", "-A A -j DROP"]


def test_a_table() -> None:
    """The built-in chains, ours by name, FORWARD's jump where it is hooked, the rules chain by chain; as iptables-restore wants it."""
    chains = {"NETPOL-B": Chain("NETPOL-B", (Rule(DROP),)), ROOT: Chain(ROOT, (Rule(Jump("NETPOL-B"), (Icmp(8),)),))}
    ruleset = Ruleset({4: chains}, {}, frozenset({4}))
    assert iptables_save(ruleset, 4).split("\n") == [
        "*mangle",
        ":PREROUTING ACCEPT [0:0]",
        ":INPUT ACCEPT [0:0]",
        ":FORWARD ACCEPT [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":POSTROUTING ACCEPT [0:0]",
        ":NETPOL - [0:0]",
        ":NETPOL-B - [0:0]",
        "-A FORWARD -j NETPOL",
        "-A NETPOL -m icmp --icmp-type 8 -j NETPOL-B",
        "-A NETPOL-B -j DROP",
        "COMMIT",
        "",
    ]
    assert iptables_save(Ruleset({6: chains}, {}, frozenset({4}), "filter"), 6).split("\n") == [
        "*filter",
        ":INPUT ACCEPT [0:0]",
        ":FORWARD ACCEPT [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":NETPOL - [0:0]",
        ":NETPOL-B - [0:0]",
        "-A NETPOL -m icmp6 --icmpv6-type 8 -j NETPOL-B",
        "-A NETPOL-B -j DROP",
        "COMMIT",
        "",
    ]
    assert iptables_save(Ruleset({}, {}, frozenset(), "filter"), 4).split("\n")[-2:] == ["COMMIT", ""]


A4, A6 = parse_address("10.0.0.1"), parse_address("fd00::1")
V4, V6 = parse_network("10.0.0.0/24"), parse_network("fd00::/64")
HOST4, HOST6 = Network(A4, 32), Network(A6, 128)


@pytest.mark.parametrize(
    ("kind", "family", "member", "text"),
    [
        ("hash:ip", 4, A4, "10.0.0.1"),
        ("hash:ip", 6, A6, "fd00::1"),
        ("hash:ip,port", 4, port_member(A4, 6, 443), "10.0.0.1,tcp:443"),
        ("hash:ip,port", 6, port_member(A6, 17, 53), "fd00::1,udp:53"),
        ("hash:ip,port", 4, port_member(A4, 132, 1), "10.0.0.1,sctp:1"),
        ("hash:ip,port", 4, port_member(A4, 136, 1), "10.0.0.1,136:1"),
        ("hash:net", 4, net_member(V4), "10.0.0.0/24"),
        ("hash:net", 4, net_member(V4, nomatch=True), "10.0.0.0/24 nomatch"),
        ("hash:net", 4, net_member(HOST4, nomatch=True), "10.0.0.1 nomatch"),
        ("hash:net", 6, net_member(V6), "fd00::/64"),
        ("hash:net", 6, net_member(HOST6), "fd00::1"),
        ("hash:net", 6, net_member(Network(V6.address, 32)), "fd00::/32"),
        ("hash:net,port", 4, net_port_member(V4, 6, 443), "10.0.0.0/24,tcp:443"),
        ("hash:net,port", 6, net_port_member(HOST6, 6, 443, nomatch=True), "fd00::1,tcp:443 nomatch"),
    ],
)
def test_a_member(kind: SetKind, family: Family, member: bytes, text: str) -> None:
    """An address or a prefix, a host's without its length; the port with its protocol; the flag."""
    inet = "inet" if family == 4 else "inet6"
    assert list(set_lines(Set("S", kind, family, frozenset({member})))) == [
        f"create S {kind} family {inet} hashsize 64 maxelem 65536",
        f"add S {text}",
    ]


@pytest.mark.parametrize(
    ("net", "ends"),
    [("10.0.0.0/16", "10.0.0.0-10.0.255.255"), ("10.1.2.128/25", "10.1.2.128-10.1.2.255"), ("10.0.0.1/32", "10.0.0.1-10.0.0.1")],
)
def test_a_bitmap(net: str, ends: str) -> None:
    """Its range stands with both ends, and nothing else: it has a place for each address of it."""
    found = parse_network(net)
    lines = [f"create S bitmap:ip range {ends}", f"add S {ends.partition('-')[0]}"]
    assert list(set_lines(Set("S", "bitmap:ip", 4, frozenset({found.address}), found))) == lines


@pytest.mark.parametrize(
    ("count", "size", "maximum"),
    [(0, 64, 65536), (1, 64, 65536), (64, 64, 65536), (65, 128, 65536), (128, 128, 65536), (32768, 32768, 65536), (32769, 65536, 131072)],
)
def test_how_large_a_set_is_made(count: int, size: int, maximum: int) -> None:
    """A slot for each member, in a power of two of at least 64; and room for as many again, not below ipset's own limit."""
    members = frozenset(number.to_bytes(4, "big") for number in range(count))
    create, *adds = set_lines(Set("S", "hash:ip", 4, members))
    assert create == f"create S hash:ip family inet hashsize {size} maxelem {maximum}"
    assert len(adds) == count


def test_sets_and_members_are_in_order() -> None:
    """By name, by bytes: the same state is the same text. Nothing at all is no text."""
    two = Set("B", "hash:ip", 4, frozenset({A4, parse_address("9.0.0.1")}))
    assert ipset_save(Ruleset({}, {"B": two, "A": Set("A", "hash:ip", 6)})) == (
        "create A hash:ip family inet6 hashsize 64 maxelem 65536\n"
        "create B hash:ip family inet hashsize 64 maxelem 65536\n"
        "add B 9.0.0.1\n"
        "add B 10.0.0.1\n"
    )
    assert ipset_save(Ruleset({}, {})) == ""
