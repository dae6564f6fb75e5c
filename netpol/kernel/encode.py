"""Chains -> the bytes of x_tables entries, as `iptables-restore` would write them.

The work is done in C (csrc/np_xt_encode): msgspec writes the chains as MessagePack, C reads that and writes entries, all of them
into one block. What is left to Python is nothing for each chain, and a name for each jump. Jumps stay open until `netpol.kernel.table`
knows where everything stands; only the numbers of the sets in it tie a block to one kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from netpol.errors import KernelError
from netpol.kernel._native import ffi, lib
from netpol.kernel.blocks import NO_SETS, Arrays, Block, EncodedChain, SetNumbers
from netpol.model import Family
from netpol.rules.ruleset import Chain, Match, SetMatch, Target

_pack = msgspec.msgpack.Encoder().encode
_allocate = ffi.new_allocator(should_clear_after_alloc=False)

_RULE_BYTES = 512  # more than most rules take
_NO_RULE = 0xFFFFFFFF
# Bytes that are free before and behind the chains of a block: mostly enough for the rest of a table, which is then put around them.
MARGIN = 8192


def encode_chain(chain: Chain, family: Family, sets: SetNumbers = NO_SETS) -> EncodedChain:
    """One chain as bytes; see `encode_chains`."""
    return encode_chains((chain,), family, sets)[0]


def encode_chains(chains: Iterable[Chain], family: Family, sets: SetNumbers = NO_SETS) -> list[EncodedChain]:
    """Chains as bytes, in their order; those of one call are one block.

    KernelError names the chain, the rule and the set, when a set has no number; ValueError names the chain, the rule and the field of a
    value that the kernel's form cannot hold.
    """
    values = list(chains)
    block = _encode(values, family, sets) if values else None
    return [EncodedChain(block, number) for number in range(len(values))] if block else []


def _encode(chains: list[Chain], family: Family, sets: SetNumbers) -> Block:
    try:
        packed = pack_chains(chains)
    except UnicodeEncodeError:
        raise ValueError(f"one of {[chain.name for chain in chains]} is no name for a chain") from None
    output = Output(lib.np_xt_encode, packed, family, sets, len(chains), lib.np_xt_count(packed, len(packed)))
    if output.code < 0:
        raise _refused(-output.code, chains, packed, output.native, sets)
    native = output.native
    targets = ffi.buffer(native.targets, native.target_size)[:].decode().split("\0")[:-1]
    arrays = Arrays(native.data, native.data_size, native.chains, native.jumps, native.jump_count)
    return Block(family, [chain.name for chain in chains], targets, sets, arrays, output, MARGIN)


def pack_chains(chains: Sequence[Chain]) -> bytes:
    """What C reads: an array of chains, each an array of its name and its rules, the latter as the chains have them."""
    return _pack(chains)


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
    return output.data()


class Output:
    """What C made of packed values: its code, its struct np_xt_encoding, and the arrays in it. There is more room at each try."""

    def __init__(self, function: Callable[..., int], packed: bytes, family: Family, sets: SetNumbers, chains: int, rules: int) -> None:
        room, places = (rules + 2 * chains) * _RULE_BYTES, rules
        while True:
            self._whole, self._chains = _allocate("uint8_t[]", room + 2 * MARGIN), _allocate("struct np_xt_chain[]", chains)
            self._jumps, self._targets = _allocate("struct np_xt_jump[]", places), _allocate("char[]", places * lib.NP_XT_NAME)
            rooms = {"data_room": room, "chain_room": chains, "jump_room": places, "set_count": len(sets.pairs)}
            arrays = {"data": self._whole + MARGIN, "chains": self._chains, "jumps": self._jumps, "targets": self._targets}
            self.native = ffi.new("struct np_xt_encoding *", {"family": family, "sets": sets.native, **rooms, **arrays})
            self.code = int(function(packed, len(packed), self.native))
            if self.code != -errno.ENOBUFS:
                return
            room, places = 2 * room, 2 * places + 1

    def data(self) -> bytes:
        """The bytes that were encoded."""
        return bytes(ffi.buffer(self.native.data, self.native.data_size))


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
