"""How much there is in the kernel, and how many packets it denied: read when somebody wants to know, by the loop's thread.

Packets are told apart by the chain whose rule sent them to NETPOL-DENY. A rule's counter begins anew with its chain, so what is
reported is the sum of its steps: what was counted between the last look and the end of a chain is lost, and nothing is counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from netpol.agent.enforcer import Enforcer
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import DENY, EGRESS, INGRESS, Chain, Connmark, Goto

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
        self._last: dict[tuple[Family, str, int], int] | None = None
        self._denied: Counter[tuple[Side, Reason]] = Counter(dict.fromkeys((*_SIDES.values(), *_ROOT), 0))

    def look(self, enforcer: Enforcer) -> Census:
        """How it is now."""
        rules: dict[Family, int] = {}
        counts: dict[tuple[Family, str, int], int] = {}
        sides: dict[tuple[Family, str, int], tuple[Side, Reason]] = {}
        for family in FAMILIES:
            chains, counters = enforcer.kernel.counted(family)
            rules[family] = sum(len(chain.rules) for chain in chains.values())
            for name, chain in chains.items():
                for place, rule in enumerate(chain.rules):
                    if rule.target == Goto(DENY):
                        counts[family, name, place] = counters[name][place][0]
                        sides[family, name, place] = _side(chain, place)
        for key, packets in counts.items():
            before = packets if self._last is None else self._last.get(key, 0)
            self._denied[sides[key]] += packets - before if packets >= before else packets
        self._last = counts
        sizes = enforcer.kernel.sizes()
        by_family: dict[Family, list[int]] = {f: [size for name, size in sizes.items() if name.startswith(f"NETPOL{f}")] for f in FAMILIES}
        return Census(rules, {f: len(n) for f, n in by_family.items()}, {f: sum(n) for f, n in by_family.items()}, dict(self._denied))


def _side(chain: Chain, place: int) -> tuple[Side, Reason]:
    for prefix, side in _SIDES.items():
        if chain.name.startswith(prefix):
            return side
    cut = any(isinstance(match, Connmark) for match in chain.rules[place].matches)
    return ("both", "cut") if cut else ("both", "link_local")
