"""Steps -> system calls, and the kernel -> a ruleset: one node's kernel, as far as it is ours.

Steps are done in their order. One that fails raises and leaves those before it in force; the caller reads back what there is and plans
anew. Sets are `netpol.kernel.held_sets`, our part of a family's table is `netpol.kernel.held_table`: this is what both are together.

Looking whether somebody else changed something comes in three depths, each of which is taken only where the one before gives cause:
- `touched`: what the kernel says about each table in one call, and about few sets by their headers. Right whenever it says yes; it
  misses what leaves a table as long as it was. `rest` goes on with that in C while its thread sleeps (`netpol.kernel.watch`).
- `look`: everything is read, and proven by digests to be as it was written or read last (`netpol.kernel.digests`). Where somebody changed
  his own rules in a table, ours are compared byte by byte. No value is made, and nothing is missed.
- `reread`: the sets and tables that a `look` found to differ, and those only, as values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel.held_sets import HeldSets
from netpol.kernel.held_table import HeldTable, NoTable
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.proofs import Look
from netpol.kernel.turns import Closing, exclusive, last
from netpol.kernel.watch import Bell, Watch
from netpol.kernel.xtables import Counts, TableSocket, families
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import DENY, DROP, Chain, CreateSet, DestroySet, Reject, ReplaceTable, Ruleset, SetStep, Step, TableName

# What no count of system calls is: there is nothing that a sleeper could compare with.
UNARMED = -1

Counters = Mapping[str, Counts]


class Kernel(Closing):
    """The sets and tables of the calling thread's network namespace. For one thread at a time; a context manager."""

    def __init__(self, table: TableName = "mangle") -> None:
        super().__init__()
        self.table: TableName = table
        self._ipset = IpsetSocket()
        self._sockets: list[TableSocket] = []
        self._sets = HeldSets(self._ipset)
        self._watch, self._armed = Watch(), UNARMED
        try:
            for family in families():
                self._sockets.append(TableSocket(family))
            self._sets.ask_numbers()
        except BaseException:
            self.close()
            raise
        self._there = {socket.family: HeldTable(socket, table) for socket in self._sockets}
        self._tables: Mapping[Family, HeldTable | NoTable] = {family: self._there.get(family, NoTable()) for family in FAMILIES}

    @last
    def close(self) -> None:
        """Closes the sockets; what was programmed stays in force."""
        self._ipset.close()
        for socket in self._sockets:
            socket.close()

    @property
    def calls(self) -> int:
        """System calls so far, those of opening included."""
        return self._ipset.calls + sum(socket.calls for socket in self._sockets)

    @property
    def longest_hold(self) -> float:
        """Seconds: the longest that iptables' lock has been held here."""
        return max(socket.longest_hold for socket in self._sockets)

    @property
    def lost_counters(self) -> int:
        """Times that a table was written and what its rules had counted was lost."""
        return sum(socket.lost_counters for socket in self._sockets)

    @property
    def moved(self) -> frozenset[Family]:
        """Families whose FORWARD had our jump when it was read last, but not first, or more than once."""
        return frozenset(family for family, table in self._tables.items() if table.is_moved)

    # -- writing -------------------------------------------------------------------------------------------------------

    @exclusive
    def apply(self, steps: Sequence[Step]) -> tuple[str, ...]:
        """Does the steps. KernelError names what failed; the steps before it are in force, and where it is a table that could not be
        written, all of the other family: that one has no IPv6 must not keep what narrows IPv4 from being done.

        The value: sets that were to be destroyed, last of all or aside, and could not, for somebody uses them.
        """
        leftover: list[str] = []
        waiting: list[SetStep] = []
        refused: dict[Family, KernelError | MalformedKernelData] = {}
        for step in steps:
            if refused and _family(step) in refused:
                continue
            if not isinstance(step, ReplaceTable):
                waiting.append(step)
                continue
            leftover += self._sets.change(waiting)
            waiting = []
            try:
                self._replace(step)
            except (KernelError, MalformedKernelData) as error:
                refused[step.family] = error
        leftover += self._sets.change(waiting)
        if refused:
            first = next(iter(refused.values()))
            # It leads to this frame, by what it was raised through: all that was encoded would stay until a collection.
            refused.clear()
            raise first.with_traceback(None)
        return tuple(leftover)

    def _replace(self, step: ReplaceTable) -> None:
        if step.table != self.table:
            raise ValueError(f"a step for the {step.table} table, and this is a handle of {self.table}")
        self._tables[step.family].write(step.chains, step.hooked, self._sets.numbers, self._sets.stands_for())

    # -- reading -------------------------------------------------------------------------------------------------------

    @exclusive
    def read(self) -> Ruleset:
        """What of ours the kernel holds: all sets by name, and the chains of both families. Creates nothing."""
        sets = self._sets.read()
        tables = {family: table.learn(self._sets.numbers) for family, table in self._tables.items()}
        chains = {family: ours.chains for family, ours in tables.items() if ours.chains}
        return Ruleset(chains, sets, frozenset(family for family, ours in tables.items() if ours.is_hooked), self.table)

    @exclusive
    def sizes(self) -> dict[str, int]:
        """How many members each of our sets has, as the kernel counts them."""
        return self._sets.sizes()

    @exclusive
    def counted(self, family: Family) -> tuple[Mapping[str, Chain], Counters]:
        """Our chains, and (packets, bytes) of each of their rules."""
        ours = self._tables[family].read(self._sets.numbers)
        return ours.chains, ours.counters

    @exclusive
    def counters(self, family: Family) -> Counters:
        """(packets, bytes) of each rule of our chains, by chain."""
        return self.counted(family)[1]

    @exclusive
    def dropped(self) -> int:
        """Packets that NETPOL-DENY dropped or rejected, both families, as long as the chain has been there."""
        total = 0
        for family in FAMILIES:
            chains, counters = self.counted(family)
            ends = zip(chains[DENY].rules, counters[DENY], strict=False) if DENY in chains else ()
            total += sum(packets for rule, (packets, _) in ends if rule.target == DROP or isinstance(rule.target, Reject))
        return total

    # -- looking -------------------------------------------------------------------------------------------------------

    @exclusive
    def touched(self) -> bool:
        """The cheap look: whether somebody changed a table or, where ours are few, a set since it was written, read or looked at last.

        One system call a family, and two a set; a new set is not seen. False before anything was written or read. A yes may be about
        rules that are not ours: `look` tells.
        """
        try:
            return self._is_touched()
        except (KernelError, MalformedKernelData):
            # Whoever looks closely will say why.
            return True

    def _is_touched(self) -> bool:
        known = [table for table in self._there.values() if table.shape is not None]
        if any(table.is_touched() for table in known):
            return True
        records = self._sets.glance()
        if records is None:
            return True
        self._watch.arm(self.table, [table.socket for table in known], self._ipset, records)
        self._armed = self.calls
        return False

    @exclusive
    def rest(self, bell: Bell, first: float, every: float, until: float) -> float:
        """Sleeps until the bell is rung or time is over, and looks meanwhile as the last `touched` did, at `first` and then each `every`
        seconds; where the kernel was read or written since, only until `first`. Times are of time.monotonic, in seconds.

        The value is when the next `touched` is due: at once, where a look found something else.
        """
        if self._armed != self.calls:
            bell.wait(min(first, until) - time.monotonic())
            return first
        due = self._watch.sleep(bell, first, every, until)
        self._armed = self.calls if due else UNARMED
        return due

    @exclusive
    def look(self) -> Look:
        """The whole look. What differs stays different until `reread`, or `read`, or until it is written."""
        before = self._sets.numbers
        sets, strangers = self._sets.look()
        if self._sets.numbers is not before:
            for table in self._there.values():
                table.doubt()
        changed = frozenset(family for family, table in self._tables.items() if not table.is_as_written(self._sets.numbers))
        return Look(changed, sets, strangers)

    @exclusive
    def reread(self, written: Ruleset, look: Look) -> Ruleset:
        """What the kernel holds, given what it should hold: what the look found to differ is read again."""
        sets = self._sets.reread(written.sets, look)
        tables = {family: self._tables[family].learn(self._sets.numbers) for family in look.tables}
        chains = {**written.chains, **{family: ours.chains for family, ours in tables.items()}}
        hooked = written.hooked - tables.keys() | {family for family, ours in tables.items() if ours.is_hooked}
        return Ruleset(chains, sets, frozenset(hooked), self.table)


def _family(step: Step) -> Family:
    if isinstance(step, CreateSet):
        return step.set.family
    if isinstance(step, DestroySet):
        return 6 if step.name.startswith("NETPOL6") else 4
    return step.family
