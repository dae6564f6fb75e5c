"""The rights that deploy/ gives, on a real API server: enough to follow every kind by either way, and none that could be left out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from netpol.agent.announcer import Announcer
from netpol.errors import InvalidObject
from netpol.kube.client import Client, configured
from netpol.kube.events import Put
from netpol.kube.reflector import Reflector
from netpol.kube.sources import Sources, for_node
from netpol.model import EVERYTHING, Namespace, Node, Pod, Policy
from tests.agent.process import until
from tests.deploy.manifests import DEPLOY, EVENTS, read
from tests.kube.servers import ApiServer, Json, namespace, node, pod, policy, programs
from tests.kube.test_followed import Wire, following

NODE, WHERE = "rights-node", "deploy-rights"
NAMES = (f"deploy-rights-{number}" for number in itertools.count())
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Right(NamedTuple):
    """One verb on one kind: what RBAC's rules come to."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb}-{self.resource}"


def rights(file: Path) -> list[Right]:
    return [
        Right(group, resource, verb)
        for rule in read(file)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


AGENT, ANNOUNCER = rights(DEPLOY / "clusterrole.yaml"), rights(EVENTS / "clusterrole.yaml")


@pytest.fixture(scope="module", params=["WatchList", "list"])
def server(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    """A server that begins a watch with all objects, and one that does not know how."""
    if request.param == "WatchList":
        yield request.getfixturevalue("apiserver")
        return
    with ApiServer(programs(), ["--feature-gates=WatchList=false"]) as own:
        yield own


@contextmanager
def granted(server: ApiServer, given: list[Right]) -> Iterator[str]:
    """The token of a ServiceAccount that has just these rights. The server's authorizer knows them by then."""
    name = next(NAMES)
    rules = [{"apiGroups": [one.group], "resources": [one.resource], "verbs": [one.verb]} for one in given]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": WHERE}
    with closing(server.api()) as api:
        if WHERE not in {item["metadata"]["name"] for item in api.items("namespaces")}:
            api.create("namespaces", namespace(WHERE))
            api.create("nodes", node(NODE, "192.0.2.77"))
        api.create("serviceaccounts", {"metadata": {"name": name, "namespace": WHERE}})
        api.create("clusterroles", {"metadata": {"name": name}, "rules": rules})
        api.create("clusterrolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]})
        token = api.token(WHERE, name)
    try:
        with closing(server.api(token)) as user:
            # They are one object's, so one that is known says that all are.
            asked = {"group": given[0].group, "resource": given[0].resource, "verb": given[0].verb}
            review: Json = {"spec": {"resourceAttributes": asked}}
            until(lambda: user.request("POST", REVIEW, review)["status"]["allowed"])
        yield token
    finally:
        with closing(server.api()) as api:
            for kind, where in (("clusterrolebindings", ""), ("clusterroles", ""), ("serviceaccounts", WHERE)):
                api.delete(kind, name, where)


def forbidden(reflector: Reflector) -> str | None:
    """The server's words, where it refuses now what this kind needs."""
    trouble = reflector.trouble
    return trouble.message if trouble is not None and trouble.reason == "forbidden" else None


def goes_on(reflector: Reflector) -> bool:
    """Whether this kind is complete, and is watched again after the server was looked at."""
    return reflector.synced and reflector.phase == "watch" and reflector.figures.requests["look"] > 0


def cut(wire: Wire, sources: Sources) -> None:
    """Breaks off every watch, once each kind has had its chance to be complete: again where one had not begun yet."""
    until(lambda: all(one.synced or forbidden(one) for one in sources.reflectors))

    def looked() -> bool:
        return all(one.figures.requests["look"] or forbidden(one) for one in sources.reflectors)

    def broke_off() -> bool:
        wire.pull()
        wire.plug()
        end = time.monotonic() + 1
        while not looked() and time.monotonic() < end:
            time.sleep(0.01)
        return looked()

    until(broke_off)


def test_the_role_is_enough(server: ApiServer, tmp_path: Path) -> None:
    """Every kind is followed, by WatchList or by lists, and goes on after the connection broke off; nothing that is asked is forbidden."""
    wire = Wire(server.port)
    with granted(server, AGENT) as token:
        with following(server, tmp_path, for_node(NODE), token=token, port=wire.port) as (store, sources):
            cut(wire, sources)
            until(lambda: all(goes_on(one) for one in sources.reflectors), lambda: [one.trouble for one in sources.reflectors])
            name = next(NAMES)
            with closing(server.api()) as api:
                api.patch("nodes", NODE, "", {"spec": {"podCIDR": "10.99.0.0/24", "podCIDRs": ["10.99.0.0/24"]}})
                api.create("namespaces", namespace(name))
                api.create("pods", pod(name, name, "10.99.0.1", node=NODE))
                api.create("networkpolicies", policy(name, name, {"podSelector": {}}))
                store.until(lambda: {(Namespace, "", name), (Pod, name, name), (Policy, name, name)} <= store.objects.keys())
                store.until(lambda: getattr(store.objects[Node, "", NODE], "pod_cidrs", ()) != ())
                api.delete("pods", name, name)
                api.delete("networkpolicies", name, name)
            assert "forbidden" not in store.reasons
            asked = set().union(*(one.figures.requests for one in sources.reflectors))
            assert asked - {"list"} == {"sync", "look", "watch"}
        wire.pull()


@pytest.mark.parametrize("taken", AGENT, ids=str)
def test_no_right_of_the_role_is_spare(server: ApiServer, tmp_path: Path, taken: Right) -> None:
    """Without it one kind is refused, at its start or after a connection broke off, and says which right is missing; the others go on."""
    wire = Wire(server.port)
    with granted(server, [one for one in AGENT if one != taken]) as token:
        with following(server, tmp_path, for_node(NODE), token=token, port=wire.port) as (_, sources):
            (kind,) = [one for one in sources.reflectors if one.resource.path.endswith(f"/{taken.resource}")]
            others = [one for one in sources.reflectors if one is not kind]
            cut(wire, sources)
            until(lambda: all(goes_on(one) for one in others), lambda: [one.trouble for one in others])
            until(lambda: forbidden(kind), lambda: kind.trouble)
            assert f'cannot {taken.verb} resource "{taken.resource}" in API group "{taken.group}"' in str(forbidden(kind))
        wire.pull()


@pytest.mark.parametrize("taken", [None, *ANNOUNCER], ids=str)
def test_the_rights_for_events(apiserver: ApiServer, tmp_path: Path, taken: Right | None) -> None:
    """With what the component adds an Event is written on a policy; without any one of that the agent complains, and goes on."""
    complaints: list[str] = []
    name = f"bad-{taken}".lower()
    with granted(apiserver, AGENT + [one for one in ANNOUNCER if one != taken]) as token, closing(apiserver.api()) as api:

        def written() -> list[Json]:
            return [item for item in api.items("events", WHERE) if item["involvedObject"]["name"] == name]

        api.create("networkpolicies", policy(WHERE, name, {"podSelector": {}}))
        client = Client(configured(str(apiserver.kubeconfig(tmp_path / "kubeconfig", token))))
        announcer = Announcer(client, complaints.append, pause=0.01)
        announcer.tell(Put(Policy(WHERE, name, EVERYTHING, (), None), (InvalidObject(f"NetworkPolicy {name}", "spec", "is bad"),)))
        until(lambda: complaints or written())
        announcer.close(20)
        client.close()
        assert (len(written()), len(complaints)) == ((1, 0) if taken is None else (0, 1))
        assert all("403" in words for words in complaints)
