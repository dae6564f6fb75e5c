"""What the judgement of flows does to be quick, and the ends of its ranges: first packets, look-alikes, large sets, packed bytes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from netpol.model import ICMP, TCP, Family, Network, network, parse_address, parse_network
from netpol.rules.cut import EPHEMERAL, Judge, _Near, first_packets
from netpol.rules.flows import FIRST, HAS_PORTS, IS_ICMP, PICKED_UP, Entry, Tuple, pack, unpack
from netpol.rules.interpret import Packet
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, Rule, Ruleset, SetMatch
from netpol.rules.sets import Set, net_member

A, B = parse_address("10.0.0.1"), parse_address("10.0.0.2")
GRE = 47


def tcp(source_port: int, port: int, flags: int = HAS_PORTS) -> Entry:
    return Entry(TCP, Tuple(A, B, source_port, port), Tuple(B, A, port, source_port), flags=flags)


@pytest.mark.parametrize(
    ("client", "server", "ways"),
    [
        pytest.param(EPHEMERAL, 80, "forward", id="the first ephemeral port calls"),
        pytest.param(EPHEMERAL - 1, 80, "both", id="the last other port may be called"),
        pytest.param(80, EPHEMERAL, "backward", id="the first ephemeral port was called"),
        pytest.param(80, EPHEMERAL - 1, "both", id="the last other port may have called"),
        pytest.param(EPHEMERAL, EPHEMERAL, "both", id="both are ephemeral"),
    ],
)
def test_who_called_where_the_middle_was_seen_first(client: int, server: int, ways: str) -> None:
    """The one end whose port is ephemeral; else nobody can say."""
    forward, backward = Packet(A, B, TCP, server), Packet(B, A, TCP, client)
    expected = {"forward": (forward,), "backward": (backward,), "both": (forward, backward)}[ways]
    assert first_packets(tcp(client, server, HAS_PORTS | PICKED_UP)) == expected
    assert first_packets(tcp(client, server)) == (forward,)


def test_first_packets_without_ports() -> None:
    """ICMP's type and code, from the original direction; another protocol by its number."""
    unreachable = Entry(ICMP, Tuple(A, B, 7, 3 << 8 | 4), Tuple(B, A, 7, 0), flags=IS_ICMP)
    assert first_packets(unreachable) == (Packet(A, B, ICMP, icmp_type=3, icmp_code=4),)
    assert first_packets(Entry(GRE, Tuple(A, B), Tuple(B, A), flags=0)) == (Packet(A, B, GRE),)


def filled(name: str, family: Family, count: int) -> Set:
    base = parse_network("198.18.0.0/16" if family == 4 else "2001:db8::/32")
    size = len(base.address)
    start = int.from_bytes(base.address, "big")
    length = 24 if family == 4 else 64
    step = 1 << (size * 8 - length)
    return Set(
        name, "hash:net", family, frozenset(net_member(Network((start + i * step).to_bytes(size, "big"), length)) for i in range(count))
    )


def judge(*sets: Set, family: Family = 4) -> Judge:
    """Whoever is in one of the sets passes to anybody."""
    rules = (*(Rule(RETURN, (SetMatch(one.name, ("src",)),)) for one in sets), Rule(DROP))
    return Judge(Ruleset({family: {ROOT: Chain(ROOT, rules)}}, {one.name: one for one in sets}, frozenset((family,))), (B, B6))


B6, IN_6, OUT_6 = (parse_address(text) for text in ("fd00::2", "2001:db8:0:7::9", "2001:db9::9"))
IN_4, OUT_4 = parse_address("198.18.7.9"), parse_address("198.19.0.9")


def calls(source: bytes, destination: bytes) -> Entry:
    return Entry(TCP, Tuple(source, destination, 40000, 80), Tuple(destination, source, 80, 40000))


