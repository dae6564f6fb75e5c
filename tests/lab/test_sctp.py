"""The little SCTP that the lab speaks."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.lab import sctp


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        pytest.param(b"123456789", 0xE3069283, id="the customary check value"),
        pytest.param(bytes(32), 0x8A9136AA, id="RFC 3720, zeroes"),
        pytest.param(b"\xff" * 32, 0x62A8AB43, id="RFC 3720, ones"),
        pytest.param(bytes(range(32)), 0x46DD794E, id="RFC 3720, rising"),
    ],
)
def test_crc32c(data: bytes, checksum: int) -> None:
    """Published values."""
    assert sctp.crc32c(data) == checksum


def test_the_checksum_is_little_endian_and_over_zeroes() -> None:
    """What stands in the packet is the checksum of the packet without it."""
    packet = sctp.request(1000, 80, 7)
    assert struct.unpack_from("<I", packet, 8)[0] == sctp.crc32c(packet[:8] + bytes(4) + packet[12:])


@pytest.mark.parametrize("name", ["a", "abcd", "default/web-1", "n" * 317])
@pytest.mark.parametrize(("port", "accepted"), [(80, True), (81, False)])
def test_an_init_is_answered_by_name(name: str, port: int, accepted: bool) -> None:
    """INIT ACK on an open port and ABORT on a closed one: with the ports turned round, the asker's tag, and the host's name."""
    said = sctp.respond(sctp.request(1000, port, 77), frozenset({80}), name.encode())
    assert said is not None
    assert len(said) % 4 == 0
    assert struct.unpack_from("!I", said, 4)[0] == 77
    assert sctp.read(said) == sctp.Reply(accepted, port, 1000, name)


def test_only_an_init_is_answered() -> None:
    """Two hosts cannot answer each other's answers, and an INIT is no answer."""
    request = sctp.request(1000, 80, 7)
    said = sctp.respond(request, frozenset({80}), b"a")
    assert said is not None
    assert sctp.respond(said, frozenset({1000}), b"b") is None
    assert sctp.read(request) is None


def test_an_abort_without_a_name_is_no_answer() -> None:
    """A kernel with SCTP sends one for every INIT that it has no socket for."""
    header = struct.pack("!HHII", 80, 1000, 7, 0)
    assert sctp.read(header + struct.pack("!BBH", sctp.ABORT, 0, 4)) is None
    assert sctp.read(header + struct.pack("!BBHHH", sctp.ABORT, 0, 12, 3, 8) + b"time") is None
    assert sctp.read(header + struct.pack("!BBHHH", sctp.ABORT, 0, 12, 12, 8) + b"name") == sctp.Reply(False, 80, 1000, "name")


def test_a_packet_that_is_cut_is_no_answer() -> None:
    """Lengths that reach behind the packet's end are seen."""
    said = sctp.respond(sctp.request(1000, 80, 7), frozenset({80}), b"name")
    assert said is not None
    assert [sctp.read(said[:cut]) for cut in range(len(said))] == [None] * len(said)
    request = sctp.request(1000, 80, 7)
    assert sctp.respond(request[:14] + struct.pack("!H", len(request) - 11) + request[16:], frozenset({80}), b"name") is None


@given(st.binary(max_size=80), st.integers(0, 60))
def test_any_bytes_are_harmless(noise: bytes, cut: int) -> None:
    """Whatever a raw socket hears, and any packet of ours cut anywhere, is read or passed over."""
    said = sctp.respond(sctp.request(1000, 80, 7), frozenset({80}), b"name")
    assert said is not None
    for packet in (noise, said[:cut], said[:cut] + noise):
        sctp.respond(packet, frozenset({80}), b"name")
        sctp.read(packet)
