"""Connection tracking entries of the real `conntrack` read back, and their marks as it shows them after us."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from netpol.errors import MalformedKernelData
from netpol.kernel import conntrack as module
from netpol.kernel import release
from netpol.kernel.conntrack import ConntrackSocket
from netpol.model import ICMP, ICMPV6, SCTP, TCP, UDP, format_address, parse_address
from netpol.rules.flows import HAS_PORTS, IS_ICMP, PICKED_UP, SIZE, ZONE_ORIGINAL, ZONE_REPLY, Entry, Tuple, pack, unpack
from tests.referees import run

A, B, C, SERVICE = (parse_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.96.0.1"))
A6, B6 = parse_address("fd00::1"), parse_address("fd00::2")
BIT, OTHERS = 0x10000000, 0x4005
SEEN, ASSURED, CONFIRMED = 2, 4, 8

GRE = 47
HERE, THERE = ("-s", "10.0.0.1", "-d", "10.0.0.2"), ("-s", "fd00::1", "-d", "fd00::2")
PING = ("--protonum", "icmp", "--icmp-type", "8", "--icmp-code", "0", "--icmp-id", "9")
WEB = ("--protonum", "udp", "--sport", "40000", "--dport", "53")
ASSOCIATED = ("--protonum", "sctp", "--state", "ESTABLISHED", "--orig-vtag", "1", "--reply-vtag", "2")
SERVED = ("-s", "10.0.0.1", "-d", "10.96.0.1", "-r", "10.0.0.3", "-q", "10.0.0.1", "--protonum", "tcp", "--state", "ESTABLISHED")
PORTS = ("--sport", "40000", "--dport", "80", "--reply-port-src", "8080", "--reply-port-dst", "40000", "-u", "SEEN_REPLY,ASSURED")
TO, BACK = Tuple(A, B, 40000, 53), Tuple(B, A, 53, 40000)

# What the tool is told, and what is read. It makes TCP entries as if it had met the connection in its middle.
MADE: dict[str, tuple[tuple[str, ...], Entry]] = {
    "udp": ((*HERE, *WEB), Entry(UDP, TO, BACK, 0, CONFIRMED)),
    "a mark": ((*HERE, *WEB, "-m", str(OTHERS)), Entry(UDP, TO, BACK, OTHERS, CONFIRMED)),
    "a service": (
        (*SERVED, *PORTS),
        Entry(
            TCP,
            Tuple(A, SERVICE, 40000, 80),
            Tuple(C, A, 8080, 40000),
            0,
            SEEN | ASSURED | CONFIRMED,
            flags=HAS_PORTS | PICKED_UP,
        ),
    ),
    "ipv6": ((*THERE, *WEB), Entry(UDP, Tuple(A6, B6, 40000, 53), Tuple(B6, A6, 53, 40000), 0, CONFIRMED)),
    "icmp": ((*HERE, *PING), Entry(ICMP, Tuple(A, B, 9, 8 << 8), Tuple(B, A, 9, 0), 0, CONFIRMED, flags=IS_ICMP)),
    "icmpv6": (
        (*THERE, "--protonum", "icmpv6", "--icmpv6-type", "128", "--icmpv6-code", "0", "--icmpv6-id", "9"),
        Entry(ICMPV6, Tuple(A6, B6, 9, 128 << 8), Tuple(B6, A6, 9, 129 << 8), 0, CONFIRMED, flags=IS_ICMP),
    ),
    "sctp": (
        (*HERE, *ASSOCIATED, "--orig-port-src", "40000", "--orig-port-dst", "53"),
        Entry(SCTP, TO, BACK, 0, CONFIRMED),
    ),
    "gre": ((*HERE, "--protonum", "gre", "--srckey", "1", "--dstkey", "2"), Entry(GRE, Tuple(A, B, 1, 2), Tuple(B, A, 2, 1), 0, CONFIRMED)),
    "a zone": ((*HERE, *WEB, "--zone", "7"), Entry(UDP, TO, BACK, 0, CONFIRMED, 7)),
    "a zone of the original direction": (
        (*HERE, *WEB, "--orig-zone", "7"),
        Entry(UDP, TO, BACK, 0, CONFIRMED, 7, HAS_PORTS | ZONE_ORIGINAL),
    ),
    "a zone of the replies": ((*HERE, *WEB, "--reply-zone", "7"), Entry(UDP, TO, BACK, 0, CONFIRMED, 7, HAS_PORTS | ZONE_REPLY)),
}


def make(*words: str) -> None:
    run("conntrack", "-I", *words, "--timeout", "1000")


def listed() -> list[str]:
    """What the real tool says, both families, a line an entry."""
    return [line for family in ("ipv4", "ipv6") for line in run("conntrack", "-L", "-f", family).splitlines()]


def marks() -> list[int]:
    return sorted(int(line.split("mark=")[1].split()[0]) for line in listed())


@pytest.fixture
def conntrack(netns: int) -> Iterator[ConntrackSocket]:
    with ConntrackSocket() as opened:
        yield opened


@pytest.mark.parametrize(("words", "entry"), MADE.values(), ids=MADE)
def test_what_the_tool_made_is_read_marked_and_unmarked(conntrack: ConntrackSocket, words: tuple[str, ...], entry: Entry) -> None:
    """One entry of each form: read whole; it gets the bit and loses it, the other bits of its mark stay."""
    make(*words)
    assert conntrack.count() == 1
    found = conntrack.flows((entry.reply.source,))
    assert list(unpack(found)) == [entry]
    assert pack([entry]) == found
    assert conntrack.mark(found, BIT) == 1
    assert marks() == [entry.mark | BIT]
    assert conntrack.unmark(found, BIT) == 1
    assert marks() == [entry.mark]


ZONED = {
    "none": ((), (("--zone", "7"), ("--zone", "8")), 0, HAS_PORTS),
    "both": (("--zone", "7"), ((), ("--zone", "8")), 7, HAS_PORTS),
    "original": (("--orig-zone", "7"), (("--zone", "8"), ("--zone", "9")), 7, HAS_PORTS | ZONE_ORIGINAL),
    "reply": (("--reply-zone", "7"), (("--zone", "8"), ("--zone", "9")), 7, HAS_PORTS | ZONE_REPLY),
}


@pytest.mark.parametrize(("own", "others", "zone", "flags"), ZONED.values(), ids=ZONED)
def test_of_entries_that_differ_in_their_zone_one_is_marked(
    conntrack: ConntrackSocket, own: tuple[str, ...], others: tuple[tuple[str, ...], ...], zone: int, flags: int
) -> None:
    """The same addresses and ports in other zones are other flows."""
    for words in (own, *others):
        make(*HERE, *WEB, *words)
    entry = Entry(UDP, TO, BACK, 0, CONFIRMED, zone, flags)
    assert entry in list(unpack(conntrack.flows((A,))))
    assert conntrack.mark(pack([entry]), BIT) == 1
    assert list(unpack(conntrack.marked(BIT))) == [replace(entry, mark=BIT)]


def test_who_else_writes_the_mark_keeps_his_bits(conntrack: ConntrackSocket) -> None:
    """A bit that another program sets between our reading and our marking is still there afterwards."""
    make(*MADE["a mark"][0])
    found = conntrack.flows((A,))
    run("conntrack", "-U", *HERE, "-p", "udp", "-m", "0x80/0x80")
    conntrack.mark(found, BIT)
    assert marks() == [BIT | OTHERS | 0x80]
    run("conntrack", "-U", *HERE, "-p", "udp", "-m", "0/0x4000")
    conntrack.unmark(found, BIT)
    assert marks() == [OTHERS & ~0x4000 | 0x80]


# Which entries have such an end, and how many the kernel has to send: of IPv6 all, for its filter does not work there.
ENDS = {
    "the client": ((A,), ["a service", "icmp"], 2),
    "the backend": ((C,), ["a service"], 1),
    "not the service": ((SERVICE,), [], 0),
    "two": ((B, C), ["a service", "icmp"], 2),
    "ipv6, first": ((A6,), ["ipv6"], 2),
    "ipv6, last": ((B6,), ["ipv6"], 2),
    "both families": ((C, A6, B6), ["a service", "ipv6"], 3),
    "nobody": ((parse_address("10.0.0.4"),), [], 0),
    "ipv6 of the same bytes": ((A + bytes(12),), [], 2),
    "none": ((), [], 0),
}


@pytest.mark.parametrize(("addresses", "names", "sent"), ENDS.values(), ids=ENDS)
def test_ends_are_the_sources_of_both_tuples(conntrack: ConntrackSocket, addresses: tuple[bytes, ...], names: list[str], sent: int) -> None:
    """Filtered here, or by the kernel, which then sends no more than it has to: the same entries."""
    for name in ("a service", "ipv6", "icmp"):
        make(*MADE[name][0])
    make("-s", "fd00::8", "-d", "fd00::9", *WEB)
    expected = sorted((MADE[name][1] for name in names), key=str)
    assert sorted(unpack(conntrack.flows(addresses)), key=str) == expected
    before = conntrack.looked_at
    assert sorted(unpack(conntrack.flows_at(addresses)), key=str) == expected
    assert conntrack.looked_at - before == sent


@pytest.mark.parametrize(("version", "dumps"), [("5.10.0", 1), ("5.15.200", 1), ("5.16.0", 2), ("6.18.0", 2)])
def test_filters_that_may_find_nothing_are_not_asked(netns: int, monkeypatch: pytest.MonkeyPatch, version: str, dumps: int) -> None:
    """Linux 5.8 to 5.15: by the reply's source, that is to say towards a pod, it may send nothing. One dump of everything does it."""
    monkeypatch.setattr(release, "RELEASE", version)
    make(*MADE["a service"][0])
    with ConntrackSocket() as whole, ConntrackSocket() as some:
        expected = whole.flows((A,))
        assert len(expected) == SIZE
        monkeypatch.setattr(some, "_seq", 100)
        assert some.flows_at((A,))[:SIZE] == expected
        assert some._seq - 100 == dumps


