"""From the wire form of Pod, Namespace, Node and NetworkPolicy to the values of `netpol.model`.

Input is JSON as an API server hands it out; what comes from YAML is turned into the same JSON first, so there is one reader. Only
the fields that policy needs are looked at.

Rules (SEMANTICS 33, 34): a value that cannot be valid is an `InvalidObject` with object, field path and reason, and the object
stays in force as far as it is safe: a policy with a broken rule allows nothing through that rule and keeps the others; one whose
podSelector is unreadable selects its whole namespace; one whose policyTypes are unreadable isolates both directions. Nothing is
guessed open. A field that this version does not know inside a rule makes that rule broken: it may restrict what we would allow. A direction
that asks for more than `MOST_RULES` and the others say allows nothing: one policy of 1.5 MB could fill the kernel's table of
sets, and nobody's changes would come into force.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from sys import intern
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

from netpol.errors import InvalidObject
from netpol.model import (
    EVERYTHING,
    PROTOCOL_NUMBERS,
    TCP,
    Address,
    ContainerPort,
    Direction,
    IPBlock,
    Labels,
    NamedPort,
    Namespace,
    Network,
    Node,
    NumberedPort,
    Peer,
    Pod,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    canonical,
    parse_address,
    parse_network,
)
from netpol.policy.wire import (
    WireEgressRule,
    WireIngressRule,
    WireIPBlock,
    WireNamed,
    WireNamespace,
    WireNode,
    WireNodeSpec,
    WireNodeStatus,
    WirePeer,
    WirePod,
    WirePodSpec,
    WirePodStatus,
    WirePolicy,
    WirePolicySpec,
    WirePort,
    WireRequirement,
    WireSelector,
)

T = TypeVar("T")
Report = Callable[[str, str], None]

MOST_RULES, MOST_SELECTORS, MOST_NAMES, MOST_PAIRS = 5_000, 2_000, 100, 250_000
"""Of one direction of a policy: rules; different peers that select pods, which may be a set of the kernel each; different named ports, for
each of which all pods are looked at; and peers, with the excepts of blocks, times ports, summed over the rules."""

QUALIFIED_NAME = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
# What msgspec raises for bytes that are not the JSON asked for: broken UTF-8 and bottomless nesting come as Python's own errors.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# A field, or the place in a list, of a path as msgspec writes it.
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")


class Decoded(Struct, Generic[T], frozen=True):
    """A value, as far as it could be understood, and what could not. `value` is None when not even the name could be read."""

    value: T | None
    errors: tuple[InvalidObject, ...] = ()


# -- paths and errors --------------------------------------------------------------------------------------------------


class _Invalid(Exception):
    """A value at a path below the one that the catcher knows."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason


def _split_message(error: Exception, data: bytes | Raw) -> tuple[str, str]:
    """msgspec's "Expected `int`, got `str` - at `$.a[0]`" about this JSON as (".a[0]", reason)."""
    # From the end: the name of an unknown field stands before it, in backquotes, and may be anything.
    text = str(error)
    reason, found, path = text.rpartition(" - at `$")
    if not found or (reason.startswith("Object contains unknown field") and not reason.endswith("`")):
        return "", text
    return _with_key(path.removesuffix("`"), data), reason


def _with_key(path: str, data: bytes | Raw) -> str:
    """The path with a key for msgspec's `[...]`, which is the value of any key: the first one whose value is no text, as all are to be.

    It is `[*]` where there is none to be found (keys that are given twice hide others, and msgspec reads no further than to the error), and
    where it is no label's key: any other text could pass for a path.
    """
    above, found, below = path.partition("[...]")
    if not found:
        return path
    try:
        value: Any = msgspec.json.decode(data)
        for field, index in STEP.findall(above):
            value = value[field or int(index)]
        key = next(key for key, item in value.items() if not isinstance(item, str))
    except (*UNREADABLE, LookupError, TypeError, AttributeError, StopIteration):
        key = ""
    return f"{above}[{key if QUALIFIED_NAME.fullmatch(key) else '*'}]{below}"


