"""Dispatch by address: from NETPOL-EGRESS or NETPOL-INGRESS to the chain of a pod's class in O(log n) cheap comparisons.

A tree of prefixes over the sorted addresses: each chain tests prefixes that do not overlap and goes to the one that holds the packet's
address; where few addresses are left it tests them themselves. To pass by a rule costs about half of what it costs to go to another
chain. So a chain tests both quarters of the lower half of its addresses, then goes on with the upper half in the same way: what stands far
down is little, and has fewer chains before it. That is, by bench/, the cheapest tree on average and for the address that has the
longest way, for a pod that is isolated and for one that is not (bits of 2,000 neighbours: 2 rules a bit at most).

Entered by goto, it never comes back: falling off a chain anywhere in the tree leaves it. So what is to happen to an address of the pod
ranges that no leaf knows stands last in every chain of the tree. A branch depends on nothing but its own leaves, so those that did not
change stay (`Tree`): a change costs its own way down, and one comparison of each leaf beside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from operator import itemgetter

from msgspec import Struct

from netpol.model import Address, Direction, Network, network
from netpol.rules.compile.selections import content_hash
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, RETURN, Chain, Goto, Rule, Target, pack_rules

FEW = 4  # so many addresses are tested one after another

_Leaves = tuple[tuple[Address, str | None], ...]  # sorted


class _Branch(Struct, frozen=True):
    """What a chain of a tree was made of, the rule that leads to it, the chains below it and then its own, and the branches just below."""

    leaves: _Leaves
    rule: Rule
    chains: tuple[Chain, ...]
    below: tuple[_Branch, ...]

    @property
    def net(self) -> Network | None:
        """What it is found by: the longest prefix of its leaves."""
        return self.rule.source or self.rule.destination


class Tree:
    """The tree of one direction and family, which keeps the branches that it had last."""

    def __init__(self, direction: Direction) -> None:
        self._direction: Direction = direction
        self._last: tuple[Rule, ...] = ()
        self._below: tuple[_Branch, ...] = ()
        self._known: dict[Network | None, _Branch] = {}  # of the last time, as far as somebody came to their place

    def chains(self, leaves: Mapping[Address, str | None], unknown: tuple[Network, ...] = ()) -> dict[str, Chain]:
        """The chains by name, the root among them; none where there is nothing to decide.

        leaves -- for each address the chain of its class, or None for a pod that is free (a leaf that is only needed beside `unknown`);
        unknown -- the ranges whose addresses are denied when no leaf has them.
        """
        last = tuple(_rule(self._direction, net, Goto(DENY)) for net in unknown)
        self._known = {branch.net: branch for branch in self._below} if last == self._last else {}
        self._last = last
        rules, self._below = self._rules(tuple(sorted(leaves.items(), key=itemgetter(0))))
        self._known = {}
        if not leaves and not unknown:
            return {}
        root = EGRESS if self._direction == "egress" else INGRESS
        found = {chain.name: chain for branch in self._below for chain in branch.chains}
        found[root] = Chain(root, rules + last)
        return found

    def _rules(self, leaves: _Leaves) -> tuple[tuple[Rule, ...], tuple[_Branch, ...]]:
        """The rules of a chain for these leaves, and the branches just below it."""
        rules: list[Rule] = []
        below: list[_Branch] = []
        while len(leaves) > FEW:
            low, leaves = _halves(leaves)
            for group in _halves(low) if len(low) > 1 else (low,):
                if len(group) == 1:
                    rules += _leaf(self._direction, *group[0], bool(self._last))
                    continue
                branch = self._branch(group)
                rules.append(branch.rule)
                below.append(branch)
        for leaf in leaves:
            rules += _leaf(self._direction, *leaf, bool(self._last))
        return tuple(rules), tuple(below)

    def _branch(self, group: _Leaves) -> _Branch:
        """The branch of at least two leaves."""
        net = network(group[0][0], _common_bits([group[0][0], group[-1][0]]))
        known = self._known.get(net)
        if known is not None:
            if known.leaves == group:
                return known
            self._known.update([(branch.net, branch) for branch in known.below])
        rules, below = self._rules(group)
        packed = pack_rules(rules + self._last)
        name = ("NETPOL-TE-" if self._direction == "egress" else "NETPOL-TI-") + content_hash(packed, 18)
        chains = (*(chain for branch in below for chain in branch.chains), Chain.of_packed(name, packed))
        return _Branch(group, _rule(self._direction, net, Goto(name)), chains, below)


def tree(direction: Direction, leaves: Mapping[Address, str | None], unknown: tuple[Network, ...] = ()) -> dict[str, Chain]:
    """The chains of a `Tree`, made once."""
    return Tree(direction).chains(leaves, unknown)


def scope(leaves: Collection[Address], unknown: tuple[Network, ...] = ()) -> Network | None:
    """The longest prefix that holds all that a tree decides about; None where there is nothing, and no tree."""
    ends = [min(leaves), max(leaves)] if leaves else []
    ends += [net.address for net in unknown]
    if not ends:
        return None
    return network(ends[0], min([_common_bits([min(ends), max(ends)]), *(net.length for net in unknown)]))


def _halves(leaves: _Leaves) -> tuple[_Leaves, _Leaves]:
    """At least two leaves parted at the first bit in which they differ; neither half is empty."""
    first, last = leaves[0][0], leaves[-1][0]
    bits = _common_bits([first, last])
    middle = network(last, bits + 1).address
    place = bisect_left(leaves, middle, key=itemgetter(0))
    return leaves[:place], leaves[place:]


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
