"""The cases as benchmarks of pytest-benchmark, so that its options (--benchmark-json, -compare, -histogram ...) work on them.

What it times is our half of each pair; the peers' halves and the ratios are in extra_info. A run of some cases consists of several
operations: "operations" in extra_info says how many, and only "result" there is for one.
"""

from __future__ import annotations

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.floors import floor_cases
from netpol.bench import Case, Result, cases
from netpol.bench.apart import apart
from netpol.bench.cases import LARGE, MEMORY_GOAL, short
from netpol.bench.memory import footprint


class Replay:
    """A clock for pytest-benchmark on which each call of `run` takes what a run took in the process that measured it."""

    def __init__(self, times: tuple[float, ...]) -> None:
        self._times, self._now = iter(times), 0.0

    def __call__(self) -> float:
        return self._now

    def run(self) -> None:
        self._now += next(self._times)


@pytest.mark.parametrize("case", [*cases(), *floor_cases()], ids=lambda case: case.row)
def test_case(case: Case, request: pytest.FixtureRequest, results: list[Result]) -> None:
    """Does what it is asked for, as every peer does; then it is timed against them."""
    measured = apart(case)
    replay = Replay(measured.times)
    request.applymarker(pytest.mark.benchmark(timer=replay))
    benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
    benchmark.pedantic(replay.run, rounds=len(measured.times))  # type: ignore[no-untyped-call]  # it has no types
    benchmark.extra_info.update(result=msgspec.to_builtins(measured.result), operations=measured.operations)
    results.append(measured.result)


@pytest.mark.parametrize("own", [False, True], ids=["workloads", "own labels"])
def test_memory(results: list[Result], own: bool) -> None:
    """A large cluster with all its indexes, in a process of its own."""
    alone = ", each with a label of its own," if own else ""
    results.append(footprint(f"{short(LARGE[0])} pods{alone} in memory", *LARGE, MEMORY_GOAL, own))
