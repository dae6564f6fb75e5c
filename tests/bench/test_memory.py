"""The row about memory: of a small cluster, in a process of its own; and a cluster that is not built is found out."""

from __future__ import annotations

import pytest

from netpol.bench.measure import BenchError
from netpol.bench.memory import footprint
from netpol.bench.report import from_json, run_of, table, to_json


def test_a_small_cluster_has_a_footprint() -> None:
    """It takes some memory, the row goes through the file unchanged, and the table says whether the goal is met."""
    row = footprint("small", 2000, 20, 10, 85.0)
    assert row.mebibytes is not None
    assert 0 < row.mebibytes < 85
    assert from_json(to_json(run_of([row]))).rows == (row,)
    text = table([row], 120, False)
    assert f"takes {row.mebibytes:.2f} MiB" in text
    assert "<= 85 MiB met" in text
    missed = footprint("missed", 2000, 20, 10, 0.001)
    assert "MiB missed" in table([missed], 120, False)


def test_a_cluster_that_needs_no_rules_is_no_figure(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a policy for its pods the node has no sets: the child says so, and there is no row."""
    with pytest.raises(BenchError, match=r"netpol\.bench\.memory 100 0 10: exit code 1"):
        footprint("no policies", 100, 0, 10, 85.0)
    assert "not all of it is there" in capfd.readouterr().err
