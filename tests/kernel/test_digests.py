"""Digests: the published function, sums that follow changes, and what a kernel's dump is proven by."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.errors import KernelError
from netpol.kernel._native import ffi, lib
from netpol.kernel.digests import content, digest, key
from netpol.kernel.ipset import Create, IpsetSocket, Records, pack
from netpol.kernel.ipset_values import _RECORD
from netpol.model import Family, Network, network
from netpol.rules.sets import SetKind, member_size, net_member, net_port_member, port_member
from tests.referees import run

MASK = (1 << 64) - 1
# SipHash's own vectors for 128 bits (vectors_sip128): key 00..0f, message 00 01 02 ... of that length.
VECTORS = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    2: "8177228da4a45dc7fca38bdef60affe4",
}


def siphash(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4 with 128 bits as its paper has it, written without a look at the C."""
    k0, k1 = (int.from_bytes(key[i : i + 8], "little") for i in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(times: int) -> None:
        for _ in range(times):
            for a, b, c, d, left, right in ((0, 1, 2, 3, 13, 16), (2, 1, 0, 3, 17, 21)):
                v[a], v[c] = (v[a] + v[b]) & MASK, (v[c] + v[d]) & MASK
                v[b], v[d] = rotated(v[b], left) ^ v[a], rotated(v[d], right) ^ v[c]
                v[a] = rotated(v[a], 32)

    padded = data + bytes(-(len(data) + 1) % 8) + bytes((len(data) % 256,))
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        turn(2)
        v[0] ^= word
    found = b""
    for place, mark in ((2, 0xEE), (1, 0xDD)):
        v[place] ^= mark
        turn(4)
        found += (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    return found


def rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & MASK


def native(key: bytes, data: bytes) -> bytes:
    """The C function, on bytes in a block of their own."""
    block, found = ffi.new("uint8_t[]", data or b"\0"), ffi.new("uint64_t[2]")
    lib.np_digest(key, block, len(data), found)
    return b"".join(int(half).to_bytes(8, "little") for half in found)


@pytest.mark.parametrize(("length", "expected"), VECTORS.items())
def test_the_published_vectors(length: int, expected: str) -> None:
    """Both the C and the referee below give what SipHash's authors published."""
    assert native(bytes(range(16)), bytes(range(length))).hex() == expected
    assert siphash(bytes(range(16)), bytes(range(length))).hex() == expected


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=70))
def test_any_key_and_bytes(key: bytes, data: bytes) -> None:
    """The C function is the published one for every key and length."""
    assert native(key, data) == siphash(key, data)


addresses = st.binary(min_size=4, max_size=4)


@given(st.sets(addresses), st.sets(addresses))
def test_sums_follow_changes(first: set[bytes], second: set[bytes]) -> None:
    """In any order, and whether members were there from the beginning or came and went: the content is that of what is there."""
    assert content(pack(sorted(first)), 4) == content(pack(sorted(first, reverse=True)), 4)
    both = content(pack(first | second), 4)
    assert content(pack(first), 4).plus(content(pack(second - first), 4)) == both
    assert both.minus(content(pack(first), 4)) == content(pack(second - first), 4)
    assert (content(pack(first), 4) == content(pack(second), 4)) == (first == second)


def test_a_member_twice_is_not_none(netns: int) -> None:
    """Sums, not differences: what is there twice does not vanish; and a part of a member is refused."""
    one = content(pack([b"abcd"]), 4)
    assert one.plus(one).sums != content(pack([]), 4).sums != one.sums
    with pytest.raises(ValueError, match="5 bytes are no whole number of members of 4"):
        content(pack([b"abcde"]), 4)
    assert lib.np_digest_members(key(), b"", 0, 0, ffi.new("uint64_t[2]")) == -errno.EINVAL


def test_a_digest_of_bytes_has_every_byte_in_it() -> None:
    """One bit anywhere makes another digest."""
    data = bytearray(100)
    seen = {digest(ffi.from_buffer("uint8_t[]", data), 100)}
    for place in range(100):
        data[place] ^= 1
        seen.add(digest(ffi.from_buffer("uint8_t[]", data), 100))
        data[place] ^= 1
    assert len(seen) == 101


# -- the kernel's --


def six(number: int) -> bytes:
    return b"\xfd" + bytes(13) + number.to_bytes(2, "big")


