"""nf_tables by name: what the real iptables-nft made, and answers that no kernel gives."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.errors import MalformedKernelData
from netpol.kernel.nft import Named, Nft, parse, read_nft
from tests.referees import run


def message(type_: int, number: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type_, 2, number, 0) + body + bytes(-len(body) % 4)


def attribute(type_: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)


def body(*attributes: bytes, family: int = 2) -> bytes:
    return bytes((family, 0, 0, 0)) + b"".join(attributes)


def test_an_empty_namespace(netns: int) -> None:
    """Nothing, and no error."""
    assert read_nft() == Nft()


def test_what_iptables_nft_made(netns: int) -> None:
    """Tables and chains of both families; many chains take several datagrams."""
    run("iptables-nft-restore", input="*filter\n" + "".join(f":CHAIN-{number:04} -\n" for number in range(1500)) + "COMMIT\n")
    run("ip6tables-nft", "-t", "mangle", "-N", "OTHER")
    found = read_nft()
    assert {Named("ip", "filter", "filter"), Named("ip6", "mangle", "mangle")} == set(found.tables)
    names = {one.name for one in found.chains if one[:2] == ("ip", "filter")}
    assert {f"CHAIN-{number:04}" for number in range(1500)} <= names
    assert Named("ip6", "mangle", "OTHER") in found.chains
    assert found.flow_tables == ()


CHAIN = body(attribute(1, b"filter\0"), attribute(3, b"cali-x\0"), attribute(99, b"?"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(message(0xA03, 4, CHAIN), ([Named("ip", "filter", "cali-x")], False, 0), id="a chain"),
        pytest.param(message(0xA03, 4, body(family=77) + CHAIN[4:]), ([Named("77", "filter", "cali-x")], False, 0), id="a family"),
        pytest.param(message(0xA03, 9, CHAIN), ([], False, 0), id="somebody else's answer"),
        pytest.param(message(0xA03, 4, body(attribute(3, b"x\0"))), ([], False, 0), id="without its table"),
        pytest.param(message(3, 4, bytes(4)), ([], True, 0), id="the end"),
        pytest.param(message(2, 4, struct.pack("=i", -95)), ([], True, -errno.EOPNOTSUPP), id="an error"),
        pytest.param(message(2, 4, struct.pack("=i", 95)), ([], True, 0), id="no error"),
    ],
)
def test_forms_of_an_answer(data: bytes, expected: object) -> None:
    """What is whole is read."""
    assert parse(data, "chains") == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\1", id="no header"),
        pytest.param(message(0xA03, 4, CHAIN)[:-4], id="cut off"),
        pytest.param(struct.pack("=IHHII", 8, 3, 0, 4, 0), id="shorter than its header"),
        pytest.param(message(0xA03, 4, b"\2"), id="no nfgenmsg"),
        pytest.param(message(0xA03, 4, body(struct.pack("=HH", 200, 1))), id="a long attribute"),
        pytest.param(message(0xA03, 4, body(struct.pack("=HH", 2, 1))), id="a short attribute"),
        pytest.param(message(0xA03, 4, body(b"\1\0")), id="half an attribute"),
    ],
)
def test_forms_that_no_kernel_sends(data: bytes) -> None:
    """They are refused as such."""
    with pytest.raises(MalformedKernelData, match="nft list chains"):
        parse(data, "chains")


@given(st.binary(max_size=120), st.integers(0, 4), st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes(noise: bytes, kind: int, inside: bytes) -> None:
    """Any bytes at all are read or refused, as messages too."""
    for data in (noise, message(kind, 4, inside), message(0xA03, 4, CHAIN + inside)):
        try:
            parse(data, "chains")
        except MalformedKernelData:
            continue
