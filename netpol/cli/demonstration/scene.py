"""A cluster -> a scene: the hosts of the world to build, and every flow to try between them.

Pods are all on one node, whatever their spec says. Addresses of no pod are derived from the ipBlocks of the policies that select a
pod here (`outside`): those of ingress rules and of egress rules alike send to every pod, and pods send to those of egress rules.

A pod is tried at the ports that it declares, at those that a policy names for it, and at `OTHER` where that is none; an address
of no pod at the ports of the egress rules it was derived from and of those that allow every peer, and at `OTHER`. Ranges are tried
at both ends. Every host listens wherever it is tried, so that silence means a dropped packet and nothing else.

Not tried: a pod to itself, one address of no pod to another (nothing of that is a policy's business), and pods that own no address
(host network, finished), which `left_out` names. Node objects are not looked at: the demo's node is its own.

Pure, and it decides nothing: what the policies say of a flow is asked later, of the specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from netpol.cli.demonstration import outside
from netpol.errors import InvalidManifests, InvalidObject, LabError
from netpol.lab import NODE, Host, Probe
from netpol.lab.values import check_address
from netpol.lab.world import NODE_ADDRESSES
from netpol.model import (
    DIRECTIONS,
    FAMILIES,
    TCP,
    Address,
    Direction,
    Flow,
    IPBlock,
    NamedPort,
    Pod,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
    family_of,
    format_address,
)
from netpol.policy.cluster import Cluster
from netpol.policy.selectors import matches
from netpol.policy.verdict import isolating_policies

Port = tuple[int, int]
OTHER: Port = (TCP, 443)
"""Protocol and number of the port that is tried where no rule names one."""


class Connection(Struct, frozen=True):
    """One flow to try; `source` and `destination` are hosts: namespace/pod, or the address of what is no pod."""

    source: str
    destination: str
    flow: Flow

    @property
    def probe(self) -> Probe:
        return Probe(self.source, self.flow.destination, self.flow.protocol, self.flow.port or 0, self.flow.source)


class Scene(Struct, frozen=True):
    """See the module. `hosts` begins with the pods; `connections` are sorted by source, in the order of the hosts."""

    cluster: Cluster
    hosts: tuple[Host, ...]
    connections: tuple[Connection, ...]
    left_out: tuple[str, ...]


def scene(manifests: Cluster) -> Scene:
    """The scene of what manifests describe; its cluster is another one.

    InvalidManifests where no pod has an address, or one has an address that is another's or could not be a host's.
    """
    cluster = Cluster()
    for namespace in manifests.namespaces.values():
        cluster.put(namespace)
    for policy in manifests.policies.values():
        cluster.put(policy)
    for pod in manifests.all_pods():
        cluster.put(structs.replace(pod, node=NODE))
    everyone = sorted(cluster.all_pods(), key=lambda pod: pod.key)
    pods = [pod for pod in everyone if pod.addresses and not pod.host_network and not pod.finished]
    _check(pods)
    egress = _rules(policies_of(cluster, pods, "egress"), "egress")
    ports = {str(pod): _pod_ports(cluster, pod, egress) for pod in pods}
    addresses = {str(pod): pod.addresses for pod in pods}
    for address, found in _outside(cluster, pods).items():
        addresses[format_address(address)] = (address,)
        ports[format_address(address)] = found
    hosts = tuple(Host(name, addresses[name], tuple(sorted(ports[name]))) for name in addresses)
    left_out = tuple(str(pod) for pod in everyone if pod not in pods)
    return Scene(cluster, hosts, tuple(_connections(hosts, len(pods))), left_out)


def _check(pods: Sequence[Pod]) -> None:
    """InvalidManifests for what the lab could not build."""
    errors: list[InvalidObject] = []
    owners: dict[Address, Pod] = {}
    for pod in pods:
        for address in pod.addresses:
            try:
                check_address(str(pod), address)
            except LabError:
                errors.append(InvalidObject(f"Pod {pod}", "status.podIPs", f"{format_address(address)} is not an address of a pod"))
            if owners.setdefault(address, pod) is not pod:
                reason = f"{format_address(address)} is also the address of {owners[address]}"
                errors.append(InvalidObject(f"Pod {pod}", "status.podIPs", reason))
    if not pods:
        errors.append(InvalidObject("manifests", "", "hold no pod to send packets from: add Pod objects with their labels"))
    if errors:
        raise InvalidManifests(tuple(errors))


def _connections(hosts: Sequence[Host], pods: int) -> Iterable[Connection]:
    """Every source to every port of every destination, in all families that both have. The first `pods` hosts are pods."""
    for i, source in enumerate(hosts):
        for j, destination in enumerate(hosts):
            if i == j or (i >= pods and j >= pods):
                continue
            for family in FAMILIES:
                own = next((address for address in source.addresses if family_of(address) == family), None)
                for other in destination.addresses:
                    if own is not None and family_of(other) == family:
                        for protocol, port in destination.listens:
                            yield Connection(source.name, destination.name, Flow(own, other, protocol, port))


# -- ports -------------------------------------------------------------------------------------------------------------


def _numbers(ports: Iterable[PolicyPort], declared: frozenset[Port]) -> set[Port]:
    """Numbers to try for the ports of a rule; all of a protocol is what is declared of it, or else one."""
    found: set[Port] = set()
    for port in ports:
        if isinstance(port, NamedPort):
            continue  # declared, or nowhere
        if (port.first, port.last) != (0, 65535):
            found |= {(port.protocol, port.first), (port.protocol, port.last)}
        elif not any(protocol == port.protocol for protocol, _ in declared):
            found.add((port.protocol, OTHER[1]))
    return found


def _pod_ports(cluster: Cluster, pod: Pod, egress: Iterable[PolicyRule]) -> set[Port]:
    """`egress` is every egress rule that may concern the pod as a destination."""
    declared = frozenset((port.protocol, port.port) for port in pod.ports)
    found = set(declared)
    for rule in _rules(isolating_policies(cluster, pod, "ingress"), "ingress"):
        found |= _numbers(rule.ports or (), declared)
    for rule in egress:
        if rule.peers is None or any(_concerns(cluster, peer, pod) for peer in rule.peers):
            found |= _numbers(rule.ports or (), declared)
    return found or {OTHER}


def _concerns(cluster: Cluster, peer: Query | IPBlock, pod: Pod) -> bool:
    if isinstance(peer, IPBlock):
        return any(address in peer.cidr for address in pod.addresses)
    namespace = cluster.namespaces.get(pod.namespace)
    in_scope = peer.namespace == pod.namespace if peer.namespace else namespace is not None and matches(peer.namespaces, namespace.labels)
    return in_scope and matches(peer.pods, pod.labels)


# -- addresses of no pod -----------------------------------------------------------------------------------------------


def policies_of(cluster: Cluster, pods: Iterable[Pod], direction: Direction) -> tuple[Policy, ...]:
    """The policies that isolate any of these pods in a direction, by name."""
    found = {policy.key: policy for pod in pods for policy in isolating_policies(cluster, pod, direction)}
    return tuple(found[key] for key in sorted(found))


def _rules(policies: Iterable[Policy], direction: Direction) -> tuple[PolicyRule, ...]:
    return tuple(rule for policy in policies for rule in policy.rules(direction) or ())


def _outside(cluster: Cluster, pods: Sequence[Pod]) -> dict[Address, set[Port]]:
    """The addresses of no pod, sorted, and the ports at which each is tried: none for one that only sends."""
    own = {address for pod in pods for address in pod.addresses}
    families = {family_of(address) for address in own}
    taken = own.union(NODE_ADDRESSES)
    found: dict[Address, set[Port]] = {}
    for direction in DIRECTIONS:
        policies = policies_of(cluster, pods, direction)
        rules = _rules(policies, direction)
        here: dict[Address, set[Port]] = {}
        for rule in rules:
            for peer in rule.peers or ():
                if isinstance(peer, IPBlock) and peer.cidr.family in families:
                    for address in outside.around(peer, taken):
                        here.setdefault(address, set()).update(_numbers(rule.ports or (), frozenset()))
        for family in families if policies else ():
            if not any(family_of(address) == family for address in here):
                here.update((address, set()) for address in outside.elsewhere(family, taken))
        everywhere = {port for rule in rules if rule.peers is None for port in _numbers(rule.ports or (), frozenset())}
        for address, ports in here.items():
            found.setdefault(address, set()).update((*ports, *everywhere, OTHER) if direction == "egress" else ())
    return {address: found[address] for address in sorted(found, key=lambda address: (len(address), address))}
