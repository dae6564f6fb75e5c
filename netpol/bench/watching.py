"""What an object of the API server costs until it is an event: the lines of a watch, and the pages of a list, beside other readers.

All read the same bytes, in the same pieces: pods of about 9 KB, as a kubelet leaves them. Ours reads, decodes, keeps the name and makes
the event; the peers stop at dicts, or at the kubernetes package's models where they say so. No network is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.kube.events import Put
from netpol.kube.reflector import PAGE, PODS, Reflector

WATCH, MODELS, JSON = "kubernetes Watch, dicts", "kubernetes models", "json"
PIECE = 16 << 10  # about what one read of a socket brings


def watched(row: str, pods: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """An event of a watch, from bytes."""
    return Case(row, pairs, partial(_watched, pods), goals)


def listed(row: str, pods: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A pod of a list, from the bytes of its pages."""
    return Case(row, pairs, partial(_listed, pods), goals)


@contextmanager
def _watched(pods: int, _: Path) -> Iterator[Contest]:
    lines = [b'{"type":"ADDED","object":' + pod(number) + b"}\n" for number in range(pods)]
    data = b"".join(lines)
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    bookmark = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}}\n'

    def ours() -> int:
        reflector = _reflector()
        reflector.receive(bookmark)
        return sum(len(reflector.receive(piece).events) for piece in pieces)

    def watch() -> int:
        from kubernetes.watch import Watch

        found = 0
        for event in Watch().stream(lambda **_: _Response(pieces), deserialize=False, timeout_seconds=1):
            found += event["type"] == "ADDED"
        return found

    peers = {WATCH: watch, JSON: lambda: sum(json.loads(line)["type"] == "ADDED" for line in data.splitlines())}
    yield _contest(ours, peers, pods)


@contextmanager
def _listed(pods: int, _: Path) -> Iterator[Contest]:
    from kubernetes.client import ApiClient, Configuration

    client = ApiClient(Configuration())
    pages = []
    for start in range(0, pods, PAGE):
        items = b",".join(pod(number) for number in range(start, min(start + PAGE, pods)))
        more = b"after-%d" % start if start + PAGE < pods else b""
        pages.append(
            b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1","continue":"%b"},"items":[%b]}' % (more, items)
        )

    def ours() -> int:
        reflector = _reflector()
        return sum(isinstance(event, Put) for page in pages for event in reflector.receive_page(page).events)

    def models() -> int:
        return sum(len(client.deserialize(page.decode(), "V1PodList", "application/json").items) for page in pages)

    peers = {MODELS: models, JSON: lambda: sum(len(json.loads(page)["items"]) for page in pages)}
    yield _contest(ours, peers, pods)


def _reflector() -> Reflector:
    reflector = Reflector(PODS, clock=lambda: 0.0, random=lambda: 0.0)
    reflector.next()
    return reflector


class _Response:
    """What the kubernetes package reads of an answer."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def stream(self, **_: object) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        pass

    def release_conn(self) -> None:
        pass


def _contest(ours: Callable[[], int], peers: Mapping[str, Callable[[], int]], pods: int) -> Contest:
    def verify(found: object) -> None:
        if found != pods:
            raise BenchError(f"{found} pods were read, not {pods}")

    def contender(run: Callable[[], int]) -> Contender:
        return Contender(lambda: None, run, verify)

    return Contest(contender(ours), {name: contender(run) for name, run in peers.items()}, lambda: 0, pods)


def pod(number: int) -> bytes:
    """A pod as an API server hands it out: of its 9 KB, policy looks at a few hundred bytes."""
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    fields: dict[str, Any] = {"f:metadata": {"f:labels": {f"f:label-{i}": {} for i in range(60)}}}
    managed = {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
    labels = {"app": f"app-{number % 100}", "tier": "web", "pod-template-hash": "5d4f8c7b9", "version": "v1"}
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "0b3a", "controller": True}
    environment = [{"name": f"SETTING_{i}", "value": "a value of some length"} for i in range(40)]
    ports = [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"} for kind in ("Initialized", "Ready")]
    value: dict[str, Any] = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": f"web-{number}-x7k2p",
            "namespace": f"team-{number % 50}",
            "uid": f"0000-{number}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": labels,
            "ownerReferences": [owner],
            "managedFields": [managed] * 5,
        },
        "spec": {
            "nodeName": f"node-{number % 500}",
            "containers": [{"name": "main", "image": "registry/web:1", "env": environment, "ports": ports}],
        },
        "status": {"phase": "Running", "conditions": conditions, "hostIP": "10.0.0.1", "podIP": address, "podIPs": [{"ip": address}]},
    }
    return json.dumps(value, separators=(",", ":")).encode()
