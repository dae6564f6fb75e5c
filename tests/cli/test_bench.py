"""`netpol bench`, really run at tiny sizes, as its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from netpol.bench.cases import node_cases
from netpol.bench.report import from_json
from tests.referees import require

NETPOL = (sys.executable, "-m", "netpol.cli.main", "bench", "--quick")


def test_a_quick_run_gives_every_row(tmp_path: Path) -> None:
    """The table has each row's name, and the file each row with its peers, the machine and the memory that it took."""
    require("ipset", "iptables-legacy", "ip6tables-legacy")
    file = tmp_path / "run.json"
    done = subprocess.run([*NETPOL, "--json", str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = from_json(file.read_bytes())
    assert [row.row for row in run.rows] == [case.row for case in node_cases(quick=True)]
    assert all(row.peers and row.ms > 0 and row.pairs == 1 for row in run.rows)
    assert run.missing == ()
    assert run.machine in done.stdout
    assert all(row.least_mebibytes and row.peak_mebibytes and row.least_mebibytes <= row.peak_mebibytes for row in run.rows)
    assert len({row.least_mebibytes for row in run.rows}) > 1  # each has a process of its own
    assert "ipset swap" in done.stdout
    assert not {"met", "missed"} & set(done.stdout.split())  # goals are for other sizes


def test_a_name_that_no_row_has_is_an_error() -> None:
    """Nothing is measured then, and the option is named."""
    done = subprocess.run([*NETPOL, "--only", "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--only" in done.stderr
    assert "nonsense" in done.stderr


def test_a_file_that_cannot_be_made_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    """In words, and at once."""
    file = tmp_path / "nowhere" / "run.json"
    done = subprocess.run([*NETPOL, "--json", str(file)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: --json {file}: No such file or directory\n"
