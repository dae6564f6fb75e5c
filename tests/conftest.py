"""What all tests share: a network namespace of their own, signals that are heard, and how long hypothesis may look.

Without root the whole run moves into its own user namespace before anything else happens (it must still have one thread).
NETPOL_HYPOTHESIS_PROFILE=mutants is for `make mutants`: the same few examples each time, and none made simpler.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

from netpol.kernel import namespaces

if TYPE_CHECKING:
    from tests.kube.servers import ApiServer


def raise_loopback() -> None:
    """For servers on the loopback, which is down in a new network namespace (`unshare -n` too)."""
    with socket.socket() as any_socket:
        found = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sh14x", b"lo", 0))  # SIOCGIFFLAGS
        (flags,) = struct.unpack_from("h", found, 16)
        if not flags & 1:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP


if (user := os.geteuid()) != 0:
    # There everybody is called root, and root's own runs may have left a folder of pytest's under that name.
    own = Path(tempfile.gettempdir(), f"netpol-tests-{user}")
    own.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(own))
    namespaces.enter_private_world()
raise_loopback()

# A shell ignores INT in what it starts in the background (make test &), and so would each child that a test ends by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How wide a terminal is, tests say themselves; and a run of pytest that a test starts is no worker of this one.
for name in ("COLUMNS", "LINES", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
    os.environ.pop(name, None)

# However slow a busy machine is at making an example, that says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
MADE = (Phase.explicit, Phase.generate)
settings.register_profile("mutants", max_examples=20, derandomize=True, database=None, deadline=None, phases=MADE)
settings.load_profile(os.environ.get("NETPOL_HYPOTHESIS_PROFILE") or "patient")


@pytest.fixture(scope="session", autouse=True)
def _lock() -> Iterator[None]:
    """No test waits for the host's xtables lock, or holds it up; without root it could not even be opened."""
    with namespaces.private_lock():
        yield


@pytest.fixture
def netns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The test, and what it starts, is in a fresh network namespace with an xtables lock of its own. The value is its descriptor."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    namespace = namespaces.create()
    try:
        with namespaces.entered(namespace):
            yield namespace
    finally:
        os.close(namespace)


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """A real API server for the whole run. Tests keep to namespaces and nodes of their own names, and leave it running."""
    from tests.kube.servers import ApiServer, programs

    with ApiServer(programs()) as server:
        yield server
