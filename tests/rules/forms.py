"""What the kernel would not take, or would take and never match: checks of a ruleset's form, whatever it means."""

from __future__ import annotations

from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import Chain, Goto, Jump, Multiport, Ruleset, SetMatch, is_our_set, is_ours
from netpol.rules.sets import member_size

# iptables' limits: XT_EXTENSION_MAXNAMELEN - 1, IPSET_MAXNAMELEN - 1, XT_MULTI_PORTS.
CHAIN_NAME, SET_NAME, PORTS = 28, 31, 15


def well_formed(ruleset: Ruleset) -> None:
    """Names fit and are ours; what rules refer to exists, in their family and with the dimensions of its type; nothing is without a use."""
    used: set[str] = set()
    for name, held in ruleset.sets.items():
        assert held.name == name
        assert is_our_set(name)
        assert len(name) <= SET_NAME
        assert all(len(member) == member_size(held.kind, held.family) for member in held.members)
    for family in FAMILIES:
        chains = ruleset.chains[family]
        targets = {rule.target.chain for chain in chains.values() for rule in chain.rules if isinstance(rule.target, Goto | Jump)}
        assert targets | {"NETPOL"} == chains.keys()
        for name, chain in chains.items():
            assert chain.name == name
            assert is_ours(name)
            assert len(name) <= CHAIN_NAME
            used |= sets_of(ruleset, family, chain)
    assert used == ruleset.sets.keys()


def sets_of(ruleset: Ruleset, family: Family, chain: Chain) -> set[str]:
    """The sets that a chain refers to, after a look at each of its rules."""
    used = set()
    for rule in chain.rules:
        for net in (rule.source, rule.destination):
            assert net is None or net.family == family
        for match in rule.matches:
            if isinstance(match, Multiport):
                assert sum(1 if low == high else 2 for low, high in match.ports) <= PORTS
                assert rule.protocol
            if isinstance(match, SetMatch):
                found = ruleset.sets[match.name]
                assert found.family == family
                assert len(match.directions) == 1 + ("port" in found.kind)
                used.add(match.name)
    return used
