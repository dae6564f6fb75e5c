"""How much a policy may ask for, and what of it is kept to be shared with others."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from netpol.model import EVERYTHING, Policy, PolicyRule
from netpol.policy.decode import decode_pod
from tests.policy.test_decode import policy


def selecting(number: int) -> dict[str, object]:
    return {"podSelector": {"matchLabels": {"n": str(number)}}}


TOO_MUCH: dict[str, tuple[int, Callable[[int], list[object]], str]] = {
    "rules": (
        5_000,
        lambda n: [{"from": [selecting(i % 9)], "ports": [{"port": 1 + i}]} for i in range(n)],
        "5001 rules, where at most 5000",
    ),
    "selectors": (
        2_000,
        lambda n: [{"from": [selecting(i) for i in range(n)]}, {"from": [selecting(0), {"namespaceSelector": {}}][: n - 1999]}],
        "2002 peers that select pods, where at most 2000",
    ),
    "names": (
        100,
        lambda n: [{"ports": [{"port": f"p{i}"} for i in range(n)] + [{"port": "p1"}]}],
        "101 named ports, where at most 100",
    ),
    "pairs": (
        125_000,
        lambda n: [
            {"from": [selecting(i) for i in range(250)], "ports": [{"port": i + 1} for i in range(n // 250)]},
            {"from": [selecting(i) for i in range(125)], "ports": [{"port": i + 1} for i in range(1_000)]},
            *({"ports": [{"port": 1}]} for _ in range(n % 250)),
        ],
        "250001 peers times ports, where at most 250000",
    ),
    "excepts": (
        249,
        lambda n: [
            {
                "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"10.0.0.{i}/32" for i in range(n)]}}],
                "ports": [{"port": i + 1} for i in range(1_000)],
            }
        ],
        "251000 peers times ports, where at most 250000",
    ),
}


@pytest.mark.parametrize(("most", "made", "words"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_asks_for_too_much_allows_nothing(most: int, made: Callable[[int], list[object]], words: str) -> None:
    """It isolates, and the other direction stands; as much as may be is no mistake."""
    found, errors = policy({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": made(most), "egress": [{}]})
    assert errors == []
    assert found is not None
    assert found.ingress
    found, errors = policy({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": made(most + 1), "egress": [{}]})
    assert errors == [f"NetworkPolicy ns/p: spec.ingress: asks for {words} are enforced: nothing is allowed by it"]
    assert found is not None
    assert (found.ingress, found.egress) == ((), (PolicyRule(),))


def test_a_direction_that_does_not_count_asks_for_nothing() -> None:
    """By its policyTypes (SEMANTICS 6)."""
    much = [{"ports": [{"port": i + 1}]} for i in range(5_001)]
    found, errors = policy({"podSelector": {}, "policyTypes": ["Egress"], "ingress": much})
    assert (found, errors) == (Policy("ns", "p", EVERYTHING, None, ()), [])
    found, errors = policy({"podSelector": {}, "policyTypes": ["Ingress"], "egress": much})
    assert (found, errors) == (Policy("ns", "p", EVERYTHING, (), None), [])
    found, errors = policy({"podSelector": {}, "policyTypes": ["Egress"], "egress": much})
    assert found == Policy("ns", "p", EVERYTHING, None, ())
    assert [error[: error.index(" asks")] for error in errors] == ["NetworkPolicy ns/p: spec.egress:"]


def values(count: int) -> dict[str, object]:
    return {"matchExpressions": [{"key": "k", "operator": "In", "values": [f"v{i}" for i in range(count)]}]}


LARGE: dict[str, tuple[int, Callable[[int], dict[str, object]]]] = {
    "excepts": (63, lambda n: {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"10.0.{i}.0/24" for i in range(n)]}}]}),
    "peers": (32, lambda n: {"from": [selecting(i) for i in range(n)]}),
    "ports": (64, lambda n: {"ports": [{"port": i + 1} for i in range(n)]}),
    "values": (63, lambda n: {"from": [{"podSelector": values(n)}]}),
    "values of namespaces": (63, lambda n: {"from": [{"namespaceSelector": values(n)}]}),
    "both": (62, lambda n: {"from": [{"podSelector": values(n)}], "ports": [{"port": 1}]}),
}


@pytest.mark.parametrize(("most", "made"), LARGE.values(), ids=LARGE)
def test_rules_that_are_large_are_not_kept_to_be_shared(most: int, made: Callable[[int], dict[str, object]]) -> None:
    """Hundreds of such are, of the past too, as others come that are the same."""
    for count, is_shared in ((most, True), (most + 1, False)):
        (one,), (other,) = ((found.ingress if found else None) or () for found, _ in (policy({"ingress": [made(count)]}) for _ in range(2)))
        assert one == other
        assert (one is other) is is_shared
        assert one.ports is other.ports or not is_shared
    big = made(2 * most)
    (one,), (other,) = ((found.ingress if found else None) or () for found, _ in (policy({"ingress": [big]}) for _ in range(2)))
    assert one.ports is not other.ports or one.ports is None or len(one.ports) == 1


def test_labels_and_selectors_that_are_large_are_not_kept_to_be_shared() -> None:
    """With as many as hardly an object has."""
    for count, is_shared in ((64, True), (65, False)):
        labels = {f"k{i}": "v" for i in range(count)}
        one, other = (decode_pod(json.dumps({"metadata": {"name": "p", "labels": labels}}).encode()).value for _ in range(2))
        assert one is not None
        assert other is not None
        assert (one.labels is other.labels) is is_shared
        first, second = (policy({"podSelector": values(count - 1)})[0] for _ in range(2))
        assert first is not None
        assert second is not None
        assert (first.pods is second.pods) is is_shared
