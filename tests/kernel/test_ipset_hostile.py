"""Whatever bytes the kernel sends, the parsers stay inside them and inside the caller's room; the sort is a sort.

Read under ASan and UBSan as well: what goes wrong here is a byte too many, which only they see for sure.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.kernel import namespaces
from netpol.kernel._native import ffi, lib
from netpol.kernel.digests import key
from netpol.kernel.ipset import Add, Create, IpsetSocket
from netpol.model import parse_address, parse_network
from netpol.rules.sets import net_member, net_port_member

SEQ = 77
ROOM = 8
FAST = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = b"".join((0x0A000000 + 2 * i).to_bytes(4, "big") for i in range(1, 9))
NETS = b"".join(net_port_member(parse_network(f"fd00:{i:x}::/32"), 6, 80, bool(i % 2)) for i in range(1, 5))


def copy(data: bytes) -> object:
    """The bytes in a block of their own with nothing behind them."""
    block = ffi.new("uint8_t[]", len(data) or 1)
    ffi.memmove(block, data, len(data))
    return block


def parse_dump(data: bytes, seq: int = SEQ) -> int:
    """Parses with little room, and checks that nothing was written behind it."""
    headers, members = ffi.new("struct np_ipset_header[]", ROOM + 1), ffi.new("uint8_t[]", 4 * ROOM + 64)
    guard = bytes([0xA5]) * 64
    ffi.memmove(members + 4 * ROOM, guard, 64)
    dump = ffi.new(
        "struct np_ipset_dump *", {"headers": headers, "header_room": ROOM, "members": members, "member_room": 4 * ROOM, "seq": seq}
    )
    code = int(lib.np_ipset_parse_dump(copy(data), len(data), dump))
    assert dump.header_count <= ROOM
    assert dump.member_size <= 4 * ROOM
    assert bytes(ffi.buffer(members + 4 * ROOM, 64)) == guard
    assert ffi.string(headers[ROOM].name) == b""
    assert -65535 <= code <= 0
    return code


def parse_records(data: bytes) -> int:
    """Digests with room for one record, and checks that nothing was written behind it."""
    size = ffi.sizeof("struct np_ipset_record")
    records, guard = ffi.new("struct np_ipset_record[2]"), bytes([0xA5]) * size
    ffi.memmove(records + 1, guard, size)
    prefix = ffi.new("char[]", b"")
    dump = ffi.new("struct np_ipset_dump *", {"records": records, "record_room": 1, "key": key(), "prefix": prefix, "seq": SEQ})
    code = int(lib.np_ipset_parse_dump(copy(data), len(data), dump))
    assert dump.record_count <= 1
    assert bytes(ffi.buffer(records + 1, size)) == guard
    assert -65535 <= code <= 0
    return code


def parse_answers(data: bytes) -> int:
    numbers = ffi.new("uint32_t[]", [0, 0, 0xA5A5A5A5])
    outcome = ffi.new("struct np_ipset_outcome *", {"first": SEQ, "commands": 2, "numbers": numbers})
    code = int(lib.np_ipset_parse_answers(copy(data), len(data), outcome))
    assert code in (0, -errno.EBADMSG)
    assert max(numbers[0], numbers[1]) <= 1 << 16
    assert numbers[2] == 0xA5A5A5A5
    assert outcome.failures == 0 or (outcome.code > 0 and outcome.command < 2)
    return code


def parse_version(data: bytes) -> int:
    code = int(lib.np_ipset_parse_version(copy(data), len(data), SEQ))
    assert -65535 <= code <= 255
    return code


PARSERS: dict[str, Callable[[bytes], int]] = {
    "dump": parse_dump,
    "records": parse_records,
    "answers": parse_answers,
    "version": parse_version,
}


def message(type: int, flags: int, body: bytes, seq: int = SEQ) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type, flags, seq, 0) + body + bytes(-len(body) % 4)


def attribute(type: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type) + value + bytes(-len(value) % 4)


@pytest.fixture(scope="module")
def captured() -> dict[str, bytes]:
    """What a real kernel sent, its sequence numbers set to SEQ: three dumps of members, and the echo of a failed add."""
    namespace = namespaces.create()
    sent: dict[str, bytes] = {}
    try:
        with namespaces.entered(namespace), IpsetSocket() as ipset:
            ipset.run(
                [
                    Create("ips", "hash:ip", 4, MANY),
                    Create("np", "hash:net,port", 6, NETS),
                    Create("full", "hash:ip", 4, MANY[:4], maxelem=1),
                    Create("bits", "bitmap:ip", 4, MANY, net=parse_network("10.0.0.0/16")),
                ]
            )
            for name in ("ips", "np", "bits"):
                assert lib.np_ipset_list(ipset._native, SEQ, name.encode(), 0) == 0
                sent[name] = receive(ipset)
                assert parse_done(receive(ipset)) == 0
            lib.np_ipset_members(ipset._native, SEQ, lib.NP_IPSET_ADD, b"full", 0, 4, MANY, len(MANY), ffi.NULL, ffi.NULL)
            native = ipset._native
            assert lib.np_sys_send(native.fd, native.buffer, native.used, ffi.addressof(native, "calls")) > 0
            sent["full"] = receive(ipset)
    finally:
        os.close(namespace)
    return sent


def listing(ipset: IpsetSocket, name: bytes | None) -> bytes:
    """A kernel's listing of one set, or of the names of all."""
    assert lib.np_ipset_list(ipset._native, SEQ, ffi.NULL if name is None else name, lib.NP_IPSET_NAMES if name is None else 0) == 0
    parts = [receive(ipset)]
    while struct.unpack_from("=H", parts[-1], 4) != (3,):  # NLMSG_DONE
        parts.append(receive(ipset))
    return b"".join(parts)