# Each with an address of no pod; the first ones, of either side, are link-local.
LINK_LOCAL = ("fe80::1", "febf:ffff::1", "fd00::1"), ("fd00::9", "fd00::9", "fe80::2")
BESIDE = ("fe7f:ffff::1", "fec0::1", "fd80::1", "ff80::1"), ("fd00::9",) * 4


@pytest.mark.parametrize("entries", [None, 8], ids=["a dump", "the list"])
def test_link_local_addresses_are_ends_where_they_are_asked_for(conntrack: ConntrackSocket, entries: int | None) -> None:
    """All of fe80::/10, on either side, and what lies beside that is not; an IPv4 address that begins so neither."""
    for source, destination in (*zip(*LINK_LOCAL, strict=True), *zip(*BESIDE, strict=True)):
        make("-s", source, "-d", destination, *WEB)
    make("-s", "254.128.0.1", "-d", "10.0.0.9", *WEB)
    found = unpack(conntrack.flows((), entries=entries, link_local=True))
    ends = {(format_address(entry.original.source), format_address(entry.reply.source)) for entry in found}
    assert ends == set(zip(*LINK_LOCAL, strict=True))
    assert conntrack.flows((), entries=entries) == b""


def test_many_ends(conntrack: ConntrackSocket) -> None:
    """Among 2,000 addresses the ones that are there are found, in the first place, the middle and the last, and no others."""
    others = [(0x0B000000 + i).to_bytes(4, "big") for i in range(2000)]
    for name in ("udp", "ipv6"):
        make(*MADE[name][0])
    for place in (parse_address("10.0.0.0"), parse_address("11.0.3.0"), parse_address("12.0.0.0")):
        assert conntrack.flows([*others, place]) == b""
    assert len(conntrack.flows([*others, A])) == SIZE
    assert len(conntrack.flows([*others, B, parse_address("1.1.1.1"), A6, parse_address("fe80::1")])) == 2 * SIZE


