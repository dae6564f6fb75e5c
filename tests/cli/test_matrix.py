"""`netpol matrix`: three judges of the same connections, as JSON and as grids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netpol.cli import connections
from netpol.cli.main import main
from netpol.model import SCTP, TCP, UDP

ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "examples" / "kubernetes-docs.yaml")
CORNERS = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: red}}}
- apiVersion: v1
  kind: Pod
  metadata: {name: a, namespace: x, labels: {app: a}}
  spec: {nodeName: n1, containers: [{ports: [{name: web, containerPort: 80}, {name: assoc, containerPort: 90, protocol: SCTP}]}]}
  status: {podIPs: [{ip: 10.244.1.1}, {ip: "fd00:1::1"}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: b, namespace: x, labels: {app: b}}
  spec: {nodeName: n2, containers: [{ports: [{name: web, containerPort: 81}]}]}
  status: {podIPs: [{ip: 10.244.1.2}, {ip: "fd00:1::2"}]}
- {apiVersion: v1, kind: Pod, metadata: {name: c, namespace: y}, spec: {nodeName: n1}, status: {podIP: 10.244.1.3}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: named, namespace: x}
  spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: web}]}],
         egress: [{to: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: web}, {port: 90, protocol: SCTP}]}]}
"""


def matrix(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["matrix", *arguments])


@pytest.fixture
def corners(tmp_path: Path) -> str:
    (tmp_path / "corners.yaml").write_text(CORNERS)
    return str(tmp_path / "corners.yaml")


def flows(*arguments: str) -> list[dict[str, object]]:
    result = matrix("--json", *arguments)
    assert result.exit_code == 0, result.stderr
    return list(json.loads(result.stdout)["flows"])


def allowed(found: list[dict[str, object]]) -> set[tuple[object, ...]]:
    return {(f["from"], f["to"], f["port"], f["protocol"], f["family"]) for f in found if f["allowed"]}


def test_every_declared_and_named_port_is_judged_in_both_families(corners: str) -> None:
    """Without --port: what pods declare (80, 81, SCTP 90) and policies name; pairs share a family."""
    found = flows("-f", corners)
    assert {(f["port"], f["protocol"]) for f in found} == {(80, "TCP"), (81, "TCP"), (90, "SCTP")}
    assert len(found) == 3 * (9 + 4)


def test_the_specification_tells_the_sides_apart(corners: str) -> None:
    """A named port is another number on another pod, and egress of b is not ingress of a."""
    by_key = {(f["from"], f["to"], f["port"], f["family"]): f for f in flows("-f", corners)}
    assert by_key["x/a", "x/b", 81, 4] == {
        "from": "x/a",
        "to": "x/b",
        "protocol": "TCP",
        "port": 81,
        "family": 4,
        "allowed": True,
        "egress": "not isolated",
        "ingress": "allowed",
    }
    assert by_key["x/a", "x/b", 80, 6]["ingress"] == "denied"
    assert by_key["x/b", "x/a", 80, 6]["egress"] == "allowed"
    assert by_key["x/b", "x/a", 81, 4]["egress"] == "denied"
    assert by_key["x/b", "x/a", 90, 4]["allowed"] is True
    assert by_key["x/b", "y/c", 80, 4]["allowed"] is False


def test_three_engines_agree_on_several_nodes_families_and_protocols(corners: str) -> None:
    """Specification, interpreted rules of each node, and real packets allow the same; the first two say the same of each side."""
    spec, rules, packets = (flows("-f", corners, "--by", engine) for engine in ("spec", "rules", "packets"))
    assert spec == rules
    assert allowed(packets) == allowed(spec)
    assert {"egress", "ingress"}.isdisjoint(packets[0])
    assert 0 < len(allowed(spec)) < len(spec)


