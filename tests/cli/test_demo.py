"""`netpol demo` on the documented example and on other manifests: what it says happens. Every run builds a lab and programs its kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result

from netpol.cli.demo import EXAMPLE
from tests.cli.demos import ROOT, data, demo, flows, manifests, plain


@pytest.fixture(scope="module")
def documented() -> Result:
    """The demo of the documented example, as JSON."""
    return demo("--json")


# -- the documented example --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "outcome"),
    [
        pytest.param("172.17.0.10 > default/db 6379/TCP", "reached", id="inside the ipBlock"),
        pytest.param("172.17.1.10 > default/db 6379/TCP", "dropped", id="in its except"),
        pytest.param("172.18.0.1 > default/db 6379/TCP", "dropped", id="behind the ipBlock"),
        pytest.param("myproject/client > default/db 6379/TCP", "reached", id="a namespace with project=myproject"),
        pytest.param("default/frontend > default/db 6379/TCP", "reached", id="role=frontend"),
        pytest.param("default/frontend > default/db-replica 6379/TCP", "reached", id="role=frontend to the other"),
        pytest.param("other/frontend > default/db 6379/TCP", "dropped", id="role=frontend in another namespace"),
        pytest.param("default/plain > default/db 6379/TCP", "dropped", id="another role"),
        pytest.param("default/frontend > default/db 6380/TCP", "dropped", id="another port"),
        pytest.param("default/db > default/db-replica 6379/TCP", "dropped", id="between the selected"),
        pytest.param("default/db > 10.0.0.10 5978/TCP", "reached", id="egress"),
        pytest.param("default/db > 10.0.0.10 443/TCP", "dropped", id="egress to another port"),
        pytest.param("default/db > 10.0.1.1 5978/TCP", "dropped", id="egress behind the block"),
        pytest.param("default/db > default/plain 8080/TCP", "dropped", id="egress to a pod"),
        pytest.param("default/plain > default/frontend 8080/TCP", "reached", id="between the free"),
        pytest.param("default/plain > 10.0.1.1 443/TCP", "reached", id="out of a free pod"),
    ],
)
def test_the_example_of_the_documentation(documented: Result, flow: str, outcome: str) -> None:
    """What the documentation says of its own policy, said by hand, is what was expected and what was observed."""
    found = flows(documented)[flow]
    assert (found["expected"], found["observed"]) == (outcome, outcome)


def test_the_result_as_json(documented: Result) -> None:
    """Exit code 0; every flow once; times of all phases; a plausible number of system calls; the rule behind each kind of outcome."""
    result = data(documented)
    assert documented.exit_code == 0
    assert list(result) == ["agree", "flows", "milliseconds", "system_calls"]
    assert result["agree"] is True
    assert list(result["milliseconds"]) == ["lab", "before", "compile", "program", "after"]
    assert all(0 < spent < 60_000 for spent in result["milliseconds"].values())
    assert 5 < result["system_calls"] < 50
    found = flows(documented)
    assert len(found) == len(result["flows"]) == 94
    names = {flow["source"] for flow in found.values()} | {flow["target"] for flow in found.values()}
    pods = {"default/db", "default/db-replica", "default/frontend", "default/plain", "myproject/client", "other/frontend"}
    assert names == pods | {"10.0.0.10", "10.0.1.1", "172.17.0.10", "172.17.1.10", "172.18.0.1"}
    said = {name: flow["decided_by"] for name, flow in found.items()}
    assert said["default/plain > default/frontend 8080/TCP"] == "no policy selects either end"
    assert said["default/db > 10.0.0.10 5978/TCP"].startswith("egress[0] of default/test-network-policy (NETPOL-E-")
    denied = said["default/plain > default/db 6379/TCP"]
    assert denied.startswith("no ingress rule of default/test-network-policy (NETPOL-I-")
    count = re.fullmatch(r".* rule 4, (\d+) packets\)", denied)
    assert count
    assert int(count[1]) >= 21, "as many flows end at that rule, and what is silent may have been sent again"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_tables(width: int) -> None:
    """The policy in words, flows, the kernel's objects and the last line are there, inside the terminal's width, without colours."""
    result = demo(COLUMNS=str(width))
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert max(map(len, lines)) <= width
    assert "\x1b" not in result.stdout
    assert not [line for line in lines if line != line.rstrip()]
    assert f"examples/{EXAMPLE}, enforced on real packets" in lines
    words = (
        "accept only",
        "6379/TCP  ingress[0]",
        "from 172.17.0.0/16 except 172.17.1.0/24",
        "from all pods in namespaces with project=myproject",
        "from pods with role=frontend in default",
        "connect to only",
        "to 10.0.0.0/24",
        "94 of 94 flows before, 56 after",
        "32 rules in 10 chains, 3 sets",
        "94 flows, 94 as specified.",
    )
    if width >= 80:
        assert [text for text in words if text not in result.stdout] == []
        (row,) = [line.split() for line in lines if line.split()[1:4] == ["reached", "dropped", "dropped"] and "plain:8080" in line][:1]
        assert row[0] == "default/plain:8080"
        assert row[4].startswith("E-")
        assert row[5] == "2"
        assert int(row[6]) >= 17


def test_all_flows_are_shown_when_asked_for() -> None:
    """--all has a line for each flow, and both families' chains."""
    text = demo("--all", COLUMNS="160").stdout
    assert sum("reached  reached   reached" in line for line in text.splitlines()) == 56
    assert sum("reached  dropped   dropped" in line for line in text.splitlines()) == 38
    assert "--icmpv6-type 135" in text