def test_marked_entries_are_found_whoever_they_belong_to(conntrack: ConntrackSocket) -> None:
    """With a bit to look for, entries that have it are read too, whatever their ends; other bits do not count."""
    make(*MADE["a mark"][0])
    make(*MADE["ipv6"][0], "-m", str(BIT | 1))
    assert [entry.mark for entry in unpack(conntrack.flows((), BIT))] == [BIT | 1]
    assert conntrack.flows((), 0x20000000) == b""
    before = conntrack.looked_at
    assert [entry.mark for entry in unpack(conntrack.marked(BIT))] == [BIT | 1]
    assert conntrack.looked_at - before == 1
    assert len(conntrack.marked(BIT | 0x4000)) == 2 * SIZE


def test_a_service_whose_backend_changed(conntrack: ConntrackSocket) -> None:
    """Between reading and marking the client's 5-tuple got another backend: that flow is not marked, and it is no error."""
    words = MADE["a service"][0]
    make(*words)
    found = conntrack.flows((A,))
    run("conntrack", "-D", "-s", "10.0.0.1")
    make(*(word.replace("10.0.0.3", "10.0.0.2") for word in words))
    assert conntrack.mark(found, BIT) == 0
    assert marks() == [0]


def many(count: int) -> None:
    """UDP entries made with the real tool, in one go."""
    lines = (f"-I {' '.join(HERE)} -p udp --sport {i} --dport 53 --timeout 1000" for i in range(1, count + 1))
    run("conntrack", "--load-file", "-", input="".join(f"{line}\n" for line in lines))


