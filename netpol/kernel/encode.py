"""Chains -> the bytes of x_tables entries, as `iptables-restore` would write them.

The work is done in C (csrc/np_xt_encode): msgspec writes the values as MessagePack, C reads that and writes entries; what is left to
Python is a share of each chain, not of each rule. A chain is encoded by itself: its jumps stay open, as (place of the verdict, name
of the chain), until `netpol.kernel.table` knows where everything stands. So the bytes of a chain can be kept as long as the chain
lives; only the numbers of the sets in it tie them to one kernel.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from struct import Struct as Layout
from typing import Any

import msgspec
from msgspec import Struct

from netpol.errors import KernelError
from netpol.kernel._native import ffi, lib
from netpol.model import Family
from netpol.rules.ruleset import Chain, Match, SetMatch, Target

_pack = msgspec.msgpack.Encoder().encode
_allocate = ffi.new_allocator(should_clear_after_alloc=False)

_SET = Layout("=32sH")
_CHAIN = Layout("=32siIIII")
_ARRAY = Layout(">BI")  # MessagePack: an array, and how many it has
_NAME, _RULES = b"\x82" + _pack("name"), _pack("rules")
_RULE_BYTES = 512  # more than most rules take
_BATCH = 1000  # rules that cross into C at once: enough to forget the call, few enough to stay in the processor's cache
_NO_RULE = 0xFFFFFFFF


class SetNumbers:
    """The kernel's numbers of the sets, by name, in the form in which C looks them up. It does not change.

    names -- the same the other way round.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = dict(numbers)
        self.names = {number: name for name, number in numbers.items()}
        packed = sorted((name.encode("utf-8", "surrogateescape"), name, number) for name, number in numbers.items())
        self.pairs = tuple((name, number) for _, name, number in packed)
        self.native = ffi.from_buffer("struct np_xt_set[]", b"".join(_SET.pack(raw, number) for raw, _, number in packed))

    def get(self, name: str) -> int | None:
        return self._numbers.get(name)


NO_SETS = SetNumbers({})


class EncodedChain(Struct, frozen=True, gc=False):
    """A user chain as bytes.

    data -- from its ERROR head to its RETURN tail; entries -- how many there are, head and tail included; jumps -- (offset in data of the
    verdict, which is 0 there; chain it goes to, or "" for a rule without a target), in order; sets -- (name, number) of each set used.
    """

    name: str
    data: bytes
    entries: int
    jumps: tuple[tuple[int, str], ...] = ()
    sets: tuple[tuple[str, int], ...] = ()


def encode_chain(chain: Chain, family: Family, sets: SetNumbers = NO_SETS) -> EncodedChain:
    """One chain as bytes; see `encode_chains`."""
    return encode_chains((chain,), family, sets)[0]


def encode_chains(chains: Iterable[Chain], family: Family, sets: SetNumbers = NO_SETS) -> list[EncodedChain]:
    """Chains as bytes, in their order.

    KernelError names the chain, the rule and the set, when a set has no number; ValueError names the chain, the rule and the field of a
    value that the kernel's form cannot hold.
    """
    found: list[EncodedChain] = []
    batch: list[Chain] = []
    rules = 0
    for chain in chains:
        batch.append(chain)
        rules += _count(chain)
        if rules >= _BATCH:
            found += _encode_batch(batch, rules, family, sets)
            batch, rules = [], 0
    return found + _encode_batch(batch, rules, family, sets) if batch else found


def _encode_batch(chains: list[Chain], rules: int, family: Family, sets: SetNumbers) -> list[EncodedChain]:
    try:
        packed = pack_chains(chains)
    except UnicodeEncodeError:
        raise ValueError(f"one of {[chain.name for chain in chains]} is no name for a chain") from None
    output = Output(lib.np_xt_encode, packed, family, sets, len(chains), rules)
    if output.code < 0:
        raise _refused(-output.code, chains, packed, output.native, sets)
    return _results(chains, packed, output, sets)


def pack_chains(chains: Collection[Chain]) -> bytes:
    """What C reads: an array of maps, each of a name and rules, the latter as the chains have them."""
    parts = [_ARRAY.pack(0xDD, len(chains))]
    for chain in chains:
        parts += (_NAME, _pack(chain.name), _RULES, chain.packed)
    return b"".join(parts)


def _count(chain: Chain) -> int:
    """How many rules a chain has, from the head of their array."""
    packed = chain.packed
    first = packed[0]
    return first & 15 if first < 0xDC else int.from_bytes(packed[1 : 3 if first == 0xDC else 5], "big")


