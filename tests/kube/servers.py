"""A real kube-apiserver on a real etcd, for tests: started on free loopback ports, gone with the test run however that ends.

There is no kubelet and no controller: what tests want to be there they write, through the API as any client would (`Api`), or by the
ten thousand straight into etcd (`ApiServer.fill`). The programs are built once by `make apiserver`.

A process in another network namespace (an agent on the lab's node) does not see our loopback: `relay` listens on that namespace's and
passes bytes on. It is chosen over a server inside the namespace because one server then serves every lab of a session.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import pytest

from netpol.kernel import namespaces

BUILD = Path(__file__).parent / "apiserver" / "build"
ADMIN = "admin-token"
PATIENCE = 60.0  # seconds for a server to be ready on a busy machine
FILL = 128  # objects a transaction of etcd's
Json = dict[str, Any]

GROUPS = {
    "namespaces": "/api/v1",
    "nodes": "/api/v1",
    "pods": "/api/v1",
    "serviceaccounts": "/api/v1",
    "events": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1",
    "clusterrolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "daemonsets": "/apis/apps/v1",
}


def programs() -> Path:
    """The folder with etcd and kube-apiserver. Skips the test where it is not built; under NETPOL_REQUIRE_ALL=1 fails it instead."""
    found = subprocess.run([BUILD, "--where"], capture_output=True, text=True)
    if found.returncode == 0:
        return Path(found.stdout.strip())
    sentence = "needs a real API server: `make apiserver` builds it, with Go 1.26 or newer"
    if os.environ.get("NETPOL_REQUIRE_ALL") == "1":
        pytest.fail(sentence)
    pytest.skip(sentence)


class ApiError(Exception):
    """An answer that is none of success: `code`, and what the server says."""

    def __init__(self, code: int, body: str) -> None:
        self.code = code
        super().__init__(f"{code}: {body}")


class Api:
    """Objects by HTTP, as one user. For one thread at a time."""

    def __init__(self, host: str, port: int, ca: Path, token: str) -> None:
        self._address, self._token = (host, port), token
        self._context = ssl.create_default_context(cafile=str(ca))
        self._connection: http.client.HTTPSConnection | None = None

    def request(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> Json:
        """One request, on a new connection where the kept one is gone; ApiError for an answer of 400 or more."""
        code, text = self._exchange(method, path, None if body is None else json.dumps(body).encode(), kind)
        if code >= 400:
            raise ApiError(code, text)
        found: Json = json.loads(text) if text.startswith("{") else {"text": text}
        return found

    def _exchange(self, method: str, path: str, body: bytes | None, kind: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json", "Content-Type": kind}
        for fresh in (self._connection is None, True):
            if fresh:
                self.close()
                self._connection = http.client.HTTPSConnection(*self._address, timeout=PATIENCE, context=self._context)
            assert self._connection is not None
            try:
                self._connection.request(method, path, body, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read().decode()
            except (OSError, http.client.HTTPException):
                self.close()
                if fresh:
                    raise
        raise AssertionError("a fresh connection either answers or raises")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def create(self, kind: str, value: Json) -> Json:
        """POST; a `status` in it is PATCHed afterwards, for a server drops it from what it creates."""
        name, where = value["metadata"]["name"], value["metadata"].get("namespace", "")
        made = self.request("POST", path(kind, where), value)
        return self.patch(f"{kind}/status", name, where, {"status": value["status"]}) if "status" in value else made

    def patch(self, kind: str, name: str, namespace: str, change: Json) -> Json:
        """A merge patch; `kind` may name a subresource, as pods/status."""
        kind, _, part = kind.partition("/")
        where = f"{path(kind, namespace)}/{name}" + (f"/{part}" if part else "")
        return self.request("PATCH", where, change, "application/merge-patch+json")

    def apply(self, value: Json, dry_run: bool = False) -> Json:
        """Server-side apply, as `kubectl apply --server-side` does it: a field that the server does not know is an error."""
        meta = value["metadata"]
        where = f"{path(value['kind'].lower() + 's', meta.get('namespace', ''))}/{meta['name']}"
        query = "fieldManager=test&force=true&fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self.request("PATCH", f"{where}?{query}", value, "application/apply-patch+yaml")

    def token(self, namespace: str, name: str) -> str:
        """A token of that ServiceAccount, good for an hour."""
        where = f"{path('serviceaccounts', namespace)}/{name}/token"
        answer = self.request("POST", where, {"spec": {"expirationSeconds": 3600}})
        return str(answer["status"]["token"])

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """At once, without a grace period: there is no kubelet to wait for."""
        self.request("DELETE", f"{path(kind, namespace)}/{name}", {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})

    def get(self, kind: str, name: str, namespace: str = "") -> Json:
        return self.request("GET", f"{path(kind, namespace)}/{name}")

    def items(self, kind: str, namespace: str = "") -> list[Json]:
        """All objects of a kind, or those of one namespace."""
        found: list[Json] = self.request("GET", path(kind, namespace))["items"]
        return found


def path(kind: str, namespace: str = "") -> str:
    """Where an API server has a kind of objects."""
    return f"{GROUPS[kind]}/namespaces/{namespace}/{kind}" if namespace else f"{GROUPS[kind]}/{kind}"


class ApiServer:
    """etcd and kube-apiserver; a context manager. See the module.

    flags -- further flags of kube-apiserver; users -- token -> user and groups, beside ADMIN (who may do everything).
    """

    def __init__(self, folder: Path, flags: Iterable[str] = (), users: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self._folder, self._flags, self._users = folder, tuple(flags), dict(users or {})
        self._temporary = TemporaryDirectory(prefix="netpol-apiserver-")
        self.directory = Path(self._temporary.name)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._apis: dict[str, Api] = {}
        self.port, self._etcd_port, self._peer_port = free_ports(3)

    def __enter__(self) -> ApiServer:
        users = {ADMIN: ("admin", "system:masters"), **self._users}
        lines = [f'{token},{name},{name},"{",".join(groups)}"\n' for token, (name, *groups) in users.items()]
        (self.directory / "tokens").write_text("".join(lines))
        key = subprocess.run([self._folder / "service-account-key"], capture_output=True, check=True)
        (self.directory / "key").write_bytes(key.stdout)
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for api in self._apis.values():
            api.close()
        self.kill()
        self._temporary.cleanup()

    # -- clients -------------------------------------------------------------------------------------------------------

    @property
    def ca(self) -> Path:
        """The certificate that clients are to trust."""
        return self.directory / "certificates" / "apiserver.crt"

    def api(self, token: str = ADMIN) -> Api:
        """The client with this token; it is closed when the server ends."""
        if token not in self._apis:
            self._apis[token] = Api("127.0.0.1", self.port, self.ca, token)
        return self._apis[token]

    def kubeconfig(self, file: Path, token: str = ADMIN, port: int | None = None) -> Path:
        """Writes a kubeconfig for this token; `port` where a relay is to be asked instead. The file."""
        server = f"https://127.0.0.1:{port or self.port}"
        cluster = {"server": server, "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        file.write_text(json.dumps(config))
        return file

    def fill(self, kind: str, objects: Iterable[Json], together: int = FILL) -> None:
        """Puts objects straight into etcd, 10,000 and more a second: as whole as a server would have stored them.

        together -- how many share a version. Where somebody watches, it has to be 1: who has seen a version has seen all of it.
        """
        self.store(((stored_at(kind, value["metadata"]), json.dumps(value).encode()) for value in objects), together)

    def store(self, values: Iterable[tuple[str, bytes]], together: int = FILL) -> None:
        """Puts values straight into etcd, by their keys; `together` as in `fill`."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._etcd_port, timeout=PATIENCE)) as connection:
            batch: list[Json] = []
            for key, value in values:
                batch.append({"requestPut": {"key": _base64(key.encode()), "value": _base64(value)}})
                if len(batch) == together:
                    _ask_etcd(connection, "txn", {"success": batch})
                    batch.clear()
            if batch:
                _ask_etcd(connection, "txn", {"success": batch})

    def stored(self, kind: str) -> dict[str, bytes]:
        """What etcd holds of a kind, by its keys, as whoever wrote it wrote it."""
        found: dict[str, bytes] = {}
        first, end = stored_at(kind, {"name": ""}), stored_at(kind, {"name": "\x7f"})
        with closing(http.client.HTTPConnection("127.0.0.1", self._etcd_port, timeout=PATIENCE)) as connection:
            more = True
            while more:
                answer = _ask_etcd(connection, "range", {"key": _base64(first.encode()), "range_end": _base64(end.encode()), "limit": FILL})
                found |= {base64.b64decode(one["key"]).decode(): base64.b64decode(one["value"]) for one in answer.get("kvs", ())}
                first, more = max(found, default="") + "\0", answer.get("more", False)
        return found

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts what does not run, over the data there is, and waits until it answers."""
        if "etcd" not in self._processes:
            url, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
            urls = (f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}")
            cluster = (f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}")
            data = f"--data-dir={self.directory / 'data'}"
            self._launch("etcd", data, *urls, *cluster, "--unsafe-no-fsync", "--log-level=warn")
        if "kube-apiserver" not in self._processes:
            key = self.directory / "key"
            self._launch(
                "kube-apiserver",
                f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
                *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={self.port}"),
                *(f"--cert-dir={self.directory / 'certificates'}", "--endpoint-reconciler-type=none"),
                *("--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://netpol.test"),
                *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
                *(f"--token-auth-file={self.directory / 'tokens'}", "--authorization-mode=RBAC"),
                *("--disable-admission-plugins=ServiceAccount", "--allow-privileged=true", *self._flags),
            )
        self._await_ready()

    def _launch(self, name: str, *arguments: str) -> None:
        with open(self.directory / f"{name}.log", "ab") as log:
            # It ends when we do, also when we are killed.
            command = ["setpriv", "--pdeathsig", "KILL", "--", str(self._folder / name), *arguments]
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _await_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"{name} ended with {process.returncode}: {self._log(name)}")
            with suppress(OSError, http.client.HTTPException, ApiError):
                api = self.api()
                api.request("GET", "/readyz")
                api.request("GET", path("namespaces") + "/default")
                return
            if time.monotonic() > end:
                raise AssertionError(f"kube-apiserver is not ready after {PATIENCE:g} s: {self._log('kube-apiserver')}")
            time.sleep(0.05)

    def _log(self, name: str) -> str:
        return "\n".join((self.directory / f"{name}.log").read_text(errors="replace").splitlines()[-20:])

    def kill(self, *names: str) -> None:
        """Ends them, or both, at once; nothing of the data is lost."""
        for name in names or ("kube-apiserver", "etcd"):
            process = self._processes.pop(name, None)
            if process is not None:
                process.kill()
                process.wait()

    @contextmanager
    def paused(self, name: str = "kube-apiserver") -> Iterator[None]:
        """It neither runs nor ends within the block: connections stay, and are silent."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """kube-apiserver ends at once, and a new one starts over the same data."""
        self.kill("kube-apiserver")
        self.start()

    def snapshot(self) -> Path:
        """A copy of etcd's data as it is now; both restart for it."""
        copy = self.directory / f"snapshot-{time.monotonic_ns()}"
        self.kill()
        shutil.copytree(self.directory / "data", copy)
        self.start()
        return copy

    def restore(self, snapshot: Path) -> None:
        """etcd is what it was at that snapshot; both restart for it."""
        self.kill()
        shutil.rmtree(self.directory / "data")
        shutil.copytree(snapshot, self.directory / "data")
        self.start()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody uses just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def stored_at(kind: str, meta: Json) -> str:
    """The key in etcd of an object of a kind, by its metadata."""
    return f"/registry/{'minions' if kind == 'nodes' else kind}/" + "/".join(filter(None, (meta.get("namespace"), meta["name"])))


