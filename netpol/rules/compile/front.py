"""The set in front of a tree: a packet whose address is not in it is not looked up.

A new flow's packet from or to a pod that nothing isolates would go down the whole tree for nothing, and where there are many such pods
its way is cold each time. One look into a bitmap of all the tree's addresses costs less, and no more with more pods. A pod that does have
a leaf pays it on top.

The set says nothing that the tree does not say: a packet whose address is in it and has no leaf falls off the tree, as if it had not been
looked up. So the set gets what it is to get before the table that has the new leaves, and loses what it is to lose after that
(`netpol.rules.diff`). The other way round an isolated pod would be open for a moment.

Only a bitmap is worth it, and there is none of IPv6, nor of more than 65,536 addresses: a hash is as cold as the tree. What it was measured
to cost is in docs/decisions.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from msgspec.structs import replace

from netpol.model import Address, Direction, Family, Network, network
from netpol.rules.ruleset import Chain, Rule, Ruleset, SetMatch, front_name, is_front
from netpol.rules.sets import Set

RANGE = 16  # bits: the longest prefix that as many addresses as a bitmap can have


def front_net(family: Family, leaves: Collection[Address], unknown: tuple[Network, ...], least: int) -> Network | None:
    """The range of the set in front of a tree; None where it has none.

    There is one from `least` leaves of IPv4 on, for a short tree costs less than the set, and none at all where that is 0; and only where
    one range has them all. None where unknown addresses are denied: the tree is about those too then, and no set can hold them.
    """
    if family != 4 or unknown or not least or len(leaves) < least:
        return None
    first = network(min(leaves), RANGE)
    return first if max(leaves) in first else None


class Front(NamedTuple):
    """What stands in front of a tree: the addresses that this has leaves for, and the range that they are of."""

    leaves: AbstractSet[Address]
    net: Network


def front(direction: Direction, family: Family, found: Front) -> Set:
    """The whole set."""
    return Set(front_name(family, direction), "bitmap:ip", family, found.leaves, found.net)


def changed(now: Front | None, before: Front | None) -> tuple[Front | None, Front | None]:
    """What `diff` takes of a set that was applied, and is another now: as far as they differ; both, where they have different ranges."""
    if now is not None and before is not None and now.net == before.net:
        return now._replace(leaves=now.leaves - before.leaves), before._replace(leaves=before.leaves - now.leaves)
    if now is None and before is not None:
        return None, before._replace(leaves=frozenset())
    return now, before


def without_fronts(ruleset: Ruleset) -> Ruleset:
    """What decides the same where the kernel has no such sets."""
    chains = {
        family: {name: Chain(name, map(_unasked, chain.rules)) for name, chain in found.items()} for family, found in ruleset.chains.items()
    }
    return replace(ruleset, chains=chains, sets={name: found for name, found in ruleset.sets.items() if not is_front(name)})


def _unasked(rule: Rule) -> Rule:
    return replace(rule, matches=tuple(match for match in rule.matches if not (isinstance(match, SetMatch) and is_front(match.name))))
