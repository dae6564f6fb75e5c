"""(wanted, found) -> the ordered steps that make found into wanted, make before break (ARCHITECTURE, order of a change).

Both sides are `Ruleset` values. They may be whole, for an audit, or hold only what a batch of events touched - of a live set then
only the members that may have changed - for the same function serves both. `diff(x, x)` is empty.
"""

from __future__ import annotations

from netpol.model import FAMILIES
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, ReplaceTable, Ruleset, SetKind, ShrinkSet, Step, is_flagged


def diff(wanted: Ruleset, found: Ruleset) -> tuple[Step, ...]:
    """The steps, in the order in which they are to be made."""
    created: list[Step] = [CreateSet(wanted.sets[name]) for name in sorted(wanted.sets.keys() - found.sets.keys())]
    grown: list[Step] = []
    shrunk: list[Step] = []
    for name in sorted(wanted.sets.keys() & found.sets.keys()):
        want, have = wanted.sets[name], found.sets[name]
        if want.members != have.members:
            gains = want.members - have.members
            losses = _without_flips(have.members - want.members, gains, want.kind)
            if gains:
                grown.append(GrowSet(name, want.kind, want.family, gains))
            if losses:
                shrunk.append(ShrinkSet(name, want.kind, want.family, losses))
    replaced: list[Step] = [
        ReplaceTable(family, wanted.table, wanted.chains.get(family, {}), family in wanted.hooked)
        for family in FAMILIES
        if wanted.chains.get(family, {}) != found.chains.get(family, {}) or (family in wanted.hooked) != (family in found.hooked)
    ]
    destroyed: list[Step] = [DestroySet(name) for name in sorted(found.sets.keys() - wanted.sets.keys())]
    return (*created, *grown, *replaced, *shrunk, *destroyed)


def _without_flips(losses: frozenset[bytes], gains: frozenset[bytes], kind: SetKind) -> frozenset[bytes]:
    """What is left to delete: a prefix that only changes its nomatch flag is changed in place by the add; deleting it would lose it."""
    if not losses or not gains or not is_flagged(kind):
        return losses
    kept = {_unflagged(member) for member in gains}
    return frozenset(member for member in losses if _unflagged(member) not in kept)


def _unflagged(member: bytes) -> bytes:
    at = 5 if len(member) < 16 else 17
    return member[:at] + member[at + 1 :]
