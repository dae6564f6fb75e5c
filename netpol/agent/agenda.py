"""What the loop does next, and when: decided from times that are passed in, without a clock, a thread or a kernel.

The first change after quiet is due at once. Changes that come while the kernel is written wait, and are written together: after each
write there is a pause as long as a processor was busy with it, after one of many events up to ten times as long, within bounds and as
long as more of them come. So within these bounds writing takes no more than half of a processor, and in a thick storm a tenth: the rest is
left for taking it in. Whatever comes in a storm waits as long, somebody else's change too; its end is written soon.
Time in which a write only waited, for a processor or for iptables' lock, is no reason to have the next change wait too. What the kernel
refused is tried again after a pause that doubles, with jitter; a change that comes meanwhile does not wait for that, for it may have
nothing to do with what is refused.

Invariants: nothing is written, audited or looked at before every kind is complete; once complete, always complete, whatever the source
does; a change is never postponed by an audit that is due at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from msgspec import Struct

from netpol.model import Object

# More events than FEW in one write are a storm, of which the more are gathered the thicker it comes, up to MANY.
FEW, MANY = 10, 100

Task = Literal["absorb", "apply", "look", "audit", "save"]


class Pace(Struct, frozen=True):
    """How long things take their time; all in seconds.

    look -- between two cheap looks at the tables; audit -- between two audits (0: none); gather -- how long events are gathered before
    they are taken in, as long as nothing may be written; rest -- the least and the most pause after a write; quiet -- a storm has ended
    when no event came for so long; retry -- the first and the longest pause before what was refused is tried again; save -- how long
    nothing has to change before the state is saved, and how long it may go unsaved while changes keep coming.
    """

    look: float = 0.1
    audit: float = 10.0
    gather: float = 0.02
    rest: tuple[float, float] = (0.002, 0.5)
    quiet: float = 0.02
    retry: tuple[float, float] = (0.1, 30.0)
    save: tuple[float, float] = (1.0, 5.0)


class Due(NamedTuple):
    """A task, and when it is due. `absorb` takes in what came, `apply` does that too and makes the kernel so."""

    at: float
    task: Task


class Waiting(NamedTuple):
    """Events that are not written yet: when the newest of them came, and the oldest of those that were not even taken in. None: no such."""

    newest: float | None = None
    heard: float | None = None


NOTHING = Waiting()


class Agenda:
    """See the module. `jitter` gives numbers from 0 to 1. Times may be of any clock that only goes forward."""

    def __init__(self, kinds: Iterable[type[Object]], pace: Pace, jitter: Callable[[], float]) -> None:
        self.missing: set[type[Object]] = set(kinds)
        self.refusals = 0
        self.in_force = False  # whether all that was taken in is in the kernel, as far as we know
        self.pace, self._jitter = pace, jitter
        self._rest_until = self._storm_until = float("-inf")
        self._attempt: float | None = None  # when to write without waiting for a change
        self._look: float | None = None
        self._audit: float | None = None
        self._first_unsaved: float | None = None
        self._saved = False  # what is in force: an earlier process's file may be lost, damaged, or of another version
        self._last_unsaved = 0.0

    @property
    def complete(self) -> bool:
        """Whether all objects of every kind have been said, so that writing is safe."""
        return not self.missing

    @property
    def unsaved(self) -> bool:
        """Whether the kernel holds all that it should, and was written since the state was saved last, or that never was."""
        return self.in_force and self._first_unsaved is not None

    def due(self, waiting: Waiting, now: float, looking: bool = True) -> Due | None:
        """What is due first; None where nothing is, until something comes. Without `looking`, what is due besides looks."""
        absorb = waiting.heard + self.pace.gather if waiting.heard is not None else None
        if self.missing:
            return Due(absorb, "absorb") if absorb is not None else None
        # This is asked many times a second while nothing happens. What is overdue is due now, so that the order decides, not who has waited
        # longest.
        found: Task | None = None
        first = float("inf")
        tasks: tuple[tuple[Task, float | None], ...] = ("apply", self._apply_at(waiting)), ("absorb", absorb)
        for task, at in (*tasks, *(self._standing(looking) if self.in_force else ())):
            if at is not None and (at if at > now else now) < first:
                found, first = task, at if at > now else now
        return Due(first, found) if found is not None else None

    def _apply_at(self, waiting: Waiting) -> float | None:
        """When a change that waits may be written, or what is to be written anyway, whichever is first."""
        attempt = self._attempt
        if waiting.newest is None:
            return attempt
        change = max(self._rest_until, min(self._storm_until, waiting.newest + self.pace.quiet))
        return change if attempt is None else min(change, attempt)

    def _standing(self, looking: bool) -> tuple[tuple[Task, float | None], ...]:
        """What is to be done while all is in force, in order."""
        save = None
        if self._first_unsaved is not None:
            quiet, longest = self.pace.save
            save = min(self._last_unsaved + quiet, self._first_unsaved + longest)
        return ("look", self._look if looking else None), ("audit", self._audit), ("save", save)

    def heard_all(self, kind: type[Object], now: float) -> None:
        """All objects of a kind have been said: the first time that this is so of every kind, the kernel is written at once."""
        if kind in self.missing:
            self.missing.discard(kind)
            if not self.missing:
                self._attempt = now

    def applied(self, ended: float, took: float, changed: bool, events: int = 0) -> None:
        """The kernel is as wanted; took -- seconds of a processor, for so many events; changed -- something had to be written for that."""
        least, most = self.pace.rest
        self._rest_until = ended + min(max(took, least), most)
        self._storm_until = ended + min(took * min(events, MANY) / FEW, most) if changed else self._rest_until
        self._attempt = None
        self.refusals = 0
        if not self.in_force:
            self.in_force = True
            self._look = ended + self.pace.look
            self._plan_audit(ended)
        self._note_unsaved(ended, changed)

    def refused(self, began: float, ended: float) -> None:
        """The kernel did not take it all."""
        first, longest = self.pace.retry
        wait = min(first * 2.0 ** min(self.refusals, 30), longest)
        self.refusals += 1
        # What was done of it is in force, and another try may find nothing left to do.
        self.in_force = self._saved = False
        self._attempt = ended + wait * (0.5 + self._jitter() / 2)
        self._rest_until = ended + min(max(ended - began, first / 2), longest)

    def hold(self, until: float) -> None:
        """What was written is only a part of it: the rest is to be written at that time, and nothing before."""
        self.in_force = False
        self._rest_until = self._attempt = until

    def looked(self, now: float, touched: bool) -> None:
        """The cheap look was taken; somebody who touched a table brings the audit at once."""
        self._look = now + self.pace.look
        if touched:
            self._audit = now

    def plan_look(self, at: float) -> None:
        """Looks were taken meanwhile; the next one is due at that time, which is past where one of them found something."""
        self._look = at

    def audited(self, now: float, changed: bool = False) -> None:
        """All is as wanted; changed -- something had to be written for that, and may have been a change that was pending."""
        self._plan_audit(now)
        self._note_unsaved(now, changed)

    def saved(self) -> None:
        self._saved, self._first_unsaved = True, None

    def _note_unsaved(self, now: float, changed: bool) -> None:
        if changed or not self._saved:
            self._last_unsaved = now
            if self._first_unsaved is None:
                self._first_unsaved = now

    def _plan_audit(self, now: float) -> None:
        self._audit = now + self.pace.audit if self.pace.audit else None
