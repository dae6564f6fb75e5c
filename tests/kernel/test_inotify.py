"""Files that change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netpol.errors import KernelError
from netpol.kernel.inotify import Watcher


def test_what_cannot_be_watched_leaves_nothing_open(tmp_path: Path) -> None:
    """A directory that is not there is an error that names it, and no descriptor stays behind."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError, match="gone"):
        Watcher([str(tmp_path / "gone" / "policy.yaml")])
    assert len(os.listdir("/proc/self/fd")) == before
