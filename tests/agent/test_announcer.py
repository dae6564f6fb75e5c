"""Events on policies that cannot be understood, on a real API server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from netpol.agent import announcer as announcer_module
from netpol.agent.announcer import MESSAGE, TRIES, Announcer, event
from netpol.errors import InvalidObject
from netpol.kube.client import Client, configured
from netpol.kube.events import Put
from netpol.model import EVERYTHING, Namespace, Pod, Policy
from tests.agent.process import until
from tests.kube.fake import FakeServer, bare, status
from tests.kube.servers import ApiServer, Json, namespace, path, policy

WHERE = "announced"
SPEC = {"podSelector": {}, "policyTypes": ["Ingress"]}
BROKEN = InvalidObject("NetworkPolicy announced/bad", "spec.ingress[0].from[0]", "says nothing that this version knows")
WORSE = InvalidObject("NetworkPolicy announced/bad", "spec.podSelector", "cannot be read")


class Scene:
    """A namespace of the server, and a client of it."""

    def __init__(self, server: ApiServer, client: Client) -> None:
        self.api, self.client, self.complaints = server.api(), client, list[str]()

    def announcer(self) -> Announcer:
        return Announcer(self.client, self.complaints.append, pause=0.01)

    def events(self) -> list[Json]:
        return self.api.items("events", WHERE)


def put(name: str, *errors: InvalidObject) -> Put:
    return Put(Policy(WHERE, name, EVERYTHING, (), None), errors)


@pytest.fixture
def scene(apiserver: ApiServer, tmp_path: Path) -> Iterator[Scene]:
    api = apiserver.api()
    api.apply(namespace(WHERE))
    client = Client(configured(str(apiserver.kubeconfig(tmp_path / "kubeconfig"))))
    yield Scene(apiserver, client)
    client.close()
    for kind in ("events", "networkpolicies"):
        api.request("DELETE", path(kind, WHERE))


def test_an_event_stands_on_the_policy(scene: Scene) -> None:
    """With its uid, so that `kubectl describe` shows it, what is wrong, and where."""
    uid = scene.api.create("networkpolicies", policy(WHERE, "bad", SPEC))["metadata"]["uid"]
    announcer = scene.announcer()
    announcer.tell(put("bad", BROKEN, WORSE))
    until(scene.events)
    announcer.close(20)
    (found,) = scene.events()
    assert (found["involvedObject"]["uid"], found["involvedObject"]["name"], found["type"]) == (uid, "bad", "Warning")
    assert "spec.ingress[0].from[0]: says nothing" in found["message"]
    assert "spec.podSelector: cannot be read" in found["message"]


def test_more_policies_than_can_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait are told of as they are now; of others it is said, once, that they are not."""
    monkeypatch.setattr(announcer_module, "WAITING", 2)
    complaints: list[str] = []
    with FakeServer() as server:
        client = Client(configured(server.kubeconfig(tmp_path)))
        announcer = Announcer(client, complaints.append, pause=0.01)
        for one in (put("a", BROKEN), put("b", BROKEN), put("c", BROKEN), put("b", WORSE), put("d", BROKEN)):
            announcer.tell(one)
        assert announcer._waiting == {(WHERE, "a"): (BROKEN,), (WHERE, "b"): (WORSE,)}
        announcer.tell(put("b"))
        announcer.tell(put("d", BROKEN))
        assert list(announcer._waiting) == [(WHERE, "a"), (WHERE, "d")]
        client.close()
        announcer.close(20)
    assert complaints[:1] == ["more than 2 policies wait for Events: others get none (said once)"]
    assert len([words for words in complaints if "wait for Events" in words]) == 1


def test_once_however_many_say_so(scene: Scene) -> None:
    """Two agents, and one that starts again, make one Event; other errors make another one, and so does a policy that is another object."""
    scene.api.create("networkpolicies", policy(WHERE, "bad", SPEC))
    for errors, number in (([BROKEN], 1), ([BROKEN], 1), ([WORSE], 2), ([BROKEN], 2)):
        announcer = scene.announcer()
        announcer.tell(put("bad", *errors))
        until(lambda: not announcer._waiting)  # noqa: B023 -- it is waited for here
        announcer.close(20)
        assert len(scene.events()) == number
    scene.api.delete("networkpolicies", "bad", WHERE)
    scene.api.create("networkpolicies", policy(WHERE, "bad", SPEC))
    announcer = scene.announcer()
    announcer.tell(put("bad", BROKEN))
    until(lambda: len(scene.events()) == 3)
    announcer.close(20)
    assert scene.complaints == []


def test_what_is_gone_or_no_policy_is_not_announced(scene: Scene) -> None:
    """Nothing is written, and nothing complained of; what comes next is."""
    scene.api.create("networkpolicies", policy(WHERE, "bad", SPEC))
    announcer = scene.announcer()
    announcer.tell(put("gone", BROKEN))
    announcer.tell(Put(Pod(WHERE, "pod"), (BROKEN,)))
    announcer.tell(Put(Namespace(WHERE), (BROKEN,)))
    announcer.tell(put("bad", BROKEN))
    until(scene.events)
    announcer.close(20)
    assert [found["involvedObject"]["name"] for found in scene.events()] == ["bad"]
    assert scene.complaints == []


