"""Netlink takes messages from other processes too, by the number of a socket: what they send never reaches one of ours."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from netpol.kernel.conntrack import ConntrackSocket
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.nflog import NflogSocket
from tests.kernel.test_descriptors import opened

OPENERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "ipset": IpsetSocket,
    "conntrack": ConntrackSocket,
    "NFLOG": lambda: NflogSocket(77, "netpol"),
}
ACKNOWLEDGEMENT = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, 0) + bytes(16)


@pytest.mark.parametrize("name", OPENERS)
def test_only_the_kernel_speaks_to_us(netns: int, name: str) -> None:
    """Another process of root, in our network namespace, is refused: no answer, listing or logged packet is forged."""
    before = opened()
    with OPENERS[name]():
        (fd,) = opened() - before
        ours = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12, fileno=os.dup(fd))
        with ours, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as other:
            number, _ = ours.getsockname()
            assert number
            with pytest.raises(ConnectionRefusedError):
                other.sendto(ACKNOWLEDGEMENT, (number, 0))
            with pytest.raises(BlockingIOError):
                ours.recv(1, socket.MSG_DONTWAIT)
