"""Dispatch by address: from NETPOL-EGRESS or NETPOL-INGRESS to the chain of a pod's class in O(log n) cheap comparisons.

A tree of prefixes over the sorted addresses: each chain tests at most `ARITY` prefixes and goes to the one that holds the packet's
address; a chain of few addresses tests them itself. Entered by goto, it never comes back: falling off a chain anywhere in the tree
returns to NETPOL. So what is to happen to an address of the pod ranges that no leaf knows stands last in every chain of the tree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from netpol.model import Address, Direction, Network, network
from netpol.rules.compile.selections import content_hash
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, RETURN, Chain, Goto, Rule, Target, pack_rules

# A power of two. 4 was best where 2, 4 and 16 were compared (bench/, dispatch).
ARITY = 4
BITS = ARITY.bit_length() - 1


def tree(direction: Direction, leaves: Mapping[Address, str | None], unknown: tuple[Network, ...] = ()) -> dict[str, Chain]:
    """The chains of one direction and family, by name, the root among them.

    leaves -- for each address the chain of its class, or None for a pod that is free (a leaf that is only needed beside `unknown`);
    unknown -- the ranges whose addresses are denied when no leaf has them.
    """
    last = tuple(_rule(direction, net, Goto(DENY)) for net in unknown)
    chains: dict[str, Chain] = {}
    root = EGRESS if direction == "egress" else INGRESS
    builder = _Builder(direction, leaves, last, chains, bool(unknown))
    chains[root] = Chain(root, builder.rules(sorted(leaves)) + last)
    return chains


def scope(leaves: Collection[Address], unknown: tuple[Network, ...] = ()) -> Network | None:
    """The longest prefix that holds all that a tree decides about; None where there is none, or nothing to hold."""
    ends = [min(leaves), max(leaves)] if leaves else []
    ends += [net.address for net in unknown]
    bits = min([_common_bits([min(ends), max(ends)]), *(net.length for net in unknown)]) if ends else 0
    return network(ends[0], bits) if bits else None


class _Builder:
    def __init__(
        self, direction: Direction, leaves: Mapping[Address, str | None], last: tuple[Rule, ...], chains: dict[str, Chain], all_leaves: bool
    ) -> None:
        self.direction, self.leaves, self.last, self.chains, self.all_leaves = direction, leaves, last, chains, all_leaves
        self.prefix = "NETPOL-TE-" if direction == "egress" else "NETPOL-TI-"

    def rules(self, addresses: list[Address]) -> tuple[Rule, ...]:
        """The rules of a chain for these addresses, which are sorted."""
        if len(addresses) <= ARITY:
            return tuple(rule for address in addresses for rule in self.leaf(address))
        width = len(addresses[0]) * 8
        shift = width - _common_bits(addresses) - BITS  # so many addresses differ in more than these bits
        groups: dict[int, list[Address]] = {}
        for address in addresses:
            groups.setdefault(int.from_bytes(address, "big") >> shift, []).append(address)
        return tuple(rule for group in groups.values() for rule in self.branch(group))

    def branch(self, group: list[Address]) -> tuple[Rule, ...]:
        if len(group) == 1:
            return self.leaf(group[0])
        packed = pack_rules(self.rules(group) + self.last)
        name = self.prefix + content_hash(packed, 18)
        self.chains[name] = Chain.of_packed(name, packed)
        return (_rule(self.direction, network(group[0], _common_bits(group)), Goto(name)),)

    def leaf(self, address: Address) -> tuple[Rule, ...]:
        """To the class chain, but not for the hairpin: a pod always reaches itself (SEMANTICS 28)."""
        chain, own = self.leaves[address], Network(address, len(address) * 8)
        known = (_rule(self.direction, own, RETURN),) if self.all_leaves else ()
        if chain is None:
            return known
        if self.direction == "egress":
            return (Rule(Goto(chain), source=own, destination=own, not_destination=True), *known)
        return (Rule(Goto(chain), source=own, not_source=True, destination=own), *known)


def _rule(direction: Direction, net: Network, target: Target) -> Rule:
    return Rule(target, source=net) if direction == "egress" else Rule(target, destination=net)


def _common_bits(addresses: list[Address]) -> int:
    """How many leading bits sorted addresses share."""
    first, last = addresses[0], addresses[-1]
    return len(first) * 8 - (int.from_bytes(first, "big") ^ int.from_bytes(last, "big")).bit_length()
