"""The wire form of the objects that policy needs, as Structs: the fields we look at and no others.

Structs of a rule forbid fields that they do not know: one may restrict what we would allow.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct


class WireName(Struct, gc=False):
    name: str
    namespace: str = ""


class WireMeta(WireName, gc=False):
    labels: dict[str, str] | None = None


class WireContainerPort(Struct, gc=False):
    containerPort: int
    name: str | None = None
    protocol: str | None = None


class WireContainer(Struct, gc=False):
    ports: list[WireContainerPort] | None = None
    restartPolicy: str | None = None


class WirePodMeta(WireMeta, gc=False):
    deletionTimestamp: str | None = None


class WirePodSpec(Struct, gc=False):
    nodeName: str | None = None
    hostNetwork: bool | None = None
    containers: list[WireContainer] | None = None
    initContainers: list[WireContainer] | None = None


class WirePodIP(Struct, gc=False):
    ip: str | None = None


class WirePodStatus(Struct, gc=False):
    phase: str | None = None
    podIP: str | None = None
    podIPs: list[WirePodIP] | None = None


class WirePod(Struct, gc=False):
    metadata: WirePodMeta
    spec: WirePodSpec | None = None
    status: WirePodStatus | None = None


class WireNamespace(Struct, gc=False):
    metadata: WireMeta


class WireNodeSpec(Struct, gc=False):
    podCIDR: str | None = None
    podCIDRs: list[str] | None = None


class WireNodeAddress(Struct, gc=False):
    type: str
    address: str


class WireNodeStatus(Struct, gc=False):
    addresses: list[WireNodeAddress] | None = None


class WireNode(Struct, gc=False):
    metadata: WireMeta
    spec: WireNodeSpec | None = None
    status: WireNodeStatus | None = None


class WireRequirement(Struct, forbid_unknown_fields=True, gc=False):
    key: str
    operator: str
    values: list[str] | None = None


class WireSelector(Struct, forbid_unknown_fields=True, gc=False):
    matchLabels: dict[str, str] | None = None
    matchExpressions: list[WireRequirement] | None = None


class WireIPBlock(Struct, forbid_unknown_fields=True, gc=False):
    cidr: str
    # `except` is a keyword of Python's.
    excepts: list[str] | None = msgspec.field(default=None, name="except")


class WirePeer(Struct, forbid_unknown_fields=True, gc=False):
    podSelector: WireSelector | None = None
    namespaceSelector: WireSelector | None = None
    ipBlock: WireIPBlock | None = None


class WirePort(Struct, forbid_unknown_fields=True, gc=False):
    protocol: str | None = None
    port: int | str | None = None
    endPort: int | None = None


class WireIngressRule(Struct, forbid_unknown_fields=True, gc=False):
    peers: list[WirePeer] | None = msgspec.field(default=None, name="from")
    ports: list[WirePort] | None = None


class WireEgressRule(Struct, forbid_unknown_fields=True, gc=False):
    peers: list[WirePeer] | None = msgspec.field(default=None, name="to")
    ports: list[WirePort] | None = None


class WirePolicySpec(Struct, gc=False):
    """Each part is read by itself, so that a broken one leaves the others; an empty Raw is a part that is missing."""

    podSelector: Raw = msgspec.field(default_factory=Raw)
    policyTypes: Raw = msgspec.field(default_factory=Raw)
    ingress: Raw = msgspec.field(default_factory=Raw)
    egress: Raw = msgspec.field(default_factory=Raw)


class WirePolicy(Struct, gc=False):
    """A policy's own labels mean nothing, so they cannot be wrong either."""

    metadata: WireName
    spec: Raw = msgspec.field(default_factory=Raw)


class WireNamed(Struct, gc=False):
    """The least that can be read of an object: whose it is."""

    metadata: WireName
