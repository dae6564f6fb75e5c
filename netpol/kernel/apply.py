"""Steps -> system calls, and the kernel -> a ruleset: one node's kernel, as far as it is ours.

Steps are done in their order; neighbouring changes of sets travel together in one send. A step that fails raises and leaves those
before it in force; the caller reads back what there is and plans anew. Chains are encoded once and kept as long as they are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from netpol.kernel.encode import SetNumbers, encode_chains
from netpol.kernel.entries import Known
from netpol.kernel.ipset import Add, Command, Create, Delete, Destroy, IpsetSocket, pack
from netpol.kernel.xtables import Counts, Ours, TableSocket, read_ours
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import (
    DENY,
    DROP,
    Chain,
    CreateSet,
    DestroySet,
    GrowSet,
    Reject,
    ReplaceTable,
    Ruleset,
    Step,
    TableName,
    is_our_set,
)

# From so many new sets on, one listing of all is cheaper than asking for the number of each: it walks every bucket of every set.
MANY = 64

Counters = Mapping[str, Counts]


class Kernel:
    """The sets and tables of the calling thread's network namespace. For one thread at a time; a context manager."""

    def __init__(self, table: TableName = "mangle") -> None:
        self.table: TableName = table
        self._ipset = IpsetSocket()
        self._sockets: dict[Family, TableSocket] = {}
        try:
            for family in FAMILIES:
                self._sockets[family] = TableSocket(family)
            self._ask_numbers()
        except BaseException:
            self.close()
            raise
        self._known: dict[Family, dict[str, Known]] = {4: {}, 6: {}}

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
        self._ask_numbers()
        sets = {name: self._ipset.read(name) for name, _ in self._sets.pairs if is_our_set(name)}
        chains: dict[Family, Mapping[str, Chain]] = {}
        hooked: set[Family] = set()
        for family in FAMILIES:
            ours = self._read_table(family)
            # What a predecessor wrote need not be decoded more than once, nor encoded again.
            self._known[family] = ours.known
            if ours.chains:
                chains[family] = ours.chains
            if ours.is_hooked:
                hooked.add(family)
        return Ruleset(chains, sets, frozenset(hooked), self.table)

    def sizes(self) -> dict[str, int]:
        """How many members each of our sets has, as the kernel counts them."""
        return {name: header.entries for name, header in self._ipset.headers().items() if is_our_set(name)}

    def counted(self, family: Family) -> tuple[Mapping[str, Chain], Counters]:
        """Our chains, and (packets, bytes) of each of their rules."""
        ours = self._read_table(family)
        return ours.chains, ours.counters

    def counters(self, family: Family) -> Counters:
        """(packets, bytes) of each rule of our chains, by chain."""
        return self._read_table(family).counters

    def dropped(self) -> int:
        """Packets that NETPOL-DENY dropped or rejected, both families, as long as the chain has been there."""
        total = 0
        for family in FAMILIES:
            ours = self._read_table(family)
            ends = zip(ours.chains[DENY].rules, ours.counters[DENY], strict=False) if DENY in ours.chains else ()
            total += sum(packets for rule, (packets, _) in ends if rule.target == DROP or isinstance(rule.target, Reject))
        return total

    def _read_table(self, family: Family) -> Ours:
        socket = self._sockets[family]
        if not socket.exists(self.table):
            return Ours({}, {}, False, {})
        return read_ours(socket.read(self.table), self._sets, self._known[family])

    def _ask_numbers(self) -> None:
        self._sets = SetNumbers({name: header.index for name, header in self._ipset.headers().items()})

    def _run(self, commands: list[Command]) -> None:
        if not commands:
            return
        try:
            self._ipset.run(commands)
        except BaseException:
            # Some of them may have been carried out.
            self._ask_numbers()
            raise
        gone = {command.name for command in commands if isinstance(command, Destroy)}
        made = [command.name for command in commands if isinstance(command, Create)]
        if len(made) > MANY:
            self._ask_numbers()
        elif made or gone:
            kept = {name: number for name, number in self._sets.pairs if name not in gone}
            self._sets = SetNumbers(kept | {name: self._ipset.number(name) for name in made if name not in gone})

    def _replace(self, step: ReplaceTable) -> None:
        known = self._known[step.family]
        found = {name: self._unchanged(known.get(name), chain) for name, chain in step.chains.items()}
        missing = [step.chains[name] for name, kept in found.items() if kept is None]
        for chain, encoded in zip(missing, encode_chains(missing, step.family, self._sets), strict=True):
            found[chain.name] = Known(chain, encoded)
        written = {name: kept for name, kept in found.items() if kept is not None}
        self._sockets[step.family].change(step.table, {name: kept.encoded for name, kept in written.items()}, step.hooked)
        self._known[step.family] = written

    def _unchanged(self, known: Known | None, chain: Chain) -> Known | None:
        """What was written last time, where it is the same chain and its sets have the numbers they had."""
        same = known is not None and (known.chain is chain or known.chain == chain)
        return known if known is not None and same and known.is_of(self._sets) else None


def _command(step: Step) -> Command:
    if isinstance(step, CreateSet):
        return Create(step.set.name, step.set.kind, step.set.family, pack(step.set))
    if isinstance(step, DestroySet):
        return Destroy(step.name)
    if isinstance(step, ReplaceTable):
        raise TypeError("a table is not replaced by a command of ipset")
    kind = Add if isinstance(step, GrowSet) else Delete
    return kind(step.name, step.kind, step.family, pack(step.members))
