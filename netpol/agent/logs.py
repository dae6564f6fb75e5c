"""What the agent says to whoever runs it: lines on standard error, as text or as JSON, at a bounded rate.

Lines that come from one place in the code are let through as long as they are few; of a flood some are left out, and the next one that
is let through says how many. What is said once, at a start or an end, is never in the way of that, for its place is another one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import IO, Literal

from netpol.errors import printable

Form = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")

# A place in the code may say so many lines at once, and one more each so many seconds.
BURST = 20
REFILL = 3.0  # seconds
# More places than there are in any program: what varies by accident must not fill the memory.
PLACES = 1000


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


def configure(form: Form, level: str, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> logging.Logger:
    """Sends what all loggers of the process say, from that level on, to a stream; the logger for netpol's own words."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines(form))
    handler.addFilter(RateLimit(clock))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries say at lower levels what nobody who runs an agent can use.
    root.setLevel(logging.WARNING)
    own = logging.getLogger("netpol")
    own.setLevel(level.upper())
    return own
