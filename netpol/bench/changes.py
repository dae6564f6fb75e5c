"""What an event costs in decisions alone, no kernel: from the event to the steps, in clusters of growing size.

Each row is the largest of four sizes, 1, 2, 4 and 8 times the first; the peers are the smaller ones, so that the ratios say how the
work grows: 1 is flat, 1/8 at the first size is linear. A run is several events, one after another, each applied before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count as numbers
from pathlib import Path

from msgspec.structs import replace

from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.model import (
    EVERYTHING,
    TCP,
    ContainerPort,
    Labels,
    Namespace,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
)
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, compiled
from netpol.rules.diff import diff
from netpol.rules.ruleset import Step

NODE = "node-0"
TIMES = (1, 2, 4, 8)
EVENTS = 20
APPS, TEAMS = 20, 7


class Sizes:
    """A cluster's: namespaces of 100 pods, `local` pods on our node, and so many policies, each for one app of one namespace.

    own -- whether each pod has a label value of its own, as those of a StatefulSet do; else each workload of a namespace has.
    """

    def __init__(self, pods: int, policies: int, local: int, own: bool = False) -> None:
        self.pods, self.policies, self.local, self.own = pods, policies, local, own
        self.namespaces = max(APPS, pods // 100)


def pod_event(row: str, pods: int, policies: int, local: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A peer's labels change, so that sets change; pods grow, policies do not."""
    return _growing(row, lambda times: partial(_events, Sizes(pods * times, policies, local), _relabel), TIMES, "pods", pods, pairs, goals)


