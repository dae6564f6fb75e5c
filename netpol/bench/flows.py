"""The cases of cutting: one look at a full connection tracking table, beside a bare dump of it.

A bare dump asks for every entry and wants none. A sweep wants those of this node's pods, judges them by the rules in force, and finds
that nothing is to be marked: a set has changed since the last one, as after an event, and all that were denied have the bit already.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from netpol.agent.cutter import Cutter, Report
from netpol.bench.changes import NODE, Sizes, objects
from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.kernel.conntrack import ConntrackSocket
from netpol.model import TCP, Address, Pod
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings

BARE = "bare dump"
_BATCH = 60_000  # bytes a send
_CREATE, _REQUEST, _STATUS, _ESTABLISHED = 0x100, 0x601, 0x0E, 3
Flow = tuple[Address, Address, int, int]


def sweep(row: str, flows: int, share: float, cluster: tuple[int, int, int], pairs: int, goals: Mapping[str, float]) -> Case:
    """Everything looked at; `share` of the flows are our pods', all of them distinct."""
    return Case(row, pairs, partial(_sweep, flows, share, Sizes(*cluster), None), goals)


def sweep_few(row: str, flows: int, addresses: int, cluster: tuple[int, int, int], pairs: int, goals: Mapping[str, float]) -> Case:
    """The flows of so many of our pods looked at; the kernel filters."""
    return Case(row, pairs, partial(_sweep, flows, 1.0, Sizes(*cluster), addresses), goals)


@contextmanager
def _sweep(count: int, share: float, sizes: Sizes, few: int | None, directory: Path) -> Iterator[Contest]:
    cluster = Cluster()
    for item in objects(sizes):
        cluster.put(item)
    state = NodeState(cluster, NODE)
    state.wanted()
    ours, others = _addresses(cluster)
    flows = _flows(count, share, ours, others)
    create(flows)
    touched = None if few is None else sorted(ours)[:few]
    wanted = state.judged if touched is None else frozenset(touched)
    expected = sum(not wanted.isdisjoint(flow[:2]) for flow in flows)
    rulesets = [state.wanted()]
    name = max(rulesets[0].sets, key=lambda name: rulesets[0].sets[name].entries)
    changed = rulesets[0].sets[name].with_members(rulesets[0].sets[name].members | {bytes((192, 0, 2, 1))})
    rulesets.append(replace(rulesets[0], sets={**rulesets[0].sets, name: changed}))
    with Cutter(Settings().cut_bit) as cutter, ConntrackSocket() as conntrack:
        cutter.sweep(rulesets[0], state.judged)

        def turn() -> None:
            rulesets.reverse()

        def verify(outcome: object) -> None:
            if not isinstance(outcome, Report) or (outcome.judged, outcome.marked, outcome.unmarked) != (expected, 0, 0):
                raise BenchError(f"the sweep found something else than {expected} flows as they should be: {outcome}")

        def verify_bare(outcome: object) -> None:
            if outcome != b"":
                raise BenchError("a bare dump has entries")

        bare = Contender(lambda: None, lambda: conntrack.flows(()), verify_bare)
        sweeping = Contender(turn, lambda: cutter.sweep(rulesets[0], state.judged, touched), verify)
        yield Contest(sweeping, {BARE: bare}, lambda: 0)


def _addresses(cluster: Cluster) -> tuple[list[Address], list[Address]]:
    def of(pods: list[Pod]) -> list[Address]:
        return [address for pod in pods for address in pod.addresses]

    pods = list(cluster.all_pods())
    return of([pod for pod in pods if pod.node == NODE]), of([pod for pod in pods if pod.node != NODE])


def _flows(count: int, share: float, ours: list[Address], others: list[Address]) -> list[Flow]:
    drawn = random.Random(1)
    found: dict[Flow, None] = {}
    while len(found) < count:
        near, far = drawn.choice(ours if len(found) < count * share else others), drawn.choice(others)
        client, server = (near, far) if drawn.random() < 0.5 else (far, near)
        found[client, server, drawn.randrange(32768, 61000), drawn.choice((80, 81, 443, 8080))] = None
    return list(found)


# -- entries made by hand ----------------------------------------------------------------------------------------------


def create(flows: list[Flow], protocol: int = TCP) -> None:
    """Makes IPv4 connections, TCP or UDP, that are established and last an hour."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as made:
        for start in range(0, len(flows), 200):
            made.send(b"".join(_message(flow, protocol) for flow in flows[start : start + 200]))


def _message(flow: Flow, protocol: int) -> bytes:
    source, destination, client, server = flow
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += _tuple(1, source, destination, client, server, protocol) + _tuple(2, destination, source, server, client, protocol)
    body += _attribute(3, struct.pack("!I", _STATUS)) + _attribute(7, struct.pack("!I", 3600))
    if protocol == TCP:
        body += _attribute(4, _attribute(1, _attribute(1, bytes((_ESTABLISHED,)))))
    return struct.pack("=IHHII", 16 + len(body), _CREATE, _REQUEST, 1, 0) + body


def _tuple(kind: int, source: Address, destination: Address, client: int, server: int, protocol: int) -> bytes:
    ends = _attribute(1, source) + _attribute(2, destination)
    ports = _attribute(1, bytes((protocol,))) + _attribute(2, client.to_bytes(2, "big")) + _attribute(3, server.to_bytes(2, "big"))
    return _attribute(kind, _attribute(1, ends) + _attribute(2, ports))


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
