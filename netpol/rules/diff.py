"""(wanted, found) -> the ordered steps that make found into wanted, hitlessly.

Both sides are `Ruleset` values. They may be whole, for an audit, or hold only what a batch of events touched - of a live set then
only the members that may have changed - for the same function serves both. `diff(x, x)` is empty.

The law: at every point between two steps, what old and new both allow passes, and what both deny does not. A table replace is one
step for all packets of a family; a set's members change one after another. Hence:

- A batch that only widens sets, or only narrows them, passes through nothing but states between old and new.
- One that does both is as safe for a flow one end of which is ours: that end allows, on the way, what it allowed or will allow. But
  with both ends ours, one may be wide already and the other still: two different addresses of ours on either side need more.
- A batch that changes chains and live sets needs more too: the old rules with the new members, or the reverse, are neither state.
- "More" is this: the table is replaced by the new rules over the *old* sets and, for each set that changes, two small ones beside
  it: `added` is looked at too, and what is in `removed` does not count. That one replace is the whole change. Then the live sets
  change, which nobody can tell, and a second replace leaves the two small sets out. It costs what the batch is long, not the sets.
- A set in front of a tree (`netpol.rules.compile.front`) changes along with its table and needs none of that: it grows before the table
  is replaced, and shrinks after it. Its members mean nothing but to the tree, where those that come have no leaf yet, and those that go
  have none any more: at no point is an isolated pod's address missing.
- Where 1,024 members or more leave a live set, and fewer stay, the step says what stays: a set of that may be made and swapped in
  whole. Of 60,000 members 6,000 leave in 0.8 ms (swapped 6.1), 30,000 in 3.7 (3.0), 54,000 in 8.9 (0.6); of 1,000 members 900 in 0.13
  (0.02). Only a set of which all members are here is one that this can be said of.
- A live set that is of another type than it is to be (what an older netpol left) goes the same way: all of it stands beside it while it
  is made anew. Where no rule of ours refers to it, somebody else made it, and it is made anew at once.
- A change that broke off leaves rules over small sets. What they say then is a state like any other; the next change takes other
  names for its own small sets, and destroys those at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from msgspec import Struct
from msgspec.structs import replace

from netpol.model import FAMILIES, Address, Family, Network
from netpol.rules.ruleset import (
    BESIDE,
    MANY_GO,
    Chain,
    CreateSet,
    DestroySet,
    GrowSet,
    OpaqueTarget,
    ReplaceTable,
    Rule,
    Ruleset,
    SetMatch,
    ShrinkSet,
    Step,
    beside,
    beside_what,
    is_front,
)
from netpol.rules.sets import Set, is_flagged


class _Change(Struct, frozen=True):
    """A live set and the members that it gets and loses, and the letters of the small sets beside it; of one that is `anew`, because
    its type is another one, the members that it gets are all."""

    set: Set
    gains: frozenset[bytes]
    losses: frozenset[bytes]
    letters: tuple[str, str] = BESIDE[0]
    anew: bool = False


def diff(wanted: Ruleset, found: Ruleset, local: AbstractSet[Address] | None = None) -> tuple[Step, ...]:
    """The steps, in the order in which they are to be made.

    local -- the addresses of this node's isolated pods; without it any address might be one, and some batches take a detour.
    """
    both = sorted(wanted.sets.keys() & found.sets.keys())
    others = [name for name in both if _type(wanted.sets[name]) != _type(found.sets[name])]
    used = _used(found) if others or any(map(beside_what, found.sets)) else frozenset()
    anew = [_Change(wanted.sets[name], wanted.sets[name].members, frozenset(), anew=True) for name in others if name in used]
    differing = [change for name in both if name not in others for change in _change(wanted.sets[name], found.sets[name])]
    fronts = [change for change in differing if is_front(change.set.name)]
    changes = [change for change in differing if not is_front(change.set.name)]
    replaced = [family for family in FAMILIES if _differs(wanted, found, family)]
    aside = {
        family
        for family in FAMILIES
        if wanted.chains.get(family) and (own := [change for change in (*changes, *anew) if change.set.family == family])
        if family in replaced or any(change.anew for change in own) or _opposed(own, local)
    }
    stale, letters = _letters(found, [change.set.name for change in (*changes, *anew) if change.set.family in aside], used)
    beside = [replace(change, letters=letters) for change in (*changes, *anew) if change.set.family in aside]
    plain = [*fronts, *(change for change in changes if change.set.family not in aside)]
    unused = [name for name in others if name not in used or wanted.sets[name].family not in aside]
    live = [change for change in beside if not change.anew]
    smalls = [small for change in beside for small in _small_sets(change)]
    return (
        *(step for name in unused for step in (DestroySet(name), CreateSet(wanted.sets[name]))),
        *(DestroySet(name) for name in stale),
        *(CreateSet(wanted.sets[name]) for name in sorted(wanted.sets.keys() - found.sets.keys())),
        *map(CreateSet, smalls),
        *_grow(plain),
        *(_replace(wanted, family, beside) for family in FAMILIES if family in aside or family in replaced),
        *_grow(live),
        *(step for change in beside if change.anew for step in (DestroySet(change.set.name), CreateSet(change.set))),
        *_shrink(plain, wanted.whole),
        *_shrink(live, wanted.whole),
        *(_replace(wanted, family, ()) for family in FAMILIES if family in aside),
        *(DestroySet(small.name) for small in smalls),
        *(DestroySet(name) for name in sorted(found.sets.keys() - wanted.sets.keys() - set(stale))),
    )


def _used(found: Ruleset) -> frozenset[str]:
    """The sets to which rules that were found refer: all, where one of them is not known."""
    rules = [rule for chains in found.chains.values() for chain in chains.values() for rule in chain.rules]
    if any(isinstance(rule.target, OpaqueTarget) for rule in rules):
        return frozenset(found.sets)
    return frozenset(match.name for rule in rules for match in rule.matches if isinstance(match, SetMatch))


def _letters(found: Ruleset, names: Iterable[str], used: frozenset[str]) -> tuple[list[str], tuple[str, str]]:
    """(small sets to destroy first, the letters of those to make) for live sets of these names.

    A change that broke off on its way leaves its small sets behind, and rules that refer to them.
    """
    taken = {pair: [small for name in names for letter in pair if (small := beside(name, letter)) in found.sets] for pair in BESIDE}
    for pair, there in taken.items():
        if not there:
            return [], pair
    for pair, there in taken.items():
        if used.isdisjoint(there):
            return there, pair
    return [], BESIDE[0]


def _type(found: Set) -> tuple[str, Family, Network | None]:
    return found.kind, found.family, found.net


def _change(want: Set, have: Set) -> Iterator[_Change]:
    if not want.holds_same(have):
        gains = want.members - have.members
        losses = _without_flips(have.members - want.members, gains, want)
        yield _Change(want, gains, losses)


def _differs(wanted: Ruleset, found: Ruleset, family: Family) -> bool:
    hooked = (family in wanted.hooked) != (family in found.hooked)
    return hooked or wanted.chains.get(family, {}) != found.chains.get(family, {})


def _opposed(changes: Iterable[_Change], local: AbstractSet[Address] | None) -> bool:
    """Whether one address of ours may be allowed more while another one is allowed less."""
    gaining: set[Address] = set()
    losing: set[Address] = set()
    for change in changes:
        width = 4 if change.set.family == 4 else 16
        gaining.update(member[:width] for member in change.gains)
        losing.update(member[:width] for member in change.losses)
    if local is not None:
        gaining &= local
        losing &= local
    return bool(gaining and losing) and len(gaining | losing) > 1


def _grow(changes: Iterable[_Change]) -> Iterator[GrowSet]:
    return (GrowSet(c.set.name, c.set.kind, c.set.family, c.gains) for c in changes if c.gains)


def _shrink(changes: Iterable[_Change], whole: AbstractSet[str]) -> Iterator[ShrinkSet]:
    for change in changes:
        left, losses = change.set, change.losses
        if losses:
            is_less = left.name in whole and len(losses) >= MANY_GO and left.entries < len(losses)
            yield ShrinkSet(left.name, left.kind, left.family, losses, left if is_less else None)


# -- the small sets beside the live ones -------------------------------------------------------------------------------


def _small_sets(change: _Change) -> Iterator[Set]:
    for letter, members in zip(change.letters, (change.gains, change.losses), strict=True):
        if members or (change.anew and letter == change.letters[0]):
            yield Set(beside(change.set.name, letter), change.set.kind, change.set.family, members, change.set.net)


def _replace(wanted: Ruleset, family: Family, beside: Iterable[_Change]) -> ReplaceTable:
    """The wanted chains; over the live sets as they were where some of those are to change beside them."""
    chains = wanted.chains.get(family, {})
    changes = {change.set.name: change for change in beside if change.set.family == family}
    if changes:
        chains = {name: _beside(chain, changes) for name, chain in chains.items()}
    return ReplaceTable(family, wanted.table, chains, family in wanted.hooked)


def _beside(chain: Chain, changes: Mapping[str, _Change]) -> Chain:
    if not any(isinstance(match, SetMatch) and match.name in changes for rule in chain.rules for match in rule.matches):
        return chain
    return Chain(chain.name, tuple(new for rule in chain.rules for new in _rules_beside(rule, changes)))


def _rules_beside(rule: Rule, changes: Mapping[str, _Change]) -> Iterator[Rule]:
    for place, match in enumerate(rule.matches):
        if isinstance(match, SetMatch) and match.name in changes:
            change = changes[match.name]
            before, after = rule.matches[:place], rule.matches[place + 1 :]
            gained, lost = (beside(match.name, letter) for letter in change.letters)
            removed, added = replace(match, name=lost, invert=True), replace(match, name=gained)
            if change.anew:
                yield replace(rule, matches=(*before, added, *after))
                return
            yield replace(rule, matches=(*before, match, *([removed] if change.losses else []), *after))
            if change.gains:
                yield replace(rule, matches=(*before, added, *after))
            return
    yield rule


def _without_flips(losses: frozenset[bytes], gains: frozenset[bytes], found: Set) -> frozenset[bytes]:
    """What is left to delete: a prefix that only changes its nomatch flag is changed in place by the add; deleting it would lose it."""
    if not is_flagged(found.kind):
        return losses
    at = 5 if found.family == 4 else 17
    kept = {member[:at] + member[at + 1 :] for member in gains}
    return frozenset(member for member in losses if member[:at] + member[at + 1 :] not in kept)
