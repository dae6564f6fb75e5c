"""How long to wait after a failure before an API server is asked again: longer each time, at random, and as the server says. No clock."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct


class Timing(Struct, frozen=True):
    """All in seconds. The waits after failures double from the first to the last, and each is between half of its value and all of it."""

    first_wait: float = 1.6
    brief_wait: float = 0.1  # the same, after a watch that a server ended in good order before it said anything: it cannot keep up
    last_wait: float = 30.0
    longest_retry_after: float = 120.0  # what a server may ask of us
    watch: tuple[int, int] = (300, 600)  # how long a watch is asked to last, at random in between
    silence: float = 150.0  # without a byte, where a server sends a bookmark about every minute
    short: float = 1.0  # a watch that ends sooner and said nothing has failed
    steady: float = 10.0  # a watch that lasts so long lets the waits begin anew


class Pause(Struct, frozen=True):
    """Nothing is to be asked for some seconds. outage -- for nobody was there to ask: it is over as soon as the server answers anybody."""

    seconds: float
    outage: bool = False


class Waits:
    """random -- numbers from 0 to 1."""

    def __init__(self, timing: Timing, random: Callable[[], float]) -> None:
        self._timing, self._random = timing, random
        self._failures = 0
        self._forgotten = 0  # how many of those failures were that the server had forgotten where we were
        self._next: Pause | None = None

    @property
    def are_over(self) -> bool:
        """Whether the next failure counts as the first."""
        return self._failures == 0

    def fail(self, retry_after: float | None = None, first: float | None = None, outage: bool = False) -> None:
        """A request failed. retry_after -- what the server asked for; first -- how long after the first failure, where that is not as after
        others; outage -- nobody was there."""
        timing = self._timing
        longest = min(timing.last_wait, (timing.first_wait if first is None else first) * 2.0 ** min(self._failures, 16))
        self._failures += 1
        seconds = max(longest * (0.5 + 0.5 * self._random()), min(retry_after or 0.0, timing.longest_retry_after))
        self._next = Pause(seconds, outage and retry_after is None)

    def take(self) -> Pause | None:
        """The wait that the last failure asks for, once."""
        pause, self._next = self._next, None
        return pause

    def begin_anew(self) -> None:
        self._failures = self._forgotten = 0

    def forgotten(self) -> None:
        """The server has forgotten where we were, and so is well again: the waits of its outage are over. Such failures are counted by
        themselves: one that forgets at once, again and again, is not asked for everything as often. To be said before `fail`."""
        self._failures = self._forgotten
        self._forgotten += 1