def test_the_longest_names(tmp_path: Path) -> None:
    """A namespace of 63 characters and a pod of 253: all three engines judge them."""
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name * 253, "namespace": "n" * 63}} for name in "ab"]
    (tmp_path / "long.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    assert len(allowed(flows("-f", str(tmp_path / "long.json"), "--by", "all", "--port", "80", "--port", "9/SCTP"))) == 8


def test_all_compares_them_and_a_liar_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--by all` exits 0 on the example; with an engine that denies one connection it names that one and exits 1."""
    assert matrix("-f", EXAMPLE, "--by", "all").exit_code == 0
    honest = connections.by_rules

    def lie(*arguments: object) -> list[connections.Judgement]:
        said = honest(*arguments)  # type: ignore[arg-type]  # passed through
        return [connections.Judgement(False, "denied", "not isolated"), *said[1:]]

    monkeypatch.setattr(connections, "by_rules", lie)
    result = matrix("-f", EXAMPLE, "--by", "all")
    assert result.exit_code == 1
    assert result.stderr.count("netpol: ") == 1
    assert "default/db -> default/db" in result.stderr


def test_how_many_packets_were_real_is_said(corners: str) -> None:
    """Beside the result, on standard error; the other engines send none."""
    assert matrix("-f", corners, "--by", "packets", "--port", "80").stderr == "13 real packets between 3 pods\n"
    assert matrix("-f", corners, "--by", "rules", "--port", "80").stderr == ""


def test_a_node_that_no_pod_is_on(corners: str) -> None:
    """Is said: what follows is empty."""
    result = matrix("-f", corners, "--node", "n3")
    assert (result.exit_code, result.stderr) == (0, "netpol: no pod of the manifests is on node n3 (spec.nodeName)\n")
    assert "nothing to show" in result.stdout


def test_ports_and_node_narrow_the_question(corners: str) -> None:
    """--port takes the place of all ports; --node leaves connections without an end there out."""
    found = flows("-f", corners, "--port", "7/udp", "--port", "80")
    assert {(f["port"], f["protocol"]) for f in found} == {(7, "UDP"), (80, "TCP")}
    narrowed = flows("-f", corners, "--port", "80", "--node", "n2")
    assert narrowed
    assert all("x/b" in (f["from"], f["to"]) for f in narrowed)


@pytest.mark.parametrize("text", ["0", "65536", "http", "80/icmp", "", "-1"])
def test_a_port_that_cannot_be_is_an_error(text: str) -> None:
    """Exit 2, and the words name the option and the value."""
    result = matrix("-f", EXAMPLE, "--port", text)
    assert result.exit_code == 2
    assert "--port" in result.stderr
    assert repr(text) in result.stderr


@pytest.mark.parametrize(("text", "service"), [("80", (TCP, 80)), ("53/UDP", (UDP, 53)), ("9/sctp", (SCTP, 9))])
def test_a_port_as_people_write_it(text: str, service: tuple[int, int]) -> None:
    """TCP unless said otherwise, in any case of letters."""
    assert connections.parse_service(text) == service


def test_grids_group_ports_that_behave_alike_and_stay_narrow(tmp_path: Path) -> None:
    """50 pods of five namespaces: one grid for all free ports, a column of two or three characters a pod, gaps between namespaces."""
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{i:02}", "namespace": f"ns{i % 5}"}, "spec": {}, "status": {}}
        for i in range(50)
    ]
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "ns3"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }
    (tmp_path / "many.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [*pods, deny]}))
    lines = matrix("-f", str(tmp_path / "many.json"), "--port", "1", "--port", "2").stdout.splitlines()
    assert lines[0] == "1/TCP, 2/TCP   2010 of 2500 connections allowed"
    rows = [line for line in lines if line.startswith("ns")]
    assert len(rows) == 50
    assert max(map(len, lines)) <= 130
    row = next(line for line in rows if line.startswith("ns0/p00"))
    assert row.split()[2:] == ["●"] * 30 + ["✗"] * 10 + ["●"] * 10
    assert sum(line == "" for line in lines) >= 5
    assert lines[-1] == "● allowed   ✗ denied   · not asked"


def test_marks_are_ascii_where_the_terminal_shows_no_more() -> None:
    """Letters that differ without colours; no mark is lost."""
    done = subprocess.run(
        [sys.executable, "-m", "netpol.cli.main", "matrix", "-f", EXAMPLE, "--port", "6379"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "o allowed   x denied   . not asked"
    assert {mark for line in lines if line.startswith("default/") for mark in line.split()[2:]} == {"o", "x"}
