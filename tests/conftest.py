"""What all tests share: a network namespace of their own, and how long hypothesis may look.

Without root the whole run moves into its own user namespace before anything else happens (it must still have one thread).
NETPOL_HYPOTHESIS_PROFILE=mutants is for `make mutants`: the same few examples each time, and none made simpler.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

from netpol.kernel import namespaces

if TYPE_CHECKING:
    from tests.kube.servers import ApiServer

if os.geteuid() != 0:
    namespaces.enter_private_world()
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # it has no types

    with IPRoute() as routes:
        routes.link("set", index=1, state="up")  # for servers on the loopback

MADE = (Phase.explicit, Phase.generate)
settings.register_profile("mutants", max_examples=20, derandomize=True, database=None, deadline=None, phases=MADE)
if profile := os.environ.get("NETPOL_HYPOTHESIS_PROFILE"):
    settings.load_profile(profile)


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
