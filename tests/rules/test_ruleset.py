"""The vocabulary: which names are ours, and the packed form of a set's members, byte by byte."""

from __future__ import annotations

from operator import ne

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netpol.model import FAMILIES, Family, Network, parse_address, parse_network
from netpol.rules.ruleset import (
    ANY_PORT,
    DROP,
    Chain,
    Connmark,
    CreateSet,
    DestroySet,
    GrowSet,
    Hashlimit,
    Icmp,
    Multiport,
    Rule,
    Step,
    Tcp,
    Udp,
    beside_what,
    grown,
    is_our_set,
    is_ours,
    last_destroyed,
)
from netpol.rules.sets import Set, SetKind, is_flagged, member_size, net_member, net_port_member, port_member

A4, A6 = parse_address("10.0.0.1"), parse_address("fd00::1")
V4, V6 = parse_network("10.0.0.0/24"), parse_network("fd00::/64")


@pytest.mark.parametrize(
    ("name", "ours"), [("NETPOL", True), ("NETPOL-DENY", True), ("NETPOL2", False), ("FORWARD", False), ("netpol", False), ("", False)]
)
def test_which_chains_are_ours(name: str, ours: bool) -> None:
    """The root, and what is called after it with a hyphen; others may begin with the same letters."""
    assert is_ours(name) == ours


@pytest.mark.parametrize(("name", "ours"), [("NETPOL4-x", True), ("NETPOL", True), ("KUBE", False), ("XNETPOL4", False)])
def test_which_sets_are_ours(name: str, ours: bool) -> None:
    """All whose name begins so."""
    assert is_our_set(name) == ours


@pytest.mark.parametrize(
    ("kind", "family", "member", "expected"),
    [
        ("hash:ip", 4, A4, "0a000001"),
        ("hash:ip", 6, A6, "fd000000000000000000000000000001"),
        ("hash:net", 4, net_member(V4), "0a0000001800"),
        ("hash:net", 6, net_member(V6, nomatch=True), "fd0000000000000000000000000000004001"),
        ("hash:net", 6, net_member(Network(A6, 128)), "fd0000000000000000000000000000018000"),
        ("hash:ip,port", 4, port_member(A4, 6, 443), "0a0000010601bb"),
        ("hash:ip,port", 6, port_member(A6, 132, 65535), "fd00000000000000000000000000000184ffff"),
        ("hash:net,port", 4, net_port_member(V4, 17, 53), "0a0000001800110035"),
        ("hash:net,port", 6, net_port_member(V6, 6, 1, nomatch=True), "fd0000000000000000000000000000004001060001"),
    ],
)
def test_members(kind: SetKind, family: Family, member: bytes, expected: str) -> None:
    """Address, prefix length, nomatch, protocol, port in network order: as many bytes as the type has, flagged where there are prefixes."""
    assert member.hex() == expected
    assert len(member) == member_size(kind, family)
    assert is_flagged(kind) == kind.startswith("hash:net")


def test_members_match_unless_they_are_told_otherwise() -> None:
    """And a port takes two bytes, however small it is."""
    assert net_member(V4) == net_member(V4, nomatch=False)
    assert net_port_member(V4, 6, 443).hex() == "0a00000018000601bb"
    assert port_member(A4, 6, 1).hex() == "0a000001060001"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NETPOL4aX-Y", ("NETPOL4-X-Y", "a")),
        ("NETPOL6rXY", ("NETPOL6-XY", "r")),
        ("NETPOL4bX", ("NETPOL4-X", "a")),
        ("NETPOL6sX", ("NETPOL6-X", "r")),
        ("NETPOL4cX", ("NETPOL4-X", "a")),
        ("NETPOL4tX", ("NETPOL4-X", "r")),
        ("NETPOL4-X", None),
        ("NETPOL5aX", None),
        ("netpol6aX", None),
        ("", None),
    ],
)
def test_what_a_small_set_stands_beside(name: str, found: tuple[str, str] | None) -> None:
    """The live set, and whether it is to get or to lose these members."""
    assert beside_what(name) == found


GROWS, GOES = GrowSet("NETPOL4-a", "hash:ip", 4, frozenset((A4,))), DestroySet("NETPOL4-b")
COMES = CreateSet(Set("NETPOL4-b", "hash:ip", 4))


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        pytest.param((GROWS, GOES, DestroySet("NETPOL4-c")), (GOES, DestroySet("NETPOL4-c")), id="two"),
        pytest.param((GOES, COMES, GROWS), (), id="to be made anew"),
        pytest.param((DestroySet("NETPOL4-c"), GROWS, GOES), (GOES,), id="before and behind another step"),
        pytest.param((GOES,), (GOES,), id="alone"),
        pytest.param((), (), id="no step"),
    ],
)
def test_what_is_destroyed_last(steps: tuple[Step, ...], last: tuple[DestroySet, ...]) -> None:
    """Behind all other steps, in their order."""
    assert last_destroyed(steps) == last


