"""The sets of ours that a network namespace holds: changed by steps, asked for their numbers, read, and looked at.

Steps are done in their order; neighbours travel together in one send, but nothing together with growth, for a command that fails does not
stop those behind it. Two failures are none: a set that is destroyed last and that somebody else uses is told, or that he has destroyed is
gone, and a set that is full is exchanged for a larger one. One of which most members leave is exchanged for what is left.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence

from netpol.errors import KernelError, Unsupported
from netpol.kernel.blocks import NO_SETS, SetNumbers
from netpol.kernel.ipset import Add, Command, Create, Delete, Destroy, IpsetSocket, Records, Swap, pack
from netpol.kernel.ipset_errors import BUSY, HASH_FULL, REFERENCED
from netpol.kernel.proofs import Look, SetProofs
from netpol.rules.ruleset import (
    ROOT,
    CreateSet,
    DestroySet,
    GrowSet,
    SetStep,
    ShrinkSet,
    beside,
    beside_what,
    grown,
    is_our_set,
    last_destroyed,
)
from netpol.rules.sets import Set

# Up to so many new sets are asked for their numbers by the send that makes them. Of more the answers might not fit where they wait, and the
# kernel would look for each name among all; one listing of all sets walks every bucket of each.
MANY = 64
# Up to so many members of ours, and so many sets, their headers are looked at with the tables: that walks every bucket of each.
GLANCE_MEMBERS, GLANCE_SETS = 20_000, 64

# The letter of the set that takes another one's place, by `beside`.
OTHER = "x"


class HeldSets:
    """See the module. For one thread at a time, as its socket, which is closed by whoever opened it."""

    def __init__(self, socket: IpsetSocket) -> None:
        self.socket = socket
        self.numbers = NO_SETS
        """Those of all sets of the namespace, as far as they were asked for or made here."""
        self._proofs = SetProofs()
        self._behind: list[str] = []  # what exchanges have left, by steps that are being done
        self._standing: tuple[SetNumbers, Mapping[int, int | None]] = NO_SETS, {}

    def ask_numbers(self) -> None:
        self.numbers = SetNumbers(self.socket.numbers())

    def stands_for(self) -> Mapping[int, int | None]:
        """The numbers of the small sets beside live ones that there are just now, and of the sets that they stand for, for counters' sake:
        what is looked at too is as the live set; what does not count is as if nobody asked."""
        numbers, found = self._standing
        if numbers is not self.numbers:
            small = [(number, live) for name, number in self.numbers.pairs if name[7:8] != "-" and (live := beside_what(name)) is not None]
            found = {number: self.numbers.get(live) if letter == "a" else None for number, (live, letter) in small}
            self._standing = self.numbers, found
        return found

    # -- changing ------------------------------------------------------------------------------------------------------

    def change(self, steps: Sequence[SetStep]) -> tuple[str, ...]:
        """Does the steps. KernelError names what failed; the steps before it are in force.

        The value: sets that were to be destroyed, last of all or aside, and could not, for somebody uses them.
        """
        self._behind = []
        left = [name for send in _sends(steps) for name in self._run(send)]
        return (*left, *self._behind)

    def _run(self, steps: Sequence[SetStep]) -> tuple[str, ...]:
        """The names of those sets, of the ones that are destroyed last, that are in use."""
        try:
            done, numbers = self._send(steps)
        except BaseException:
            # Some of them may have been carried out.
            self._proofs.doubt(steps)
            self.ask_numbers()
            raise
        self._proofs.follow(done)
        self._follow_numbers(done, numbers)
        return () if done is steps else tuple(step.name for step in steps if isinstance(step, DestroySet) and step not in done)

    def _send(self, steps: Sequence[SetStep]) -> tuple[Sequence[SetStep], Mapping[str, int]]:
        """Has the commands carried out; the steps that tell what was done, and the numbers of few new sets.

        The first error is that of the first command that failed: those before it have done what they should.
        """
        if isinstance(steps[0], ShrinkSet) and steps[0].left is not None:
            return [self._leave(steps[0], steps[0].left)], {}
        few = sum(isinstance(step, CreateSet) for step in steps) <= MANY
        try:
            return steps, self.socket.run([_command(step) for step in steps], numbered=few)
        except KernelError as error:
            if (error.op, error.code) == ("ipset add", HASH_FULL) and all(isinstance(step, GrowSet) for step in steps):
                return [self._grow(step) for step in steps if isinstance(step, GrowSet)], {}
            last = {step.name for step in last_destroyed(steps)}
            if error.op != "ipset destroy" or error.code not in (BUSY, REFERENCED, errno.ENOENT) or error.object not in last:
                raise
            left = last.intersection(self.socket.names(ROOT))
            return [step for step in steps if not (isinstance(step, DestroySet) and step.name in left)], {}

    def _follow_numbers(self, steps: Sequence[SetStep], numbers: Mapping[str, int]) -> None:
        # Of a set that is destroyed and made, or the reverse, the last counts.
        there = {step.name: isinstance(step, CreateSet) for step in steps if isinstance(step, CreateSet | DestroySet)}
        made = [name for name, is_made in there.items() if is_made]
        if len(made) > MANY:
            self.ask_numbers()
        elif there:
            new = {name: numbers[name] if name in numbers else self.socket.number(name) for name in made}
            self.numbers = self.numbers.changed(there, new)

    # -- one set in another one's place --------------------------------------------------------------------------------

    def _grow(self, step: GrowSet) -> SetStep:
        """Lets a set grow; one that has no room is exchanged for one with the same members, and room: rules that use its name see the new
        members at once. The step that tells what was done."""
        try:
            self.socket.run([_command(step)])
        except KernelError as error:
            if error.code != HASH_FULL:
                raise
        else:
            return step
        larger = grown(self.socket.read(step.name), step)
        self._exchange(larger)
        return CreateSet(larger)

    def _leave(self, step: ShrinkSet, left: Set) -> SetStep:
        """Members leave a set of which less is left: that is made and takes its place. Where this does not go (somebody lists one of the
        two just now, another set is in the way), they are deleted. The step that tells what was done."""
        try:
            self._exchange(left)
        except KernelError:
            self.ask_numbers()
            self.socket.run([_command(step)])
            self._clear_away(beside(left.name, OTHER))
        # It may have taken the place before that failed: either way it is as one that was made anew.
        return CreateSet(left)

    def _clear_away(self, aside: str) -> None:
        """Destroys what an exchange that failed has left, or says that it is left over."""
        if self.numbers.get(aside) is None:
            return
        try:
            self.socket.run([Destroy(aside)])
        except KernelError as error:
            if error.code not in (BUSY, REFERENCED):
                raise
            self._behind.append(aside)
        else:
            self.numbers = self.numbers.changed([aside], {})

    def _exchange(self, new: Set) -> None:
        """Makes a set and lets it take the place of the one of this name and type: rules that use the name see the new members at once."""
        aside = new._replace(name=beside(new.name, OTHER))
        if self.numbers.get(aside.name) is not None:
            self.socket.run([Destroy(aside.name)])
        self.socket.run([_command(CreateSet(aside))])
        self.socket.run([Swap(aside.name, new.name), Destroy(aside.name)])

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Set]:
        """All of them by name; from now on this is what they should be."""
        self.ask_numbers()
        names = [name for name, _ in self.numbers.pairs if is_our_set(name)]
        return self._learn(names, self._proofs.names.union(names))

    def reread(self, written: Mapping[str, Set], look: Look) -> dict[str, Set]:
        """The same, given what there should be: what the look found to differ is read again."""
        names = look.sets | look.strangers | (self._proofs.names - written.keys())
        return {name: found for name, found in written.items() if name not in names} | self._learn(sorted(names), names)

    def sizes(self) -> dict[str, int]:
        """How many members each has, as the kernel counts them."""
        records = self.socket.records(self.socket.names(ROOT), headers_only=True)
        return {record.header.name: record.header.entries for record in records.decoded()}

    def _learn(self, names: Sequence[str], doubted: frozenset[str]) -> dict[str, Set]:
        sets = {name: found for name in names if (found := self._read(name)) is not None}
        self._proofs.learn(sets, doubted)
        return sets

    def _read(self, name: str) -> Set | None:
        """None where there is none. One of a type that netpol does not read is, as a value, one that netpol wants nowhere: an empty one of
        ports, in the family that its name does not say. So it goes like any other that is not ours to have."""
        try:
            return self.socket.read(name)
        except Unsupported:
            return Set(name, "hash:net,port", 6 if name.startswith(f"{ROOT}4") else 4)
        except KernelError as error:
            if error.code != errno.ENOENT or self._is_there(name):
                raise
            return None

    def _is_there(self, name: str) -> bool:
        """Asked once more, for a set that is taken for gone is created, or left where it is."""
        try:
            self.socket.number(name)
        except KernelError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        return True

    # -- looking -------------------------------------------------------------------------------------------------------

    def glance(self) -> Records | None:
        """The headers of few sets, of many none; None where they do not say what they should."""
        if len(self._proofs.names) > GLANCE_SETS or self._proofs.members > GLANCE_MEMBERS:
            return Records(b"")
        records = self.socket.records(sorted(self._proofs.names), headers_only=True)
        return records if self._proofs.agree(records) else None

    def look(self) -> tuple[frozenset[str], frozenset[str]]:
        """(sets that are not as they should be, those under whose name another set stands); asks for numbers, where they are others."""
        # Of sets that are not ours no more than the names is asked for; see `IpsetSocket.names`.
        records = self.socket.records(self.socket.names(ROOT))
        news = records.decoded() if self._proofs.is_news(records) else ()
        if any(self.numbers.get(record.header.name) != record.header.index for record in news):
            self.ask_numbers()
        return self._proofs.differing(records)


def _sends(steps: Sequence[SetStep]) -> Iterator[Sequence[SetStep]]:
    """What travels together: nothing narrows before it is known that what widens is done, and an exchange goes by itself."""
    send: list[SetStep] = []
    for step in steps:
        is_exchange = isinstance(step, ShrinkSet) and step.left is not None
        if send and (is_exchange or (type(step) is not type(send[-1]) and GrowSet in (type(step), type(send[-1])))):
            yield send
            send = []
        send.append(step)
        if is_exchange:
            yield send
            send = []
    if send:
        yield send


def _command(step: SetStep) -> Command:
    if isinstance(step, CreateSet):
        return Create(step.set.name, step.set.kind, step.set.family, pack(step.set), net=step.set.net)
    if isinstance(step, DestroySet):
        return Destroy(step.name)
    kind = Add if isinstance(step, GrowSet) else Delete
    return kind(step.name, step.kind, step.family, pack(step.members))