def test_a_namespace_that_ends_takes_no_events(scene: Scene) -> None:
    """The server says so with a 403, and there is nothing to tell."""
    scene.api.apply(namespace("ending"))
    scene.api.create("networkpolicies", policy("ending", "bad", SPEC))
    scene.api.delete("namespaces", "ending")
    announcer = scene.announcer()
    announcer.tell(Put(Policy("ending", "bad", EVERYTHING, (), None), (BROKEN,)))
    until(lambda: not announcer._waiting)
    announcer.close(20)
    # What a cluster's controllers do: nothing of it is to stay.
    scene.api.delete("networkpolicies", "bad", "ending")
    scene.api.request("PUT", f"{path('namespaces')}/ending/finalize", namespace("ending"))
    assert scene.complaints == []


class Heard:
    """What an announcer complains of, and a way to wait for the next of it."""

    def __init__(self) -> None:
        self.one = threading.Semaphore(0)
        self.complaints: list[str] = []

    def complain(self, words: str) -> None:
        self.complaints.append(words)
        self.one.release()


def test_a_right_that_is_missing_is_said_once(tmp_path: Path) -> None:
    """After a few tries; the next policy has tries of its own."""
    with FakeServer() as server:
        server.answer(
            f"/apis/networking.k8s.io/v1/namespaces/{WHERE}/networkpolicies", *[status(403, "Forbidden", "no") for _ in range(2 * TRIES)]
        )
        client = Client(configured(server.kubeconfig(tmp_path)))
        heard = Heard()
        announcer = Announcer(client, heard.complain, pause=0.001)
        announcer.tell(put("bad", BROKEN))
        assert heard.one.acquire(timeout=30)
        announcer.tell(put("worse", BROKEN))
        assert heard.one.acquire(timeout=30)
        announcer.close(20)
        client.close()
        assert heard.complaints == [
            f"an Event on NetworkPolicy {WHERE}/{name} could not be written: HTTP status 403 for the policy" for name in ("bad", "worse")
        ]
        assert len(server.asked) == 2 * TRIES


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param({"details": {"causes": [{"reason": "Other"}, {"reason": "NamespaceTerminating"}]}}, False, id="the namespace ends"),
        pytest.param({"details": {"causes": [{"reason": "Other"}]}}, True, id="another cause"),
        pytest.param({"details": {}}, True, id="no cause"),
        pytest.param({"message": "NamespaceTerminating"}, True, id="a right that is missing"),
        pytest.param({"details": [1]}, True, id="no status"),
    ],
)
def test_a_refused_event_is_a_failure_unless_the_namespace_ends(tmp_path: Path, body: Json, said: bool) -> None:
    """One try where it ends; else all of them, and an error."""
    tries = TRIES if said else 1
    with FakeServer() as server:
        found = bare(200, b'{"items": [{"metadata": {"uid": "u"}}]}')
        server.answer(f"/apis/networking.k8s.io/v1/namespaces/{WHERE}/networkpolicies", *[found] * tries)
        server.answer(f"/api/v1/namespaces/{WHERE}/events", *[bare(403, json.dumps(body).encode())] * tries)
        client = Client(configured(server.kubeconfig(tmp_path)))
        heard = Heard()
        announcer = Announcer(client, heard.complain, pause=0.001)
        announcer.tell(put("bad", BROKEN))
        until(lambda: not announcer._waiting)
        announcer.close(20)
        client.close()
        assert heard.complaints == [f"an Event on NetworkPolicy {WHERE}/bad could not be written: HTTP status 403"] * said
        assert len(server.asked) == 2 * tries


def test_an_answer_that_nests_without_end_is_a_failure(tmp_path: Path) -> None:
    """It is complained of like any other, and the next policy is announced."""
    with FakeServer() as server:
        where = f"/apis/networking.k8s.io/v1/namespaces/{WHERE}/networkpolicies"
        server.answer(
            where, *[bare(200, b'{"items":[],"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}")] * TRIES, status(404, "NotFound", "no")
        )
        client = Client(configured(server.kubeconfig(tmp_path)))
        heard = Heard()
        announcer = Announcer(client, heard.complain, pause=0.001)
        announcer.tell(put("bad", BROKEN))
        assert heard.one.acquire(timeout=30)
        announcer.tell(put("next", BROKEN))
        until(lambda: len(server.asked) > TRIES)
        announcer.close(20)
        client.close()
        assert f"NetworkPolicy {WHERE}/bad could not be written: " in heard.complaints[0]


def test_names_and_messages_have_limits() -> None:
    """The API server's: 253 characters and 1,024; a name that is cut ends with a letter or a digit before the hash."""
    errors = tuple(InvalidObject("o", f"f{i}", "r" * 5000) for i in range(3))
    made = event("x", "a" * 229 + "." + "b" * 23, "uid", errors, datetime(2026, 1, 2, tzinfo=timezone.utc))
    metadata = made["metadata"]
    assert isinstance(metadata, dict)
    assert re.fullmatch(r"a{229}\.[0-9a-f]{16}", metadata["name"])
    assert len(str(made["message"])) == MESSAGE
    assert made["firstTimestamp"] == "2026-01-02T00:00:00Z"
