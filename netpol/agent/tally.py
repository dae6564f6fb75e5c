"""What the agent counts about itself, as plain numbers: each written by one thread only, read by any.

`netpol.agent.metrics` gives them the names that monitoring knows. They are kept apart so that counting imports nothing and costs next
to nothing: a number is read while another one is written, so two of them may differ by what happened in between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from netpol.model import Object, Policy

# Seconds. From what a single set member takes to what nobody wants to wait.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def kind_name(kind: type[Object]) -> str:
    """What the API calls a kind."""
    return "NetworkPolicy" if kind is Policy else kind.__name__


class Histogram:
    """How often a duration fell into each of the ranges that `BOUNDS` parts; the last one is open."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def observe_all(self, seconds: Iterable[float]) -> None:
        for one in seconds:
            self.observe(one)


class Tally:
    """See the module."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()  # kind, type
        self.enforced = Histogram()  # from an event's arrival until the kernel is as it wants
        self.applies = Histogram()
        self.audits = Histogram()
        self.refusals = 0
        self.system_calls = 0
        self.drift: Counter[str] = Counter()
        self.object_errors: Counter[str] = Counter()
        # By the thread that cuts flows.
        self.sweeps = Histogram()
        self.sweep_failures = 0
        self.cut = 0  # flows marked
        self.given_back = 0  # flows whose mark was taken away
