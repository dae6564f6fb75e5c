"""Laws of the packed rules that C reads: whatever the bytes are, they are encoded or refused, and nothing outside of them is touched."""

from __future__ import annotations

import errno
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.kernel._native import ffi, lib
from netpol.kernel.encode import pack_chains
from netpol.rules.ruleset import Chain, Continue, Goto, Jump, Match, Rule
from tests.kernel import rule_strategies
from tests.kernel.test_xtables_hostile import FAST, SETS, copy


def encode(data: bytes, function: Any = lib.np_xt_encode, room: int = 400) -> int:
    """Encodes with little room, and checks that nothing was written behind it."""
    guard = bytes([0xA5]) * 64
    block = ffi.new("uint8_t[]", room + 64)
    ffi.memmove(block + room, guard, 64)
    places, jumps, targets = ffi.new("struct np_xt_chain[2]"), ffi.new("struct np_xt_jump[2]"), ffi.new("char[]", 2 * lib.NP_XT_NAME)
    arrays = {"data": block, "chains": places, "jumps": jumps, "targets": targets, "sets": SETS.native, "set_count": len(SETS.pairs)}
    rooms = {"data_room": room, "chain_room": 2, "jump_room": 2, "family": 4}
    out = ffi.new("struct np_xt_encoding *", {**arrays, **rooms})
    code = int(function(copy(data), len(data), out))
    assert code in (0, -errno.ENOBUFS, -errno.ENOENT, -errno.ERANGE, -errno.EPROTO)
    assert bytes(ffi.buffer(block + room, 64)) == guard
    assert out.data_size <= room
    assert out.field + out.field_size <= len(data)
    return code


ENCODERS = {"chains": lib.np_xt_encode, "match": lib.np_xt_encode_match, "target": lib.np_xt_encode_target}


@pytest.mark.parametrize("function", ENCODERS.values(), ids=ENCODERS)
@FAST
@given(st.binary(max_size=100))
def test_any_packed_bytes(function: Any, data: bytes) -> None:
    """Whatever comes instead of packed rules is refused, and nothing is read or written outside."""
    encode(data, function)


@pytest.mark.parametrize("part", ENCODERS)
@settings(FAST, max_examples=50)
@given(st.data())
def test_packed_rules_with_some_bytes_wrong(part: str, data: st.DataObject) -> None:
    """Packed rules of which bytes were changed or cut off are taken or refused, and so are right ones with too little room."""
    if part == "chains":
        raw = bytearray(pack_chains([Chain("NETPOL-A", data.draw(st.lists(rule_strategies.rules(4), max_size=2)))]))
    else:
        value: Any = data.draw(rule_strategies.matches(4) if part == "match" else rule_strategies.targets(4))
        raw = bytearray(msgspec.msgpack.encode(value))
    assert encode(bytes(raw), ENCODERS[part], data.draw(st.integers(0, 2000))) in (0, -errno.ENOBUFS)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=3)):
        raw[at] = byte
    encode(bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]), ENCODERS[part])


FULL: dict[str, tuple[Chain, ...]] = {
    "chains": tuple(Chain(name, ()) for name in ("NETPOL-A", "NETPOL-B", "NETPOL-C")),
    "jumps": (Chain("NETPOL-A", (Rule(Jump("X")), Rule(Continue()), Rule(Goto("Y")))),),
}


@pytest.mark.parametrize("part", FULL)
def test_too_little_room(part: str) -> None:
    """Where there is room for two and three come, C says so and has written two."""
    packed = pack_chains(FULL[part])
    arrays = {"chains": ffi.new("struct np_xt_chain[3]"), "jumps": ffi.new("struct np_xt_jump[3]")}
    rooms = {"chain_room": 3, "jump_room": 3, "data_room": 4000, "family": 4}
    data, targets = ffi.new("uint8_t[4000]"), ffi.new("char[]", 3 * lib.NP_XT_NAME)
    out = ffi.new("struct np_xt_encoding *", {**arrays, **rooms, "data": data, "targets": targets})
    assert lib.np_xt_encode(packed, len(packed), out) == 0
    setattr(out, f"{part[:-1]}_room", 2)
    ffi.memmove(arrays[part] + 2, bytes(ffi.sizeof(arrays[part][0])), ffi.sizeof(arrays[part][0]))
    assert lib.np_xt_encode(packed, len(packed), out) == -errno.ENOBUFS
    assert getattr(out, f"{part[:-1]}_count") == 2
    assert not any(bytes(ffi.buffer(arrays[part] + 2, ffi.sizeof(arrays[part][0]))))


