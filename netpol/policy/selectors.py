"""Label selectors: when one matches, and which of its requirements is best to look it up by."""

from __future__ import annotations

from bisect import bisect_left

from netpol.model import Labels, Requirement, Selector

FEW = 16


def holds(requirement: Requirement, labels: Labels) -> bool:
    """Whether one requirement holds. NotIn and DoesNotExist hold for an object that lacks the key (SEMANTICS 10)."""
    for key, value in labels:
        if key == requirement.key:
            if requirement.operator in ("In", "NotIn"):
                return _has(requirement.values, value) == (requirement.operator == "In")
            return requirement.operator == "Exists"
    return requirement.operator in ("NotIn", "DoesNotExist")


def _has(values: tuple[str, ...], value: str) -> bool:
    """Whether it is one of these, which are sorted, for there may be many."""
    if len(values) < FEW:
        return value in values
    at = bisect_left(values, value)
    return at < len(values) and values[at] == value


def matches(selector: Selector, labels: Labels) -> bool:
    """Whether all requirements hold; an empty selector matches everything (SEMANTICS 5)."""
    return all(holds(requirement, labels) for requirement in selector.requirements)


def lookup_keys(selector: Selector) -> tuple[tuple[str, str | None], ...]:
    """Label pairs, or (key, None) for any value of a key, one of which every object that matches must carry.

    Taken from the requirement that says most (In with the fewest values, else Exists); empty when only a look at every object will do.
    """
    best = min((r for r in selector.requirements if r.operator == "In"), key=lambda r: len(r.values), default=None)
    if best is not None:
        return tuple((best.key, value) for value in best.values)
    exists = next((r for r in selector.requirements if r.operator == "Exists"), None)
    return ((exists.key, None),) if exists is not None else ()
