"""What a cluster with all its indexes takes in memory, measured in a process of its own: in one that did other things before, freed
memory would be used again and not be seen.

`python -m netpol.bench.memory PODS POLICIES LOCAL` prints MiB and seconds.
"""

from __future__ import annotations

import gc
import sys
import time

from netpol.bench.changes import NODE, Sizes, objects
from netpol.bench.measure import BenchError
from netpol.bench.peers import output
from netpol.bench.report import resident
from netpol.bench.result import Result
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState


def footprint(row: str, pods: int, policies: int, local: int, goal: float) -> Result:
    """The row of such a cluster and of one node's wanted state: `ms` is the time to build it all, `goal` in MiB."""
    printed = output(sys.executable, "-m", __name__, str(pods), str(policies), str(local))
    mebibytes, seconds = map(float, printed.split())
    return Result(row, round(seconds * 1000, 1), {}, 0, 1, round(mebibytes, 1), goal)


def main(pods: int, policies: int, local: int) -> str:
    """Builds it here; the text of the two figures."""
    sizes = Sizes(pods, policies, local)
    gc.collect()
    before, start = resident(), time.perf_counter()
    cluster = Cluster()
    for item in objects(sizes):
        cluster.put(item)
    state = NodeState(cluster, NODE)
    sets = len(state.wanted().sets)
    state.applied()
    seconds = time.perf_counter() - start
    gc.collect()
    if not sets or sum(1 for _ in cluster.all_pods()) != pods:
        raise BenchError("not all of it is there")
    return f"{resident() - before} {seconds}"


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
