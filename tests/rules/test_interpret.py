"""The interpreter of rules, held by hand against the netfilter documentation: iptables(8), iptables-extensions(8), ipset(8)."""

from __future__ import annotations

from typing import Literal

import pytest
from msgspec import structs

from netpol.model import ICMP, SCTP, TCP, UDP, Family, parse_address, parse_network
from netpol.rules.interpret import Decision, Hit, Packet, interpret
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
    Tcp,
    Udp,
)
from netpol.rules.sets import Set, net_member, net_port_member, port_member

V4 = Packet(parse_address("10.0.0.1"), parse_address("10.0.0.2"), TCP, 80, 40000)
V6 = Packet(parse_address("fd00::1"), parse_address("fd00::2"), TCP, 80, 40000)
NET = parse_network


def rules(*root: Rule, sets: tuple[Set, ...] = (), hooked: tuple[Family, ...] = (4, 6), **chains: tuple[Rule, ...]) -> Ruleset:
    """These rules in NETPOL, in both families, and further chains by name."""
    found = {name: Chain(name, content) for name, content in {**chains, ROOT: root}.items()}
    return Ruleset({4: found, 6: found}, {one.name: one for one in sets}, frozenset(hooked))


def applies(rule: Rule, packet: Packet, *sets: Set) -> bool:
    """Whether a rule that would drop the packet does."""
    return not interpret(rules(rule, sets=sets), packet).passes


# -- matches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param(Rule(DROP), True, id="nothing asked"),
        pytest.param(Rule(DROP, source=NET("10.0.0.0/24")), True, id="-s"),
        pytest.param(Rule(DROP, source=NET("10.0.0.2/32")), False, id="-s of the destination"),
        pytest.param(Rule(DROP, source=NET("10.0.0.0/24"), not_source=True), False, id="! -s"),
        pytest.param(Rule(DROP, source=NET("10.0.0.2/32"), not_source=True), True, id="! -s of another"),
        pytest.param(Rule(DROP, destination=NET("10.0.0.2/32")), True, id="-d"),
        pytest.param(Rule(DROP, destination=NET("10.0.0.1/32")), False, id="-d of the source"),
        pytest.param(Rule(DROP, destination=NET("10.0.0.2/32"), not_destination=True), False, id="! -d"),
        pytest.param(Rule(DROP, source=NET("10.0.0.1/32"), destination=NET("10.0.0.1/32")), False, id="-s and -d must both hold"),
        pytest.param(Rule(DROP, protocol=TCP), True, id="-p"),
        pytest.param(Rule(DROP, protocol=UDP), False, id="-p of another"),
        pytest.param(Rule(DROP, protocol=TCP, not_protocol=True), False, id="! -p"),
        pytest.param(Rule(DROP, protocol=UDP, not_protocol=True), True, id="! -p of another"),
        pytest.param(Rule(DROP, (Tcp(destination=(80, 80)), Tcp(source=(1, 2)))), False, id="all matches must hold"),
    ],
)
def test_the_rule_itself(rule: Rule, expected: bool) -> None:
    """Addresses and protocol, plain and inverted."""
    assert applies(rule, V4) == expected