def net(family: Family, number: int) -> Network:
    address = (0x0A000000 + (number << 8)).to_bytes(4, "big") if family == 4 else b"\xfd" + bytes(5) + number.to_bytes(2, "big") + bytes(8)
    return network(address, 24 if family == 4 else 64)


def members(kind: SetKind, family: Family, count: int) -> list[bytes]:
    plain = [(0x0A000000 + i).to_bytes(4, "big") if family == 4 else six(i) for i in range(1, count + 1)]
    if kind == "hash:ip":
        return plain
    if kind == "hash:ip,port":
        return [port_member(address, (6, 17, 132)[i % 3], 1 + i) for i, address in enumerate(plain)]
    if kind == "hash:net":
        return [net_member(net(family, i), nomatch=i % 3 == 0) for i in range(1, count + 1)]
    return [net_port_member(net(family, i), 17, 1 + i, nomatch=i % 3 == 0) for i in range(1, count + 1)]


KINDS: tuple[SetKind, ...] = ("hash:ip", "hash:ip,port", "hash:net", "hash:net,port")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 3000])
def test_what_a_dump_is_proven_by(netns: int, kind: SetKind, family: Family, count: int) -> None:
    """Sets of each type and size, some of which take several messages: the record has the header and the content of the members."""
    wanted = members(kind, family, count)
    other = members(kind, family, 5)
    with IpsetSocket() as ipset:
        ipset.run([Create("NETPOL-a", kind, family, pack(wanted)), Create("mine", kind, family, pack(wanted))])
        ipset.run([Create("NETPOL-b", kind, family, pack(other))])
        assert ipset.names("NETPOL") == ["NETPOL-a", "NETPOL-b"]
        assert ipset.names("") == ["NETPOL-a", "mine", "NETPOL-b"]
        for names in (["NETPOL-a", "NETPOL-b"], ["NETPOL-a", "gone", "NETPOL-b"]):
            first, second = ipset.records(names).decoded()
            assert (first.header.name, second.header.name) == ("NETPOL-a", "NETPOL-b")
            assert first.content == content(pack(wanted), member_size(kind, family))
            assert second.content == content(pack(other), member_size(kind, family))
            assert first.header == ipset.headers()["NETPOL-a"]
        (only,) = ipset.records(["NETPOL-a"], headers_only=True).decoded()
        assert only.header == first.header
        assert only.content.members == 0


def test_many_sets_need_more_room(netns: int) -> None:
    """More sets of ours than there was room for at first: all of them have a record, and nobody else's has."""
    names = [f"NETPOL-{i:03}" for i in range(200)]
    with IpsetSocket() as ipset:
        ipset.run([Create(name, "hash:ip", 4, bytes((10, 0, 0, 1 + i))) for i, name in enumerate(names)])
        run("ipset", "create", "other", "list:set")
        assert ipset.names("NETPOL") == names
        found = list(ipset.records(names).decoded())
        assert [record.header.name for record in found] == names
        assert [record.content for record in found] == [content(pack([bytes((10, 0, 0, 1 + i))]), 4) for i in range(200)]


def test_a_set_of_ours_of_a_type_that_we_do_not_read(netns: int) -> None:
    """It has a header, and no members that could be taken for ours."""
    run("ipset", "create", "NETPOL-x", "bitmap:port", "range", "1-100")
    run("ipset", "add", "NETPOL-x", "80")
    with IpsetSocket() as ipset:
        (record,) = ipset.records(["NETPOL-x"]).decoded()
        assert (record.header.kind, record.header.entries, record.content) == ("bitmap:port", 1, content(pack([]), 4))


def test_errors_of_a_dump_are_the_kernels(netns: int) -> None:
    """A socket that is closed says so, by what was asked of it."""
    ipset = IpsetSocket()
    ipset.close()
    with pytest.raises(KernelError, match="ipset list all sets"):
        ipset.names("NETPOL")
    with pytest.raises(KernelError, match="ipset list NETPOL-x"):
        ipset.records(["NETPOL-x"])


def test_a_record_is_what_c_wrote() -> None:
    """The size that Python unpacks is that of the struct."""
    assert _RECORD.size == ffi.sizeof("struct np_ipset_record")
    assert list(Records(b"").decoded()) == []
