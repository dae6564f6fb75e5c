"""NFLOG messages that no kernel sends, and real ones with bytes wrong: read or refused, and nothing outside them is touched."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.kernel import namespaces
from netpol.kernel._native import ffi, lib
from netpol.kernel.nflog import SIZE, NflogSocket, Packet, unpack
from tests.kernel.test_nflog import A4, B4, PORTS, extension, ipv4, ipv6
from tests.referees import run

PACKET, CONFIG, ERROR = 0x400, 0x401, 2
ROOM = 4
FAST = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attribute(type_: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)


def message(type_: int, body: bytes, seq: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type_, 0, seq, 0) + body + bytes(-len(body) % 4)


def logged(payload: bytes, *more: bytes, prefix: bytes = b"netpol\0") -> bytes:
    return message(PACKET, b"\2\0\0\7" + b"".join(more) + attribute(10, prefix) + attribute(9, payload))


def parse(data: bytes, room: int = ROOM) -> tuple[int, int, int, int, int]:
    """What C makes of a datagram that ends where it ends: code, packets, strangers, unreadable, lost."""
    exact = ffi.new("uint8_t[]", data) if data else ffi.NULL
    packets, prefix = ffi.new("struct np_nflog_packet[]", room), ffi.new("char[]", b"netpol")
    batch = ffi.new("struct np_nflog_batch *", {"packets": packets, "room": room, "prefix": prefix})
    code = int(lib.np_nflog_parse(exact, len(data), batch))
    assert batch.count <= room
    for packet in unpack(bytes(ffi.buffer(packets, int(batch.count) * SIZE))):
        assert len(packet.source) == len(packet.destination) in (4, 16)
        assert packet.ports is None or packet.icmp is None
        assert not (packet.fragment and packet.ports)
    return code, int(batch.count), int(batch.strangers), int(batch.unreadable), int(batch.lost)


GOOD = ipv4(17, PORTS)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(b"", (0, 0, 0, 0, 0), id="nothing"),
        pytest.param(logged(GOOD), (0, 1, 0, 0, 0), id="a packet"),
        pytest.param(logged(GOOD) * 4, (0, 4, 0, 0, 0), id="as many as there is room for"),
        pytest.param(logged(GOOD) * 5, (-errno.ENOSPC, 4, 0, 0, 0), id="one more"),
        pytest.param(logged(GOOD, prefix=b"netpol"), (0, 1, 0, 0, 0), id="a prefix without its end"),
        pytest.param(logged(GOOD, prefix=b"netpo\0"), (0, 0, 1, 0, 0), id="a shorter prefix"),
        pytest.param(logged(GOOD, prefix=b"netpolx\0"), (0, 0, 1, 0, 0), id="a longer prefix"),
        pytest.param(logged(GOOD, prefix=b"netpolx"), (0, 0, 1, 0, 0), id="a longer prefix without its end"),
        pytest.param(logged(GOOD, prefix=b"netpol\0x"), (0, 0, 1, 0, 0), id="a prefix with more behind its end"),
        pytest.param(logged(GOOD, prefix=b""), (0, 0, 1, 0, 0), id="an empty prefix"),
        pytest.param(logged(GOOD, prefix=b"netpol-cut-repl"), (0, 0, 1, 0, 0), id="half of what may follow"),
        pytest.param(logged(GOOD, prefix=b"netpol-cut-"), (0, 0, 1, 0, 0), id="more than may follow"),
        pytest.param(logged(GOOD, attribute(10, b"netpol-cut"), prefix=b"x"), (0, 0, 1, 0, 0), id="somebody else's behind ours"),
        pytest.param(message(PACKET, b"\2\0\0\7" + attribute(9, GOOD)), (0, 0, 1, 0, 0), id="no prefix"),
        pytest.param(message(PACKET, b"\2\0\0\7" + attribute(10, b"netpol")), (0, 0, 0, 1, 0), id="no packet"),
        pytest.param(logged(b""), (0, 0, 0, 1, 0), id="an empty packet"),
        pytest.param(logged(b"\x99" * 60), (0, 0, 0, 1, 0), id="another protocol"),
        pytest.param(message(CONFIG, b"") + logged(GOOD), (0, 1, 0, 0, 0), id="behind another message"),
        pytest.param(message(PACKET, b"\2\0"), (-errno.EBADMSG, 0, 0, 0, 0), id="no nfgenmsg"),
        pytest.param(logged(GOOD, attribute(3, bytes(15))), (-errno.EBADMSG, 0, 0, 0, 0), id="a short time"),
        pytest.param(logged(GOOD, attribute(4, bytes(3))), (-errno.EBADMSG, 0, 0, 0, 0), id="a short device"),
        pytest.param(logged(GOOD, attribute(5, bytes(5))), (-errno.EBADMSG, 0, 0, 0, 0), id="a long device"),
        pytest.param(logged(GOOD, attribute(12, bytes(2))), (-errno.EBADMSG, 0, 0, 0, 0), id="a short number"),
        pytest.param(logged(GOOD, attribute(99, bytes(7))), (0, 1, 0, 0, 0), id="an unknown attribute"),
        pytest.param(logged(GOOD, struct.pack("=HH", 3, 1)), (-errno.EBADMSG, 0, 0, 0, 0), id="a length that cannot be"),
        pytest.param(logged(GOOD)[:-2], (-errno.EBADMSG, 0, 0, 0, 0), id="cut off"),
        pytest.param(logged(GOOD) + b"\1", (-errno.EBADMSG, 1, 0, 0, 0), id="a byte too many"),
        pytest.param(logged(GOOD, attribute(3, b"\xff" * 16)), (0, 1, 0, 0, 0), id="the end of time"),
    ],
)
def test_forms_of_a_datagram(data: bytes, found: tuple[int, int, int, int, int]) -> None:
    """What is whole is read; what cannot be is refused."""
    assert parse(data) == found


@pytest.mark.parametrize(
    ("behind", "cut"),
    [(b"", None), (b"-cut", "original"), (b"-cut\0", "original"), (b"-cut-reply", "reply"), (b"-cut-reply\0", "reply")],
)
def test_what_rules_say_of_a_flow_that_was_cut(behind: bytes, cut: str | None) -> None:
    """Behind their prefix. Where there are two of these the last one holds, as of all that is said."""
    for before in ([], [attribute(10, b"netpol-cut")], [attribute(10, b"else")]):
        data = logged(GOOD, *before, prefix=b"netpol" + behind)
        packets, prefix = ffi.new("struct np_nflog_packet[]", 1), ffi.new("char[]", b"netpol")
        batch = ffi.new("struct np_nflog_batch *", {"packets": packets, "room": 1, "prefix": prefix})
        assert lib.np_nflog_parse(data, len(data), batch) == 0
        assert [packet.cut for packet in unpack(bytes(ffi.buffer(packets)))] == [cut]


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        pytest.param([7, 8, 9], 0, id="in a row"),
        pytest.param([7, 9, 12], 3, id="gaps"),
        pytest.param([0xFFFFFFFF, 0, 1], 0, id="around"),
        pytest.param([0xFFFFFFFE, 1], 2, id="a gap around"),
        pytest.param([9, 3, 4], 0, id="anew"),
        pytest.param([9, 9], 0, id="twice"),
    ],
)
def test_numbers(numbers: list[int], lost: int) -> None:
    """What is missing between them was lost; a step back is another beginning."""
    data = b"".join(logged(GOOD, attribute(12, struct.pack("!I", number))) for number in numbers)
    assert parse(data) == (0, len(numbers), 0, 0, lost)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(message(ERROR, bytes(20), 1) * 2, 2, id="both"),
        pytest.param(message(ERROR, bytes(20), 1) + logged(GOOD), 1, id="one, and a packet"),
        pytest.param(message(ERROR, bytes(20), 9), 0, id="somebody else's"),
        pytest.param(message(ERROR, struct.pack("=i", -16), 1), -16, id="an error"),
        pytest.param(message(ERROR, struct.pack("=i", 16), 1), -errno.EBADMSG, id="a number that is no error"),
        pytest.param(message(ERROR, struct.pack("=i", -(1 << 31)), 1), -errno.EBADMSG, id="a number that is none at all"),
        pytest.param(message(ERROR, b"\0", 1), -errno.EBADMSG, id="no number"),
        pytest.param(message(ERROR, bytes(20), 1)[:-1], -errno.EBADMSG, id="cut off"),
    ],
)
def test_answers(data: bytes, code: int) -> None:
    """Acknowledgements are counted, errors handed on."""
    assert lib.np_nflog_parse_answers(data, len(data), 1) == code


payloads = st.binary(max_size=80) | st.builds(
    lambda head, tail, cut: (head + tail)[: cut or None],
    st.sampled_from([GOOD, ipv4(1, b"\x08\0"), ipv4(6, b"", bytes(40)), ipv6(0, extension(60)), ipv6(44, extension(43)), ipv6(51, b"")]),
    st.binary(max_size=40),
    st.integers(0, 80),
)
attributes = st.builds(attribute, st.integers(0, 20) | st.just(0x4009), st.binary(max_size=20) | payloads | st.just(b"netpol\0"))
bodies = st.builds(
    lambda parts, payload, tail: b"\2\0\0\7" + attribute(10, b"netpol\0") + b"".join(parts) + attribute(9, payload) + tail,
    st.lists(attributes, max_size=4),
    payloads,
    st.binary(max_size=5),
)
streams = st.builds(
    lambda parts, cut: b"".join(parts)[: cut or None],
    st.lists(st.builds(message, st.sampled_from([PACKET, PACKET, CONFIG, ERROR, 0]), bodies | st.binary(max_size=60)), max_size=5),
    st.integers(0, 400),
)


@FAST
@given(data=st.binary(max_size=300) | streams)
def test_any_bytes(data: bytes) -> None:
    """Any bytes at all are either read or refused."""
    parse(data)
    lib.np_nflog_parse_answers(data, len(data), 0)


@pytest.fixture(scope="module")
def captured() -> bytes:
    """A datagram that the real kernel sent: four packets, of both families."""
    namespace = namespaces.create()
    try:
        with namespaces.entered(namespace), namespaces.private_lock():
            run("ip", "link", "set", "lo", "up")
            for tool in ("iptables-legacy", "ip6tables-legacy"):
                run(tool, "-A", "OUTPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "7", "--nflog-prefix", "netpol")
            with NflogSocket(7, "netpol") as log:
                for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")) * 2:
                    with socket.socket(family, socket.SOCK_DGRAM) as sender:
                        sender.sendto(b"x", (host, 99))
                os.set_blocking(log.fileno(), True)
                return os.read(log.fileno(), 1 << 16)
    finally:
        os.close(namespace)


def test_a_real_datagram_is_read(captured: bytes) -> None:
    """All four are there."""
    assert parse(captured)[:2] == (0, 4)


@FAST
@given(st.data())
def test_what_a_kernel_sent_with_some_bytes_wrong(captured: bytes, data: st.DataObject) -> None:
    """A real datagram of which bytes were changed or cut off is either read or refused."""
    raw = bytearray(captured)
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[place] = value
    parse(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def test_addresses_of_a_datagram() -> None:
    """The packet in a message is the one that is read."""
    packets = ffi.new("struct np_nflog_packet[]", 1)
    batch = ffi.new("struct np_nflog_batch *", {"packets": packets, "room": 1, "prefix": ffi.new("char[]", b"netpol")})
    stamp = struct.pack("!QQ", 1_700_000_000, 42)
    data = logged(GOOD, attribute(3, stamp), attribute(4, struct.pack("!I", 2)), attribute(5, struct.pack("!I", 3)))
    prefix = ffi.new("char[]", b"netpol")
    batch.prefix = prefix
    assert lib.np_nflog_parse(data, len(data), batch) == 0
    (packet,) = unpack(bytes(ffi.buffer(packets)))
    assert packet == Packet(1_700_000_000_000_042, A4, B4, 17, (4660, 80), None, 2, 3, False, False)


def test_a_socket_that_cannot_be_had() -> None:
    """The kernel's error comes through, and there is nothing to close."""
    native = ffi.new("struct np_nflog *", {"buffer": ffi.NULL, "room": 0, "fd": -1})
    assert lib.np_nflog_open(native, 999, 1, 64, 1) == -errno.EPROTONOSUPPORT
