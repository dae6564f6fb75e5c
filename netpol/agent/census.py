"""How much there is in the kernel, and how many packets it denied: read when somebody wants to know, by the loop's thread.

Packets are told apart by the chain whose rule sent them to NETPOL-DENY. A rule's counter begins anew with its chain, and goes with the rule
where that moves within it, so what is reported is the sum of its steps: what was counted between the last look and the end of a chain is
lost, and nothing is counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from netpol.agent.enforcer import Enforcer
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, Connmark, Goto, Rule

Side = Literal["ingress", "egress", "both"]
Reason = Literal["policy", "unknown_pod", "cut", "link_local"]
Denials = Mapping[tuple[Side, Reason], int]

_SIDES: dict[str, tuple[Side, Reason]] = {
    "NETPOL-I-": ("ingress", "policy"),
    "NETPOL-E-": ("egress", "policy"),
    "NETPOL-TI-": ("ingress", "unknown_pod"),
    "NETPOL-TE-": ("egress", "unknown_pod"),
    INGRESS: ("ingress", "unknown_pod"),
    EGRESS: ("egress", "unknown_pod"),
}

# A rule of a family's chain, with how many like it stand before it there.
_Place = tuple[Family, str, Rule, int]

_ROOT: tuple[tuple[Side, Reason], ...] = (("both", "cut"), ("both", "link_local"))


class Census(Struct, frozen=True):
    """What of ours the kernel holds, by family, and what was denied since the first look."""

    rules: Mapping[Family, int]
    sets: Mapping[Family, int]
    members: Mapping[Family, int]
    denied: Denials


class CensusTaker:
    """Looks, and remembers the counters of the last look. For one thread."""

    def __init__(self) -> None:
        self._last: dict[_Place, int] | None = None
        self._denied: Counter[tuple[Side, Reason]] = Counter(dict.fromkeys((*_SIDES.values(), *_ROOT), 0))

    def look(self, enforcer: Enforcer) -> Census:
        """How it is now."""
        rules: dict[Family, int] = {}
        counts: dict[_Place, int] = {}
        sides: dict[_Place, tuple[Side, Reason]] = {}
        for family in FAMILIES:
            chains, counters = enforcer.kernel.counted(family)
            rules[family] = sum(len(chain.rules) for chain in chains.values())
            for name, chain in chains.items():
                before_it: Counter[Rule] = Counter()
                for rule, (packets, _) in zip(chain.rules, counters[name], strict=False):
                    if rule.target == Goto(DENY):
                        place = family, name, rule, before_it[rule]
                        counts[place], sides[place] = packets, _side(name, rule)
                        before_it[rule] += 1
        for place, packets in counts.items():
            before = packets if self._last is None else self._last.get(place, 0)
            self._denied[sides[place]] += packets - before if packets >= before else packets
        self._last = counts
        sizes = enforcer.kernel.sizes()
        by_family: dict[Family, list[int]] = {f: [size for name, size in sizes.items() if name.startswith(f"NETPOL{f}")] for f in FAMILIES}
        return Census(rules, {f: len(n) for f, n in by_family.items()}, {f: sum(n) for f, n in by_family.items()}, dict(self._denied))


def _side(chain: str, rule: Rule) -> tuple[Side, Reason]:
    for prefix, side in _SIDES.items():
        if chain.startswith(prefix):
            return side
    cut = any(isinstance(match, Connmark) for match in rule.matches)
    return ("both", "cut") if cut else ("both", "link_local")
