"""Figures with goals of their own: what meets them, how they stand in the file and in the table, and which value a percentile is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from netpol.bench.report import FILE, added, from_json, run_of, table, to_json
from netpol.bench.result import Figure, Result, percentile, waits

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        pytest.param(Figure(5.0, "ms", 5.0), True, id="as much as it may be"),
        pytest.param(Figure(5.1, "ms", 5.0), False, id="more than it may be"),
        pytest.param(Figure(5000, "events/s", 5000.0, least=True), True, id="as much as it must be"),
        pytest.param(Figure(4999, "events/s", 5000.0, least=True), False, id="less than it must be"),
        pytest.param(Figure(1.0, "s"), None, id="no goal"),
    ],
)
def test_a_figure_meets_its_goal(figure: Figure, met: bool | None) -> None:
    """A goal is the most that a figure may be, or the least where it says so."""
    assert figure.met is met


@pytest.mark.parametrize(("count", "share", "found"), [(100, 99, 99), (100, 100, 100), (101, 99, 100), (1, 99, 1), (10, 50, 5)])
def test_a_percentile_is_one_of_the_values(count: int, share: int, found: int) -> None:
    """It is the smallest that so many in a hundred do not exceed, whatever their order."""
    assert percentile([float(number) for number in range(count, 0, -1)], share) == found


def test_no_values_have_no_percentile() -> None:
    """Nothing measured is an error and not a zero."""
    with pytest.raises(ValueError, match="no values"):
        percentile([], 99)


def test_a_row_of_waits_goes_through_the_file_and_the_table() -> None:
    """It has the form of every row, and the table says of both figures whether they are as demanded."""
    row = waits("policy -> wire", [0.002] * 98 + [0.030] * 2, 5.0, 25.0, 14)
    assert row == Result("policy -> wire", 2.0, {}, 14, 100, figures={"median": Figure(2.0, "ms", 5.0), "p99": Figure(30.0, "ms", 25.0)})
    raw = to_json(run_of([row]))
    assert from_json(raw).rows == (row,)
    assert all(part in raw for part in (b'"row"', b'"ms"', b'"peers"'))
    drawn = table([row], 160, False)
    assert "median: 2.00 ms" in drawn
    assert "<= 5 ms met" in drawn
    assert "p99: 30.0 ms" in drawn
    assert "<= 25 ms missed" in drawn


def test_rows_are_added_to_an_earlier_run() -> None:
    """One of the same name takes the place of the old one, the others stay where they are, new ones come last."""
    run = run_of([Result("a", 1.0, {}, 1, 1), Result("b", 2.0, {}, 1, 1)])
    rows = added(run, [Result("c", 3.0, {}, 1, 1), Result("a", 4.0, {}, 1, 1)])
    assert [(result.row, result.ms) for result in rows] == [("a", 4.0), ("b", 2.0), ("c", 3.0)]


def test_rows_of_another_machine_are_not_added_to() -> None:
    """One file is of one machine: its rows are read beside each other."""
    run = replace(run_of([Result("a", 1.0, {}, 1, 1)]), machine="another one")
    with pytest.raises(ValueError, match="another one"):
        added(run, [])


@pytest.mark.parametrize(("raw", "says"), [(b'{"rows": 7}', "$.rows"), (None, "another one")], ids=["no run", "another machine's"])
def test_rows_that_could_not_be_added_are_not_measured(tmp_path: Path, raw: bytes | None, says: str) -> None:
    """What is wrong with the file is said at the start, in a line, and the file stays."""
    before = raw or to_json(replace(run_of([Result("a", 1.0, {}, 1, 1)]), machine="another one"))
    (tmp_path / FILE).write_bytes(before)
    command = [sys.executable, "-m", "pytest", "--add", "--collect-only", "-p", "no:cacheprovider", str(ROOT / "bench")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (line,) = filter(None, done.stderr.splitlines())
    assert (done.returncode, line.startswith(f"ERROR: {FILE}"), says in line) == (pytest.ExitCode.USAGE_ERROR, True, True), line
    assert (tmp_path / FILE).read_bytes() == before
