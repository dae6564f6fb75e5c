"""Numbers of things in words."""

from __future__ import annotations

import pytest

from netpol.cli.counted import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        pytest.param(0, ("pod",), "0 pods", id="none"),
        pytest.param(1, ("pod",), "1 pod", id="one"),
        pytest.param(2, ("pod",), "2 pods", id="two"),
        pytest.param(1, ("policy", "policies"), "1 policy", id="one of a word of its own"),
        pytest.param(2, ("policy", "policies"), "2 policies", id="two of it"),
    ],
)
def test_counted(number: int, words: tuple[str, ...], text: str) -> None:
    """One is none of many."""
    assert counted(number, *words) == text
