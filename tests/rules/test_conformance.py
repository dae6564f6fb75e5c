"""The conformance cases of other projects, through the specification and through the interpreted rules, from scratch and as events."""

from __future__ import annotations

import pytest

from netpol.model import Flow, Namespace, Pod
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import Side, verdict
from netpol.rules.compile import NodeState, Settings, compiled
from netpol.rules.interpret import Packet, interpret
from tests import conformance

NODE = ""  # the cases of plain NetworkPolicy do not say where pods run: one node has them all


def check(cluster: Cluster, step: conformance.Step) -> int:
    """Every cell of a step against verdict and interpreter; how many there were."""
    ruleset = compiled(cluster, NODE, Settings())
    count = 0
    for cell in conformance.cells(step, cluster):
        source, destination = cell.source.addresses[0], cell.destination.addresses[0]
        label = f"{cell.source} -> {cell.destination} {cell.protocol}/{cell.port}"
        said = verdict(cluster, Flow(source, destination, cell.protocol, cell.port))
        assert said.allowed == cell.allowed, label
        for side, expected in ((said.ingress, cell.ingress), (said.egress, cell.egress)):
            assert expected is None or allows(side) == expected, label
        done = interpret(ruleset, Packet(source, destination, cell.protocol, cell.port, 40000))
        assert done.passes == cell.allowed, label
        count += 1
    return count


def allows(side: Side) -> bool:
    return side.standing != "denied"


@pytest.mark.parametrize("suite", ["cyclonus", "kubernetes-e2e"])
def test_every_step_from_scratch(suite: str) -> None:
    """Each step's cluster built whole: every asserted cell is as the suite says."""
    count = 0
    for case in conformance.cases():
        if case["source"] == suite:
            for step in case["steps"]:
                cluster = Cluster()
                for item in conformance.objects(step["state"], step["policies"]):
                    cluster.put(item)
                count += check(cluster, step)
    assert count > 200


@pytest.mark.parametrize("suite", ["cyclonus", "kubernetes-e2e"])
def test_every_step_as_events(suite: str) -> None:
    """Each case played from its first state: after each step the followed state is that of a start from scratch."""
    count = 0
    for case in conformance.cases():
        if case["source"] != suite:
            continue
        cluster = Cluster()
        for first in conformance.objects(case["initial"], []):
            cluster.put(first)
        state = NodeState(cluster, NODE)
        for step in case["steps"]:
            for item, kind, namespace, name in conformance.play(step):
                if item is None and kind is Namespace:
                    for pod in list(cluster.pods.get(name, {})):
                        state.follow(cluster.drop(Pod, pod, name))
                state.follow(cluster.put(item) if item is not None else cluster.drop(kind, name, namespace))
            fresh = Cluster()
            for whole in conformance.objects(step["state"], step["policies"]):
                fresh.put(whole)
            assert state.wanted() == compiled(fresh, NODE), case["id"]
            count += check(cluster, step)
    assert count > 200
