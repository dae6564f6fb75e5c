"""Dispatch by address: from NETPOL-EGRESS or NETPOL-INGRESS to the chain of a pod's class in O(log n) cheap comparisons.

A tree of prefixes over the sorted addresses: each chain tests at most `ARITY` prefixes and goes to the one that holds the packet's
address; a chain of few addresses tests them itself. Entered by goto, it never comes back: falling off a chain anywhere in the tree
returns to NETPOL. So what is to happen to an address of the pod ranges that no leaf knows stands last in every chain of the tree.
A branch depends on nothing but its own leaves, so small ones that did not change are remembered: a change costs its own way down the
tree, and the top.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache

from netpol.model import Address, Direction, Network, network
from netpol.rules.compile.selections import content_hash
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, RETURN, Chain, Goto, Rule, Target, pack_rules

# A power of two. 4 was best where 2, 4 and 16 were compared (bench/, dispatch).
ARITY = 4
BITS = ARITY.bit_length() - 1
# Branches of so few leaves are remembered, and so many of them: both directions of two families of 1,000 pods. The few above them are
# made anew, for each of those would hold many leaves of a time gone by.
SMALL, KEPT = ARITY * ARITY, 2048

_Leaves = tuple[tuple[Address, str | None], ...]  # sorted


def tree(direction: Direction, leaves: Mapping[Address, str | None], unknown: tuple[Network, ...] = ()) -> dict[str, Chain]:
    """The chains of one direction and family, by name, the root among them.

    leaves -- for each address the chain of its class, or None for a pod that is free (a leaf that is only needed beside `unknown`);
    unknown -- the ranges whose addresses are denied when no leaf has them.
    """
    last = tuple(_rule(direction, net, Goto(DENY)) for net in unknown)
    chains: dict[str, Chain] = {}
    root = EGRESS if direction == "egress" else INGRESS
    rules, below = _rules(direction, tuple(sorted(leaves.items(), key=lambda leaf: leaf[0])), last)
    chains.update((chain.name, chain) for chain in below)
    chains[root] = Chain(root, rules + last)
    return chains


def scope(leaves: Collection[Address], unknown: tuple[Network, ...] = ()) -> Network | None:
    """The longest prefix that holds all that a tree decides about; None where there is none, or nothing to hold."""
    ends = [min(leaves), max(leaves)] if leaves else []
    ends += [net.address for net in unknown]
    bits = min([_common_bits([min(ends), max(ends)]), *(net.length for net in unknown)]) if ends else 0
    return network(ends[0], bits) if bits else None


def _rules(direction: Direction, leaves: _Leaves, last: tuple[Rule, ...]) -> tuple[tuple[Rule, ...], tuple[Chain, ...]]:
    """The rules of a chain for these leaves, and the chains below it; `last` stands last in each of those."""
    if len(leaves) <= ARITY:
        return tuple(rule for leaf in leaves for rule in _leaf(direction, *leaf, bool(last))), ()
    width = len(leaves[0][0]) * 8
    shift = width - _common_bits([leaf[0] for leaf in (leaves[0], leaves[-1])]) - BITS  # so many addresses differ in more than these bits
    groups: dict[int, list[tuple[Address, str | None]]] = {}
    for leaf in leaves:
        groups.setdefault(int.from_bytes(leaf[0], "big") >> shift, []).append(leaf)
    rules: list[Rule] = []
    below: list[Chain] = []
    for group in groups.values():
        if len(group) == 1:
            rules += _leaf(direction, *group[0], bool(last))
            continue
        rule, chains = (_branch if len(group) > SMALL else _small_branch)(direction, tuple(group), last)
        rules.append(rule)
        below += chains
    return tuple(rules), tuple(below)


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
