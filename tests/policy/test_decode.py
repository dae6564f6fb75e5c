"""Decoding policies: what each part means; for each thing that cannot be valid the error, and what still stands (SEMANTICS 33, 34)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.model import (
    EVERYTHING,
    SCTP,
    TCP,
    UDP,
    IPBlock,
    NamedPort,
    NumberedPort,
    Peer,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    parse_network,
)
from netpol.policy.decode import decode_policy
from tests.fuzz.hostile import damaged, places

GOOD, GOOD_RULE = {"ports": [{"port": 1}]}, PolicyRule(None, (NumberedPort(TCP, 1, 1),))
WEB, WEB_PODS = {"matchLabels": {"app": "web"}}, Selector((Requirement("app", "In", ("web",)),))


def policy(spec: object, **metadata: object) -> tuple[Policy | None, list[str]]:
    """A NetworkPolicy ns/p with this spec: its value and its errors in words."""
    names = {"namespace": "ns", "name": "p", **metadata}
    decoded = decode_policy(json.dumps({"kind": "NetworkPolicy", "metadata": names, "spec": spec}).encode())
    return decoded.value, [str(error) for error in decoded.errors]


# -- policies that are valid -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "value"),
    [
        pytest.param({"podSelector": {}}, Query("ns", EVERYTHING, EVERYTHING), id="pods of the own namespace"),
        pytest.param({"podSelector": WEB}, Query("ns", EVERYTHING, WEB_PODS), id="some pods of the own namespace"),
        pytest.param({"podSelector": WEB, "namespaceSelector": None}, Query("ns", EVERYTHING, WEB_PODS), id="null is absent"),
        pytest.param({"namespaceSelector": {}}, Query("", EVERYTHING, EVERYTHING), id="all pods"),
        pytest.param({"namespaceSelector": WEB}, Query("", WEB_PODS, EVERYTHING), id="pods of some namespaces"),
        pytest.param({"namespaceSelector": {}, "podSelector": WEB}, Query("", EVERYTHING, WEB_PODS), id="both"),
        pytest.param(
            {
                "podSelector": {
                    "matchLabels": {"a": "1"},
                    "matchExpressions": [{"key": "x.y/b", "operator": "NotIn", "values": ["3", "2", "3"]}],
                }
            },
            Query("ns", EVERYTHING, Selector((Requirement("a", "In", ("1",)), Requirement("x.y/b", "NotIn", ("2", "3"))))),
            id="labels and expressions, values sorted",
        ),
        pytest.param(
            {
                "podSelector": {
                    "matchExpressions": [{"key": "b", "operator": "Exists", "values": []}, {"key": "a", "operator": "DoesNotExist"}]
                }
            },
            Query("ns", EVERYTHING, Selector((Requirement("a", "DoesNotExist"), Requirement("b", "Exists")))),
            id="presence",
        ),
        pytest.param(
            {"podSelector": {"matchLabels": None, "matchExpressions": None}}, Query("ns", EVERYTHING, EVERYTHING), id="null lists"
        ),
        pytest.param({"ipBlock": {"cidr": "10.1.2.3/16"}}, IPBlock(parse_network("10.1.0.0/16")), id="a block with host bits"),
        pytest.param(
            {"ipBlock": {"cidr": "fd00::/8", "except": ["fd02::/16", "fd01::1/128"]}},
            IPBlock(parse_network("fd00::/8"), (parse_network("fd01::1/128"), parse_network("fd02::/16"))),
            id="a block with excepts, sorted",
        ),
        pytest.param(
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["0.0.0.0/1"]}},
            IPBlock(parse_network("0.0.0.0/0"), (parse_network("0.0.0.0/1"),)),
            id="everything but half",
        ),
    ],
)
def test_peers(peer: object, value: Peer) -> None:
    """Each form of a peer, in both directions."""
    found, errors = policy(
        {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [peer]}], "egress": [{"to": [peer]}]}
    )
    assert errors == []
    assert found == Policy("ns", "p", EVERYTHING, (PolicyRule((value,)),), (PolicyRule((value,)),))


@pytest.mark.parametrize(
    ("port", "value"),
    [
        pytest.param({}, NumberedPort(TCP, 0, 65535), id="nothing is all of TCP"),
        pytest.param({"protocol": "UDP"}, NumberedPort(UDP, 0, 65535), id="a protocol is all of it"),
        pytest.param({"port": 1}, NumberedPort(TCP, 1, 1), id="lowest"),
        pytest.param({"port": 65535, "protocol": "SCTP"}, NumberedPort(SCTP, 65535, 65535), id="highest"),
        pytest.param({"port": 80, "endPort": 80}, NumberedPort(TCP, 80, 80), id="a range of one"),
        pytest.param({"port": 80, "endPort": 65535}, NumberedPort(TCP, 80, 65535), id="a range"),
        pytest.param({"port": "http"}, NamedPort(TCP, "http"), id="a name"),
        pytest.param({"port": "a-1", "protocol": "UDP", "endPort": None}, NamedPort(UDP, "a-1"), id="a name with a dash"),
    ],
)
def test_ports(port: object, value: PolicyPort) -> None:
    """Each form of a port."""
    assert policy({"podSelector": {}, "ingress": [{"ports": [port]}]}) == (
        Policy("ns", "p", EVERYTHING, (PolicyRule(None, (value,)),), None),
        [],
    )


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        pytest.param({}, (), None, id="no types, no rules: ingress"),
        pytest.param({"ingress": [GOOD]}, (GOOD_RULE,), None, id="no types, ingress rules"),
        pytest.param({"egress": [GOOD]}, (), (GOOD_RULE,), id="no types, egress rules: both"),
        pytest.param({"egress": []}, (), None, id="no types, an empty list of egress rules: ingress"),
        pytest.param({"egress": None, "ingress": None, "policyTypes": None}, (), None, id="null lists are missing ones"),
        pytest.param({"policyTypes": [], "egress": [GOOD]}, (), (GOOD_RULE,), id="an empty list of types is none"),
        pytest.param({"policyTypes": ["Egress"], "ingress": [GOOD]}, None, (), id="rules of another direction are inert"),
        pytest.param({"policyTypes": ["Ingress"], "egress": [GOOD]}, (), None, id="egress rules that are inert"),
        pytest.param({"policyTypes": ["Ingress", "Egress"]}, (), (), id="both"),
        pytest.param({"ingress": [{}]}, (PolicyRule(),), None, id="a rule that allows all"),
        pytest.param({"ingress": [{"from": [], "ports": []}]}, (PolicyRule(),), None, id="empty lists allow all"),
        pytest.param({"ingress": [{"from": None, "ports": None}]}, (PolicyRule(),), None, id="null lists allow all"),
        pytest.param(None, (), None, id="no spec at all is an empty one"),
    ],
)
def test_directions(spec: dict[str, object] | None, ingress: tuple[PolicyRule, ...] | None, egress: tuple[PolicyRule, ...] | None) -> None:
    """Which directions a policy isolates (SEMANTICS 1, 6, 7); a podSelector that is missing or null selects all."""
    selectors: tuple[dict[str, object], ...] = ({}, {"podSelector": {}}, {"podSelector": None})
    for selector in selectors:
        whole = spec if spec is None else {**selector, **spec}
        assert policy(whole) == (Policy("ns", "p", EVERYTHING, ingress, egress), [])


def test_duplicates_and_order_of_peers_mean_nothing() -> None:
    """The value of a rule is one, however its peers and ports are written."""
    peers: list[object] = [{"podSelector": WEB}, {"ipBlock": {"cidr": "10.0.0.0/8"}}, {"namespaceSelector": {}}]
    ports: list[object] = [{"port": 80}, {"port": "http"}, {"port": 443}]
    one, _ = policy({"ingress": [{"from": peers, "ports": ports}]})
    other, _ = policy({"ingress": [{"from": peers[::-1] + peers, "ports": ports[::-1] + ports}]})
    assert one == other


# -- policies with something broken ------------------------------------------------------------------------------------

NOT_A_SELECTOR = "Object contains unknown field `x`"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param(
            {"from": [{}]}, ".from[0]: names no peer: a podSelector, a namespaceSelector or an ipBlock is needed", id="an empty peer"
        ),
        pytest.param({"from": [{"podSelector": {"x": 1}}]}, f".from[0].podSelector: {NOT_A_SELECTOR}", id="unknown field in a selector"),
        pytest.param({"from": [{"x": 1}]}, f".from[0]: {NOT_A_SELECTOR}", id="unknown field in a peer"),
        pytest.param({"from": [{"podSelector": {}}], "x": 1}, f": {NOT_A_SELECTOR}", id="unknown field in a rule"),
        pytest.param(
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "x": 1}]}}]},
            f".from[0].podSelector.matchExpressions[0]: {NOT_A_SELECTOR}",
            id="unknown field in an expression",
        ),
        pytest.param({"to": [{"podSelector": {}}]}, ": Object contains unknown field `to`", id="the other direction's field"),
        pytest.param({"ports": [{"port": 80, "x": 1}]}, f".ports[0]: {NOT_A_SELECTOR}", id="unknown field in a port"),
        pytest.param(
            {"from": [{"ipBlock": {"cidr": "1.0.0.0/8", "x": 1}}]}, f".from[0].ipBlock: {NOT_A_SELECTOR}", id="unknown field in a block"
        ),
        pytest.param({"from": {}}, ".from: Expected `array | null`, got `object`", id="peers no list"),
        pytest.param({"from": [None]}, ".from[0]: Expected `object`, got `null`", id="a peer that is null"),
        pytest.param({"ports": "80"}, ".ports: Expected `array | null`, got `str`", id="ports no list"),
        pytest.param(None, ": Expected `object`, got `null`", id="a rule that is null"),
        pytest.param([], ": Expected `object`, got `array`", id="a rule that is a list"),
        pytest.param(
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}]},
            ".from[0].podSelector.matchExpressions[0].operator: 'Gt' is none of In, NotIn, Exists, DoesNotExist",
            id="unknown operator",
        ),
        *(
            pytest.param(
                {"from": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}}]},
                f".from[0].namespaceSelector.matchExpressions[0].values: must {rule} for the operator {operator}",
                id=f"{operator} with {values}",
            )
            for operator, values, rule in (
                ("In", [], "not be empty"),
                ("NotIn", None, "not be empty"),
                ("Exists", ["x"], "be empty"),
                ("DoesNotExist", ["x"], "be empty"),
            )
        ),
        pytest.param(
            {"from": [{"podSelector": {"matchExpressions": [{"key": "-a", "operator": "Exists"}]}}]},
            ".from[0].podSelector.matchExpressions[0].key: '-a' is not a label key",
            id="a key of an expression",
        ),
        *(
            pytest.param(
                {"from": [{"podSelector": {"matchLabels": {key: "v"}}}]},
                f".from[0].podSelector.matchLabels: {key!r} is not a label key",
                id=f"the label key {key[:8]!r}",
            )
            for key in ("", "a b", "a/", "/a", "a/b/c", "A/b", "a" * 64)
        ),
        pytest.param(
            {"from": [{"podSelector": {"matchLabels": {"a": 1}}}]},
            ".from[0].podSelector.matchLabels[a]: Expected `str`, got `int`",
            id="a label that is a number",
        ),
        pytest.param(
            {"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]},
            ".from[0].ipBlock: cannot stand beside a podSelector or a namespaceSelector",
            id="a block beside a selector",
        ),
        *(
            pytest.param({"from": [{"ipBlock": {"cidr": cidr}}]}, f".from[0].ipBlock.cidr: {cidr!r} is not {what}", id=f"the CIDR {cidr}")
            for cidr, what in (
                ("10.0.0.0", "a CIDR"),
                ("10.0.0.0/", "a CIDR"),
                ("10.0.0.0/33", "a CIDR"),
                ("10.0.0.0/-1", "a CIDR"),
                ("fd00::/129", "a CIDR"),
                ("10.0.0.0/8/8", "a CIDR"),
                ("10.0.0.0/ 8", "a CIDR"),
                ("10.0.0.0/\u0668", "a CIDR"),
            )
        ),
        pytest.param(
            {"from": [{"ipBlock": {"cidr": "10.0.0/8"}}]}, ".from[0].ipBlock.cidr: '10.0.0' is not an IP address", id="a short CIDR"
        ),
        pytest.param({"from": [{"ipBlock": {"cidr": ""}}]}, ".from[0].ipBlock.cidr: '' is not an IP address", id="an empty CIDR"),
        pytest.param({"from": [{"ipBlock": {}}]}, ".from[0].ipBlock: Object missing required field `cidr`", id="a block without a CIDR"),
        *(
            pytest.param(
                {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16", inner]}}]},
                f".from[0].ipBlock.except[1]: {inner} does not lie inside 10.0.0.0/8",
                id=f"except {inner}",
            )
            for inner in ("11.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "fd00::/16")
        ),
        pytest.param(
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.1"]}}]},
            ".from[0].ipBlock.except[0]: '10.0.0.1' is not a CIDR",
            id="an except that is no CIDR",
        ),
        *(
            pytest.param({"ports": [{"port": 80}, {"port": port}]}, f".ports[1].port: {port} is not a port: 1 to 65535", id=f"port {port}")
            for port in (0, -1, 65536, 10**30)
        ),
        pytest.param({"ports": [{"port": 80, "endPort": 79}]}, ".ports[0].endPort: 79 is below the port 80", id="endPort below port"),
        pytest.param(
            {"ports": [{"port": 80, "endPort": 65536}]}, ".ports[0].endPort: 65536 is not a port: 1 to 65535", id="endPort too high"
        ),
        pytest.param({"ports": [{"endPort": 80}]}, ".ports[0].endPort: needs a port", id="endPort alone"),
        pytest.param(
            {"ports": [{"port": "web", "endPort": 80}]}, ".ports[0].endPort: needs a port that is a number", id="endPort of a name"
        ),
        *(
            pytest.param({"ports": [{"port": name}]}, f".ports[0].port: {name!r} is not the name of a port", id=f"the port {name!r}")
            for name in ("", "80", "Http", "-web", "web-", "a--b", "a" * 16, "we_b")
        ),
        pytest.param({"ports": [{"port": True}]}, ".ports[0].port: Expected `int | str | null`, got `bool`", id="a port that is true"),
        pytest.param(
            {"ports": [{"port": 80.5}]}, ".ports[0].port: Expected `int | str | null`, got `float`", id="a port that is a fraction"
        ),
        *(
            pytest.param(
                {"ports": [{"protocol": name}]}, f".ports[0].protocol: {name!r} is none of TCP, UDP, SCTP", id=f"protocol {name!r}"
            )
            for name in ("ICMP", "tcp", "", "TCP ")
        ),
    ],
)
def test_34_a_broken_rule_is_dropped_and_the_others_stand(rule: object, expected: str) -> None:
    """One error, with object, path and reason; the policy isolates as before and keeps its other rules, on both sides of the broken one."""
    found, errors = policy({"podSelector": WEB, "ingress": [GOOD, rule, GOOD], "egress": [GOOD], "policyTypes": ["Ingress", "Egress"]})
    assert errors == [f"NetworkPolicy ns/p: spec.ingress[1]{expected}"]
    assert found == Policy("ns", "p", WEB_PODS, (GOOD_RULE, GOOD_RULE), (GOOD_RULE,))


@pytest.mark.parametrize(
    ("spec", "expected", "value"),
    [
        pytest.param(
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}, "ingress": [GOOD]},
            ["spec.podSelector.matchExpressions[0].operator: 'Is' is none of In, NotIn, Exists, DoesNotExist"],
            Policy("ns", "p", EVERYTHING, (GOOD_RULE,), None),
            id="33-podSelector-unreadable-is-the-whole-namespace",
        ),
        pytest.param(
            {"podSelector": {"x": 1}},
            [f"spec.podSelector: {NOT_A_SELECTOR}"],
            Policy("ns", "p", EVERYTHING, (), None),
            id="33-podSelector-x",
        ),
        pytest.param(
            {"podSelector": [], "policyTypes": ["Egress"]},
            ["spec.podSelector: Expected `object`, got `array`"],
            Policy("ns", "p", EVERYTHING, None, ()),
            id="33-podSelector-a-list",
        ),
        pytest.param(
            {"podSelector": WEB, "policyTypes": ["Ingress", "Both"], "ingress": [GOOD]},
            ["spec.policyTypes[1]: 'Both' is neither Ingress nor Egress"],
            Policy("ns", "p", WEB_PODS, (GOOD_RULE,), ()),
            id="33-policyTypes-unknown-is-both",
        ),
        pytest.param(
            {"podSelector": WEB, "policyTypes": "Ingress"},
            ["spec.policyTypes: Expected `array`, got `str`"],
            Policy("ns", "p", WEB_PODS, (), ()),
            id="33-policyTypes-no-list-is-both",
        ),
        pytest.param(
            {"podSelector": WEB, "policyTypes": [1]},
            ["spec.policyTypes[0]: Expected `str`, got `int`"],
            Policy("ns", "p", WEB_PODS, (), ()),
            id="33-policyTypes-of-numbers-is-both",
        ),
        pytest.param(
            {"podSelector": WEB, "ingress": {}, "egress": "x"},
            ["spec.ingress: Expected `array`, got `object`", "spec.egress: Expected `array`, got `str`"],
            Policy("ns", "p", WEB_PODS, (), ()),
            id="33-rules-unreadable-isolate-and-allow-nothing",
        ),
        pytest.param(
            {"podSelector": WEB, "ingress": [{"ports": [{"port": 0}]}], "egress": [{"to": [{}]}, GOOD]},
            [
                "spec.ingress[0].ports[0].port: 0 is not a port: 1 to 65535",
                "spec.egress[0].to[0]: names no peer: a podSelector, a namespaceSelector or an ipBlock is needed",
            ],
            Policy("ns", "p", WEB_PODS, (), (GOOD_RULE,)),
            id="33-each-broken-rule-has-its-error",
        ),
        pytest.param(
            {"podSelector": WEB, "egress": [{"from": [], "ports": []}, GOOD]},
            ["spec.egress[0]: Object contains unknown field `from`"],
            Policy("ns", "p", WEB_PODS, (), (GOOD_RULE,)),
            id="33-unknown-field-in-an-egress-rule",
        ),
        pytest.param(
            {"podSelector": WEB, "policyTypes": ["Ingress"], "egress": [{"to": [{}]}]},
            ["spec.egress[0].to[0]: names no peer: a podSelector, a namespaceSelector or an ipBlock is needed"],
            Policy("ns", "p", WEB_PODS, (), None),
            id="34-a-broken-rule-is-reported-where-it-is-inert-too",
        ),
        pytest.param(
            "x", ["spec: Expected `object`, got `str`"], Policy("ns", "p", EVERYTHING, (), ()), id="33-spec-unreadable-is-everything"
        ),
    ],
)
def test_a_broken_policy_isolates(spec: object, expected: list[str], value: Policy) -> None:
    """What cannot be read of a policy never opens anything: it selects more, isolates more, allows less."""
    found, errors = policy(spec)
    assert errors == [f"NetworkPolicy ns/p: {error}" for error in expected]
    assert found == value


def test_what_means_nothing_cannot_be_wrong() -> None:
    """A policy's own labels and a field that no version of its metadata has do not stand in its way."""
    assert policy({"ingress": [GOOD]}, labels={"a": 1}, extra=5) == (Policy("ns", "p", EVERYTHING, (GOOD_RULE,), None), [])


