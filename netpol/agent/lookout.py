"""Preflight again and again: what changes on a node after the agent came is seen within a minute.

A thread of its own, in the network namespace of whoever started it, with sockets of its own: enforcement waits for none of this. What
fails or warns is told when it comes, and when it is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from netpol.agent.lasting import lasting
from netpol.agent.preflight import Check, obstacles

INTERVAL = 60.0  # seconds, while nothing stands in the way
AGAIN = 5.0  # seconds, while something does: who mends it shall not wait long
ENDING = 0.5  # seconds


class Lookout:
    """See the module. look -- does all checks; tell -- called with a check that is other than before, by the thread."""

    def __init__(self, look: Callable[[], tuple[Check, ...]], tell: Callable[[Check], None]) -> None:
        self._look, self._tell = look, tell
        self._checks: tuple[Check, ...] = ()
        self._stopping = threading.Event()
        self._thread = lasting("lookout", self._run)

    def start(self) -> None:
        """Looks once, and then from the thread."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(ENDING)

    def obstacles(self) -> list[str]:
        """What was found last to make enforcement an illusion, a sentence each. For any thread."""
        return obstacles(self._checks)

    def look(self) -> None:
        """Looks now. For one thread at a time."""
        before, self._checks = self._checks, self._look()
        gone = {check.name for check in before if check.level != "ok"}
        for check in self._checks:
            if check not in before and (check.level != "ok" or check.name in gone):
                self._tell(check)

    def _run(self) -> None:
        while not self._stopping.wait(AGAIN if self.obstacles() else INTERVAL):
            self.look()
