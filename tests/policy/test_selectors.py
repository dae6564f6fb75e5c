"""Label selectors, held against the Kubernetes documentation: the specification and the index both stand on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.model import EVERYTHING, Labels, Requirement, Selector
from netpol.policy.selectors import holds, lookup_keys, matches
from tests import clusters

IN = Requirement("app", "In", ("a", "b"))
NOT_IN = Requirement("app", "NotIn", ("a", "b"))
EXISTS = Requirement("app", "Exists")
DOES_NOT_EXIST = Requirement("app", "DoesNotExist")


@pytest.mark.parametrize(
    ("requirement", "labels", "expected"),
    [
        pytest.param(IN, (("app", "b"),), True, id="In, one of the values"),
        pytest.param(IN, (("app", "c"),), False, id="In, another value"),
        pytest.param(IN, (("tier", "a"),), False, id="In, no such key"),
        pytest.param(IN, (), False, id="In, no labels"),
        pytest.param(NOT_IN, (("app", "a"),), False, id="NotIn, one of the values"),
        pytest.param(NOT_IN, (("app", "c"),), True, id="NotIn, another value"),
        pytest.param(NOT_IN, (("tier", "a"),), True, id="10-NotIn, no such key"),
        pytest.param(NOT_IN, (), True, id="10-NotIn, no labels"),
        pytest.param(EXISTS, (("app", ""),), True, id="Exists, an empty value"),
        pytest.param(EXISTS, (("application", "a"),), False, id="Exists, a longer key"),
        pytest.param(EXISTS, (), False, id="Exists, no labels"),
        pytest.param(DOES_NOT_EXIST, (("app", ""),), False, id="DoesNotExist, an empty value"),
        pytest.param(DOES_NOT_EXIST, (("tier", "a"),), True, id="10-DoesNotExist, no such key"),
        pytest.param(DOES_NOT_EXIST, (), True, id="10-DoesNotExist, no labels"),
        pytest.param(Requirement("tier", "In", ("x",)), (("app", "a"), ("tier", "x"), ("z", "z")), True, id="the second label of three"),
    ],
)
def test_one_requirement(requirement: Requirement, labels: Labels, expected: bool) -> None:
    """Each operator on a key that is there with such a value, there with another, and missing (SEMANTICS 10)."""
    assert holds(requirement, labels) is expected
    assert matches(Selector((requirement,)), labels) is expected


@pytest.mark.parametrize("labels", [(), (("app", "a"),)])
def test_an_empty_selector_selects_everything(labels: Labels) -> None:
    """SEMANTICS 5."""
    assert matches(EVERYTHING, labels)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param((("app", "a"), ("tier", "x")), True, id="both"),
        pytest.param((("app", "a"),), False, id="the first only"),
        pytest.param((("tier", "x"),), False, id="the second only"),
    ],
)
def test_all_requirements_must_hold(labels: Labels, expected: bool) -> None:
    """They are ANDed."""
    assert matches(Selector((IN, Requirement("tier", "Exists"))), labels) is expected


@given(clusters.selectors, st.dictionaries(st.sampled_from(clusters.KEYS), st.sampled_from((*clusters.VALUES, "c"))))
def test_the_words_of_the_documentation(selector: Selector, labels: dict[str, str]) -> None:
    """Written once more over a dictionary, as the documentation of the API has it."""
    expected = True
    for requirement in selector.requirements:
        found = labels.get(requirement.key)
        expected &= {
            "In": found is not None and found in requirement.values,
            "NotIn": found is None or found not in requirement.values,
            "Exists": found is not None,
            "DoesNotExist": found is None,
        }[requirement.operator]
    assert matches(selector, tuple(sorted(labels.items()))) == expected


@given(clusters.selectors, clusters.labels)
def test_whoever_matches_is_found_by_a_look_up(selector: Selector, labels: Labels) -> None:
    """Every object that matches carries one of the pairs, or any value of a key that comes without one; no pair means look at all."""
    keys = lookup_keys(selector)
    if keys and matches(selector, labels):
        assert any((key, value) in labels or (value is None and key in dict(labels)) for key, value in keys)


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        pytest.param((), (), id="nothing to go by"),
        pytest.param((NOT_IN, DOES_NOT_EXIST), (), id="only what is not there"),
        pytest.param((EXISTS, NOT_IN), (("app", None),), id="a key"),
        pytest.param((EXISTS, Requirement("tier", "In", ("x", "y"))), (("tier", "x"), ("tier", "y")), id="pairs before keys"),
        pytest.param((IN, Requirement("tier", "In", ("x",))), (("tier", "x"),), id="the fewest pairs"),
    ],
)
def test_the_best_look_up(requirements: tuple[Requirement, ...], expected: tuple[tuple[str, str | None], ...]) -> None:
    """The requirement that says most is taken."""
    assert lookup_keys(Selector(requirements)) == expected
