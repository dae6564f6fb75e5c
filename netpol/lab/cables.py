"""Devices, addresses and routes of the lab, by route netlink: encoded by pyroute2, sent many at once through a plain socket.

A cable is a veth pair. Nothing on it is ever resolved: both ends are NOARP, with hardware addresses that are the same on every
cable, and all neighbours are permanent (which also keeps them out of the system-wide limit of neighbours). So no packet waits
for ARP or neighbour discovery, none is lost to it, and duplicate address detection does not happen.

The messages of one namespace go out in one send; each is acknowledged, and the first refusal is the error. Nothing here
changes namespaces: a socket belongs for ever to the one it was opened in.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

from netpol.errors import LabError
from netpol.model import Address, family_of, format_address, parse_address

GATEWAYS = {4: parse_address("169.254.1.1"), 6: parse_address("fe80::1")}
"""Where the hosts' default routes point to; only the permanent neighbour entry on each cable knows these addresses."""

NODE_END, HOST_END = "02:00:00:00:00:01", "02:00:00:00:00:02"
HOST_DEVICE = "eth0"
# Cables have numbers of our choice, so that routes can name them in the same send that makes them.
FIRST_INDEX = 1000
LOOPBACK = 1

NLMSG_ERROR = 2
IFA_F_NODAD = 0x02
RTNH_F_ONLINK = 4
NUD_PERMANENT = 0x80
# Many acknowledgements; the kernel puts no more into one datagram.
RECEIVE = 65536


def netlink() -> socket.socket:
    """A route netlink socket of the calling thread's namespace. The caller closes it."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _refusal(code: int, what: str) -> LabError:
    if code in (errno.EPERM, errno.EACCES):
        advice = "run as root" if os.geteuid() else "CAP_NET_ADMIN is missing (in a container: --privileged)"
        return LabError(f"{what}: {os.strerror(code)}: {advice}")
    if code == errno.EOPNOTSUPP and "cable" in what:
        return LabError(f"{what}: this kernel has no veth devices: `modprobe veth`, or build with CONFIG_VETH")
    return LabError(f"{what}: {os.strerror(code)}")


class Wiring:
    """Messages gathered for one namespace; `send` empties it. Which namespace is decided by the socket that they are sent through."""

    def __init__(self) -> None:
        # Imported here: a tenth of a second that `import netpol.lab` does not pay.
        from pyroute2 import IPBatch  # type: ignore[import-untyped]  # it has no types

        self._batch = IPBatch()
        self._what: list[str] = []

    def close(self) -> None:
        self._batch.close()

    def cable(self, number: int, namespace: int) -> None:
        """Cable `number`, one end here and up, the other called eth0 and in the namespace of that descriptor, down."""
        self._what.append(f"make cable {number}")
        peer = {"ifname": HOST_DEVICE, "net_ns_fd": namespace, "address": HOST_END}
        index = FIRST_INDEX + number
        self._batch.link("add", index=index, ifname=f"veth{number}", kind="veth", state="up", arp=False, address=NODE_END, peer=peer)

    def up(self, index: int, arp: bool = False) -> None:
        self._what.append("bring a device up")
        self._batch.link("set", index=index, state="up", arp=arp)

    def address(self, index: int, address: Address) -> None:
        self._what.append(f"give address {format_address(address)}")
        flags = IFA_F_NODAD if family_of(address) == 6 else 0
        self._batch.addr("add", index=index, address=format_address(address), prefixlen=len(address) * 8, flags=flags)

    def route(self, index: int, address: Address) -> None:
        self._what.append(f"route {format_address(address)}")
        self._batch.route("add", dst=f"{format_address(address)}/{len(address) * 8}", oif=index)

    def default(self, index: int, gateway: Address) -> None:
        self._what.append(f"default route through {format_address(gateway)}")
        everything = "0.0.0.0/0" if family_of(gateway) == 4 else "::/0"
        self._batch.route("add", dst=everything, gateway=format_address(gateway), oif=index, flags=RTNH_F_ONLINK)

    def neighbour(self, index: int, address: Address, hardware: str) -> None:
        self._what.append(f"neighbour {format_address(address)}")
        self._batch.neigh("add", ifindex=index, dst=format_address(address), lladdr=hardware, state=NUD_PERMANENT)

    def send(self, through: socket.socket) -> None:
        """All messages in one send; waits for every acknowledgement. LabError for the first that was refused."""
        data, what = bytes(self._batch.batch), self._what
        self._batch.reset()
        self._what = []
        if not what:
            return
        first = struct.unpack_from("=I", data, 8)[0]
        through.sendall(data)
        waiting, refused = len(what), None
        while waiting:
            for sequence, code in acknowledgements(through.recv(RECEIVE)):
                waiting -= 1
                if code and refused is None:
                    refused = _refusal(code, what[sequence - first])
        if refused is not None:
            raise refused


def acknowledgements(data: bytes) -> Sequence[tuple[int, int]]:
    """(sequence number, errno or 0) of each acknowledgement among the messages of one datagram; answers are passed over."""
    found = []
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        if length < 16 or offset + length > len(data):
            raise LabError("route netlink: a message of the kernel is cut short")
        if kind == NLMSG_ERROR and length >= 20:
            found.append((sequence, -struct.unpack_from("=i", data, offset + 16)[0]))
        offset += (length + 3) & ~3
    return found