@pytest.mark.parametrize(
    ("match", "changes", "expected"),
    [
        pytest.param(Conntrack(("RELATED", "ESTABLISHED")), {"state": "ESTABLISHED"}, True, id="ctstate"),
        pytest.param(Conntrack(("RELATED", "ESTABLISHED")), {"state": "NEW"}, False, id="ctstate of another"),
        pytest.param(Conntrack(("INVALID",)), {"state": "INVALID"}, True, id="ctstate INVALID"),
        pytest.param(Conntrack(("NEW",), invert=True), {"state": "NEW"}, False, id="! ctstate"),
        pytest.param(Conntrack(("NEW",), direction="ORIGINAL"), {}, True, id="ctdir"),
        pytest.param(Conntrack(("NEW",), direction="REPLY"), {}, False, id="ctdir of another"),
        pytest.param(Conntrack(("RELATED",), True, "REPLY"), {"state": "ESTABLISHED", "reply": True}, True, id="ctdir REPLY"),
        pytest.param(Conntrack(("NEW",), True, "ORIGINAL"), {"state": "RELATED", "reply": True}, False, id="ctdir of another, ! ctstate"),
        pytest.param(Conntrack(("NEW",), invert=True), {"state": "RELATED"}, True, id="! ctstate of another"),
        pytest.param(Connmark(0x10, 0x10), {"connmark": 0x31}, True, id="connmark looks at its mask only"),
        pytest.param(Connmark(0x10, 0x10), {"connmark": 0x21}, False, id="connmark, the bit is not set"),
        pytest.param(Connmark(0x10, 0x10, invert=True), {"connmark": 0x31}, False, id="! connmark"),
        pytest.param(Connmark(0x31), {"connmark": 0x30}, False, id="connmark without a mask is exact"),
        pytest.param(Tcp(destination=(80, 90)), {"destination_port": 80}, True, id="--dport, low end"),
        pytest.param(Tcp(destination=(80, 90)), {"destination_port": 90}, True, id="--dport, high end"),
        pytest.param(Tcp(destination=(80, 90)), {"destination_port": 91}, False, id="--dport, above"),
        pytest.param(Tcp(destination=(80, 90)), {"destination_port": 79}, False, id="--dport, below"),
        pytest.param(Tcp(destination=(80, 80), not_destination=True), {}, False, id="! --dport"),
        pytest.param(Tcp(source=(80, 80)), {}, False, id="--sport is the source's"),
        pytest.param(Tcp(source=(80, 80), not_source=True), {}, True, id="! --sport"),
        pytest.param(Tcp(source=(40000, 40000), destination=(81, 81)), {}, False, id="both ports must hold"),
        pytest.param(Udp(destination=(80, 80)), {"protocol": UDP}, True, id="udp --dport"),
        pytest.param(Udp(source=(40000, 40000)), {"protocol": UDP}, True, id="udp --sport"),
        pytest.param(Udp(destination=(81, 65535)), {"protocol": UDP}, False, id="udp --dport of another"),
        pytest.param(Sctp(destination=(80, 80)), {"protocol": SCTP}, True, id="sctp --dport"),
        pytest.param(Sctp(destination=(80, 80), not_destination=True), {"protocol": SCTP}, False, id="sctp ! --dport"),
        pytest.param(Sctp(source=(80, 80)), {"protocol": SCTP}, False, id="sctp --sport of another"),
        pytest.param(Sctp(source=(40000, 40000)), {"protocol": SCTP}, True, id="sctp --sport"),
        pytest.param(Sctp(), {"protocol": SCTP}, True, id="sctp that does not look"),
        pytest.param(Multiport(((1, 1), (79, 81))), {}, True, id="--dports"),
        pytest.param(Multiport(((1, 1), (81, 90))), {}, False, id="--dports of others"),
        pytest.param(Multiport(((80, 80),), invert=True), {}, False, id="! --dports"),
        pytest.param(Multiport(((80, 80),), "sports"), {}, False, id="--sports"),
        pytest.param(Multiport(((40000, 40000),), "sports"), {}, True, id="--sports of the source"),
        pytest.param(Multiport(((40000, 40000),), "ports"), {}, True, id="--ports, the source's"),
        pytest.param(Multiport(((80, 80),), "ports"), {}, True, id="--ports, the destination's"),
        pytest.param(Multiport(((81, 81),), "ports"), {}, False, id="--ports, neither's"),
        pytest.param(Icmp(8), {"protocol": ICMP, "icmp_type": 8}, True, id="icmp type"),
        pytest.param(Icmp(8), {"protocol": ICMP, "icmp_type": 0}, False, id="icmp type, another"),
        pytest.param(Icmp(3, (1, 3)), {"protocol": ICMP, "icmp_type": 3, "icmp_code": 3}, True, id="icmp code in its range"),
        pytest.param(Icmp(3, (1, 3)), {"protocol": ICMP, "icmp_type": 3, "icmp_code": 4}, False, id="icmp code beyond it"),
        pytest.param(Icmp(8, invert=True), {"protocol": ICMP, "icmp_type": 8}, False, id="! icmp type"),
        pytest.param(Hashlimit("h", 1, 1), {}, True, id="one packet is below a limit"),
        pytest.param(Tcp(destination=(0, 65535)), {"destination_port": None}, True, id="an unknown port is in the full range"),
        pytest.param(Tcp(destination=(0, 65534)), {"destination_port": None}, False, id="and in no other"),
        pytest.param(Multiport(((80, 80),), "ports"), {"source_port": None}, True, id="one unknown port of two"),
    ],
)
def test_matches(match: Match, changes: dict[str, object], expected: bool) -> None:
    """Each match, each side of its edges, plain and inverted."""
    assert applies(Rule(DROP, (match,)), structs.replace(V4, **changes)) == expected


