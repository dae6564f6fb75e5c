"""Steps -> system calls, and the kernel -> a ruleset: one node's kernel, as far as it is ours.

Steps are done in their order; neighbouring changes of sets travel together in one send, but nothing together with growth. A step that
fails raises and leaves those before it in force; the caller reads back what there is and plans anew. Two things are no failures: a set
that is destroyed last and that somebody else uses is told, or that he has destroyed is gone, and a set that is full is exchanged for a
larger one. One of which most members leave is exchanged for what is left. Chains are encoded once and kept as long as they are wanted.

Looking whether somebody else changed something comes in three depths, each of which is taken only where the one before gives cause:
- `touched`: what the kernel says about each table in one call, and about few sets by their headers. Right whenever it says yes; it
  misses what leaves a table as long as it was. `rest` goes on with that in C while its thread sleeps (`netpol.kernel.watch`).
- `look`: everything is read, and proven by digests to be as it was written or read last (`netpol.kernel.digests`). Where somebody changed
  his own rules in a table, ours are compared byte by byte. No value is made, and nothing is missed.
- `reread`: the sets and tables that a `look` found to differ, and those only, as values.

A kernel without IPv6 (ipv6.disable=1) has neither packets nor tables of it: what is written there counts as written, and is nowhere.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from netpol.errors import KernelError, MalformedKernelData, Unsupported
from netpol.kernel.blocks import NO_SETS, EncodedChain, SetNumbers
from netpol.kernel.encode import encode_chains
from netpol.kernel.entries import Known
from netpol.kernel.ipset import Add, Command, Create, Delete, Destroy, IpsetSocket, Records, Swap, pack
from netpol.kernel.ipset_errors import BUSY, HASH_FULL, REFERENCED
from netpol.kernel.proofs import Look, SetProofs
from netpol.kernel.table import Shape
from netpol.kernel.turns import Closing, exclusive, last
from netpol.kernel.watch import Bell, Watch
from netpol.kernel.xtables import Counts, Ours, Proof, TableSocket, families, holds, read_ours
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import (
    DENY,
    DROP,
    ROOT,
    Chain,
    CreateSet,
    DestroySet,
    GrowSet,
    Reject,
    ReplaceTable,
    Ruleset,
    ShrinkSet,
    Step,
    TableName,
    beside,
    beside_what,
    grown,
    is_our_set,
)
from netpol.rules.sets import Set

# Up to so many new sets are asked for their numbers by the send that makes them. Of more the answers might not fit where they wait, and the
# kernel would look for each name among all; one listing of all sets walks every bucket of each.
MANY = 64
# Up to so many members of ours, and so many sets, their headers are looked at with the tables: that walks every bucket of each.
GLANCE_MEMBERS, GLANCE_SETS = 20_000, 64

# What no count of system calls is: there is nothing that a sleeper could compare with.
UNARMED = -1

# The letter of the set that takes another one's place, by `beside`.
OTHER = "x"

Counters = Mapping[str, Counts]


class _Written(NamedTuple):
    """What one table of ours is as it was written or read last: its chains that netpol could have written, as values and as bytes, and
    whether FORWARD jumps."""

    chains: Mapping[str, Chain]
    encoded: Mapping[str, EncodedChain]
    hooked: bool = False

    @property
    def known(self) -> dict[str, Known]:
        return {name: Known(self.chains[name], encoded) for name, encoded in self.encoded.items()}

    def unchanged(self, chains: Mapping[str, Chain], sets: SetNumbers) -> dict[str, EncodedChain]:
        """Those of the chains that are the same, and whose sets have the numbers they had."""
        known, encoded = self.chains, self.encoded
        if not known:
            return {}
        same = {name: encoded[name] for name, chain in chains.items() if known.get(name) == chain}
        if not any(block.outdated(sets) for block in {chain.block for chain in same.values()}):
            return same
        return {name: chain for name, chain in same.items() if chain.is_of(sets)}


class Kernel(Closing):
    """The sets and tables of the calling thread's network namespace. For one thread at a time; a context manager."""

    def __init__(self, table: TableName = "mangle") -> None:
        super().__init__()
        self.table: TableName = table
        self._ipset = IpsetSocket()
        self._sockets: dict[Family, TableSocket] = {}
        self._set_proofs = SetProofs()
        self._shapes: dict[Family, Shape] = {}  # of tables that are there
        self._proofs: dict[Family, Proof] = {}  # of tables in which ours is as written
        self._sets = NO_SETS
        self._watch, self._armed = Watch(), UNARMED
        self._behind: list[str] = []  # sets that exchanges have left, by steps that are being done
        self._standing: tuple[SetNumbers, Mapping[int, int | None]] = NO_SETS, {}
        self.moved: frozenset[Family] = frozenset()
        """Families whose FORWARD had our jump when it was read last, but not first, or more than once."""
        try:
            for family in families():
                self._sockets[family] = TableSocket(family)
            self._ask_numbers()
        except BaseException:
            self.close()
            raise
        self._written: dict[Family, _Written] = {4: _Written({}, {}), 6: _Written({}, {})}

    @last
    def close(self) -> None:
        """Closes the sockets; what was programmed stays in force."""
        self._ipset.close()
        for socket in self._sockets.values():
            socket.close()

    @property
    def calls(self) -> int:
        """System calls so far, those of opening included."""
        return self._ipset.calls + sum(socket.calls for socket in self._sockets.values())

    @property
    def longest_hold(self) -> float:
        """Seconds: the longest that iptables' lock has been held here."""
        return max(socket.longest_hold for socket in self._sockets.values())

    @property
    def lost_counters(self) -> int:
        """Times that a table was written and what its rules had counted was lost."""
        return sum(socket.lost_counters for socket in self._sockets.values())

    # -- writing -------------------------------------------------------------------------------------------------------

    @exclusive
    def apply(self, steps: Sequence[Step]) -> tuple[str, ...]:
        """Does the steps. KernelError names what failed; the steps before it are in force, and where it is a table that could not be
        written, all of the other family: that one has no IPv6 must not keep what narrows IPv4 from being done.

        The value: sets that were to be destroyed, last of all or aside, and could not, for somebody uses them.
        """
        self._behind = []
        batch: list[Step] = []
        refused: dict[Family, KernelError | MalformedKernelData] = {}
        for step in steps:
            if refused and _family(step) in refused:
                continue
            if isinstance(step, ReplaceTable):
                self._run(batch)
                batch = []
                try:
                    self._replace(step)
                except (KernelError, MalformedKernelData) as error:
                    refused[step.family] = error
                continue
            if isinstance(step, ShrinkSet) and step.left is not None:
                self._run(batch)
                self._run([step])
                batch = []
                continue
            # A command that fails does not stop those behind it in a send: nothing narrows before it is known that what widens is done.
            if batch and type(step) is not type(batch[-1]) and GrowSet in (type(step), type(batch[-1])):
                self._run(batch)
                batch = []
            batch.append(step)
        leftover = self._run(batch)
        if refused:
            first = next(iter(refused.values()))
            # It leads to this frame, by what it was raised through: all that was encoded would stay until a collection.
            refused.clear()
            raise first.with_traceback(None)
        return (*leftover, *self._behind)

    def _run(self, steps: Sequence[Step]) -> tuple[str, ...]:
        """The names of those sets, of the ones that are destroyed last, that are in use."""
        if not steps:
            return ()
        try:
            sent = self._send(steps)
        except BaseException:
            # Some of them may have been carried out.
            self._set_proofs.doubt(steps)
            self._ask_numbers()
            raise
        done, numbers = sent
        self._set_proofs.follow(done)
        self._follow_numbers(done, numbers)
        return () if done is steps else tuple(step.name for step in steps if isinstance(step, DestroySet) and step not in done)

    def _send(self, steps: Sequence[Step]) -> tuple[Sequence[Step], Mapping[str, int]]:
        """Has the commands carried out; the steps that tell what was done, and the numbers of few new sets.

        The first error is that of the first command that failed: those before it have done what they should.
        """
        if isinstance(steps[0], ShrinkSet) and steps[0].left is not None:
            return [self._leave(steps[0], steps[0].left)], {}
        few = sum(isinstance(step, CreateSet) for step in steps) <= MANY
        try:
            return steps, self._ipset.run([_command(step) for step in steps], numbered=few)
        except KernelError as error:
            if (error.op, error.code) == ("ipset add", HASH_FULL) and all(isinstance(step, GrowSet) for step in steps):
                return [self._grow(step) for step in steps if isinstance(step, GrowSet)], {}
            last = {step.name for step in last_destroyed(steps)}
            if error.op != "ipset destroy" or error.code not in (BUSY, REFERENCED, errno.ENOENT) or error.object not in last:
                raise
            left = last.intersection(self._ipset.names(ROOT))
            return [step for step in steps if not (isinstance(step, DestroySet) and step.name in left)], {}

    def _grow(self, step: GrowSet) -> Step:
        """Lets a set grow; one that has no room is exchanged for one with the same members, and room: rules that use its name see the new
        members at once. The step that tells what was done."""
        try:
            self._ipset.run([_command(step)])
        except KernelError as error:
            if error.code != HASH_FULL:
                raise
        else:
            return step
        larger = grown(self._ipset.read(step.name), step)
        self._exchange(larger)
        return CreateSet(larger)

    def _leave(self, step: ShrinkSet, left: Set) -> Step:
        """Members leave a set of which less is left: that is made and takes its place. Where this does not go (somebody lists one of the
        two just now, another set is in the way), they are deleted. The step that tells what was done."""
        try:
            self._exchange(left)
        except KernelError:
            self._ask_numbers()
            self._ipset.run([_command(step)])
            self._clear_away(beside(left.name, OTHER))
        # It may have taken the place before that failed: either way it is as one that was made anew.
        return CreateSet(left)

    def _clear_away(self, aside: str) -> None:
        """Destroys what an exchange that failed has left, or says that it is left over."""
        if self._sets.get(aside) is None:
            return
        try:
            self._ipset.run([Destroy(aside)])
        except KernelError as error:
            if error.code not in (BUSY, REFERENCED):
                raise
            self._behind.append(aside)
        else:
            self._sets = self._sets.changed([aside], {})

    def _exchange(self, new: Set) -> None:
        """Makes a set and lets it take the place of the one of this name and type: rules that use the name see the new members at once."""
        aside = new._replace(name=beside(new.name, OTHER))
        if self._sets.get(aside.name) is not None:
            self._ipset.run([Destroy(aside.name)])
        self._ipset.run([_command(CreateSet(aside))])
        self._ipset.run([Swap(aside.name, new.name), Destroy(aside.name)])

    def _follow_numbers(self, steps: Sequence[Step], numbers: Mapping[str, int]) -> None:
        # Of a set that is destroyed and made, or the reverse, the last counts.
        there = {step.name: isinstance(step, CreateSet) for step in steps if isinstance(step, CreateSet | DestroySet)}
        made = [name for name, is_made in there.items() if is_made]
        if len(made) > MANY:
            self._ask_numbers()
        elif there:
            new = {name: numbers[name] if name in numbers else self._ipset.number(name) for name in made}
            self._sets = self._sets.changed(there, new)

    def _replace(self, step: ReplaceTable) -> None:
        if step.family not in self._sockets:
            self._written[step.family] = _Written(dict(step.chains), {}, step.hooked)
            return
        socket = self._sockets[step.family]
        encoded = self._written[step.family].unchanged(step.chains, self._sets)
        missing = {name: chain for name, chain in step.chains.items() if name not in encoded}
        encoded |= zip(missing, encode_chains(missing.values(), step.family, self._sets), strict=True)
        new = socket.write(step.table, encoded, step.hooked, stands_for=self._stands_for())
        self._written[step.family] = _Written(dict(step.chains), new.kept(step.chains, self._sets), step.hooked)
        if step.table == self.table:
            self._shapes[step.family] = socket.left[step.table]
            self._proofs.pop(step.family, None)

    def _stands_for(self) -> Mapping[int, int | None]:
        """The numbers of the small sets beside live ones that there are just now, and of the sets that they stand for, for counters' sake:
        what is looked at too is as the live set; what does not count is as if nobody asked."""
        sets, found = self._standing
        if sets is not self._sets:
            small = [(number, live) for name, number in self._sets.pairs if name[7:8] != "-" and (live := beside_what(name)) is not None]
            found = {number: self._sets.get(live) if letter == "a" else None for number, (live, letter) in small}
            self._standing = self._sets, found
        return found

    # -- reading -------------------------------------------------------------------------------------------------------

    @exclusive
    def read(self) -> Ruleset:
        """What of ours the kernel holds: all sets by name, and the chains of both families. Creates nothing."""
        self._ask_numbers()
        names = [name for name, _ in self._sets.pairs if is_our_set(name)]
        sets = {name: found for name in names if (found := self._read_set(name)) is not None}
        self._set_proofs.learn(sets, self._set_proofs.names.union(names))
        tables = {family: self._learn_table(family) for family in FAMILIES}
        chains = {family: ours.chains for family, ours in tables.items() if ours.chains}
        return Ruleset(chains, sets, frozenset(family for family, ours in tables.items() if ours.is_hooked), self.table)

    @exclusive
    def sizes(self) -> dict[str, int]:
        """How many members each of our sets has, as the kernel counts them."""
        return {
            record.header.name: record.header.entries
            for record in self._ipset.records(self._ipset.names(ROOT), headers_only=True).decoded()
        }

    @exclusive
    def counted(self, family: Family) -> tuple[Mapping[str, Chain], Counters]:
        """Our chains, and (packets, bytes) of each of their rules."""
        ours, _ = self._read_table(family)
        return ours.chains, ours.counters

    @exclusive
    def counters(self, family: Family) -> Counters:
        """(packets, bytes) of each rule of our chains, by chain."""
        return self._read_table(family)[0].counters

    @exclusive
    def dropped(self) -> int:
        """Packets that NETPOL-DENY dropped or rejected, both families, as long as the chain has been there."""
        total = 0
        for family in FAMILIES:
            chains, counters = self.counted(family)
            ends = zip(chains[DENY].rules, counters[DENY], strict=False) if DENY in chains else ()
            total += sum(packets for rule, (packets, _) in ends if rule.target == DROP or isinstance(rule.target, Reject))
        return total

    def _read_table(self, family: Family) -> tuple[Ours, Shape | None]:
        if family not in self._sockets:
            chains, _, is_hooked = self._written[family]
            return Ours(dict(chains), dict.fromkeys(chains, ()), is_hooked, {}), None
        socket = self._sockets[family]
        if not socket.exists(self.table):
            return Ours({}, {}, False, {}), None
        snapshot = socket.read(self.table)
        return read_ours(snapshot, self._sets, self._written[family].known), snapshot.shape

    def _learn_table(self, family: Family) -> Ours:
        """Reads a table; what it is now is what it is to be until it is written again."""
        ours, shape = self._read_table(family)
        if family not in self._sockets:
            return ours
        # What a predecessor wrote need not be decoded more than once, nor encoded again.
        known = ours.known
        chains, encoded = {name: found.chain for name, found in known.items()}, {name: found.encoded for name, found in known.items()}
        self._written[family] = _Written(chains, encoded, ours.is_hooked)
        self._proofs.pop(family, None)
        self.moved = self.moved | {family} if ours.is_moved else self.moved - {family}
        if shape is None:
            self._shapes.pop(family, None)
        else:
            self._shapes[family] = shape
        return ours

    def _ask_numbers(self) -> None:
        self._sets = SetNumbers(self._ipset.numbers())

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
        if any(self._sockets[family].shape(self.table) != shape for family, shape in self._shapes.items()):
            return True
        records = Records(b"")
        if self._shapes and len(self._set_proofs.names) <= GLANCE_SETS and self._set_proofs.members <= GLANCE_MEMBERS:
            records = self._ipset.records(sorted(self._set_proofs.names), headers_only=True)
            if not self._set_proofs.agree(records):
                return True
        self._watch.arm(self.table, [self._sockets[family] for family in self._shapes], self._ipset, records)
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
        # Of sets that are not ours no more than the names is asked for; see `IpsetSocket.names`.
        records = self._ipset.records(self._ipset.names(ROOT))
        numbers = {record.header.name: record.header.index for record in records.decoded()} if self._set_proofs.is_news(records) else {}
        if any(self._sets.get(name) != number for name, number in numbers.items()):
            # The very bytes that were proven may mean other sets now.
            self._proofs.clear()
            self._ask_numbers()
        sets, strangers = self._set_proofs.differing(records)
        return Look(frozenset(family for family in FAMILIES if not self._is_as_written(family)), sets, strangers)

    @exclusive
    def reread(self, written: Ruleset, look: Look) -> Ruleset:
        """What the kernel holds, given what it should hold: what the look found to differ is read again."""
        names = look.sets | look.strangers | (self._set_proofs.names - written.sets.keys())
        sets = {name: found for name in sorted(names) if (found := self._read_set(name)) is not None}
        self._set_proofs.learn(sets, names)
        tables = {family: self._learn_table(family) for family in look.tables}
        chains = {**written.chains, **{family: ours.chains for family, ours in tables.items()}}
        hooked = written.hooked - tables.keys() | {family for family, ours in tables.items() if ours.is_hooked}
        kept = {name: found for name, found in written.sets.items() if name not in names}
        return Ruleset(chains, kept | sets, frozenset(hooked), self.table)

    def _read_set(self, name: str) -> Set | None:
        """None where there is none. One of a type that netpol does not read is, as a value, one that netpol wants nowhere: an empty one of
        ports, in the family that its name does not say. So it goes like any other that is not ours to have."""
        try:
            return self._ipset.read(name)
        except Unsupported:
            return Set(name, "hash:net,port", 6 if name.startswith(f"{ROOT}4") else 4)
        except KernelError as error:
            if error.code != errno.ENOENT or self._is_there(name):
                raise
            return None

    def _is_there(self, name: str) -> bool:
        """Asked once more, for a set that is taken for gone is created, or left where it is."""
        try:
            self._ipset.number(name)
        except KernelError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        return True

    def _is_as_written(self, family: Family) -> bool:
        if family not in self._sockets:
            return True
        socket, written = self._sockets[family], self._written[family]
        if family not in self._shapes and not socket.exists(self.table):
            return True
        entries = socket.entries(self.table)
        proof = entries.proof()
        if proof is None:
            return False  # somebody may be writing it: who reads it looks again
        if proof == self._proofs.get(family):
            return True
        snapshot = entries.snapshot()
        if not holds(snapshot, written.known, written.hooked, self._sets):
            return False
        self._proofs[family], self._shapes[family] = proof, snapshot.shape
        return True


def _command(step: Step) -> Command:
    if isinstance(step, CreateSet):
        return Create(step.set.name, step.set.kind, step.set.family, pack(step.set), net=step.set.net)
    if isinstance(step, DestroySet):
        return Destroy(step.name)
    if isinstance(step, ReplaceTable):
        raise TypeError("a table is not replaced by a command of ipset")
    kind = Add if isinstance(step, GrowSet) else Delete
    return kind(step.name, step.kind, step.family, pack(step.members))


def _family(step: Step) -> Family:
    if isinstance(step, CreateSet):
        return step.set.family
    if isinstance(step, DestroySet):
        return 6 if step.name.startswith("NETPOL6") else 4
    return step.family


def last_destroyed(steps: Sequence[Step]) -> tuple[DestroySet, ...]:
    """The sets that are destroyed behind all other steps: others go on the way, to be made anew."""
    last: list[DestroySet] = []
    for step in reversed(steps):
        if not isinstance(step, DestroySet):
            break
        last.append(step)
    return tuple(reversed(last))
