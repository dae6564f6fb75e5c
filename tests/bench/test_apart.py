"""A case in a process of its own: the row comes back whole, with that process's memory; what goes wrong there is said here."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bench.floors import floor_cases
from netpol.bench import Case, cases
from netpol.bench.apart import apart
from netpol.bench.cases import node_cases
from netpol.bench.measure import BenchError, Contender, Contest

MEBIBYTE = 1 << 20


@contextmanager
def _made(here: int, wrong: bool, holds: int, directory: Path) -> Iterator[Contest]:
    """Two operations a run; `here` is the process that must not measure, `holds` MiB that a run needs for a moment."""

    def run() -> int:
        return len(bytearray(holds * MEBIBYTE)) // MEBIBYTE

    def verify(outcome: object) -> None:
        if wrong or outcome != holds:
            raise BenchError("nothing is there")
        if os.getpid() == here:
            raise BenchError("measured where the test is")

    made = Contender(lambda: None, run, verify)
    yield Contest(made, {"peer": made}, lambda: 0, operations=2)


def case(wrong: bool = False, holds: int = 1) -> Case:
    return Case("made up", 3, partial(_made, os.getpid(), wrong, holds))


def test_a_row_comes_from_another_process() -> None:
    """All of it: the pairs that the case asks for, the peers, our times one by one, how many operations they are of."""
    measured = apart(case())
    assert (measured.result.row, measured.result.pairs, set(measured.result.peers)) == ("made up", 3, {"peer"})
    assert len(measured.times) == 3
    assert measured.operations == 2
    assert len(apart(case(), pairs=1).times) == 1


def test_a_rows_memory_is_its_own() -> None:
    """What this process holds is not in it; what a run takes for a moment is."""
    ballast = bytearray(200 * MEBIBYTE)
    small, large = apart(case()).result, apart(case(holds=100)).result
    del ballast
    assert small.least_mebibytes is not None
    assert small.peak_mebibytes is not None
    assert large.peak_mebibytes is not None
    assert 0 < small.least_mebibytes <= small.peak_mebibytes < 200
    assert large.peak_mebibytes > small.peak_mebibytes + 50


def test_what_goes_wrong_there_is_said_here() -> None:
    """The words of the error, with the row and the contender, as when it is measured in this process."""
    with pytest.raises(BenchError, match=r"^made up: peer: nothing is there$"):
        apart(case(wrong=True))


@pytest.mark.parametrize("case", [*cases(), *floor_cases(), *node_cases(quick=True)], ids=lambda case: case.row)
def test_every_case_can_be_sent_to_another_process(case: Case) -> None:
    """None of them is made of what another process does not find by its name."""
    assert pickle.loads(pickle.dumps(case)).row == case.row
