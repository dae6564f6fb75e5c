"""The values that every room speaks: addresses, selectors, pods, namespaces, nodes, policies, flows.

All are frozen and hashable; sequences are sorted tuples where order has no meaning. Addresses are packed bytes in network
order (4 or 16 of them: the length is the family), because that is what the kernel, the indexes and the sets want.
This module holds no rules of its own beyond the text forms of an address; what the values mean is `netpol.policy`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Literal, TypeVar

from msgspec import Struct

Address = bytes
Family = Literal[4, 6]
Direction = Literal["ingress", "egress"]
Labels = tuple[tuple[str, str], ...]

FAMILIES: tuple[Family, Family] = (4, 6)
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
PROTOCOL_NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6", SCTP: "SCTP"}
PROTOCOL_NUMBERS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}


_MAPPED = bytes(10) + b"\xff\xff"  # IPv4-mapped IPv6 (RFC 4291): the same address as the four bytes behind it, for Kubernetes too


def _packed(text: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IP address") from None


def parse_address(text: str) -> Address:
    """The packed form of an IPv4 or IPv6 address; ValueError for anything else. ::ffff:10.0.0.1 is 10.0.0.1."""
    packed = _packed(text)
    return packed[12:] if packed[:12] == _MAPPED else packed


def format_address(address: Address) -> str:
    """The usual text form of a packed address."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def family_of(address: Address) -> Family:
    return 4 if len(address) == 4 else 6


class Network(Struct, frozen=True, order=True, gc=False):
    """A CIDR prefix without host bits: `address` packed, `length` in bits."""

    address: Address
    length: int

    @property
    def family(self) -> Family:
        return 4 if len(self.address) == 4 else 6

    def __contains__(self, address: Address) -> bool:
        width = len(self.address) * 8
        if len(address) * 8 != width:
            return False
        shift = width - self.length
        return int.from_bytes(address, "big") >> shift == int.from_bytes(self.address, "big") >> shift

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.length}"


def network(address: Address, length: int) -> Network:
    """The network of that length around an address: host bits are cleared."""
    width = len(address) * 8
    value = int.from_bytes(address, "big") >> (width - length) << (width - length)
    return Network(value.to_bytes(len(address), "big"), length)


def parse_network(text: str) -> Network:
    """The network of a CIDR such as 10.1.2.3/16 (host bits are cleared); ValueError for anything else.

    ::ffff:10.0.0.0/104 is 10.0.0.0/8.
    """
    base, slash, bits = text.partition("/")
    packed = _packed(base)
    if not slash or not (bits.isascii() and bits.isdigit()) or len(bits) > 3 or int(bits) > len(packed) * 8:
        raise ValueError(f"{text!r} is not a CIDR")
    if packed[:12] == _MAPPED and int(bits) >= 96:
        return network(packed[12:], int(bits) - 96)
    return network(packed, int(bits))


class Requirement(Struct, frozen=True, order=True, gc=False):
    """One condition on labels. `values` is sorted and has no duplicates; it is empty for Exists and DoesNotExist."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class Selector(Struct, frozen=True, order=True, gc=False):
    """All requirements must hold; none at all selects everything. Sorted and without duplicates."""

    requirements: tuple[Requirement, ...] = ()


EVERYTHING = Selector()


class Query(Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """Which pods: those whose labels match `pods`, in the one namespace named, or else in all that `namespaces` selects.

    `namespace` is "" exactly when `namespaces` counts. Host-network pods are never selected.
    """

    namespace: str
    namespaces: Selector
    pods: Selector


EVERYONE = Query("", EVERYTHING, EVERYTHING)


class IPBlock(Struct, frozen=True, order=True, gc=False):
    """The addresses of `cidr` without those of `excepts` (which lie inside it)."""

    cidr: Network
    excepts: tuple[Network, ...] = ()


Peer = Query | IPBlock


class NumberedPort(Struct, frozen=True, order=True, gc=False):
    """Ports `first` to `last` of a protocol. All of the protocol is 0 to 65535."""

    protocol: int
    first: int
    last: int


class NamedPort(Struct, frozen=True, order=True, gc=False):
    """The port that the destination pod declares under this name and protocol."""

    protocol: int
    name: str


PolicyPort = NumberedPort | NamedPort

Item = TypeVar("Item", Peer, PolicyPort)


def canonical(items: Iterable[Item]) -> tuple[Item, ...]:
    """Peers or ports in their one order, without duplicates."""
    return tuple(sorted(set(items), key=lambda item: (type(item).__name__, item)))


class PolicyRule(Struct, frozen=True, gc=False):
    """Traffic that one ingress or egress rule allows: any of `peers` and any of `ports`.

    None means that the rule does not restrict it; an empty tuple allows nothing.
    """

    peers: tuple[Peer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


class Policy(Struct, frozen=True, gc=False):
    """A NetworkPolicy. `ingress` and `egress` are None where it does not isolate that direction."""

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[PolicyRule, ...] | None
    egress: tuple[PolicyRule, ...] | None

    @property
    def subject(self) -> Query:
        """The pods that this policy selects."""
        return Query(self.namespace, EVERYTHING, self.pods)

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    def rules(self, direction: Direction) -> tuple[PolicyRule, ...] | None:
        return self.ingress if direction == "ingress" else self.egress

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ContainerPort(Struct, frozen=True, order=True, gc=False):
    """A port that a pod declares. `name` is "" where it has none."""

    name: str
    protocol: int
    port: int


class Pod(Struct, frozen=True, gc=False):
    """A pod, as far as policy is concerned. `finished` ones (Succeeded, Failed) own no address any more; `terminating` ones still do."""

    namespace: str
    name: str
    labels: Labels = ()
    node: str = ""
    addresses: tuple[Address, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    host_network: bool = False
    finished: bool = False
    terminating: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Namespace(Struct, frozen=True, gc=False):
    name: str
    labels: Labels = ()


class Node(Struct, frozen=True, gc=False):
    """A node: the addresses that are its own, and the ranges its pods get theirs from."""

    name: str
    addresses: tuple[Address, ...] = ()
    pod_cidrs: tuple[Network, ...] = ()


Object = Pod | Namespace | Policy | Node


class Flow(Struct, frozen=True, order=True, gc=False):
    """The first packet of a connection. `port` is the destination's; None for a protocol that has no ports."""

    source: Address
    destination: Address
    protocol: int
    port: int | None = None
