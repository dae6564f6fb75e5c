"""Sleep with an open eye: a thread rests, and C looks meanwhile whether the kernel says the same as it did.

A look of Python's costs ten times what it asks the kernel: a thread that wakes up has to be found again in every cache. So what the last
look of Python's was told is kept as bytes, and C asks for it again, without the interpreter and its lock. Whatever is not the very same
ends the sleep; whether it matters is for others to say.

Invariants: what C compares with are the bytes that a look of Python's was told and found right; a bell that is rung ends the sleep, also
where it rang before.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Sequence

from netpol.kernel._native import ffi, lib
from netpol.kernel.ipset import IpsetSocket, Records
from netpol.kernel.xtables import TableSocket
from netpol.rules.ruleset import TableName

NANO = 1_000_000_000


class Bell:
    """What wakes a sleeper, or keeps it from falling asleep. Any thread may ring, any number of times; one sleeps."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self.descriptor)

    def ring(self) -> None:
        os.eventfd_write(self.descriptor, 1)

    def wait(self, seconds: float) -> None:
        """Sleeps until it is rung, but no longer than that."""
        _slept(lib.np_sys_await(self.descriptor, time.monotonic_ns() + int(seconds * NANO), ffi.new("uint64_t *")))


class Watch:
    """What is looked at, and how; for one thread at a time, as the sockets whose answers it compares."""

    def __init__(self) -> None:
        self._native = ffi.new("struct np_watch *")
        self._tables = ffi.new("struct np_watch_table[]", 0)  # what C's pointer points to

    def arm(self, table: TableName, tables: Sequence[TableSocket], ipset: IpsetSocket, records: Records) -> None:
        """From now on this is how things are: what these sockets were told last about the table, and sets by their headers."""
        self._tables = ffi.new("struct np_watch_table[]", [socket.watched(table) for socket in tables])
        fields = {"tables": self._tables, "table_count": len(self._tables), **ipset.watched(records)}
        self._native = ffi.new("struct np_watch *", fields)

    def sleep(self, bell: Bell, first: float, every: float, until: float) -> float:
        """Until the bell is rung or time is over; looks at `first`, and then each `every` seconds. Ends with the look that found something
        else, or could not ask.

        The value is when the next look is due: 0 after one that found something. Times are of time.monotonic, in seconds.
        """
        native = self._native
        native.bell, native.next, native.every = bell.descriptor, int(first * NANO), int(every * NANO)
        if _slept(lib.np_watch(native, int(until * NANO))) == lib.NP_WATCH_TOUCHED:
            return 0.0
        return float(native.next / NANO)


def _slept(code: int) -> int:
    """What a sleep ended by. Signals may; where nobody can sleep at all a loop would never rest, and OSError is raised."""
    if code < 0 and code != -errno.EINTR:
        raise OSError(-code, os.strerror(-code))
    return code
