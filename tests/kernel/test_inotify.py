"""Files that change."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from netpol.errors import KernelError
from netpol.kernel import inotify
from netpol.kernel.inotify import Watcher


def test_what_cannot_be_watched_leaves_nothing_open(tmp_path: Path) -> None:
    """A directory that is not there is an error that names it, and no descriptor stays behind."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError, match="gone"):
        Watcher([str(tmp_path / "gone" / "policy.yaml")])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_goes_while_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no error, and what comes behind it is watched."""
    (tmp_path / "short").mkdir()
    (tmp_path / "stays").mkdir()
    found = sorted(os.walk(tmp_path))
    (tmp_path / "short").rmdir()
    monkeypatch.setattr(os, "walk", lambda path: iter(found))
    with Watcher([str(tmp_path)]) as watcher:
        (tmp_path / "stays" / "new").touch()
        assert watcher.wait(0)


def test_changes_without_end_are_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that never rests does not keep what changed from being told."""
    # However seldom this machine lets the writer write, it is no rest.
    monkeypatch.setattr(inotify, "QUIET", 10.0)
    stop, told = threading.Event(), list[bool]()

    def write() -> None:
        while not stop.is_set():
            (tmp_path / "busy").write_text("x")

    with Watcher([str(tmp_path)]) as watcher:
        threads = [threading.Thread(target=write), threading.Thread(target=lambda: told.append(watcher.wait()))]
        for thread in threads:
            thread.start()
        threads[1].join(20)
        found = list(told)
        stop.set()
        for thread in threads:
            thread.join()
    assert found == [True]


@pytest.mark.parametrize("seconds", [0, 0.01])
def test_nothing_changes(tmp_path: Path, seconds: float) -> None:
    """A wait with an end ends without a change."""
    with Watcher([str(tmp_path)]) as watcher:
        assert not watcher.wait(seconds)
        (tmp_path / "new").touch()
        assert watcher.wait(seconds)
        assert not watcher.wait(seconds)