def a_set(kind: Literal["hash:ip", "hash:net", "hash:ip,port", "hash:net,port"], *members: bytes, family: Family = 4) -> Set:
    return Set("s", kind, family, frozenset(members))


def in_set(*directions: Literal["src", "dst"], invert: bool = False) -> Rule:
    return Rule(DROP, (SetMatch("s", directions, invert),))


SOURCE, DESTINATION = V4.source, V4.destination


@pytest.mark.parametrize(
    ("members", "rule", "expected"),
    [
        pytest.param(a_set("hash:ip", SOURCE), in_set("src"), True, id="hash:ip src"),
        pytest.param(a_set("hash:ip", SOURCE), in_set("dst"), False, id="hash:ip dst"),
        pytest.param(a_set("hash:ip", DESTINATION), in_set("dst"), True, id="hash:ip dst of it"),
        pytest.param(a_set("hash:ip", SOURCE), in_set("src", invert=True), False, id="! hash:ip"),
        pytest.param(a_set("hash:ip"), in_set("src"), False, id="an empty set"),
        pytest.param(a_set("hash:ip"), in_set("src", invert=True), True, id="! an empty set"),
        pytest.param(a_set("hash:net", net_member(NET("10.0.0.0/8"))), in_set("src"), True, id="hash:net"),
        pytest.param(a_set("hash:net", net_member(NET("11.0.0.0/8"))), in_set("src"), False, id="hash:net of others"),
        pytest.param(a_set("hash:net", net_member(NET("10.0.0.0/8"), True)), in_set("src"), False, id="hash:net nomatch"),
        pytest.param(
            a_set("hash:net", net_member(NET("10.0.0.0/8")), net_member(NET("10.0.0.0/24"), True)), in_set("src"), False, id="longest wins"
        ),
        pytest.param(
            a_set("hash:net", net_member(NET("10.0.0.0/8"), True), net_member(NET("10.0.0.1/32"))), in_set("src"), True, id="and plain ones"
        ),
        pytest.param(a_set("hash:ip,port", port_member(DESTINATION, TCP, 80)), in_set("dst", "dst"), True, id="hash:ip,port"),
        pytest.param(a_set("hash:ip,port", port_member(DESTINATION, UDP, 80)), in_set("dst", "dst"), False, id="of another protocol"),
        pytest.param(a_set("hash:ip,port", port_member(DESTINATION, TCP, 81)), in_set("dst", "dst"), False, id="of another port"),
        pytest.param(a_set("hash:ip,port", port_member(SOURCE, TCP, 80)), in_set("src", "dst"), True, id="src,dst"),
        pytest.param(a_set("hash:ip,port", port_member(DESTINATION, TCP, 40000)), in_set("dst", "src"), True, id="dst,src"),
        pytest.param(a_set("hash:net,port", net_port_member(NET("10.0.0.0/8"), TCP, 80)), in_set("dst", "dst"), True, id="hash:net,port"),
        pytest.param(
            a_set("hash:net,port", net_port_member(NET("10.0.0.0/8"), TCP, 80), net_port_member(NET("10.0.0.0/24"), TCP, 81, True)),
            in_set("dst", "dst"),
            True,
            id="a nomatch of another port",
        ),
        pytest.param(
            a_set("hash:net,port", net_port_member(NET("10.0.0.0/8"), TCP, 80), net_port_member(NET("10.0.0.0/24"), TCP, 80, True)),
            in_set("dst", "dst"),
            False,
            id="a nomatch of this port",
        ),
        pytest.param(a_set("hash:ip", V6.source, family=6), in_set("src"), False, id="a set of the other family"),
        pytest.param(a_set("hash:ip", V6.source, family=6), in_set("src", invert=True), True, id="! a set of the other family"),
    ],
)
def test_sets(members: Set, rule: Rule, expected: bool) -> None:
    """Each type of set, each direction; hash:net by its longest prefix."""
    assert applies(rule, V4, members) == expected


