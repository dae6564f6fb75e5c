"""Files that change: waits for the kernel to say so, and leaves finding out what to whoever reads them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from types import TracebackType

from netpol.errors import KernelError
from netpol.kernel._native import ffi, lib

# Editors write, rename and delete in several steps: a burst is over when nothing has come for so long.
QUIET = 0.05  # seconds
LONGEST = 1.0  # of a burst: some files never rest


class Watcher:
    """Watches files and directories (with all below them). For one thread; a context manager.

    A path that is replaced by another file of its name is still seen, for its directory is watched.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._calls = ffi.new("uint64_t *")
        self._paths = tuple(paths)
        self._fd = int(lib.np_sys_inotify_open(self._calls))
        if self._fd < 0:
            raise KernelError(-self._fd, "inotify", "open", os.strerror(-self._fd))
        try:
            self.refresh()
        except BaseException:
            lib.np_sys_close(self._fd, self._calls)
            raise

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lib.np_sys_close(self._fd, self._calls)

    def refresh(self) -> None:
        """Watches what is there now: directories that came since the last time, too."""
        for path in self._paths:
            top = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
            folders = [top] if top != path else [folder for folder, _, _ in os.walk(path)]
            for folder in folders:
                code = int(lib.np_sys_inotify_watch(self._fd, os.fsencode(folder), self._calls))
                if code < 0:
                    raise KernelError(-code, "inotify", folder, os.strerror(-code))

    def wait(self, seconds: float | None = None) -> bool:
        """Whether something changed within that time (None: waits for as long as it takes), once the burst of changes is over, or has been
        going on for LONGEST."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if seconds is None else seconds * 1000):
            return False
        end = time.monotonic() + LONGEST
        while True:
            os.read(self._fd, 1 << 16)
            if time.monotonic() >= end or not poll.poll(QUIET * 1000):
                return True
