"""Everything changes at random on a real API server while an agent follows; then the kernel, the compiler, the specification, the
interpreter and the wire agree, the audit finds nothing, and the agent has not grown.

NETPOL_SOAK=1 lets it go on for half an hour (`make soak`), otherwise for some seconds. The agent is killed and started again on the way.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from netpol.kernel.apply import Kernel
from netpol.lab import Host, Lab, Probe
from netpol.model import TCP, Address, Flow, Object, parse_address
from netpol.policy.cluster import Cluster
from netpol.policy.decode import Decoded, decode_namespace, decode_node, decode_pod, decode_policy
from netpol.policy.verdict import verdict
from netpol.rules.compile import Settings, compiled
from netpol.rules.diff import diff
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import Ruleset
from tests.agent.process import Agent, until
from tests.kube.servers import Api, ApiError, ApiServer, Json, namespace, node, path, pod, policy, programs, relay

SECONDS = 1800.0 if os.environ.get("NETPOL_SOAK") == "1" else 8.0
GROWTH = 8.0  # MiB that an agent may grow after the first third
IS_HELD = "asan" in os.environ.get("LD_PRELOAD", "")  # up to 256 MiB of what was freed, to see it used
NODE = "churn-node"
SPACES = ("churn-a", "churn-b")
HERE = [f"10.73.0.{i}" for i in range(2, 10)]
FAR = [f"10.73.1.{i}" for i in range(2, 14)]
PORTS = (80, 81)
HOSTS = [Host(address, (parse_address(address),), tuple((TCP, port) for port in PORTS)) for address in (*HERE, *FAR)]
KINDS = ("pods", "networkpolicies")
LOCAL = frozenset(map(parse_address, HERE))
DECODERS: dict[str, Callable[[bytes], Decoded[Any]]] = {
    "namespaces": decode_namespace,
    "pods": decode_pod,
    "networkpolicies": decode_policy,
    "nodes": decode_node,
}


class Churn:
    """Random changes, one after another, of pods that come, go and trade labels and addresses, of policies and namespaces."""

    def __init__(self, api: Api, seed: int) -> None:
        self.api, self.random = api, random.Random(seed)
        self.pods: dict[tuple[str, str], str] = {}
        self.number = 0

    def labels(self) -> dict[str, str]:
        return {key: self.random.choice("xyz") for key in ("app", "tier") if self.random.random() < 0.8}

    def selector(self) -> Json:
        return {"matchLabels": {key: value for key, value in self.labels().items() if self.random.random() < 0.6}}

    def peer(self) -> Json:
        drawn = self.random.random()
        if drawn < 0.25:
            excepts = [f"10.73.{self.random.randint(0, 1)}.{self.random.randint(0, 3) * 4}/30"] if drawn < 0.12 else []
            return {"ipBlock": {"cidr": "10.73.0.0/23", "except": excepts}}
        return {"podSelector": self.selector(), **({"namespaceSelector": {"matchLabels": {"team": "x"}}} if drawn < 0.6 else {})}

    def spec(self) -> Json:
        def rules(end: str) -> list[Json]:
            ports = [{"port": self.random.choice(PORTS)}] if self.random.random() < 0.6 else []
            return [
                {end: [self.peer() for _ in range(self.random.randint(0, 3))], "ports": ports} for _ in range(self.random.randint(0, 2))
            ]

        kinds = self.random.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        return {"podSelector": self.selector(), "policyTypes": kinds, "ingress": rules("from"), "egress": rules("to")}

    def add_pod(self) -> None:
        free = sorted({*HERE, *FAR} - set(self.pods.values()))
        if free:
            self.number += 1
            address, key = self.random.choice(free), (self.random.choice(SPACES), f"p{self.number}")
            self.pods[key] = address
            self.api.create("pods", pod(*key, address, node=NODE if address in HERE else "elsewhere", labels=self.labels()))

    def step(self) -> None:
        drawn = self.random.random()
        where = self.random.choice(SPACES)
        if drawn < 0.15 or len(self.pods) < 10:
            self.add_pod()
        elif drawn < 0.25:
            key = self.random.choice(sorted(self.pods))
            del self.pods[key]
            self.api.delete("pods", key[1], key[0])
        elif drawn < 0.55:
            space, name = self.random.choice(sorted(self.pods))
            change = {"app": None, "tier": None, **self.labels()}
            self.api.patch("pods", name, space, {"metadata": {"labels": change}})
        elif drawn < 0.65:
            self.api.patch("namespaces", where, "", {"metadata": {"labels": {"team": self.random.choice("xy")}}})
        else:
            name = f"r{self.random.randint(0, 5)}"
            with suppress(ApiError):  # it may not be there
                self.api.delete("networkpolicies", name, where)
            if drawn < 0.95:
                self.api.create("networkpolicies", policy(where, name, self.spec()))


class World:
    """What there is on the server and in the node's kernel."""

    def __init__(self, api: Api, lab: Lab, kernel: Kernel) -> None:
        self.api, self.lab, self.kernel = api, lab, kernel

    def cluster(self) -> Cluster:
        """What the server has, of all namespaces."""
        found: list[Object] = []
        for kind, decode in (
            ("namespaces", decode_namespace),
            ("pods", decode_pod),
            ("networkpolicies", decode_policy),
            ("nodes", decode_node),
        ):
            for item in self.api.items(kind):
                decoded = decode(json.dumps(item).encode())
                assert decoded.value is not None
                assert decoded.errors == ()
                found.append(decoded.value)
        cluster = Cluster()
        for value in found:
            cluster.put(value)
        return cluster

    def read(self) -> Ruleset:
        with self.lab.entered():
            return self.kernel.read()

    def agree(self, agent: Agent) -> None:
        """The kernel becomes what a fresh compile of the server's objects gives; then all judges say the same of every flow."""
        cluster = self.cluster()
        wanted = compiled(cluster, NODE, Settings())
        until(lambda: diff(wanted, self.read()) == (), lambda: (diff(wanted, self.read()), agent.log()))
        found = self.read()
        flows = [Flow(*ends, TCP, port) for ends in self.pairs(cluster) for port in PORTS]
        assert flows
        # What other nodes enforce is not this kernel's business.
        allowed = []
        for flow in flows:
            said = verdict(cluster, flow)
            denied = (
                said.egress.standing == "denied" and flow.source in LOCAL,
                said.ingress.standing == "denied" and flow.destination in LOCAL,
            )
            allowed.append(not any(denied))
        assert [interpret(found, Packet(flow.source, flow.destination, TCP, flow.port)).passes for flow in flows] == allowed
        names = {host.addresses[0]: host.name for host in HOSTS}
        probes = [Probe(names[flow.source], flow.destination, TCP, flow.port or 0) for flow in flows]
        assert [answer.outcome == "reached" for answer in self.lab.probe(probes, patience=1.0)] == allowed

    def pairs(self, cluster: Cluster) -> Iterator[tuple[Address, Address]]:
        """Between pods of this node, and to and from some of elsewhere."""
        there = [address for host in HOSTS[: len(HERE) + 4] if cluster.holder(address := host.addresses[0])]
        return ((one, other) for one in there for other in there if one != other and not LOCAL.isdisjoint((one, other)))


