"""`netpol agent` as a process: what it waits for, says, answers, leaves behind. The API server is the one that plays what it is told.

With a real API server and packets: tests/test_agent_packets.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from netpol.agent.saved import load
from netpol.cli.main import main
from netpol.kernel.apply import Kernel
from netpol.rules.diff import diff
from tests.agent.process import FORWARDING, ROOT, Agent, until
from tests.kube.fake import FakeServer, added, bare, bookmark, deleted, modified, page, pod, watch
from tests.referees import run

NAMESPACES, NODES, PODS = "/api/v1/namespaces", "/api/v1/nodes", "/api/v1/pods"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
NODE = {"metadata": {"name": "node", "resourceVersion": "1"}, "spec": {"podCIDRs": ["10.0.0.0/24"]}, "status": {}}


def policy(name: str, version: int, **spec: Any) -> dict[str, Any]:
    """A policy for all pods of the namespace default that denies what comes in."""
    return {
        "metadata": {"name": name, "namespace": "default", "resourceVersion": str(version)},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], **spec},
    }


class Scene:
    """The server, what it says, and where things are."""

    def __init__(self, server: FakeServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.kubeconfig = server.kubeconfig(folder)
        self.changes = {path: threading.Event() for path in (NAMESPACES, NODES, PODS, POLICIES)}

    def play(self, path: str, *objects: dict[str, Any], then: bytes = b"") -> None:
        """A watch that begins with these objects; once the path's event in `changes` is set, `then` follows."""
        self.server.answer(path, watch(added(*objects), bookmark("10", True), self.changes[path], then, threading.Event()))

    def play_all(self, *policies: dict[str, Any], then: bytes = b"") -> None:
        """Two pods on the node, and these policies."""
        self.play(NAMESPACES, {"metadata": {"name": "default", "resourceVersion": "1", "labels": {}}})
        self.play(NODES, NODE)
        self.play(PODS, pod("a", 1), pod("b", 2, "10.0.0.2"))
        self.play(POLICIES, *policies, then=then)

    def agent(self, *arguments: str, **more: Any) -> Agent:
        return Agent("--kubeconfig", self.kubeconfig, "--node", "node", *arguments, **more)


@pytest.fixture
def scene(netns: int, tmp_path: Path) -> Iterator[Scene]:
    run("ip", "link", "set", "lo", "up")
    with FakeServer() as server:
        yield Scene(server, tmp_path)


def rules() -> str:
    return run("iptables-legacy-save", "-t", "mangle")


def ours(text: str) -> list[str]:
    """The lines of netpol's chains: those of other chains have counters."""
    return [line for line in text.splitlines() if "NETPOL" in line]


def is_isolated(address: str) -> bool:
    return f"! -s {address}/32 -d {address}/32" in rules()


def test_32_it_waits_for_every_kind_and_then_enforces(scene: Scene) -> None:
    """Alive but not ready, saying what is missing, and nothing written, until the last kind is complete."""
    scene.play(NAMESPACES, {"metadata": {"name": "default", "resourceVersion": "1"}})
    scene.play(NODES, NODE)
    scene.play(POLICIES, policy("p", 3))
    with scene.agent() as agent:
        until(lambda: agent.page("/readyz") == (503, "waits until the API server has said all of Pod\n"), agent.log)
        assert agent.page("/healthz") == (200, "ok\n")
        assert "NETPOL" not in rules()
        scene.play(PODS, pod("a", 1), pod("b", 2, "10.0.0.2"))
        agent.ready()
        assert is_isolated("10.0.0.1")
        assert is_isolated("10.0.0.2")


def test_a_first_install_says_what_it_waits_for(scene: Scene) -> None:
    """While a node that tracked nothing learns of the connections that run; then it is ready."""
    scene.play_all(policy("p", 3))
    with scene.agent(environment={"NETPOL_GRACE": "2"}) as agent:
        until(lambda: agent.page("/readyz") == (503, "not in force: policies come into force in 2.0 s\n"), agent.log)
        agent.ready()


def test_without_a_standard_error(scene: Scene) -> None:
    """Who closed it hears nothing; all is enforced, and a signal ends it."""
    scene.play_all(policy("p", 3))
    with scene.agent(before=("sh", "-c", 'exec "$@" 2>&-', "sh")) as agent:
        agent.ready()
        assert is_isolated("10.0.0.1")
        assert agent.stop() == 0


