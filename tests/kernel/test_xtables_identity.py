"""What we hand to the kernel, held against what iptables-restore hands to it for the same rules, byte for byte."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from netpol.kernel import namespaces
from netpol.kernel._native import lib
from netpol.kernel.blocks import SetNumbers
from netpol.kernel.encode import Output, encode_chain, encode_chains
from netpol.kernel.entries import ENTRY, used_sets
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.table import splice
from netpol.kernel.xtables import TableSocket, read_ours
from netpol.model import FAMILIES, Family, Object
from netpol.rules.compile import Settings, compiled
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    RETURN,
    ROOT,
    Addrtype,
    Chain,
    Connmark,
    Conntrack,
    Continue,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Match,
    Multiport,
    Nflog,
    Opaque,
    Rule,
    Sctp,
    SetMatch,
    TableName,
    Tcp,
    Udp,
    is_ours,
)
from netpol.rules.text import ipset_save, iptables_save
from tests import clusters
from tests.kernel.iptables import Replace, captured, restore, saved, table_text
from tests.kernel.rule_cases import CASES, EVERY, OTHER, SETS, chain_name
from tests.referees import run


class Theirs(NamedTuple):
    """One table with a chain for each case, as iptables wrote it and as the kernel then hands it out."""

    replace: Replace
    sets: SetNumbers
    lines: list[str]
    blob: bytes
    chains: dict[str, Chain]


def make_sets(family: Family) -> SetNumbers:
    lines = [f"create {name} {kind} family {'inet' if family == 4 else 'inet6'}" for name, kind in SETS.items()]
    run("ipset", "restore", input="\n".join(lines) + "\n")
    with IpsetSocket() as ipset:
        return SetNumbers({name: header.index for name, header in ipset.headers().items()})


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Theirs]:
    """All cases of a family, loaded by iptables-restore into the filter table of a namespace of their own."""
    path = tmp_path_factory.mktemp("theirs")
    found: dict[Family, Theirs] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(path / "lock"))
        for family in FAMILIES:
            chains = {OTHER: [""]} | {chain_name(name): [forms[family][1]] for name, forms in CASES.items() if family in forms}
            namespace = namespaces.create()
            try:
                with namespaces.entered(namespace):
                    sets = make_sets(family)
                    replace = captured(family, table_text("filter", chains), path / "log")
                    with TableSocket(family) as socket:
                        snapshot = socket.read("filter")
                        values = read_ours(snapshot, sets).chains
                    found[family] = Theirs(replace, sets, saved(family, "filter"), bytes(snapshot.blob), values)
            finally:
                os.close(namespace)
    return found


def pieces(replace: Replace, family: Family) -> dict[str, bytes]:
    """The user chains in a blob that was captured, by name: cut at the ERROR entries."""
    offsets_at = 88 if family == 4 else 140
    found: dict[str, bytes] = {}
    at = start = 0
    name = ""
    while at < len(replace.blob):
        target, size = struct.unpack_from("=HH", replace.blob, at + offsets_at)
        if replace.blob[at + target + 2 : at + target + 8] == b"ERROR\0":
            found[name] = replace.blob[start:at]
            start, name = at, replace.blob[at + target + 32 :][:30].partition(b"\0")[0].decode()
        at += size
    return found


@pytest.mark.parametrize(("family", "name"), EVERY, ids=lambda value: str(value))
def test_a_rule_is_the_bytes_that_iptables_writes(theirs: dict[Family, Theirs], family: Family, name: str) -> None:
    """The chain of a case is byte for byte iptables' own, but for the place of its jump."""
    encoded = encode_chain(Chain(chain_name(name), (CASES[name][family][0],)), family, theirs[family].sets)
    expected = bytearray(pieces(theirs[family].replace, family)[chain_name(name)])
    for at, to in encoded.jumps:
        assert to in (OTHER, "")
        assert expected[at : at + 4] != bytes(4)
        expected[at : at + 4] = bytes(4)
    assert encoded.data.hex(" ", 8) == bytes(expected).hex(" ", 8)
    assert encoded.entries == 3


@pytest.mark.parametrize(("family", "name"), EVERY, ids=lambda value: str(value))
def test_a_rule_that_iptables_wrote_is_read_as_our_value(theirs: dict[Family, Theirs], family: Family, name: str) -> None:
    """What the kernel hands out of iptables' rule decodes to the very value."""
    assert theirs[family].chains[chain_name(name)].rules == (CASES[name][family][0],)


