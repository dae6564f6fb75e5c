"""The manifests of deploy/: what kustomize makes of them is what a real API server takes, to the letter, and what the agent understands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from netpol import __version__
from netpol.agent.service import END
from netpol.cli.agent import LISTEN, agent
from tests.deploy.manifests import (
    DEPLOY,
    EVENTS,
    ROOT,
    SYSTEM,
    container,
    kustomize,
    of_kind,
    read,
    variables,
    variables_of,
    with_events,
)
from tests.kube.servers import Api, ApiError, ApiServer, Json, namespace

ELSEWHERE = "deploy-elsewhere"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
NAMESPACED = ("ServiceAccount", "DaemonSet")


@pytest.fixture
def api(apiserver: ApiServer) -> Iterator[Api]:
    with closing(apiserver.api()) as found:
        yield found


def taken(api: Api, objects: list[Json]) -> list[Json]:
    """What the server made of them; it has none of them afterwards."""
    try:
        return [api.apply(one) for one in objects]
    finally:
        for one in objects:
            try:
                api.delete(one["kind"].lower() + "s", one["metadata"]["name"], one["metadata"].get("namespace", ""))
            except ApiError as error:
                assert error.code == 404  # noqa: PT017 -- the one that was refused


# -- on a real API server ----------------------------------------------------------------------------------------------


def test_every_manifest_is_taken(api: Api) -> None:
    """Each file by itself, as `kubectl apply -f` would have it, without a field that the server does not know."""
    for folder, kinds in (
        (DEPLOY, {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"}),
        (EVENTS, {"ClusterRole", "ClusterRoleBinding"}),
    ):
        objects = [read(folder / name) for name in read(folder / "kustomization.yaml")["resources"]]
        assert {one["kind"] for one in taken(api, objects)} == kinds


def test_a_field_that_is_not_there_would_be_refused(api: Api) -> None:
    """So what the other tests apply has none."""
    daemonset = read(DEPLOY / "daemonset.yaml")
    daemonset["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(ApiError, match="hostNetwrok"):
        taken(api, [daemonset])


@pytest.mark.parametrize("where", [SYSTEM, ELSEWHERE])
def test_the_whole_with_its_component_is_taken(api: Api, tmp_path: Path, where: str) -> None:
    """A kustomization of somebody's own adds the component, names the image and chooses the namespace: all of it follows."""
    if where == ELSEWHERE:
        api.create("namespaces", namespace(where))
    image = {"name": "netpol-agent", "newName": "registry.example/netpol", "newTag": "9"}
    objects = taken(api, kustomize(with_events(tmp_path, namespace=where, images=[image])))
    assert sorted(one["kind"] for one in objects) == [
        *("ClusterRole", "ClusterRole", "ClusterRoleBinding", "ClusterRoleBinding", "DaemonSet", "ServiceAccount")
    ]
    assert {one["metadata"]["namespace"] for one in objects if one["kind"] in NAMESPACED} == {where}
    for binding in (one for one in objects if one["kind"] == "ClusterRoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "netpol", "namespace": where}]
    made = container(of_kind("DaemonSet", objects))
    assert made["image"] == "registry.example/netpol:9"
    assert {"name": "NETPOL_EVENTS", "value": "true"} in made["env"]


def test_its_pods_are_taken(api: Api) -> None:
    """By every admission plugin that a server has by default; its priority is that of what a node cannot do without."""
    template = of_kind("DaemonSet", kustomize(DEPLOY))["spec"]["template"]
    metadata = {**template["metadata"], "name": "netpol-abcde", "namespace": SYSTEM}
    pod = api.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, dry_run=True)
    assert pod["spec"]["priority"] == 2000001000
    assert pod["spec"]["preemptionPolicy"] == "PreemptLowerPriority"


@pytest.mark.parametrize("example", EXAMPLES, ids=["image", "switches"])
def test_the_documented_kustomizations_are_taken(api: Api, tmp_path: Path, example: str) -> None:
    """Each one of docs/deploy.md, beside a clone; what it sets is something that the agent reads."""
    shutil.copytree(DEPLOY, tmp_path / "netpol" / "deploy")
    (tmp_path / "kustomization.yaml").write_text(example)
    where = yaml.safe_load(example).get("namespace", SYSTEM)
    api.apply(namespace(where))
    made = container(of_kind("DaemonSet", taken(api, kustomize(tmp_path))))
    assert made["image"] == f"registry.example/netpol-agent:{__version__}"
    settings = {one["name"]: one["value"] for one in made["env"] if "value" in one}
    assert settings.keys() <= variables(agent)
    # As options, whose values are checked; a switch has none.
    valued = [(option, name) for option in agent.params for name in variables_of(option) & settings.keys() if option.type.name != "boolean"]
    agent.make_context("agent", [*made["args"][1:], *(f"{option.opts[0]}={settings[name]}" for option, name in valued)])


