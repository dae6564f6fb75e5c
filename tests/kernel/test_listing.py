"""Entries found in the kernel's own list are those that a dump finds; where the list cannot say, a dump does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.kernel import listing
from netpol.kernel._native import ffi
from netpol.kernel.conntrack import ConntrackSocket
from netpol.model import Address, parse_address
from netpol.rules.flows import SIZE, ZONE_ORIGINAL, Entry, Tuple, unpack
from tests.kernel.test_conntrack import BIT, MADE, OTHERS, WEB, A, B, C, make, many
from tests.referees import run

ROOM = 300
UDP_LINE = (
    b"ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=53 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=53 dport=40000 "
)
NEW = UDP_LINE + b"mark=0 zone=0 use=2\n"
ZONED = UDP_LINE + b"mark=0 zone-reply=7 use=2\n"
KEYED = NEW.replace(b"udp      17", b"gre      47").replace(b"sport=53 dport=40000 mark", b"srckey=0x2 dstkey=0x1 mark")
HERE6, THERE6 = b"fd00:0000:0000:0000:0000:0000:0000:0001", b"fd00:0000:0000:0000:0000:0000:0000:0002"
PINGED = b"ipv6     10 icmpv6   58 29 src=%b dst=%b type=128 code=0 id=9 packets=1 bytes=64 [UNREPLIED] " % (
    HERE6,
    THERE6,
) + b"src=%b dst=%b type=129 code=0 id=9 packets=0 bytes=0 mark=4 secctx=a:b:c use=1\n" % (THERE6, HERE6)
MARKED = UDP_LINE.replace(b"=53 ", b"=54 ") + b"mark=%d zone=0 use=2\n" % (BIT | OTHERS)


@pytest.fixture(autouse=True)
def a_kernel_that_counts_by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else happens in these tables, so that any kernel's list is whole."""
    monkeypatch.setattr(listing, "RELEASE", "6.18.0")


@pytest.fixture
def conntrack(netns: int) -> Iterator[ConntrackSocket]:
    with ConntrackSocket() as opened:
        yield opened


def found(ends: tuple[Address, ...], bits: int = 0, entries: int = 1) -> list[Entry] | None:
    """The entries that the list names, as far as they are meant."""
    keys = asked(ends, bits, entries)
    return None if keys is None else list(unpack(keys))


def asked(ends: tuple[Address, ...], bits: int = 0, entries: int = 1, room: int = ROOM) -> bytes | None:
    """The same, packed; `room` is how many flows C has room for."""
    flows = ffi.new("struct np_ct_flow[]", room)
    four, six = (b"".join(sorted(end for end in ends if len(end) == width)) for width in (4, 16))
    arrays = ffi.from_buffer("uint8_t[]", four), ffi.from_buffer("uint8_t[]", six)
    dump = ffi.new("struct np_ct_dump *", {"flows": flows, "room": room, "ends4": arrays[0], "ends6": arrays[1], "bits": bits})
    dump.count4, dump.count6 = len(four) // 4, len(six) // 16
    said = listing.find(entries, dump)
    assert (dump.count, dump.seen) == (0, 0)
    return said.keys


@pytest.mark.parametrize(("words", "entry"), MADE.values(), ids=MADE)
def test_an_entry_of_each_form(conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], entry: Entry) -> None:
    """Named by its reply's tuple and zone, by which the kernel then gives all of it; by either end, and by a bit of its mark."""
    no_dump(monkeypatch)
    make(*words)
    (named,) = found((entry.original.source,)) or []
    assert (named.protocol, named.reply) == (entry.protocol, entry.reply)
    is_keyed = not entry.flags & ZONE_ORIGINAL
    assert (named.zone, named.flags & ~8) == (entry.zone if is_keyed else 0, entry.flags & ~(ZONE_ORIGINAL | 4))
    assert found((entry.reply.source,)) == [named]
    assert found((), OTHERS) == ([named] if entry.mark else [])
    assert found((parse_address("10.0.0.10"), parse_address("fd00::10"))) == []
    before = conntrack.looked_at
    assert list(unpack(conntrack.flows((entry.reply.source,), entries=1))) == [entry]
    assert (conntrack.looked_at - before, conntrack.wanted) == (1, 1)


