"""Members in the order of the kernel's buckets: ours is the kernel's own, told from how it lists what it holds."""

from __future__ import annotations

import errno
import secrets
from random import Random

import pytest

from netpol.errors import KernelError
from netpol.kernel import release
from netpol.kernel._native import ffi, lib
from netpol.kernel.ipset import Create, IpsetSocket, member_text, unpack
from netpol.model import FAMILIES, Family
from netpol.rules.sets import SetKind, member_size
from tests.referees import run

KINDS: dict[SetKind, int] = {"hash:ip": 0, "hash:net": lib.NP_IPSET_NET, "hash:ip,port": lib.NP_IPSET_PORT}
COUNT, BUCKETS, INITVAL = 3000, 4096, 42


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of every set's hash is INITVAL."""
    monkeypatch.setattr(secrets, "randbelow", lambda below: INITVAL - 1)


def member(kind: SetKind, family: Family, random: Random) -> bytes:
    address = (b"\x0a" if family == 4 else b"\xfd") + random.randbytes(3 if family == 4 else 15)
    if kind == "hash:net":
        short = random.random() < 0.5
        return (address[:-1] + b"\0" if short else address) + bytes((8 * len(address) - 8 * short, 0))
    return address + (bytes((random.choice((6, 17, 132)),)) + random.randbytes(2) if kind == "hash:ip,port" else b"")


def members(kind: SetKind, family: Family) -> bytes:
    random = Random(1)
    return b"".join(sorted({member(kind, family, random) for _ in range(COUNT)}))


def order(kind: SetKind, family: Family, packed: bytes, buckets: int = BUCKETS, initval: int = INITVAL) -> list[int]:
    """The numbers of the members, as C puts them."""
    count = len(packed) // member_size(kind, family)
    room = ffi.new("uint32_t[]", count + buckets)
    native = ffi.new("struct np_buckets *", (room, buckets, initval))
    assert lib.np_buckets_order(native, KINDS[kind], family, packed, len(packed)) == 0
    return list(room[0:count])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_the_kernels(netns: int, kind: SetKind, family: Family) -> None:
    """The kernel lists bucket by bucket, and a bucket's members as they came: what it lists is what was sent, in that order."""
    packed = members(kind, family)
    with IpsetSocket() as ipset:
        ipset.run([Create("s", kind, family, packed)])
        assert ipset.members("s") == packed
    single = list(unpack(packed, member_size(kind, family)))
    numbers = order(kind, family, packed)
    assert sorted(numbers) == list(range(len(single)))
    assert numbers != sorted(numbers)
    whole = f"/{32 if family == 4 else 128}"
    texts = [member_text(kind, family, single[number]).removesuffix(whole) for number in numbers]
    assert run("ipset", "save", "s").splitlines()[1:] == [f"add s {text}" for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_is_in_that_order(kind: SetKind, family: Family) -> None:
    """Member after member, as they lie in the messages."""
    size, address = member_size(kind, family), 4 if family == 4 else 16
    packed = members(kind, family)[: 100 * size]
    buffer, scratch, room = ffi.new("uint8_t[]", 1 << 16), ffi.new("uint8_t[]", 2 * len(packed)), ffi.new("uint32_t[]", 228)
    native = ffi.new("struct np_ipset *", {"buffer": buffer, "room": 1 << 16, "fd": -1, "limit": 1 << 16})
    buckets = ffi.new("struct np_buckets *", (room, 128, INITVAL))
    what = lib.NP_IPSET_ADD, b"s", KINDS[kind], family, packed, len(packed), scratch, buckets
    assert lib.np_ipset_members(native, 1, *what) == 0
    raw, single = bytes(buffer[0 : native.used]), list(unpack(packed, size))
    places = [raw.index(single[number][:address]) for number in order(kind, family, packed, 128)]
    assert places == sorted(places)


def test_every_set_has_a_key_of_its_own(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can choose members that fall into one bucket: two sets that hold the same list it in different orders."""
    monkeypatch.undo()
    packed = members("hash:ip", 4)
    with IpsetSocket() as ipset:
        ipset.run([Create(name, "hash:ip", 4, packed) for name in ("s", "t")])
    first, second = (run("ipset", "save", name).replace(f" {name} ", " ").splitlines()[1:] for name in ("s", "t"))
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(("step", "fewest"), [(1, 0), (2, 40_000)], ids=["runs", "scattered"])
def test_runs_stay_ranges(netns: int, step: int, fewest: int) -> None:
    """Contiguous addresses are one entry of a message, whatever their buckets are."""
    packed = b"".join((0x0A000000 + step * number).to_bytes(4, "big") for number in range(4096))
    with IpsetSocket() as ipset:
        before = ipset.sent[1]
        ipset.run([Create("s", "hash:ip", 4, packed)])
        assert fewest <= ipset.sent[1] - before < (fewest or 1) * 5 + 1000
        assert ipset.members("s") == packed


@pytest.mark.parametrize("kind", ["hash:net", "hash:ip,port"])
def test_an_error_names_the_member(netns: int, kind: SetKind) -> None:
    """Also where it was not sent as it was given: a network of no length; no protocol."""
    single = list(unpack(members(kind, 4), member_size(kind, 4)))
    single[1000] = bytes((11, 0, 0, 0, 0, 0)) if kind == "hash:net" else bytes((11, 0, 0, 0, 0, 0, 80))
    with IpsetSocket() as ipset, pytest.raises(KernelError) as caught:
        ipset.run([Create("s", kind, 4, b"".join(single))])
    assert member_text(kind, 4, single[1000]) in str(caught.value)


def test_buckets_that_cannot_be() -> None:
    """C refuses what Python would never give it: no power of two, parts of members, a type whose elements are laid out otherwise."""
    room = ffi.new("uint32_t[]", 64)

    def code(buckets: int, kind: int, size: int) -> int:
        return int(lib.np_buckets_order(ffi.new("struct np_buckets *", (room, buckets, 1)), kind, 4, bytes(64), size))

    assert [code(buckets, 0, 8) for buckets in (0, 3, 4)] == [-errno.EINVAL, -errno.EINVAL, 0]
    assert [code(4, 0, 7), code(4, 9, 8)] == [-errno.EINVAL] * 2
    assert code(4, lib.NP_IPSET_NET | lib.NP_IPSET_PORT, 9) == -errno.EOPNOTSUPP
    assert order("hash:ip", 6, b"", buckets=1) == []


@pytest.mark.parametrize(("version", "keyed"), [("5.4.0", False), ("5.10.200-1", False), ("5.11.0", True), ("6.18.0", True)])
def test_who_takes_no_key_is_given_none(netns: int, monkeypatch: pytest.MonkeyPatch, version: str, keyed: bool) -> None:
    """Linux 5.5 to 5.10 refuses a set that has one; its members are all there."""
    drawn: list[int] = []
    monkeypatch.setattr(release, "RELEASE", version)
    monkeypatch.setattr(secrets, "randbelow", lambda below: drawn.append(below) or INITVAL - 1)  # type: ignore[func-returns-value]
    members = b"".join((0x0A000000 + 7 * number).to_bytes(4, "big") for number in range(COUNT))
    with IpsetSocket() as ipset:
        ipset.run([Create("NETPOL4-many", "hash:ip", 4, members)])
        assert ipset.read("NETPOL4-many").entries == COUNT
    assert bool(drawn) is keyed
