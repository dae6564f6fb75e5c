"""Dispatch by address: from NETPOL-EGRESS or NETPOL-INGRESS to the chain of a pod's class in O(log n) cheap comparisons.

A tree of prefixes over the sorted addresses: each chain tests prefixes that do not overlap and goes to the one that holds the packet's
address; where few addresses are left it tests them themselves. To pass by a rule costs about half of what it costs to go to another
chain. So a chain tests both quarters of the lower half of its addresses, then goes on with the upper half in the same way: what stands far
down is little, and has fewer chains before it. That is, by bench/, the cheapest tree on average and for the address that has the
longest way, for a pod that is isolated and for one that is not (bits of 2,000 neighbours: 2 rules a bit at most).

Entered by goto, it never comes back: falling off a chain anywhere in the tree leaves it. So what is to happen to an address of the pod
ranges that no leaf knows stands last in every chain of the tree. A branch depends on nothing but its own leaves, so small ones that did
not change are remembered: a change costs its own way down the tree, and the top.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from functools import lru_cache

from netpol.model import Address, Direction, Network, network
from netpol.rules.compile.selections import content_hash
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, RETURN, Chain, Goto, Rule, Target, pack_rules

FEW = 4  # so many addresses are tested one after another
# Branches of so few leaves are remembered, and so many of them: both directions of two families of 1,000 pods. The few above them are
# made anew, for each of those would hold many leaves of a time gone by.
SMALL, KEPT = 16, 2048

_Leaves = tuple[tuple[Address, str | None], ...]  # sorted


def tree(direction: Direction, leaves: Mapping[Address, str | None], unknown: tuple[Network, ...] = ()) -> dict[str, Chain]:
    """The chains of one direction and family, by name, the root among them; none where there is nothing to decide.

    leaves -- for each address the chain of its class, or None for a pod that is free (a leaf that is only needed beside `unknown`);
    unknown -- the ranges whose addresses are denied when no leaf has them.
    """
    if not leaves and not unknown:
        return {}
    last = tuple(_rule(direction, net, Goto(DENY)) for net in unknown)
    chains: dict[str, Chain] = {}
    root = EGRESS if direction == "egress" else INGRESS
    rules, below = _rules(direction, tuple(sorted(leaves.items(), key=lambda leaf: leaf[0])), last)
    chains.update((chain.name, chain) for chain in below)
    chains[root] = Chain(root, rules + last)
    return chains


def scope(leaves: Collection[Address], unknown: tuple[Network, ...] = ()) -> Network | None:
    """The longest prefix that holds all that a tree decides about; None where there is nothing, and no tree."""
    ends = [min(leaves), max(leaves)] if leaves else []
    ends += [net.address for net in unknown]
    if not ends:
        return None
    return network(ends[0], min([_common_bits([min(ends), max(ends)]), *(net.length for net in unknown)]))


def _rules(direction: Direction, leaves: _Leaves, last: tuple[Rule, ...]) -> tuple[tuple[Rule, ...], tuple[Chain, ...]]:
    """The rules of a chain for these leaves, and the chains below it; `last` stands last in each of those."""
    rules: list[Rule] = []
    below: list[Chain] = []
    while len(leaves) > FEW:
        low, leaves = _halves(leaves)
        for group in _halves(low) if len(low) > 1 else (low,):
            if len(group) == 1:
                rules += _leaf(direction, *group[0], bool(last))
                continue
            rule, chains = (_branch if len(group) > SMALL else _small_branch)(direction, group, last)
            rules.append(rule)
            below += chains
    for leaf in leaves:
        rules += _leaf(direction, *leaf, bool(last))
    return tuple(rules), tuple(below)


def _halves(leaves: _Leaves) -> tuple[_Leaves, _Leaves]:
    """At least two leaves parted at the first bit in which they differ; neither half is empty."""
    first, last = leaves[0][0], leaves[-1][0]
    bits = _common_bits([first, last])
    middle = network(last, bits + 1).address
    place = bisect_left(leaves, middle, key=lambda leaf: leaf[0])
    return leaves[:place], leaves[place:]


def _branch(direction: Direction, group: _Leaves, last: tuple[Rule, ...]) -> tuple[Rule, tuple[Chain, ...]]:
    """The rule that leads to a chain of at least two leaves, and that chain after those below it."""
    rules, below = _rules(direction, group, last)
    packed = pack_rules(rules + last)
    name = ("NETPOL-TE-" if direction == "egress" else "NETPOL-TI-") + content_hash(packed, 18)
    bits = _common_bits([group[0][0], group[-1][0]])
    return _rule(direction, network(group[0][0], bits), Goto(name)), (*below, Chain.of_packed(name, packed))


_small_branch = lru_cache(maxsize=KEPT)(_branch)


def _leaf(direction: Direction, address: Address, chain: str | None, all_leaves: bool) -> tuple[Rule, ...]:
    """To the class chain, but not for the hairpin: a pod always reaches itself (SEMANTICS 28)."""
    own = Network(address, len(address) * 8)
    known = (_rule(direction, own, RETURN),) if all_leaves else ()
    if chain is None:
        return known
    if direction == "egress":
        return (Rule(Goto(chain), source=own, destination=own, not_destination=True), *known)
    return (Rule(Goto(chain), source=own, not_source=True, destination=own), *known)


def _rule(direction: Direction, net: Network, target: Target) -> Rule:
    return Rule(target, source=net) if direction == "egress" else Rule(target, destination=net)


def _common_bits(addresses: list[Address]) -> int:
    """How many leading bits sorted addresses share."""
    first, last = addresses[0], addresses[-1]
    return len(first) * 8 - (int.from_bytes(first, "big") ^ int.from_bytes(last, "big")).bit_length()
