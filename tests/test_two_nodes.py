"""Two agents on two nodes, each in a lab of its own with a cable between them, and one real API server: each side enforces its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # it has no types

from netpol.kernel.apply import Kernel
from netpol.lab import Host, Lab
from netpol.model import TCP, parse_address
from tests.agent.process import Agent, until
from tests.kube.servers import ApiServer, namespace, node, pod, policy, relay

WHERE = "two-nodes"
PORTS = ((TCP, 80), (TCP, 81))
PODS = {"east": "10.71.0.2", "west": "10.72.0.2"}
LINK = {"east": "10.70.0.1", "west": "10.70.0.2"}
ANSWER = 0.5  # seconds that a connection waits for an answer


class Node:
    """One lab with one pod, its agent, and what its kernel dropped."""

    def __init__(self, name: str, stack: ExitStack, server: ApiServer, folder: Path) -> None:
        self.name = name
        self.lab = stack.enter_context(Lab([Host(name, (parse_address(PODS[name]),), PORTS)]))
        port = stack.enter_context(relay(self.lab.node, server.port))
        self._kubeconfig = str(server.kubeconfig(folder / f"{name}.kubeconfig", port=port))
        with self.lab.entered():
            self.kernel = stack.enter_context(Kernel())

    def start(self, stack: ExitStack) -> None:
        with self.lab.entered():
            self.agent = stack.enter_context(Agent("--kubeconfig", self._kubeconfig, "--node", f"two-{self.name}"))

    def ready(self) -> None:
        with self.lab.entered():
            self.agent.ready()

    def reaches(self, address: str, port: int = 80) -> bool:
        """Whether this node's pod gets a connection there."""
        with self.lab.entered(self.name):
            connection = socket.socket()
        connection.settimeout(ANSWER)
        with closing(connection):
            try:
                connection.connect((address, port))
            except OSError:
                return False
            return True

    def dropped(self) -> int:
        with self.lab.entered():
            return self.kernel.dropped()


def connect(one: Node, other: Node) -> None:
    """A cable between two nodes, with a route to the other's pod on each."""
    with one.lab.entered(), IPRoute() as routes:
        routes.link("add", ifname="between", kind="veth", peer={"ifname": "between", "net_ns_fd": other.lab.node})
    for here, there in ((one, other), (other, one)):
        with here.lab.entered(), IPRoute() as routes:
            (device,) = routes.link_lookup(ifname="between")
            routes.addr("add", index=device, address=LINK[here.name], prefixlen=24)
            routes.link("set", index=device, state="up")
            routes.route("add", dst=f"{PODS[there.name]}/32", gateway=LINK[there.name])


@pytest.fixture
def nodes(apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Node, Node]]:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    api = apiserver.api()
    api.apply(namespace(WHERE))
    with ExitStack() as stack:
        east, west = (Node(name, stack, apiserver, tmp_path) for name in PODS)
        connect(east, west)
        for name, address in PODS.items():
            api.create("nodes", node(f"two-{name}", LINK[name]))
            stack.callback(api.delete, "nodes", f"two-{name}")
            api.create("pods", pod(WHERE, name, address, node=f"two-{name}", labels={"app": name}))
            stack.callback(api.delete, "pods", name, WHERE)
        for one in (east, west):
            one.start(stack)
        for one in (east, west):
            one.ready()
        yield east, west


def selecting(app: str, **directions: Any) -> dict[str, Any]:
    kinds = [name.capitalize() for name in directions]
    return {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": kinds, **directions}


@pytest.mark.parametrize("source", list(PODS))
def test_each_side_enforces_its_own(nodes: tuple[Node, Node], apiserver: ApiServer, source: str) -> None:
    """Egress is denied where the source is, ingress where the destination is; what passes has to be allowed by both. Both ways round."""
    one, other = sorted(nodes, key=lambda found: found.name != source)
    api = apiserver.api()
    until(lambda: one.reaches(PODS[other.name]) and other.reaches(PODS[one.name]))

    api.create("networkpolicies", policy(WHERE, "in", selecting(other.name, ingress=[{"ports": [{"port": 80}]}])))
    until(lambda: not one.reaches(PODS[other.name], 81), other.agent.log)
    assert one.reaches(PODS[other.name], 80)
    assert (one.dropped(), other.dropped() > 0) == (0, True)

    ports = [{"port": 81}]
    api.create("networkpolicies", policy(WHERE, "out", selecting(one.name, egress=[{"ports": ports}])))
    until(lambda: not one.reaches(PODS[other.name], 80), one.agent.log)
    before = other.dropped()
    assert not one.reaches(PODS[other.name], 80)
    assert (one.dropped() > 0, other.dropped()) == (True, before)
    # The source's own rule lets this pass, and the destination's does not.
    assert not one.reaches(PODS[other.name], 81)
    assert other.dropped() > before
    # Neither isolates the other direction.
    assert other.reaches(PODS[one.name])

    api.patch("networkpolicies", "out", WHERE, {"spec": {"egress": [{"to": [{"podSelector": {"matchLabels": {"app": other.name}}}]}]}})
    until(lambda: one.reaches(PODS[other.name], 80), one.agent.log)
    assert not one.reaches(PODS[other.name], 81)
    for name in ("in", "out"):
        api.delete("networkpolicies", name, WHERE)
    until(lambda: one.reaches(PODS[other.name], 81), other.agent.log)
