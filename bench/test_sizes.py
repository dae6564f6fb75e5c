"""What one policy event costs the agent in clusters of three sizes: from the server to the wire, processor time, memory.

Small, middle and dense, as in docs/performance.md: there is what another agent took for work of these sizes, and a goal is a thousandth of
that. Events stand alone, each after some rest: caches are cold, and the flows that a policy cuts are swept for each.
"""

from __future__ import annotations

import time
from statistics import median

import pytest

from bench.stage import WHERE, Scene, processor_time, resident, selecting, system_calls
from netpol.bench import Result
from netpol.bench.cases import short
from netpol.bench.result import Figure
from tests.kube.servers import ApiServer, policy, programs

SIZES = {"small": (1_000, 100, 100), "middle": (10_000, 250, 1_000), "dense": (2_000, 1_000, 100)}  # pods, of the node, policies
WIRE_GOALS = {"small": None, "middle": 5.0, "dense": 8.0}  # ms
PROCESSOR_GOALS = {"small": None, "middle": 6.5, "dense": 8.7}  # ms
EVENTS = 20
REST, WINDOW = 1.0, 0.5  # seconds before an event, and after it until what it cost is looked at


@pytest.mark.parametrize("size", SIZES)
def test_a_policy_event(tmp_path_factory: pytest.TempPathFactory, results: list[Result], size: str) -> None:
    """A policy isolates a pod that datagrams go to all the time, from 64 ports, and goes again."""
    pods, local, policies = SIZES[size]
    folder = tmp_path_factory.mktemp(size)
    waits, ran = [], []
    with pytest.MonkeyPatch.context() as patch, ApiServer(programs()) as server:
        patch.setenv("XTABLES_LOCKFILE", str(folder / "xtables.lock"))
        with Scene(folder, server, pods, local, policies) as scene, scene.agent() as agent:
            agent.ready()
            process, api = agent.process.pid, scene.server.api()
            time.sleep(5)
            calls = system_calls(agent)
            with scene.wire("target") as wire, scene.watch("networkpolicies") as watch:
                wire.said("open")
                for number in range(EVENTS):
                    time.sleep(REST)
                    before = processor_time(process)
                    api.create("networkpolicies", policy(WHERE, f"deny-{number}", selecting("target")))
                    sent, seen = watch.said(f"ADDED/deny-{number}"), wire.said("closed")
                    time.sleep(WINDOW)
                    ran.append((processor_time(process) - before) * 1000)
                    waits.append((seen - sent) / 1e6)
                    api.delete("networkpolicies", f"deny-{number}", WHERE)
                    wire.said("open")
            calls = (system_calls(agent) - calls) // (2 * EVENTS)
            steady, _ = resident(process)
    middle = round(median(waits), 2)
    figures = {
        "median": Figure(middle, "ms", WIRE_GOALS[size]),
        "slowest": Figure(round(max(waits), 1), "ms"),
        "processor time": Figure(round(median(ran), 2), "ms", PROCESSOR_GOALS[size]),
        "memory": Figure(round(steady), "MiB"),
    }
    words = f"{short(pods)} pods, {short(local)} of the node, {short(policies)} policies"
    results.append(Result(f"agent, {words}: a lone policy -> wire", middle, {}, calls, EVENTS, figures=figures))