def _ask_etcd(connection: http.client.HTTPConnection, what: str, request: Json) -> Json:
    connection.request("POST", f"/v3/kv/{what}", json.dumps(request))
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200, text
    found: Json = json.loads(text)
    return found


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes on what comes until one of the two ends, and ends both."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(namespace: int, port: int) -> Iterator[int]:
    """Listens on the loopback of a network namespace and passes connections on to `port` of ours; the port to be asked there."""
    with namespaces.entered(namespace):
        listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: set[socket.socket] = set()

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    near.close()
                    continue
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    open_sockets.add(sock)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in open_sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


# -- objects as clients write them -------------------------------------------------------------------------------------


def namespace(name: str, **labels: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node(name: str, *addresses: str, cidrs: Iterable[str] = ()) -> Json:
    """A Node with these InternalIPs and pod CIDRs."""
    status = {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]}
    ranges = list(cidrs)
    spec = {"podCIDR": ranges[0], "podCIDRs": ranges} if ranges else {}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec, "status": status}


def pod(
    where: str,
    name: str,
    *addresses: str,
    node: str = "",
    labels: Mapping[str, str] | None = None,
    phase: str = "Running",
    ports: Iterable[Json] = (),
) -> Json:
    """A Pod with a status that has these addresses; without any it has not been set up yet."""
    status: Json = {"phase": phase if addresses else "Pending"}
    if addresses:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
    spec: Json = {"containers": [{"name": "main", "image": "none", "ports": list(ports)}]}
    if node:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": where, "name": name, "labels": dict(labels or {})},
        "spec": spec,
        "status": status,
    }


def policy(where: str, name: str, spec: Json) -> Json:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": where, "name": name}, "spec": spec}
