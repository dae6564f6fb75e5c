"""`netpol status`: what is programmed, when it was changed last, and how it differs from the saved state."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from netpol.cli.main import main
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")

EXAMPLE = Path(__file__).parents[2] / "examples" / "kubernetes-docs.yaml"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example in force, and saved."""
    monkeypatch.setenv("NETPOL_GRACE", "0")
    file = tmp_path / "state"
    netpol("apply", "-f", str(EXAMPLE), "--state", str(file))
    os.utime(file, (1_700_000_000, 1_700_000_000))
    return file


def netpol(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def test_what_is_as_it_was_saved(state: Path) -> None:
    """The file's time is that of the last change; nothing differs; and there are as many chains, rules, sets and members as are listed."""
    data = json.loads(netpol("status", "--json", "--state", str(state)))
    assert datetime.fromisoformat(data["saved"].pop("last_change")).timestamp() == 1_700_000_000
    assert data["saved"] == {"file": str(state), "drift": {}, "differs": []}
    text = netpol("status", "--state", str(state)).replace("\n", " ")
    assert "What is here is what was saved." in text
    rules, members = sum(row["rules"] for row in data["chains"]), sum(row["members"] for row in data["sets"])
    assert f"{len(data['chains'])} chains with {rules} rules, {len(data['sets'])} sets with {members} members." in text
    assert "Last change: 2023-11-1" in text


def test_what_differs_is_named(state: Path) -> None:
    """A jump that somebody moved and a member that he added are told by kind, and in words; nothing is repaired."""
    name = next(row["set"] for row in json.loads(netpol("status", "--json"))["sets"] if row["type"] == "hash:ip")
    run("iptables-legacy", "-w", "-t", "mangle", "-I", "FORWARD", "-p", "tcp", "-j", "ACCEPT")
    run("ipset", "add", name, "192.0.2.1")
    for _ in range(2):
        saved = json.loads(netpol("status", "--json", "--state", str(state)))["saved"]
        assert saved["drift"] == {"jump_moved": 1, "member_added": 1}
        assert saved["differs"] == ["the jump of IPv4 FORWARD (moved)", f"the set {name} (0 missing, 1 too many)"]
    assert "  the jump of IPv4 FORWARD (moved)" in netpol("status", "--state", str(state)).splitlines()


def test_a_chain_whose_name_is_no_text(state: Path) -> None:
    """It is told like any other, by what can be printed and written as JSON."""
    subprocess.run(["iptables-legacy", "-w", "-t", "mangle", "-N", b"NETPOL-x\xff\x1b"], check=True)
    name = "NETPOL-x\\udcff\\x1b"
    data = json.loads(netpol("status", "--json", "--state", str(state)))
    assert name in [row["chain"] for row in data["chains"]]
    assert data["saved"]["differs"] == [f"the chain IPv4 {name} (not ours to have)"]
    text = netpol("status", "--state", str(state))
    assert text.count(name) == 2
    assert "\x1b" not in text


def test_a_flushed_host_differs_from_what_was_saved(state: Path) -> None:
    """After cleaning up nothing is here, and what was saved is still there to be compared with."""
    netpol("cleanup")
    assert set(json.loads(netpol("status", "--json", "--state", str(state)))["saved"]["drift"]) == {"table_flushed", "set_lost"}
    text = netpol("status", "--state", str(state))
    assert "Nothing of netpol's" in text
    assert "all of IPv4's table (flushed)" in text


def test_without_a_saved_state(state: Path, tmp_path: Path) -> None:
    """Where nothing was saved nothing is said about it."""
    assert json.loads(netpol("status", "--json", "--state", str(tmp_path / "none")))["saved"] is None
    assert "saved" not in netpol("status", "--state", str(tmp_path / "none"))


def test_a_saved_state_that_cannot_be_used(state: Path) -> None:
    """One that is damaged, or of the other table, is named with the reason; the rest is shown all the same."""
    data = json.loads(netpol("status", "--json", "--state", str(state), "--table", "filter"))
    assert data["saved"]["error"] == f"{state}: it is of the table mangle"
    state.write_bytes(state.read_bytes()[:-1])
    data = json.loads(netpol("status", "--json", "--state", str(state)))
    assert data["saved"] == {"file": str(state), "error": f"{state}: damaged: its checksum does not fit"}
    assert data["chains"]
    assert "cannot be compared with" in netpol("status", "--state", str(state))


def test_the_environment_of_the_agent_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the agent's own container, a status, and a restore at boot, find what it was told by variables: the table and the state."""
    file = tmp_path / "state"
    for name, value in (("GRACE", "0"), ("TABLE", "filter"), ("STATE", str(file))):
        monkeypatch.setenv(f"NETPOL_{name}", value)
    netpol("apply", "-f", str(EXAMPLE))
    data = json.loads(netpol("status", "--json"))
    assert (data["table"], data["hooked"]) == ("filter", [4, 6])
    assert data["saved"]["differs"] == []
    netpol("cleanup")
    assert "restored" in netpol("restore")
    assert json.loads(netpol("status", "--json"))["chains"] == [{**chain, "packets": 0} for chain in data["chains"]]


@pytest.mark.parametrize("columns", ["0", "40", "200"])
def test_names_are_shown_as_they_are(state: Path, tmp_path: Path, columns: str) -> None:
    """Whatever means a colour, a link or a picture to who prints, and however wide that is: nothing is cut off or broken but tables."""
    for name in ("NETPOL-[/x]", "NETPOL-[red]x", "NETPOL-:x:"):
        run("iptables-legacy", "-t", "mangle", "-N", name)
    odd = tmp_path / ":x:" / "[red]"
    odd.mkdir(parents=True)
    (odd / "state").write_bytes(state.read_bytes())
    result = CliRunner().invoke(main, ["status", "--state", str(odd / "state")], env={"COLUMNS": columns})
    assert result.exit_code == 0
    assert f"saved in {odd / 'state'}." in result.output
    for name in ("NETPOL-[/x]", "NETPOL-[red]x", "NETPOL-:x:"):
        assert name in result.output
