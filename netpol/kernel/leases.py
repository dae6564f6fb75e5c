"""Whether somebody is writing a file now: the kernel gives a read lease (fcntl(2), F_SETLEASE) only where nobody has it open for that."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

_SETSIG = getattr(fcntl, "F_SETSIG", 10)


def is_being_written(path: str) -> bool:
    """False also where the kernel does not say: another user's file, without CAP_LEASE; a file system without leases; no file at all."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Whoever opens it in this very moment waits until the lease is given back, and we get a signal: one that nobody heeds, not SIGIO.
        fcntl.fcntl(descriptor, _SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False
