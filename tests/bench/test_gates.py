"""Exact gates: how many system calls each kind of change makes, as our own counter says. More of them fail the build."""

from __future__ import annotations

import pytest

from netpol.bench import Case, measure
from netpol.bench.cases import node_cases

# row of `netpol bench --quick` -> system calls
MOST = {
    "600 members into hash:ip": 2,
    "600 members into hash:net, 10% nomatch": 2,
    "1 member added to 600": 2,
    "50 members added to 600": 2,
    "2 sets swapped, one of 50": 2,
    "a set of 50 destroyed": 2,
    "600 members read": 2,
    "200 rules into a table": 6,
    "200 rules into a table, IPv6": 6,
    "1 chain changed in a table of 100 rules": 7,
    "1 rule appended in a table of 100 rules": 6,
    "policy change, 200 pods": 8,
}
CASES = [case for case in node_cases(quick=True) if case.row in MOST]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_a_change_makes_no_more_system_calls(case: Case) -> None:
    """The figure is exact: one that fell is written down here, one that grew is a regression."""
    assert measure(case, pairs=1).system_calls == MOST[case.row]


def test_every_gate_has_a_case() -> None:
    """A renamed row does not open its gate."""
    assert {case.row for case in CASES} == set(MOST)