def test_one_that_another_program_marked_is_counted_and_not_wanted(conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dump counts it: whoever asks learns whether any entry has the bit."""
    make(*MADE["a mark"][0])
    make(*MADE["ipv6"][0])
    expected = conntrack.flows((), OTHERS)
    no_dump(monkeypatch)
    assert conntrack.flows((C,), 0, None, OTHERS, 2) == b""
    assert (conntrack.counted, conntrack.wanted) == (1, 1)
    assert conntrack.flows((C,), OTHERS, None, OTHERS, 2) == expected
    assert (conntrack.counted, conntrack.wanted) == (2, 2)


def test_a_list_of_many_pages(conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 856 lines is whole, and found in it is what a dump finds; as many as are asked for one by one, in several sends."""
    monkeypatch.setattr(listing, "_SHARE", 1)
    many(600)
    for i in range(listing._WANTED):
        make("-s", f"10.0.1.{i}", "-d", "10.0.0.3", *WEB)
    lines, pages = Path(listing.LIST).read_bytes().count(b"\n"), listing._Reading()
    assert len(pages.whole(listing.LIST)) > 30 * 4096
    assert lines == conntrack.count() == 600 + listing._WANTED
    expected = set(unpack(conntrack.flows((C,))))
    before = conntrack.calls
    no_dump(monkeypatch)
    assert set(unpack(conntrack.flows((C,), entries=lines))) == expected
    assert conntrack.calls - before == 2 * pages.calls + 2 * 4 + listing._WANTED // 64 + listing._WANTED
    assert len(expected) == listing._WANTED


def test_system_calls_are_counted(conntrack: ConntrackSocket) -> None:
    """Four files opened, read to their end and closed; one send, and an answer received for each entry."""
    make(*MADE["udp"][0])
    make(*MADE["icmp"][0])
    before = conntrack.calls
    assert len(conntrack.flows((A,), entries=2)) == 2 * SIZE
    assert conntrack.calls - before == 4 * 4 + 3


def no_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not found by the list, and given by name, is not found at all."""
    monkeypatch.delattr(ConntrackSocket, "_dump")


# -- where only a dump can tell --


def lists(monkeypatch: pytest.MonkeyPatch, *texts: bytes, buckets: tuple[bytes, ...] = (b"1024\n", b"1024\n")) -> None:
    """What the list says at each reading, and how large the table is."""
    said = {listing.LIST: cycle(texts), listing.BUCKETS: cycle(buckets)}
    monkeypatch.setattr(listing._Reading, "whole", lambda _, path: next(said[path]))


def no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "LIST", str(tmp_path / "none"))


def no_buckets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "buckets").write_bytes(b"")
    monkeypatch.setattr(listing, "BUCKETS", str(tmp_path / "buckets"))


def old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "RELEASE", "6.17.12-cloud")


def crowded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "_SHARE", int(Path(listing.BUCKETS).read_text()))


def many_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "_WANTED", 1)


def resized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lists(monkeypatch, NEW, NEW, buckets=(b"1024\n", b"2048\n"))


NOT_SAID: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "no such file": no_file,
    "no size of the table": no_buckets,
    "an old kernel": old,
    "many entries": crowded,
    "many wanted": many_wanted,
    "another size meanwhile": resized,
}


@pytest.mark.parametrize("spoil", NOT_SAID.values(), ids=NOT_SAID)
def test_a_dump_tells_what_the_list_cannot(
    conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: Callable[[pytest.MonkeyPatch, Path], None]
) -> None:
    """Two entries are found in any case."""
    make(*MADE["udp"][0])
    make(*MADE["icmp"][0])
    assert asked((A,), 0, 2) is not None
    spoil(monkeypatch, tmp_path)
    assert asked((A,), 0, 2) is None
    with monkeypatch.context() as patch:
        patch.setattr(listing, "find", lambda *_: listing.Found(None, 0))
        expected = conntrack.flows((A,), entries=2)
    assert conntrack.flows((A,), entries=2) == expected
    assert len(expected) == 2 * SIZE


RELEASES = {
    "6.18.0": True,
    "6.17.9": False,
    "6.18.5-cloud-amd64": True,
    "10.0": True,
    "6.16.9": False,
    "5.19": False,
    "6": False,
    "next": False,
    "": False,
}


@pytest.mark.parametrize(("release", "walks"), RELEASES.items())
def test_releases(release: str, walks: bool) -> None:
    assert listing.walks_well(release) is walks


TORN = {
    "no tuples": b"ipv4     2 udp      17 29\n",
    "one tuple": NEW.replace(b"[UNREPLIED] src=10.0.0.2 ", b""),
    "three tuples": NEW.replace(b"mark", b"src=10.0.0.1 mark"),
    "no destination": NEW.replace(b" dst=10.0.0.1", b""),
    "one port": NEW.replace(b" dport=40000", b""),
    "a port too large": NEW.replace(b" dport=40000", b" dport=70000"),
    "no number": NEW.replace(b"sport=53", b"sport=x"),
    "no address": NEW.replace(b"dst=10.0.0.1", b"dst=10.0.0"),
    "another family": NEW.replace(b"    2 udp", b"    7 udp"),
    "no protocol": NEW.replace(b"ipv4     2 udp      17 29", b"ipv4     2"),
    "no line": b"\n",
    "not a word": b" \n",
    "a zone too large": NEW.replace(b"zone=0", b"zone=65536"),
    "a zone that is none": NEW.replace(b"zone=0", b"zone="),
    "a mark too large": NEW.replace(b"mark=0", b"mark=4294967296"),
    "a protocol too large": NEW.replace(b"udp      17", b"udp      256"),
    "an address too long": NEW.replace(b"dst=10.0.0.1", b"dst=" + b"1" * 60),
    "a digit of another base": NEW.replace(b"sport=53", b"sport=5f"),
    "a key without its base": NEW.replace(b"sport=53 dport=40000 mark", b"srckey=1 dstkey=0x2 mark"),
    "one key": NEW.replace(b"sport=53 dport=40000 mark", b"srckey=0x1 mark"),
    "half of ICMP": NEW.replace(b"sport=53 dport=40000 mark", b"type=8 code=0 mark"),
    "an ICMP type too large": NEW.replace(b"sport=53 dport=40000 mark", b"type=256 code=0 id=1 mark"),
    "a mark that is none": NEW.replace(b"10.0.0.", b"10.9.0.").replace(b"mark=0", b"mark=all"),
}


@pytest.mark.parametrize("line", TORN.values(), ids=TORN)
def test_a_line_of_another_form(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """Whoever cannot read a line does not know what it says, and reads none."""
    lists(monkeypatch, NEW, NEW)
    assert found((A,)) is not None
    for texts in ((line, NEW), (NEW, NEW + line)):
        lists(monkeypatch, *texts)
        assert found((A,)) is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes(data: st.DataObject) -> None:
    """Whatever stands in the list, it is an answer or none, and never an error."""
    line = bytearray(data.draw(st.sampled_from((NEW, MARKED, ZONED, KEYED, PINGED))))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(line) - 1), st.integers(0, 255)), max_size=6)):
        line[place] = byte
    with pytest.MonkeyPatch.context() as patch:
        lists(patch, bytes(line), bytes(line))
        said = asked((A, B), BIT | 4)
    assert said is None or len(said) % SIZE == 0


def test_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a dump can tell then; what is just as many is found."""
    lists(monkeypatch, NEW + MARKED, NEW + MARKED)
    assert len(asked((A,), room=2) or b"") == 2 * SIZE
    assert asked((A,), room=1) is None


def test_a_line_that_ends_behind_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol without numbers, of a kernel that has nothing more to say."""
    line = b"ipv4     2 unknown  89 599 src=10.0.0.1 dst=10.0.0.2 src=10.0.0.2 dst=10.0.0.1"
    lists(monkeypatch, line, line)
    named = found((A,))
    assert named is not None
    assert [(entry.protocol, entry.reply, entry.flags) for entry in named] == [(89, Tuple(B, A), 0)]


def test_words_of_a_label_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A security module's label stands between mark and zone, and may be any words."""
    line = MARKED.replace(b"zone=0", b"secctx=all mark=0 zone=9 zone=7")
    lists(monkeypatch, line, line)
    named = found((), BIT)
    assert named is not None
    assert [entry.zone for entry in named] == [7]


# -- what is left out, or gone --


def test_one_that_was_left_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that either reading has is found, once."""
    lists(monkeypatch, NEW + MARKED, NEW + MARKED)
    both = found((A,), BIT)
    assert both is not None
    assert len(both) == 2
    for texts in ((NEW, NEW + MARKED), (NEW + MARKED, NEW), (NEW, MARKED)):
        lists(monkeypatch, *texts)
        named = found((A,), BIT)
        assert named is not None
        assert sorted(named, key=str) == sorted(both, key=str)


def test_one_that_is_gone_by_then(conntrack: ConntrackSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over, and the others are read."""
    make(*MADE["udp"][0])
    make(*MADE["icmp"][0])
    text = Path(listing.LIST).read_bytes()
    run("conntrack", "-D", "-p", "udp")
    no_dump(monkeypatch)
    lists(monkeypatch, text, text)
    assert list(unpack(conntrack.flows((A,), entries=2))) == [MADE["icmp"][1]]
    lists(monkeypatch, NEW, NEW)
    assert conntrack.flows((A,), entries=1) == b""
