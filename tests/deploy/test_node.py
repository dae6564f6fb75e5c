"""The agent as a kubelet would run the DaemonSet's pod: its account's token, its arguments, its one capability, its probes.

There is no container runtime here, so the parts of a pod that the agent could notice are made by hand: `setpriv` takes the powers of
root that the container does not have, and strace sees whether it writes anywhere but to its mounts, which a read-only root would refuse.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from netpol.agent.saved import load
from netpol.kernel import namespaces
from tests.agent.process import ROOT, until
from tests.deploy.manifests import DEPLOY, SYSTEM, container, kustomize, of_kind
from tests.kube.servers import ApiServer, Json, namespace, node, pod, policy, relay
from tests.referees import require, run

NODE, WHERE = "deploy-node", "deploy-web"
# Calls that change what a file system holds.
WRITING = re.compile("open(at)?|creat|mkdir(at)?|rename(at2?)?|unlink(at)?|(sym)?link(at)?|truncate|f?chmod(at)?|mknod(at)?|utimensat")
TO_WRITE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")


class Pod:
    """The DaemonSet's pod on this node: its mounts are folders of the test."""

    def __init__(self, daemonset: Json, kubeconfig: Path, folder: Path) -> None:
        self.spec = daemonset["spec"]["template"]["spec"]
        self.container = container(daemonset)
        self.folder, self.trace = folder, folder / "trace"
        self.mounts = {mount["mountPath"]: folder / mount["name"] for mount in self.container["volumeMounts"]}
        self._kubeconfig = kubeconfig

    def command(self) -> list[str]:
        security = self.container["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"]
        kept = "-all" + "".join(f",+{name.lower()}" for name in security["capabilities"]["add"])
        rights = [
            "setpriv",
            "--bounding-set",
            kept,
            "--inh-caps",
            kept,
            *(() if security["allowPrivilegeEscalation"] else ("--no-new-privs",)),
        ]
        seen = ["strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", str(self.trace)]
        return [*seen, *rights, sys.executable, "-m", "netpol.cli.main", *self.container["args"]]

    def environment(self) -> dict[str, str]:
        fields = {"spec.nodeName": NODE}
        given = {
            one["name"]: self._inside(one["value"]) if "value" in one else fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
            for one in self.container["env"]
        }
        # What the container has otherwise: the image's, the service account's in the place where it is, and no first install.
        image = dict(re.findall(r"(\w+)=(\d)", (DEPLOY / "Dockerfile").read_text()))
        return {**os.environ, **image, **given, "KUBECONFIG": str(self._kubeconfig), "NETPOL_GRACE": "0"}

    def _inside(self, value: str) -> str:
        """Paths are those of the mounts."""
        for path, where in self.mounts.items():
            value = value.replace(path, str(where))
        return value

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        with open(self.folder / "log", "wb") as log:
            process = subprocess.Popen(self.command(), cwd=ROOT, env=self.environment(), stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def probe(self, name: str) -> int:
        """The HTTP status that the kubelet would see; 0 for no answer."""
        asked = self.container[name]["httpGet"]
        connection = http.client.HTTPConnection(asked["host"], asked["port"], timeout=30)
        with closing(connection), suppress(OSError):
            connection.request("GET", asked["path"])
            return connection.getresponse().status
        return 0

    def written(self) -> set[str]:
        """The paths that it tried to write to."""
        found: set[str] = set()
        for call, arguments in self.calls():
            if WRITING.fullmatch(call) and (not call.startswith("open") or TO_WRITE.search(arguments)):
                found.update(re.findall(r'"([^"]+)"', arguments))
        return found

    def calls(self) -> list[tuple[str, str]]:
        """The system calls that it made, and what strace shows of their arguments; from when the agent itself runs."""
        _, _, own = self.trace.read_text().partition("netpol.cli.main")
        return re.findall(r"^\d+ +(\w+)\((.*)", own, re.MULTILINE)


@pytest.fixture
def as_pod(apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    """The manifests applied, a node with a pod that a policy isolates; the test is in that node's network namespace."""
    require("strace", "setpriv", "iptables-legacy-save")
    objects = kustomize(DEPLOY)
    account = of_kind("ServiceAccount", objects)["metadata"]
    with ExitStack() as stack:
        api = stack.enter_context(closing(apiserver.api()))
        for one in objects:
            api.apply(one)
            stack.callback(api.delete, one["kind"].lower() + "s", one["metadata"]["name"], one["metadata"].get("namespace", ""))
        api.apply(namespace(WHERE))
        for kind, value in (
            ("nodes", node(NODE, "192.0.2.78")),
            ("pods", pod(WHERE, "web", "10.98.0.1", node=NODE)),
            ("networkpolicies", policy(WHERE, "closed", {"podSelector": {}, "policyTypes": ["Ingress"]})),
        ):
            api.create(kind, value)
            stack.callback(api.delete, kind, value["metadata"]["name"], value["metadata"].get("namespace", ""))
        own = namespaces.create()
        stack.callback(os.close, own)
        with namespaces.entered(own):
            run("ip", "link", "set", "lo", "up")
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        port = stack.enter_context(relay(own, apiserver.port))
        kubeconfig = apiserver.kubeconfig(tmp_path / "kubeconfig", api.token(SYSTEM, account["name"]), port)
        made = Pod(of_kind("DaemonSet", objects), kubeconfig, tmp_path)
        made.mounts["/var/lib/netpol"].mkdir()
        monkeypatch.setenv("XTABLES_LOCKFILE", str(made.mounts["/run/xtables.lock"]))
        with namespaces.entered(own):
            yield made


def test_it_runs_as_its_manifest_says(as_pod: Pod) -> None:
    """With NET_ADMIN alone it enforces, answers its probes, saves its state, writes to its mounts only, and ends in its time."""
    with as_pod.started() as process:
        until(lambda: as_pod.probe("readinessProbe") == 200 or process.poll() is not None, as_pod.log)
        assert process.poll() is None, as_pod.log()
        assert as_pod.probe("livenessProbe") == 200
        assert "-d 10.98.0.1/32" in run("iptables-legacy-save", "-t", "mangle")
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.findall(r"Cap(?:Prm|Eff|Bnd):\t(\w+)", status) == [f"{1 << 12:016x}"] * 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(as_pod.spec["terminationGracePeriodSeconds"] + 30) == 0
    saved = load(as_pod.mounts["/var/lib/netpol"] / "state")
    assert saved is not None
    assert saved.sets or saved.chains
    mounts = tuple(map(str, as_pod.mounts.values()))
    until(lambda: any(path.startswith(mounts) for path in as_pod.written()))
    assert {path for path in as_pod.written() if not path.startswith((*mounts, "/dev/"))} == set()


def test_the_units_forbid_nothing_that_it_does(as_pod: Pod) -> None:
    """The families of sockets, and the system calls, that the agent's unit allows are enough from start to end, with a drop log too."""
    require("systemd-analyze")
    unit = (DEPLOY / "systemd" / "netpol-agent.service").read_text()
    (group,) = re.findall("^SystemCallFilter=(.*)$", unit, re.MULTILINE)
    as_pod.container["env"].append({"name": "NETPOL_DROP_LOG", "value": "-"})
    (families,) = re.findall("^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)
    with as_pod.started() as process:
        until(lambda: as_pod.probe("readinessProbe") == 200, as_pod.log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, as_pod.log()
    assert '"level":"error"' not in as_pod.log()
    until(lambda: "exit_group" in as_pod.trace.read_text())
    made = as_pod.calls()
    assert {name for name, _ in made} - members(group) == set()
    used = {arguments.partition(",")[0] for name, arguments in made if name == "socket"}
    assert {"AF_INET", "AF_INET6", "AF_NETLINK"} <= used <= set(families.split())


def members(group: str) -> set[str]:
    """The system calls of a group of systemd's, by its own word; groups may hold groups."""
    found: set[str] = set()
    for line in run("systemd-analyze", "syscall-filter", group).splitlines():
        name = line.strip()
        if line.startswith(" ") and name and name[0] != "#":
            found |= members(name) if name[0] == "@" else {name}
    return found


def test_its_capability_is_not_spare(as_pod: Pod) -> None:
    """Without it the agent ends at once, and says what it lacks."""
    as_pod.container["securityContext"]["capabilities"]["add"] = []
    done = subprocess.run(as_pod.command(), cwd=ROOT, env=as_pod.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "CAP_NET_ADMIN" in done.stderr
