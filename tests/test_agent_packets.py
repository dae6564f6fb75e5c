"""`netpol agent` beside a real API server, with a lab's pods as its node's and real packets: what is written there is enforced here."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netpol.lab import Host, Lab, Probe
from netpol.model import TCP, parse_address
from tests.agent.process import Agent, until
from tests.kube.servers import ADMIN, ApiServer, namespace, node, path, pod, policy, relay
from tests.referees import run
from tests.test_hitless_packets import ALWAYS, NEVER, Traffic, running

AWAY = 60.0 if os.environ.get("NETPOL_SOAK") == "1" else 3.0  # seconds that a server stays away
NODE = "agent-node"
WHERE, ELSEWHERE = "agent-web", "agent-other"
CLIENT, WEB, STRANGER = ("10.7.0.1", "fd07::1"), ("10.7.0.2", "fd07::2"), ("10.7.0.3", "fd07::3")
HOSTS = tuple(
    Host(name, tuple(map(parse_address, addresses)), ((TCP, 80), (TCP, 81)))
    for name, addresses in (("client", CLIENT), ("web", WEB), ("stranger", STRANGER))
)
FROM_FRIENDS: dict[str, Any] = {
    "podSelector": {"matchLabels": {"app": "web"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}], "ports": [{"port": 80}]}],
}


class Scene:
    """A lab, the API server as its node sees it, and clients of both."""

    def __init__(self, server: ApiServer, lab: Lab, kubeconfig: Path) -> None:
        self.server, self.api, self.lab, self.kubeconfig = server, server.api(), lab, kubeconfig

    def agent(self, *arguments: str, **more: Any) -> Agent:
        with self.lab.entered():
            return Agent("--kubeconfig", str(self.kubeconfig), "--node", NODE, *arguments, **more)

    def ready(self, agent: Agent) -> None:
        with self.lab.entered():
            agent.ready()

    def reached(self, source: str = "client", port: int = 80, target: tuple[str, str] = WEB) -> tuple[bool, bool]:
        """Whether web, or another one, answers that host now, by IPv4 and by IPv6."""
        probes = [Probe(source, parse_address(address), TCP, port) for address in target]
        first, second = self.lab.probe(probes, patience=0.4)
        return first.outcome == "reached", second.outcome == "reached"

    def becomes(self, reached: bool, source: str = "client", port: int = 80, agent: Agent | None = None) -> None:
        until(lambda: self.reached(source, port) == (reached, reached), agent.log if agent is not None else lambda: "")

    def pod(self, name: str, where: str, addresses: tuple[str, ...], **labels: str) -> None:
        self.api.create("pods", pod(where, name, *addresses, node=NODE, labels=labels))


@pytest.fixture
def scene(apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Three pods in two namespaces, on one node; everything is gone from the server afterwards."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    api = apiserver.api()
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(HOSTS))
        port = stack.enter_context(relay(lab.node, apiserver.port))
        for name in (WHERE, ELSEWHERE):
            api.apply(namespace(name))
        api.create("nodes", node(NODE, "10.7.255.1", cidrs=["10.7.0.0/24"]))
        stack.callback(api.delete, "nodes", NODE)
        for name in (WHERE, ELSEWHERE):
            for kind in ("pods", "networkpolicies", "events"):
                stack.callback(api.request, "DELETE", path(kind, name) + "?gracePeriodSeconds=0")
        made = Scene(apiserver, lab, apiserver.kubeconfig(tmp_path / "kubeconfig", ADMIN, port))
        made.pod("client", WHERE, CLIENT)
        made.pod("web", WHERE, WEB, app="web")
        made.pod("stranger", ELSEWHERE, STRANGER)
        yield made


def test_policies_and_labels_decide(scene: Scene) -> None:
    """A policy closes a pod, a label opens it to its bearer, on the allowed port only; changed it closes it; without it all is open."""
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(True, agent=agent)
        scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
        scene.becomes(False, agent=agent)
        scene.api.patch("pods", "client", WHERE, {"metadata": {"labels": {"friend": "yes"}}})
        scene.becomes(True, agent=agent)
        assert scene.reached(port=81) == scene.reached("stranger") == (False, False)
        scene.api.patch("networkpolicies", "friends", WHERE, {"spec": {"ingress": []}})
        scene.becomes(False, agent=agent)
        scene.api.delete("networkpolicies", "friends", WHERE)
        scene.becomes(True, agent=agent)
        scene.becomes(True, "stranger", 81, agent)


def test_namespaces_decide(scene: Scene) -> None:
    """Pods of another namespace are let in by a label that their namespace gets, and out again when it loses it."""
    spec = {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"open": "yes"}}}]}]}
    scene.api.create("networkpolicies", policy(WHERE, "spaces", spec))
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(False, "stranger", agent=agent)
        scene.api.patch("namespaces", ELSEWHERE, "", {"metadata": {"labels": {"open": "yes"}}})
        scene.becomes(True, "stranger", agent=agent)
        scene.api.patch("namespaces", ELSEWHERE, "", {"metadata": {"labels": {"open": None}}})
        scene.becomes(False, "stranger", agent=agent)


def test_namespaces_come_and_go(scene: Scene) -> None:
    """A namespace that comes with the label lets its pods in; one that is gone lets in nobody, though the server still has its pod."""
    late = "agent-late"
    spec = {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"open": "yes"}}}]}]}
    scene.api.create("networkpolicies", policy(WHERE, "spaces", spec))
    scene.api.delete("pods", "stranger", ELSEWHERE)
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(False, "stranger", agent=agent)
        scene.api.create("namespaces", namespace(late, open="yes"))
        scene.pod("stranger", late, STRANGER)
        scene.becomes(True, "stranger", agent=agent)
        scene.api.delete("namespaces", late)
        # What the namespace controller of a cluster does when it has emptied it.
        scene.api.request("PUT", f"/api/v1/namespaces/{late}/finalize", {"metadata": {"name": late}, "spec": {"finalizers": []}})
        assert [item["metadata"]["name"] for item in scene.api.items("pods", late)] == ["stranger"]
        scene.becomes(False, "stranger", agent=agent)
        scene.api.delete("pods", "stranger", late)


def test_a_pod_whose_address_comes_late_and_is_used_again(scene: Scene) -> None:
    """A pod gets its address by a later status; when another pod gets that address, the first one's end takes nothing from it."""
    scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
    scene.api.delete("pods", "client", WHERE)
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(False, agent=agent)
        scene.api.create("pods", pod(WHERE, "late", node=NODE, labels={"friend": "yes"}))
        status = {"phase": "Running", "podIP": CLIENT[0], "podIPs": [{"ip": address} for address in CLIENT]}
        scene.api.patch("pods/status", "late", WHERE, {"status": status})
        scene.becomes(True, agent=agent)
        scene.api.patch("pods/status", "late", WHERE, {"status": {"phase": "Succeeded"}})
        scene.becomes(False, agent=agent)
        scene.pod("next", WHERE, CLIENT, friend="yes")
        scene.becomes(True, agent=agent)
        scene.api.delete("pods", "late", WHERE)
        # Something that is enforced later shows that the deletion was taken in.
        scene.api.create("networkpolicies", policy(ELSEWHERE, "marker", {"podSelector": {}, "policyTypes": ["Egress"]}))
        until(
            lambda: (
                scene.reached("stranger") == (False, False)
                and not scene.lab.probe([Probe("stranger", HOSTS[0].addresses[0], TCP, 80)], 0.4)[0].host
            )
        )
        assert scene.reached() == (True, True)


