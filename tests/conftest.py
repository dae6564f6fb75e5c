"""What all tests share: a network namespace of their own.

Without root the whole run moves into its own user namespace before anything else happens (it must still have one thread).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netpol.kernel import namespaces

if os.geteuid() != 0:
    namespaces.enter_private_world()


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
