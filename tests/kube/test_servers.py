"""The API server of the tests is a real one: what is written comes back by list and watch, and a restart loses nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # it has no types

from netpol.kernel import namespaces
from tests.kube.servers import ADMIN, ApiError, ApiServer, namespace, node, path, pod, policy, programs, relay


def test_objects_come_back(apiserver: ApiServer) -> None:
    """Each kind that netpol follows, as written: addresses, node, labels and phases too; and a delete is one at once."""
    api = apiserver.api()
    api.create("namespaces", namespace("written", team="a"))
    api.create("nodes", node("written-node", "192.0.2.7", cidrs=["10.9.0.0/24"]))
    api.create("pods", pod("written", "web", "10.9.0.5", "fd00::5", node="written-node", labels={"app": "web"}))
    api.create("networkpolicies", policy("written", "closed", {"podSelector": {}, "policyTypes": ["Ingress"]}))
    (found,) = api.items("pods", "written")
    assert found["status"]["podIPs"] == [{"ip": "10.9.0.5"}, {"ip": "fd00::5"}]
    assert found["spec"]["nodeName"] == "written-node"
    assert api.get("namespaces", "written")["metadata"]["labels"]["team"] == "a"
    assert api.get("nodes", "written-node")["spec"]["podCIDRs"] == ["10.9.0.0/24"]
    assert [item["metadata"]["name"] for item in api.items("networkpolicies", "written")] == ["closed"]
    api.delete("pods", "web", "written")
    assert api.items("pods", "written") == []


def test_a_watch_tells_of_changes(apiserver: ApiServer) -> None:
    """A watch that begins with what there is (WatchList) says the end of it, and then what is changed."""
    api = apiserver.api()
    api.create("namespaces", namespace("watched"))
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=30"
    connection = http.client.HTTPSConnection("127.0.0.1", apiserver.port, timeout=30, context=trusting(apiserver))
    with contextlib.closing(connection):
        connection.request("GET", f"{path('pods', 'watched')}?{query}", headers={"Authorization": f"Bearer {ADMIN}"})
        events = (json.loads(line) for line in connection.getresponse())
        first = next(events)
        assert first["type"] == "BOOKMARK"
        assert first["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
        api.create("pods", pod("watched", "one", "10.9.1.1"))
        # The server says by more bookmarks how far it is, whenever it likes.
        changes = (event["type"] for event in events if event["type"] != "BOOKMARK")
        assert [next(changes), next(changes)] == ["ADDED", "MODIFIED"]


def trusting(server: ApiServer) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(server.ca))


def test_a_user_may_do_what_its_groups_may(tmp_path: Path) -> None:
    """Tokens are users; one without rights is refused. A server without WatchList says so; data outlive a restart, and go back in time."""
    users = {"nobody-token": ("nobody",)}
    with ApiServer(programs(), ["--feature-gates=WatchList=false"], users) as server:
        with pytest.raises(ApiError, match="403"):
            server.api("nobody-token").items("pods")
        with pytest.raises(ApiError, match="401"):
            server.api("unknown").items("pods")
        with pytest.raises(ApiError, match="422"):
            server.api().request("GET", path("pods") + "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
        api = server.api()
        api.create("namespaces", namespace("before"))
        snapshot = server.snapshot()
        api.create("namespaces", namespace("after"))
        server.restart()
        assert {"before", "after"} <= names(server)
        server.restore(snapshot)
        assert "before" in names(server)
        assert "after" not in names(server)
        config = json.loads(server.kubeconfig(tmp_path / "config", "nobody-token").read_text())
        assert config["users"][0]["user"] == {"token": "nobody-token"}
        assert config["clusters"][0]["cluster"]["server"] == f"https://127.0.0.1:{server.port}"


def names(server: ApiServer) -> set[str]:
    return {item["metadata"]["name"] for item in server.api().items("namespaces")}


def test_many_objects_straight_into_etcd(apiserver: ApiServer) -> None:
    """The server lists them like any other; nodes too, which etcd keeps under another name."""
    apiserver.fill("namespaces", [namespace("filled") | {"spec": {}, "status": {"phase": "Active"}}])
    apiserver.fill("pods", (pod("filled", f"p-{i}", f"10.8.{i >> 8}.{i & 255}", labels={"i": str(i)}) for i in range(300)))
    apiserver.fill("nodes", [node("filled-node", "192.0.2.9")])
    api = apiserver.api()
    assert {item["metadata"]["labels"]["i"] for item in api.items("pods", "filled")} == {str(i) for i in range(300)}
    assert api.get("nodes", "filled-node")["status"]["addresses"] == [{"type": "InternalIP", "address": "192.0.2.9"}]


def test_a_relay_reaches_it_from_another_network_namespace(apiserver: ApiServer) -> None:
    """Whose own loopback has nobody who would answer otherwise."""
    lonely = namespaces.create()
    try:
        with namespaces.entered(lonely), IPRoute() as routes:
            routes.link("set", index=1, state="up")
        with relay(lonely, apiserver.port) as port, namespaces.entered(lonely):
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=trusting(apiserver))
            connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {ADMIN}"})
            assert connection.getresponse().read() == b"ok"
            connection.close()
    finally:
        os.close(lonely)


def test_servers_end_with_whoever_started_them(tmp_path: Path) -> None:
    """Also when that is killed: no process is left that has its directory open."""
    programs()
    script = (
        "import os, signal, sys\n"
        "from tests.kube.servers import ApiServer, programs\n"
        "server = ApiServer(programs()).__enter__()\n"
        "print(*[process.pid for process in server._processes.values()], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    pids = done.stdout.split()
    assert len(pids) == 2, done.stderr
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        # Gone, or ended and not yet collected.
        for _ in range(1000):
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX":
                break
            subprocess.run(["sleep", "0.01"], check=True)
        else:
            pytest.fail(f"process {pid} outlived its starter")
