"""ipBlocks as prefixes of a hash:net set: the same addresses as the blocks say, in the least number of prefixes, never a /0."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.model import FAMILIES, Family, IPBlock, Network, network, parse_address, parse_network
from netpol.rules.compile.prefixes import Prefixes, prefixes, union, whole
from netpol.rules.compile.ranges import Range
from netpol.rules.compile.selections import covers
from tests import clusters


def block(cidr: str, *excepts: str) -> IPBlock:
    return IPBlock(parse_network(cidr), tuple(parse_network(text) for text in excepts))


def text(found: Prefixes) -> list[str]:
    return [f"{net}{' nomatch' if nomatch else ''}" for net, nomatch in found]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([block("10.0.0.0/8")], ["10.0.0.0/8"], id="one"),
        pytest.param([block("10.0.0.0/8"), block("10.1.0.0/16")], ["10.0.0.0/8"], id="one inside another"),
        pytest.param([block("10.0.0.0/9"), block("10.128.0.0/9")], ["10.0.0.0/8"], id="two halves"),
        pytest.param([block("10.0.0.0/8", "10.1.0.0/16")], ["10.0.0.0/8", "10.1.0.0/16 nomatch"], id="an except"),
        pytest.param([block("10.0.0.0/8", "10.1.0.0/16"), block("10.1.0.0/16")], ["10.0.0.0/8"], id="another block fills the hole"),
        pytest.param(
            [block("10.0.0.0/8", "10.1.0.0/16"), block("10.1.2.0/24")],
            ["10.0.0.0/8", "10.1.0.0/16 nomatch", "10.1.2.0/24"],
            id="another block fills part of it",
        ),
        pytest.param([block("10.0.0.0/31", "10.0.0.0/32", "10.0.0.1/32")], [], id="excepts that leave nothing"),
        pytest.param([block("10.0.0.0/8", "10.0.0.0/9")], ["10.128.0.0/9"], id="an except of half"),
        pytest.param([block("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24")], ["10.0.0.0/8", "10.1.0.0/16 nomatch"], id="excepts that overlap"),
        pytest.param([block("0.0.0.0/0")], ["0.0.0.0/1", "128.0.0.0/1"], id="everything is two halves"),
        pytest.param([block("0.0.0.0/0", "10.0.0.0/8")], ["0.0.0.0/1", "10.0.0.0/8 nomatch", "128.0.0.0/1"], id="everything but"),
        pytest.param([block("fd00::/8")], [], id="of the other family"),
    ],
)
def test_by_hand(blocks: list[IPBlock], expected: list[str]) -> None:
    """The lists that one would write oneself."""
    assert text(prefixes(union(blocks, 4), 4)) == expected


def test_ipv6_by_hand() -> None:
    """128 bits are no different."""
    blocks = [block("::/0", "fd00::/8"), block("fd00::1/128"), block("10.0.0.0/8")]
    assert text(prefixes(union(blocks, 6), 6)) == ["::/1", "8000::/1", "fd00::/8 nomatch", "fd00::1/128"]


def test_ranges_are_merged() -> None:
    """Sorted, and neither overlapping nor touching."""
    base = int.from_bytes(parse_address("10.0.0.0"), "big")
    blocks = [block("10.0.0.4/30"), block("10.0.0.0/30"), block("10.0.0.12/30", "10.0.0.13/32"), block("10.0.0.0/31")]
    assert union(blocks, 4) == ((base, base + 7), (base + 12, base + 12), (base + 14, base + 15))
    assert union([block("10.0.0.0/30", "10.0.0.0/31")], 4) == ((base + 2, base + 3),)
    assert union([block("10.0.0.0/30", "10.0.0.2/31")], 4) == ((base, base + 1),)


def in_any(blocks: list[IPBlock], address: bytes) -> bool:
    """As the documentation has it: an except belongs to its own block."""
    return any(address in one.cidr and not any(address in inner for inner in one.excepts) for one in blocks)


@st.composite
def close_blocks(draw: st.DrawFn, edge: str) -> IPBlock:
    """A block inside a range of 16 addresses, or around it, with excepts anywhere in it."""
    base = parse_address(edge)
    width = len(base) * 8

    def inside(longer_than: int) -> Network:
        value = int.from_bytes(base, "big") + draw(st.integers(0, 15))
        return network(value.to_bytes(width // 8, "big"), draw(st.integers(longer_than, width)))

    cidr = inside(width - 6)
    excepts = {inside(cidr.length) for _ in range(draw(st.integers(0, 3)))}
    return IPBlock(cidr, tuple(sorted(inner for inner in excepts if inner.length > cidr.length and inner.address in cidr)))


@pytest.mark.parametrize("edge", ["0.0.0.0", "10.0.0.16", "127.255.255.240", "255.255.255.240", "::", "fd00::ff80"])
@given(data=st.data())
def test_every_address_is_as_the_blocks_say(edge: str, data: st.DataObject) -> None:
    """Asked of the range, of 64 addresses beside it and of both ends of the family: the longest prefix says what the blocks say."""
    blocks = data.draw(st.lists(close_blocks(edge), max_size=4))
    family: Family = 6 if ":" in edge else 4
    found = prefixes(union(blocks, family), family)
    start, (_, last) = int.from_bytes(parse_address(edge), "big"), whole(family)
    numbers = {number for number in range(start - 64, start + 80) if 0 <= number <= last} | {0, last}
    for number in numbers:
        address = number.to_bytes(4 if family == 4 else 16, "big")
        assert covers(found, address) == in_any(blocks, address), address.hex()


@given(st.lists(clusters.blocks(), max_size=6), st.sampled_from(FAMILIES))
def test_what_a_set_can_hold(blocks: list[IPBlock], family: Family) -> None:
    """Never a /0, no prefix twice, none without a use: taking one away changes what is matched."""
    found = prefixes(union(blocks, family), family)
    assert all(1 <= net.length <= len(net.address) * 8 and net.family == family for net, _ in found)
    assert len({net for net, _ in found}) == len(found)
    assert found == prefixes(union(blocks[::-1] + blocks, family), family)
    probes = [net.address for net, _ in found] + [net.address for one in blocks for net in one.excepts if net.family == family]
    for address in probes:
        assert covers(found, address) == in_any(blocks, address)


def fewest(length: int) -> dict[int, int]:
    """Over 8 neighbouring prefixes of that length: for each choice of them (a bit mask) the least number of prefixes that says it.

    By trying all lists of up to four prefixes that are at most three bits shorter, but no /0, each match or nomatch.
    """
    candidates: list[tuple[int, int, bool]] = []  # first of the eight, how many, nomatch
    for size in (1, 2, 4, 8):
        if length - size.bit_length() + 1 > 0:
            candidates += [(first, size, nomatch) for first in range(0, 8, size) for nomatch in (False, True)]
    found = {0: 0}
    for count in range(1, 5):
        for chosen in combinations(candidates, count):
            mask = 0
            for place in range(8):
                best = min(((size, nomatch) for first, size, nomatch in chosen if first <= place < first + size), default=(0, True))
                mask |= (not best[1]) << place
            found.setdefault(mask, count)
    return found


@pytest.mark.parametrize(("length", "base"), [pytest.param(32, 0x0A000008, id="addresses"), pytest.param(3, 0, id="eighths of everything")])
def test_no_list_is_shorter(length: int, base: int) -> None:
    """All 256 ways to choose among eight neighbours, against a search through all lists."""
    best = fewest(length)
    size = 1 << (32 - length)
    for mask, places in ((mask, [place for place in range(8) if mask >> place & 1]) for mask in range(256)):
        ranges: list[Range] = []
        for place in places:
            low = base + place * size
            if ranges and ranges[-1][1] == low - 1:
                ranges[-1] = (ranges[-1][0], low + size - 1)
            else:
                ranges.append((low, low + size - 1))
        assert len(prefixes(tuple(ranges), 4)) == best[mask], bin(mask)


@pytest.mark.parametrize(("first", "last"), list(product((0, 1), (0, 1))))
def test_the_ends_of_a_family(first: int, last: int) -> None:
    """A range that begins with the first address or ends with the last one is no special case."""
    for family in FAMILIES:
        _, end = whole(family)
        found = prefixes(((first, end - last),), family)
        size = 4 if family == 4 else 16
        for number, expected in ((0, not first), (1, True), (end - 1, True), (end, not last)):
            assert covers(found, number.to_bytes(size, "big")) == expected
