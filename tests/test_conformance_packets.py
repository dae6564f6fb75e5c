"""The conformance cases of other projects, with real packets: each step's policies in the kernel, every asserted cell probed at once.

Cases whose pods have the same addresses share a lab. A probe that the firewall drops is told by the firewall's own counter, so a
round is over as soon as answers and drops account for every probe. SCTP goes through raw sockets, for the kernel has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from netpol.kernel.apply import Kernel
from netpol.lab import Host, Lab, Probe
from netpol.model import Pod
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState
from netpol.rules.diff import diff
from netpol.rules.ruleset import Ruleset
from tests import conformance

NODE = ""


def labs() -> Iterator[tuple[tuple[Host, ...], list[conformance.Case]]]:
    """The hosts of each lab, and the cases that run in it."""
    groups: dict[tuple[Host, ...], list[conformance.Case]] = defaultdict(list)
    for case in conformance.cases():
        pods: dict[str, Pod] = {}
        for step in case["steps"]:
            for item in conformance.objects(step["state"], []):
                if isinstance(item, Pod):
                    pods[str(item)] = item
        hosts = (
            Host(name, pod.addresses, tuple(sorted({(port.protocol, port.port) for port in pod.ports})))
            for name, pod in sorted(pods.items())
        )
        groups[tuple(hosts)].append(case)
    yield from groups.items()


def drops(lab: Lab, kernel: Kernel) -> int:
    """Packets that NETPOL-DENY dropped."""
    with lab.entered():
        return kernel.dropped()


def run_case(lab: Lab, kernel: Kernel, case: conformance.Case) -> int:
    """Programs each step after the one before, as an agent would, and probes it; how many cells there were."""
    cluster = Cluster()
    state = NodeState(cluster, NODE)
    for item in conformance.objects(case["initial"], []):
        state.follow(cluster.put(item))
    with lab.entered():
        kernel.apply(diff(state.wanted(), kernel.read()))
    state.applied()
    count = 0
    for number, step in enumerate(case["steps"]):
        for event, kind, namespace, name in conformance.play(step):
            state.follow(cluster.put(event) if event is not None else cluster.drop(kind, name, namespace))
        with lab.entered():
            kernel.apply(diff(*state.pending()))
        state.applied()
        cells = list(conformance.cells(step, cluster))
        probes = [Probe(str(cell.source), cell.destination.addresses[0], cell.protocol, cell.port) for cell in cells]
        answers = lab.probe(probes, dropped=lambda: drops(lab, kernel))
        wrong = [
            f"{case['id']} step {number}: {probe}: {answer.outcome}"
            for cell, probe, answer in zip(cells, probes, answers, strict=True)
            if answer.outcome != ("reached" if cell.allowed else "silent")
        ]
        assert not wrong
        count += len(cells)
    return count


def test_every_step_on_the_wire() -> None:
    """Every asserted cell of every step: reached where the suite says so, silent where not, and no third thing."""
    count = steps = 0
    for hosts, cases in labs():
        with Lab(hosts) as lab:
            with lab.entered():
                kernel = Kernel()
            with kernel:
                for case in cases:
                    count += run_case(lab, kernel, case)
                    steps += len(case["steps"])
                with lab.entered():
                    assert kernel.read() != Ruleset({}, {})
    assert steps == sum(len(case["steps"]) for case in conformance.cases())
    assert count > 10_000
