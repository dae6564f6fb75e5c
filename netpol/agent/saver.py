"""Saves the last written state from a thread of its own: a disk that is slow, or full, never holds up the kernel."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from netpol.agent.saved import SavedStateError, save
from netpol.rules.ruleset import Ruleset


class Saver:
    """Writes what it is given to a file. `complain` is told, by the saver's thread, why it could not; the next state is tried again."""

    def __init__(self, path: Path, complain: Callable[[SavedStateError], None]) -> None:
        self._path, self._complain = path, complain
        self._given: queue.SimpleQueue[Ruleset | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    def give(self, ruleset: Ruleset) -> None:
        """Has this state saved, soon. Of several that wait only the last one is."""
        self._given.put(ruleset)

    def close(self, timeout: float) -> None:
        """Saves what waits; gives up after so many seconds."""
        self._given.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            waiting = [self._given.get()]
            while not self._given.empty():
                waiting.append(self._given.get())
            states = [ruleset for ruleset in waiting if ruleset is not None]
            if states:
                try:
                    save(self._path, states[-1])
                except SavedStateError as error:
                    self._complain(error)
            if None in waiting:
                return