@pytest.mark.parametrize("family", [4, 6])
def test_a_set_that_grows(family: Family) -> None:
    """It has its members and the new ones; one that was there with the other flag is not there twice, whatever stands behind the flag."""
    net = V4 if family == 4 else V6
    plain = Set("x", "hash:net", family, frozenset((net_member(net),)))
    step = GrowSet("x", "hash:net", family, frozenset((net_member(net, nomatch=True),)))
    assert grown(plain, step).members == step.members
    ports = Set("x", "hash:net,port", family, frozenset(net_port_member(net, 6, number) for number in (80, 81)))
    more = GrowSet("x", "hash:net,port", family, frozenset((net_port_member(net, 6, 80, nomatch=True),)))
    assert grown(ports, more).members == more.members | {net_port_member(net, 6, 81)}
    address = Set("x", "hash:ip", family, frozenset((A4 if family == 4 else A6,)))
    assert grown(address, GrowSet("x", "hash:ip", family, frozenset((net.address,)))).members == address.members | {net.address}


MANY = tuple(bytes((10, 0, 0, number)) for number in range(60))
few_bytes = st.integers(0, 2).map(lambda value: bytes((value,)))
kinds: st.SearchStrategy[SetKind] = st.sampled_from(("hash:ip", "hash:net", "hash:ip,port", "hash:net,port"))


@st.composite
def sets_and_members(draw: st.DrawFn) -> tuple[Set, frozenset[bytes]]:
    """A set, and members of its kind, some of which it has: a few, or many."""
    kind, family = draw(kinds), draw(st.sampled_from(FAMILIES))
    size = member_size(kind, family)
    members = st.lists(few_bytes, min_size=size, max_size=size).map(b"".join)
    return Set("x", kind, family, draw(st.frozensets(members, max_size=40))), draw(st.frozensets(members, max_size=40))


# Bytes of a member that lie across two others; and again in its own place behind them, or between those.
@example((Set.of_packed("x", "hash:ip", 4, b"aabbccdd"), frozenset((b"bbcc",))))
@example((Set.of_packed("x", "hash:ip", 4, b"aabbccddbbcc"), frozenset((b"bbcc",))))
@example((Set.of_packed("x", "hash:ip", 4, b"abbbbbcc"), frozenset((b"bbbb",))))
@example((Set.of_packed("x", "hash:ip", 4, b"abbbbbbb"), frozenset((b"bbbb",))))
@example((Set.of_packed("x", "hash:ip", 4, b"abbbbbbbbbbc"), frozenset((b"bbbb",))))
@example((Set("x", "hash:ip", 4, frozenset(MANY[:40])), frozenset(MANY[20:])))
@given(sets_and_members())
def test_members_that_come_and_go(drawn: tuple[Set, frozenset[bytes]]) -> None:
    """A set in one piece holds what a frozenset would, each member once; what it was before stays as it was."""
    found, members = drawn
    had = found.members
    for made, expected in (
        (found.plus(members), had | members),
        (found.minus(members), had - members),
        (found.plus(members).minus(had), members - had),
        (found.minus(frozenset(list(had)[:3])), had - frozenset(list(had)[:3])),
        (found.with_members(members), members),
    ):
        assert made.members == frozenset(made.each()) == expected
        assert made.entries == len(expected)
        assert made == Set("x", found.kind, found.family, expected)
    assert found.members == frozenset(found.each()) == had


def test_sets_are_equal_by_what_they_hold() -> None:
    """The order of the members in the piece is no matter; name, type, family and members are."""
    one, other = (Set.of_packed("x", "hash:ip", 4, packed) for packed in (b"aaaabbbb", b"bbbbaaaa"))
    assert one == other
    assert ne(one, other) is False  # a tuple has one of its own
    assert hash(one) == hash(other)
    assert one.holds_same(other._replace(name="y"))
    assert one != other._replace(name="y")
    assert one != other._replace(packed=b"aaaacccc")
    assert one != other._replace(packed=b"aaaa")
    assert one != ("x", "hash:ip", 4, b"aaaabbbb")
    assert one != Set.of_packed("x", "hash:ip,port", 4, b"aaaabbbb")
    assert repr(Set("x", "hash:ip", 4, frozenset((b"aaaa",)))) == "Set('x', 'hash:ip', 4, frozenset({b'aaaa'}))"
    bitmap = Set("x", "bitmap:ip", 4, frozenset(), parse_network("10.0.0.0/16"))
    assert bitmap.with_members(frozenset((b"aaaa",))) == bitmap._replace(packed=b"aaaa")
    assert repr(bitmap) == f"Set('x', 'bitmap:ip', 4, frozenset(), {bitmap.net!r})"


def test_defaults_are_those_of_iptables() -> None:
    """Every port, the whole mark, every code."""
    assert (Tcp().source, Tcp().destination, Udp().source, Udp().destination) == (ANY_PORT,) * 4
    assert (Connmark(1).mask, Icmp(8).codes, Multiport(()).which) == (0xFFFFFFFF, (0, 255), "dports")
    assert (Hashlimit("x", 1, 1).gc_interval, Hashlimit("x", 1, 1).expire) == (1000, 1000)


def test_of_long_chains_few_are_kept_as_values() -> None:
    """Values take several times as much as packed rules; chains that are edited again and again would fill the memory with their past."""

    def chain(length: int, number: int) -> Chain:
        return Chain("x", (Rule(DROP, protocol=number), *(Rule(DROP, protocol=254) for _ in range(length))))

    long, short = chain(100, 255), chain(3, 255)
    before = long.rules, short.rules
    assert (long.rules is before[0], short.rules is before[1]) == (True, True)
    for number in range(20):
        assert chain(100, number).rules[0].protocol == chain(3, number).rules[0].protocol == number
    assert (long.rules is before[0], short.rules is before[1]) == (False, True)
    assert long.rules == before[0]
