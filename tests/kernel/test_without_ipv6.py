"""A node that was booted with ipv6.disable=1: no socket of that family is to be had, and IPv4 is enforced as everywhere."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from netpol.agent.audit import NO_DRIFT
from netpol.agent.census import CensusTaker
from netpol.agent.enforcer import Enforcer, clean
from netpol.agent.preflight import preflight
from netpol.cli.main import main
from netpol.kernel import xtables
from netpol.kernel._native import lib
from netpol.kernel.apply import Kernel
from netpol.kernel.xtables import AF
from netpol.model import Object, Pod, Policy, parse_address
from netpol.rules.compile import Settings
from netpol.rules.diff import diff
from netpol.rules.ruleset import ReplaceTable
from tests.agent.stage import OBJECTS, WEB
from tests.referees import run

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "kubernetes-docs.yaml")


CHANGES: tuple[Object, ...] = (Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)), Policy("x", "more", WEB, (), ()))


class WithoutSix:
    """The native library on a kernel without IPv6."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def np_sys_inet_socket(self, family: int, calls: object) -> int:
        return -errno.EAFNOSUPPORT if family == AF[6] else int(self._lib.np_sys_inet_socket(family, calls))


@pytest.fixture(autouse=True)
def kernel_without(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtables, "lib", WithoutSix(lib))


def test_changes_audits_and_the_end() -> None:
    """All is as wanted after each, nothing is drift, and nothing of IPv6 is in any table; a new process adopts IPv4 as it is."""
    with Kernel() as kernel:
        enforcer = Enforcer(kernel, "n")
        enforcer.put(*OBJECTS)
        enforcer.enforce()
        taker = CensusTaker()
        for change in (None, *CHANGES):
            if change is not None:
                enforcer.put(change)
                assert enforcer.enforce().steps
            assert diff(enforcer.state.wanted(), kernel.read()) == ()
            assert enforcer.enforce().steps == ()
            drift, report = enforcer.audit()
            assert (drift, report.steps) == (NO_DRIFT, ())
            assert not kernel.touched()
            assert not kernel.look()
            assert taker.look(enforcer).rules[4] > 0
            assert kernel.dropped() == 0
        run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
        assert kernel.touched()
        assert list(enforcer.audit()[0].kinds()) == ["jump_deleted"]
        assert enforcer.audit()[0] == NO_DRIFT
        with Kernel() as second:
            other = Enforcer(second, "n")
            other.put(*OBJECTS, *CHANGES)
            assert [(type(step), getattr(step, "family", 0)) for step in other.enforce().steps] == [(ReplaceTable, 6)]  # written nowhere
            assert other.audit()[0] == NO_DRIFT
        assert "NETPOL" not in run("ip6tables-legacy-save")
        clean(kernel)
        assert "NETPOL" not in run("iptables-legacy-save") + run("ipset", "list", "-n")


def test_nothing_stands_in_the_way(tmp_path: Path) -> None:
    """Preflight misses nothing of IPv6, also with a bridge of pods, which IPv4's rules see."""
    (tmp_path / "sys/class/net/pods0/bridge").mkdir(parents=True)
    (tmp_path / "sys/class/net/pods0/brif/port0").mkdir(parents=True)
    status = Path("/proc/thread-self/status").read_text()
    files = {"thread-self/status": status, "sys/net/ipv4/ip_forward": "1", "sys/net/bridge/bridge-nf-call-iptables": "1"}
    for name, text in {**files, "sys/net/bridge/bridge-nf-call-ip6tables": "0"}.items():
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    checks = preflight(Settings(), root=tmp_path)
    assert [(check.name, check.words) for check in checks if check.level != "ok"] == []


def test_commands(tmp_path: Path) -> None:
    """apply, status, cleanup and restore do what they do everywhere."""
    path = str(tmp_path / "state")
    assert CliRunner().invoke(main, ["apply", "-f", EXAMPLE, "--grace", "0", "--state", path]).exit_code == 0
    before = run("iptables-legacy-save", "-t", "mangle").count("NETPOL")
    assert json.loads(CliRunner().invoke(main, ["status", "--json"]).output)["hooked"] == [4]
    assert CliRunner().invoke(main, ["cleanup"]).exit_code == 0
    assert "NETPOL" not in run("iptables-legacy-save")
    assert CliRunner().invoke(main, ["restore", "--state", path]).exit_code == 0
    assert run("iptables-legacy-save", "-t", "mangle").count("NETPOL") == before
