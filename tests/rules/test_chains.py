"""A chain is its name and its packed rules: nothing is lost, equal rules are equal bytes, and what cannot be packed is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from netpol.model import FAMILIES
from netpol.rules.ruleset import (
    DROP,
    RETURN,
    Addrtype,
    Chain,
    Connmark,
    Conntrack,
    Hashlimit,
    Icmp,
    Jump,
    Match,
    Multiport,
    Nflog,
    Opaque,
    Rule,
    Sctp,
    SetMatch,
    Tcp,
    Udp,
    pack_rules,
)
from tests.kernel import rule_strategies

rules = st.sampled_from(FAMILIES).flatmap(rule_strategies.rules)


def anew(value: Any) -> Any:
    """The same value, of which no part is the same object where that can be helped."""
    if isinstance(value, Struct):
        return type(value)(**{name: anew(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, tuple):
        return tuple([anew(item) for item in value])
    if isinstance(value, str):
        return "".join(list(value))
    if isinstance(value, bytes):
        return bytes(bytearray(value))
    return int(str(value)) if type(value) is int else value


@given(st.lists(rules, max_size=3))
def test_rules_come_out_as_they_went_in(values: list[Rule]) -> None:
    """Unpacked they are the same values, and packed again the same bytes."""
    chain = Chain("NETPOL-A", values)
    assert chain.rules == tuple(values)
    assert Chain("NETPOL-A", chain.rules) == chain == Chain.of_packed("NETPOL-A", chain.packed)
    assert Chain("NETPOL-B", values) != chain


@given(rules)
def test_equal_rules_are_equal_bytes(rule: Rule) -> None:
    """Whatever objects they are made of: a default that somebody else made is packed, or left out, like the class's own."""
    assert pack_rules([anew(rule)]) == pack_rules([rule])


DEFAULTS: tuple[Match, ...] = (
    *(Conntrack(()), Connmark(1), Tcp(), Udp(), Sctp(), Multiport(()), SetMatch("x", ())),
    *(Addrtype(), Hashlimit("x", 1, 1), Icmp(8), Opaque("x", 0, b"")),
)


@pytest.mark.parametrize("match", DEFAULTS, ids=lambda match: type(match).__name__)
def test_defaults_that_somebody_else_made(match: Match) -> None:
    """Every default of every match, as an object of its own, gives the bytes of the class's own object."""
    assert pack_rules([anew(Rule(Nflog(1), (match,)))]) == pack_rules([Rule(Nflog(1), (match,))])


@given(rules, rules)
def test_other_rules_are_other_bytes(one: Rule, other: Rule) -> None:
    """Two chains are equal exactly when their rules are."""
    assert (Chain("x", (one,)) == Chain("x", (other,))) == (one == other)


def test_a_chain_does_not_change() -> None:
    """Its parts cannot be set, it can be a key, and it shows its rules."""
    chain = Chain("NETPOL-A", (Rule(RETURN, (Tcp(),)), Rule(DROP)))
    with pytest.raises(AttributeError):
        chain.name = "NETPOL-B"  # type: ignore[misc]  # that is the point
    assert {chain: 1}[Chain("NETPOL-A", chain.rules)] == 1
    assert repr(chain) == f"Chain('NETPOL-A', {chain.rules!r})"


def test_packed_rules_of_another_form_are_refused() -> None:
    """When they are asked for: a saved state may hold anything."""
    with pytest.raises(msgspec.DecodeError):
        _ = Chain.of_packed("NETPOL-A", b"\x91\x81\xa6target\xc0").rules


def test_a_rule_that_has_no_packed_form_is_named() -> None:
    """By the chain, its number and its words."""
    with pytest.raises(ValueError, match=r"NETPOL-A, rule 2: .*Jump"):
        Chain("NETPOL-A", (Rule(DROP), Rule(Jump("\ud800"))))
