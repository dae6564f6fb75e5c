"""What the netlink sockets of this room have in common: a descriptor that C works on, closed once, and the count of its system calls."""

from __future__ import annotations

from typing import Any

from netpol.kernel._native import ffi, lib
from netpol.kernel.turns import Closing, last


class NetlinkSocket(Closing):
    """A netlink socket in the network namespace in which it was opened; `_native` is a struct of C with its `fd` and `calls`."""

    _native: Any

    @last
    def close(self) -> None:
        """Closes the socket; a second time does nothing."""
        if self._native.fd >= 0:
            lib.np_sys_close(self._native.fd, ffi.addressof(self._native, "calls"))
            self._native.fd = -1

    def fileno(self) -> int:
        return int(self._native.fd)

    @property
    def calls(self) -> int:
        """System calls so far, those of opening and closing included."""
        return int(self._native.calls)
