"""Whatever bytes the kernel sends, the parsers of entries, answers and addresses stay inside them and inside the caller's room.

Read under ASan and UBSan as well: what goes wrong here is a byte too many, which only they see for sure.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.errors import MalformedKernelData
from netpol.kernel import addresses, namespaces
from netpol.kernel._native import ffi, lib
from netpol.kernel.conntrack import ConntrackSocket
from netpol.model import parse_address
from netpol.rules.flows import SIZE, Entry, Tuple, pack, unpack
from tests.referees import run

SEQ = 77
ROOM = 3
NEW, STATS, DONE, ERROR = 1 << 8, 1 << 8 | 5, 3, 2
FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
A, B = parse_address("10.0.0.1"), parse_address("10.0.0.2")
A6, B6 = parse_address("fd00::1"), parse_address("fd00::2")
BIT = 0x10000000


def copy(data: bytes) -> object:
    """The bytes in a block of their own with nothing behind them."""
    block = ffi.new("uint8_t[]", len(data) or 1)
    ffi.memmove(block, data, len(data))
    return block


def parse_dump(data: bytes, ends4: tuple[bytes, ...] = (A, B), bits: int = 0xFFFFFFFF, room: int = ROOM) -> tuple[int, bytes]:
    """Parses with little room; the code, and the entries. Nothing is written behind the room."""
    flows = ffi.new("struct np_ct_flow[]", room + 1)
    guard = bytes([0xA5]) * SIZE
    ffi.memmove(ffi.addressof(flows, room), guard, SIZE)
    four, six = copy(b"".join(ends4)), copy(A6)
    dump = ffi.new("struct np_ct_dump *", {"flows": flows, "room": room, "ends4": four, "count4": len(ends4), "ends6": six, "count6": 1})
    dump.bits, dump.seq = bits, SEQ
    code = int(lib.np_ct_parse_dump(copy(data), len(data), dump))
    assert dump.count <= room
    assert dump.count <= dump.seen
    assert bytes(ffi.buffer(ffi.addressof(flows, room), SIZE)) == guard
    assert -65535 <= code <= 0
    found = bytes(ffi.buffer(flows, dump.count * SIZE))
    for entry in unpack(found):
        assert str(entry)
    return code, found


def parse_answers(data: bytes) -> tuple[int, bytes]:
    outcome = ffi.new("struct np_ct_outcome *", {"first": SEQ, "count": 2})
    code = int(lib.np_ct_parse_answers(copy(data), len(data), outcome))
    assert code in (0, -errno.EBADMSG)
    assert outcome.failures == 0 or (outcome.code > 0 and outcome.failed < 2)
    return code, b""


def parse_entries(data: bytes) -> tuple[int, bytes]:
    code = int(lib.np_ct_parse_entries(copy(data), len(data), SEQ, ffi.new("uint32_t *")))
    assert -65535 <= code <= 0
    return code, b""


def parse_addresses(data: bytes) -> tuple[int, bytes]:
    try:
        for _, _, _, body in addresses.messages(data):
            assert all(len(address) in (4, 16) for address in addresses.addresses(body))
    except MalformedKernelData:
        return -errno.EBADMSG, b""
    return 0, b""


Parser = Callable[[bytes], tuple[int, bytes]]
PARSERS: dict[str, Parser] = {"dump": parse_dump, "answers": parse_answers, "entries": parse_entries, "addresses": parse_addresses}


def message(type: int, body: bytes, seq: int = SEQ) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type, 0, seq, 0) + body + bytes(-len(body) % 4)


def attribute(type: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type) + value + bytes(-len(value) % 4)


def tuple_of(type: int, source: bytes, destination: bytes, numbers: bytes = attribute(2, b"\0\1") + attribute(3, b"\0\2")) -> bytes:
    four = len(source) == 4
    ends = attribute(1 if four else 3, source) + attribute(2 if four else 4, destination)
    return attribute(type, attribute(1, ends) + attribute(2, attribute(1, b"\x11") + numbers))


@pytest.fixture(scope="module")
def captured() -> dict[str, bytes]:
    """What a real kernel sent, its sequence numbers set to SEQ: a dump of entries of every form, its answer to the count, addresses."""
    namespace = namespaces.create()
    sent: dict[str, bytes] = {}
    made = (
        "-s 10.0.0.1 -d 10.0.0.2 -p tcp --state ESTABLISHED --sport 1 --dport 2 -u SEEN_REPLY,ASSURED -m 5",
        "-s fd00::1 -d fd00::2 -p udp --sport 1 --dport 2 --zone 7",
        "-s 10.0.0.1 -d 10.0.0.2 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 9 --orig-zone 7",
    )
    try:
        with namespaces.entered(namespace), ConntrackSocket() as conntrack:
            for words in made:
                run("conntrack", "-I", *words.split(), "--timeout", "1000")
            native = conntrack._native
            assert lib.np_ct_list(native, SEQ, 0, lib.NP_CT_ALL, ffi.NULL, 0) == 0
            sent["entries"] = receive(native)
            assert parse_dump(sent["entries"])[0] == 0
            receive(native)
            request = struct.pack("=IHHII", 24, 22, 0x301, SEQ, 0) + bytes(8)
            fd = lib.np_sys_netlink_open(0, ffi.addressof(native, "calls"))
            lib.np_sys_send(fd, request, len(request), ffi.addressof(native, "calls"))
            sent["addresses"] = os.read(fd, 1 << 16)
            os.close(fd)
    finally:
        os.close(namespace)
    return sent


def receive(native: object) -> bytes:
    handle = ffi.cast("struct np_ct *", native)
    size = int(lib.np_sys_recv(handle.fd, handle.buffer, handle.room, 0, ffi.addressof(handle, "calls")))
    assert size > 0
    return bytes(ffi.buffer(handle.buffer, size))


# A message around anything, with attributes that are often the right ones: deeper than bytes at random would get.
values = st.binary(max_size=20) | st.sampled_from([A, B, A6, B6, b"\0\7", b"\x11", b"\x06", b"\1", bytes(2)])
leaves = st.builds(attribute, st.integers(0, 30) | st.just(0x4001), values)
nested = st.recursive(
    leaves, lambda inner: st.builds(lambda t, parts: attribute(t, b"".join(parts)), st.integers(0, 5), st.lists(inner, max_size=5))
)
good = st.sampled_from([tuple_of(1, A, B), tuple_of(2, B, A), tuple_of(1, A6, B6), tuple_of(2, B6, A6), attribute(8, bytes(4))])
bodies = st.builds(
    lambda family, parts, tail: bytes((family, 0, 0, 0)) + b"".join(parts) + tail,
    st.sampled_from([2, 10, 0, 7]),
    st.lists(nested | good, max_size=8),
    st.binary(max_size=5),
)
messages = st.builds(message, st.sampled_from([ERROR, DONE, NEW, NEW, NEW, STATS, 20, 0]), bodies | st.binary(max_size=60))
streams = st.builds(lambda parts, cut: b"".join(parts)[: cut or None], st.lists(messages, max_size=4), st.integers(0, 200))


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@FAST
@given(data=st.binary(max_size=300) | streams)
def test_any_bytes(parse: Parser, data: bytes) -> None:
    """Any bytes at all are either read or refused."""
    parse(data)


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize("name", ["entries", "addresses"])
@FAST
@given(st.data())
def test_what_a_kernel_sent_with_some_bytes_wrong(captured: dict[str, bytes], parse: Parser, name: str, data: st.DataObject) -> None:
    """A real answer of which bytes were changed or cut off is either read or refused."""
    raw = bytearray(captured[name])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[place] = value
    parse(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def test_a_real_dump_fits_exactly(captured: dict[str, bytes]) -> None:
    """Three entries just fill the room for three; with room for two it is -ENOSPC, and what fitted is there."""
    code, found = parse_dump(captured["entries"])
    assert (code, len(found)) == (0, 3 * SIZE)
    assert parse_dump(captured["entries"], room=2) == (-errno.ENOSPC, found[: 2 * SIZE])
    assert parse_dump(captured["entries"], ends4=(), bits=0)[1] == pack(entry for entry in unpack(found) if entry.family == 6)
    assert parse_dump(captured["entries"], ends4=(), bits=4)[1] == pack(entry for entry in unpack(found) if entry.family == 6 or entry.mark)


ENTRY = b"\2\0\0\0" + tuple_of(1, A, B) + tuple_of(2, B, A)
PLAIN = Entry(17, Tuple(A, B, 1, 2), Tuple(B, A, 1, 2))
_IP = len(attribute(1, attribute(1, A) + attribute(2, B)))
PROTOCOL_FIRST = attribute(1, tuple_of(1, A, B)[4 + _IP :] + tuple_of(1, A, B)[4 : 4 + _IP])
FORMS: dict[str, tuple[bytes, list[Entry] | None]] = {
    "whole": (ENTRY, [PLAIN]),
    "in another order": (b"\2\0\0\0" + attribute(8, bytes(4)) + tuple_of(2, B, A) + tuple_of(1, A, B), [PLAIN]),
    "unknown attributes": (ENTRY + attribute(99, b"?") + attribute(0x4001 + 98, b""), [PLAIN]),
    "unknown numbers of a protocol": (
        b"\2\0\0\0" + tuple_of(1, A, B, attribute(2, b"\0\1") + attribute(3, b"\0\2") + attribute(99, b"?")) + tuple_of(2, B, A),
        [PLAIN],
    ),
    "another family": (b"\7" + ENTRY[1:], []),
    "no reply": (b"\2\0\0\0" + tuple_of(1, A, B), None),
    "no original": (b"\2\0\0\0" + tuple_of(2, B, A), None),
    "no destination": (ENTRY.replace(attribute(2, A), attribute(9, A)), None),
    "no source": (b"\2\0\0\0" + tuple_of(1, A, B) + tuple_of(2, B, A).replace(attribute(1, B), attribute(9, B)), None),
    "an address of the other family": (b"\2\0\0\0" + tuple_of(1, A + bytes(12), B) + tuple_of(2, B + bytes(12), A), []),
    "no protocol": (b"\2\0\0\0" + attribute(1, attribute(1, attribute(1, A) + attribute(2, B))) + tuple_of(2, B, A), None),
    "protocols differ": (b"\2\0\0\0" + tuple_of(1, A, B) + tuple_of(2, B, A).replace(b"\x11", b"\x06"), None),
    "short port": (b"\2\0\0\0" + tuple_of(1, A, B, attribute(2, b"\1")) + tuple_of(2, B, A), None),
    "short mark": (ENTRY + attribute(8, b"\0\1"), None),
    "short status": (ENTRY + attribute(3, b"\0\1"), None),
    "short zone": (ENTRY + attribute(18, b"\1"), None),
    "short flags": (ENTRY + attribute(4, attribute(1, attribute(4, b"\x08"))), None),
    "no header": (b"\2\0", None),
    "long destination": (b"\2\0\0\0" + tuple_of(1, A, B + b"\0") + tuple_of(2, B, A), None),
    "short zone of a tuple": (ENTRY.replace(tuple_of(1, A, B), attribute(1, tuple_of(1, A, B)[4:] + attribute(3, b"\1"))), None),
    "protocol first": (b"\2\0\0\0" + PROTOCOL_FIRST + tuple_of(2, B, A), [PLAIN]),
}


@pytest.mark.parametrize(("body", "entries"), FORMS.values(), ids=FORMS)
def test_forms_of_an_entry(body: bytes, entries: list[Entry] | None) -> None:
    """What is whole is read in any order, what is wanted and lacks a part is refused: nothing is taken for 0 because it is not there."""
    code, found = parse_dump(message(NEW, body) + message(DONE, bytes(4)))
    assert (code, list(unpack(found))) == ((-errno.EBADMSG, []) if entries is None else (0, entries))


def test_no_error_is_no_end_of_a_dump() -> None:
    """Nor is it anything else that belongs into one."""
    assert parse_dump(message(ERROR, bytes(20)))[0] == -errno.EBADMSG
    assert parse_dump(message(ERROR, struct.pack("=i", -errno.EBUSY) + bytes(16)))[0] == -errno.EBUSY


@pytest.mark.parametrize("length", [0, 3, 8, 65535])
def test_an_attribute_that_is_longer_than_its_message(length: int) -> None:
    """A length that cannot be is refused, also where the bytes behind the message are there to be read."""
    body = ENTRY + struct.pack("=HH", length, 99)
    assert parse_dump(message(NEW, ENTRY) * 2)[0] == 0
    assert parse_dump(message(NEW, body) + message(NEW, body))[0] == -errno.EBADMSG


@given(st.sets(st.integers(0, 20), max_size=12), st.integers(0, 20), st.booleans())
@settings(max_examples=300, deadline=None)
def test_an_end_is_found_wherever_it_stands(numbers: set[int], asked: int, reply: bool) -> None:
    """Among any sorted addresses: an entry is wanted exactly when its end, on either side, is one of them."""
    ends = tuple(bytes((10, 0, 0, number)) for number in sorted(numbers))
    end, other = bytes((10, 0, 0, asked)), bytes((11, 0, 0, 1))
    sides = (other, end) if reply else (end, other)
    code, found = parse_dump(message(NEW, b"\2\0\0\0" + tuple_of(1, *sides) + tuple_of(2, *sides[::-1])), ends)
    assert (code, len(found)) == (0, SIZE if asked in numbers else 0)


LIBERAL, STRICT = b"\x0a\x0a", b"\x02\x02"


@pytest.mark.parametrize(
    ("sides", "flags"), [((LIBERAL, LIBERAL), 5), ((LIBERAL, STRICT), 1), ((STRICT, STRICT), 1)], ids=["both", "one", "none"]
)
def test_picked_up_is_when_both_sides_are_watched_liberally(sides: tuple[bytes, bytes], flags: int) -> None:
    """The flag of both directions makes it; of one alone it does not."""
    body = ENTRY + attribute(4, attribute(1, attribute(1, b"\3") + attribute(4, sides[0]) + attribute(5, sides[1])))
    assert [entry.flags for entry in unpack(parse_dump(message(NEW, body))[1])] == [flags]


def test_arguments_that_cannot_be() -> None:
    """C refuses what Python would never give it: a filter for IPv6 (the kernel's is wrong) or for nothing, and no room."""
    block = ffi.new("uint8_t[]", 48)
    native = ffi.new("struct np_ct *", {"buffer": block, "room": 48, "fd": -1})
    for family, which in ((6, lib.NP_CT_ORIGINAL_SOURCE), (0, lib.NP_CT_REPLY_SOURCE), (4, 4), (4, -1)):
        assert lib.np_ct_list(native, 1, family, which, A, 0) == -errno.EINVAL
    assert lib.np_ct_list(native, 1, 4, lib.NP_CT_ORIGINAL_SOURCE, A, 0) == -errno.ENOBUFS
    outcome = ffi.new("struct np_ct_outcome *", {"first": 1, "count": 1})
    flows = ffi.from_buffer("struct np_ct_flow[]", pack([PLAIN]))
    assert lib.np_ct_update(native, flows, 1, 1, outcome) == -errno.ENOBUFS


def test_an_answer_that_does_not_come() -> None:
    """A kernel that says nothing when it is asked for the number of entries is an error, not 0."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        block = ffi.new("uint8_t[]", 64)
        native = ffi.new("struct np_ct *", {"buffer": block, "room": 64, "fd": ours.fileno()})
        assert lib.np_ct_entries(native, SEQ, ffi.new("uint32_t *")) == -errno.ENODATA


def test_the_packed_form_is_the_struct() -> None:
    """Python's layout of an entry is the compiler's, field by field."""
    entry = Entry(17, Tuple(A6, B6, 1, 2), Tuple(B6, A6, 3, 4), 5, 6, 7, 1)
    flow = ffi.from_buffer("struct np_ct_flow[]", pack([entry]))[0]
    assert ffi.sizeof("struct np_ct_flow") == SIZE
    assert (flow.first.service, flow.first.family, flow.first.protocol) == (3, 6, 17)
    assert [bytes(flow.first.source), bytes(flow.first.destination)] == [A6, B6]
    assert [bytes(flow.original.destination), bytes(flow.reply.destination)] == [B6, A6]
    assert (flow.original.source_port, flow.original.destination_port) == (1, 2)
    assert (flow.reply.source_port, flow.reply.destination_port) == (3, 4)
    assert (flow.mark, flow.status, flow.zone, flow.flags) == (5, 6, 7, 1)
