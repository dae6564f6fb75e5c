"""What makes `netpol demo` fail, and that it does: bad input, a broken lab, enforcement that does something else than was specified."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from netpol.kernel import namespaces
from netpol.lab import Lab
from tests.cli.demos import ROOT, after_programming, data, demo, flows, manifests
from tests.referees import require, run

LOOPBACK = "{apiVersion: v1, kind: Pod, metadata: {name: odd}, status: {podIP: 127.0.0.1}}"
TWINS = "\n---\n".join(f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, status: {{podIP: 10.1.1.1}}}}" for name in ("a", "b"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            manifests("{podSelector: {}, ingress: [{ports: [{port: 70000}]}]}"),
            ("all.yaml: NetworkPolicy default/p0: spec.ingress[0].ports[0].port: 70000 is not a port",),
            id="a port",
        ),
        pytest.param(
            manifests("{podSelector: {}, egres: []}", "{podSelector: {}, policyTypes: [Egres]}"),
            ("NetworkPolicy default/p0: spec: ", "NetworkPolicy default/p1: spec.policyTypes[0]: "),
            id="two policies",
        ),
        pytest.param("a: [", ("all.yaml: line ",), id="no YAML"),
        pytest.param(LOOPBACK, ("Pod default/odd: status.podIPs: 127.0.0.1 is not an address of a pod",), id="a loopback address"),
        pytest.param(TWINS, ("Pod default/b: status.podIPs: 10.1.1.1 is also the address of default/a",), id="one address, two pods"),
        pytest.param(manifests().replace("kind: Pod", "kind: Job"), ("hold no pod",), id="no pod"),
    ],
)
def test_bad_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: Sequence[str]) -> None:
    """Exit code 2 and a line for each error, on standard error, that names file, object and field. Nothing is built."""
    built: list[int] = []
    monkeypatch.setattr(namespaces, "create", lambda: built.append(1))
    (tmp_path / "all.yaml").write_text(text)
    result = demo("--file", str(tmp_path / "all.yaml"))
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == len(words)
    assert [line for line, part in zip(lines, words, strict=True) if not line.startswith("netpol: ") or part not in line] == []
    assert not built


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        pytest.param(("--file", "/nowhere.yaml"), "/nowhere.yaml", id="no such file"),
        pytest.param(("--keep", "--json"), "--keep", id="a shell and JSON"),
        pytest.param(("--keep", "--file", "-"), "--keep", id="a shell and standard input"),
        pytest.param(("--pod-cidr", "10.0.0.0"), "10.0.0.0", id="no CIDR"),
    ],
)
def test_bad_usage(arguments: Sequence[str], word: str) -> None:
    """Exit code 2, and what is wrong."""
    result = demo(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert word in result.stderr


def chain_of(direction: str) -> str:
    """The one chain of policies of that direction, by what iptables shows."""
    (name,) = {
        line.split()[1] for line in run("iptables-legacy", "-t", "mangle", "-S").splitlines() if line.startswith(f"-N NETPOL-{direction}-")
    }
    return name


def remove_a_rule() -> None:
    run("iptables-legacy", "-t", "mangle", "-D", chain_of("I"), "4")


def empty_the_sets() -> None:
    run("ipset", "flush")


@pytest.mark.parametrize(
    ("change", "flow", "observed"),
    [
        pytest.param(remove_a_rule, "default/plain > default/db 6379/TCP", "reached", id="a rule is gone"),
        pytest.param(empty_the_sets, "default/frontend > default/db 6379/TCP", "dropped", id="the sets are empty"),
    ],
)
def test_broken_enforcement_is_noticed(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], flow: str, observed: str) -> None:
    """The wire's word against the specification's: not in agreement, exit code 1, in the tables too."""
    require("iptables-legacy", "ipset")
    after_programming(monkeypatch, change)
    result = demo("--json")
    assert result.exit_code == 1
    assert data(result)["agree"] is False
    found = flows(result)[flow]
    assert found["observed"] == observed != found["expected"]
    result = demo()
    assert result.exit_code == 1
    source, _, target = flow.partition(" > ")
    words = f"{source} to {target.removesuffix('/TCP').replace(' ', ':')} IPv4: expected {found['expected']}, observed {observed}"
    assert words in result.stdout
    assert "94 as specified" not in result.stdout


def drop_elsewhere() -> None:
    """All new flows of the two databases, but for the one that they may have."""
    new = ("-s", "10.244.0.10/31", "-m", "conntrack", "--ctstate", "NEW")
    for words in (("!", "-d", "10.0.0.10"), ("-p", "tcp", "--dport", "443")):
        run("iptables-legacy", "-t", "mangle", "-A", "PREROUTING", *new, *words, "-j", "DROP")


def add_a_rule() -> None:
    run("iptables-legacy", "-t", "mangle", "-A", "NETPOL", "-s", "192.0.2.1", "-j", "RETURN")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(drop_elsewhere, "counted 0 packets, though 17 flows meet it: -g NETPOL-DENY", id="somebody else dropped it"),
        pytest.param(add_a_rule, "does not hold what was written to it: ReplaceTable", id="a rule too many"),
    ],
)
def test_the_right_outcome_for_the_wrong_reason(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], words: str) -> None:
    """All flows are as specified, but not by our rules alone: counters and what is read back say so, and the exit code is 1."""
    require("iptables-legacy")
    after_programming(monkeypatch, change)
    result = demo()
    assert "94 flows, 94 as specified." in result.stdout
    assert words in result.stdout
    assert result.exit_code == 1


def test_a_broken_lab_is_not_taken_for_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not arrive before any rule was made is an error of its own."""
    require("iptables-legacy")
    enter = Lab.__enter__

    def enter_and_close(self: Lab) -> Lab:
        enter(self)
        with self.entered():
            run("iptables-legacy", "-P", "FORWARD", "DROP")
        return self

    monkeypatch.setattr(Lab, "__enter__", enter_and_close)
    result = demo()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "before any rule" in result.stderr


def test_root_without_its_powers() -> None:
    """As in a container: root is not told to be root, nor what is for whoever calls the lab from Python."""
    require("setpriv")
    before = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all")
    done = subprocess.run([*before, sys.executable, "-m", "netpol.cli.main", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    words = "unshare network namespace: Operation not permitted: CAP_SYS_ADMIN is missing (in a container: --privileged)"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"netpol: {words}\n")
