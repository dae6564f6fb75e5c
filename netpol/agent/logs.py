"""What the agent says to whoever runs it: lines on standard error, as text or as JSON, at a bounded rate.

Lines that come from one place in the code are let through as long as they are few; of a flood some are left out, and the next one that
is let through says how many. What is said once, at a start or an end, is never in the way of that, for its place is another one.

Lines are written by a thread of their own: whoever says something, the thread that enforces too, never waits for whoever reads. Where
nobody does, lines wait up to a number, and the rest is counted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Literal, TextIO

from netpol.errors import printable

Form = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")

# A place in the code may say so many lines at once, and one more each so many seconds.
BURST = 20
REFILL = 3.0  # seconds
# More places than there are in any program: what varies by accident must not fill the memory.
PLACES = 1000
# So many lines wait for whoever reads.
WAITING = 1000
# How long the end of the process waits for that.
LAST_WORDS = 0.5  # seconds


class RateLimit(logging.Filter):
    """See the module. `clock` -- seconds that only go forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, burst: int = BURST, refill: float = REFILL) -> None:
        super().__init__()
        self._clock, self._burst, self._refill = clock, burst, refill
        self._places: dict[tuple[str, int], tuple[float, float, int]] = {}  # (lines left, when, left out since)

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        place = (record.pathname, record.lineno)
        left, at, omitted = self._places.get(place, (float(self._burst), now, 0))
        left = min(left + (now - at) / self._refill, float(self._burst))
        if left < 1.0:
            self._places[place] = (left, now, omitted + 1)
            return False
        if len(self._places) >= PLACES:
            self._places.clear()
        self._places[place] = (left - 1.0, now, 0)
        record.omitted = omitted
        return True


class Lines(logging.Formatter):
    """A record as one line: the time in UTC, the level, who says it, the message, and what was left out before it."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        omitted = getattr(record, "omitted", 0)
        if self._form == "json":
            data = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
            # ASCII: what moves a cursor or turns the direction of writing is escaped, and half of a surrogate pair can be written.
            return json.dumps(data | ({"omitted": omitted} if omitted else {}), separators=(",", ":"))
        # One record is one line, whatever names an object has, and none of them moves a terminal's cursor.
        message = "\n  ".join(map(printable, message.split("\n")))
        return f"{moment} {record.levelname.lower():7} {message}" + (f" ({omitted} more like this were left out)" if omitted else "")


class Writer(logging.Handler):
    """Writes lines to a file descriptor, by a thread of its own. What waits is bounded; the first line after a gap says how long it is."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._left_out = descriptor, 0
        self._lines: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held, which `logging` sees to."""
        if self._lines.qsize() >= WAITING:
            self._left_out += 1 + getattr(record, "omitted", 0)
            return
        if self._left_out:
            words = "%d lines were left out before this: nobody read them"
            gap = logging.LogRecord(__name__, logging.WARNING, __file__, 0, words, (self._left_out,), None)
            self._lines.put(self._line(gap))
            self._left_out = 0
        self._lines.put(self._line(record))

    def flush(self) -> None:
        """Waits until all is written, and not for long: `logging` calls it as the process ends."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(LAST_WORDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            with suppress(Exception):  # the reader is gone, or there is no memory: there is nobody to tell
                self._write(line)

    def _write(self, line: bytes) -> None:
        """All of it, however little is taken at a time, and whether or not the descriptor blocks."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])


def speaker(stream: TextIO | None) -> Callable[[str], None]:
    """Says lines as they are on a stream, where there is one: as the log's, they keep nobody who says something."""
    logger = logging.Logger(__name__)
    if stream is not None:
        logger.addHandler(Writer(stream.fileno()))
    return logger.info


def configure(form: Form, level: str, descriptor: int, clock: Callable[[], float] = time.monotonic) -> logging.Logger:
    """Sends what all loggers of the process say, from that level on, to a file descriptor; the logger for netpol's own words."""
    handler = Writer(descriptor)
    handler.setFormatter(Lines(form))
    handler.addFilter(RateLimit(clock))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries say at lower levels what nobody who runs an agent can use.
    root.setLevel(logging.WARNING)
    own = logging.getLogger("netpol")
    own.setLevel(level.upper())
    return own
