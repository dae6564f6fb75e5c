"""Descriptors: every one that the kernel room opens is closed on exec, and closed by its owner.

That none is left open on any error path is shown by `tests/test_faults.py`, which makes each system call fail and counts them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from netpol.kernel.apply import Kernel
from netpol.kernel.conntrack import ConntrackSocket
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.nflog import NflogSocket
from netpol.kernel.xtables import TableSocket


def opened() -> set[int]:
    """The descriptors of this process; the one that lists them is closed again."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


@contextmanager
def locked() -> Iterator[None]:
    with TableSocket(4) as socket, socket.locked():
        yield


OPENERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "ipset": IpsetSocket,
    "tables of IPv4": lambda: TableSocket(4),
    "tables of IPv6": lambda: TableSocket(6),
    "iptables' lock": locked,
    "conntrack": ConntrackSocket,
    "NFLOG": lambda: NflogSocket(77, "netpol"),
    "kernel": Kernel,
}


@pytest.mark.parametrize("name", OPENERS)
def test_no_descriptor_is_inherited_or_left_open(netns: int, name: str) -> None:
    """All that was opened has FD_CLOEXEC, so that no program gets it; and after the end it is gone."""
    before = opened()
    with OPENERS[name]():
        new = opened() - before
        assert new
        for fd in new:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, os.readlink(f"/proc/self/fd/{fd}")
    assert opened() == before
