"""Steps -> system calls, and the kernel -> a ruleset: one node's kernel, as far as it is ours.

Steps are done in their order; neighbouring changes of sets travel together in one send. A step that fails raises and leaves those
before it in force; the caller reads back what there is and plans anew. Chains are encoded once and kept as long as they are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from msgspec import Struct

from netpol.kernel.entries import EncodedChain, encode_chain
from netpol.kernel.ipset import Add, Command, Create, Delete, Destroy, IpsetSocket, pack
from netpol.kernel.xtables import TableSocket, read_ours
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import (
    DENY,
    Chain,
    CreateSet,
    DestroySet,
    GrowSet,
    ReplaceTable,
    Ruleset,
    Step,
    TableName,
    is_our_set,
)

Counters = Mapping[str, tuple[tuple[int, int], ...]]


class _Kept(Struct):
    chain: Chain
    encoded: EncodedChain


class Kernel:
    """The sets and tables of the calling thread's network namespace. For one thread at a time; a context manager."""

    def __init__(self, table: TableName = "mangle") -> None:
        self.table: TableName = table
        self._ipset = IpsetSocket()
        self._sockets: dict[Family, TableSocket] = {}
        try:
            for family in FAMILIES:
                self._sockets[family] = TableSocket(family)
            self._numbers = {name: header.index for name, header in self._ipset.headers().items()}
        except BaseException:
            self.close()
            raise
        self._kept: dict[Family, dict[str, _Kept]] = {4: {}, 6: {}}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the sockets; what was programmed stays in force."""
        self._ipset.close()
        for socket in self._sockets.values():
            socket.close()

    @property
    def calls(self) -> int:
        """System calls so far, those of opening included."""
        return self._ipset.calls + sum(socket.calls for socket in self._sockets.values())

    def apply(self, steps: Sequence[Step]) -> None:
        """Does the steps. KernelError names what failed; the steps before it are in force."""
        commands: list[Command] = []
        for step in steps:
            if isinstance(step, ReplaceTable):
                self._run(commands)
                commands = []
                self._replace(step)
            else:
                commands.append(_command(step))
        self._run(commands)

    def read(self) -> Ruleset:
        """What of ours the kernel holds: all sets by name, and the chains of both families. Creates nothing."""
        headers = self._ipset.headers()
        self._numbers = {name: header.index for name, header in headers.items()}
        sets = {name: self._ipset.read(name) for name in headers if is_our_set(name)}
        chains: dict[Family, Mapping[str, Chain]] = {}
        hooked: set[Family] = set()
        for family in FAMILIES:
            found, _, is_hooked = self._read_table(family)
            if found:
                chains[family] = found
            if is_hooked:
                hooked.add(family)
        return Ruleset(chains, sets, frozenset(hooked), self.table)

    def counters(self, family: Family) -> Counters:
        """(packets, bytes) of each rule of our chains, by chain."""
        return self._read_table(family)[1]

    def dropped(self) -> int:
        """Packets that the last rule of NETPOL-DENY dropped, both families, as long as the chain has been there."""
        chains = (self.counters(family).get(DENY) for family in FAMILIES)
        return sum(chain[-1][0] for chain in chains if chain)

    def _read_table(self, family: Family) -> tuple[Mapping[str, Chain], Counters, bool]:
        socket = self._sockets[family]
        if not socket.exists(self.table):
            return {}, {}, False
        return read_ours(socket.read(self.table), {number: name for name, number in self._numbers.items()})

    def _run(self, commands: list[Command]) -> None:
        if not commands:
            return
        self._ipset.run(commands)
        for command in commands:
            if isinstance(command, Destroy):
                self._numbers.pop(command.name, None)
        if any(isinstance(command, Create) for command in commands):
            self._numbers = {name: header.index for name, header in self._ipset.headers().items()}

    def _replace(self, step: ReplaceTable) -> None:
        kept = self._kept[step.family]
        encoded = {name: self._encode(kept.get(name), chain, step.family) for name, chain in step.chains.items()}
        self._sockets[step.family].change(step.table, {name: found.encoded for name, found in encoded.items()}, step.hooked)
        self._kept[step.family] = encoded

    def _encode(self, kept: _Kept | None, chain: Chain, family: Family) -> _Kept:
        """The chain as bytes: those of last time, where it is the same and its sets have the numbers they had."""
        same = kept is not None and (kept.chain is chain or kept.chain == chain)
        if kept is not None and same and all(self._numbers.get(name) == number for name, number in kept.encoded.sets):
            return kept
        return _Kept(chain, encode_chain(chain, family, self._numbers))


def _command(step: Step) -> Command:
    if isinstance(step, CreateSet):
        return Create(step.set.name, step.set.kind, step.set.family, pack(step.set))
    if isinstance(step, DestroySet):
        return Destroy(step.name)
    if isinstance(step, ReplaceTable):
        raise TypeError("a table is not replaced by a command of ipset")
    kind = Add if isinstance(step, GrowSet) else Delete
    return kind(step.name, step.kind, step.family, pack(step.members))
