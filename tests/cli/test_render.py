"""`netpol render`: text that the real tools load, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netpol.cli.main import main
from tests.referees import run

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "kubernetes-docs.yaml")
TWO_NODES = """
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: x}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {app: y}}, spec: {nodeName: n2}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {app: x}}}}
"""


def render(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["render", *arguments])


@pytest.fixture
def two_nodes(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(TWO_NODES)
    return str(tmp_path / "two.yaml")


@pytest.mark.usefixtures("netns")
def test_the_real_tools_load_each_part() -> None:
    """Sets first, then the rules of both families; what they show afterwards is what was rendered."""
    parts = {part: render("-f", EXAMPLE, "--part", part).output for part in ("sets", "ipv4", "ipv6")}
    run("ipset", "restore", input=parts["sets"])
    for part, tool in (("ipv4", "iptables-legacy"), ("ipv6", "ip6tables-legacy")):
        run(f"{tool}-restore", input=parts[part])
        saved = [line for line in run(f"{tool}-save", "-t", "mangle").splitlines() if not line.startswith("#")]
        assert saved == parts[part].splitlines()
    assert "172.17.1.0/24 nomatch" in run("ipset", "save")
    assert "-j NETPOL" in parts["ipv4"]


def test_all_parts_are_the_parts_under_headings() -> None:
    """Without --part the three texts come one after the other, each under the tool's name."""
    every = render("-f", EXAMPLE).output
    for part in ("sets", "ipv4", "ipv6"):
        assert render("-f", EXAMPLE, "--part", part).output in every
    assert every.index("# ipset restore") < every.index("# iptables-legacy-restore") < every.index("# ip6tables-legacy-restore")


def test_json_holds_the_same() -> None:
    """Sets with members, chains with rules, as data."""
    data = json.loads(render("-f", EXAMPLE, "--format", "json").output)
    assert data["node"] == "node"
    assert data["table"] == "mangle"
    assert {"172.17.0.0/16", "172.17.1.0/24 nomatch"} in [set(found["members"]) for found in data["sets"]]
    assert data["chains"]["ipv4"]["NETPOL-DENY"] == ["-j DROP"]
    # Only what goes to where this node's isolated pods are is looked up among them.
    assert data["chains"]["ipv4"]["NETPOL-NEW"][-1] == "-d 10.244.0.10/31 -g NETPOL-INGRESS"


def test_a_node_is_asked_for_where_there_are_several(two_nodes: str) -> None:
    """Without --node two nodes are an error that names them; with it only that node's pods are isolated."""
    asked = render("-f", two_nodes)
    assert asked.exit_code == 2
    assert "'n1', 'n2'" in asked.stderr
    assert "NETPOL-I-" in render("-f", two_nodes, "--node", "n1").output
    assert "NETPOL-I-" not in render("-f", two_nodes, "--node", "n2").output


@pytest.mark.usefixtures("netns")
def test_the_same_options_give_what_apply_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no Node object says which ranges are the node's."""
    monkeypatch.setenv("NETPOL_GRACE", "0")
    file = tmp_path / "pods.yaml"
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: x}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.1.0.9}]}}"
    file.write_text(f"{pod}\n---{TWO_NODES.rpartition('---')[2]}")
    asked = ("-f", str(file), "--unknown-pods", "deny", "--pod-cidr", "10.1.0.0/16")
    applied = CliRunner().invoke(main, ["apply", *asked])
    assert applied.exit_code == 0, applied.output
    rules = sorted(line for line in run("iptables-legacy-save", "-t", "mangle").splitlines() if line.startswith("-A NETPOL"))
    assert "-A NETPOL-INGRESS -d 10.1.0.0/16 -g NETPOL-DENY" in rules
    assert sorted(line for line in render(*asked, "--part", "ipv4").output.splitlines() if line.startswith("-A NETPOL")) == rules


def test_the_table_can_be_chosen() -> None:
    """--table filter renders a filter table."""
    assert "*filter" in render("-f", EXAMPLE, "--table", "filter").output


@pytest.mark.parametrize(
    ("arguments", "text", "words"),
    [
        pytest.param((), "kind: Pod", "bad.yaml", id="no object"),
        pytest.param(("--pod-cidr", "10.0.0.0/99"), TWO_NODES, "--pod-cidr", id="range"),
    ],
)
def test_bad_input_exits_2_and_renders_nothing(tmp_path: Path, arguments: tuple[str, ...], text: str, words: str) -> None:
    """The error names its place; standard output stays empty."""
    (tmp_path / "bad.yaml").write_text(text)
    result = render("-f", str(tmp_path / "bad.yaml"), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_node_on_which_nothing_is_isolated_is_a_word_to_standard_error(two_nodes: str) -> None:
    """The text is for the real tools all the same; where a pod is isolated nothing is said."""
    other = render("-f", two_nodes, "--node", "n2")
    assert other.stderr == "netpol: nothing is isolated on node n2: of its 1 pod none is selected by a policy\n"
    assert "-A FORWARD -j NETPOL" in other.stdout
    assert render("-f", two_nodes, "--node", "n1").stderr == ""
