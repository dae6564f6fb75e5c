"""What our sets hold after all that this process wrote and read, and whether the kernel still says so.

A set is known by its content (the digest of its members) and by its header: type, family, number, most members, revision of the
type, which is what it was when it was looked at first. What is written is followed when it is needed, not when it is written. The
content of a set whose members changed in a way that sums cannot follow (the nomatch flag flips in place; a command failed on the way)
is unknown until somebody has read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from netpol.kernel.digests import Content, content
from netpol.kernel.ipset import Record, Records, pack
from netpol.model import Family
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, SetStep, ShrinkSet
from netpol.rules.sets import Set, is_flagged, member_size

# So many steps are remembered before they are followed: what a busy minute brings, or one write of a storm, and no more when nobody looks.
_LATER = 2048


class Look(Struct, frozen=True):
    """Where the kernel is not as it was written or read last; false where nothing is.

    tables -- families whose chains or jump differ; sets -- names: other members, gone, or new; strangers -- names under which another
    set stands than the one that was there (swapped, or destroyed and made again).
    """

    tables: frozenset[Family] = frozenset()
    sets: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tables or self.sets or self.strangers)


class _Identity(NamedTuple):
    kind: str
    family: int
    number: int
    maxelem: int
    revision: int


class SetProofs:
    """See the module."""

    def __init__(self) -> None:
        self._contents: dict[str, Content | None] = {}
        self._identities: dict[str, _Identity] = {}
        self._later: list[SetStep] = []
        self._proven: bytes | None = None  # records that were found to be right, and nothing was written since
        self._agreed: bytes | None = None  # the same of records without digests

    def follow(self, steps: Iterable[SetStep]) -> None:
        """These were done."""
        self._later += steps
        self._proven = self._agreed = None
        if len(self._later) > _LATER:
            self._catch_up()

    def doubt(self, steps: Iterable[SetStep]) -> None:
        """Some of these may have been done, in part."""
        self._catch_up()
        self._proven = self._agreed = None
        for step in steps:
            self._contents[step.name] = None

    def learn(self, sets: Mapping[str, Set], names: Iterable[str]) -> None:
        """Of these names exactly those are there that are in `sets`, and hold this."""
        self._catch_up()
        self._proven = self._agreed = None
        for name in names:
            found = sets.get(name)
            self._identities.pop(name, None)
            if found is None:
                self._contents.pop(name, None)
            else:
                self._contents[name] = content(pack(found), member_size(found.kind, found.family))

    @property
    def names(self) -> frozenset[str]:
        """The sets that should be there."""
        self._catch_up()
        return frozenset(self._contents)

    @property
    def members(self) -> int:
        """How many members all of them have, as far as it is known."""
        self._catch_up()
        return sum(found.members for found in self._contents.values() if found is not None)

    def is_news(self, records: Records) -> bool:
        """Whether these are not the records that were found to be right last, with nothing written since."""
        return records.raw != self._proven

    def differing(self, records: Records) -> tuple[frozenset[str], frozenset[str]]:
        """(sets that are not as they should be, those under whose name another set stands) by records with digests."""
        if not self.is_news(records):
            return frozenset(), frozenset()
        self._catch_up()
        found = {record.header.name: record for record in records.decoded()}
        sets = {name for name, record in found.items() if self._contents.get(name) != record.content}
        sets |= self._contents.keys() - found.keys()
        strangers = {name for name, record in found.items() if self._identities.setdefault(name, _identity(record)) != _identity(record)}
        if not sets and not strangers:
            self._proven = records.raw
        return frozenset(sets), frozenset(strangers)

    def agree(self, records: Records) -> bool:
        """Whether records without digests say nothing against it: names, headers, numbers of members."""
        if records.raw == self._agreed:
            return True
        self._catch_up()
        found = {record.header.name: record for record in records.decoded()}
        agreed = found.keys() == self._contents.keys() and all(
            self._identities.setdefault(name, _identity(record)) == _identity(record)
            and ((known := self._contents[name]) is None or known.members == record.header.entries)
            for name, record in found.items()
        )
        if agreed:
            self._agreed = records.raw
        return agreed

    def _catch_up(self) -> None:
        steps, self._later = self._later, []
        contents = self._contents
        for step in _lasting(steps):
            if isinstance(step, CreateSet):
                contents[step.name] = content(pack(step.set), member_size(step.set.kind, step.set.family))
                self._identities.pop(step.name, None)
            elif isinstance(step, DestroySet):
                contents.pop(step.name, None)
                self._identities.pop(step.name, None)
            else:
                contents[step.name] = _changed(contents.get(step.name), step)


def _lasting(steps: Sequence[SetStep]) -> Iterator[SetStep]:
    """Without those whose set was made anew or destroyed afterwards: small sets beside live ones are gone by the time of a look."""
    kept: list[SetStep] = []
    over: set[str] = set()
    for step in reversed(steps):
        name = step.name
        if name not in over:
            kept.append(step)
            if isinstance(step, CreateSet | DestroySet):
                over.add(name)
    return reversed(kept)


def _changed(found: Content | None, step: GrowSet | ShrinkSet) -> Content | None:
    if found is None or is_flagged(step.kind):
        return None
    change = content(pack(step.members), member_size(step.kind, step.family))
    return found.plus(change) if isinstance(step, GrowSet) else found.minus(change)


def _identity(record: Record) -> _Identity:
    header = record.header
    return _Identity(header.kind, header.family, header.index, header.maxelem, record.revision)
