"""The conformance cases that others wrote: read from the folder that NETPOL_CONFORMANCE names, as cluster objects and expectations.

They are not part of the repository: without them the tests that need them skip, saying so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from netpol.model import PROTOCOL_NUMBERS, Namespace, Object, Pod, Policy
from netpol.policy.cluster import Cluster
from netpol.policy.decode import Decoded, decode_namespace, decode_pod, decode_policy

NETWORKING = "networking.k8s.io/v1"
Case = dict[str, Any]
Step = dict[str, Any]


def folder() -> Path:
    """Where the data is; skips (in CI: fails) the calling test without it."""
    path = os.environ.get("NETPOL_CONFORMANCE")
    if path and (Path(path) / "states.json").exists():
        return Path(path)
    sentence = "needs the conformance data: set NETPOL_CONFORMANCE to its folder"
    if os.environ.get("NETPOL_REQUIRE_ALL") == "1" and path:
        pytest.fail(sentence)
    pytest.skip(sentence)


@cache
def cases() -> tuple[Case, ...]:
    """All cases of plain NetworkPolicy."""
    found = []
    for name in ("cyclonus.jsonl", "kubernetes-e2e.jsonl"):
        for line in (folder() / name).read_text().splitlines():
            case = json.loads(line)
            if set(case["apis"]) <= {NETWORKING}:
                found.append(case)
    return tuple(found)


@cache
def states() -> dict[str, Any]:
    return dict(json.loads((folder() / "states.json").read_text()))


class Cell(NamedTuple):
    """One expected connection. `ingress` and `egress` are None where the suite does not tell the sides apart."""

    source: Pod
    destination: Pod
    protocol: int
    port: int
    allowed: bool
    ingress: bool | None
    egress: bool | None


def objects(step_state: str, policies: list[Any]) -> list[Object]:
    """The cluster of a step, whole."""
    state = states()[step_state]
    found: list[Object] = [_value(decode_namespace(msgspec.json.encode(item))) for item in state["namespaces"]]
    found += [_value(decode_pod(msgspec.json.encode(item))) for item in state["pods"]]
    found += [_value(decode_policy(msgspec.json.encode(item))) for item in policies]
    return found


def cells(step: Step, cluster: Cluster) -> Iterator[Cell]:
    """Every asserted cell of a step but the diagonal, where implementations differ."""
    pods = [_pod(cluster, name) for name in step["expected"]["pods"]]
    for table in step["expected"]["tables"]:
        for i, source in enumerate(pods):
            for j, destination in enumerate(pods):
                mark = table["combined"][i][j]
                if i != j and mark != "?":
                    sides = [table[side][i][j] == "." if side in table else None for side in ("ingress", "egress")]
                    yield Cell(source, destination, PROTOCOL_NUMBERS[table["protocol"]], table["port"], mark == ".", *sides)


def play(step: Step) -> Iterator[tuple[Object | None, type[Object], str, str]]:
    """The actions of a step as events: (object, kind, namespace, name), the object None where it goes."""
    state = {
        kind: {(p["metadata"].get("namespace", ""), p["metadata"]["name"]): p for p in states()[step["state"]][kind]}
        for kind in ("pods", "namespaces")
    }
    for action in step["actions"]:
        what, namespace = action["action"], action.get("namespace", "")
        if what in ("create_policy", "update_policy"):
            policy = _value(decode_policy(msgspec.json.encode(action["policy"])))
            yield policy, Policy, policy.namespace, policy.name
        elif what == "delete_policy":
            yield None, Policy, namespace, action["name"]
        elif what in ("create_namespace", "set_namespace_labels"):
            yield _value(decode_namespace(msgspec.json.encode(state["namespaces"]["", namespace]))), Namespace, "", namespace
        elif what in ("create_pod", "set_pod_labels"):
            yield _value(decode_pod(msgspec.json.encode(state["pods"][namespace, action["pod"]]))), Pod, namespace, action["pod"]
        elif what == "delete_pod":
            yield None, Pod, namespace, action["pod"]
        elif what == "delete_namespace":
            yield None, Namespace, "", namespace
        else:
            raise ValueError(what)


def _pod(cluster: Cluster, name: str) -> Pod:
    namespace, _, pod = name.partition("/")
    found = cluster.pod(namespace, pod)
    assert found is not None, name
    return found


def _value(decoded: Decoded[Any]) -> Any:
    assert not decoded.errors, decoded.errors
    return decoded.value
