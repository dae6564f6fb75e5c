"""The vocabulary: which names are ours, and the packed form of a set's members, byte by byte."""

from __future__ import annotations

import pytest

from netpol.model import Family, Network, parse_address, parse_network
from netpol.rules.ruleset import SetKind, is_flagged, is_our_set, is_ours, member_size, net_member, net_port_member, port_member

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