def status_event(row: str, pods: int, policies: int, local: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A pod is sent again as it was."""
    return _growing(row, lambda times: partial(_events, Sizes(pods * times, policies, local), _again), TIMES, "pods", pods, pairs, goals)


def policy_event(row: str, pods: int, policies: int, local: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A policy that selects pods of this node changes; policies grow, what it selects does not."""
    return _growing(
        row, lambda times: partial(_events, Sizes(pods, policies * times, local), _repolicy), TIMES, "policies", policies, pairs, goals
    )


def team_event(row: str, pods: int, policies: int, local: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A seventh of all namespaces lose the label by which policies know them, or get it back, in one batch; pods grow."""
    return _growing(row, lambda times: partial(_batch, Sizes(pods * times, policies, local)), TIMES, "pods", pods, pairs, goals, 1)


def whole(row: str, pods: int, policies: int, local: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """Everything from scratch for one node; pods and policies grow."""

    def contender(times: int) -> Callable[[], Contender]:
        return partial(_from_scratch, Sizes(pods * times, policies * times, local))

    return _growing(row, contender, TIMES, "pods", pods, pairs, goals, 1)


def _growing(
    row: str,
    contender: Callable[[int], Callable[[], Contender]],
    times: tuple[int, ...],
    of: str,
    base: int,
    pairs: int,
    goals: Mapping[str, float],
    operations: int = EVENTS,
) -> Case:
    names = {f"at {base * n} {of}": contender(n) for n in times}
    return Case(row, pairs, partial(_contest, names, operations), goals)


@contextmanager
def _contest(contenders: Mapping[str, Callable[[], Contender]], operations: int, directory: Path) -> Iterator[Contest]:
    made = {name: make() for name, make in contenders.items()}
    ours = made.pop(list(made)[-1])
    yield Contest(ours, made, lambda: 0, operations)


# -- clusters ----------------------------------------------------------------------------------------------------------


def pod_of(sizes: Sizes, number: int) -> Pod:
    """The pod of this number."""
    app = number // sizes.namespaces % APPS
    labels: Labels = (("app", f"app-{app}"), ("pod-template-hash", f"{number if sizes.own else app:08x}"), ("tier", f"tier-{app % 3}"))
    return Pod(
        f"ns-{number % sizes.namespaces}",
        f"app-{app}-{number:06x}",
        labels,
        NODE if number < sizes.local else f"node-{1 + number % 200}",
        ((0x0A000002 + number).to_bytes(4, "big"),),
        (ContainerPort("http", TCP, 8080),),
    )


def policy_of(sizes: Sizes, number: int, port: int) -> Policy:
    """The policy of this number, which opens one port to two peers."""
    namespace, app = f"ns-{number % sizes.namespaces}", number // sizes.namespaces % APPS
    peers = (
        Query("", matching("team", f"team-{number % TEAMS}"), matching("tier", f"tier-{number % 3}")),
        Query(namespace, EVERYTHING, matching("app", f"app-{(app + 1) % APPS}")),
    )
    rule = PolicyRule(peers, (NumberedPort(TCP, port, port),))
    return Policy(namespace, f"policy-{number}", matching("app", f"app-{app}"), (rule,), None)


def matching(key: str, value: str) -> Selector:
    """One label."""
    return Selector((Requirement(key, "In", (value,)),))


def namespaces_of(sizes: Sizes) -> Iterator[Namespace]:
    """All of them."""
    for number in range(sizes.namespaces):
        name = f"ns-{number}"
        yield Namespace(name, (("kubernetes.io/metadata.name", name), ("team", f"team-{number % TEAMS}")))


def policies_of(sizes: Sizes) -> Iterator[Policy]:
    """All of them."""
    return (policy_of(sizes, number, 80 + number % 5) for number in range(sizes.policies))


def objects(sizes: Sizes) -> Iterator[Object]:
    """The cluster, namespaces first."""
    yield from namespaces_of(sizes)
    yield from (pod_of(sizes, number) for number in range(sizes.pods))
    yield from policies_of(sizes)


def _cluster(sizes: Sizes) -> Cluster:
    cluster = Cluster()
    for item in objects(sizes):
        cluster.put(item)
    return cluster


# -- events ------------------------------------------------------------------------------------------------------------


def _relabel(sizes: Sizes, turn: int) -> Object:
    pod = pod_of(sizes, sizes.local + turn * 7919 % (sizes.pods - sizes.local))
    return replace(pod, labels=(("app", f"app-{turn % APPS}"), ("tier", f"tier-{turn // APPS % 3}")))


def _again(sizes: Sizes, turn: int) -> Object:
    return pod_of(sizes, sizes.local + turn * 7919 % (sizes.pods - sizes.local))


def _repolicy(sizes: Sizes, turn: int) -> Object:
    """Of the first namespaces, whose first apps have pods here."""
    return policy_of(sizes, turn % 10, 1000 + turn)


def _events(sizes: Sizes, event: Callable[[Sizes, int], Object]) -> Contender:
    cluster = _cluster(sizes)
    state = NodeState(cluster, NODE)
    state.wanted()
    state.applied()
    turns = numbers()
    batch: list[Object] = []

    def prepare() -> None:
        batch[:] = [event(sizes, next(turns)) for _ in range(EVENTS)]

    def run() -> list[Step]:
        steps: list[Step] = []
        for item in batch:
            state.follow(cluster.put(item))
            steps += diff(*state.pending())
            state.applied()
        return steps

    def verify(outcome: object) -> None:
        if not isinstance(outcome, list) or bool(outcome) == (event is _again):
            raise BenchError("an event that changes nothing made steps" if outcome else "events made no steps")
        if state.wanted() != compiled(cluster, NODE):
            raise BenchError("the state is not that of a fresh start")

    return Contender(prepare, run, verify)


def _batch(sizes: Sizes) -> Contender:
    cluster = _cluster(sizes)
    state = NodeState(cluster, NODE)
    state.wanted()
    state.applied()
    team = [item for item in cluster.namespaces.values() if ("team", "team-0") in item.labels]
    turns = numbers()
    batch: list[Object] = []

    def prepare() -> None:
        batch[:] = team if next(turns) % 2 else [replace(item, labels=()) for item in team]

    def run() -> tuple[Step, ...]:
        for item in batch:
            state.follow(cluster.put(item))
        steps = diff(*state.pending())
        state.applied()
        return steps

    def verify(outcome: object) -> None:
        if not outcome:
            raise BenchError("a batch made no steps")
        if state.wanted() != compiled(cluster, NODE):
            raise BenchError("the state is not that of a fresh start")

    return Contender(prepare, run, verify)


def _from_scratch(sizes: Sizes) -> Contender:
    cluster = _cluster(sizes)

    def run() -> int:
        return len(compiled(cluster, NODE).sets)

    def verify(outcome: object) -> None:
        if not outcome:
            raise BenchError("nothing was compiled")

    return Contender(lambda: None, run, verify)
