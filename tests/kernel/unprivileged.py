"""What the kernel says to a thread without its rights."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

_NET_ADMIN = 12  # CAP_NET_ADMIN
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def refusal(act: Callable[[], object]) -> BaseException:
    """What `act` raises in a thread that gave up CAP_NET_ADMIN."""
    libc = ctypes.CDLL(None, use_errno=True)
    caught: list[BaseException] = []

    def unprivileged() -> None:
        header, data = _Header(_VERSION, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(ctypes.byref(header), data) == 0
        data[0] &= ~(1 << _NET_ADMIN)
        assert libc.capset(ctypes.byref(header), data) == 0
        try:
            act()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=unprivileged)
    thread.start()
    thread.join()
    return caught[0]