def test_many_at_once(conntrack: ConntrackSocket) -> None:
    """Thousands are marked with few system calls; those that are gone meanwhile are left out of the count and hinder nobody."""
    many(3000)
    found = conntrack.flows((A,))
    assert len(found) == 3000 * SIZE
    before = conntrack.calls
    assert conntrack.mark(found, BIT) == 3000
    # A send for 128 entries, and a look for errors after each.
    assert conntrack.calls - before <= 2 * 24 + 2
    assert len(conntrack.marked(BIT)) == 3000 * SIZE
    run("conntrack", "-F")
    many(7)
    assert conntrack.mark(found, BIT) == 7
    assert conntrack.unmark(found, BIT) == 7
    assert conntrack.mark(b"", BIT) == 0


def test_a_dump_that_is_given_up(conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """When reading stops in the middle, what the kernel still has to say does not get in the way of the next request."""
    many(3000)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_FLOWS", 100)
        with pytest.raises(MalformedKernelData, match="conntrack list entries: what the kernel sent has no such form"):
            conntrack.flows((A,))
    assert len(conntrack.flows((A,))) == 3000 * SIZE


def test_an_empty_table(conntrack: ConntrackSocket) -> None:
    """No entries are no error."""
    assert conntrack.count() == 0
    assert conntrack.flows((A, A6), BIT) == conntrack.flows_at((A, A6)) == conntrack.marked(BIT) == b""


def test_what_cannot_be_an_update(conntrack: ConntrackSocket) -> None:
    """Half an entry, and masks that no mark has, are refused before anything is sent."""
    entry = pack([MADE["udp"][1]])
    for flows, bit in ((entry[:-1], BIT), (entry, 0), (entry, 1 << 32)):
        with pytest.raises(ValueError, match="whole packed entries"):
            conntrack.mark(flows, bit)


def test_packets_under_way_are_waited_for_where_no_queue_holds_them(
    conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One call. With a queue that somebody listens on, or whose list cannot be read, nobody knows how long a packet is under way."""
    before = conntrack.calls
    assert conntrack.settle()
    assert conntrack.calls - before == 1
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as queue:
        # NFQNL_MSG_CONFIG for queue 7: NFQA_CFG_CMD, to bind it for IPv4.
        body = struct.pack("!BBHHHBBH", 0, 0, 7, socket.ntohs(8), socket.ntohs(1), 1, 0, 2)
        queue.send(struct.pack("=IHHII", 16 + len(body), 3 << 8 | 2, 1, 1, 0) + body)
        assert not conntrack.settle()
    assert conntrack.settle()
    monkeypatch.setattr(module, "_QUEUES", str(tmp_path))
    assert not conntrack.settle()
