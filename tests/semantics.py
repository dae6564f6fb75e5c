"""A small world in which every line of SEMANTICS can be shown, and what a case in it is: policies as users write them, and flows.

The cases are in `tests.semantics_cases`. Whoever enforces policies can be held against them: the evaluator, the compiled rules, packets.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import yaml

from netpol.model import (
    PROTOCOL_NUMBERS,
    TCP,
    UDP,
    Address,
    ContainerPort,
    Flow,
    Namespace,
    Node,
    Object,
    Pod,
    Policy,
    parse_address,
)
from netpol.policy.cluster import Cluster
from netpol.policy.decode import decode_policy
from netpol.rules.compile import NodeState

HERE = "here"


def pod(namespace: str, name: str, number: str, *ports: ContainerPort, four_only: bool = False, **labels: str) -> Pod:
    """A pod of this node with the addresses 10.0.number and fd00::number (x.y becomes x:y)."""
    addresses = [parse_address(f"10.0.{number}")]
    if not four_only:
        addresses.append(parse_address(f"fd00::{number.replace('.', ':')}"))
    return Pod(namespace, name, tuple(sorted(labels.items())), HERE, tuple(addresses), tuple(sorted(ports)))


WORLD: tuple[Object, ...] = (
    Node(HERE, (parse_address("192.0.2.1"), parse_address("2001:db8::1"))),
    Node("there", (parse_address("192.0.2.2"),)),
    Namespace("x", (("name", "x"), ("team", "blue"))),
    Namespace("y", (("name", "y"), ("team", "blue"))),
    Namespace("z", (("name", "z"),)),
    pod("x", "web", "0.1", ContainerPort("http", TCP, 8080), ContainerPort("dns", UDP, 53), app="web"),
    pod("x", "db", "0.2", ContainerPort("http", TCP, 80), ContainerPort("http", UDP, 81), app="db", tier="data"),
    pod("x", "bare", "0.3"),
    pod("x", "four", "0.4", four_only=True, app="four"),
    pod("y", "web", "1.1", ContainerPort("http", TCP, 9090), app="web"),
    pod("y", "db", "1.2", app="db"),
    pod("z", "web", "2.1", app="web"),
    pod("late", "web", "3.1", ContainerPort("http", TCP, 7070), app="web"),
    Pod("x", "host", (("app", "web"),), "there", (parse_address("192.0.2.2"),), host_network=True),
    Pod("x", "done", (("app", "web"),), HERE, (parse_address("10.0.0.9"),), finished=True),
)


class Case(NamedTuple):
    """policies -- specs, each the text of a NetworkPolicy's spec, by "namespace/name"; flows -- "from to port/protocol yes|no, ...".

    events -- what happens after that, before the flows; errors -- how many the policies have; forwarded -- whether the node forwards
    these flows (those from or to itself it does not, and the rules never see them).
    """

    id: str
    policies: dict[str, str]
    flows: str
    events: tuple[Object | tuple[type[Object], str, str], ...] = ()
    errors: int = 0
    forwarded: bool = True


def read(policies: dict[str, str]) -> tuple[list[Policy], int]:
    """The policies, and how many errors they have."""
    found, errors = [], 0
    for key, spec in policies.items():
        namespace, _, name = key.partition("/")
        data = {"metadata": {"namespace": namespace, "name": name}, "spec": yaml.safe_load(spec)}
        decoded = decode_policy(json.dumps(data).encode())
        assert decoded.value is not None
        found.append(decoded.value)
        errors += len(decoded.errors)
    return found, errors


def address(text: str) -> Address:
    """ "x/web" is the IPv4 address of that pod, "x/web6" the IPv6 one; anything else is an address itself."""
    if "/" not in text:
        return parse_address(text)
    namespace, _, name = text.removesuffix("6").partition("/")
    found = next(item for item in WORLD if isinstance(item, Pod) and item.key == (namespace, name))
    return found.addresses[text.endswith("6")]


def parse(line: str) -> tuple[Flow, bool]:
    source, destination, service, allowed = line.split()
    port, slash, protocol = service.partition("/")
    numbers = {**PROTOCOL_NUMBERS, "ICMP": 1, "GRE": 47}
    flow = Flow(address(source), address(destination), numbers[protocol if slash else port], int(port) if slash else None)
    return flow, {"yes": True, "no": False}[allowed]


def played(case: Case) -> tuple[Cluster, NodeState]:
    """The cluster of a case, and the state of this node, which followed it from the start."""
    policies, errors = read(case.policies)
    assert errors == case.errors
    cluster = Cluster()
    state = NodeState(cluster, HERE)
    for item in (*WORLD, *policies):
        state.follow(cluster.put(item))
    for event in case.events:
        change = cluster.drop(event[0], event[2], event[1]) if isinstance(event, tuple) else cluster.put(event)
        state.follow(change)
    return cluster, state
