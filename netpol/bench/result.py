"""The figures of a case, from times to values. Pure: clocks are `netpol.bench.measure`'s, words and files `netpol.bench.report`'s.

Pairs, because a machine that others use drifts: what ours took is compared with what the peer took just before it. So a ratio is
the median of the ratios of the pairs, which is not the ratio of the two medians beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from msgspec import Struct


class PeerResult(Struct, frozen=True, omit_defaults=True):
    """Another way to the same end: milliseconds (median), and how many times ours that is (median of the pairs' ratios).

    goal -- the ratio that is demanded; None where none is.
    """

    ms: float
    ratio: float
    goal: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the ratio is what is demanded; None where nothing is."""
        return None if self.goal is None else self.ratio >= self.goal


class Figure(Struct, frozen=True, omit_defaults=True):
    """A figure that is held against a fixed goal and not against a peer.

    goal -- the most that it may be; with `least`, the least; None where nothing is demanded.
    """

    value: float
    unit: str
    goal: float | None = None
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is what is demanded; None where nothing is."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.least else self.value <= self.goal


class Result(Struct, frozen=True, omit_defaults=True):
    """One row: our milliseconds (median over `pairs` runs) and system calls for one operation, and the peers by name.

    mebibytes -- what it takes in memory, where that is the figure; most -- how much it may be.
    figures -- what else there is to say of it, by name.
    least_mebibytes, peak_mebibytes -- of the process that measured it, in memory: before the case began, and at most. None where no
    process was the row's own.
    """

    row: str
    ms: float
    peers: dict[str, PeerResult]
    system_calls: int
    pairs: int
    mebibytes: float | None = None
    most: float | None = None
    figures: dict[str, Figure] = {}
    least_mebibytes: float | None = None
    peak_mebibytes: float | None = None


def summarise(
    row: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float]],
    goals: Mapping[str, float],
    system_calls: int,
) -> Result:
    """The row of these times, seconds for one operation; ours[i] and peers[name][i] are a pair. ValueError when they do not pair up."""
    found: dict[str, PeerResult] = {}
    for name, times in peers.items():
        ratio = median(theirs / mine for theirs, mine in zip(times, ours, strict=True))
        found[name] = PeerResult(_milliseconds(times), round(ratio, 3), goals.get(name))
    return Result(row, _milliseconds(ours), found, system_calls, len(ours))


def waits(row: str, times: Sequence[float], median_goal: float, p99_goal: float, system_calls: int) -> Result:
    """The row of something waited for, whose slowest count too: seconds in, goals in milliseconds."""
    figures = {
        "median": Figure(_milliseconds(times), "ms", median_goal),
        "p99": Figure(round(percentile(times, 99) * 1000, 4), "ms", p99_goal),
    }
    return Result(row, _milliseconds(times), {}, system_calls, len(times), figures=figures)


def percentile(values: Sequence[float], share: int) -> float:
    """The smallest of the values that `share` % of them do not exceed. ValueError where there are none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[-(-share * len(values) // 100) - 1]


def _milliseconds(times: Sequence[float]) -> float:
    return round(median(times) * 1000, 4)
