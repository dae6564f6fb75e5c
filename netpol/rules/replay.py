"""A ruleset, and the steps that were done since: what is in force, told from what was written and never read back.

Whoever follows the steps of all enforcements knows what the kernel holds, on a thread of its own and without asking for the state of
the thread that decides. Following costs what the steps are long; the members of a set that changed are put together when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from msgspec.structs import replace

from netpol.model import Address
from netpol.rules.ruleset import NEW, CreateSet, GrowSet, ReplaceTable, Ruleset, ShrinkSet, Step, grown, is_front, link_local_rules
from netpol.rules.sets import Set, is_flagged

LATER = 256
"""At most so many steps of a set wait until somebody asks what is in it; one more, and they are put together."""


class Replay:
    """See the module. Begins with the ruleset that was in force before the first step."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self._chains, self._sets, self._hooked = dict(ruleset.chains), dict(ruleset.sets), set(ruleset.hooked)
        self._later: dict[str, list[GrowSet | ShrinkSet]] = {}
        self._same = True

    def follow(self, steps: Iterable[Step]) -> None:
        """These steps were done, in this order."""
        for step in steps:
            self._same = False
            if isinstance(step, GrowSet | ShrinkSet):
                later = self._later.setdefault(step.name, [])
                later.append(step)
                if len(later) > LATER:
                    self._sets[step.name] = _changed(self._sets[step.name], self._later.pop(step.name))
            elif isinstance(step, ReplaceTable):
                self._chains[step.family] = step.chains
                (self._hooked.add if step.hooked else self._hooked.discard)(step.family)
            else:
                self._later.pop(step.name, None)
                self._sets.pop(step.name, None)
                if isinstance(step, CreateSet):
                    self._sets[step.name] = step.set

    def ruleset(self) -> Ruleset:
        """What is in force now; the same value as last time where nothing was done since, and the same sets where those did not change."""
        if not self._same:
            for name, steps in self._later.items():
                self._sets[name] = _changed(self._sets[name], steps)
            self._later = {}
            self._ruleset = Ruleset(dict(self._chains), dict(self._sets), frozenset(self._hooked), self._ruleset.table)
            self._same = True
        return self._ruleset

    @property
    def denies_link_local(self) -> bool:
        """Whether new flows from and to IPv6 link-local addresses are denied now."""
        chain = self._chains.get(6, {}).get(NEW)
        return chain is not None and link_local_rules()[0] in chain.rules


def _changed(found: Set, steps: Iterable[GrowSet | ShrinkSet]) -> Set:
    for step in _joined(steps):
        found = grown(found, step) if isinstance(step, GrowSet) else step.left or found.minus(step.members)
    return found


def _joined(steps: Iterable[GrowSet | ShrinkSet]) -> Iterator[GrowSet | ShrinkSet]:
    """The same, where a set that only grew for a while grows once: each time is a copy of it."""
    for grew, run in groupby(steps, lambda step: isinstance(step, GrowSet) and not is_flagged(step.kind)):
        found = list(run)
        if grew:
            found = [replace(found[0], members=frozenset().union(*(step.members for step in found)))]
        yield from found


def opens(steps: Sequence[Step]) -> bool:
    """Whether steps were done that can only let more through: what grows are sets by which rules of netpol allow."""
    return bool(steps) and all(isinstance(step, GrowSet) and not is_front(step.name) and not is_flagged(step.kind) for step in steps)


def touched(steps: Iterable[Step]) -> frozenset[Address] | None:
    """The addresses that live sets got or lost; None where it was a range of them. What is new or gone is a matter of the chains."""
    found: set[Address] = set()
    for step in steps:
        if not isinstance(step, GrowSet | ShrinkSet):
            continue
        width = 4 if step.family == 4 else 16
        if is_flagged(step.kind) and any(member[width] != width * 8 for member in step.members):
            return None
        found.update([member[:width] for member in step.members])
    return frozenset(found)
