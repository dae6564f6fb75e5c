"""`make bench-compare`: which figures make a row slower, and both sides really run, each with its own tree's code."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from bench.compare import LIMIT, PAIRS, ROUNDS, TRIES, Comparison, Contender, Seconds, compared, in_turn, pair_of, shown

ROOT = Path(__file__).parents[2]
ROW = "2 sets swapped, one of 1k"


def machine(slower: float, seed: int) -> Callable[[], list[Seconds]]:
    """Pairs of processes on a busy machine: it drifts up to threefold, a process is up to 15 % off, a run 10 %, one in ten breaks out."""
    random = Random(seed)

    def run(process: float, now: float) -> float:
        return process * now * random.uniform(0.95, 1.05) * (random.uniform(2, 10) if random.random() < 0.1 else 1)

    def pair() -> list[Seconds]:
        ours, theirs = (0.01 * random.uniform(0.925, 1.075) for _ in range(2))
        times = [random.uniform(1, 3) for _ in range(ROUNDS)]
        return [(slower * run(ours, now), run(theirs, now)) for now in times]

    return pair


def drawn(slower: float) -> list[Comparison]:
    """So much slower than itself, on 200 such machines."""
    found = [compared("row", machine(slower, seed)) for seed in range(200)]
    return [comparison for comparison in found if comparison is not None]


def test_the_same_code_is_not_slower_than_itself() -> None:
    """Whatever a busy machine does to both."""
    comparisons = drawn(1.0)
    assert len(comparisons) == 200
    assert max(comparison.ratio for comparison in comparisons) <= LIMIT


def test_three_tenths_slower_is_slower() -> None:
    """On the same machines; and it is measured as often as anything is before that is said."""
    comparisons = drawn(1.3)
    assert min(comparison.ratio for comparison in comparisons) > LIMIT
    assert {len(comparison.ratios) for comparison in comparisons} == {PAIRS * TRIES}


def ratios(*values: float) -> Callable[[], Sequence[Seconds]]:
    """Pairs of processes with these ratios, one after another."""
    given: Iterator[float] = itertools.chain(values, itertools.repeat(values[-1]))
    return lambda: [(0.001 * next(given), 0.001)]


@pytest.mark.parametrize(
    ("given", "pairs", "ratio"),
    [
        pytest.param((1.0, 1.0, 1.0, 9.0, 9.0), 5, 1.0, id="some processes are far off"),
        pytest.param((1.04,), 5, 1.04, id="nearer to 1 than to the limit"),
        pytest.param((1.2, 1.2, 1.2, 1.0), 10, 1.0, id="in doubt, and then not slower"),
        pytest.param((1.06,), 15, 1.06, id="in doubt to the end"),
        pytest.param((0.5,), 5, 0.5, id="faster"),
    ],
)
def test_doubt_is_measured_again(given: tuple[float, ...], pairs: int, ratio: float) -> None:
    """Five pairs of processes, and twice as many more where their median is nearer to the limit than to 1."""
    comparison = compared("row", ratios(*given))
    assert comparison is not None
    assert len(comparison.ratios) == pairs
    assert comparison.ratio == pytest.approx(ratio)


def test_a_process_counts_by_its_median_round() -> None:
    """One round in which something else ran is no slowness."""
    comparison = compared("row", lambda: [(0.001, 0.001), (0.009, 0.001), (0.001, 0.001)])
    assert comparison == Comparison("row", 1.0, 1.0, (1.0,) * PAIRS)


def test_a_row_that_one_tree_lacks_is_not_compared() -> None:
    """No pair of processes, no figure."""
    assert compared("row", list) is None


def test_the_table_says_who_is_slower() -> None:
    """The median, the spread over pairs of processes, and a word."""
    words = shown(Comparison("a row", 2.4, 2.0, (1.1, 1.2, 1.3)), LIMIT)
    assert words.split() == ["a", "row", "2.4", "2", "1.20", "1.10-1.30", "in", "3", "slower"]
    assert "slower" not in shown(Comparison("a row", 2.0, 2.0, (1.0,)), LIMIT)


# -- two trees ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tree, in which a swap writes down the process that did it."""
    tree = tmp_path_factory.mktemp("other")
    shutil.copytree(ROOT / "netpol", tree / "netpol", ignore=shutil.ignore_patterns("__pycache__"))
    module = tree / "netpol" / "kernel" / "ipset.py"
    mark = f"import os\nopen({str(tree / 'swapped')!r}, 'a').write(f'{{os.getpid()}} ')\n"
    text = module.read_text()
    line = "        if isinstance(command, Swap):\n"
    assert text.count(line) == 1
    module.write_text(text.replace(line, line + "".join(f"            {part}\n" for part in mark.splitlines())))
    return tree


def test_each_side_runs_its_own_trees_code(other: Path) -> None:
    """Every run of the other tree's process is a run of the code there, and none of ours is."""
    with Contender(ROOT, ROW) as ours, Contender(other, ROW) as theirs:
        assert ours.there
        assert theirs.there
        swaps = len((other / "swapped").read_text().split())
        times = in_turn(ours, theirs, 4)
    assert all(seconds > 0 for pair in times for seconds in pair)
    marks = (other / "swapped").read_text().split()
    assert len(set(marks)) == 1
    assert len(marks) > swaps > 0


def test_each_pair_has_fresh_processes(other: Path) -> None:
    """Two pairs, two processes of the other tree."""
    (other / "swapped").unlink(missing_ok=True)
    assert len(pair_of(ROOT, other, ROW)) == len(pair_of(ROOT, other, ROW)) == ROUNDS
    assert len(set((other / "swapped").read_text().split())) == 2


def test_a_tree_without_the_row_gives_no_pair(other: Path) -> None:
    """An older revision, or one that named it otherwise."""
    assert pair_of(ROOT, other, "no such row") == []


def test_a_tree_that_fails_ends_the_comparison(other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own words, and which process it was."""
    with pytest.raises(SystemExit, match=r"contender\.py"), Contender(tmp_path, ROW):
        pass
    assert "netpol" in capfd.readouterr().err


def test_a_revision_that_git_does_not_know_is_an_error() -> None:
    """Nothing is measured then."""
    done = subprocess.run([sys.executable, "-m", "bench.compare", "no-such-revision"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no-such-revision" in done.stderr


def test_the_two_sides_take_turns() -> None:
    """By turns the one or the other first, so that neither always runs in the other's wake."""
    log: list[str] = []

    class Made:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self) -> float:
            log.append(self.name)
            return 1.0 if self.name == "ours" else 2.0

    assert in_turn(Made("ours"), Made("theirs"), 4) == [(1.0, 2.0)] * 4  # type: ignore[arg-type]  # no processes
    assert log == ["ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours"]
