"""Sources against a real API server: what they say comes to what the server has, whatever happens to it in between."""

from __future__ import annotations

import gc
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from netpol.kube.client import Client, configured
from netpol.kube.events import Event, Gone, Put
from netpol.kube.reflector import NAMESPACES, NODES, PODS, POLICIES, Reason, Resource, Trouble
from netpol.kube.sources import EVERYTHING, Listener, Selection, Sources, for_node
from netpol.kube.waits import Timing
from netpol.kube.watch import Change, FrameStream, WatchStream, read_status
from netpol.model import Node, Object, parse_address
from netpol.policy.decode import decode_pod
from tests.kube.servers import ADMIN, Api, ApiServer, Json, namespace, node, pod, policy, programs, pump
from tests.kube.test_sources import wait_for

RESOURCES: dict[str, Resource] = {"namespaces": NAMESPACES, "nodes": NODES, "networkpolicies": POLICIES, "pods": PODS}
TIMING = Timing(first_wait=0.1, last_wait=1.0)
Key = tuple[type[Object], str, str]


class Store(Listener):
    """What was said to be there; strict about what is said to be gone."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.gone: list[str] = []
        self.reasons: list[Reason | None] = []
        self._change = threading.Condition()

    def __call__(self, *events: Event) -> None:
        with self._change:
            for event in events:
                if isinstance(event, Put):
                    self.objects[type(event.object), getattr(event.object, "namespace", ""), event.object.name] = event.object
                elif isinstance(event, Gone):
                    del self.objects[event.kind, event.namespace, event.name]
                    self.gone.append(event.name)
            self._change.notify_all()

    def troubled(self, kind: type[Object], trouble: Trouble | None) -> None:
        with self._change:
            self.reasons.append(trouble.reason if trouble is not None else None)
            self._change.notify_all()

    def until(self, done: Callable[[], bool]) -> None:
        with self._change:
            assert self._change.wait_for(done, 60), (sorted(name for *_, name in self.objects), self.reasons)

    def becomes(self, server: ApiServer) -> None:
        """What the server has: every object of every kind, as its decoder reads it."""
        wanted = there(server)
        self.until(lambda: self.objects == wanted)


def there(server: ApiServer) -> dict[Key, Object]:
    """Every object that a server has, by an ordinary list."""
    found: dict[Key, Object] = {}
    with closing(server.api()) as api:
        for name, resource in RESOURCES.items():
            for item in api.items(name):
                value = resource.decode(json.dumps(item).encode()).value
                assert value is not None
                found[resource.kind, getattr(value, "namespace", ""), value.name] = value
    return found


@contextmanager
def following(
    server: ApiServer, folder: Path, selections: tuple[Selection, ...] = EVERYTHING, *, token: str = ADMIN, port: int | None = None
) -> Iterator[tuple[Store, Sources]]:
    store = Store()
    client = Client(configured(str(server.kubeconfig(folder / "kubeconfig", token, port))))
    with Sources(client, selections, store, store, timing=TIMING) as sources:
        yield store, sources


class Wire:
    """A port that passes bytes on to the server, and can be pulled."""

    def __init__(self, port: int) -> None:
        self._target, self.port = port, 0
        self._open: list[socket.socket] = []
        self.plug()

    def plug(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def pull(self) -> None:
        """Everything that goes over it breaks off, and nobody listens."""
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()


@pytest.fixture
def api(apiserver: ApiServer) -> Iterator[Api]:
    """Who changes what is there."""
    with closing(apiserver.api()) as found:
        yield found


def churn(api: Api, where: str, dice: random.Random, rounds: int) -> None:
    """Pods, policies and labels that come, change and go, as clients make them."""
    pods: dict[str, int] = {}
    for number in range(rounds):
        if len(pods) < 3 or dice.random() < 0.5:
            name = f"p{number}"
            api.create("pods", pod(where, name, f"10.3.0.{number}", "fd00:3::1", node="n1", labels={"app": str(dice.randrange(3))}))
            pods[name] = number
        elif dice.random() < 0.5:
            name = dice.choice(list(pods))
            api.patch("pods", name, where, {"metadata": {"labels": {"app": str(dice.randrange(9))}}})
            api.patch("pods/status", name, where, {"status": {"podIP": "10.3.1.1", "podIPs": [{"ip": "10.3.1.1"}]}})
        else:
            name = dice.choice(list(pods))
            del pods[name]
            api.delete("pods", name, where)
        if number % 5 == 0:
            api.create("networkpolicies", policy(where, f"np{number}", {"podSelector": {"matchLabels": {"app": "1"}}}))
        if number % 10 == 9:
            api.delete("networkpolicies", f"np{number - 4}", where)
            api.patch("namespaces", where, "", {"metadata": {"labels": {"round": str(number)}}})


def test_what_is_said_comes_to_what_there_is(apiserver: ApiServer, api: Api, tmp_path: Path) -> None:
    """Fifty objects of every kind created, changed and deleted, before and while they are followed; one request a kind."""
    api.create("namespaces", namespace("followed", team="a"))
    api.create("nodes", node("followed-1", "192.0.2.31", cidrs=["10.3.0.0/24"]))
    churn(api, "followed", random.Random(1), 20)
    with following(apiserver, tmp_path) as (store, sources):
        store.becomes(apiserver)
        api.create("namespaces", namespace("followed-too"))
        churn(api, "followed-too", random.Random(2), 50)
        api.delete("nodes", "followed-1")
        store.becomes(apiserver)
        assert store.reasons == []
        for figures in sources.figures.values():
            assert figures.requests == {"sync": 1}
            assert figures.bytes > 0
    assert len(store.gone) > 5


def test_a_pod_in_protobuf_is_the_pod_in_json(apiserver: ApiServer, api: Api, tmp_path: Path) -> None:
    """Whatever a pod has, and whatever becomes of it: two watches say the same, to the errors, one of them in protobuf."""
    where = "both"
    api.create("namespaces", namespace(where))
    version = api.request("GET", "/api/v1/pods?limit=1")["metadata"]["resourceVersion"]
    ports = [{"containerPort": 80}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"containerPort": 7, "protocol": "SCTP"}]
    sidecar = {"name": "s", "image": "i", "restartPolicy": "Always", "ports": [{"name": "metrics", "containerPort": 9090, "hostPort": 9}]}
    for number, spec in enumerate(
        (
            {"containers": [{"name": "c", "image": "i", "ports": ports}, {"name": "d", "image": "i"}], "initContainers": [sidecar]},
            {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": '\u0001"é'}]}], "hostNetwork": True},
            {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}], "nodeName": "n1"},
        )
    ):
        labels = {"app": f"a{number}", "empty": "", "example.org/long": "x" * 63}
        meta = {"name": f"p{number}", "namespace": where, "labels": labels, "annotations": {"a": '"\\\n\u0001é'}, "finalizers": ["a.b/c"]}
        api.create(
            "pods", {"metadata": meta, "spec": spec, "status": {"phase": "Running", "podIP": "10.3.0.1", "podIPs": [{"ip": "10.3.0.1"}]}}
        )
        ips = {"podIP": "10.3.0.2", "podIPs": [{"ip": "10.3.0.2"}, {"ip": "fd00:3::2"}]}
        api.patch("pods/status", f"p{number}", where, {"status": {"hostIP": "192.0.2.1", **ips}})
        api.patch("pods", f"p{number}", where, {"metadata": {"labels": None}})
        api.patch("pods/status", f"p{number}", where, {"status": {"phase": "Succeeded"}})
        api.request("DELETE", f"/api/v1/namespaces/{where}/pods/p{number}", {"kind": "DeleteOptions", "apiVersion": "v1"})
        api.patch("pods", f"p{number}", where, {"metadata": {"finalizers": None}})
    query = (("watch", "true"), ("resourceVersion", version), ("timeoutSeconds", "2"))
    client = Client(configured(str(apiserver.kubeconfig(tmp_path / "kubeconfig"))))
    found: list[list[tuple[str, ...]]] = []
    for protobuf, stream in ((True, FrameStream()), (False, WatchStream())):
        with client.watch(f"/api/v1/namespaces/{where}/pods", query, 30, protobuf=protobuf) as answer:
            assert (answer.code, answer.protobuf) == (200, protobuf)
            changes = [change for data in iter(answer.read, b"") for change in stream.feed(data) if isinstance(change, Change)]
        found.append([(one.type, one.name, one.namespace, one.version, repr(decode_pod(one.object))) for one in changes])
    assert found[0] == found[1]
    assert len(found[0]) >= 3 * 6
    words = " ".join(part for one in found[0] for part in one)
    address = repr(parse_address("fd00:3::2"))
    for word in (address, "metrics", "dns", "host_network=True", "finished=True", "terminating=True", "DELETED"):
        assert word in words
    with client.watch("/api/v1/pods", (("watch", "true"), ("fieldSelector", "x")), 30, protobuf=True) as answer:
        assert (answer.code, answer.protobuf) == (400, True)
        status = read_status(answer.rest())
    assert (status.code, status.reason) == (400, "BadRequest")
    assert "invalid selector" in status.message
    client.close()


def test_the_agent_of_a_node_follows_its_own_node(apiserver: ApiServer, api: Api, tmp_path: Path) -> None:
    """Of the nodes only that one; it may come later, and go."""
    api.create("nodes", node("beside", "192.0.2.32"))
    with following(apiserver, tmp_path, (for_node("mine")[1],)) as (store, sources):
        store.until(lambda: sources.reflectors[0].synced)
        assert store.objects == {}
        api.create("nodes", node("mine", "192.0.2.33"))
        store.until(lambda: [value.addresses for value in store.objects.values() if isinstance(value, Node)] == [(bytes([192, 0, 2, 33]),)])
        api.delete("nodes", "mine")
        store.until(lambda: store.objects == {})
    api.delete("nodes", "beside")


def test_rights_that_come_later(apiserver: ApiServer, api: Api, tmp_path: Path) -> None:
    """Without rights a kind waits, and asks ever more rarely; once they are granted it is followed."""
    api.create("namespaces", namespace("rights"))
    api.create("serviceaccounts", {"metadata": {"name": "agent", "namespace": "rights"}})
    answer = api.request("POST", "/api/v1/namespaces/rights/serviceaccounts/agent/token", {"spec": {"expirationSeconds": 3600}})
    with following(apiserver, tmp_path, token=answer["status"]["token"]) as (store, sources):
        store.until(lambda: store.reasons == ["forbidden"] * 4)
        trouble = sources.reflectors[0].trouble
        assert trouble is not None
        assert 'User "system:serviceaccount:rights:agent" cannot watch resource "namespaces"' in trouble.message
        allowed: list[Json] = [
            {"apiGroups": ["", "networking.k8s.io"], "resources": list(RESOURCES), "verbs": ["list", "watch"]},
        ]
        api.create("clusterroles", {"metadata": {"name": "netpol-test"}, "rules": allowed})
        subject = {"kind": "ServiceAccount", "name": "agent", "namespace": "rights"}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "netpol-test"}
        api.create("clusterrolebindings", {"metadata": {"name": "netpol-test"}, "roleRef": role, "subjects": [subject]})
        store.becomes(apiserver)
        assert {kind for figures in sources.figures.values() for kind in figures.requests} == {"sync"}


# -- a server that comes and goes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[pytest.param((), id="WatchList"), pytest.param(("--feature-gates=WatchList=false",), id="list")])
def own(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    """A server that the tests here may end and start; one that knows WatchList, and one that does not."""
    flags: tuple[str, ...] = request.param
    with ApiServer(programs(), flags) as server:
        with closing(server.api()) as api:
            api.create("namespaces", namespace("own"))
            api.create("nodes", node("own-1", "192.0.2.41"))
        yield server


def fill(server: ApiServer, number: int) -> None:
    """Pods straight into etcd: more than a page of them."""
    made = [pod("own", f"many-{i}", f"10.4.{i >> 8}.{i & 255}", labels={"app": str(i % 7)}) for i in range(number)]
    for i, one in enumerate(made):
        one["metadata"]["uid"] = f"00000000-0000-4000-8000-{i:012}"  # without one, a server takes an update for a creation
    server.fill("pods", made)


def missed(api: Api) -> None:
    """Changes of every sort that nobody watches."""
    for name in ("many-1", "many-2"):
        api.delete("pods", name, "own")
        api.create("pods", pod("own", f"late-{name}", "10.5.0.1"))
    api.patch("pods", "many-3", "own", {"metadata": {"labels": {"app": "changed"}}})


# CPython 3.11 leaves the socket of a connection that was reset before TLS began on it to the garbage collector: it has no peer any more.
# Whatever else is left open is an error.
@pytest.mark.filterwarnings(r"ignore:unclosed <ssl\.SSLSocket[^>]* laddr=\('127\.0\.0\.1', \d+\)>:ResourceWarning")
def test_everything_a_server_may_do_to_its_clients(own: ApiServer, tmp_path: Path) -> None:
    """A cut wire, a restart that forgets old versions, an end of both programs, an older etcd: each ends in what the server has."""
    fill(own, 1200)
    before = own.snapshot()
    wire = Wire(own.port)
    with following(own, tmp_path, port=wire.port) as (store, sources), closing(own.api()) as api:
        pods = next(reflector for reflector in sources.reflectors if reflector.resource is PODS)
        store.becomes(own)
        lists = dict(pods.figures.requests)
        assert lists == ({"sync": 1} if pods.figures.requests["list"] == 0 else {"sync": 1, "list": 3, "watch": 1})

        # What changed while the wire was out comes by the next watch: an outage lists nothing.
        wire.pull()
        missed(api)
        wire.plug()
        store.becomes(own)
        assert {phase: pods.figures.requests[phase] for phase in ("sync", "list")} == {"sync": 1, "list": lists.get("list", 0)}
        assert (pods.figures.syncs, sorted(store.gone)) == (1, ["many-1", "many-2"])

        # A server that starts anew does not know what was deleted before: 410, and everything is said again.
        wire.pull()
        for name in ("late-many-1", "late-many-2"):
            api.delete("pods", name, "own")
        api.create("pods", pod("own", "later", "10.5.0.2"))
        own.restart()
        wire.plug()
        store.becomes(own)
        assert (pods.figures.restarts["expired"], pods.figures.syncs) == (1, 2)
        assert sorted(store.gone)[:2] == ["late-many-1", "late-many-2"]

        # Both programs end at once, and come back with what they had.
        own.kill()
        store.until(lambda: pods.trouble is not None)
        own.start()
        api.create("pods", pod("own", "after", "10.5.0.3"))
        store.becomes(own)

        # etcd as it was before all that: older versions are what is right.
        own.restore(before)
        store.becomes(own)
        assert pods.figures.restarts["restored"] == 1
        api.create("pods", pod("own", "new", "10.5.0.4"))
        store.becomes(own)
        api.delete("pods", "new", "own")
    wire.pull()
    gc.collect()  # here, and in no test behind this one


def test_a_server_that_hangs(apiserver: ApiServer, tmp_path: Path) -> None:
    """Silent connections are given up in time, and stopping does not wait for the next ones."""
    store = Store()
    client = Client(configured(str(apiserver.kubeconfig(tmp_path / "kubeconfig"))))
    sources = Sources(client, [Selection(PODS)], store, store, timing=Timing(first_wait=0.1, last_wait=1.0, silence=1.0))
    sources.start()
    store.until(lambda: sources.reflectors[0].synced)
    threads = [thread for thread in threading.enumerate() if thread.name == "pods"]
    with apiserver.paused():
        wait_for(lambda: sources.reflectors[0].figures.restarts["silence"] > 0)
        sources.stop()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
