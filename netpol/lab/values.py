"""What goes into a lab and comes out of it: hosts, probes, answers; and what of them cannot be.

Pure. Addresses are packed bytes, ports are numbers, protocols are those of IP (`netpol.model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from netpol.errors import LabError
from netpol.model import ICMP, ICMPV6, SCTP, TCP, UDP, Address, family_of, format_address

NODE = "node"
"""The name by which probes and `Lab.entered` mean the node itself; no host may have it."""

MAX_NAME = 317  # bytes: a namespace, a slash, the name of a pod
LISTENING = (TCP, UDP, SCTP)
ECHO = {ICMP: 4, ICMPV6: 6}

Outcome = Literal["reached", "refused", "silent"]
"""reached: the service answered; refused: a reset, an abort or an ICMP error came back; silent: nothing did."""


class Host(Struct, frozen=True):
    """A pod, or whoever else has an address: the outside world, another node.

    listens -- (protocol, port) with TCP, UDP or SCTP, at all its addresses.
    """

    name: str
    addresses: tuple[Address, ...]
    listens: tuple[tuple[int, int], ...] = ()


class Probe(Struct, frozen=True):
    """One new flow from a host (or NODE). `port` is 0 for ICMP echo; `address` is the source's, b"" for its first one of that family."""

    source: str
    destination: Address
    protocol: int
    port: int = 0
    address: Address = b""

    def __str__(self) -> str:
        return f"{self.source} -> {format_address(self.destination)}, protocol {self.protocol}, port {self.port}"


class Answer(Struct, frozen=True):
    """What came of a probe. `host` is the name that the answering host gave itself; "" where nothing but the network spoke."""

    outcome: Outcome
    host: str = ""


def check_address(name: str, address: Address) -> None:
    """LabError for what is no unicast address that a host could be reached at from elsewhere."""
    if len(address) not in (4, 16):
        raise LabError(f"host {name}: an address has 4 or 16 bytes, not {len(address)}")
    if len(address) == 4:
        special = address[0] in (0, 127) or address[0] >= 224
    else:
        special = address[0] == 255 or address[:2] == b"\xfe\x80" or not any(address[:15])
    if special:
        raise LabError(f"host {name}: {format_address(address)} cannot be routed to a host; give it a unicast address")


def owners(hosts: Sequence[Host], node_addresses: Sequence[Address]) -> dict[Address, str]:
    """Every address of the lab and who has it; LabError for hosts that cannot be built as they are."""
    found: dict[Address, str] = {}
    names: set[str] = set()
    for host in (Host(NODE, tuple(node_addresses)), *hosts):
        if not host.name or host.name in names or len(host.name.encode()) > MAX_NAME:
            raise LabError(f"host {host.name!r}: names are not empty, at most {MAX_NAME} bytes, differ from each other and from {NODE!r}")
        names.add(host.name)
        for address in host.addresses:
            check_address(host.name, address)
            if address in found:
                raise LabError(f"{format_address(address)} belongs to {found[address]} and to {host.name}: every address needs one host")
            found[address] = host.name
        for protocol, port in host.listens:
            if protocol not in LISTENING or not 0 < port < 65536:
                raise LabError(f"host {host.name}: cannot listen on protocol {protocol}, port {port}: TCP, UDP or SCTP, ports 1 to 65535")
        if len(set(host.listens)) != len(host.listens):
            raise LabError(f"host {host.name} listens twice on one port")
    return found


def source_address(probe: Probe, addresses: Mapping[str, tuple[Address, ...]]) -> Address:
    """The address that a probe comes from; LabError where there is none, or where the probe makes no sense."""
    if len(probe.destination) not in (4, 16):
        raise LabError(f"a probe from {probe.source!r}: its destination is no address: {probe.destination!r}")
    if probe.source not in addresses:
        raise LabError(f"probe {probe}: the lab has no host {probe.source!r}")
    family = family_of(probe.destination)
    if probe.protocol in ECHO:
        if ECHO[probe.protocol] != family:
            raise LabError(f"probe {probe}: ICMP is for IPv4 and ICMPv6 for IPv6")
    elif probe.protocol not in LISTENING or not 0 < probe.port < 65536:
        raise LabError(f"probe {probe}: can probe TCP, UDP and SCTP ports 1 to 65535, and ICMP echo")
    own = addresses[probe.source]
    if probe.address:
        if probe.address not in own or family_of(probe.address) != family:
            raise LabError(f"probe {probe}: {probe.source} has no such source address of that family")
        return probe.address
    for address in own:
        if family_of(address) == family:
            return address
    raise LabError(f"probe {probe}: {probe.source} has no IPv{family} address")
