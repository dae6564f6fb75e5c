"""Every case at a tiny size: it runs beside its peers, is verified, finds out a contender that does nothing, and gives a row.

How long anything takes is no matter here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netpol.bench import Case, Result, Session, cases, measure
from netpol.bench.cases import (
    audit_cases,
    change_cases,
    flow_cases,
    kernel_cases,
    known_cases,
    leaving_cases,
    packet_cases,
    read_cases,
    scale_cases,
)
from netpol.bench.measure import BenchError, Contender
from netpol.bench.packets import peers_in_a_set
from netpol.bench.report import from_json, run_of, table, to_json
from netpol.kernel.apply import Kernel
from netpol.rules.ruleset import ReplaceTable
from tests.referees import require

ROOT = Path(__file__).parent.parent.parent
MEMBERS, FEW, RULES = 300, 20, (20, 30)
TINY = kernel_cases(MEMBERS, FEW, RULES)
# These have no programs as peers, but our own work in other circumstances.
OURS = (
    *packet_cases(10, (1, 5, 30)),
    *known_cases(10, (1, 5, 30)),
    peers_in_a_set("new flow, a set of 50 peers", (3, 50), 1, {}),
    *change_cases(100, 20, 10),
    *audit_cases(200, 60, (20, 30)),
    *flow_cases(200, (100, 20, 10)),
    *read_cases(30),
    *leaving_cases(300),
)
SCALED = scale_cases(300, (40,), (7,), (30,), (50,), (50,), (30, 60), 90, (200,))
EVERY_CASE = pytest.mark.parametrize("case", TINY, ids=lambda case: case.row)
EVERY_OTHER = pytest.mark.parametrize("case", OURS, ids=lambda case: case.row)

RESTORES = {"ipset restore", "ipset restore, right-sized"}
# row -> the peers it has where all of them are installed
PEERS = {
    "300 members into hash:ip": RESTORES,
    "300 scattered members into hash:ip": RESTORES,
    "300 members into hash:net, 10% nomatch": RESTORES,
    "20 members into hash:ip": RESTORES | {"pyroute2"},
    "1 member added to 300": {"ipset add", "pyroute2"},
    "2 sets swapped, one of 20": {"ipset swap"},
    "a set of 20 destroyed": {"ipset destroy"},
    "300 members read": {"ipset save"},
    "20 rules into a table": {"iptables-legacy-restore"},
    "30 rules into a table": {"iptables-legacy-restore"},
    "20 rules into a table, IPv6": {"ip6tables-legacy-restore"},
    "30 rules into a table, IPv6": {"ip6tables-legacy-restore"},
    "1 chain changed in a table of 20 rules": {"iptables-legacy-restore --noflush"},
    "a table of 20 rules read": {"iptables-legacy-save"},
    "a table of 30 rules read": {"iptables-legacy-save"},
}


def case_of(row: str) -> Case:
    return next(case for case in TINY if case.row == row)


@EVERY_CASE
def test_a_case_does_what_it_should_and_gives_a_row(case: Case) -> None:
    """All contenders are verified, then measured; the row has every peer, and the form that readers of the file expect."""
    require("ipset", "iptables-legacy", "ip6tables-legacy")
    result = measure(case, pairs=2)
    (row,) = json.loads(to_json(run_of([result])))["rows"]
    assert set(row) == {"row", "ms", "peers", "system_calls", "pairs"}
    assert (row["row"], row["pairs"]) == (case.row, 2)
    assert row["ms"] > 0
    assert row["system_calls"] > 1
    assert set(row["peers"]) == PEERS[case.row]
    for name, peer in row["peers"].items():
        assert peer["ms"] > 0
        assert peer["ratio"] > 0
        assert peer.get("goal") == case.goals.get(name)
    assert from_json(to_json(run_of([result]))).rows == (result,)


@pytest.mark.parametrize("case", SCALED, ids=lambda case: case.row)
def test_a_case_at_another_scale_gives_a_row(case: Case) -> None:
    """All contenders are verified, the programs too, then measured."""
    require("ipset", "iptables-legacy", "ip6tables-legacy")
    result = measure(case, pairs=1)
    assert result.ms > 0
    assert result.peers
    assert all(peer.ratio > 0 for peer in result.peers.values())


@EVERY_OTHER
def test_a_case_without_programs_gives_a_row(case: Case) -> None:
    """All contenders are verified, then measured; a goal stands beside a peer that there is."""
    require("iptables-legacy")
    result = measure(case, pairs=1)
    assert result.ms > 0
    assert set(case.goals) <= set(result.peers)
    assert all(peer.ratio > 0 for peer in result.peers.values())


@pytest.mark.parametrize("case", [*TINY, *OURS, *SCALED], ids=lambda case: case.row)
def test_a_contender_that_does_nothing_is_found_out(case: Case, netns: int, tmp_path: Path) -> None:
    """Whoever ran before: what the kernel holds after `prepare` alone is not what is asked for, and after `run` it is."""
    with case.open(tmp_path) as contest:
        contenders: list[Contender] = [contest.ours, *contest.peers.values()]
        for contender in (*contenders, *reversed(contenders)):
            contender.prepare()
            with pytest.raises(BenchError):
                contender.verify(None)
            contender.verify(contender.run())


def test_the_goal_of_a_loaded_table_begins_at_1000_rules() -> None:
    """A smaller one is a row without a goal."""
    loads = [case for case in cases() if "rules into a table" in case.row and "foreign" not in case.row]
    assert len(loads) == 6
    assert [case.row for case in loads if not case.goals] == ["100 rules into a table"]


def test_every_row_has_a_name_of_its_own() -> None:
    """Rows are what results are found by, at the sizes of users too."""
    rows = [case.row for case in cases()]
    assert len(set(rows)) == len(rows)
    assert rows[0] == "60k members into hash:ip"
    assert {case.row for case in TINY} == set(PEERS)
    tiny = cases(MEMBERS, FEW, RULES, 10, (1, 5, 30), (3, 50), (100, 20, 10), (200, 60), (20, 30), 30, 200)
    assert {case.row for case in tiny} == {case.row for case in (*TINY, *OURS)}


def test_without_peers_there_are_still_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without ipset and iptables: every case is verified and measured, and the table says what is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("netpol.bench.peers.SYSTEM_PLACES", str(tmp_path))
    results = [measure(case, pairs=1) for case in TINY]
    assert {name for result in results for name in result.peers} == {"pyroute2"}
    assert table(results, 120, colours=False).count("nothing installed") == len(TINY) - 2


@pytest.mark.parametrize("lock", [None, "/elsewhere/lock"], ids=["default lock", "another lock"])
def test_a_session_leaves_nothing_behind(lock: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's network namespace, the lock of iptables and the open descriptors are what they were."""

    def surroundings() -> tuple[int, str | None, int]:
        return os.stat("/proc/thread-self/ns/net").st_ino, os.environ.get("XTABLES_LOCKFILE"), len(os.listdir("/proc/self/fd"))

    case = case_of("a table of 20 rules read")
    # What a first time opens and keeps is not a session's.
    measure(case, pairs=1)
    if lock is None:
        monkeypatch.delenv("XTABLES_LOCKFILE", raising=False)
    else:
        monkeypatch.setenv("XTABLES_LOCKFILE", lock)
    before = surroundings()
    with Session(case) as session:
        inside = surroundings()
        session.verify()
        private = Path(str(inside[1]))
        assert private.exists()
    assert surroundings() == before
    assert inside[0] != before[0]
    assert not private.parent.exists()


