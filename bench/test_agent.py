"""What the agent takes from event to wire, to start, to keep and to wait: `netpol agent` itself, a real API server, real packets.

Goals are absolute here: they are those of a node, and how far a busy machine misses them says more of the machine. Times of a change
begin when a watch of our own got the event, beside the agent's, and end when the first datagram with the new verdict was sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

import pytest
from msgspec import structs

from bench.stage import RESOURCES, WHERE, Scene, Storm, processor_time, resident, selecting, system_calls
from netpol.bench import Result
from netpol.bench.cases import CLUSTER, LARGE, short
from netpol.bench.result import Figure, summarise, waits
from tests.agent.process import Agent
from tests.kube.fake import FakeServer
from tests.kube.servers import ApiServer, Json, policy, programs

PODS, POLICIES, LOCAL = CLUSTER
MEDIAN_GOAL, P99_GOAL = 5.0, 25.0  # ms
START_GOAL = 2000.0  # ms
MEMORY_GOAL, LARGE_MEMORY_GOAL = 65.0, 140.0  # MiB
IDLE_GOAL = 0.5  # % of a core
STORM_GOAL = 5000.0  # events a second
CHANGES, CHURN = 100, 100
QUIET = 20.0  # seconds
GRACE = 0.5  # what the agent's own default is
COARSE = 0.005  # seconds between two datagrams in a storm, which takes seconds: a finer look would take a tenth of the processors
STORMS = 3  # there and back
AT = f"{short(PODS)} pods"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("agent")
    with pytest.MonkeyPatch.context() as patch, ApiServer(programs()) as server:
        patch.setenv("XTABLES_LOCKFILE", str(folder / "xtables.lock"))
        with Scene(folder, server, PODS, LOCAL, POLICIES) as made:
            yield made


def started(agent: Agent, begin: float) -> float:
    """Seconds from `begin` until the agent says that all is in force."""
    agent.ready()
    return time.perf_counter() - begin


def test_cold_start(scene: Scene, results: list[Result]) -> None:
    """From exec to ready: where nothing tracked connections before, where only our rules are not there, and with what a predecessor left.

    The first of all happens once to a namespace: whoever came first has switched tracking on.
    """
    starts = (
        ("a first install, which waits half a second", GRACE, True, 1),
        ("nothing there", GRACE, True, 3),
        ("adopting what is there", 0.0, False, 3),
    )
    for words, grace, emptied, runs in starts:
        times, calls = [], 0
        for _ in range(runs):
            if emptied:
                scene.emptied()
            begin = time.perf_counter()
            with scene.agent(grace) as agent:
                times.append(started(agent, begin) * 1000)
                calls = system_calls(agent)
                assert ("policies come into force in" in agent.log()) == (runs == 1)
        middle = round(sorted(times)[runs // 2], 1)
        figures = {"median": Figure(middle, "ms", START_GOAL), "slowest": Figure(round(max(times), 1), "ms")}
        results.append(Result(f"agent, {AT}: {words}", middle, {}, calls, runs, figures=figures))


def test_at_rest(scene: Scene, results: list[Result]) -> None:
    """Memory once all is in force, and what it runs while nothing happens, its audits included."""
    begin = time.perf_counter()
    with scene.agent() as agent:
        start = round(started(agent, begin) * 1000, 1)
        time.sleep(5)
        steady, most = resident(agent.process.pid)
        figures = {"peak": Figure(round(most, 1), "MiB", MEMORY_GOAL)}
        results.append(Result(f"agent, {AT}: memory", start, {}, 0, 1, round(steady, 1), MEMORY_GOAL, figures))
        calls = system_calls(agent)  # a page costs more than seconds at rest do
        before, begin = processor_time(agent.process.pid), time.perf_counter()
        time.sleep(QUIET)
        ran, passed = processor_time(agent.process.pid) - before, time.perf_counter() - begin
        figures = {"of a core": Figure(round(ran / passed * 100, 3), "%", IDLE_GOAL)}
        row = f"agent, {AT}: {QUIET:.0f} s at rest, processor time"
        results.append(Result(row, round(ran * 1000, 1), {}, system_calls(agent) - calls, 1, figures=figures))


@pytest.mark.parametrize("churn", [0, CHURN], ids=["quiet", "churn"])
def test_event_to_wire(scene: Scene, results: list[Result], churn: int) -> None:
    """A policy comes and goes, and a peer's label changes to and fro: how long after the server said so packets fare otherwise."""
    api = scene.server.api()
    with ExitStack() as stack:
        agent = stack.enter_context(scene.agent())
        agent.ready()
        done = stack.enter_context(scene.churn(churn)) if churn else [0]
        begin = time.perf_counter()
        for kind in ("policy created", "label changed"):
            times = []
            calls = system_calls(agent)
            with scene.wire("target" if kind == "policy created" else "guarded") as wire:
                by_policy = kind == "policy created"
                wire.said("open" if by_policy else "closed")
                with scene.watch("networkpolicies" if by_policy else "pods") as watch:
                    for number in range(CHANGES):
                        if by_policy:
                            api.create("networkpolicies", policy(WHERE, f"deny-{number}", selecting("target")))
                            sent, seen = watch.said(f"ADDED/deny-{number}"), wire.said("closed")
                            api.delete("networkpolicies", f"deny-{number}", WHERE)
                            wire.said("open")
                        else:
                            role, verdict = ("friend", "open") if number % 2 == 0 else ("foe", "closed")
                            api.patch("pods", "client", WHERE, {"metadata": {"labels": {"role": role}}})
                            sent, seen = watch.said("MODIFIED/client"), wire.said(verdict)
                        times.append((seen - sent) / 1e9)
                        time.sleep(0.03)
            each = (system_calls(agent) - calls) // CHANGES
            rate = f", {done[0] / (time.perf_counter() - begin):.0f} pod events a second" if churn else ""
            results.append(waits(f"agent, {AT}: {kind} -> wire{rate}", times, MEDIAN_GOAL, P99_GOAL, each))