@pytest.mark.parametrize("family", FAMILIES)
def test_iptables_save_shows_what_we_wrote(theirs: dict[Family, Theirs], netns: int, family: Family) -> None:
    """All cases together, written by us: `iptables-save` prints what it prints of iptables' own, and the kernel holds the same bytes."""
    chains = [Chain(chain_name(name), (forms[family][0],)) for name, forms in CASES.items() if family in forms]
    sets = make_sets(family)
    encoded = {chain.name: chain for chain in encode_chains([Chain(OTHER, (Rule(Continue()),)), *chains], family, sets)}
    with TableSocket(family) as socket:
        assert socket.change("filter", encoded, False)
        assert saved(family, "filter") == theirs[family].lines
        assert bytes(socket.read("filter").blob) == theirs[family].blob


A, B, LONG = "NETPOL-A", "NETPOL-B", "NETPOL-" + "x" * 21

# name -> (chains of ours, their text, text of foreign chains)
TABLES: dict[str, tuple[dict[str, tuple[Rule, ...]], dict[str, list[str]], dict[str, list[str]]]] = {
    "nothing": ({}, {}, {}),
    "an empty chain": ({A: ()}, {A: []}, {}),
    "jumps": (
        {A: (Rule(Jump(B)), Rule(Goto(LONG)), Rule(Continue()), Rule(Jump(LONG))), B: (Rule(ACCEPT),), LONG: (Rule(Jump(B)), Rule(DROP))},
        {A: [f"-j {B}", f"-g {LONG}", "", f"-j {LONG}"], B: ["-j ACCEPT"], LONG: [f"-j {B}", "-j DROP"]},
        {},
    ),
    "among foreign chains": (
        {A: (Rule(Jump(B)),), B: (Rule(RETURN),)},
        {A: [f"-j {B}"], B: ["-j RETURN"]},
        {
            "KUBE-FORWARD": ["-p tcp -m tcp --dport 80 -j Z-LAST", "-m mark --mark 1 -j ACCEPT"],
            "Z-LAST": ["-j LOG", ""],
            "NETPOK": [],
            "NETPOLX": ["-j RETURN"],
            "FORWARD": ["-j KUBE-FORWARD", "-g Z-LAST", "-d 192.0.2.1 -j DROP"],
            "INPUT": ["-m comment --comment hello -j KUBE-FORWARD"],
        },
    ),
}