def receive(ipset: IpsetSocket) -> bytes:
    native = ipset._native
    size = int(lib.np_sys_recv(native.fd, native.buffer, native.room, 0, ffi.addressof(native, "calls")))
    assert size > 0
    return bytes(ffi.buffer(native.buffer, size))


def parse_done(data: bytes) -> int:
    return int(struct.unpack_from("=i", data, 16)[0])


# A message around anything, with attributes that are often the right ones: deeper than bytes at random would get.
values = st.binary(max_size=40) | st.sampled_from(
    [b"hash:ip\0", b"bitmap:ip\0", b"hash:net,port\0", b"s\0", bytes(4), bytes(16), b"\2", b"\12"]
)
leaves = st.builds(attribute, st.integers(0, 32) | st.just(0x4001), values)
nested = st.recursive(
    leaves, lambda inner: st.builds(lambda t, parts: attribute(t, b"".join(parts)), st.integers(0, 12), st.lists(inner, max_size=4))
)
bodies = st.builds(lambda parts, tail: bytes(4) + b"".join(parts) + tail, st.lists(nested, max_size=8), st.binary(max_size=5))
messages = st.builds(message, st.sampled_from([2, 3, 6 << 8 | 7, 6 << 8 | 1, 0]), st.integers(0, 0xFFFF), bodies | st.binary(max_size=60))
streams = st.builds(lambda parts, cut: b"".join(parts)[: cut or None], st.lists(messages, max_size=4), st.integers(0, 200))


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@FAST
@given(data=st.binary(max_size=300) | streams)
def test_any_bytes(parse: Callable[[bytes], int], data: bytes) -> None:
    """Any bytes at all are either read or refused."""
    parse(data)


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize("name", ["ips", "np", "full"])
@FAST
@given(st.data())
def test_what_a_kernel_sent_with_some_bytes_wrong(
    captured: dict[str, bytes], parse: Callable[[bytes], int], name: str, data: st.DataObject
) -> None:
    """A real answer of which bytes were changed or cut off is either read or refused."""
    raw = bytearray(captured[name])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[place] = value
    parse(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def test_a_real_dump_fits_exactly(captured: dict[str, bytes]) -> None:
    """The eight members of `ips` just fill the room for eight; one byte less is -ENOSPC, and so are wider members."""
    assert parse_dump(captured["ips"]) == 0
    assert parse_dump(captured["np"]) == -errno.ENOSPC
    members = ffi.new("uint8_t[]", 64)
    dump = ffi.new("struct np_ipset_dump *", {"members": members, "member_room": 32, "seq": SEQ})
    assert lib.np_ipset_parse_dump(copy(captured["ips"]), len(captured["ips"]), dump) == 0
    assert sorted(bytes(ffi.buffer(members + i, 4)) for i in range(0, 32, 4)) == [MANY[i : i + 4] for i in range(0, 32, 4)]
    short = ffi.new("struct np_ipset_dump *", {"members": members, "member_room": 31, "seq": SEQ})
    assert lib.np_ipset_parse_dump(copy(captured["ips"]), len(captured["ips"]), short) == -errno.ENOSPC


def test_a_real_error_names_its_member(captured: dict[str, bytes]) -> None:
    """The echo of a failed list says that the second member did not fit; cut down to its header, it says that none is known."""
    for data, member in ((captured["full"], 2), (struct.pack("=I", 36) + captured["full"][4:36], 0)):
        outcome = ffi.new("struct np_ipset_outcome *", {"first": SEQ, "commands": 1})
        assert lib.np_ipset_parse_answers(copy(data), len(data), outcome) == 0
        assert (outcome.code, outcome.command, outcome.member, outcome.failures) == (4352, 0, member, 1)


WHOLE = attribute(1, attribute(1, bytes(4))) + attribute(3, b"\30") + attribute(7, b"\6") + attribute(4, b"\0\120")
MISSING = {"address": WHOLE[12:], "length": WHOLE[:12] + WHOLE[20:], "protocol": WHOLE[:20] + WHOLE[28:], "port": WHOLE[:28], "none": WHOLE}


@pytest.mark.parametrize("part", MISSING)
def test_a_member_of_which_a_part_is_missing(part: str) -> None:
    """Nothing is taken for 0 because the kernel left it out."""
    head = bytes(4) + attribute(2, b"s\0") + attribute(3, b"hash:net,port\0") + attribute(5, b"\2")
    data = message(6 << 8 | 7, 0, head + attribute(8, attribute(7, MISSING[part])))
    assert parse_dump(data) == (0 if part == "none" else -errno.EBADMSG)


SET, IPS = bytes(4) + attribute(2, b"s\0"), attribute(3, b"hash:ip\0") + attribute(5, b"\2")
NETS_OF = attribute(3, b"hash:net\0") + attribute(5, b"\2")
FORMS: dict[str, tuple[bytes, int]] = {
    "whole": (SET + IPS + attribute(7, attribute(18, bytes(4))) + attribute(8, attribute(7, WHOLE[:12])), 0),
    "a short flag": (SET + IPS + attribute(7, attribute(8, b"\0")), errno.EBADMSG),
    "a short number": (SET + IPS + attribute(7, attribute(18, b"\0")), errno.EBADMSG),
    "no name": (bytes(4) + IPS, errno.EBADMSG),
    "an empty name": (bytes(4) + attribute(2, b"\0") + IPS, errno.EBADMSG),
    "a name without its end": (bytes(4) + attribute(2, b"sets") + IPS, errno.EBADMSG),
    "a name that ends twice": (bytes(4) + attribute(2, b"s\0t\0") + IPS, errno.EBADMSG),
    "a name that is too long": (bytes(4) + attribute(2, b"s" * 32 + b"\0") + IPS, errno.EBADMSG),
    "an empty address": (SET + IPS + attribute(8, attribute(7, attribute(1, b""))), errno.EBADMSG),
    "an address of IPv6": (SET + IPS + attribute(8, attribute(7, attribute(1, attribute(2, bytes(16))))), errno.EBADMSG),
    "a long address": (SET + IPS + attribute(8, attribute(7, attribute(1, attribute(1, bytes(5))))), errno.EBADMSG),
    "a long length": (SET + NETS_OF + attribute(8, attribute(7, WHOLE[:12] + attribute(3, b"\30\0"))), errno.EBADMSG),
    "no member in a list": (SET + IPS + attribute(8, attribute(6, WHOLE[:12])), errno.EBADMSG),
    "a part of a member in a list": (SET + IPS + attribute(8, attribute(7, b"")), errno.EBADMSG),
}


@pytest.mark.parametrize("parse", [parse_dump, parse_records], ids=["dump", "records"])
@pytest.mark.parametrize(("body", "code"), FORMS.values(), ids=FORMS)
def test_forms_of_a_listing(parse: Callable[[bytes], int], body: bytes, code: int) -> None:
    """Where a part has another length, type or place than the kernel gives it, the whole is refused."""
    assert parse(message(6 << 8 | 7, 0, body)) == -code


@pytest.mark.parametrize(
    ("type", "numbers", "kind"),
    [
        pytest.param(b"hash:ip", b"", b"hash:ip", id="none"),
        pytest.param(b"hash:ip", attribute(8, struct.pack(">I", 0x1F)), b"hash:ip", id="counters and more"),
        pytest.param(b"hash:ip", attribute(8, struct.pack(">I", 0x20)), b"hash:ip forceadd", id="forceadd"),
        pytest.param(b"hash:ip", attribute(6, bytes(4)), b"hash:ip timeout", id="timeout"),
        pytest.param(b"bitmap:ip", attribute(20, b"\30"), b"bitmap:ip netmask", id="netmask"),
        pytest.param(b"hash:ip", attribute(12, attribute(1, bytes(4))), b"hash:ip bitmask", id="bitmask"),
        pytest.param(b"t" * 23, attribute(6, bytes(4)), b"t" * 23 + b" timeout", id="just enough room"),
        pytest.param(b"t" * 24, attribute(6, bytes(4)), b"t" * 24, id="no room"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["behind the type", "before it"])
def test_an_option_is_a_part_of_the_type(type: bytes, numbers: bytes, kind: bytes, late: bool) -> None:
    """One with which a set's members are not those that were added, or do not stay, makes it a type that is not read."""
    parts = [attribute(3, type + b"\0"), attribute(7, attribute(18, bytes(4)) + numbers)]
    data = message(6 << 8 | 7, 0, SET + b"".join(reversed(parts) if late else parts))
    headers = ffi.new("struct np_ipset_header[1]")
    dump = ffi.new("struct np_ipset_dump *", {"headers": headers, "header_room": 1, "seq": SEQ})
    assert lib.np_ipset_parse_dump(copy(data), len(data), dump) == 0
    assert ffi.string(headers[0].type) == kind


ANSWERS: dict[str, tuple[bytes, int]] = {
    "whole": (message(6 << 8 | 1, 0, bytes(4) + attribute(1, b"\7")), 7),
    "no message": (b"", -errno.EBADMSG),
    "half a message": (message(6 << 8 | 1, 0, b"")[:12], -errno.EBADMSG),
    "an answer to something else": (message(6 << 8 | 2, 0, bytes(4) + attribute(1, b"\7")), -errno.EBADMSG),
    "no header": (message(6 << 8 | 1, 0, b""), -errno.EBADMSG),
    "nothing that was asked for": (message(6 << 8 | 1, 0, bytes(4)), -errno.EBADMSG),
    "half an attribute": (message(6 << 8 | 1, 0, bytes(4) + b"\1\0"), -errno.EBADMSG),
    "a long answer": (message(6 << 8 | 1, 0, bytes(4) + attribute(1, b"\7\0")), -errno.EBADMSG),
    "another number": (message(6 << 8 | 1, 0, bytes(4) + attribute(1, b"\7"), SEQ + 1), -errno.EBADMSG),
    "an error": (message(2, 0, struct.pack("=i", -errno.EPERM)), -errno.EPERM),
    "no error": (message(2, 0, bytes(4)), -errno.EBADMSG),
    "half an error": (message(2, 0, b"\0"), -errno.EBADMSG),
}


@pytest.mark.parametrize(("data", "code"), ANSWERS.values(), ids=ANSWERS)
def test_forms_of_an_answer(data: bytes, code: int) -> None:
    """The one answer that was asked for, or an error; never a number that was not there."""
    assert parse_version(data) == code


def test_half_an_error_is_refused() -> None:
    """Where commands are answered, and where a dump ends; and no error is no end of a dump."""
    half = message(2, 0, b"\0")
    assert parse_answers(half) == parse_dump(half) == parse_dump(message(2, 0, bytes(20))) == -errno.EBADMSG


def test_more_sets_than_room() -> None:
    """One more than there is room for is -ENOSPC, and those before it are there."""
    one = message(6 << 8 | 7, 0, SET + IPS)
    assert parse_dump(one * ROOM) == 0
    assert parse_dump(one * (ROOM + 1)) == -errno.ENOSPC


def test_an_error_that_repeats_no_member() -> None:
    """What failed is then not known, and no number is made up."""
    echo = struct.pack("=i", -errno.EEXIST) + bytes(20)
    for more in (b"", attribute(9, b"\0")):
        outcome = ffi.new("struct np_ipset_outcome *", {"first": SEQ, "commands": 1})
        data = message(2, 0, echo + more)
        assert lib.np_ipset_parse_answers(copy(data), len(data), outcome) == 0
        assert (outcome.failures, outcome.code, outcome.command, outcome.member) == (1, errno.EEXIST, 0, 0)


def test_what_stands_behind_the_last_attribute() -> None:
    """A last attribute that nothing fills up to the boundary of 4 ends where its message does."""
    body = bytes(4) + struct.pack("=HHB", 5, 1, 7)
    data = struct.pack("=IHHII", 16 + len(body), 6 << 8 | 1, 0, SEQ, 0) + body
    assert parse_version(data) == 7


@pytest.mark.parametrize("length", [0, 3, 8, 65535])
def test_an_attribute_that_is_longer_than_its_message(length: int) -> None:
    """A length that cannot be is refused, also where the bytes behind the message are there to be read."""
    whole = bytes(4) + attribute(2, b"s\0") + attribute(3, b"hash:ip\0")
    body = whole + struct.pack("=HH", length, 99)
    assert parse_dump(message(6 << 8 | 7, 0, whole) * 2) == 0
    assert parse_dump(message(6 << 8 | 7, 0, body) + message(6 << 8 | 7, 0, body)) == -errno.EBADMSG


@pytest.mark.parametrize("width", [1, 3, 4, 6, 7, 19, 21, 24])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_sort_sorts(width: int, data: st.DataObject) -> None:
    """For every width: the same records, in the order of their bytes."""
    alphabet = st.integers(0, 255) | st.just(0) | st.just(7)
    records = data.draw(st.lists(st.builds(bytes, st.lists(alphabet, min_size=width, max_size=width)), max_size=30))
    block, scratch = copy(b"".join(records)), ffi.new("uint8_t[]", len(records) * width or 1)
    assert lib.np_sort(block, scratch, len(records), width) == 0
    assert bytes(ffi.buffer(block, len(records) * width)) == b"".join(sorted(records))


def test_a_range_has_a_longest() -> None:
    """65,536 contiguous addresses are one entry of a message, one more is another: what an error calls a range was one."""
    room = 1 << 15
    sizes = []
    for count in (2, 65536, 65537):
        members = b"".join(i.to_bytes(4, "big") for i in range(count))
        buffer = ffi.new("uint8_t[]", room)
        native = ffi.new("struct np_ipset *", {"buffer": buffer, "room": room, "fd": -1, "limit": room})
        scratch = ffi.new("uint8_t[]", 2 * len(members))
        assert lib.np_ipset_members(native, 1, lib.NP_IPSET_ADD, b"s", 0, 4, members, len(members), scratch, ffi.NULL) == 0
        sizes.append(int(native.used))
    assert sizes[0] == sizes[1] < sizes[2]


def test_arguments_that_cannot_be() -> None:
    """C refuses what Python would never give it: widths, kinds, families, halves of members, other commands, no room."""
    block = ffi.new("uint8_t[]", 64)
    native = ffi.new("struct np_ipset *", {"buffer": block, "room": 64, "fd": -1, "limit": 64})
    assert [lib.np_sort(block, block, 1, width) for width in (0, 25)] == [-errno.EINVAL] * 2
    assert [lib.np_ipset_width(*pair) for pair in ((4, 4), (-1, 4), (0, 5))] == [-errno.EINVAL] * 3
    assert lib.np_ipset_kind(b"hash:mac") == -errno.EOPNOTSUPP
    assert lib.np_ipset_members(native, 1, lib.NP_IPSET_ADD, b"s", 0, 4, b"abc", 3, ffi.NULL, ffi.NULL) == -errno.EINVAL
    assert lib.np_ipset_members(native, 1, 2, b"s", 0, 4, b"abcd", 4, ffi.NULL, ffi.NULL) == -errno.EINVAL
    assert lib.np_ipset_members(native, 1, lib.NP_IPSET_ADD, b"s", 0, 4, b"abcd", 4, ffi.NULL, ffi.NULL) == -errno.ENOBUFS
    assert lib.np_ipset_members(native, 1, lib.NP_IPSET_ADD, b"s", 0, 4, b"abcd", 4 << 32, ffi.NULL, ffi.NULL) == -errno.EINVAL
    assert lib.np_ipset_create(native, 1, b"s", b"hash:ip", 4, 4, 64, 64, 1) == -errno.ENOBUFS
    assert lib.np_ipset_create_bitmap(native, 1, b"s", 3, b"\n\0\0\0", 24) == -errno.ENOBUFS
    assert lib.np_ipset_destroy(native, 1, b"s") == -errno.ENOBUFS
    assert lib.np_ipset_list(native, 1, b"s", 0) == -errno.ENOBUFS


def test_a_name_that_fits_into_no_message() -> None:
    """It is refused, and nothing of the message is left to be sent."""
    block = ffi.new("uint8_t[]", 1 << 18)
    native = ffi.new("struct np_ipset *", {"buffer": block, "room": 1 << 18, "fd": -1, "limit": 1 << 18})
    name = b"n" * 70000
    assert lib.np_ipset_members(native, 1, lib.NP_IPSET_ADD, name, 0, 4, b"abcdefgh", 8, ffi.NULL, ffi.NULL) == -errno.ENOBUFS
    assert lib.np_ipset_destroy(native, 1, name) == -errno.ENOBUFS
    assert native.used == 0


def test_what_is_no_message_is_not_sent() -> None:
    """A buffer of other bytes than messages is given up before anything of it leaves."""
    block = ffi.new("uint8_t[]", 1 << 16)
    native = ffi.new("struct np_ipset *", {"buffer": block, "room": 1 << 16, "used": 64, "fd": -1, "limit": 1 << 16})
    assert lib.np_ipset_finish(native, ffi.new("struct np_ipset_outcome *", {"first": 1, "commands": 1})) == -errno.EBADMSG
    assert (native.used, native.messages, native.calls) == (0, 0, 0)


@settings(max_examples=25, deadline=None)
@given(st.frozensets(st.integers(0x0A000000, 0x0A000100), max_size=80), st.frozensets(st.integers(0x0A000000, 0x0A000100), max_size=80))
def test_what_goes_in_comes_out(addresses: frozenset[int], more: frozenset[int]) -> None:
    """Any addresses, in any runs, and then networks around them: what is read is what was written."""
    ips = {number.to_bytes(4, "big") for number in addresses}
    nets = {net_member(parse_network(f"{10}.{number & 255}.0.0/16"), number % 3 == 0) for number in more}
    namespace = namespaces.create()
    try:
        with namespaces.entered(namespace), IpsetSocket() as ipset:
            ipset.run([Create("i", "hash:ip", 4), Add("i", "hash:ip", 4, b"".join(ips)), Create("n", "hash:net", 4, b"".join(nets))])
            assert ipset.members("i") == b"".join(sorted(ips))
            assert len(ipset.members("n")) == 6 * len({net[:5] for net in nets})
    finally:
        os.close(namespace)


def test_the_packed_forms_agree() -> None:
    """Python's member forms have the widths that C gives them."""
    address = parse_address("fd00::1")
    assert lib.np_ipset_width(lib.NP_IPSET_NET | lib.NP_IPSET_PORT, 6) == len(net_port_member(parse_network("fd00::/8"), 6, 1))
    assert lib.np_ipset_width(0, 6) == len(address)
