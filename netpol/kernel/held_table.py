"""What one family's table holds of ours: written, read, and looked at, by what was written or read last.

Chains are encoded once and kept as long as they are wanted; what a predecessor wrote is decoded once, and not encoded again. A kernel
without IPv6 (ipv6.disable=1) has neither packets nor tables of it: what is written there counts as written, and is nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from netpol.kernel.blocks import EncodedChain, SetNumbers
from netpol.kernel.encode import encode_chains
from netpol.kernel.entries import Known
from netpol.kernel.table import Shape
from netpol.kernel.xtables import Ours, Proof, TableSocket, holds, read_ours
from netpol.rules.ruleset import Chain, TableName


class _Written(NamedTuple):
    """What our part of a table is to be: its chains that netpol could have written, as values and as bytes, and whether FORWARD jumps."""

    chains: Mapping[str, Chain]
    encoded: Mapping[str, EncodedChain]
    hooked: bool = False

    @property
    def known(self) -> dict[str, Known]:
        return {name: Known(self.chains[name], encoded) for name, encoded in self.encoded.items()}

    def unchanged(self, chains: Mapping[str, Chain], numbers: SetNumbers) -> dict[str, EncodedChain]:
        """Those of the chains that are the same, and whose sets have the numbers they had."""
        known, encoded = self.chains, self.encoded
        if not known:
            return {}
        same = {name: encoded[name] for name, chain in chains.items() if known.get(name) == chain}
        if not any(block.outdated(numbers) for block in {chain.block for chain in same.values()}):
            return same
        return {name: chain for name, chain in same.items() if chain.is_of(numbers)}


class HeldTable:
    """See the module. For one thread at a time, as its socket, which is closed by whoever opened it."""

    def __init__(self, socket: TableSocket, table: TableName) -> None:
        self.socket = socket
        self.shape: Shape | None = None
        """Where the table is there: how it was when it was written, read or found to be right last."""
        self.is_moved = False
        """Whether FORWARD had our jump when it was read last, but not first, or more than once."""
        self._table: TableName = table
        self._written = _Written({}, {})
        self._proof: Proof | None = None  # where ours is as written

    def write(self, chains: Mapping[str, Chain], hooked: bool, numbers: SetNumbers, stands_for: Mapping[int, int | None]) -> None:
        """Has the kernel hold these, as `TableSocket.write`."""
        encoded = self._written.unchanged(chains, numbers)
        missing = {name: chain for name, chain in chains.items() if name not in encoded}
        encoded |= zip(missing, encode_chains(missing.values(), self.socket.family, numbers), strict=True)
        new = self.socket.write(self._table, encoded, hooked, stands_for=stands_for)
        self._written = _Written(dict(chains), new.kept(chains, numbers), hooked)
        self.shape, self._proof = self.socket.left[self._table], None

    def read(self, numbers: SetNumbers) -> Ours:
        """What is there, by the way: it does not count as what is to be."""
        return self._read(numbers)[0]

    def learn(self, numbers: SetNumbers) -> Ours:
        """Reads; what is there is what is to be until it is written again."""
        ours, self.shape = self._read(numbers)
        known = ours.known
        chains, encoded = {name: found.chain for name, found in known.items()}, {name: found.encoded for name, found in known.items()}
        self._written = _Written(chains, encoded, ours.is_hooked)
        self._proof, self.is_moved = None, ours.is_moved
        return ours

    def _read(self, numbers: SetNumbers) -> tuple[Ours, Shape | None]:
        if not self.socket.exists(self._table):
            return Ours({}, {}, False, {}), None
        snapshot = self.socket.read(self._table)
        return read_ours(snapshot, numbers, self._written.known), snapshot.shape

    def is_touched(self) -> bool:
        """Whether the kernel says something else than it did, of a table that is there, by one call."""
        return self.socket.shape(self._table) != self.shape

    def is_as_written(self, numbers: SetNumbers) -> bool:
        """Whether ours is, byte for byte."""
        if self.shape is None and not self.socket.exists(self._table):
            return True
        entries = self.socket.entries(self._table)
        proof = entries.proof()
        if proof is None:
            return False  # somebody may be writing it: who reads it looks again
        if proof == self._proof:
            return True
        snapshot = entries.snapshot()
        if not holds(snapshot, self._written.known, self._written.hooked, numbers):
            return False
        self._proof, self.shape = proof, snapshot.shape
        return True

    def doubt(self) -> None:
        """Sets have other numbers: the very bytes that were proven may mean others now."""
        self._proof = None


class NoTable:
    """Of a family that the kernel does not have."""

    is_moved = False

    def __init__(self) -> None:
        self._chains: Mapping[str, Chain] = {}
        self._hooked = False

    def write(self, chains: Mapping[str, Chain], hooked: bool, numbers: SetNumbers, stands_for: Mapping[int, int | None]) -> None:
        self._chains, self._hooked = dict(chains), hooked

    def read(self, numbers: SetNumbers) -> Ours:
        return Ours(dict(self._chains), dict.fromkeys(self._chains, ()), self._hooked, {})

    learn = read

    def is_as_written(self, numbers: SetNumbers) -> bool:
        return True