def test_the_documentation_shows_what_the_demo_prints() -> None:
    """Line by line and in order, but for times, counts of calls and packets, and what the page leaves out."""
    printed = [plain(line) for line in demo(COLUMNS="100").stdout.splitlines()]
    _, begin, rest = (ROOT / "docs" / "demo.md").read_text().partition("<!-- demo: begin -->\n```\n")
    block, end, _ = rest.partition("```\n<!-- demo: end -->")
    assert begin
    assert end
    at = 0
    for line in map(plain, block.splitlines()):
        if line != "...":
            assert line in printed[at:], line
            at += printed[at:].index(line) + 1
    assert at == len(printed)


# -- other manifests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments", "outcomes"),
    [
        pytest.param(
            manifests("{podSelector: {}}"),
            (),
            {
                "default/client > default/web 80/TCP": "dropped",
                "default/web > default/client 8080/TCP": "dropped",
                "203.0.113.10 > default/web 53/UDP": "dropped",
                "203.0.113.10 > default/web 99/SCTP": "dropped",
            },
            id="deny all ingress",
        ),
        pytest.param(
            manifests("{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}"),
            (),
            {
                "default/client > default/web 80/TCP": "dropped",
                "default/client > 203.0.113.10 443/TCP": "dropped",
                "default/web > 203.0.113.10 443/TCP": "reached",
                "default/web > default/client 8080/TCP": "reached",
                "203.0.113.10 > default/client 8080/TCP": "reached",
            },
            id="deny all egress",
        ),
        pytest.param(
            manifests("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}"),
            (),
            {
                "default/client > default/web 53/UDP": "reached",
                "default/client > default/web 80/TCP": "dropped",
                "default/web > default/client 53/UDP": "reached",
                "default/client > 203.0.113.10 53/UDP": "reached",
                "default/client > 203.0.113.10 443/TCP": "dropped",
            },
            id="egress for names alone",
        ),
        pytest.param(
            manifests("{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 99, protocol: SCTP}]}]}"),
            (),
            {
                "default/client > default/web 99/SCTP": "reached",
                "default/client > default/web 53/UDP": "dropped",
                "203.0.113.10 > default/web 99/SCTP": "dropped",
                "default/web > default/client 99/SCTP": "reached",
            },
            id="SCTP",
        ),
        pytest.param(
            manifests("{podSelector: {}, ingress: [{ports: [{port: http}]}]}"),
            (),
            {
                "default/client > default/web 80/TCP": "reached",
                "default/client > default/web 99/SCTP": "dropped",
                "default/web > default/client 8080/TCP": "reached",
                "203.0.113.10 > default/client 8080/TCP": "reached",
            },
            id="a named port",
        ),
        pytest.param(
            manifests("{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8000, endPort: 8010}]}]}"),
            (),
            {
                "default/client > default/web 8000/TCP": "reached",
                "default/client > default/web 8010/TCP": "reached",
                "default/client > default/web 80/TCP": "dropped",
            },
            id="a range of ports",
        ),
        pytest.param(
            manifests('{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "2001:db8:5::/48", except: ["2001:db8:5:1::/64"]}}]}]}'),
            ("--pod-cidr", "fd00:1::/112"),
            {
                "2001:db8:5::a > default/web 80/TCP": "reached",
                "2001:db8:5:1::a > default/web 80/TCP": "dropped",
                "2001:db8:6::1 > default/web 53/UDP": "dropped",
                "default/client > default/web 99/SCTP": "dropped",
            },
            id="IPv6",
        ),
        pytest.param(
            manifests(
                "{podSelector: {matchLabels: {app: client}}, egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]}",
                "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}",
            ),
            (),
            {"default/client > default/web 80/TCP": "reached", "default/client > default/web 53/UDP": "dropped"},
            id="both ends",
        ),
        pytest.param(
            manifests(),
            (),
            {"default/client > default/web 53/UDP": "reached", "default/web > default/client 8080/TCP": "reached"},
            id="no policy",
        ),
    ],
)
def test_other_manifests(tmp_path: Path, text: str, arguments: Sequence[str], outcomes: dict[str, str]) -> None:
    """Each outcome, said by hand, is expected and observed."""
    (tmp_path / "all.yaml").write_text(text)
    result = demo("--json", "--file", str(tmp_path / "all.yaml"), *arguments)
    assert result.exit_code == 0, result.output
    found = flows(result)
    assert {name: (found[name]["expected"], found[name]["observed"]) for name in outcomes} == {
        name: (outcome, outcome) for name, outcome in outcomes.items()
    }


