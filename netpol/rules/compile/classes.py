"""A class of pods -> its chain: the policies that isolate it in a direction, as the fewest cheap rules that say the same.

The rules of all policies of the class are taken apart into (peer, ports) and put together again: each peer has the union of its
ports over all policies; what every peer may do is taken out of each one's own; peers with the same ports share their rules.
Several queries, or several blocks, become one set when there would be more than a few matches. So a pod selected by 1,000 policies
that each allow another peer on port 80 costs a new flow what one policy costs.

Named ports of an ingress rule are numbers here: pods that resolve them differently are different classes. Those of an egress rule
belong to the destination and are sets of (address, port).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from msgspec import Struct

from netpol.model import SCTP, TCP, Direction, Family, IPBlock, NamedPort, NumberedPort, Policy, PolicyPort, PolicyRule, Query
from netpol.rules.compile.prefixes import Prefixes, prefixes, union, whole
from netpol.rules.compile.ranges import Ranges, merge_ranges, subtract_ranges
from netpol.rules.compile.selections import BlockSelection, PodSelection, PortSelection, Selection, content_hash, set_name
from netpol.rules.ruleset import (
    DENY,
    RETURN,
    Chain,
    Goto,
    Match,
    Multiport,
    PortRange,
    Rule,
    Sctp,
    SetDirection,
    SetMatch,
    Tcp,
    Udp,
    pack_rules,
)

# Up to so many queries, or plain prefixes, are a match each: their sets stay shared with other classes.
FEW = 3

# What a peer may use: everything, or port ranges by protocol and named ports.
Resolution = Mapping[tuple[int, str], tuple[int, ...]]
EVERY_PORT: Ranges = ((0, 65535),)
_ALL = -1  # stands for "every protocol" where a protocol number does otherwise


class Service(Struct, frozen=True, order=True):
    """One thing a rule can ask of a packet: a protocol (-1: any) and port ranges, or a named port of the destination."""

    protocol: int
    ranges: Ranges = EVERY_PORT
    name: str = ""


class Peers(Struct, frozen=True):
    """Who may use a service in one family: everyone, or queries and blocks."""

    everyone: bool
    queries: tuple[Query, ...] = ()
    blocks: tuple[IPBlock, ...] = ()


class ClassChain(Struct, frozen=True):
    """The chain of a class in one family, and the selections its rules refer to, by the names of their sets."""

    chain: Chain
    selections: Mapping[str, Selection]


def class_chain(direction: Direction, family: Family, policies: Iterable[Policy], resolution: Resolution) -> ClassChain:
    """The chain for pods that exactly these policies isolate in that direction.

    resolution -- for ingress: (protocol, name) -> the numbers that the pods of the class declare under it.
    """
    selections: dict[str, Selection] = {}
    rules: list[Rule] = []
    covered: dict[Peers, Prefixes] = {}  # many services may have the same thousands of blocks
    for service, peers in sorted(services(direction, family, policies, resolution).items()):
        if peers not in covered:
            covered[peers] = prefixes((whole(family),) if peers.everyone else union(peers.blocks, family), family)
        matches = _peer_rules(direction, family, service, peers, covered[peers], selections)
        rules += [rule for match in matches for rule in _service_rules(service, match)]
    rules.sort(key=_cost)
    rules.append(Rule(Goto(DENY)))
    packed = pack_rules(rules)
    name = f"NETPOL-{'E' if direction == 'egress' else 'I'}-{content_hash((family, packed), 19)}"
    return ClassChain(Chain.of_packed(name, packed), selections)


# -- taking apart and putting together ---------------------------------------------------------------------------------


class _Allowed:
    """What one peer may use."""

    def __init__(self) -> None:
        self.all = False
        self.ranges: dict[int, list[PortRange]] = {}
        self.names: set[tuple[int, str]] = set()

    def add(self, ports: tuple[PolicyPort, ...] | None, direction: Direction, resolution: Resolution) -> None:
        if ports is None:
            self.all = True
        for port in ports or ():
            if isinstance(port, NumberedPort):
                self.ranges.setdefault(port.protocol, []).append((port.first, port.last))
            elif direction == "egress":
                self.names.add((port.protocol, port.name))
            else:
                numbers = resolution.get((port.protocol, port.name), ())
                self.ranges.setdefault(port.protocol, []).extend((number, number) for number in numbers)

    @cached_property
    def merged(self) -> dict[int, Ranges]:
        """The numbers, by protocol, once all is added."""
        return {protocol: merge_ranges(found) for protocol, found in self.ranges.items()}

    def services(self, but: _Allowed | None) -> Iterable[Service]:
        """The services of this peer that `but`, which is everyone, does not have already."""
        if but is not None and but.all:
            return
        if self.all:
            yield Service(_ALL)
            return
        for protocol, ranges in self.merged.items():
            if but is not None:
                ranges = subtract_ranges(ranges, but.merged.get(protocol, ()))
            if ranges:
                yield Service(protocol, ranges)
        for protocol, name in self.names:
            if not (self.merged.get(protocol) == EVERY_PORT or (but is not None and (protocol, name) in but.names)):
                yield Service(protocol, EVERY_PORT, name)


def services(direction: Direction, family: Family, policies: Iterable[Policy], resolution: Resolution) -> dict[Service, Peers]:
    """Who may use what, over all rules of the policies: each pair of peer and port stands in it once.

    Ports are looked at once for all peers that have the same, for a policy may have thousands of both.
    """
    numbers: dict[tuple[PolicyPort, ...] | None, int] = {}  # of each list of ports that a rule has
    asked: dict[Query | IPBlock | None, set[int]] = {}
    for policy in policies:
        for rule in policy.rules(direction) or ():
            number = numbers.setdefault(rule.ports, len(numbers))
            for peer in _peers(rule, family):
                asked.setdefault(peer, set()).add(number)
    lists = tuple(numbers)

    def allowed(those: Iterable[int]) -> _Allowed:
        what = _Allowed()
        for number in those:
            what.add(lists[number], direction, resolution)
        return what

    everyone = allowed(asked.pop(None, ()))
    found: dict[Service, Peers] = {service: Peers(True) for service in everyone.services(None)}
    alike: dict[frozenset[int], list[Query | IPBlock]] = {}
    for peer, those in asked.items():
        if peer is not None:
            alike.setdefault(frozenset(those), []).append(peer)
    together: dict[Service, tuple[list[Query], list[IPBlock]]] = {}
    for numbers_of_them, peers in alike.items():
        for service in allowed(numbers_of_them).services(everyone):
            queries, blocks = together.setdefault(service, ([], []))
            queries += [peer for peer in peers if isinstance(peer, Query)]
            blocks += [peer for peer in peers if isinstance(peer, IPBlock)]
    for service, (queries, blocks) in together.items():
        found[service] = Peers(False, tuple(sorted(queries)), tuple(sorted(blocks)))
    return found


def _peers(rule: PolicyRule, family: Family) -> Iterable[Query | IPBlock | None]:
    """The peers of a rule that can have addresses of that family; None is everyone. Never everyone by lack of members."""
    if rule.peers is None:
        yield None
        return
    for peer in rule.peers:
        if isinstance(peer, Query) or peer.cidr.family == family:
            yield None if isinstance(peer, IPBlock) and peer.cidr.length == 0 and not peer.excepts else peer


# -- rules -------------------------------------------------------------------------------------------------------------


def _peer_rules(
    direction: Direction, family: Family, service: Service, peers: Peers, plain: Prefixes, selections: dict[str, Selection]
) -> Iterable[Rule]:
    """One rule for each match that the peers need, without the service; RETURN is "allowed here". Notes the selections used.

    plain -- what the blocks of the peers cover.
    """

    def by_set(selection: Selection, directions: tuple[SetDirection, ...]) -> Rule:
        name = set_name(selection, family)
        selections[name] = selection
        return Rule(RETURN, (SetMatch(name, directions),))

    if service.name:
        if peers.queries or plain:
            yield by_set(PortSelection(service.protocol, service.name, peers.queries, plain), ("dst", "dst"))
        return
    if plain == prefixes((whole(family),), family):
        yield Rule(RETURN)
        return
    side: tuple[SetDirection, ...] = ("src",) if direction == "ingress" else ("dst",)
    if len(peers.queries) <= FEW:
        yield from (by_set(PodSelection((query,)), side) for query in peers.queries)
    else:
        yield by_set(PodSelection(peers.queries), side)
    if len(plain) <= FEW and not any(nomatch for _, nomatch in plain):
        yield from (Rule(RETURN, source=net) if direction == "ingress" else Rule(RETURN, destination=net) for net, _ in plain)
    elif plain:
        yield by_set(BlockSelection(plain), side)


def _service_rules(service: Service, peer: Rule) -> Iterable[Rule]:
    """The rules for one peer match: the protocol and the port matches stand before the set, because they are cheaper."""
    if service.protocol == _ALL:
        yield peer
        return
    for match in _port_matches(service):
        yield Rule(peer.target, (*match, *peer.matches), source=peer.source, destination=peer.destination, protocol=service.protocol)


def _port_matches(service: Service) -> Iterable[tuple[Match, ...]]:
    if service.name or service.ranges == EVERY_PORT:
        yield ()
        return
    if len(service.ranges) == 1:
        yield (_port_match(service.protocol, service.ranges[0]),)
        return
    piece: list[PortRange] = []
    room = 15
    for low, high in service.ranges:
        places = 1 if low == high else 2
        if places > room:
            yield (Multiport(tuple(piece)),)
            piece, room = [], 15
        piece.append((low, high))
        room -= places
    yield (_port_match(service.protocol, piece[0]) if len(piece) == 1 else Multiport(tuple(piece)),)


def _port_match(protocol: int, ports: PortRange) -> Match:
    if protocol == TCP:
        return Tcp(destination=ports)
    return Sctp(destination=ports) if protocol == SCTP else Udp(destination=ports)


def _cost(rule: Rule) -> tuple[bool, bool, int]:
    """Rules that look into no set come first, then those of any protocol last."""
    in_set = any(isinstance(match, SetMatch) for match in rule.matches)
    in_ports = any(isinstance(match, SetMatch) and len(match.directions) > 1 for match in rule.matches)
    return in_set, in_ports, len(rule.matches)


def named_ports(policies: Iterable[Policy]) -> tuple[tuple[int, str], ...]:
    """The (protocol, name) pairs that the ingress rules of these policies use, sorted."""
    return tuple(
        sorted(
            {
                (port.protocol, port.name)
                for policy in policies
                for rule in policy.ingress or ()
                for port in rule.ports or ()
                if isinstance(port, NamedPort)
            }
        )
    )