def test_sets_of_the_second_family() -> None:
    """The same with 16 bytes of address."""
    assert applies(in_set("src"), V6, a_set("hash:ip", V6.source, family=6))
    assert applies(in_set("src"), V6, a_set("hash:net", net_member(NET("fd00::/8")), net_member(NET("fd00::2/128"), True), family=6))
    assert not applies(in_set("dst"), V6, a_set("hash:net", net_member(NET("fd00::/8")), net_member(NET("fd00::2/128"), True), family=6))
    assert applies(in_set("dst", "dst"), V6, a_set("hash:ip,port", port_member(V6.destination, TCP, 80), family=6))


@pytest.mark.parametrize("other", [(V4, 6), (V6, 4)], ids=["4 in 6", "6 in 4"])
def test_an_address_is_in_no_set_of_the_other_family(other: tuple[Packet, Family]) -> None:
    """Whatever its type, and whatever the bytes of the address are."""
    asked, family = other
    zero = parse_network("::/1" if family == 6 else "0.0.0.0/1")
    for members in (
        a_set("hash:net", net_member(zero), family=family),
        a_set("hash:net,port", net_port_member(zero, TCP, 80), family=family),
        a_set("hash:ip,port", port_member(zero.address, TCP, 80), family=family),
    ):
        directions: tuple[Literal["dst"], ...] = ("dst", "dst") if "port" in members.kind else ("dst",)
        assert not applies(in_set(*directions), asked, members)
        assert applies(in_set(*directions, invert=True), asked, members)


def test_a_packet_without_ports_is_in_no_set_with_ports() -> None:
    """The kernel's answer for it is no."""
    members = a_set("hash:ip,port", port_member(DESTINATION, ICMP, 0))
    assert not applies(in_set("dst", "dst"), structs.replace(V4, protocol=ICMP, destination_port=None), members)