def _read(data: bytes | Raw, kind: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        below, reason = _split_message(error, data)
        raise _Invalid(path + below, reason) from None


def _is_present(raw: Raw) -> bool:
    """Whether a list is there and, as far as can be seen, not empty: a broken one counts."""
    return bytes(raw).strip() not in (b"[]", b"null", b"")


def _or_empty(raw: Raw) -> Raw | bytes:
    """What is missing or null is the empty object, as for an API server."""
    return raw if bytes(raw).strip() not in (b"null", b"") else b"{}"


def _read_list(raw: Raw, kind: type[T], path: str) -> list[T]:
    return _read(raw, list[kind], path) if _is_present(raw) else []  # type: ignore[valid-type]  # the type is a value here


# -- labels, selectors -------------------------------------------------------------------------------------------------


SHARED = 64  # labels, values of a selector, peers and the like: what is larger is hardly repeated, and hundreds of it would be kept


def _once(value: T, size: int = 1) -> T:
    """The value, as an object that was read lately had it: pods repeat labels, policies selectors and ports."""
    return _recent(value) if size <= SHARED else value


@lru_cache(512)
def _recent(value: Any) -> Any:
    return value


def _labels(labels: dict[str, str] | None) -> Labels:
    # A server lists by namespace and name, so the pods of one workload come together.
    return _once(tuple(sorted([_label(key, value) for key, value in labels.items()])), len(labels)) if labels else ()


@lru_cache(512)
def _label(key: str, value: str) -> tuple[str, str]:
    """The pair, as another object had it lately. A key is kept once for the whole cluster; a value may be one pod's own."""
    return intern(key), value


def _label_key(key: str, path: str) -> str:
    if not QUALIFIED_NAME.fullmatch(key):
        raise _Invalid(path, f"{key!r} is not a label key")
    return key


def _requirement(wire: WireRequirement, path: str) -> Requirement:
    key = _label_key(wire.key, f"{path}.key")
    values = tuple(sorted(set(wire.values or ())))
    if wire.operator in ("In", "NotIn"):
        if not values:
            raise _Invalid(f"{path}.values", f"must not be empty for the operator {wire.operator}")
        return Requirement(key, wire.operator, values)  # type: ignore[arg-type]  # narrowed by the test above
    if wire.operator in ("Exists", "DoesNotExist"):
        if values:
            raise _Invalid(f"{path}.values", f"must be empty for the operator {wire.operator}")
        return Requirement(key, wire.operator)  # type: ignore[arg-type]  # narrowed by the test above
    raise _Invalid(f"{path}.operator", f"{wire.operator!r} is none of In, NotIn, Exists, DoesNotExist")


def _selector(wire: WireSelector, path: str) -> Selector:
    requirements = {Requirement(_label_key(key, f"{path}.matchLabels"), "In", (value,)) for key, value in (wire.matchLabels or {}).items()}
    for i, expression in enumerate(wire.matchExpressions or ()):
        requirements.add(_requirement(expression, f"{path}.matchExpressions[{i}]"))
    return _once(Selector(tuple(sorted(requirements))), sum(1 + len(requirement.values) for requirement in requirements))


# -- rules -------------------------------------------------------------------------------------------------------------


def _network(text: str, path: str) -> Network:
    try:
        return parse_network(text)
    except ValueError as error:
        raise _Invalid(path, str(error)) from None


def _ip_block(wire: WireIPBlock, path: str) -> IPBlock:
    cidr = _network(wire.cidr, f"{path}.cidr")
    excepts = set()
    for i, text in enumerate(wire.excepts or ()):
        inner = _network(text, f"{path}.except[{i}]")
        if inner.family != cidr.family or inner.length <= cidr.length or inner.address not in cidr:
            raise _Invalid(f"{path}.except[{i}]", f"{text} does not lie inside {wire.cidr}")
        excepts.add(inner)
    return IPBlock(cidr, tuple(sorted(excepts)))


def _peer(wire: WirePeer, namespace: str, path: str) -> Peer:
    selects = wire.podSelector is not None or wire.namespaceSelector is not None
    if wire.ipBlock is not None:
        if selects:
            raise _Invalid(f"{path}.ipBlock", "cannot stand beside a podSelector or a namespaceSelector")
        return _ip_block(wire.ipBlock, f"{path}.ipBlock")
    if not selects:
        raise _Invalid(path, "names no peer: a podSelector, a namespaceSelector or an ipBlock is needed")
    pods = EVERYTHING if wire.podSelector is None else _selector(wire.podSelector, f"{path}.podSelector")
    if wire.namespaceSelector is None:
        return Query(namespace, EVERYTHING, pods)
    return Query("", _selector(wire.namespaceSelector, f"{path}.namespaceSelector"), pods)


def _protocol(name: str | None, path: str) -> int:
    if name is None:
        return TCP
    if name not in PROTOCOL_NUMBERS:
        raise _Invalid(path, f"{name!r} is none of TCP, UDP, SCTP")
    return PROTOCOL_NUMBERS[name]


def _port_number(number: int, path: str) -> int:
    if not 1 <= number <= 65535:
        raise _Invalid(path, f"{number} is not a port: 1 to 65535")
    return number


def _port(wire: WirePort, path: str) -> PolicyPort:
    protocol = _protocol(wire.protocol, f"{path}.protocol")
    if wire.port is None:
        if wire.endPort is not None:
            raise _Invalid(f"{path}.endPort", "needs a port")
        return NumberedPort(protocol, 0, 65535)
    if isinstance(wire.port, str):
        if not PORT_NAME.fullmatch(wire.port):
            raise _Invalid(f"{path}.port", f"{wire.port!r} is not the name of a port")
        if wire.endPort is not None:
            raise _Invalid(f"{path}.endPort", "needs a port that is a number")
        return NamedPort(protocol, wire.port)
    first = _port_number(wire.port, f"{path}.port")
    last = first if wire.endPort is None else _port_number(wire.endPort, f"{path}.endPort")
    if last < first:
        raise _Invalid(f"{path}.endPort", f"{last} is below the port {first}")
    return NumberedPort(protocol, first, last)


def _rule(wire: WireIngressRule | WireEgressRule, namespace: str, path: str) -> PolicyRule:
    """An empty or missing list restricts nothing (SEMANTICS 1)."""
    field = "from" if isinstance(wire, WireIngressRule) else "to"
    peers = {_peer(peer, namespace, f"{path}.{field}[{i}]") for i, peer in enumerate(wire.peers or ())}
    ports = {_port(port, f"{path}.ports[{i}]") for i, port in enumerate(wire.ports or ())}
    size = sum(map(_size, peers)) + len(ports)
    return _once(PolicyRule(canonical(peers) or None, _once(canonical(ports), len(ports)) or None), size)


def _size(peer: Peer) -> int:
    """How much there is of it: a block and its excepts, or the values of its selectors."""
    if isinstance(peer, IPBlock):
        return 1 + len(peer.excepts)
    return 1 + sum(len(requirement.values) for selector in (peer.namespaces, peer.pods) for requirement in selector.requirements)


# -- objects -----------------------------------------------------------------------------------------------------------


def _decode(data: bytes, kind: str, build: Callable[[Report], T]) -> Decoded[T]:
    """Runs `build` with a function that reports (field, reason); a failure to read at all still names the object where it can.

    Only what has errors is read once more, for its name: objects come by the ten thousand, and hardly one of them has any.
    """
    reports: list[tuple[str, str]] = []
    value: T | None = None
    try:
        value = build(lambda field, reason: reports.append((field, reason)))
    except UNREADABLE as error:
        path, reason = _split_message(error, data)
        reports.append((path.removeprefix("."), reason))
    if not reports:
        return Decoded(value)
    title = kind
    try:
        meta = msgspec.json.decode(data, type=WireNamed).metadata
        title = f"{kind} {meta.namespace}/{meta.name}" if meta.namespace else f"{kind} {meta.name}"
    except UNREADABLE as error:
        path, reason = _split_message(error, data)
        reports = [(path.removeprefix("."), reason)]
    return Decoded(value, tuple(InvalidObject(title, *report) for report in reports))


def decode_policy(data: bytes) -> Decoded[Policy]:
    """A NetworkPolicy from JSON. With errors it is still a policy that isolates, as the module says."""
    return _decode(data, "NetworkPolicy", lambda report: _policy(msgspec.json.decode(data, type=WirePolicy), report))


def _policy(wire: WirePolicy, report: Report) -> Policy:
    name, namespace = wire.metadata.name, _once(wire.metadata.namespace)
    spec = _attempt(report, lambda: _read(_or_empty(wire.spec), WirePolicySpec, "spec"))
    if spec is None:
        return Policy(namespace, name, EVERYTHING, (), ())
    pods = _attempt(report, lambda: _selector(_read(_or_empty(spec.podSelector), WireSelector, "spec.podSelector"), "spec.podSelector"))
    types = _attempt(report, lambda: _policy_types(spec.policyTypes, _is_present(spec.egress)))
    ingress = tuple(_rules(spec.ingress, "ingress", WireIngressRule, namespace, report))
    egress = tuple(_rules(spec.egress, "egress", WireEgressRule, namespace, report))
    return Policy(
        namespace,
        name,
        EVERYTHING if pods is None else pods,
        _bounded(ingress, "ingress", report) if types is None or "Ingress" in types else None,
        _bounded(egress, "egress", report) if types is None or "Egress" in types else None,
    )


def _attempt(report: Report, read: Callable[[], T]) -> T | None:
    """What `read` gives, or None after having reported why not."""
    try:
        return read()
    except _Invalid as invalid:
        report(invalid.path, invalid.reason)
        return None


def _rules(
    raw: Raw, direction: Direction, kind: type[WireIngressRule] | type[WireEgressRule], namespace: str, report: Report
) -> Iterable[PolicyRule]:
    """The rules of one direction that can be understood; the others are reported and left out."""
    items = _attempt(report, lambda: _read_list(raw, Raw, f"spec.{direction}"))
    for i, item in enumerate(items or ()):
        path = f"spec.{direction}[{i}]"
        try:
            yield _rule(_read(item, kind, path), namespace, path)
        except _Invalid as invalid:
            report(invalid.path, invalid.reason)


def _bounded(rules: tuple[PolicyRule, ...], direction: Direction, report: Report) -> tuple[PolicyRule, ...]:
    """The same, or none where they ask for too much."""
    names = {(port.protocol, port.name) for rule in rules for port in rule.ports or () if isinstance(port, NamedPort)}
    selectors = {peer for rule in rules for peer in rule.peers or () if isinstance(peer, Query)}
    pairs = sum(_breadth(rule) * len(rule.ports or (None,)) for rule in rules)
    for count, most, what in (
        (len(rules), MOST_RULES, "rules"),
        (len(selectors), MOST_SELECTORS, "peers that select pods"),
        (len(names), MOST_NAMES, "named ports"),
        (pairs, MOST_PAIRS, "peers times ports"),
    ):
        if count > most:
            report(f"spec.{direction}", f"asks for {count} {what}, where at most {most} are enforced: nothing is allowed by it")
            return ()
    return rules


def _breadth(rule: PolicyRule) -> int:
    """Peers, and excepts of blocks."""
    return sum(1 + len(peer.excepts) if isinstance(peer, IPBlock) else 1 for peer in rule.peers or (None,))


def _policy_types(raw: Raw, has_egress: bool) -> tuple[str, ...]:
    """SEMANTICS 6: unset means Ingress, and Egress where there are egress rules."""
    types = _read_list(raw, str, "spec.policyTypes")
    if not types:
        return ("Ingress", "Egress") if has_egress else ("Ingress",)
    for i, name in enumerate(types):
        if name not in ("Ingress", "Egress"):
            raise _Invalid(f"spec.policyTypes[{i}]", f"{name!r} is neither Ingress nor Egress")
    return tuple(types)


_POD = msgspec.json.Decoder(WirePod)


def decode_pod(data: bytes) -> Decoded[Pod]:
    """A Pod from JSON. An address or port that cannot be valid is reported and left out; the pod stays."""

    def build(report: Report) -> Pod:
        wire = _POD.decode(data)
        spec, status = wire.spec or WirePodSpec(), wire.status or WirePodStatus()
        return Pod(
            namespace=wire.metadata.namespace,
            name=wire.metadata.name,
            labels=_labels(wire.metadata.labels),
            node=spec.nodeName or "",
            addresses=_pod_addresses(status, report),
            ports=tuple(sorted(_container_ports(spec, report))),
            host_network=bool(spec.hostNetwork),
            finished=status.phase in ("Succeeded", "Failed"),
            terminating=wire.metadata.deletionTimestamp is not None,
        )

    return _decode(data, "Pod", build)


def _pod_addresses(status: WirePodStatus, report: Report) -> tuple[Address, ...]:
    texts = [(f"status.podIPs[{i}].ip", item.ip) for i, item in enumerate(status.podIPs or ())] or [("status.podIP", status.podIP)]
    addresses: list[Address] = []
    for field, text in texts:
        if text:
            try:
                addresses.append(_own_address(text))
            except ValueError as error:
                report(field, str(error))
    return tuple(dict.fromkeys(addresses))


def _own_address(text: str) -> Address:
    """The address of a pod or node; ValueError for what can be none. 0.0.0.0 and :: are nobody's, and no set takes them for a member."""
    address = parse_address(text)
    if not any(address):
        raise ValueError(f"{text!r} is the unspecified address, which nobody has")
    return address


def _container_ports(spec: WirePodSpec, report: Report) -> set[ContainerPort]:
    """Declared ports; an init container counts when it goes on running beside the others (a native sidecar)."""
    ports = set()
    for field, containers in (("containers", spec.containers), ("initContainers", spec.initContainers)):
        for i, container in enumerate(containers or ()):
            if field == "initContainers" and container.restartPolicy != "Always":
                continue
            for j, port in enumerate(container.ports or ()):
                path = f"spec.{field}[{i}].ports[{j}]"
                try:
                    number = _port_number(port.containerPort, f"{path}.containerPort")
                    ports.add(ContainerPort(port.name or "", _protocol(port.protocol, f"{path}.protocol"), number))
                except _Invalid as invalid:
                    report(invalid.path, invalid.reason)
    return ports


def decode_namespace(data: bytes) -> Decoded[Namespace]:
    """A Namespace from JSON."""

    def build(_: Report) -> Namespace:
        meta = msgspec.json.decode(data, type=WireNamespace).metadata
        return Namespace(meta.name, _labels(meta.labels))

    return _decode(data, "Namespace", build)


def decode_node(data: bytes) -> Decoded[Node]:
    """A Node from JSON: its InternalIP and ExternalIP addresses, and its pod CIDRs."""

    def build(report: Report) -> Node:
        wire = msgspec.json.decode(data, type=WireNode)
        spec, status = wire.spec or WireNodeSpec(), wire.status or WireNodeStatus()
        addresses: set[Address] = set()
        for i, item in enumerate(status.addresses or ()):
            if item.type in ("InternalIP", "ExternalIP"):
                try:
                    addresses.add(_own_address(item.address))
                except ValueError as error:
                    report(f"status.addresses[{i}].address", str(error))
        cidrs: set[Network] = set()
        texts: list[tuple[str, str | None]] = [(f"spec.podCIDRs[{i}]", text) for i, text in enumerate(spec.podCIDRs or ())] or [
            ("spec.podCIDR", spec.podCIDR)
        ]
        for field, text in texts:
            if text:
                try:
                    cidrs.add(parse_network(text))
                except ValueError as error:
                    report(field, str(error))
        return Node(wire.metadata.name, tuple(sorted(addresses)), tuple(sorted(cidrs)))

    return _decode(data, "Node", build)