def test_an_address_that_no_pod_has_yet(scene: Scene) -> None:
    """In the range of the Node object it is denied while a pod that a policy selects waits for its address; then its own policy holds."""
    spec = {"podSelector": {"matchLabels": {"app": "late"}}, "ingress": [{"ports": [{"port": 80}]}]}
    scene.api.create("networkpolicies", policy(ELSEWHERE, "late", spec))
    scene.api.delete("pods", "stranger", ELSEWHERE)
    with scene.agent() as agent:
        scene.ready(agent)
        assert scene.reached(port=81, target=STRANGER) == (True, True)
        scene.api.create("pods", pod(ELSEWHERE, "late", node=NODE, labels={"app": "late"}))
        # The node has a range of IPv4 only.
        until(lambda: scene.reached(target=STRANGER) == (False, True), agent.log)
        status = {"phase": "Running", "podIP": STRANGER[0], "podIPs": [{"ip": address} for address in STRANGER]}
        scene.api.patch("pods/status", "late", ELSEWHERE, {"status": status})
        until(lambda: scene.reached(target=STRANGER) == (True, True), agent.log)
        assert scene.reached(port=81, target=STRANGER) == (False, False)


def test_an_address_used_again_over_a_restart(scene: Scene) -> None:
    """A pod that still ends has lost its address to the one that has it now, also to an agent that hears of the old one last."""
    scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
    scene.pod("old", WHERE, CLIENT, friend="yes")
    # Bound to a node and not confirmed by a kubelet, it stays and terminates.
    scene.api.request("DELETE", path("pods", WHERE) + "/old?gracePeriodSeconds=600")
    assert [item["metadata"]["name"] for item in scene.api.items("pods", WHERE)] == ["client", "old", "web"]
    with scene.agent() as agent:
        scene.ready(agent)
        assert scene.reached() == (False, False)
        scene.api.delete("pods", "client", WHERE)
        scene.becomes(True, agent=agent)


def test_killed_and_started_again(scene: Scene) -> None:
    """Rules stay while nobody runs; the next agent takes in what happened meanwhile."""
    scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(False, agent=agent)
        agent.process.kill()
        agent.process.wait()
    assert scene.reached() == (False, False)
    scene.api.patch("pods", "client", WHERE, {"metadata": {"labels": {"friend": "yes"}}})
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(True, agent=agent)
        assert scene.reached("stranger") == (False, False)


