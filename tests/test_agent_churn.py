"""Everything changes at random on a real API server while an agent follows; then the kernel, the compiler, the specification, the
interpreter and the wire agree, the audit finds nothing, and the agent has not grown.

NETPOL_SOAK=1 lets it go on for half an hour (`make soak`), otherwise for some seconds. The agent is killed and started again on the way.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from netpol.kernel.apply import Kernel
from netpol.lab import Host, Lab, Probe
from netpol.model import TCP, UDP, Address, Flow, Object, family_of, parse_address
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
# Of that time: until the first agent is killed, until its successor's memory is looked at, and until it is looked at again.
PARTS = (1 / 6, 1 / 6, 2 / 3)
GROWTH = 8.0  # MiB that an agent may grow in the last of them
IS_HELD = "asan" in os.environ.get("LD_PRELOAD", "")  # up to 256 MiB of what was freed, to see it used
NODE = "churn-node"
SPACES, PASSING = ("churn-a", "churn-b"), "churn-c"  # the last one comes and goes
HERE = [f"10.73.0.{i}" for i in range(2, 10)]
FAR = [f"10.73.1.{i}" for i in range(2, 14)]
SERVICES = ((TCP, 80), (TCP, 81), (UDP, 80))
NAMED = "web"  # a port of some pods: the one number or the other


def both(address: str) -> tuple[str, str]:
    """The IPv4 and the IPv6 address of a pod."""
    return address, f"fd73::{address.removeprefix('10.73.').replace('.', ':')}"


HOSTS = [Host(address, tuple(map(parse_address, both(address))), SERVICES) for address in (*HERE, *FAR)]
KINDS = ("pods", "networkpolicies")
LOCAL = frozenset(parse_address(address) for first in HERE for address in both(first))
DECODERS: dict[str, Callable[[bytes], Decoded[Any]]] = {
    "namespaces": decode_namespace,
    "pods": decode_pod,
    "networkpolicies": decode_policy,
    "nodes": decode_node,
}


class Churn:
    """Random changes, one after another, of pods that come, get their addresses late, end, go and trade labels and addresses, of policies,
    and of namespaces, one of which comes and goes."""

    def __init__(self, api: Api, seed: int) -> None:
        self.api, self.random = api, random.Random(seed)
        self.pods: dict[tuple[str, str], str] = {}
        self.without_address: set[tuple[str, str]] = set()
        self.finished: list[tuple[str, str]] = []
        self.spaces = list(SPACES)
        self.number = 0
        self.done: Counter[str] = Counter()

    def labels(self) -> dict[str, str]:
        return {key: self.random.choice("xyz") for key in ("app", "tier") if self.random.random() < 0.8}

    def selector(self) -> Json:
        return {"matchLabels": {key: value for key, value in self.labels().items() if self.random.random() < 0.6}}

    def peer(self) -> Json:
        drawn = self.random.random()
        if drawn < 0.25:
            if drawn < 0.08:
                return {"ipBlock": {"cidr": f"fd73::{self.random.randint(0, 1)}:0/112"}}
            excepts = [f"10.73.{self.random.randint(0, 1)}.{self.random.randint(0, 3) * 4}/30"] if drawn < 0.16 else []
            return {"ipBlock": {"cidr": "10.73.0.0/23", "except": excepts}}
        return {"podSelector": self.selector(), **({"namespaceSelector": {"matchLabels": {"team": "x"}}} if drawn < 0.6 else {})}

    def spec(self) -> Json:
        def rules(end: str) -> list[Json]:
            protocol, port = self.random.choice((("TCP", 80), ("TCP", 81), ("UDP", 80), ("TCP", NAMED)))
            ports = [{"protocol": protocol, "port": port}] if self.random.random() < 0.6 else []
            return [
                {end: [self.peer() for _ in range(self.random.randint(0, 3))], "ports": ports} for _ in range(self.random.randint(0, 2))
            ]

        kinds = self.random.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        return {"podSelector": self.selector(), "policyTypes": kinds, "ingress": rules("from"), "egress": rules("to")}

    def add_pod(self) -> None:
        free = sorted({*HERE, *FAR} - set(self.pods.values()))
        if free:
            self.number += 1
            address, key = self.random.choice(free), (self.random.choice(self.spaces), f"p{self.number}")
            self.pods[key] = address
            late = self.random.random() < 0.3
            if late:
                self.without_address.add(key)
            ports = (
                [{"name": NAMED, "containerPort": self.random.choice((80, 81)), "protocol": "TCP"}] if self.random.random() < 0.5 else []
            )
            where = NODE if address in HERE else "elsewhere"
            self.api.create("pods", pod(*key, *(() if late else both(address)), node=where, labels=self.labels(), ports=ports))

    def set_up(self) -> None:
        """The pods without an address get it."""
        for space, name in sorted(self.without_address):
            address = self.pods[space, name]
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": one} for one in both(address)]}
            self.api.patch("pods/status", name, space, {"status": status})
        self.without_address.clear()

    def finish(self, space: str, name: str) -> None:
        """A pod ends by itself: its address is free, and it stays there for a while."""
        del self.pods[space, name]
        self.finished.append((space, name))
        self.api.patch("pods/status", name, space, {"status": {"phase": self.random.choice(("Succeeded", "Failed"))}})
        while len(self.finished) > 3:
            space, name = self.finished.pop(0)
            self.api.delete("pods", name, space)

    def pass_by(self) -> None:
        """A namespace comes, or goes with all that is in it."""
        if PASSING not in self.spaces:
            self.api.create("namespaces", namespace(PASSING, team=self.random.choice("xy")))
            self.spaces.append(PASSING)
            return
        self.spaces.remove(PASSING)
        for kind in KINDS:
            self.api.request("DELETE", path(kind, PASSING) + "?gracePeriodSeconds=0")
        self.pods = {key: address for key, address in self.pods.items() if key[0] != PASSING}
        self.without_address = {key for key in self.without_address if key[0] != PASSING}
        self.finished = [key for key in self.finished if key[0] != PASSING]
        self.api.delete("namespaces", PASSING)
        # What the namespace controller of a cluster does when it has emptied it.
        self.api.request("PUT", f"/api/v1/namespaces/{PASSING}/finalize", {"metadata": {"name": PASSING}, "spec": {"finalizers": []}})

    def step(self) -> None:
        drawn = self.random.random()
        where = self.random.choice(self.spaces)
        if drawn < 0.15 or len(self.pods) < 10:
            what = "pod comes"
            self.add_pod()
        elif drawn < 0.2:
            what = "addresses come"
            self.set_up()
        elif drawn < 0.28:
            what = "pod goes"
            space, name = self.random.choice(sorted(self.pods))
            if self.random.random() < 0.5 and (space, name) not in self.without_address:
                self.finish(space, name)
            else:
                del self.pods[space, name]
                self.without_address.discard((space, name))
                self.api.delete("pods", name, space)
        elif drawn < 0.55:
            what = "labels"
            space, name = self.random.choice(sorted(self.pods))
            change = {"app": None, "tier": None, **self.labels()}
            self.api.patch("pods", name, space, {"metadata": {"labels": change}})
        elif drawn < 0.63:
            what = "labels of a namespace"
            self.api.patch("namespaces", where, "", {"metadata": {"labels": {"team": self.random.choice("xy")}}})
        elif drawn < 0.66:
            what = "namespace"
            self.pass_by()
        else:
            what = "policy"
            name = f"r{self.random.randint(0, 5)}"
            with suppress(ApiError):  # it may not be there
                self.api.delete("networkpolicies", name, where)
            if drawn < 0.95:
                self.api.create("networkpolicies", policy(where, name, self.spec()))
        self.done[what] += 1


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
        flows = [Flow(*ends, protocol, port) for ends in self.pairs(cluster) for protocol, port in SERVICES]
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
        assert [interpret(found, Packet(flow.source, flow.destination, flow.protocol, flow.port)).passes for flow in flows] == allowed
        names = {address: host.name for host in HOSTS for address in host.addresses}
        probes = [Probe(names[flow.source], flow.destination, flow.protocol, flow.port or 0) for flow in flows]
        assert [answer.outcome == "reached" for answer in self.lab.probe(probes, patience=1.0)] == allowed

    def pairs(self, cluster: Cluster) -> Iterator[tuple[Address, Address]]:
        """Between pods of this node, and to and from some of elsewhere."""
        there = [address for host in HOSTS[: len(HERE) + 4] for address in host.addresses if cluster.holder(address)]
        return (
            (one, other)
            for one in there
            for other in there
            if one != other and family_of(one) == family_of(other) and not LOCAL.isdisjoint((one, other))
        )


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
        for name in (*SPACES, PASSING):
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
    for part, share in enumerate(PARTS):
        end = time.monotonic() + SECONDS * share
        while time.monotonic() < end:
            churn.step()
        made.agree(agent)
        with made.lab.entered():
            found_nothing(agent)
        if part == 0:
            agent.process.kill()
            agent.process.wait()
            for _ in range(20):
                churn.step()
            agent = start()
        if part == 1:
            before = resident(agent)
    assert IS_HELD or resident(agent) - before < GROWTH
    assert len(churn.done) == 7, churn.done
    assert agent.stop() == 0


def found_nothing(agent: Agent) -> None:
    """Audits ran since everything is in force, and none of them found anything."""

    def audits() -> float:
        (line,) = [line for line in agent.page("/metrics")[1].splitlines() if line.startswith("netpol_audit_duration_seconds_count")]
        return float(line.split()[1])

    before = audits()
    until(lambda: audits() > before, agent.log)
    drift = [line for line in agent.page("/metrics")[1].splitlines() if line.startswith("netpol_drift_total")]
    assert drift
    assert [line for line in drift if not line.endswith(" 0.0")] == []


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
            api.create("pods", pod(SPACES[0], f"p{i}", *both(address), node=NODE, labels={"app": "x" if i else "y"}))
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
