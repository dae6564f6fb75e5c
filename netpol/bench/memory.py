"""What a cluster with all its indexes takes in memory, measured in a process of its own: in one that did other things before, freed
memory would be used again and not be seen.

`python -m netpol.bench.memory PODS POLICIES LOCAL [own]` prints MiB and seconds.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator

from netpol.bench.changes import NODE, Sizes, namespaces_of, pod_of, policies_of
from netpol.bench.measure import BenchError
from netpol.bench.peers import output
from netpol.bench.report import resident
from netpol.bench.result import Result
from netpol.model import PROTOCOL_NAMES, Object, Pod, format_address
from netpol.policy.cluster import Cluster
from netpol.policy.decode import decode_pod
from netpol.rules.compile import NodeState


def footprint(row: str, pods: int, policies: int, local: int, goal: float, own: bool = False) -> Result:
    """The row of such a cluster and of one node's wanted state: `ms` is the time to build it all, `goal` in MiB.

    own -- whether each pod has a label value of its own.
    """
    printed = output(sys.executable, "-m", __name__, str(pods), str(policies), str(local), *(["own"] if own else []))
    mebibytes, seconds = map(float, printed.split())
    return Result(row, round(seconds * 1000, 1), {}, 0, 1, round(mebibytes, 1), goal)


def main(sizes: Sizes) -> str:
    """Builds it here; the text of the two figures."""
    gc.collect()
    before, start = resident(), time.perf_counter()
    cluster = Cluster()
    state = NodeState(cluster, NODE)
    for item in _as_told(sizes):
        state.follow(cluster.put(item))
    sets = len(state.wanted().sets)
    state.applied()
    seconds = time.perf_counter() - start
    gc.collect()
    if not sets or sum(1 for _ in cluster.all_pods()) != sizes.pods:
        raise BenchError("not all of it is there")
    return f"{resident() - before} {seconds}"


def _as_told(sizes: Sizes) -> Iterator[Object]:
    """The objects as an agent gets them: of the pods each from bytes, by namespace and name; policies are few, and soon all there."""
    yield from namespaces_of(sizes)
    yield from policies_of(sizes)
    for namespace in range(sizes.namespaces):
        for pod in sorted((pod_of(sizes, number) for number in range(namespace, sizes.pods, sizes.namespaces)), key=str):
            read = decode_pod(_as_bytes(pod)).value
            if read != pod:
                raise BenchError(f"{pod} is not read as it was written")
            yield read


def _as_bytes(pod: Pod) -> bytes:
    ports = [{"name": port.name, "protocol": PROTOCOL_NAMES[port.protocol], "containerPort": port.port} for port in pod.ports]
    value = {
        "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": dict(pod.labels)},
        "spec": {"nodeName": pod.node, "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format_address(address)} for address in pod.addresses]},
    }
    return json.dumps(value).encode()


if __name__ == "__main__":
    pods, policies, local = map(int, sys.argv[1:4])
    print(main(Sizes(pods, policies, local, sys.argv[4:] == ["own"])))