def test_a_table_that_no_packet_reaches_is_found_out(netns: int, tmp_path: Path) -> None:
    """All chains are there, and FORWARD does not jump to them."""
    with case_of("20 rules into a table").open(tmp_path) as contest, Kernel() as kernel:
        contest.ours.prepare()
        contest.ours.run()
        kernel.apply([ReplaceTable(4, kernel.table, kernel.read().chains[4], hooked=False)])
        with pytest.raises(BenchError, match="does not hold"):
            contest.ours.verify(None)


def test_the_face_of_pytest_writes_the_file(tmp_path: Path) -> None:
    """`pytest bench` on one case: the table, bench-results.json, and pytest-benchmark's own file with the row in extra_info."""
    require("ipset")
    command = [sys.executable, "-m", "pytest", str(ROOT / "bench"), "-k", "swapped", "-p", "no:cacheprovider"]
    saved = tmp_path / "saved.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--benchmark-quiet", f"--benchmark-json={saved}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ipset swap" in done.stdout
    run = from_json((tmp_path / "bench-results.json").read_bytes())
    assert "CPU" in run.machine
    (result,) = run.rows
    assert (run.least_mebibytes, run.peak_mebibytes) == (result.least_mebibytes, result.peak_mebibytes)
    assert isinstance(result, Result)
    assert set(result.peers) == {"ipset swap"}
    (benchmark,) = json.loads(saved.read_text())["benchmarks"]
    assert benchmark["extra_info"]["result"] == json.loads(to_json(run))["rows"][0]
    assert benchmark["stats"]["rounds"] == result.pairs
    assert benchmark["extra_info"]["operations"] > 1


def test_rows_are_added_to_the_file_where_that_is_asked_for(tmp_path: Path) -> None:
    """`--add` keeps the rows that are there; without it the file is of one run."""
    require("ipset")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = []
    for words, more in (("swapped", ()), ("destroyed", ("--add",)), ("swapped", ())):
        command = [sys.executable, "-m", "pytest", str(ROOT / "bench"), "-k", words, *more, "-p", "no:cacheprovider", "--benchmark-quiet"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append([row.row for row in from_json((tmp_path / "bench-results.json").read_bytes()).rows])
    swapped, both, again = found
    assert both == [*swapped, "a set of 1k destroyed"]
    assert again == swapped