def test_a_node_that_the_cluster_does_not_know(scene: Scene) -> None:
    """A wrong name would be complete, in force and empty: not ready, and why, until such a node is there."""
    scene.play(NAMESPACES, {"metadata": {"name": "default", "resourceVersion": "1"}})
    scene.play(NODES, then=added({**NODE, "metadata": {"name": "node", "resourceVersion": "11"}}))
    scene.play(PODS, {**pod("a", 1), "spec": {"nodeName": "node-1"}})
    scene.play(POLICIES, policy("p", 3))
    with scene.agent() as agent:
        agent.says("the cluster has no node node, and no pod is bound to one of that name")
        agent.says("everything is in force")
        status, words = agent.page("/readyz")
        assert (status, words.partition(", and no pod")[0]) == (503, "the cluster has no node node")
        scene.changes[NODES].set()
        agent.ready()


def test_a_pod_is_bound_to_a_node_without_an_object(scene: Scene) -> None:
    """That is enough to be ready: it is no wrong name."""
    scene.play(NAMESPACES, {"metadata": {"name": "default", "resourceVersion": "1"}})
    scene.play(NODES)
    scene.play(PODS, pod("a", 1))
    scene.play(POLICIES, policy("p", 3))
    with scene.agent() as agent:
        agent.ready()
        assert is_isolated("10.0.0.1")
        assert "the cluster has no node" not in agent.log()


