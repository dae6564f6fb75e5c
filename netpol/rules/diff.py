"""(wanted, found) -> the ordered steps that make found into wanted, make before break (ARCHITECTURE, order of a change).

Both sides are `Ruleset` values. They may be whole, for an audit, or hold only what a batch of events touched - of a live set then
only the members that may have changed - for the same function serves both. `diff(x, x)` is empty.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import Chain, Ruleset, Set, SetKind, TableName, is_flagged


class CreateSet(Struct, frozen=True, tag=True):
    """A set that does not exist yet, with all its members."""

    set: Set


class GrowSet(Struct, frozen=True, tag=True):
    """Members that a live set gets. One that differs from a member it has only in its nomatch flag replaces that one."""

    name: str
    kind: SetKind
    family: Family
    members: frozenset[bytes]


class ReplaceTable(Struct, frozen=True, tag=True):
    """All chains of ours in one table of a family, in one replace; FORWARD begins with the jump to NETPOL when `hooked`."""

    family: Family
    table: TableName
    chains: Mapping[str, Chain]
    hooked: bool


class ShrinkSet(Struct, frozen=True, tag=True):
    """Members that a live set loses."""

    name: str
    kind: SetKind
    family: Family
    members: frozenset[bytes]


class DestroySet(Struct, frozen=True, tag=True):
    """A set that no rule refers to any more."""

    name: str


Step = CreateSet | GrowSet | ReplaceTable | ShrinkSet | DestroySet


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