def test_a_restart_is_no_window(scene: Scene) -> None:
    """One agent is ended by a signal, its successor by force; all packets that may pass do, and no others."""
    ports = [{"protocol": "UDP", "port": ALWAYS}]
    scene.api.create(
        "networkpolicies", policy(WHERE, "one", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": ports}]})
    )
    source, target = (parse_address(addresses[0]) for addresses in (CLIENT, WEB))
    with scene.agent() as agent, ExitStack() as stack:
        scene.ready(agent)
        always, never = (Traffic(scene.lab, "client", source, "web", port, target) for port in (ALWAYS, NEVER))
        for one in (always, never):
            stack.callback(one.close)
        with running([always, never]):
            assert agent.stop() == 0
            with scene.agent() as successor:
                scene.ready(successor)
            with scene.agent() as last:
                scene.ready(last)
                until(lambda: always.sent > 200)
        assert (always.sent - always.count(), never.count()) == (0, 0)


def test_its_numbers_are_those_of_the_kernel(scene: Scene) -> None:
    """What it is scraped for, beside what iptables and ipset list; and packets that ingress denied, and then egress."""
    scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
    scene.api.patch("pods", "client", WHERE, {"metadata": {"labels": {"friend": "yes"}}})
    with scene.agent() as agent, scene.lab.entered():
        agent.ready()
        found = numbers(agent)
        saved = {"ipv4": run("iptables-legacy-save", "-t", "mangle"), "ipv6": run("ip6tables-legacy-save", "-t", "mangle")}
        sets = run("ipset", "save")
        for family, word in (("ipv4", "inet"), ("ipv6", "inet6")):
            names = re.findall(rf"^create (\S+) \S+ family {word} ", sets, re.M)
            assert names
            members = [name for name in re.findall(r"^add (\S+)", sets, re.M) if name in names]
            assert found["netpol_rules", family] == len(re.findall("^-A NETPOL", saved[family], re.M))
            assert found["netpol_sets", family] == len(names)
            assert found["netpol_set_members", family] == len(members) == 1
        assert found["netpol_denied_packets_total", "ingress"] == 0.0
        scene.reached("stranger")
        denied = numbers(agent)
        assert (denied["netpol_denied_packets_total", "ingress"] > 0, denied["netpol_denied_packets_total", "egress"]) == (True, 0.0)
        scene.api.create("networkpolicies", policy(ELSEWHERE, "none", {"podSelector": {}, "policyTypes": ["Egress"]}))
        until(lambda: (scene.reached("stranger"), numbers(agent)["netpol_denied_packets_total", "egress"])[1] > 0)


def numbers(agent: Agent) -> dict[tuple[str, str], float]:
    """By the name of a sample, and the family or direction of its labels; of denied packets those that policies denied."""
    samples = (sample for family in text_string_to_metric_families(agent.page("/metrics")[1]) for sample in family.samples)
    return {
        (sample.name, sample.labels.get("family") or sample.labels.get("direction", "")): sample.value
        for sample in samples
        if sample.labels.get("reason", "policy") == "policy"
    }


def test_a_policy_that_cannot_be_understood_is_told(scene: Scene) -> None:
    """By an event on it that anybody may read, once; and what it selects is denied rather than open."""
    spec = {**FROM_FRIENDS, "ingress": [{"from": [{}]}]}
    scene.server.fill("networkpolicies", [policy(WHERE, "broken", spec)])
    with scene.agent("--events") as agent:
        scene.ready(agent)
        scene.becomes(False, agent=agent)
        until(lambda: scene.api.items("events", WHERE), agent.log)
        scene.api.patch("pods", "client", WHERE, {"metadata": {"labels": {"friend": "yes"}}})
        scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
        scene.becomes(True, agent=agent)
        (event,) = scene.api.items("events", WHERE)
    about = event["involvedObject"]
    assert (about["kind"], about["name"], event["type"]) == ("NetworkPolicy", "broken", "Warning")


@pytest.mark.parametrize("names", [("kube-apiserver",), ("kube-apiserver", "etcd")], ids=["server", "server and etcd"])
def test_the_server_restarts(scene: Scene, names: tuple[str, ...]) -> None:
    """While it is away, for a minute in a long run, the rules stay and the agent is ready; what happens afterwards is enforced."""
    scene.api.create("networkpolicies", policy(WHERE, "friends", FROM_FRIENDS))
    with scene.agent() as agent:
        scene.ready(agent)
        scene.becomes(False, agent=agent)
        scene.server.kill(*names)
        agent.says("the last rules stay in force")
        end = time.monotonic() + AWAY
        while time.monotonic() < end:
            assert scene.reached() == (False, False)
        with scene.lab.entered():
            assert agent.page("/readyz")[0] == 200
        scene.server.start()
        scene.api.patch("pods", "client", WHERE, {"metadata": {"labels": {"friend": "yes"}}})
        scene.becomes(True, agent=agent)