def test_storm(scene: Scene, results: list[Result]) -> None:
    """All pods change at once, straight in etcd, so the server sends as fast as it can; after each the kernel is as a fresh compile is.

    The last event of a storm opens or shuts a way on the wire, and nothing later than it is in force then. The witnesses watch one object
    each: one of everything would have the server send, and somebody read, all of it twice. Beside it a client that only reads: what the
    server, this hour, takes for the same where nobody does anything of it. The server is a new one for each two storms.
    """
    storms = scene.gathered_storms()
    ours, theirs, reached, ran, calls = [], [], [], 0.0, 0
    for _ in range(STORMS):
        scene.restarted()
        with scene.agent() as agent:
            agent.ready()
            with scene.wire("guarded", COARSE) as wire:
                wire.said("closed")
                for storm, verdict in zip(storms, ("open", "closed"), strict=True):
                    called, used = system_calls(agent), processor_time(agent.process.pid)
                    first, last = passed(scene, storm)
                    ours.append((wire.said(verdict) - first) / 1e9)
                    reached.append(PODS * 1e9 / (last - first))
                    ran += processor_time(agent.process.pid) - used
                    calls += system_calls(agent) - called
                    assert scene.wrong() == 0
        scene.restarted()
        for storm in storms:
            with scene.reader() as reader:
                first, _ = passed(scene, storm)
                theirs.append((reader.said("read") - first) / 1e9)
    row = f"agent, {AT}: a storm of {short(PODS)} pod events"
    found = summarise(row, ours, {"a client that only reads": theirs}, {}, calls // len(ours))
    figures = {
        "drained": Figure(round(PODS / median(ours)), "events/s", STORM_GOAL, least=True),
        "slowest": Figure(round(PODS / max(ours)), "events/s"),
        "reached by the server": Figure(round(median(reached)), "events/s"),
        "for a second of the agent's processor": Figure(round(PODS * len(ours) / ran), "events"),
    }
    results.append(structs.replace(found, figures=figures))


def passed(scene: Scene, storm: Storm) -> tuple[int, int]:
    """A storm comes; when the server had sent its first event to somebody, and its last."""
    with scene.watch("pods", "", "pod-0") as begin, scene.watch("pods", WHERE, "client") as end:
        scene.storm(storm)
        return begin.said("MODIFIED/pod-0"), end.said("MODIFIED/client")


def test_storm_of_a_fake_server(scene: Scene, results: list[Result]) -> None:
    """The same from a server of ours that has the bytes ready: a real one sends more slowly than the agent is to drain."""
    objects = [(name, item) for name in RESOURCES for item in scene.server.api().items(name)]
    stamped = [(name, versioned(item, number)) for number, (name, item) in enumerate(objects, 1)]
    pods = [item for name, item in stamped if name == "pods" and item["metadata"]["name"] != "client"]
    client = next(item for name, item in stamped if name == "pods" and item["metadata"]["name"] == "client")
    before = relabelled(client, 999_000, role="foe")
    later = [relabelled(item, 1_000_001 + n, app=f"app-{n % 10}") for n, item in enumerate(pods) if item["metadata"]["namespace"] != WHERE]
    later.append(relabelled(client, 2_000_000, role="friend"))
    start = [(name, before if item is client else item) for name, item in stamped]
    names = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in later}
    end = [(name, item) for name, item in stamped if (item["metadata"].get("namespace"), item["metadata"]["name"]) not in names]
    go = threading.Event()
    with FakeServer() as server, scene.told(server, start, later, go) as agent:
        agent.ready()
        with scene.wire("guarded", COARSE) as wire:
            wire.said("closed")
            calls, ran = system_calls(agent), processor_time(agent.process.pid)
            began = time.monotonic_ns()
            go.set()
            took = (wire.said("open") - began) / 1e9
            ran, calls = processor_time(agent.process.pid) - ran, system_calls(agent) - calls
        assert scene.steps_to([*end, *(("pods", item) for item in later)]) == 0
    figures = {
        "drained": Figure(round(len(later) / took), "events/s", STORM_GOAL, least=True),
        "for a second of the agent's processor": Figure(round(len(later) / ran), "events"),
    }
    row = f"agent, {AT}: a storm of {short(PODS)} pod events, from a fake server"
    results.append(Result(row, round(took * 1000, 1), {}, calls, 1, figures=figures))


def versioned(item: Json, version: int) -> Json:
    """As a server hands it out, with a version of its own."""
    return {**item, "metadata": {**item["metadata"], "resourceVersion": str(version)}}


def relabelled(item: Json, version: int, **labels: str) -> Json:
    meta = item["metadata"]
    return versioned({**item, "metadata": {**meta, "labels": {**meta.get("labels", {}), **labels}}}, version)


def test_large(scene: Scene, results: list[Result]) -> None:
    """Memory with ten times the pods. The last of this file: they stay."""
    scene.fill_pods(PODS, LARGE[0])
    scene.settled()
    begin = time.perf_counter()
    with scene.agent() as agent:
        start = round(started(agent, begin) * 1000, 1)
        time.sleep(5)
        steady, most = resident(agent.process.pid)
    figures = {"peak": Figure(round(most, 1), "MiB", LARGE_MEMORY_GOAL)}
    row = f"agent, {short(LARGE[0])} pods: memory"
    results.append(Result(row, start, {}, 0, 1, round(steady, 1), LARGE_MEMORY_GOAL, figures))
