"""Saves the last written state from a thread of its own: a disk that is slow, or full, never holds up the kernel.

What cannot be saved is tried again after a while, for the next change may be days away.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

from netpol.agent.lasting import lasting
from netpol.agent.saved import SavedStateError, save
from netpol.rules.ruleset import Ruleset

AGAIN = 10.0  # seconds


class Saver:
    """Writes what it is given to a file. `complain` is told once, by the saver's thread, why it could not, until it could."""

    def __init__(self, path: Path, complain: Callable[[SavedStateError], None], again: float = AGAIN) -> None:
        self._path, self._complain, self._again = path, complain, again
        self._state: Ruleset | None = None  # what is not saved yet; a mistake of ours does not lose it
        self._given: queue.SimpleQueue[Ruleset | None] = queue.SimpleQueue()
        self._thread = lasting("saver", self._run)
        self._thread.start()

    def give(self, ruleset: Ruleset) -> None:
        """Has this state saved, soon. Of several that wait only the last one is."""
        self._given.put(ruleset)

    def close(self, timeout: float) -> None:
        """Saves what waits; gives up after so many seconds."""
        self._given.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        told = ""
        while True:
            waiting = self._next(None if self._state is None else self._again)
            self._state = next((ruleset for ruleset in reversed(waiting) if ruleset is not None), self._state)
            try:
                if self._state is not None:
                    save(self._path, self._state)
                self._state, told = None, ""
            except SavedStateError as error:
                if str(error) != told:
                    self._complain(error)
                told = str(error)
            if None in waiting:
                return

    def _next(self, timeout: float | None) -> list[Ruleset | None]:
        """All that waits, and at least one, or nothing when it is time to try again."""
        try:
            waiting = [self._given.get(timeout=timeout)]
        except queue.Empty:
            return []
        while not self._given.empty():
            waiting.append(self._given.get())
        return waiting
