"""The agent's scene: a real API server with a made-up cluster, a lab with three of the node's pods, and agents started on its node.

Only those three pods can send and be sent to; the other local ones, and all pods of other nodes, are objects. Objects go straight into
etcd by the ten thousand; what is measured goes through the API server as any client's would.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.witness import INTERVAL, Witness
from netpol.agent.enforcer import clean
from netpol.kernel.apply import Kernel
from netpol.kube.reflector import NAMESPACES, NODES, PODS, POLICIES
from netpol.lab import Host, Lab
from netpol.model import parse_address
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState
from netpol.rules.diff import diff
from tests.agent.process import Agent
from tests.kube.fake import FakeServer, added, bookmark, modified, watch
from tests.kube.servers import ADMIN, Api, ApiError, ApiServer, Json, namespace, node, path, pod, policy, stored_at

NODE, WHERE = "bench-node", "bench"
ADDRESSES = {"client": "10.99.0.1", "target": "10.99.0.2", "guarded": "10.99.0.3"}
PORT = 7000  # of the datagrams
SPACES, APPS = 100, 10
RESOURCES = {"namespaces": NAMESPACES, "nodes": NODES, "networkpolicies": POLICIES, "pods": PODS}
Storm = list[tuple[str, bytes]]  # keys and values of etcd, in their order


class NodeAgent(Agent):
    """An agent on a lab's node, whose pages are asked for there."""

    def __init__(self, lab: Lab, *arguments: str, environment: dict[str, str]) -> None:
        self._lab = lab
        with lab.entered():
            super().__init__(*arguments, environment=environment)

    def page(self, path: str) -> tuple[int, str]:
        with self._lab.entered():
            return super().page(path)


