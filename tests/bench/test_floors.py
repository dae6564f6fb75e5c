"""The bare loops in C do the same work as we do: the same set, the same table. tests/kernel/test_floor.py looks at what they send."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.floors import FLOOR, built, floor_cases
from netpol.bench import Case, measure
from netpol.bench.measure import BenchError, Contender
from netpol.kernel.xtables import TableSocket

CASES = floor_cases(300, 30)


def test_the_loop_loads_our_very_table(netns: int, tmp_path: Path) -> None:
    """The kernel holds the same entries, byte for byte, in the same order."""
    with CASES[-1].open(tmp_path) as contest, TableSocket(4) as reader:

        def loaded(contender: Contender) -> bytes:
            contender.prepare()
            contender.run()
            return bytes(reader.read("mangle").blob)

        bare = loaded(contest.peers[FLOOR])
        assert bare == loaded(contest.ours)
        assert len(bare) > 30 * 300


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_a_loop_is_verified_and_gives_a_row(case: Case) -> None:
    """The loop is the one peer; what the kernel holds afterwards is looked at as after any other."""
    result = measure(case, pairs=1)
    assert set(result.peers) == {FLOOR}
    assert result.peers[FLOOR].goal == case.goals.get(FLOOR)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_a_loop_that_does_nothing_is_found_out(case: Case, netns: int, tmp_path: Path) -> None:
    """What `prepare` leaves is not what is asked for."""
    with case.open(tmp_path) as contest:
        contest.peers[FLOOR].prepare()
        with pytest.raises(BenchError):
            contest.peers[FLOOR].verify(None)


def test_a_loop_that_fails_is_an_error(netns: int, tmp_path: Path) -> None:
    """A set of that name is there already: the kernel's word reaches whoever measures."""
    with CASES[0].open(tmp_path) as contest:
        contest.ours.run()
        with pytest.raises(BenchError, match="the loop failed"):
            contest.peers[FLOOR].run()


def test_what_does_not_compile_is_an_error_in_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without its loop would be no row."""
    monkeypatch.setattr("bench.floors.SOURCES", tmp_path)
    (tmp_path / "sets.c").write_text("int broken(void) { return nothing; }\n")
    with pytest.raises(BenchError, match="nothing"):
        built("sets", tmp_path)
