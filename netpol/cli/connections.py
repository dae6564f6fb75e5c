"""Who could talk to whom in a cluster, and what three judges say of it: the specification, the interpreted rules, real packets.

Pure but for `by_packets`. A connection is a pair of pods, a protocol and a port; pods that have addresses of both families have one
of each family. A pod and itself are a pair too: it can always reach itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from netpol.model import DIRECTIONS, PROTOCOL_NUMBERS, Address, Direction, Flow, NumberedPort, Pod, family_of
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import verdict
from netpol.rules.compile import Settings, compiled
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import EGRESS, INGRESS, Ruleset

Side = Literal["not isolated", "allowed", "denied"]
Service = tuple[int, int]  # protocol, port
Engine = Literal["spec", "rules", "packets"]

ROOTS: dict[Direction, str] = {"egress": EGRESS, "ingress": INGRESS}
CLASS_PREFIXES: dict[Direction, str] = {"egress": "NETPOL-E-", "ingress": "NETPOL-I-"}
# An ephemeral port, for rules that look at the source's.
SOURCE_PORT = 40000


class Connection(Struct, frozen=True):
    """One connection to judge."""

    source: Pod
    destination: Pod
    flow: Flow


class Judgement(Struct, frozen=True):
    """What an engine says of a connection. Packets do not tell the sides apart: there they are None."""

    allowed: bool
    egress: Side | None = None
    ingress: Side | None = None


def parse_service(text: str) -> Service:
    """80/TCP, or 80 for TCP; ValueError for anything else."""
    number, _, name = text.partition("/")
    protocol = PROTOCOL_NUMBERS.get(name.upper() or "TCP")
    if protocol is None or not number.isdecimal() or not 1 <= int(number) <= 65535:
        raise ValueError(f"{text!r} is not a port such as 80/TCP (TCP, UDP or SCTP; 1 to 65535)")
    return protocol, int(number)


def services(cluster: Cluster) -> tuple[Service, ...]:
    """Every port that the pods declare or a policy names: of a range the first and the last."""
    found = {(port.protocol, port.port) for pod in cluster.all_pods() for port in pod.ports}
    for policy in cluster.policies.values():
        for direction in DIRECTIONS:
            for rule in policy.rules(direction) or ():
                for port in rule.ports or ():
                    if isinstance(port, NumberedPort) and port.first > 0:
                        found |= {(port.protocol, port.first), (port.protocol, port.last)}
    return tuple(sorted(found))


def connections(cluster: Cluster, wanted: Iterable[Service], node: str | None = None) -> tuple[Connection, ...]:
    """All pairs of pods that hold an address, for each of the services; with `node` only those one end of which is there."""
    pods = [(pod, address) for pod in sorted(cluster.all_pods(), key=str) for address in pod.addresses if cluster.holder(address) is pod]
    return tuple(
        Connection(source, destination, Flow(a, b, protocol, port))
        for source, a in pods
        for destination, b in pods
        if len(a) == len(b) and (node is None or node in (source.node, destination.node))
        for protocol, port in wanted
    )


def by_spec(cluster: Cluster, asked: Sequence[Connection]) -> list[Judgement]:
    """The specification's verdicts."""
    said = [verdict(cluster, connection.flow) for connection in asked]
    return [Judgement(found.allowed, found.egress.standing, found.ingress.standing) for found in said]


def by_rules(cluster: Cluster, asked: Sequence[Connection], settings: Settings) -> list[Judgement]:
    """Each node compiled, and both ends interpreted: egress on the source's node, ingress on the destination's."""
    nodes = {pod.node for connection in asked for pod in (connection.source, connection.destination)}
    rulesets = {node: compiled(cluster, node, settings) for node in nodes}

    def judge(connection: Connection) -> Judgement:
        egress = _side(rulesets[connection.source.node], connection.flow, "egress")
        ingress = _side(rulesets[connection.destination.node], connection.flow, "ingress")
        return Judgement("denied" not in (egress, ingress), egress, ingress)

    return [judge(connection) for connection in asked]


def _side(ruleset: Ruleset, flow: Flow, direction: Direction) -> Side:
    if ROOTS[direction] not in ruleset.chains.get(family_of(flow.source), {}):
        return "not isolated"
    packet = Packet(flow.source, flow.destination, flow.protocol, flow.port, SOURCE_PORT)
    done = interpret(ruleset, packet, ROOTS[direction])
    if not done.passes:
        return "denied"
    return "allowed" if any(hit.chain.startswith(CLASS_PREFIXES[direction]) for hit in done.hits) else "not isolated"


def by_packets(cluster: Cluster, asked: Sequence[Connection], settings: Settings, progress: Callable[[str], None]) -> list[Judgement]:
    """A lab with a host for each pod, all on one node, its kernel programmed, and one probe for each connection.

    `progress` is told in words what is going on. LabError where the machine cannot build the lab.
    """
    from netpol.kernel.apply import Kernel
    from netpol.lab import Host, Lab, Probe
    from netpol.rules.diff import diff

    pods = {str(pod): pod for connection in asked for pod in (connection.source, connection.destination)}
    listening = tuple(sorted({(c.flow.protocol, c.flow.port or 0) for c in asked}))
    world = Cluster()
    for namespace in cluster.namespaces.values():
        world.put(namespace)
    for policy in cluster.policies.values():
        world.put(policy)
    for pod in cluster.all_pods():
        world.put(replace(pod, node=""))
    wanted = compiled(world, "", settings)
    hosts = tuple(Host(name, _held(cluster, pod), listening) for name, pod in sorted(pods.items()))
    with Lab(hosts, progress=lambda done, of: progress(f"building the lab: {done} of {of} pods")) as lab:
        with lab.entered():
            kernel = Kernel(settings.table)
        with kernel:
            with lab.entered():
                kernel.apply(diff(wanted, kernel.read()))
            progress(f"{len(asked)} probes between {len(hosts)} pods in flight")

            def dropped() -> int:
                with lab.entered():
                    return kernel.dropped()

            probes = [Probe(str(c.source), c.flow.destination, c.flow.protocol, c.flow.port or 0, c.flow.source) for c in asked]
            return [Judgement(answer.outcome == "reached") for answer in lab.probe(probes, dropped=dropped)]


def _held(cluster: Cluster, pod: Pod) -> tuple[Address, ...]:
    return tuple(address for address in pod.addresses if cluster.holder(address) is pod)


def disagreements(asked: Sequence[Connection], said: dict[Engine, list[Judgement]]) -> list[str]:
    """A sentence for each connection on which two engines differ; there should be none."""
    found = []
    for i, connection in enumerate(asked):
        verdicts = {engine: judgements[i] for engine, judgements in said.items()}
        sides = {(j.egress, j.ingress) for j in verdicts.values() if j.egress is not None}
        if len({j.allowed for j in verdicts.values()}) > 1 or len(sides) > 1:
            words = ", ".join(f"{engine}: {'allowed' if j.allowed else 'denied'}" for engine, j in verdicts.items())
            found.append(f"{connection.source} -> {connection.destination} {connection.flow.port}/{connection.flow.protocol}: {words}")
    return found


def family(connection: Connection) -> int:
    return family_of(connection.flow.source)
