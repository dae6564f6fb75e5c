"""Files that change: waits for the kernel to say so, and leaves finding out what to whoever reads them."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable

from netpol.errors import KernelError
from netpol.kernel._native import ffi, lib
from netpol.kernel.turns import CLOSED, Closing, exclusive

# Editors write, rename and delete in several steps: a burst is over when nothing has come for so long.
QUIET = 0.05  # seconds
LONGEST = 1.0  # of a burst: some files never rest


class Watcher(Closing):
    """Watches files and directories (with all below them). For one thread at a time; a context manager.

    A path that is replaced by another file of its name is still seen, for its directory is watched.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
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

    @exclusive
    def close(self) -> None:
        """Ends it; a second time does nothing. InUse while another thread waits: nothing would wake it."""
        if self._fd >= 0:
            lib.np_sys_close(self._fd, self._calls)
            self._fd = -1

    @exclusive
    def refresh(self) -> None:
        """Watches what is there now: directories that came since the last time, too."""
        for path in self._paths:
            top = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
            folders = [top] if top != path else [folder for folder, _, _ in os.walk(path)]
            for folder in folders:
                code = int(lib.np_sys_inotify_watch(self._fd, os.fsencode(folder), self._calls))
                # One below that is gone again since it was found: whoever reads will not find it either.
                if code < 0 and (code != -errno.ENOENT or folder == top):
                    raise KernelError(-code, "inotify", folder, CLOSED if code == -errno.EBADF else os.strerror(-code))

    @exclusive
    def wait(self, seconds: float | None = None) -> bool:
        """Whether something changed within that time (None: waits for as long as it takes), once the burst of changes is over, or has been
        going on for LONGEST."""
        if self._fd < 0:
            raise KernelError(errno.EBADF, "inotify", "wait", CLOSED)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if seconds is None else seconds * 1000):
            return False
        end = time.monotonic() + LONGEST
        while True:
            os.read(self._fd, 1 << 16)
            if time.monotonic() >= end or not poll.poll(QUIET * 1000):
                return True