# -- damage ------------------------------------------------------------------------------------------------------------

RULES: tuple[Any, ...] = (
    {"from": [{"podSelector": {"matchLabels": {"a": "b"}}}, {"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]},
    {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]},
    {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}}], "ports": [{"port": "web"}]},
    {},
)
JUNK: tuple[Any, ...] = (None, True, -1, 70000, "x", "10.0.0.0/40", [], ["x"], {}, {"x": 1}, [{}], [None])


@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(st.data(), st.permutations(RULES))
def test_damage_stays_in_its_rule(data: st.DataObject, rules: list[Any]) -> None:
    """A rule with junk somewhere in it is either what it says by itself, or reported and gone; its neighbours never notice."""
    which = data.draw(st.integers(0, len(rules) - 1))
    where = data.draw(st.sampled_from(list(places(rules[which]))))
    broken = [*rules[:which], damaged(rules[which], where, data.draw(st.sampled_from(JUNK))), *rules[which + 1 :]]
    alone = [policy({"ingress": [rule]}) for rule in broken]
    found, errors = policy({"ingress": broken})
    assert found is not None
    assert len(errors) == sum(len(errors) for _, errors in alone) <= 1
    assert found.ingress == tuple(rule for value, _ in alone if value is not None for rule in value.ingress or ())
    assert len(found.ingress) == len(rules) - len(errors)
