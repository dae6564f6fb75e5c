"""Policies in words, in the order in which people say them: whom it selects, what these may accept, where they may connect.

Selectors are written as kubectl takes them: role=db,tier in (a,b),!canary. Pure.
"""

from __future__ import annotations

from netpol.model import (
    EVERYTHING,
    PROTOCOL_NAMES,
    Direction,
    IPBlock,
    NumberedPort,
    Peer,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
    Requirement,
    Selector,
)


def selector_words(selector: Selector) -> str:
    """A selector as kubectl takes it; "" for one that selects everything."""
    return ",".join(map(_requirement, selector.requirements))


def _requirement(requirement: Requirement) -> str:
    key, values = requirement.key, requirement.values
    if requirement.operator in ("Exists", "DoesNotExist"):
        return key if requirement.operator == "Exists" else f"!{key}"
    if len(values) == 1:
        return f"{key}{'=' if requirement.operator == 'In' else '!='}{values[0]}"
    return f"{key} {'in' if requirement.operator == 'In' else 'notin'} ({','.join(values)})"


def query_words(query: Query) -> str:
    """ "pods with role=db in default", "all pods in namespaces with project=myproject"."""
    pods = "all pods" if query.pods == EVERYTHING else f"pods with {selector_words(query.pods)}"
    if query.namespace:
        return f"{pods} in {query.namespace}"
    return f"{pods} in {'all namespaces' if query.namespaces == EVERYTHING else f'namespaces with {selector_words(query.namespaces)}'}"


def peer_words(peer: Peer) -> str:
    """A query, or "172.17.0.0/16 except 172.17.1.0/24"."""
    if not isinstance(peer, IPBlock):
        return query_words(peer)
    excepts = f" except {', '.join(map(str, peer.excepts))}" if peer.excepts else ""
    return f"{peer.cidr}{excepts}"


def port_words(port: PolicyPort) -> str:
    """ "6379/TCP", "8000-8080/TCP", "http/TCP", "any port of UDP"."""
    protocol = PROTOCOL_NAMES[port.protocol]
    if not isinstance(port, NumberedPort):
        return f"{port.name}/{protocol}"
    if (port.first, port.last) == (0, 65535):
        return f"any port of {protocol}"
    return f"{port.first}/{protocol}" if port.first == port.last else f"{port.first}-{port.last}/{protocol}"


def ports_words(rule: PolicyRule) -> str:
    """ "6379/TCP, 53/UDP"."""
    return "every port" if rule.ports is None else ", ".join(map(port_words, rule.ports)) or "no port"


def peers_words(rule: PolicyRule, direction: Direction) -> tuple[str, ...]:
    """ "from 172.17.0.0/16", a text for each peer."""
    preposition = "from" if direction == "ingress" else "to"
    if rule.peers is None:
        return (f"{preposition} anywhere",)
    return tuple(f"{preposition} {peer_words(peer)}" for peer in rule.peers) or (f"{preposition} nobody",)


def direction_words(policy: Policy, direction: Direction) -> str:
    """What a policy does to a direction of its pods; what its rules say comes after "only"."""
    rules = policy.rules(direction)
    if rules is None:
        return f"{direction} is not this policy's business"
    verb = "accept" if direction == "ingress" else "connect to"
    return f"{verb} {'only' if rules else 'nothing'}"
