"""The units of deploy/systemd: what systemd makes of them, and netpol of their command lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from netpol.agent.standing import DEAD
from netpol.cli.agent import agent
from netpol.cli.drops import FILE
from netpol.cli.options import STATE
from netpol.cli.restore import restore
from netpol.model import network, parse_address
from tests.deploy.manifests import DEPLOY, ROOT, read, understood
from tests.referees import require

UNITS = DEPLOY / "systemd"
AGENT, RESTORE = UNITS / "netpol-agent.service", UNITS / "netpol-restore.service"
NETPOL = "/opt/netpol/bin/netpol"


def settings(unit: Path) -> dict[str, list[str]]:
    """What it says, by name; a name may come more than once."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).extend(value.split())
    return found


@pytest.mark.parametrize("broken", [False, True], ids=["as-they-are", "broken"])
def test_systemd_takes_them(tmp_path: Path, broken: bool) -> None:
    """Without a word, once what they start is there; of a setting that it does not know it has one."""
    require("systemd-analyze")
    for unit in (AGENT, RESTORE):
        # A program that is there: systemd looks for it.
        text = unit.read_text().replace(NETPOL, sys.executable)
        (tmp_path / unit.name).write_text(text.replace("WatchdogSec", "WatchdogSecs") if broken else text)
    files = [str(tmp_path / unit.name) for unit in (AGENT, RESTORE)]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
    # What is wrong with units of the machine's own is not ours to say.
    words = [line for line in done.stderr.splitlines() if "netpol" in line]
    assert any("WatchdogSecs" in line for line in words) if broken else words == []


@pytest.mark.parametrize(("unit", "command"), [(AGENT, agent), (RESTORE, restore)], ids=["agent", "restore"])
def test_netpol_knows_what_they_start(unit: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument is an option; both keep the state in the same file, which is `netpol restore`'s default. No argument takes a setting
    out of the hands of who writes /etc/default/netpol."""
    program, *words = settings(unit)["ExecStart"]
    assert program == NETPOL
    assert words == [command.name]
    for setting in settings(unit).get("Environment", []):
        monkeypatch.setenv(*setting.split("=", 1))
    context = understood(words)
    assert context.command is command
    assert context.params["state"] == STATE


def test_netpol_knows_what_a_closed_node_starts() -> None:
    """The documented line of a node that must not start open."""
    (line,) = re.findall(rf"^ExecStart={NETPOL} (.*)$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    context = understood(line.split())
    assert context.command is restore
    assert (context.params["state"], context.params["boot"]) == (STATE, "closed")
    assert context.params["pod_cidrs"] == (network(parse_address("10.244.0.0"), 24),)


def test_the_state_is_one_file_for_all() -> None:
    """The unit of `netpol restore` brings back what the agent saved, whichever way that was deployed."""
    (made,) = read(DEPLOY / "daemonset.yaml")["spec"]["template"]["spec"]["containers"]
    assert {"name": "NETPOL_STATE", "value": STATE} in made["env"]
    assert settings(AGENT)["StateDirectory"] == [Path(STATE).parent.name]
    assert settings(RESTORE)["RequiresMountsFor"] == [str(Path(STATE).parent)]


def test_the_documented_way_out_takes_all_of_them() -> None:
    """Each unit is disabled, on both pages; the state that `netpol restore` would bring back goes."""
    for page in ("deploy.md", "operations.md"):
        text = (ROOT / "docs" / page).read_text()
        named = re.findall(r"systemctl disable --now ([\w. -]+)", text)
        assert [{name.removesuffix(".service") for name in line.split()} for line in named] == [{AGENT.stem, RESTORE.stem}]
        assert f"rm -r {Path(STATE).parent}" in text


def test_the_drop_log_is_one_file_for_all() -> None:
    """What is suggested is what `netpol drops` reads, in the folder that the unit makes."""
    for text in (AGENT.read_text(), (ROOT / "docs" / "deploy.md").read_text()):
        assert re.findall(r"NETPOL_DROP_LOG=([\w./]*\w)", text) == [FILE]
    assert [f"/var/log/{name}" for name in settings(AGENT)["LogsDirectory"]] == [str(Path(FILE).parent)]


def test_restore_comes_before_whatever_starts_pods() -> None:
    """Whoever wants it also waits for it, and those that load whole tables at boot come first."""
    made = settings(RESTORE)
    assert made["WantedBy"] == made["Before"]
    assert "kubelet.service" in made["Before"]
    assert "netfilter-persistent.service" in made["After"]


def test_the_agent_says_when_it_is_ready_and_that_it_lives() -> None:
    """By sd_notify; the watchdog is later than the agent's own word that it hangs, and no start is given up."""
    made = settings(AGENT)
    assert made["Type"] == ["notify"]
    assert int(made["WatchdogSec"][0]) > DEAD
    assert made["TimeoutStartSec"] == ["infinity"]


@pytest.mark.parametrize("unit", [AGENT, RESTORE], ids=["agent", "restore"])
def test_they_may_do_what_the_pod_may(unit: Path) -> None:
    """The same one capability, and no more; iptables' lock may be made."""
    made = settings(unit)
    (container,) = read(DEPLOY / "daemonset.yaml")["spec"]["template"]["spec"]["containers"]
    assert made["CapabilityBoundingSet"] == [f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]]
    assert made["NoNewPrivileges"] == ["yes"]
    assert made["ProtectSystem"] == ["strict"]
    assert made["ReadWritePaths"] == ["/run"]
    # The kernel loads modules that matches and sets need by itself; those named here must be there before.
    modules = set(re.findall(r"^\w+$", (UNITS / "netpol.conf").read_text(), re.MULTILINE))
    assert {re.sub(r"modprobe@(\w+)\.service", r"\1", name) for name in made["Wants"] if name.startswith("modprobe@")} <= modules
