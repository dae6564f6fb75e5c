"""sd_notify: tells a service manager, where there is one, that we are ready, how it stands, that we live, that we stop.

A datagram of NAME=VALUE lines to the socket that NOTIFY_SOCKET names (sd_notify(3)); without that variable nothing is sent. A manager
that cannot be reached, or whose socket is full, is no reason to stop enforcing: what he was not told he is told at the next occasion.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping

from netpol.errors import printable


class Notifier:
    """See the module. environment -- where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are; clock -- seconds that only go forward."""

    def __init__(self, environment: Mapping[str, str], pid: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._socket: socket.socket | None = None
        self._said: str | None = None
        self._is_ready = self._told_ready = False
        self._fed = clock()
        self.watchdog = _watchdog(environment, pid)
        """Seconds within which the manager wants to hear that we live; None where it does not care."""
        path = environment.get("NOTIFY_SOCKET", "")
        if path[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self._socket.connect("\0" + path[1:] if path[0] == "@" else path)

    def ready(self) -> None:
        """The service does what it is for. Said once, however long it takes until it can be."""
        self._is_ready = True
        self._pay()

    def _pay(self) -> None:
        if self._is_ready and not self._told_ready:
            self._told_ready = self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, words: str) -> None:
        """One line for `systemctl status`; sent when it is another one than last time."""
        self._pay()
        if words != self._said and self._send("STATUS=" + words.replace("\n", " ")):
            self._said = words

    def alive(self) -> None:
        """Feeds the watchdog, where there is one, in half of its time. To be called as often as one likes."""
        self._pay()
        if self.watchdog is not None and self._clock() - self._fed >= self.watchdog / 2 and self._send("WATCHDOG=1"):
            self._fed = self._clock()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _send(self, message: str) -> bool:
        """Whether it went, or nobody wants it."""
        if self._socket is None:
            return True
        try:
            self._socket.send(printable(message).encode())
        except OSError:
            return False
        return True


def _watchdog(environment: Mapping[str, str], pid: int) -> float | None:
    wanted, whose = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or whose not in ("", str(pid)):
        return None
    return int(wanted) / 1e6
