"""Runs of `netpol demo` inside a test, what they print as data, and small clusters to run it on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from click.testing import CliRunner, Result

from netpol.cli.main import main
from netpol.kernel.apply import Kernel
from netpol.rules.ruleset import Step

ROOT = Path(__file__).parent.parent.parent

# Packets that were not answered may have been sent again.
NOT_ALWAYS_THE_SAME = (
    (r"\d+\.\d ms with \d+ system calls", "# ms with # system calls"),
    (r" +\d+(  no|  ingress|  egress)", r" #\1"),
    (r"^ +\d+( +\d+  -)", r" #\1"),
)


class FlowRecord(TypedDict):
    """One element of "flows", by other names where Python keeps the word for itself."""

    source: str
    target: str
    expected: str
    observed: str
    decided_by: str


def demo(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments], env=variables)


def plain(line: str) -> str:
    """A line of what the demo prints, without what two runs need not have in common."""
    for pattern, text in NOT_ALWAYS_THE_SAME:
        line = re.sub(pattern, text, line)
    return line


def data(result: Result) -> dict[str, Any]:
    assert result.stdout.count("\n") == 1, result.output
    return dict(json.loads(result.stdout))


def flows(result: Result) -> dict[str, FlowRecord]:
    """The flows by "from > to port/protocol"."""
    found = {}
    for flow in data(result)["flows"]:
        assert list(flow) == ["from", "to", "protocol", "port", "expected", "observed", "decided_by"]
        assert isinstance(flow["port"], int)
        name = f"{flow['from']} > {flow['to']} {flow['port']}/{flow['protocol']}"
        found[name] = FlowRecord(
            source=flow["from"], target=flow["to"], expected=flow["expected"], observed=flow["observed"], decided_by=flow["decided_by"]
        )
    return found


POD = (
    "{{apiVersion: v1, kind: Pod, metadata: {{name: {0}, labels: {{app: {0}}}}}, "
    "spec: {{nodeName: far, containers: [{{name: c, ports: [{1}]}}]}}}}"
)
WEB = POD.format("web", "{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP}, {containerPort: 99, protocol: SCTP}")
CLIENT = POD.format("client", "{containerPort: 8080, name: http}")


def manifests(*specs: str) -> str:
    """The two pods, and a NetworkPolicy for each spec."""
    head = "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy"
    policies = [f"{{{head}, metadata: {{name: p{number}}}, spec: {spec}}}" for number, spec in enumerate(specs)]
    return "\n---\n".join((WEB, CLIENT, *policies))


def after_programming(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """From now on `change` is made, in the node, whenever a kernel has been programmed."""
    apply = Kernel.apply

    def apply_and_change(self: Kernel, steps: Sequence[Step]) -> None:
        apply(self, steps)
        change()

    monkeypatch.setattr(Kernel, "apply", apply_and_change)