@pytest.mark.parametrize("hooked", [False, True], ids=["free", "hooked"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("table", ["mangle", "filter"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_bytes_that_iptables_writes(
    netns: int, tmp_path: Path, name: str, table: TableName, family: Family, hooked: bool
) -> None:
    """Header, order of chains, places of jumps: the whole request is the one that iptables makes for foreign rules and ours together."""
    values, text, foreign = TABLES[name]
    if family == 6:
        foreign = {chain: [rule.replace("192.0.2.1", "2001:db8::1") for rule in rules] for chain, rules in foreign.items()}
    if hooked:
        values, text = values | {ROOT: (Rule(RETURN),)}, text | {ROOT: ["-j RETURN"]}
    whole = foreign | text
    if hooked:
        whole["FORWARD"] = [f"-j {ROOT}", *foreign.get("FORWARD", [])]
    expected = captured(family, table_text(table, whole, {"FORWARD": "DROP"}), tmp_path / "log")
    with TableSocket(family) as socket:
        kernels = bytes(socket.read(table).blob)
        restore(family, table_text(table, foreign, {"FORWARD": "DROP"}))
        chains = {name: encode_chain(Chain(name, rules), family) for name, rules in values.items()}
        old = socket.read(table)
        ours = splice(old, chains, hooked, is_ours)
        assert bytes(ours.blob).hex(" ", 8) == expected.blob.hex(" ", 8)
        assert [old.valid_hooks, ours.table.entries] == [expected.valid_hooks, expected.entries]
        assert tuple(ours.table.hook_entry) == expected.hook_entry
        assert tuple(ours.table.underflow) == expected.underflow
        assert socket.change(table, chains, hooked) == bool(values)
        assert bytes(socket.read(table).blob) == kernels


@pytest.mark.usefixtures("netns")
@settings(max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(clusters.clusters())
def test_a_node_is_the_bytes_that_iptables_writes(tmp_path_factory: pytest.TempPathFactory, items: tuple[Object, ...]) -> None:
    """For the rules of random clusters, what we hand to the kernel is what iptables-restore hands to it for their text."""
    ruleset = compiled(clusters.build(items), clusters.NODE, Settings(log_group=5))
    log = tmp_path_factory.mktemp("log") / "log"
    run("ipset", "restore", input=ipset_save(ruleset))
    with IpsetSocket() as ipset:
        sets = SetNumbers({name: header.index for name, header in ipset.headers().items()})
    for family in FAMILIES:
        restore(family, "*mangle\nCOMMIT\n")
        with TableSocket(family) as socket:
            old = socket.read("mangle")
        chains = encode_chains(ruleset.chains[family].values(), family, sets)
        ours = splice(old, {chain.name: chain for chain in chains}, family in ruleset.hooked, is_ours)
        expected = captured(family, iptables_save(ruleset, family), log)
        assert bytes(ours.blob).hex(" ", 8) == expected.blob.hex(" ", 8)
        restore(family, "*mangle\nCOMMIT\n")
    run("ipset", "destroy")


def test_many_chains_are_encoded_as_each_by_itself() -> None:
    """However chains are batched and however long they are, each is the bytes that it is alone, and has its own jumps and sets."""
    sets = SetNumbers({"one": 1, "two": 2})
    rules = (Rule(Jump("A")), Rule(Continue(), (SetMatch("two", ("src",)),)), Rule(Goto("B"), (SetMatch("one", ("src",)),)))
    chains = [Chain(f"NETPOL-{n}", rules * (n % 7) * (100 if n == 50 else 1)) for n in range(120)]
    together = encode_chains(iter(chains), 4, sets)
    assert together == [encode_chain(chain, 4, sets) for chain in chains]
    assert {used_sets(chain) for chain in together} == {(), ("two", "one")}
    assert [to for _, to in together[1].jumps] == ["A", "", "B"]
    assert encode_chains((), 4) == []


def test_rules_that_repeat_each_other_are_encoded_as_each_by_itself() -> None:
    """C copies what an earlier rule had in the same place: with all of it, a part or its beginning, each comes out as it does alone."""
    ports = [Multiport(tuple((port, port) for port in range(1, 1 + count))) for count in (1, 2, 15)]
    matches: list[Match] = [Tcp(), Tcp(destination=(1, 2)), Udp(), *ports, SetMatch("one", ("src",)), SetMatch("two", ("src",))]
    matches += [Opaque("comment", 0, bytes(size)) for size in (8, 16, 256)]
    targets = (RETURN, DROP, Jump("A"), Jump("AB"), Goto("A"), Continue(), Nflog(1), Nflog(1, "a"), RETURN)
    rules = [
        Rule(targets[n // 3 % len(targets)], tuple(matches[(n // 2 * i + n % 2) % len(matches)] for i in range(n % 7))) for n in range(500)
    ]
    sets = SetNumbers({"one": 1, "two": 2})
    for family in FAMILIES:
        together, alone = encode_chain(Chain("A", rules), family, sets), [encode_chain(Chain("A", (rule,)), family, sets) for rule in rules]
        empty = encode_chain(Chain("A", ()), family).data
        tail = ENTRY[family] + 40
        head = len(empty) - tail
        assert together.data == empty[:head] + b"".join(chain.data[head:-tail] for chain in alone) + empty[head:]
        assert [to for _, to in together.jumps] == [to for chain in alone for _, to in chain.jumps]


def test_each_chain_notes_a_set_that_the_chain_before_used_last() -> None:
    """A match that repeats the one in the chain before is still a use of its set."""
    rule = Rule(RETURN, (SetMatch("one", ("src",)),))
    chains = encode_chains([Chain("A", (rule, rule)), Chain("B", (rule,))], 4, SetNumbers({"one": 1}))
    assert [used_sets(chain) for chain in chains] == [("one",)] * 2


def test_a_rule_larger_than_the_room_it_is_given_first() -> None:
    """Rules of many long matches make C ask for more room, as often as it takes."""
    match = Opaque("comment", 0, bytes(256))
    chain = encode_chain(Chain("NETPOL-A", (Rule(RETURN, (match,) * 200),) * 3), 4)
    assert len(chain.data) == 176 + 3 * (112 + 200 * 288 + 40) + 152


def test_a_field_that_is_left_out_has_its_default() -> None:
    """C knows the defaults of our classes: what msgspec would leave out of a value with `omit_defaults` comes out the same."""
    values: list[Match] = [
        Conntrack(()),
        Connmark(1),
        Tcp(),
        Udp(),
        Sctp(),
        Multiport(((1, 1),)),
        Addrtype(),
        Hashlimit("h", 1, 1),
        Icmp(1),
    ]
    values.append(SetMatch("s", ("src",)))
    sets = SetNumbers({"s": 0})
    for value in values:
        required = {field.name for field in msgspec.structs.fields(value) if field.required}
        fields = {"kind": type(value).__name__} | {name: getattr(value, name) for name in sorted(required)}
        rule = {"target": {"kind": "Nflog", "group": 1}, "matches": [fields]}
        packed = msgspec.msgpack.encode([["NETPOL-A", msgspec.msgpack.encode([rule])]])
        output = Output(lib.np_xt_encode, packed, 4, sets, 1, 1)
        assert output.code == 0, value
        assert output.data() == encode_chain(Chain("NETPOL-A", (Rule(Nflog(1), (value,)),)), 4, sets).data
