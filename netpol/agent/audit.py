"""What somebody else changed in the kernel, told by comparing what is there with what was written. Pure.

Drift is relative to what was *written*, not to what is wanted: an event that is not enforced yet is no drift.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, get_args

from msgspec import Struct

from netpol.errors import printable
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import Chain, Ruleset
from netpol.rules.sets import Set

Kind = Literal[
    "table_flushed",
    "jump_moved",
    "jump_deleted",
    "chain_edited",
    "chain_lost",
    "chain_stray",
    "member_added",
    "member_removed",
    "set_swapped",
    "set_lost",
    "set_stray",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Drift(Struct, frozen=True):
    """How the kernel differed from what was written, by kind. All empty: it did not.

    tables -- families in which nothing of ours is left: no jump, no chain or none with a rule; they are named nowhere else.
    moved, deleted -- families whose FORWARD has our jump, but not first or more than once; and no jump of ours.
    edited, lost, stray -- chains, as "IPv4 NETPOL-...", that hold something else, are gone, or are not ours to have.
    sets -- (name, members missing, members too many); swapped_sets -- names under which another set stands, whatever is in it: it was
    swapped, or made anew; lost_sets, stray_sets -- names.
    """

    tables: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    sets: tuple[tuple[str, int, int], ...] = ()
    swapped_sets: tuple[str, ...] = ()
    lost_sets: tuple[str, ...] = ()
    stray_sets: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != NO_DRIFT

    def kinds(self) -> Mapping[Kind, int]:
        """How many tables, jumps, chains, and sets (not members) have each of KINDS; those that none has are left out."""
        swapped = set(self.swapped_sets)
        found: dict[Kind, int] = {
            "table_flushed": len(self.tables),
            "jump_moved": len(self.moved),
            "jump_deleted": len(self.deleted),
            "chain_edited": len(self.edited),
            "chain_lost": len(self.lost),
            "chain_stray": len(self.stray),
            "member_added": sum(extra > 0 and name not in swapped for name, _, extra in self.sets),
            "member_removed": sum(missing > 0 and name not in swapped for name, missing, _ in self.sets),
            "set_swapped": len(self.swapped_sets),
            "set_lost": len(self.lost_sets),
            "set_stray": len(self.stray_sets),
        }
        return {kind: count for kind, count in found.items() if count}

    def named(self) -> tuple[str, ...]:
        """What differed, in printable words, a few for each thing."""
        words = (
            *(f"all of {family}'s table (flushed)" for family in self.tables),
            *(f"the jump of {family} FORWARD (moved)" for family in self.moved),
            *(f"the jump of {family} FORWARD (deleted)" for family in self.deleted),
            *(f"the chain {chain} (edited)" for chain in self.edited),
            *(f"the chain {chain} (lost)" for chain in self.lost),
            *(f"the chain {chain} (not ours to have)" for chain in self.stray),
            *(f"the set {name} (swapped)" for name in self.swapped_sets),
            *(f"the set {name} ({missing} missing, {extra} too many)" for name, missing, extra in self.sets),
            *(f"the lost set {name}" for name in self.lost_sets),
            *(f"the stray set {name}" for name in self.stray_sets),
        )
        return tuple(map(printable, words))


NO_DRIFT = Drift()


def written(whole: Ruleset, ahead: Ruleset, behind: Ruleset) -> Ruleset:
    """What was written last: all that is wanted, without what is pending; of sets that are leaving the members are not known any more.

    whole -- `NodeState.wanted`; ahead, behind -- what `NodeState.pending` says is wanted and was found.
    """
    sets = {name: found for name, found in whole.sets.items() if name not in ahead.sets}
    for name, before in behind.sets.items():
        after = ahead.sets.get(name)
        sets[name] = before if after is None else before.with_members(whole.sets[name].members - after.members | before.members)
    return Ruleset(behind.chains, sets, behind.hooked, whole.table)


def compare(wanted: Ruleset, found: Ruleset, moved: Collection[Family] = (), strangers: Collection[str] = ()) -> Drift:
    """How `found` differs from `wanted`.

    moved -- families whose jump is found, but not where it belongs; strangers -- names of sets under which another set stands, as their
    headers say. Two sets that have each other's members were swapped as well.
    """
    flushed = [family for family in FAMILIES if _is_flushed(wanted, found, family)]
    hooks = [family for family in FAMILIES if (family in wanted.hooked) != (family in found.hooked) and family not in flushed]
    chains = [chain for family in FAMILIES if family not in flushed for chain in _chains(wanted, found, family)]
    differing = [name for name in sorted(wanted.sets.keys() & found.sets.keys()) if not wanted.sets[name].holds_same(found.sets[name])]
    swapped = {name for name in strangers if name in wanted.sets and name in found.sets}
    swapped |= {name for name in differing if any(_is_exchanged(wanted, found, name, other) for other in differing)}
    return Drift(
        tables=_named(flushed),
        moved=_named([family for family in hooks if family in moved or family in found.hooked]),
        deleted=_named([family for family in hooks if family not in moved and family not in found.hooked]),
        edited=tuple(name for name, want, have in chains if want is not None and have is not None),
        lost=tuple(name for name, _, have in chains if have is None),
        stray=tuple(name for name, want, _ in chains if want is None),
        sets=tuple([_members(wanted.sets[name], found.sets[name]) for name in differing]),
        swapped_sets=tuple(sorted(swapped)),
        lost_sets=tuple(sorted(wanted.sets.keys() - found.sets.keys())),
        stray_sets=tuple(sorted(found.sets.keys() - wanted.sets.keys())),
    )


def _named(families: Collection[Family]) -> tuple[str, ...]:
    return tuple(f"IPv{family}" for family in sorted(families))


def _is_flushed(wanted: Ruleset, found: Ruleset, family: Family) -> bool:
    there = found.chains.get(family, {})
    return family in wanted.hooked and family not in found.hooked and not any(chain.rules for chain in there.values())


def _chains(wanted: Ruleset, found: Ruleset, family: Family) -> Iterator[tuple[str, Chain | None, Chain | None]]:
    want, have = wanted.chains.get(family, {}), found.chains.get(family, {})
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            yield f"IPv{family} {name}", want.get(name), have.get(name)


def _members(want: Set, have: Set) -> tuple[str, int, int]:
    return want.name, len(want.members - have.members), len(have.members - want.members)


def _is_exchanged(wanted: Ruleset, found: Ruleset, name: str, other: str) -> bool:
    return wanted.sets[name].holds_same(found.sets[other]) and wanted.sets[other].holds_same(found.sets[name])