def resident(agent: Agent) -> float:
    """MiB of the agent in memory."""
    pages = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@pytest.fixture
def world(apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Callable[[], Agent]]]:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    api = apiserver.api()
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(HOSTS))
        port = stack.enter_context(relay(lab.node, apiserver.port))
        kubeconfig = apiserver.kubeconfig(tmp_path / "kubeconfig", port=port)
        with lab.entered():
            kernel = stack.enter_context(Kernel())
        for name in SPACES:
            api.create("namespaces", namespace(name, team="x"))
            for kind in KINDS:
                stack.callback(api.request, "DELETE", path(kind, name) + "?gracePeriodSeconds=0")
        api.create("nodes", node(NODE, "10.73.255.1"))
        stack.callback(api.delete, "nodes", NODE)

        def start() -> Agent:
            with lab.entered():
                return stack.enter_context(Agent("--kubeconfig", str(kubeconfig), "--node", NODE, "--audit-interval", "1"))

        yield World(api, lab, kernel), start


def test_everything_changes(world: tuple[World, Callable[[], Agent]]) -> None:
    """In three parts: with one agent; with its successor after a kill, who meets changes that nobody saw; and once more."""
    made, start = world
    churn = Churn(made.api, 7)
    agent = start()
    for part in range(3):
        end = time.monotonic() + SECONDS / 3
        while time.monotonic() < end:
            churn.step()
        made.agree(agent)
        if part == 0:
            agent.process.kill()
            agent.process.wait()
            for _ in range(20):
                churn.step()
            agent = start()
        if part == 1:
            before = resident(agent)
    assert IS_HELD or resident(agent) - before < GROWTH
    with made.lab.entered():
        _, text = agent.page("/metrics")
    assert "netpol_drift_total" in text
    drift = [line for line in text.splitlines() if line.startswith("netpol_drift_total") and not line.endswith(" 0.0")]
    assert drift == []
    assert agent.stop() == 0


def test_an_etcd_that_goes_back_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made after the snapshot is gone again, what was deleted is back, and the kernel follows."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    closed = {"podSelector": {"matchLabels": {"app": "x"}}, "policyTypes": ["Ingress"]}
    with ApiServer(programs()) as server, Lab(HOSTS[:3]) as lab, relay(lab.node, server.port) as port, ExitStack() as stack:
        with lab.entered():
            kernel = stack.enter_context(Kernel())
        api = server.api()
        made = World(api, lab, kernel)
        api.create("namespaces", namespace(SPACES[0]))
        api.create("nodes", node(NODE, "10.73.255.1"))
        for i, address in enumerate(HERE[:3]):
            api.create("pods", pod(SPACES[0], f"p{i}", address, node=NODE, labels={"app": "x" if i else "y"}))
        api.create("networkpolicies", policy(SPACES[0], "before", closed))
        snapshot = server.snapshot()
        with lab.entered():
            kubeconfig = str(server.kubeconfig(tmp_path / "kubeconfig", port=port))
            agent = stack.enter_context(Agent("--kubeconfig", kubeconfig, "--node", NODE))
        made.agree(agent)
        api.delete("networkpolicies", "before", SPACES[0])
        api.create("networkpolicies", policy(SPACES[0], "after", {"podSelector": {}, "policyTypes": ["Egress"]}))
        made.agree(agent)
        server.restore(snapshot)
        assert [item["metadata"]["name"] for item in api.items("networkpolicies")] == ["before"]
        made.agree(agent)
