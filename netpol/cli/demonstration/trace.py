"""Which rule decides a flow, and on whose behalf: the interpreter's way through the chains, beside what the specification says.

A flow meets the chain of its source's policies and then that of its destination's; where one of these says RETURN the flow goes
on, and where it goes to NETPOL-DENY that rule decides alone. So a flow that passes has as many deciding rules as isolated ends.

Pure. Packet counters belong to rules and come from whoever read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from netpol.model import DIRECTIONS, Direction, Family, Flow, family_of
from netpol.policy.verdict import RuleReference, Verdict
from netpol.rules.interpret import Hit, Packet, interpret
from netpol.rules.ruleset import DENY, ROOT, Goto, Rule, Ruleset

CLASS_CHAINS: dict[Direction, str] = {"egress": "NETPOL-E-", "ingress": "NETPOL-I-"}
SOURCE_PORT = 20000  # no rule of ours looks at it
# From how many characters on the name of a chain is cut short, and the longest that there is.
SHORT, MAX_NAME = len("NETPOL-I-") + 4, 29

Counted = Mapping[tuple[Family, str, Rule], int]
"""Packets by family, chain and rule: a rule's number may have moved since, the rule itself has not."""


class Decider(Struct, frozen=True):
    """A rule that decided: where it stands (`number` from 1), and what the specification says of that end of the flow.

    policies -- those that isolate the end; rules -- those of their rules that allow the flow.
    """

    family: Family
    chain: str
    number: int
    rule: Rule
    direction: Direction
    passes: bool
    rules: tuple[RuleReference, ...]
    policies: tuple[str, ...]

    @property
    def why(self) -> str:
        """The policies' part: "ingress[0] of default/web", "no egress rule of default/web"."""
        if self.passes:
            return ", ".join(f"{rule.direction}[{rule.index}] of {rule.policy}" for rule in self.rules)
        return f"{self.brief} of {', '.join(self.policies)}"

    @property
    def brief(self) -> str:
        """The same, where there is one policy only."""
        return ", ".join(f"{rule.direction}[{rule.index}]" for rule in self.rules) if self.passes else f"no {self.direction} rule"


class Trace(Struct, frozen=True):
    """What the rules say of a flow, every rule that its first packet meets, and those of them that decide."""

    passes: bool
    hits: tuple[tuple[Family, str, Rule], ...]
    deciders: tuple[Decider, ...]


def trace(ruleset: Ruleset, flow: Flow, said: Verdict) -> Trace:
    """The way of a flow's first packet. `said` is the specification's word on it, for the names of policies."""
    family = family_of(flow.source)
    done = interpret(ruleset, Packet(flow.source, flow.destination, flow.protocol, flow.port, SOURCE_PORT))
    deciders = tuple(_deciders(family, done.hits, said))
    return Trace(done.passes, tuple((family, hit.chain, hit.rule) for hit in done.hits), deciders if done.passes else deciders[-1:])


def _deciders(family: Family, hits: Iterable[Hit], said: Verdict) -> Iterable[Decider]:
    """In a chain of policies every rule that applies is final."""
    for hit in hits:
        for direction in DIRECTIONS:
            if hit.chain.startswith(CLASS_CHAINS[direction]):
                side = said.ingress if direction == "ingress" else said.egress
                passes = hit.rule.target != Goto(DENY)
                yield Decider(family, hit.chain, hit.index + 1, hit.rule, direction, passes, side.allowed_by, side.isolated_by)


def short_names(chains: Iterable[str]) -> dict[str, str]:
    """Chains of policies and what to call them in a narrow table: NETPOL-I-6CLK... is I-6CLK, longer where two would be called alike."""
    names = set(chains)
    size = next(size for size in range(SHORT, MAX_NAME) if len({name[:size] for name in names}) == len(names))
    return {name: name[:size].removeprefix(f"{ROOT}-") for name in names}
