"""The node's own addresses, as the real kernel gives them to interfaces made by hand."""

from __future__ import annotations

import errno
import os

import pytest

from netpol.errors import KernelError
from netpol.kernel import addresses as module
from netpol.kernel import namespaces
from netpol.kernel.addresses import local_addresses
from netpol.lab import Host, Lab
from netpol.model import parse_address


def test_addresses_of_a_node() -> None:
    """The node of a lab has those it was given, of both families and of a device that is up or not; a host has its own."""
    ours = (parse_address("192.0.2.1"), parse_address("2001:db8::1"))
    pod = parse_address("10.244.0.5")
    with Lab((Host("pod", (pod,)),), ours) as lab:
        with lab.entered():
            assert local_addresses() >= set(ours)
            assert pod not in local_addresses()
        with lab.entered("pod"):
            assert pod in local_addresses()


def test_a_namespace_without_addresses(netns: int) -> None:
    """A namespace that nobody configured has none."""
    assert local_addresses() == frozenset()


def test_a_kernel_that_refuses(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is raised in words that name the operation."""
    monkeypatch.setattr(module, "_RTM_GETADDR", 0x3FE)
    with (
        namespaces.entered(netns),
        pytest.raises(KernelError, match=f"address list of this network namespace: {os.strerror(errno.EOPNOTSUPP)}"),
    ):
        local_addresses()
