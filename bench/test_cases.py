"""The cases as benchmarks of pytest-benchmark, so that its options (--benchmark-json, -compare, -histogram ...) work on them.

What it times is our half of each pair; the peers' halves and the ratios are in extra_info. A run of some cases consists of several
operations: "operations" in extra_info says how many, and only "result" there is for one.
"""

from __future__ import annotations

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.floors import floor_cases
from netpol.bench import Case, Result, Session, cases
from netpol.bench.cases import LARGE, MEMORY_GOAL, short
from netpol.bench.memory import footprint


@pytest.mark.parametrize("case", [*cases(), *floor_cases()], ids=lambda case: case.row)
def test_case(case: Case, benchmark: BenchmarkFixture, results: list[Result]) -> None:
    """Does what it is asked for, as every peer does; then it is timed against them."""
    with Session(case) as session:
        session.verify()
        benchmark.pedantic(session.ours, setup=session.prepare, rounds=case.pairs)  # type: ignore[no-untyped-call]  # it has no types
        result = session.result()
        benchmark.extra_info.update(result=msgspec.to_builtins(result), operations=session.operations)
    results.append(result)


def test_memory(results: list[Result]) -> None:
    """A large cluster with all its indexes, in a process of its own."""
    results.append(footprint(f"{short(LARGE[0])} pods in memory", *LARGE, MEMORY_GOAL))