@pytest.mark.parametrize(("family", "inside", "outside", "pod"), [(4, IN_4, OUT_4, B), (6, IN_6, OUT_6, B6)])
def test_large_sets_of_both_families(family: Family, inside: bytes, outside: bytes, pod: bytes) -> None:
    """Looked up, not looked through, they say the same."""
    judging = judge(filled("large", family, 100), family=family)
    assert not judging.denied(calls(inside, pod))
    assert judging.denied(calls(outside, pod))


def test_which_sets_are_looked_up() -> None:
    """Those of networks with more than 64 members, by the lengths that occur in them."""
    addresses = Set("addresses", "hash:ip", 4, frozenset((0x0A010000 + i).to_bytes(4, "big") for i in range(100)))
    judging = judge(filled("64", 4, 64), filled("65", 4, 65), filled("six", 6, 100), addresses)
    assert judging._lengths == {"65": (24,), "six": (64,)}
    assert not judging.denied(calls(parse_address("10.1.0.7"), B))


def test_what_is_shown_of_a_set() -> None:
    """Of a large one the members around both ends, match and nomatch; of a small one, and of the other family, all."""
    large = filled("large", 4, 100)
    around = {net_member(network(IN_4, 24)), net_member(network(IN_4, 16), nomatch=True), net_member(network(B, 16))}
    large = large.with_members(large.members | around | {net_member(network(OUT_4, 16))})
    sets = {one.name: one for one in (large, filled("small", 4, 3), filled("six", 6, 100))}
    near = _Near(sets, {"large": (24, 16), "six": (64,)}, Packet(IN_4, B, TCP, 80))
    assert near["large"] == large.with_members(frozenset(around))
    assert near["small"] == sets["small"]
    assert near["six"] == sets["six"]
    assert (list(near), len(near)) == (list(sets), 3)


def test_flows_that_look_alike_are_judged_once() -> None:
    """What was said of the first is said of those that differ in what no policy sees; also in later sweeps."""
    judging = judge(filled("large", 4, 100))
    entries = pack([calls(OUT_4, B), replace(calls(OUT_4, B), mark=1, status=2, zone=3)])
    assert judging.sort_out(entries, 8).mark == entries
    assert list(judging._known.values()) == [True]
    judging._known = dict.fromkeys(judging._known, False)  # had it said so
    assert judging.sort_out(entries, 8).mark == b""


# -- packed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "service"),
    [
        pytest.param(tcp(40000, 80), 80, id="ports"),
        pytest.param(Entry(TCP, Tuple(A, B, 40000, 8080), Tuple(B, A, 80, 40000)), 80, id="behind DNAT"),
        pytest.param(Entry(ICMP, Tuple(A, B, 7, 8 << 8), Tuple(B, A, 7, 1), flags=IS_ICMP), 8 << 8, id="ICMP"),
        pytest.param(Entry(GRE, Tuple(A, B, 5, 6), Tuple(B, A, 7, 8), flags=0), 0, id="neither"),
    ],
)
def test_what_a_packed_entry_begins_with(entry: Entry, service: int) -> None:
    """What a policy sees of it: both ends, the service, family and protocol."""
    packed = pack([entry])
    assert FIRST.unpack_from(packed) == (A + bytes(12), B + bytes(12), service, 4, entry.protocol)
    assert list(unpack(packed)) == [entry]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        pytest.param(tcp(40000, 80), "TCP 10.0.0.1:40000 > 10.0.0.2:80, replies 10.0.0.2:80 > 10.0.0.1:40000", id="without a zone"),
        pytest.param(
            Entry(GRE, Tuple(A, B), Tuple(B, A), zone=7, flags=0),
            "protocol 47 10.0.0.1:0 > 10.0.0.2:0, replies 10.0.0.2:0 > 10.0.0.1:0, zone 7",
            id="a protocol without a name, in a zone",
        ),
    ],
)
def test_an_entry_as_text(entry: Entry, text: str) -> None:
    """Protocol, both directions, and the zone where there is one."""
    assert str(entry) == text