def encode_match(match: Match, family: Family, sets: SetNumbers = NO_SETS) -> bytes:
    """A match as it stands in an entry, header included. ValueError for a value that the kernel's form cannot hold, or an unknown set."""
    return _encode_one(lib.np_xt_encode_match, match, family, sets)


def encode_target(target: Target, family: Family) -> bytes:
    """A target as it stands in an entry, header included; jumps with a verdict of 0. ValueError as for a match."""
    return _encode_one(lib.np_xt_encode_target, target, family, NO_SETS)


def _encode_one(function: Callable[..., int], value: Match | Target, family: Family, sets: SetNumbers) -> bytes:
    output = Output(function, _pack(value), family, sets, 0, 1)
    if output.code < 0:
        raise ValueError(f"the kernel's form of a rule cannot hold {value}")
    return bytes(output.data())


class Output:
    """What C made of packed values: its code, its struct np_xt_encoding, and the arrays in it. There is more room at each try."""

    def __init__(self, function: Callable[..., int], packed: bytes, family: Family, sets: SetNumbers, chains: int, rules: int) -> None:
        room, places = (rules + 2 * chains) * _RULE_BYTES, rules
        while True:
            self._data, self.chains = _allocate("uint8_t[]", room), _allocate("struct np_xt_chain[]", chains)
            self.jumps, self.uses = _allocate("struct np_xt_open[]", places), _allocate("struct np_xt_use[]", places)
            rooms = {"data_room": room, "chain_room": chains, "jump_room": places, "use_room": places, "set_count": len(sets.pairs)}
            arrays = {"data": self._data, "chains": self.chains, "jumps": self.jumps, "uses": self.uses, "sets": sets.native}
            self.native = ffi.new("struct np_xt_encoding *", {"family": family, **rooms, **arrays})
            self.code = int(function(packed, len(packed), self.native))
            if self.code != -errno.ENOBUFS:
                return
            room, places = 2 * room, 2 * places + 1

    def data(self) -> Any:
        """The bytes that were encoded; slices of them are `bytes`."""
        return ffi.buffer(self._data, self.native.data_size)


def _results(values: list[Chain], packed: bytes, output: Output, sets: SetNumbers) -> list[EncodedChain]:
    native, data, pairs = output.native, output.data(), sets.pairs
    jumpers, places, names, sizes = _columns(output.jumps, native.jump_count, 4)
    jumps = [(at, packed[name : name + size].decode()) for at, name, size in zip(places, names, sizes, strict=True)]
    users, used = _columns(output.uses, native.use_count, 2)
    uses = [pairs[place] for place in used]
    found: list[EncodedChain] = []
    jump = use = 0
    for number, (chain, (_, _, offset, size, entries, _)) in enumerate(
        zip(values, _CHAIN.iter_unpack(ffi.buffer(output.chains)), strict=True)
    ):
        next_jump, next_use = bisect_right(jumpers, number, jump), bisect_right(users, number, use)
        of_chain = tuple(jumps[jump:next_jump]), tuple(uses[use:next_use])
        found.append(EncodedChain(chain.name, data[offset : offset + size], entries, *of_chain))
        jump, use = next_jump, next_use
    return found


def _columns(array: Any, count: int, width: int) -> list[list[int]]:
    """An array of structs that are `width` numbers of 32 bits, column by column."""
    numbers = memoryview(ffi.buffer(array, count * width * 4)).cast("I") if count else memoryview(b"").cast("I")
    return [numbers[column::width].tolist() for column in range(width)]


def _refused(code: int, values: list[Chain], packed: bytes, native: Any, sets: SetNumbers) -> Exception:
    """The exception for chains that C did not take, with the place of the value that it was reading."""
    chain = values[native.chain_count]
    field = packed[native.field : native.field + native.field_size].decode()
    if native.rule == _NO_RULE:
        return ValueError(f"{chain.name!r} is no name for a chain: those have 1 to 28 characters")
    rule, where = _words(chain, native.rule), f"{chain.name}, rule {native.rule + 1}"
    if code == errno.ENOENT:
        matches = chain.rules[native.rule].matches
        name = next(match.name for match in matches if isinstance(match, SetMatch) and sets.get(match.name) is None)
        return KernelError(code, "iptables rule", where, f"there is no set {name}")
    if not field:
        return ValueError(f"{where}: it takes more than the 65,535 bytes that a rule may have: {rule}")
    return ValueError(f"{where}: the kernel's form of a rule cannot hold its {field!r}: {rule}")


def _words(chain: Chain, rule: int) -> str:
    """A rule in words; one that is no value of ours (a verdict that there is not), as it was packed."""
    try:
        return str(chain.rules[rule])
    except msgspec.ValidationError:
        return str(msgspec.msgpack.decode(chain.packed)[rule])
