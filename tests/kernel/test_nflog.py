"""NFLOG read natively: what the real kernel logs, and headers of every form, whole and cut off."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from netpol.errors import KernelError, NotPermitted, Unsupported
from netpol.kernel import namespaces
from netpol.kernel._native import ffi, lib
from netpol.kernel.nflog import PACKET, SIZE, Counts, NflogSocket, Packet, unpack
from netpol.model import SCTP, TCP, UDP
from tests.referees import run

LOOP4, LOOP6 = bytes((127, 0, 0, 1)), bytes(15) + b"\1"


@pytest.fixture
def logged(netns: int) -> Iterator[NflogSocket]:
    """Datagrams from this namespace to itself are logged to a group that is ours; those to port 9 under another prefix."""
    run("ip", "link", "set", "lo", "up")
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        run(tool, "-A", "OUTPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "7", "--nflog-prefix", "netpol", "--nflog-size", "128")
        run(tool, "-I", "OUTPUT", "-p", "udp", "--dport", "9", "-j", "NFLOG", "--nflog-group", "7", "--nflog-prefix", "netpol2")
    with NflogSocket(7, "netpol") as log:
        yield log


def send(family: int, host: str, port: int, count: int = 1) -> int:
    """Sends datagrams; their source port."""
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"x", (host, port))
        return int(sender.getsockname()[1])


def read(log: NflogSocket, count: int) -> list[Packet]:
    """That many packets, and no more than came with them."""
    found: list[Packet] = []
    while len(found) < count:
        assert select.select([log.fileno()], [], [], 20)[0], found
        found += unpack(log.receive() or b"")
    return found


def test_packets_of_both_families(logged: NflogSocket) -> None:
    """Addresses, ports and the device, in the order in which they were sent; nothing more waits."""
    first, second = send(socket.AF_INET, "127.0.0.1", 99), send(socket.AF_INET6, "::1", 98)
    device = socket.if_nametoindex("lo")
    assert [packet._replace(time=0) for packet in read(logged, 2)] == [
        Packet(0, LOOP4, LOOP4, UDP, (first, 99), None, 0, device, False, False),
        Packet(0, LOOP6, LOOP6, UDP, (second, 98), None, 0, device, False, False),
    ]
    assert logged.receive() is None
    assert logged.counts == Counts(0, 0, 0)


def test_other_prefixes_are_strangers(logged: NflogSocket) -> None:
    """A rule of somebody else that logs to our group is counted, and no packet of ours; those that follow are."""
    send(socket.AF_INET, "127.0.0.1", 9)
    port = send(socket.AF_INET, "127.0.0.1", 10)
    # The datagram to port 9 is logged twice: by the other rule, and by ours behind it.
    assert [packet.ports for packet in read(logged, 2)][1] == (port, 10)
    assert logged.counts == Counts(0, 1, 0)


def test_what_nobody_read_in_time_is_counted(logged: NflogSocket) -> None:
    """More than the socket holds: those that came and those that are lost are all there were, and the next one comes."""
    count = 20_000
    send(socket.AF_INET, "127.0.0.1", 99, count)
    came = 0
    while (data := logged.receive()) is not None:
        came += len(data) // SIZE
    # What is lost shows in the number of the next one.
    send(socket.AF_INET, "127.0.0.1", 100)
    count += 1
    came += len(read(logged, 1))
    assert came + logged.counts.lost == count
    assert logged.overruns >= 1


def test_a_group_belongs_to_one(netns: int) -> None:
    """A second socket for it is refused with words; given back, it is anybody's."""
    with NflogSocket(7, "a"), pytest.raises(NotPermitted, match=r"NFLOG open group 7: another program reads this group \(--log-group"):
        NflogSocket(7, "b")
    NflogSocket(7, "b").close()


def test_a_socket_belongs_to_the_namespace_it_was_opened_in(netns: int) -> None:
    """The same group of another namespace is another one."""
    other = namespaces.create()
    with NflogSocket(7, "a"), namespaces.entered(other):
        NflogSocket(7, "a").close()


def test_another_protocol_is_no_nflog(netns: int) -> None:
    """What is no netfilter netlink does not answer as it."""
    with pytest.raises((Unsupported, KernelError)):
        NflogSocket(7, "a", protocol=0)


def test_closing_twice_is_closing_once(netns: int) -> None:
    """And what is closed cannot be read."""
    log = NflogSocket(7, "a")
    log.close()
    log.close()
    with pytest.raises(KernelError):
        log.receive()


def test_a_reader_in_another_thread(logged: NflogSocket) -> None:
    """Whoever polls it wakes within moments of the packet."""
    woke = threading.Event()

    def wait() -> None:
        if select.select([logged.fileno()], [], [], 20)[0]:
            woke.set()

    thread = threading.Thread(target=wait)
    thread.start()
    send(socket.AF_INET, "127.0.0.1", 99)
    assert woke.wait(20)
    thread.join()


# -- headers -----------------------------------------------------------------------------------------------------------

A4, B4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2"
PORTS = struct.pack("!HH", 4660, 80)