def test_both_ends_decide(tmp_path: Path) -> None:
    """A flow that leaves an isolated pod for an isolated pod names the rules of both."""
    text = manifests(
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{}]}", "{podSelector: {}, ingress: [{}, {}]}"
    )
    (tmp_path / "all.yaml").write_text(text)
    said = flows(demo("--json", "--file", str(tmp_path)))["default/client > default/web 80/TCP"]["decided_by"]
    out, into = said.split("; ")
    assert out.startswith("egress[0] of default/p0 (NETPOL-E-")
    assert into.startswith("ingress[0] of default/p1, ingress[1] of default/p1 (NETPOL-I-")


def test_two_families(tmp_path: Path) -> None:
    """With a range of each family every pod is tried in both, and the table tells them apart."""
    (tmp_path / "all.yaml").write_text(manifests("{podSelector: {}}"))
    arguments = ("--file", str(tmp_path), "--pod-cidr", "10.9.0.0/24", "--pod-cidr", "fd00:9::/112")
    assert len(data(demo("--json", *arguments))["flows"]) == 2 * 8
    text = demo(*arguments, COLUMNS="140").stdout
    assert "default/web:80 IPv4 " in text
    assert "default/web:80 IPv6 " in text
    assert "[2001" not in text, "sources have no port"


def test_pods_without_an_address_are_left_out(tmp_path: Path) -> None:
    """Host-network and finished pods are named and not tried; a Node object changes nothing."""
    node = "{apiVersion: v1, kind: Node, metadata: {name: node}, status: {addresses: [{type: InternalIP, address: 10.244.0.1}]}}"
    host = "{apiVersion: v1, kind: Pod, metadata: {name: proxy}, spec: {hostNetwork: true}}"
    done = "{apiVersion: v1, kind: Pod, metadata: {name: job}, status: {phase: Succeeded, podIP: 10.244.0.2}}"
    (tmp_path / "all.yaml").write_text("\n---\n".join((manifests("{podSelector: {}}"), node, host, done)))
    result = demo("--file", str(tmp_path))
    assert result.exit_code == 0
    assert "default/job, default/proxy" in result.stdout
    assert "8 flows, 8 as specified." in result.stdout
