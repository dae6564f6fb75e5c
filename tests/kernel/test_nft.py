"""nf_tables by name: what the real iptables-nft made, and answers that no kernel gives."""

from __future__ import annotations

import errno
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel import nft
from netpol.kernel.nft import Marking, Named, Nft, parse, parse_rules, read_nft
from tests.referees import run


def message(type_: int, number: int, body: bytes, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type_, flags, number, 0) + body + bytes(-len(body) % 4)


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
        pytest.param(message(0xA03, 4, CHAIN, 0x12), ([Named("ip", "filter", "cali-x")], False, -errno.EINTR), id="disturbed"),
        pytest.param(message(0xA03, 9, CHAIN, 0x12), ([], False, 0), id="somebody else's that was disturbed"),
        pytest.param(message(3, 4, bytes(4), 0x12), ([], True, -errno.EINTR), id="disturbed to the end"),
        pytest.param(message(2, 4, struct.pack("=i", -95), 0x12), ([], True, -errno.EOPNOTSUPP), id="an error, and disturbed"),
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


KEY, SOURCE = attribute(2, struct.pack("!I", 3)), attribute(4, struct.pack("!I", 1))


def ct(*attributes: bytes) -> bytes:
    return attribute(1, attribute(1, b"ct\0") + attribute(2, b"".join(attributes)))


CT = ct(SOURCE, KEY)
TARGET = attribute(
    1, attribute(1, b"target\0") + attribute(2, attribute(1, b"CONNMARK\0") + attribute(2, struct.pack("!I", 2)) + attribute(3, b"info"))
)
RULE = attribute(1, b"t\0") + attribute(2, b"c\0")


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        pytest.param(CT, [None], id="nft's own"),
        pytest.param(ct(KEY, SOURCE), [None], id="nft's own, the key first"),
        pytest.param(ct(KEY), [], id="a mark that is read"),
        pytest.param(TARGET, [(2, b"info")], id="a target"),
        pytest.param(CT + TARGET, [None, (2, b"info")], id="both"),
        # What does not, beside something that does: the rule is looked into for that.
        pytest.param(CT.replace(b"ct\0", b"xx\0") + TARGET, [(2, b"info")], id="another expression"),
        pytest.param(ct(SOURCE, attribute(2, struct.pack("!I", 2))) + TARGET, [(2, b"info")], id="another key"),
        pytest.param(ct(KEY) + TARGET, [(2, b"info")], id="a mark that is read, too"),
        pytest.param(TARGET.replace(b"target\0", b"tarmac\0") + CT, [None], id="a target's bytes elsewhere"),
        pytest.param(TARGET.replace(b"CONNMARK", b"connmark"), [], id="another target"),
        pytest.param(b"", [], id="none"),
    ],
)
def test_rules_that_set_connection_marks(expressions: bytes, expected: list[tuple[int, bytes] | None]) -> None:
    """Each expression that does, with its payload where that says what it does."""
    data = message(0xA06, 7, body(RULE, attribute(4, expressions)))
    assert parse_rules(data) == ([Marking("ip", "t", "c", one) for one in expected], False, 0)


def test_many_rules(netns: int) -> None:
    """Rules of several datagrams, of which the last one marks."""
    rules = "".join(f"-A PREROUTING -s 10.0.{number >> 8}.{number & 255} -j ACCEPT\n" for number in range(600))
    run("iptables-nft-restore", input=f"*mangle\n{rules}-A PREROUTING -j CONNMARK --set-mark 1\nCOMMIT\n")
    (found,) = read_nft().markings
    assert found[:3] == ("ip", "mangle", "PREROUTING")
    assert found.connmark is not None
    assert found.connmark[1].startswith(struct.pack("=II", 1, 0xFFFFFFFF))


@given(st.binary(max_size=120), st.integers(0, 4), st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes(noise: bytes, kind: int, inside: bytes) -> None:
    """Any bytes at all are read or refused, as messages too."""
    for data in (noise, message(kind, 4, inside), message(0xA03, 4, CHAIN + inside)):
        with suppress(MalformedKernelData):
            parse(data, "chains")
    # Behind what it looks for in a rule's bytes.
    for expressions in (noise, CT + noise, CT + inside, attribute(1, inside) + CT, TARGET[: len(noise)] + CT):
        with suppress(MalformedKernelData):
            parse_rules(message(0xA06, 7, body(RULE, attribute(4, expressions))))


@pytest.mark.parametrize("disturbed", [0, 1, nft.TRIES - 1, nft.TRIES])
def test_a_reading_that_others_disturb_is_done_again(netns: int, monkeypatch: pytest.MonkeyPatch, disturbed: int) -> None:
    """Until it is whole; where it never is that is said, for who reads half of it may miss what matters."""
    run("iptables-nft", "-N", "THERE")
    parse_one, left = nft.parse, iter(range(disturbed))

    def parsed(data: bytes, kind: str) -> nft.Parsed[Named]:
        found, ended, code = parse_one(data, kind)
        # The first datagrams of chains have not all, and say so.
        return ([], ended, -errno.EINTR) if kind == "chains" and ended and next(left, None) is not None else (found, ended, code)

    monkeypatch.setattr(nft, "parse", parsed)
    if disturbed == nft.TRIES:
        with pytest.raises(KernelError, match="nft list chains: somebody changed them each time, 8 times"):
            read_nft()
    else:
        assert [chain.name for chain in read_nft().chains].count("THERE") == 1