def ipv4(protocol: int, rest: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    return bytes((0x40 | words, 0)) + bytes(4) + struct.pack("!H", fragment) + bytes((64, protocol)) + bytes(2) + A4 + B4 + options + rest


def ipv6(next_header: int, rest: bytes) -> bytes:
    return b"\x60" + bytes(5) + bytes((next_header, 64)) + A6 + B6 + rest


def extension(next_header: int, length: int = 0, body: bytes = bytes(6)) -> bytes:
    return bytes((next_header, length)) + body


def parse(data: bytes) -> tuple[int, Packet]:
    """The code, and the packet, of bytes that end where they end."""
    packet = ffi.new("struct np_nflog_packet *")
    exact = ffi.new("uint8_t[]", data) if data else ffi.NULL
    code = int(lib.np_nflog_packet(exact, len(data), packet))
    return code, next(unpack(bytes(ffi.buffer(packet))))


FORMS = {
    "tcp": (ipv4(TCP, PORTS), TCP, (4660, 80), None, False, False),
    "udp": (ipv4(UDP, PORTS + bytes(4)), UDP, (4660, 80), None, False, False),
    "sctp": (ipv4(SCTP, PORTS), SCTP, (4660, 80), None, False, False),
    "icmp": (ipv4(1, b"\x03\x01"), 1, None, (3, 1), False, False),
    "icmpv6 in ipv4": (ipv4(58, b"\x03\x01"), 58, None, None, False, False),
    "gre": (ipv4(47, PORTS), 47, None, None, False, False),
    "options": (ipv4(TCP, PORTS, bytes(40)), TCP, (4660, 80), None, False, False),
    "options cut off": (ipv4(TCP, b"", bytes(40))[:59], TCP, None, None, False, True),
    "ports cut off": (ipv4(TCP, PORTS)[:-1], TCP, None, None, False, True),
    "no ports": (ipv4(UDP, b""), UDP, None, None, False, True),
    "icmp cut off": (ipv4(1, b"\x08"), 1, None, None, False, True),
    "first fragment": (ipv4(UDP, PORTS, fragment=0x2000), UDP, (4660, 80), None, False, False),
    "later fragment": (ipv4(UDP, PORTS, fragment=1), UDP, None, None, True, False),
    "tcp 6": (ipv6(TCP, PORTS), TCP, (4660, 80), None, False, False),
    "icmp 6": (ipv6(58, b"\x80\x00"), 58, None, (128, 0), False, False),
    "icmp in ipv6": (ipv6(1, b"\x80\x00"), 1, None, None, False, False),
    "hop by hop": (ipv6(0, extension(UDP) + PORTS), UDP, (4660, 80), None, False, False),
    "long options": (ipv6(60, extension(UDP, 2, bytes(22)) + PORTS), UDP, (4660, 80), None, False, False),
    "all of them": (
        ipv6(0, extension(60) + extension(43) + extension(44) + extension(51) + extension(135, 1, bytes(10)) + extension(TCP) + PORTS),
        TCP,
        (4660, 80),
        None,
        False,
        False,
    ),
    "first fragment 6": (ipv6(44, extension(UDP, 0, b"\0\1" + bytes(4)) + PORTS), UDP, (4660, 80), None, False, False),
    "later fragment 6": (ipv6(44, extension(UDP, 0, b"\0\x08" + bytes(4)) + PORTS), UDP, None, None, True, False),
    "later fragment of options": (ipv6(44, extension(60, 0, b"\0\x08" + bytes(4)) + PORTS), 60, None, None, True, False),
    "an option that is cut off": (ipv6(0, extension(UDP)[:7]), 0, None, None, False, True),
    "a longer option than there is": (ipv6(0, extension(UDP, 1) + bytes(7)), UDP, None, None, False, True),
    "no next header": (ipv6(59, PORTS), 59, None, None, False, False),
    "ports cut off 6": (ipv6(TCP, PORTS[:3]), TCP, None, None, False, True),
}


@pytest.mark.parametrize(("data", "protocol", "ports", "icmp", "fragment", "cut_off"), FORMS.values(), ids=FORMS)
def test_forms_of_headers(
    data: bytes, protocol: int, ports: tuple[int, int] | None, icmp: tuple[int, int] | None, fragment: bool, cut_off: bool
) -> None:
    """What is there is read, and what is not there is said not to be."""
    source, destination = (A4, B4) if data[0] >> 4 == 4 else (A6, B6)
    assert parse(data) == (0, Packet(0, source, destination, protocol, ports, icmp, 0, 0, fragment, cut_off))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x45", id="one byte"),
        pytest.param(ipv4(TCP, b"")[:19], id="a destination that is cut off"),
        pytest.param(b"\x44" + ipv4(TCP, PORTS)[1:], id="a header of 16 bytes"),
        pytest.param(ipv6(TCP, b"")[:39], id="a destination that is cut off, 6"),
        pytest.param(b"\x55" + bytes(60), id="version 5"),
    ],
)
def test_what_is_no_packet(data: bytes) -> None:
    """It is refused."""
    assert parse(data)[0] == -errno.EBADMSG


def test_every_cut_of_a_long_header() -> None:
    """Wherever it is cut, it is read as far as it goes, or refused before its addresses; never are there ports that were cut off."""
    whole = FORMS["all of them"][0]
    for length in range(len(whole)):
        code, packet = parse(whole[:length])
        assert (code == 0) == (length >= 40)
        assert packet.ports is None
        assert packet.cut_off == (code == 0)


def test_the_packed_form_is_the_struct() -> None:
    """Python's layout of a packet is the compiler's, field by field."""
    packet = ffi.new("struct np_nflog_packet *")
    packet.source, packet.destination, packet.time, packet.in_device, packet.out_device = A6, B6, 5, 6, 7
    packet.source_port, packet.destination_port, packet.family, packet.protocol, packet.flags = 8, 9, 6, 17, 1
    assert ffi.sizeof("struct np_nflog_packet") == SIZE == PACKET.size
    assert next(unpack(bytes(ffi.buffer(packet)))) == Packet(5, A6, B6, 17, (8, 9), None, 6, 7, False, False)