CONTINUE = {"target": {"kind": "Continue"}}
WRONG: dict[str, object] = {
    "no array": {"A": []},
    "no chain": [1],
    "no name": [[b"", []]],
    "a number for a name": [[1, []]],
    "more than a name and rules": [["A", [], 1]],
    "rules that are not packed": [["A", None]],
    "an unknown field of a rule": [["A", [{**CONTINUE, "colour": True}]]],
    "an unknown field of a match": [["A", [{**CONTINUE, "matches": [{"kind": "Udp", "flags": 1}]}]]],
    "no target": [["A", [{"matches": []}]]],
    "no kind": [["A", [{"target": {"chain": "B"}}]]],
    "an unknown target": [["A", [{"target": {"kind": "Queue"}}]]],
    "an unknown match": [["A", [{**CONTINUE, "matches": [{"kind": "Quux"}]}]]],
    "no verdict": [["A", [{"target": {"kind": "Verdict"}}]]],
    "no chain to jump to": [["A", [{"target": {"kind": "Jump"}}]]],
    "a chain with a zero in its name": [["A", [{"target": {"kind": "Jump", "chain": "B\0C"}}]]],
    "no answer": [["A", [{"target": {"kind": "Reject"}}]]],
    "no data": [["A", [{"target": {"kind": "OpaqueTarget", "name": "X"}}]]],
    "a text for a number": [["A", [{**CONTINUE, "protocol": "tcp"}]]],
    "a number for a boolean": [["A", [{**CONTINUE, "fragment": 1}]]],
    "a floating number": [["A", [{**CONTINUE, "protocol": 6.0}]]],
    "three ports": [["A", [{**CONTINUE, "matches": [{"kind": "Tcp", "source": [1, 2, 3]}]}]]],
    "an unknown field of a target": [["A", [{"target": {"kind": "Nflog", "colour": 1}}]]],
    "an unknown field of an address": [["A", [{**CONTINUE, "source": {"address": bytes(4), "length": 32, "colour": 1}}]]],
    "nothing for an address": [["A", [{**CONTINUE, "source": None}]]],
    "nothing for ports": [["A", [{**CONTINUE, "matches": [{"kind": "Sctp", "source": None}]}]]],
}
KINDS = [kind.__name__ for kind in get_args(Match)]
WRONG |= {f"an unknown field of {kind}": [["A", [{**CONTINUE, "matches": [{"kind": kind, "colour": 1}]}]]] for kind in KINDS}


def packed(value: object) -> bytes:
    """Chains as they cross into C, of anything; of the right form, where they are lists of a name and a list."""
    pack = msgspec.msgpack.encode
    chains = value if isinstance(value, list) else []
    return pack([[c[0], pack(c[1]), *c[2:]] if isinstance(c, list) and isinstance(c[1], list) else c for c in chains] or value)


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_rules_of_another_version(value: object) -> None:
    """A field, a class or a type that C does not know is never passed over."""
    assert encode(packed([["A", [CONTINUE]]]), room=4000) == 0
    assert encode(packed(value), room=4000) in (-errno.EPROTO, -errno.ERANGE)
    assert encode(packed([["A", []]]) + b"\0") == -errno.EPROTO


@pytest.mark.parametrize("more", [b"\0", b"\x90"])
def test_the_rules_of_a_chain_end_where_they_say(more: bytes) -> None:
    """Rules that are longer or shorter than the bytes in which they stand are refused."""
    pack = msgspec.msgpack.encode
    assert encode(pack([["A", pack([CONTINUE]) + more]]), room=4000) == -errno.EPROTO
    short = bytearray(pack([["A", pack([CONTINUE])]]))
    short[4] -= 1
    assert encode(bytes(short), room=4000) == -errno.EPROTO


def test_a_rule_with_two_targets_is_refused() -> None:
    """No value of ours packs so. Which of them should count is not guessed, nor is the place of one taken for the other's."""
    pack = msgspec.msgpack.encode
    target = pack("target") + pack({"kind": "Jump", "chain": "NETPOL-A"})
    assert encode(pack([["A", b"\x91\x81" + target]]), room=4000) == 0
    assert encode(pack([["A", b"\x91\x82" + target + target]]), room=4000) == -errno.EPROTO


def test_every_width_of_a_number() -> None:
    """MessagePack has ten forms of integers, of which the shortest is not obligatory; all are read, and only what fits is taken."""
    head = msgspec.msgpack.encode({"kind": "Connmark", "mark": 0})[:-1]
    forms = [b"\x05", b"\xcc\x05", b"\xcd\0\x05", b"\xce\0\0\0\x05", b"\xcf" + b"\0" * 7 + b"\x05"]
    forms += [b"\xd0\x05", b"\xd1\0\x05", b"\xd2\0\0\0\x05", b"\xd3" + b"\0" * 7 + b"\x05"]
    assert [encode(head + form, lib.np_xt_encode_match) for form in forms] == [0] * 9
    below = [b"\xff", b"\xd0\xff", b"\xd1\xff\xff", b"\xd2" + b"\xff" * 4, b"\xd3" + b"\xff" * 8, b"\xcf" + b"\xff" * 8]
    assert [encode(head + form, lib.np_xt_encode_match) for form in below] == [-errno.ERANGE] * 6


CUT = [b"", b"\xcc", b"\xcd\0", b"\xce\0\0\0", b"\xcf" + bytes(7), b"\xd3" + bytes(7)]
CUT += [b"\xd9", b"\xd9\3ab", b"\xa3ab", b"\xc4\1", b"\xdb\xff\xff\xff\xffa"]


@pytest.mark.parametrize("tail", CUT)
def test_a_value_that_is_cut_off(tail: bytes) -> None:
    """A number or a text that ends behind the end is not read, whatever happens to stand there."""
    for head, key in (({"kind": "Connmark"}, "mark"), ({"kind": "Opaque", "revision": 0}, "data"), ({}, "kind")):
        raw = msgspec.msgpack.encode({**head, key: 0})[:-1] + tail
        block, data = ffi.new("uint8_t[]", raw + b"\1" * 64), ffi.new("uint8_t[400]")
        out = ffi.new("struct np_xt_encoding *", {"data": data, "data_room": 400, "family": 4})
        assert lib.np_xt_encode_match(block, len(raw), out) == -errno.EPROTO