# -- by themselves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [DEPLOY, EVENTS], ids=lambda folder: folder.name)
def test_kustomization_lists_what_is_there(folder: Path) -> None:
    """Every manifest, and no other."""
    listed = read(folder / "kustomization.yaml")
    names = [*listed["resources"], *(patch["path"] for patch in listed.get("patches", ()))]
    assert sorted([*names, "kustomization.yaml"]) == sorted(file.name for file in folder.glob("*.yaml"))


def test_selectors_and_bindings_fit() -> None:
    """Bindings name roles and an account that are there, and the DaemonSet selects its own pods."""
    objects = kustomize(DEPLOY) + [read(EVENTS / name) for name in ("clusterrole.yaml", "clusterrolebinding.yaml")]
    roles = {one["metadata"]["name"] for one in objects if one["kind"] == "ClusterRole"}
    assert {one["roleRef"]["name"] for one in objects if one["kind"] == "ClusterRoleBinding"} == roles
    daemonset, account = of_kind("DaemonSet", objects), of_kind("ServiceAccount", objects)
    assert daemonset["spec"]["selector"]["matchLabels"].items() <= daemonset["spec"]["template"]["metadata"]["labels"].items()
    assert daemonset["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_the_agent_knows_its_variables(tmp_path: Path) -> None:
    """Every one is read, and no argument goes before a variable that somebody's patch sets."""
    made = container(of_kind("DaemonSet", kustomize(with_events(tmp_path))))
    assert made["args"] == [agent.name]
    given = {one["name"]: one.get("value") for one in made["env"]}
    assert given.keys() <= variables(agent)
    assert (given["NETPOL_STATE"], given["NETPOL_LOG_FORMAT"]) == ("/var/lib/netpol/state", "json")


def test_probes_and_port_are_where_the_agent_listens() -> None:
    """On the loopback of the node, which the kubelet shares with a pod of the host's network."""
    daemonset = of_kind("DaemonSet", kustomize(DEPLOY))
    assert daemonset["spec"]["template"]["spec"]["hostNetwork"] is True
    made = container(daemonset)
    host, _, port = LISTEN.rpartition(":")
    for name, page in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert made[name]["httpGet"] == {"host": host, "port": int(port), "path": page}
    (declared,) = made["ports"]
    assert (declared["hostIP"], declared["containerPort"], declared["hostPort"]) == (host, int(port), int(port))


def test_it_may_little_and_stays_where_it_is_needed() -> None:
    """One capability and nothing to write to but the lock and the saved state; no taint, no eviction and no limit of time keeps it away."""
    daemonset = of_kind("DaemonSet", kustomize(DEPLOY))
    spec, made = daemonset["spec"]["template"]["spec"], container(daemonset)
    security = made["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert not security.get("privileged")
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    places = {one["name"]: (one["hostPath"]["path"], one["hostPath"]["type"]) for one in spec["volumes"]}
    assert {one["mountPath"]: places[one["name"]] for one in made["volumeMounts"]} == {
        "/run/xtables.lock": ("/run/xtables.lock", "FileOrCreate"),
        "/var/lib/netpol": ("/var/lib/netpol", "DirectoryOrCreate"),
    }
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"
    assert made["resources"]["requests"].keys() == {"cpu", "memory"}
    assert made["resources"]["limits"].keys() == {"memory"}
    # More than the two seconds in which it ends.
    assert spec["terminationGracePeriodSeconds"] > END


def test_the_documentation_names_a_node_s_pod_by_its_label() -> None:
    """`ds/netpol` would be the pod of any node."""
    pages = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert not re.search(r"(exec|logs) (ds|daemonset)/netpol", pages)
    labels = of_kind("DaemonSet", kustomize(DEPLOY))["spec"]["template"]["metadata"]["labels"].items()
    selectors = set(re.findall(r"kubectl .*\b(?:get pods|logs) -l (\S+)", pages))
    assert selectors == {f"{name}={value}" for name, value in labels}