class Scene:
    """See the module; a context manager. `local` of the `pods` are the node's."""

    def __init__(self, folder: Path, server: ApiServer, pods: int, local: int, policies: int) -> None:
        self.folder, self.server = folder, server
        self._stack = ExitStack()
        self._pods, self._local, self._policies = pods, local, policies

    def __enter__(self) -> Scene:
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab([Host(name, (parse_address(address),), ()) for name, address in ADDRESSES.items()]))
            carrier = stack.enter_context(Witness("relay", self.lab.node, self.server.port, descriptors=(self.lab.node,)))
            self._kubeconfig = self.server.kubeconfig(self.folder / "real.kubeconfig", port=carrier.said("port"))
            self._fill()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _fill(self) -> None:
        api = self.server.api()
        api.create("nodes", node(NODE, "10.99.255.1", cidrs=["10.99.0.0/24"]))
        api.create("namespaces", namespace(WHERE))
        for name, address in ADDRESSES.items():
            api.create("pods", pod(WHERE, name, address, node=NODE, labels={"app": name}))
        self.server.fill("namespaces", (_stored(namespace(f"team-{i}", team=f"t{i % 10}"), i) for i in range(SPACES)))
        self.server.fill("networkpolicies", (_stored(made_policy(i), i) for i in range(self._policies)))
        self.fill_pods(0, self._pods)
        friends: Json = {"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"protocol": "UDP", "port": PORT}]}
        api.create("networkpolicies", policy(WHERE, "guard", selecting("guarded", friends)))
        self.settled()

    def fill_pods(self, first: int, last: int) -> None:
        """Puts pods straight into etcd."""
        self.server.fill("pods", (self._pod(number, 0) for number in range(first, last)))

    def restarted(self) -> None:
        """A new server over the same objects. One keeps all events of a minute and more, and its garbage collector walks over them again
        and again: after some storms the next one takes it several times as long."""
        self.server.restart()
        self.settled()

    def settled(self, patience: float = 180.0) -> None:
        """Waits until the server's watch cache holds all that was put into etcd; before, it refuses who asks for that much."""
        api, end = self.server.api(), time.monotonic() + patience
        mark = {"metadata": {"annotations": {"mark": str(end)}}}
        version = api.patch("pods", "client", WHERE, mark)["metadata"]["resourceVersion"]
        while True:
            try:
                api.request("GET", f"{path('pods', WHERE)}/client?resourceVersion={version}")
                return
            except ApiError:
                assert time.monotonic() < end, "the server never took it all in"

    def _pod(self, number: int, shift: int) -> Json:
        """`shift` moves it to another app of its namespace."""
        every = self._pods // self._local
        ours = number < self._pods and number % every == number // SPACES % every  # some of each namespace
        return _stored(made_pod(number, NODE if ours else f"node-{number % 97}", shift), number)

    def gathered_storms(self) -> tuple[Storm, Storm]:
        """Two storms that follow each other in turn: every pod changes its app, and after them the client becomes a friend; and back."""
        there, back = (self._gathered(shift, role) for shift, role in ((3, "friend"), (0, "foe")))
        return there, back

    def _gathered(self, shift: int, role: str) -> Storm:
        """What the server itself stores when clients write it."""
        api = self.server.api()
        metas: list[Json] = [made_pod(number, "", shift)["metadata"] for number in range(self._pods)]
        for meta in metas:
            api.patch("pods", meta["name"], meta["namespace"], {"metadata": {"labels": {"app": meta["labels"]["app"]}}})
        api.patch("pods", "client", WHERE, {"metadata": {"labels": {"role": role}}})
        stored = self.server.stored("pods")
        keys = [stored_at("pods", meta) for meta in (*metas, {"namespace": WHERE, "name": "client"})]
        return [(key, stored[key]) for key in keys]

    def storm(self, gathered: Storm) -> None:
        """The server learns of it all at once, and as if a client had written each: with a version of its own."""
        with self.server.paused():
            self.server.store(gathered, 1)

    @contextmanager
    def agent(self, grace: float = 0.0) -> Iterator[Agent]:
        """A running agent on the node."""
        with NodeAgent(
            self.lab, "--kubeconfig", str(self._kubeconfig), "--node", NODE, environment={"NETPOL_GRACE": f"{grace:g}"}
        ) as agent:
            yield agent

    def emptied(self) -> None:
        """Nothing of ours is in the node's kernel."""
        with self.lab.entered(), Kernel() as kernel:
            clean(kernel)

    @contextmanager
    def wire(self, target: str, interval: float = INTERVAL) -> Iterator[Witness]:
        """Datagrams from the client to that pod, one each so many seconds."""
        source, sink = self.lab.host("client"), self.lab.host(target)
        with Witness("wire", source, sink, ADDRESSES[target], PORT, interval, descriptors=(source, sink)) as witness:
            yield witness

    @contextmanager
    def watch(self, kind: str, where: str = WHERE, name: str = "") -> Iterator[Witness]:
        """When the server sends events of a kind, or of one object, from now on."""
        query = f"{path(kind, where)}?watch=1" + (f"&fieldSelector=metadata.name%3D{name}" if name else "")
        with Witness("watch", self.server.port, self.server.ca, ADMIN, query, self._version(kind, where)) as witness:
            witness.said("watching")
            yield witness

    @contextmanager
    def reader(self) -> Iterator[Witness]:
        """A client on the node that only reads what an agent would of all pods, and says when the client pod was in it."""
        node = self.lab.node
        with Witness("read", node, self._kubeconfig, self._version("pods"), "client", descriptors=(node,)) as witness:
            witness.said("reading")
            yield witness

    def _version(self, kind: str, where: str = "") -> str:
        """The resourceVersion of a kind's list as it is now."""
        return str(self.server.api().request("GET", path(kind, where) + "?limit=1")["metadata"]["resourceVersion"])

    @contextmanager
    def churn(self, rate: int) -> Iterator[list[int]]:
        """Labels of pods change meanwhile, so many a second as far as the server can; the list has how many did."""
        done, over = [0], threading.Event()

        def run() -> None:
            with closing(Api("127.0.0.1", self.server.port, self.server.ca, ADMIN)) as api:
                begin = time.monotonic()
                while not over.is_set():
                    which = done[0] * 7 % self._pods
                    api.patch("pods", f"pod-{which}", f"team-{which % SPACES}", {"metadata": {"labels": {"app": f"app-{done[0] % APPS}"}}})
                    done[0] += 1
                    over.wait(max(0.0, begin + done[0] / rate - time.monotonic()))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield done
        finally:
            over.set()
            thread.join()

    def wrong(self) -> int:
        """How many steps lie between what the kernel holds and a fresh compile of what the server has."""
        return self.steps_to((name, item) for name in RESOURCES for item in self.server.api().items(name))

    def steps_to(self, objects: Iterable[tuple[str, Json]]) -> int:
        """How many steps lie between what the kernel holds and a fresh compile of these objects."""
        cluster = Cluster()
        for name, item in objects:
            value = RESOURCES[name].decode(json.dumps(item).encode()).value
            if value is not None:
                cluster.put(value)
        wanted = NodeState(cluster, NODE).wanted()
        with self.lab.entered(), Kernel() as kernel:
            return len(diff(wanted, kernel.read()))

    @contextmanager
    def told(self, server: FakeServer, objects: Iterable[tuple[str, Json]], later: Iterable[Json], go: threading.Event) -> Iterator[Agent]:
        """A running agent that a fake server tells these objects, and at `go` of pods as they are later, as fast as it reads."""
        kinds: dict[str, list[Json]] = {name: [] for name in RESOURCES}
        for name, item in objects:
            kinds[name].append(item)
        for name, items in kinds.items():
            storm = (go, modified(*later)) if name == "pods" else ()
            server.answer(path(name), watch(added(*items), bookmark("1000000", True), *storm, threading.Event()))
        file = self.folder / "fake.kubeconfig"
        with Witness("relay", self.lab.node, server.port, descriptors=(self.lab.node,)) as carrier:
            Path(server.kubeconfig(self.folder, server=f"http://127.0.0.1:{carrier.said('port')}")).rename(file)
            with NodeAgent(self.lab, "--kubeconfig", str(file), "--node", NODE, environment={"NETPOL_GRACE": "0"}) as agent:
                yield agent


def selecting(app: str, *ingress: Json) -> Json:
    """A policy's spec that isolates pods of an app, but for these rules."""
    return {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": list(ingress)}


def made_policy(number: int) -> Json:
    """One of ten in each namespace: an app may be reached by the next one, and by one team's."""
    which = number // SPACES % APPS
    peers = [
        {"podSelector": {"matchLabels": {"app": f"app-{(which + 1) % APPS}"}}},
        {"namespaceSelector": {"matchLabels": {"team": f"t{which}"}}, "podSelector": {"matchLabels": {"app": f"app-{which}"}}},
    ]
    return policy(f"team-{number % SPACES}", f"policy-{number}", selecting(f"app-{which}", {"from": peers, "ports": [{"port": 8080}]}))


def made_pod(number: int, where: str, shift: int = 0) -> Json:
    """A pod of about 3 KB, most of which is no matter to policy. One of its labels is its own: that is what takes most memory."""
    address = f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    labels = {"app": f"app-{(number // SPACES + shift) % APPS}", "tier": "web", "pod-template-hash": f"{number:09x}"}
    made = pod(f"team-{number % SPACES}", f"pod-{number}", address, node=where, labels=labels)
    fields: Json = {"f:metadata": {"f:labels": {f"f:label-{i}": {} for i in range(60)}}}
    managed = {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
    made["metadata"]["managedFields"] = [managed]
    made["spec"]["containers"][0]["env"] = [{"name": f"SETTING_{i}", "value": "a value of some length"} for i in range(20)]
    return made


def _stored(value: Json, number: int) -> Json:
    """With what a server adds when it creates an object."""
    meta: dict[str, Any] = value["metadata"]
    return {**value, "metadata": {**meta, "uid": f"{value['kind']}-{number}", "creationTimestamp": "2026-01-01T00:00:00Z"}}


def resident(process: int) -> tuple[float, float]:
    """MiB of a process in memory: now, and at most so far."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def processor_time(process: int) -> float:
    """Seconds that a process's threads have run, those that ended left out."""
    ran = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            ran += int((task / "schedstat").read_text().split()[0])
    return ran / 1e9


def system_calls(agent: Agent) -> int:
    """What it has counted of its own to the kernel's tables and sets."""
    _, text = agent.page("/metrics")
    return int(float(next(line.split()[1] for line in text.splitlines() if line.startswith("netpol_system_calls_total"))))