# -- targets and chains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ruleset", "passes", "path"),
    [
        pytest.param(rules(), True, [], id="the end of NETPOL"),
        pytest.param(rules(Rule(DROP), Rule(ACCEPT)), False, [(ROOT, 0)], id="DROP ends"),
        pytest.param(rules(Rule(ACCEPT), Rule(DROP)), True, [(ROOT, 0)], id="ACCEPT ends"),
        pytest.param(rules(Rule(RETURN), Rule(DROP)), True, [(ROOT, 0)], id="RETURN from NETPOL: other owners decide"),
        pytest.param(rules(Rule(Continue()), Rule(DROP)), False, [(ROOT, 0), (ROOT, 1)], id="no target goes on"),
        pytest.param(rules(Rule(Nflog(1)), Rule(DROP)), False, [(ROOT, 0), (ROOT, 1)], id="NFLOG goes on"),
        pytest.param(
            rules(Rule(Jump("a")), Rule(DROP), a=(Rule(RETURN), Rule(ACCEPT))),
            False,
            [(ROOT, 0), ("a", 0), (ROOT, 1)],
            id="RETURN comes back behind the jump",
        ),
        pytest.param(rules(Rule(Jump("a")), Rule(DROP), a=()), False, [(ROOT, 0), (ROOT, 1)], id="the end of a chain comes back"),
        pytest.param(rules(Rule(Goto("a")), Rule(DROP), a=()), True, [(ROOT, 0)], id="but not behind a goto"),
        pytest.param(
            rules(Rule(Goto("a")), Rule(DROP), a=(Rule(RETURN), Rule(DROP))), True, [(ROOT, 0), ("a", 0)], id="RETURN behind a goto"
        ),
        pytest.param(
            rules(Rule(Jump("a")), Rule(DROP), a=(Rule(Goto("b")), Rule(ACCEPT)), b=(Rule(RETURN),)),
            False,
            [(ROOT, 0), ("a", 0), ("b", 0), (ROOT, 1)],
            id="a goto inside a jump comes back to the jump",
        ),
        pytest.param(
            rules(Rule(Jump("a")), Rule(DROP), a=(Rule(Jump("b")), Rule(ACCEPT)), b=()),
            True,
            [(ROOT, 0), ("a", 0), ("a", 1)],
            id="jumps nest",
        ),
        pytest.param(
            rules(Rule(Jump("a")), Rule(Jump("a")), Rule(DROP), a=()), False, [(ROOT, 0), (ROOT, 1), (ROOT, 2)], id="a chain entered twice"
        ),
        pytest.param(rules(Rule(Reject("tcp-reset")), Rule(ACCEPT)), False, [(ROOT, 0)], id="REJECT is the end"),
        pytest.param(rules(Rule(DROP, protocol=UDP), Rule(DROP)), False, [(ROOT, 1)], id="a rule that does not apply is no hit"),
    ],
)
def test_the_way_through_chains(ruleset: Ruleset, passes: bool, path: list[tuple[str, int]]) -> None:
    """Verdict and rules that applied, in order."""
    decision = interpret(ruleset, V4)
    assert decision.passes == passes
    assert [(hit.chain, hit.index) for hit in decision.hits] == path
    chains = ruleset.chains[4]
    assert decision.hits == tuple(Hit(chain, index, chains[chain].rules[index]) for chain, index in path)


def test_only_hooked_families_are_filtered() -> None:
    """Without the jump in FORWARD the chains are there and see nothing; each family has its own."""
    drop = rules(Rule(DROP), hooked=(6,))
    assert interpret(drop, V4) == Decision(True, ())
    assert not interpret(drop, V6).passes


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        pytest.param(Rule(OpaqueTarget("MARK", 2, b"")), "NETPOL: the target Opaque.* is not", id="a target that is not known"),
        pytest.param(Rule(DROP, (Opaque("comment", 0, b""),)), "the match Opaque.* is not", id="a match that is not known"),
        pytest.param(Rule(DROP, (Addrtype(),)), "the match Addrtype.* is not", id="addrtype"),
        pytest.param(Rule(DROP, (Tcp(flags_mask=2, flags_set=2),)), "TCP flags and options are not", id="TCP flags"),
        pytest.param(Rule(DROP, (Tcp(option=5),)), "TCP flags and options are not", id="TCP options"),
        pytest.param(Rule(DROP, in_interface="eth0"), "rules that look at interfaces or fragments are not", id="-i"),
        pytest.param(Rule(DROP, out_interface="eth0"), "rules that look at interfaces or fragments are not", id="-o"),
        pytest.param(Rule(DROP, fragment=True), "rules that look at interfaces or fragments are not", id="-f"),
    ],
)
def test_what_is_not_interpreted_is_an_error(rule: Rule, reason: str) -> None:
    """Never a guess."""
    with pytest.raises(ValueError, match=f"^{reason} interpreted$"):
        interpret(rules(rule), V4)
