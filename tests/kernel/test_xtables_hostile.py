"""Laws of the table's bytes: what is encoded decodes to itself, and whatever bytes come, nothing is read or written outside of them.

Read under ASan and UBSan as well: what goes wrong here is a byte too many, which only they see for sure.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel import namespaces
from netpol.kernel._native import ffi, lib
from netpol.kernel.blocks import EncodedChain, SetNumbers
from netpol.kernel.encode import encode_chain, encode_chains, encode_match, encode_target
from netpol.kernel.entries import decode_chain, extensions
from netpol.kernel.matches import decode_match
from netpol.kernel.table import Snapshot, splice
from netpol.kernel.targets import decode_target
from netpol.kernel.xtables import TableSocket, read_ours
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import DROP, ROOT, Chain, Continue, Goto, Jump, Rule, is_ours
from tests.kernel import rule_strategies
from tests.kernel.iptables import restore, table_text

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
SETS = SetNumbers(rule_strategies.SETS)
families = st.sampled_from(FAMILIES)


class Table(NamedTuple):
    """A table of a kernel: the numbers of its info, and its entries."""

    numbers: tuple[int, ...]
    blob: bytes


def copy(data: bytes) -> Any:
    """The bytes in a block of their own with nothing behind them."""
    block = ffi.new("uint8_t[]", len(data))
    ffi.memmove(block, data, len(data))
    return block


def snapshot(family: Family, table: Table) -> Snapshot:
    valid_hooks, *places, entries = table.numbers
    info = ffi.new("struct np_xt_info *", {"valid_hooks": valid_hooks, "num_entries": entries})
    info.hook_entry, info.underflow = places[:5], places[5:]
    return Snapshot(family, "mangle", info, copy(table.blob))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Family, str], Table]:
    """What a kernel hands out: of an empty table, and of one with chains, jumps, matches and counters, ours among theirs."""
    rules = {
        "FORWARD": [f"-j {ROOT}", "-p udp -j THEIRS", "-m limit --limit 3/min"],
        ROOT: ["-m conntrack --ctstate ESTABLISHED -j RETURN", "-j NETPOL-A"],
        "NETPOL-A": ["-p tcp -m multiport --dports 1,2:3 -g THEIRS", "-j NFLOG --nflog-prefix x", ""],
        "THEIRS": ["-m comment --comment theirs -j LOG", "-j DROP"],
    }
    found: dict[tuple[Family, str], Table] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "lock"))
        namespace = namespaces.create()
        try:
            with namespaces.entered(namespace):
                for family in FAMILIES:
                    for name, chains in (("empty", {}), ("full", rules)):
                        restore(family, table_text("mangle", chains))
                        with TableSocket(family) as socket:
                            info, read = socket._info("mangle"), socket.read("mangle")
                        numbers = (info.valid_hooks, *info.hook_entry, *info.underflow, info.num_entries)
                        found[family, name] = Table(numbers, bytes(read.blob))
        finally:
            os.close(namespace)
    return found


def after(family: Family, old: Snapshot, chains: dict[str, EncodedChain], hooked: bool) -> Table:
    """The table with these chains of ours in it, as the kernel would hand it out then."""
    new = splice(old, chains, hooked, is_ours)
    numbers = (old.valid_hooks, *new.table.hook_entry, *new.table.underflow, new.table.entries)
    return Table(numbers, bytes(new.blob))


# -- what goes in comes out --


@FAST
@given(families.flatmap(lambda family: st.tuples(st.just(family), rule_strategies.matches(family))))
def test_a_match_decodes_to_itself(case: tuple[Family, Any]) -> None:
    """decode(encode(match)) is the match, for both families."""
    family, match = case
    assert decode_match(encode_match(match, family, SETS), family, SETS) == match


@FAST
@given(families.flatmap(lambda family: st.tuples(st.just(family), rule_strategies.targets(family))))
def test_a_target_decodes_to_itself(case: tuple[Family, Any]) -> None:
    """decode(encode(target)) is the target; where a jump goes is not in its bytes."""
    family, target = case
    found = decode_target(encode_target(target, family), family)
    if isinstance(target, Jump | Goto | Continue):
        assert found == decode_target(encode_target(Continue(), family), family)
    else:
        assert found == target


@FAST
@given(families.flatmap(lambda family: st.tuples(st.just(family), rule_strategies.rules(family))))
def test_a_rule_decodes_to_itself(case: tuple[Family, Rule]) -> None:
    """decode(encode(rule)) is the rule, in a chain among others."""
    family, rule = case
    chain = Chain("NETPOL-A", (Rule(DROP), rule, Rule(DROP)))
    encoded = encode_chain(chain, family, SETS)
    assert decode_chain("NETPOL-A", encoded.data, family, dict(encoded.jumps), SETS)[:2] == (chain, encoded)
    assert encoded.entries == 5
    assert {name for kind, name, _ in extensions(encoded.data, family) if kind == "match"} == {
        name for kind, name, _ in extensions(encode_chain(Chain("x", (rule,)), family, SETS).data, family) if kind == "match"
    }


@settings(FAST, max_examples=20)
@given(families.flatmap(lambda family: st.tuples(st.just(family), rule_strategies.chains(family))), st.booleans())
def test_chains_come_out_of_a_table(tables: dict[tuple[Family, str], Table], case: tuple[Family, dict[str, Chain]], hooked: bool) -> None:
    """Chains that are put into a table, empty or full, are read from it again, jumps, gotos, hook and all; theirs are still there."""
    family, chains = case
    encoded = {chain.name: chain for chain in encode_chains(chains.values(), family, SETS)}
    for name in ("empty", "full"):
        old = snapshot(family, tables[family, name])
        new = snapshot(family, after(family, old, encoded, hooked))
        found = read_ours(new, SETS)
        assert (found.chains, found.is_hooked) == (chains, hooked)
        assert read_ours(new, SETS, found.known) == found
        back = after(family, new, {}, False)
        # FORWARD's own jump to NETPOL was ours too.
        assert back == after(family, old, {}, False)
        assert [span.name for span in snapshot(family, back).spans] == [span.name for span in old.spans if not is_ours(span.name)]


@pytest.mark.parametrize("name", ["empty", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_put_together_again_is_itself(tables: dict[tuple[Family, str], Table], family: Family, name: str) -> None:
    """link(split(table)) is the table, with all verdicts written anew."""
    old = snapshot(family, tables[family, name])
    chains, jumps = old.chains, old.jumps
    blob, table = copy(tables[family, name].blob), ffi.new("struct np_xt_table *")
    for i in range(old.jump_count):
        ffi.memmove(blob + jumps[i].at, b"\xaa" * 4, 4)
    assert old.jump_count == (0 if name == "empty" else 6)
    assert lib.np_xt_link(blob, old.size, family, chains, len(old.spans), jumps, old.jump_count, table) == 0
    assert bytes(ffi.buffer(blob)) == tables[family, name].blob
    numbers = (table.valid_hooks, *table.hook_entry, *table.underflow, table.entries)
    assert numbers == tables[family, name].numbers


# -- any bytes --


def look(family: Family, table: Table) -> None:
    """All that is ever done with a table that was read; only MalformedKernelData may come of its bytes."""
    try:
        old = snapshot(family, table)
        read_ours(old, SETS)
        for chains, hooked in (({}, False), ({ROOT: encode_chain(Chain(ROOT, ()), family)}, True)):
            new = splice(old, chains, hooked, is_ours)
            new.carry(copy(old.counters), ffi.new("uint8_t[]", new.table.entries * 16))
    except MalformedKernelData:
        pass
    except KernelError as error:
        assert error.code == errno.ENOENT  # noqa: PT017  # a table without FORWARD cannot be hooked


places = st.integers(0, 400).map(lambda n: n * 8) | st.integers(0, 2**32 - 1)
numbers = st.tuples(st.integers(0, 31), *[places] * 10, st.integers(0, 9))


@FAST
@given(families, numbers, st.integers(0, 60).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n)) | st.binary(max_size=300))
def test_any_bytes(family: Family, numbers: tuple[int, ...], data: bytes) -> None:
    """Any bytes at all are either read or refused."""
    look(family, Table(numbers, data))


@pytest.mark.parametrize("name", ["empty", "full"])
@settings(FAST, max_examples=200)
@given(st.data())
def test_what_a_kernel_sent_with_some_bytes_wrong(tables: dict[tuple[Family, str], Table], name: str, data: st.DataObject) -> None:
    """A real table of which bytes or numbers were changed, or a part cut off, is either read or refused."""
    family = data.draw(families)
    table = tables[family, name]
    raw, numbers = bytearray(table.blob), list(table.numbers)
    # Offsets and sizes are where the harm is: half of the changes are to two bytes of an entry's, a match's or a target's.
    places = [at for at in range(0, len(raw), 2) if struct.unpack_from("=H", raw, at)[0]]
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.sampled_from(places) | st.integers(0, len(raw) - 2))
        struct.pack_into("=H", raw, at, data.draw(st.integers(0, 80).map(lambda n: n * 8) | st.integers(0, 65535)))
    for _ in range(data.draw(st.integers(0, 1))):
        numbers[data.draw(st.integers(0, 11))] = data.draw(st.sampled_from(table.numbers) | st.integers(0, 2**32 - 1))
    end = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    look(family, Table(tuple(numbers), bytes(raw[:end])))


names = st.sampled_from(["", "set", "tcp", "hashlimit", "multiport", "NFLOG", "REJECT", "x"])


@FAST
@given(families, st.binary(max_size=200), st.integers(0, 300), names)
def test_any_extension(family: Family, data: bytes, size: int, name: str) -> None:
    """A match or target of any bytes is a value that encodes to the same bytes again, or is refused."""
    right, wrong = (struct.pack("=H29sB", length, name.encode(), size % 5) for length in (32 + len(data), size))
    for raw in (data, right + data, wrong + data):
        with suppress(MalformedKernelData):
            assert encode_match(decode_match(raw, family, SETS), family, SETS) == raw
        with suppress(MalformedKernelData):
            assert encode_target(decode_target(raw, family), family) == raw


@FAST
@given(families, st.binary(max_size=500), st.dictionaries(st.integers(0, 500), st.sampled_from(["", "NETPOL"]), max_size=3))
def test_any_chain(family: Family, data: bytes, jumps: dict[int, str]) -> None:
    """A chain of any bytes is refused, or is one that encodes to them."""
    with suppress(MalformedKernelData):
        found = decode_chain("NETPOL-A", data, family, jumps, SETS)
        assert encode_chain(found.chain, family, SETS).data == data


UNSAID: dict[str, tuple[Rule, int, bytes]] = {
    "a mask with a hole": (Rule(DROP), 8, b"\xff\0\xff\0"),
    "an address without a mask": (Rule(DROP), 0, b"\1\2\3\4"),
    "a mask of an interface": (Rule(DROP, in_interface="eth0"), 48, b"\xff\0"),
    "an unknown flag": (Rule(DROP), 82, b"\4"),
    "an unknown inverse flag": (Rule(DROP), 83, b"\x80"),
    "a cache": (Rule(DROP), 84, b"\1"),
    "another verdict": (Rule(DROP), 144, b"\xf0"),
}


@pytest.mark.parametrize(("rule", "at", "data"), UNSAID.values(), ids=UNSAID)
def test_a_rule_that_we_cannot_say(rule: Rule, at: int, data: bytes) -> None:
    """One byte of a rule that means something else than the rule makes it another rule, or none of ours."""
    encoded = encode_chain(Chain("NETPOL-A", (rule,)), 4)
    raw = bytearray(encoded.data)
    raw[176 + at : 176 + at + len(data)] = data
    with suppress(MalformedKernelData):
        assert decode_chain("NETPOL-A", bytes(raw), 4, {}, SETS).chain.rules != (rule,)


@pytest.mark.parametrize(("at", "byte"), [(0, 1), (150, 65), (-8, 0xFE), (-150, 1)], ids=["head", "name", "policy", "condition of the end"])
def test_a_chain_with_another_frame(at: int, byte: int) -> None:
    """A head with a condition, or an end that is no RETURN, is none of ours."""
    raw = bytearray(encode_chain(Chain("NETPOL-A", (Rule(DROP),)), 4).data)
    raw[at] = byte
    with pytest.raises(MalformedKernelData, match="the chain NETPOL-A asks for something that netpol does not write"):
        decode_chain("NETPOL-A", bytes(raw), 4, {}, SETS)


def test_names_that_two_chains_have(tables: dict[tuple[Family, str], Table]) -> None:
    """Two chains of one name, a user chain called as a built-in one, and one without a name are refused: one of them would be lost."""
    table = tables[4, "full"]
    for name in (b"NETPOL\0A", b"FORWARD\0", b"\0ETPOL-A"):
        raw = table.blob.replace(b"NETPOL-A", name)
        assert raw != table.blob
        with pytest.raises(MalformedKernelData, match="the mangle table of IPv4 has no such form as iptables writes"):
            snapshot(4, Table(table.numbers, raw))


def test_more_entries_than_bytes() -> None:
    """A number of entries that the bytes cannot hold is refused before room is made for them."""
    with pytest.raises(MalformedKernelData, match="more entries than bytes"):
        snapshot(4, Table((0,) * 11 + (1 << 31,), bytes(176)))


def test_arguments_that_cannot_be(tables: dict[tuple[Family, str], Table]) -> None:
    """C refuses what Python would never give it: families, places outside, chains that are not there, too little room."""
    old = snapshot(4, tables[4, "full"])
    table, sizes = ffi.new("struct np_xt_table *"), ffi.new("struct np_xt_sizes *")
    count, where = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    places, jumps, renumber = ffi.new("struct np_xt_chain[9]"), ffi.new("struct np_xt_jump[9]"), ffi.new("int32_t[9]", list(range(9)))
    out = ffi.new("struct np_xt_encoding *", {"family": 5})
    assert lib.np_xt_sizes(5, sizes) == -errno.EINVAL
    assert lib.np_xt_encode(b"\x90", 1, out) == -errno.EINVAL
    assert lib.np_xt_split(old.block.native, old.size, 5, table, places, 9, jumps, 9, count, where) == -errno.EINVAL
    assert lib.np_xt_normalise(old.block.native, old.size, 5, ffi.NULL, 0) == -errno.EINVAL
    assert lib.np_xt_normalise(old.block.native, old.size, 4, ffi.new("uint8_t[16]"), 1) == -errno.ENOBUFS
    assert lib.np_xt_same(old.block.native, old.block.native, old.size, 5) == -errno.EINVAL
    assert lib.np_xt_same(old.block.native, old.block.native, old.size - 8, 4) == -errno.EBADMSG
    assert lib.np_xt_same(ffi.new("uint8_t[111]"), ffi.new("uint8_t[111]"), 111, 4) == -errno.EBADMSG
    assert lib.np_xt_same(ffi.new("uint8_t[112]"), ffi.new("uint8_t[112]"), 112, 4) == -errno.EBADMSG
    valid_hooks, *numbers, entries = tables[4, "full"].numbers
    table.valid_hooks, table.hook_entry, table.underflow, table.entries = valid_hooks, numbers[:5], numbers[5:], entries
    assert lib.np_xt_split(old.block.native, old.size, 4, table, places, 7, jumps, 9, count, where) == -errno.ENOBUFS
    assert lib.np_xt_split(old.block.native, old.size, 4, table, places, 9, jumps, 5, count, where) == -errno.ENOBUFS
    assert lib.np_xt_split(old.block.native, old.size, 4, table, places, 8, jumps, 6, count, where) == 8
    assert lib.np_xt_relocate(jumps, 6, 0, old.size, 0, renumber, 8, jumps, 5) == -errno.ENOBUFS
    assert lib.np_xt_relocate(jumps, 6, 0, old.size, 0, renumber, 2, jumps, 9) == -errno.ENOENT
    renumber[5] = -1
    assert lib.np_xt_relocate(jumps, 6, 0, old.size, 0, renumber, 8, jumps, 9) == -errno.ENOENT
    blob = ffi.new("uint8_t[]", old.size)
    for change, chains in (("at", 8), ("chain", 8), ("", 0)):
        wrong = ffi.new("struct np_xt_jump *", {"at": old.size - 7 if change == "at" else 0, "chain": 9 if change == "chain" else 0})
        assert lib.np_xt_link(blob, old.size, 4, places, chains, wrong, 1, table) == -errno.EINVAL
    assert lib.np_xt_link(blob, 4, 4, places, 0, ffi.new("struct np_xt_jump *", {"chain": -1}), 1, table) == -errno.EINVAL
    assert lib.np_xt_link(blob, old.size, 5, places, 0, jumps, 0, table) == -errno.EINVAL
    places[0].size = old.size + 8
    assert lib.np_xt_link(blob, old.size, 4, places, 1, jumps, 0, table) == -errno.EINVAL
    view = ffi.new("struct np_xt_view *", {"blob": blob, "size": 100, "chains": places, "chain_count": 1, "jumps": jumps, "entries": 9})
    assert lib.np_xt_carry(view, view, renumber, blob, blob, blob) == -errno.EINVAL
    renumber[0] = 5
    assert lib.np_xt_carry(view, view, renumber, blob, blob, blob) == -errno.EINVAL


def test_chains_that_are_not_where_they_say(tables: dict[tuple[Family, str], Table]) -> None:
    """Who uses a set is not looked for outside of the bytes, nor in bytes of another form."""
    old = snapshot(4, tables[4, "full"])
    places, sets, users = ffi.new("struct np_xt_chain[1]"), ffi.new("uint8_t[8192]"), ffi.new("uint8_t[1]")

    def asked(offset: int, size: int, family: int = 4) -> int:
        places[0].offset, places[0].size = offset, size
        return int(lib.np_xt_users(old.block.native, old.size, family, places, 1, sets, users))

    assert asked(0, old.size) == 0
    assert asked(0, 0, 5) == -errno.EINVAL
    assert [asked(*place) for place in ((old.size + 8, 0), (8, old.size), (8, 0xFFFFFFFF))] == [-errno.EINVAL] * 3
    assert [asked(*place) for place in ((8, 8), (0, 104))] == [-errno.EBADMSG] * 2


def test_a_chain_that_jumps_to_none_of_its_table() -> None:
    """Such a chain is no other table's chain: no counters are carried over, and it is done only if it counted nothing."""
    blob, counters, done = ffi.new("uint8_t[]", 304), ffi.new("uint8_t[]", 64), ffi.new("uint8_t[1]")
    counters[31] = 1
    chains = ffi.new("struct np_xt_chain[1]", [{"hook": -1, "size": 304, "entries": 2}])
    jumps = ffi.new("struct np_xt_jump[1]", [{"at": 144, "chain": 1}])
    known = {"blob": blob, "size": 304, "chains": chains, "chain_count": 1, "jumps": jumps, "jump_count": 1, "entries": 2}
    view, renumber = ffi.new("struct np_xt_view *", known), ffi.new("int32_t[2]", [0, 0])
    carried = ffi.new("uint8_t[]", 64)
    assert lib.np_xt_carry(view, view, renumber, counters, carried, done) == 0
    assert (done[0], bytes(carried)) == (0, bytes(64))
    counters[31], counters[32] = 0, 1  # behind the chain's own
    assert lib.np_xt_carry(view, view, renumber, counters, carried, done) == 1
    assert (done[0], bytes(carried)) == (1, bytes(64))
    counters[0], jumps[0].chain = 1, -1
    assert lib.np_xt_carry(view, view, renumber, counters, carried, done) == 1
    assert bytes(carried) == b"\1" + bytes(63)