def test_events_are_enforced(scene: Scene) -> None:
    """A policy comes; then it selects only one of the pods; then it goes."""
    scene.play(NAMESPACES, {"metadata": {"name": "default", "resourceVersion": "1"}})
    scene.play(NODES, NODE)
    scene.play(PODS, pod("a", 1), pod("b", 2, "10.0.0.2", app="b"))
    steps = [threading.Event() for _ in range(3)]
    events = [added(policy("p", 11)), modified(policy("p", 12, podSelector={"matchLabels": {"app": "b"}})), deleted(policy("p", 13))]
    pieces = [piece for pair in zip(steps, events, strict=True) for piece in pair]
    scene.server.answer(POLICIES, watch(bookmark("10", True), *pieces, threading.Event()))
    with scene.agent() as agent:
        agent.ready()
        assert not is_isolated("10.0.0.1")
        steps[0].set()
        until(lambda: is_isolated("10.0.0.1") and is_isolated("10.0.0.2"), agent.log)
        steps[1].set()
        until(lambda: not is_isolated("10.0.0.1") and is_isolated("10.0.0.2"), agent.log)
        steps[2].set()
        until(lambda: not is_isolated("10.0.0.2"), agent.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_it_ends_by_a_signal_and_its_successor_writes_nothing(scene: Scene, number: signal.Signals) -> None:
    """Exit 0, rules in force; then another agent adopts them: its first enforcement has no step."""
    scene.play_all(policy("p", 3))
    with scene.agent() as agent:
        agent.ready()
        assert agent.stop(number) == 0
        assert "stopped; the rules stay in force" in agent.log()
    before = rules()
    assert is_isolated("10.0.0.1")
    scene.play_all(policy("p", 3))
    with scene.agent() as agent:
        agent.ready()
        agent.says("everything is in force: 0 steps")
    assert ours(rules()) == ours(before)


def test_it_ends_while_it_waits_for_the_lock(scene: Scene) -> None:
    """Somebody keeps iptables' lock: the signal is heard all the same, and what was in force stays."""
    scene.play_all(then=added(policy("p", 11)))
    with scene.agent() as agent, open(os.environ["XTABLES_LOCKFILE"], "w") as lock:
        agent.ready()
        fcntl.flock(lock, fcntl.LOCK_EX)
        scene.changes[POLICIES].set()
        until(lambda: waits_for_a_lock(agent), agent.log)
        assert agent.stop() == 0
        assert "stopped; the rules stay in force" in agent.log()
    assert not is_isolated("10.0.0.1")


def test_a_log_that_nobody_reads(scene: Scene) -> None:
    """It is a pipe that is full: what comes is enforced all the same, though there is something to say of it first, and a signal ends
    the agent within two seconds."""

    def seconds() -> float:
        bad = policy("bad", 11, podSelector={"matchLabels": {"app": 7}})
        scene.play_all(then=added(bad) + added(policy("p", 12)))
        reading, writing = os.pipe()
        with scene.agent(log=writing) as agent, open(reading, "rb"), open(writing, "wb", buffering=0) as pipe:
            agent.ready()
            os.set_blocking(writing, False)
            while pipe.write(b"x") is not None:
                pass
            os.set_blocking(writing, True)
            assert not is_isolated("10.0.0.1")
            scene.changes[POLICIES].set()
            until(lambda: is_isolated("10.0.0.1"))
            began = time.monotonic()
            assert agent.stop() == 0
            return time.monotonic() - began

    # One of three tries: the machine may be busy with something else.
    assert any(seconds() < 2.0 for _ in range(3))


def waits_for_a_lock(agent: Agent) -> bool:
    """Whether the process has another process' lock file open, which it has only while it wants it."""
    files = Path(f"/proc/{agent.process.pid}/fd")
    return any(os.path.realpath(file) == os.environ["XTABLES_LOCKFILE"] for file in files.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_it_ends_by_a_signal_while_it_is_imported(scene: Scene, number: signal.Signals) -> None:
    """Sent when the handlers are there and the package that takes longest is not: exit 0, and no traceback."""
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'kubernetes': sys.meta_path.remove(self); os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from netpol.cli.main import main\n"
        f"main(['agent', '--listen', 'off', '--node', 'node', '--kubeconfig', {scene.kubeconfig!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "stopped; the rules stay in force" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_ends_while_it_waits_for_a_server(scene: Scene) -> None:
    """A signal is heard also where nobody answers."""
    with scene.agent() as agent:
        until(lambda: agent.page("/readyz")[0] == 503, agent.log)
        assert agent.stop() == 0


def test_when_the_server_is_away_the_rules_stay(scene: Scene) -> None:
    """Ready all the time; it says that it is away; afterwards it goes on from where it was."""
    scene.play_all(policy("p", 3))
    with scene.agent() as agent:
        agent.ready()
        scene.server.stop()
        agent.says("NetworkPolicy: ")
        assert is_isolated("10.0.0.1")
        assert agent.page("/readyz")[0] == 200
        scene.server.answer(POLICIES, page("15"), watch(deleted(policy("p", 20)), threading.Event()))
        scene.server.start()
        until(lambda: not is_isolated("10.0.0.1"), agent.log)
        agent.says("NetworkPolicy: followed again")


def test_what_somebody_changes_is_repaired(scene: Scene) -> None:
    """By the audit, on its period; named in the log."""
    scene.play_all(policy("p", 3))
    with scene.agent("--audit-interval", "0.2") as agent:
        agent.ready()
        run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
        agent.says("it is repaired: the jump of IPv4 FORWARD")
        assert "-A FORWARD -j NETPOL" in rules()


def test_a_kernel_that_refuses_is_no_end(scene: Scene) -> None:
    """Iptables' lock cannot be had: not ready, with the reason, and tried again until it can."""
    lock = Path(os.environ["XTABLES_LOCKFILE"])
    lock.mkdir()
    scene.play_all(policy("p", 3))
    with scene.agent() as agent:
        until(lambda: str(lock) in agent.page("/readyz")[1], lambda: (agent.page("/readyz"), agent.log()))
        assert agent.page("/readyz")[0] == 503
        assert not is_isolated("10.0.0.1")
        lock.rmdir()
        agent.ready()
        assert is_isolated("10.0.0.1")


def test_a_set_that_somebody_else_uses_is_said(scene: Scene) -> None:
    """By name; the agent is ready all the same, and the set goes when it is free."""
    run("ipset", "create", "NETPOL4-stray", "hash:ip")
    run("iptables-legacy", "-w", "-A", "OUTPUT", "-m", "set", "--match-set", "NETPOL4-stray", "dst")
    scene.play_all(policy("p", 3))
    with scene.agent("--audit-interval", "0.2") as agent:
        agent.ready()
        agent.says("NETPOL4-stray")
        assert is_isolated("10.0.0.1")
        run("iptables-legacy", "-w", "-F", "OUTPUT")
        until(lambda: "NETPOL4-stray" not in run("ipset", "list", "-n"), agent.log)


def test_a_port_that_is_taken_is_said(scene: Scene) -> None:
    """And everything else goes on; once it is free the pages are there."""
    scene.play_all(policy("p", 3))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        agent = scene.agent(listen=port)
        with agent:
            agent.says(f"cannot listen on 127.0.0.1 port {port}")
            agent.says("everything is in force")
            taken.close()
            agent.ready()


def test_objects_that_cannot_be_understood(scene: Scene) -> None:
    """Named in the log once, counted, and what they select is isolated; the other policies are enforced."""
    scene.play_all(policy("bad", 3, podSelector={"matchLabels": {"app": 7}}), policy("worse", 4, ingress=[{"ports": [{"port": 99999}]}]))
    with scene.agent("--log-format", "json") as agent:
        agent.ready()
        assert is_isolated("10.0.0.1")
        lines = [json.loads(line) for line in agent.log().splitlines()]
        said = [line["message"] for line in lines if line["level"] == "warning"]
        assert len([message for message in said if "NetworkPolicy default/bad: spec.podSelector" in message]) == 1
        assert len([message for message in said if "NetworkPolicy default/worse: spec.ingress[0].ports[0].port" in message]) == 1
        status, text = agent.page("/metrics")
        assert status == 200
        samples = {
            (sample.name, sample.labels.get("kind")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["netpol_invalid_objects", "NetworkPolicy"] == 2.0
        assert samples["netpol_watch_syncs_total", "NetworkPolicy"] == 1.0
        assert samples["netpol_invalid_objects", "Pod"] == 0.0


def test_events_are_written_by_a_switch(scene: Scene) -> None:
    """On the policy that cannot be understood, and on no other one."""
    bad = policy("bad", 3, podSelector={"matchLabels": {"app": 7}})
    scene.play_all(bad, policy("fine", 4))
    scene.server.answer("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", page("20", bad))
    scene.server.answer("/api/v1/namespaces/default/events", bare(201, b"{}"))
    with scene.agent("--events") as agent:
        agent.ready()
        (asked,) = scene.server.wait(1, "/api/v1/namespaces/default/events")
        assert asked.method == "POST"
        assert json.loads(asked.body)["involvedObject"]["name"] == "bad"
        assert agent.stop() == 0
    assert len(scene.server.of("/api/v1/namespaces/default/events")) == 1


def test_the_state_is_saved_and_restored(scene: Scene) -> None:
    """What an agent saved when it ended is what the kernel held, and `netpol restore` brings it back."""
    path = scene.folder / "state"
    scene.play_all(policy("p", 3))
    with scene.agent("--state", str(path)) as agent:
        agent.ready()
        assert agent.stop() == 0
    saved = load(path)
    assert saved is not None
    with Kernel() as kernel:
        assert diff(saved, kernel.read()) == ()
    CliRunner().invoke(main, ["cleanup"])
    assert not is_isolated("10.0.0.1")
    CliRunner().invoke(main, ["restore", "--state", str(path)])
    assert is_isolated("10.0.0.1")


def test_a_state_that_cannot_be_saved_is_said(scene: Scene) -> None:
    """And nothing else comes of it."""
    scene.play_all(policy("p", 3))
    with scene.agent("--state", "/nowhere/at/all") as agent:
        agent.says("the state could not be saved: ")
        agent.ready()


def test_a_service_manager_hears_how_it_goes(scene: Scene) -> None:
    """What it waits for, that it is ready once everything is in force, that it lives, and that it stops."""
    path = scene.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(30)
        scene.play(NAMESPACES)
        scene.play(NODES, NODE)
        scene.play(POLICIES)
        with scene.agent(environment={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}) as agent:
            heard = [manager.recv(1000).decode()]
            while "STATUS=waits until the API server has said all of Pod" not in heard:
                heard.append(manager.recv(1000).decode())
            assert "READY=1" not in heard
            scene.play(PODS)
            while not {"READY=1", "STATUS=in force", "WATCHDOG=1"} <= set(heard):
                heard.append(manager.recv(1000).decode())
            assert agent.stop() == 0
            while "STOPPING=1" not in heard:
                heard.append(manager.recv(1000).decode())


@pytest.mark.parametrize(
    ("arguments", "environment", "name"),
    [
        pytest.param(["--node", "one"], {"NETPOL_NODE": "two", "NODE_NAME": "three"}, "one", id="--node"),
        pytest.param([], {"NETPOL_NODE": "two", "NODE_NAME": "three"}, "two", id="NETPOL_NODE"),
        pytest.param([], {"NODE_NAME": "three"}, "three", id="NODE_NAME"),
        pytest.param([], {}, os.uname().nodename.lower(), id="the host's name"),
    ],
)
def test_which_node_it_is(scene: Scene, arguments: list[str], environment: dict[str, str], name: str) -> None:
    """Said first, and what it asks the API server for."""
    with Agent("--kubeconfig", scene.kubeconfig, *arguments, environment=environment) as agent:
        agent.says(f"on node {name},")
        (asked, *_) = scene.server.wait(1, NODES)
        assert asked.query["fieldSelector"] == f"metadata.name={name}"


def test_a_host_name_is_lowered_as_a_kubelet_does(scene: Scene) -> None:
    """A host called Node-A.Example registers as node-a.example; asked in a UTS namespace of its own."""
    script = f"hostname Node-A.Example && exec {sys.executable} -m netpol.cli.main agent --kubeconfig {scene.kubeconfig} --listen off"
    process = subprocess.Popen(["unshare", "--uts", "sh", "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        (asked, *_) = scene.server.wait(1, NODES)
    finally:
        process.kill()
        process.wait()
    assert asked.query["fieldSelector"] == "metadata.name=node-a.example"


def test_it_imports_only_what_it_needs(scene: Scene) -> None:
    """Neither the lab nor its library, nor tables of words, nor what nobody has asked for yet."""
    scene.play_all(policy("p", 3))
    with scene.agent(python=("-X", "importtime")) as agent:
        agent.ready()
        lines = agent.log().splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "netpol.agent.loop" in modules, "the list of imports was not read"
    heavy = {
        "pyroute2",
        "rich",
        "prometheus_client",
        "asyncio",
        "netpol.lab",
        "netpol.bench",
        "kubernetes.client.api",
        "kubernetes.client.models.v1_pod",
    }
    assert not {module for module in modules if module in heavy or module.partition(".")[0] in heavy}


def test_a_bad_kubeconfig_is_said_and_tried_again(scene: Scene) -> None:
    """It may be written later: the agent goes on as soon as it is good."""
    good = Path(scene.kubeconfig).read_text()
    Path(scene.kubeconfig).write_text("nonsense: [")
    scene.play_all(policy("p", 3))
    with scene.agent() as agent:
        agent.says("Pod: ")
        Path(scene.kubeconfig).write_text(good)
        agent.ready()


def test_not_ready_while_somebody_writes_the_bit_of_flows_that_were_cut(scene: Scene) -> None:
    """In force and yet not ready, with the reason, as long as that lasts; alive it is."""
    rule = ("FORWARD", "-j", "CONNMARK", "--set-mark", "1")
    run("iptables-legacy", "-t", "mangle", "-A", *rule)
    scene.play_all(policy("p", 3))
    with scene.agent() as agent:
        not_ready(agent, "cut bit: iptables -t mangle, FORWARD: CONNMARK sets 0x1/0xffffffff")
        run("iptables-legacy", "-t", "mangle", "-D", *rule)
        agent.ready()
        agent.says("preflight: cut bit: nobody else uses")


def test_not_ready_while_nothing_is_forwarded(scene: Scene) -> None:
    """The same where pods' packets would cross no FORWARD."""
    scene.play_all(policy("p", 3))
    with scene.agent(forwarding=False) as agent:
        not_ready(agent, "forwarding: the kernel forwards no packets")
        FORWARDING.write_text("1")
        agent.ready()
        agent.says("preflight: forwarding: the kernel forwards packets")


def not_ready(agent: Agent, words: str) -> None:
    until(lambda: is_isolated("10.0.0.1"), agent.log)
    agent.says(f"error   preflight: {words}")
    until(lambda: agent.page("/readyz")[1].startswith(words), agent.log)
    assert (agent.page("/readyz")[0], agent.page("/healthz")[0]) == (503, 200)
