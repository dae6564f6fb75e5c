"""The row about memory: of a small cluster, in a process of its own; and a cluster that is not built is found out.

And what a pod and a policy may take, to the byte nearly: what an agent has for each of them is what it grows by.
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from netpol.bench.measure import BenchError
from netpol.bench.memory import footprint
from netpol.bench.report import from_json, run_of, table, to_json
from netpol.model import EVERYTHING, Namespace, Query, Requirement, Selector
from netpol.policy.cluster import Cluster
from netpol.policy.decode import Decoded, decode_pod, decode_policy


def test_a_small_cluster_has_a_footprint() -> None:
    """It takes some memory, the row goes through the file unchanged, and the table says whether the goal is met."""
    row = footprint("small", 2000, 20, 10, 85.0)
    assert row.mebibytes is not None
    assert 0 < row.mebibytes < 85
    assert from_json(to_json(run_of([row]))).rows == (row,)
    text = table([row], 120, False)
    assert f"takes {row.mebibytes:.2f} MiB" in text
    assert "<= 85 MiB met" in text
    missed = footprint("missed", 2000, 20, 10, 0.001, own=True)
    assert "MiB missed" in table([missed], 120, False)


def test_a_cluster_that_needs_no_rules_is_no_figure(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a policy for its pods the node has no sets: the child says so, and there is no row."""
    with pytest.raises(BenchError, match=r"netpol\.bench\.memory 100 0 10: exit code 1"):
        footprint("no policies", 100, 0, 10, 85.0)
    assert "not all of it is there" in capfd.readouterr().err


PODS, POLICIES, SPACES, APPS = 2000, 500, 20, 20


def each(data: Iterable[bytes], decode: Callable[[bytes], Decoded[Any]], cluster: Cluster) -> float:
    """Bytes that Python has allocated and still holds for each object, from its bytes to the indexes."""
    objects = list(data)
    for one in objects:  # what the decoder keeps of the last objects is there already then
        decode(one)
    gc.collect()
    tracemalloc.start()
    try:
        for one in objects:
            value = decode(one).value
            assert value is not None
            cluster.put(value)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(objects)
    finally:
        tracemalloc.stop()


def pods_as_bytes(own: bool) -> Iterable[bytes]:
    """As a server sorts them: by namespace and name."""
    for number in range(PODS):
        namespace, app = number * SPACES // PODS, number % APPS
        labels = {"app": f"app-{app}", "tier": f"tier-{app % 3}", "team": f"team-{namespace}", "version": f"v{number % 3 if own else 1}"}
        labels["pod-template-hash"] = f"{number if own else app:09x}"
        made: dict[str, Any] = {
            "metadata": {"namespace": f"ns-{namespace:03}", "name": f"app-{app}-{number:08x}", "labels": labels},
            "spec": {"nodeName": f"node-{number % 97}", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": f"10.1.{number >> 8}.{number & 255}"}]},
        }
        yield json.dumps(made).encode()


def policies_as_bytes() -> Iterable[bytes]:
    for number in range(POLICIES):
        namespace, app = number * SPACES // POLICIES, number % APPS
        peers = [{"podSelector": {"matchLabels": {"app": f"app-{(app + 1) % APPS}"}}}]
        made: dict[str, Any] = {
            "metadata": {"namespace": f"ns-{namespace:03}", "name": f"policy-{number:05}"},
            "spec": {
                "podSelector": {"matchLabels": {"app": f"app-{app}"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": 8080}, {"protocol": "TCP", "port": 443}]}],
            },
        }
        yield json.dumps(made).encode()


@pytest.mark.parametrize(("own", "limit"), [pytest.param(False, 430, id="workloads"), pytest.param(True, 620, id="own labels")])
def test_what_a_pod_takes(own: bool, limit: int) -> None:
    """In the cluster and its indexes, when it has come as bytes: a label that is its own costs that label, and not a profile."""
    cluster = Cluster()
    for namespace in range(SPACES):
        cluster.put(Namespace(f"ns-{namespace:03}", (("team", f"team-{namespace}"),)))
    for key in ("app", "tier"):
        cluster.index.register(Query("", EVERYTHING, Selector((Requirement(key, "Exists"),))))
    taken = each(pods_as_bytes(own), decode_pod, cluster)
    assert len(list(cluster.all_pods())) == PODS
    assert limit / 2 < taken <= limit, taken


def test_what_a_policy_takes() -> None:
    """Selectors, ports and rules that other policies have are not kept once more."""
    cluster = Cluster()
    taken = each(policies_as_bytes(), decode_policy, cluster)
    assert len(cluster.policies) == POLICIES
    assert 200 < taken <= 280, taken
