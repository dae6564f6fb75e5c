"""Hosts and probes that cannot be are refused in words, before anything is built."""

import pytest

from netpol.errors import LabError
from netpol.lab import NODE, Host, Lab, Probe
from netpol.lab.values import source_address
from netpol.model import ICMP, ICMPV6, TCP, Address, parse_address

A, B, SIX = parse_address("10.0.0.1"), parse_address("10.0.0.2"), parse_address("fd00::1")
ADDRESSES = {"a": (A, SIX), "b": (B,)}


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        pytest.param([Host("a", (A,)), Host("a", (B,))], "differ", id="two of one name"),
        pytest.param([Host(NODE, (A,))], "differ", id="the node's name"),
        pytest.param([Host("", (A,))], "not empty", id="no name"),
        pytest.param([Host("a" * 318, (A,))], "at most 317", id="a long name"),
        pytest.param([Host("a", (A,)), Host("b", (A,))], "10.0.0.1 belongs to a and to b", id="two of one address"),
        pytest.param([Host("a", (parse_address("169.254.1.1"),))], "belongs to node and to a", id="the node's address"),
        pytest.param([Host("a", (b"\x0a\x00",))], "4 or 16 bytes", id="no address"),
        pytest.param([Host("a", (parse_address("127.0.0.1"),))], "cannot be routed", id="loopback"),
        pytest.param([Host("a", (parse_address("224.0.0.1"),))], "cannot be routed", id="multicast"),
        pytest.param([Host("a", (parse_address("::1"),))], "cannot be routed", id="loopback of IPv6"),
        pytest.param([Host("a", (parse_address("fe80::5"),))], "cannot be routed", id="link-local"),
        pytest.param([Host("a", (parse_address("ff02::5"),))], "cannot be routed", id="multicast of IPv6"),
        pytest.param([Host("a", (A,), ((ICMP, 1),))], "cannot listen", id="listening to ICMP"),
        pytest.param([Host("a", (A,), ((TCP, 0),))], "cannot listen", id="port 0"),
        pytest.param([Host("a", (A,), ((TCP, 65536),))], "cannot listen", id="port 65536"),
        pytest.param([Host("a", (A,), ((TCP, 1), (TCP, 1)))], "listens twice", id="a port twice"),
    ],
)
def test_hosts_that_cannot_be(hosts: list[Host], words: str) -> None:
    """Contradictions among hosts are found when the lab is described."""
    with pytest.raises(LabError, match=words):
        Lab(hosts)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        pytest.param(Probe("c", A, TCP, 1), "no host 'c'", id="unknown source"),
        pytest.param(Probe("a", A, TCP, 0), "ports 1 to 65535", id="port 0"),
        pytest.param(Probe("a", A, 47, 1), "can probe TCP", id="unknown protocol"),
        pytest.param(Probe("a", A[:3], TCP, 1), "its destination is no address", id="three bytes"),
        pytest.param(Probe("a", b"", TCP, 1), "its destination is no address", id="no byte"),
        pytest.param(Probe("a", A, ICMPV6), "ICMPv6 for IPv6", id="ICMPv6 to IPv4"),
        pytest.param(Probe("a", SIX, ICMP), "ICMP is for IPv4", id="ICMP to IPv6"),
        pytest.param(Probe("b", SIX, TCP, 1), "no IPv6 address", id="a family that the source lacks"),
        pytest.param(Probe("a", A, TCP, 1, B), "no such source address", id="another's address"),
        pytest.param(Probe("a", A, TCP, 1, SIX), "no such source address", id="an address of the other family"),
    ],
)
def test_probes_that_cannot_be(probe: Probe, words: str) -> None:
    """A probe that makes no sense is an error, not an answer."""
    with pytest.raises(LabError, match=words):
        source_address(probe, ADDRESSES)


@pytest.mark.parametrize(
    ("probe", "address"),
    [
        pytest.param(Probe("a", B, TCP, 1), A, id="first of the family, IPv4"),
        pytest.param(Probe("a", SIX, TCP, 1), SIX, id="first of the family, IPv6"),
        pytest.param(Probe("b", A, TCP, 1, B), B, id="named"),
    ],
)
def test_the_source_address(probe: Probe, address: Address) -> None:
    """It is the one that the probe names, or the source's first of the destination's family."""
    assert source_address(probe, ADDRESSES) == address


def test_a_lab_that_does_not_run_says_so() -> None:
    """Before and after the block there is nothing to probe or enter."""
    lab = Lab([Host("a", (A,))])
    for use in (lambda: lab.probe([]), lambda: lab.node, lambda: lab.host("a"), lambda: lab.entered()):
        with pytest.raises(LabError, match="not running"):
            use()
