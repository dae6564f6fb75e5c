"""`make bench-compare REV=...`: whether this tree is slower than another revision of it, row by row.

A row is measured in pairs of fresh processes, one of each tree, which both live at once and take turns: a pair's figure is the median of
the ratios of its rounds, so that a machine that others use slows both alike; a row's is the median over the pairs, for one process
differs from the next by where its memory happens to lie. Where that is nearer to the limit than to 1, as many pairs again decide, twice.

The other revision is taken out of git into build/compare, built there, and kept for the next time. Both trees run with this tree's
Python and its packages. Each brings its own cases: a row of the same name that does other work is compared all the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import TracebackType

from msgspec import Struct

from netpol.bench.cases import cases, node_cases
from netpol.kernel import namespaces

ROOT = Path(__file__).resolve().parents[1]
CONTENDER = ROOT / "bench" / "contender.py"
LIMIT = 1.10
PAIRS, TRIES, ROUNDS = 5, 3, 7  # pairs of processes at a time, how often at most, and rounds in each

Seconds = tuple[float, float]  # this tree's, the other's


class Comparison(Struct, frozen=True):
    """A row: this tree's milliseconds, the other's, and how many times the other's ours are, in each pair of processes."""

    row: str
    ms: float
    other_ms: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return median(self.ratios)


def compared(row: str, pair: Callable[[], Sequence[Seconds]], limit: float = LIMIT) -> Comparison | None:
    """The comparison of a row; `pair` runs a pair of processes and gives the seconds of its rounds. None where it gives none."""
    found: list[Sequence[Seconds]] = []
    ratios: list[float] = []
    for _ in range(TRIES):
        for _ in range(PAIRS):
            if not (rounds := pair()):
                return None
            found.append(rounds)
            ratios.append(median(ours / theirs for ours, theirs in rounds))
        if median(ratios) <= (1 + limit) / 2:
            break
    ours, theirs = (median(times[side] for rounds in found for times in rounds) * 1000 for side in (0, 1))
    return Comparison(row, ours, theirs, tuple(ratios))


class Contender:
    """A tree's process for a row, as a context manager. `there`: the tree has the row. SystemExit where the process ends early."""

    there = False

    def __init__(self, tree: Path, row: str) -> None:
        self._tree, self._command = tree, [sys.executable, str(CONTENDER), str(tree), row]

    def __enter__(self) -> Contender:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self._tree)
        try:
            self.there = self._line() == "ready"
        except BaseException:
            self._process.communicate()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()

    def run(self) -> float:
        """The seconds of one operation, in one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended: exit code {self._process.wait()}")
        return line.strip()


def in_turn(ours: Contender, theirs: Contender, rounds: int = ROUNDS) -> list[Seconds]:
    """Each round is one run of both, by turns the one or the other first."""
    found = []
    for number in range(rounds):
        if number % 2:
            after = theirs.run()
            found.append((ours.run(), after))
        else:
            found.append((ours.run(), theirs.run()))
    return found


def pair_of(tree: Path, other: Path, row: str) -> list[Seconds]:
    """The rounds of a fresh process of each tree; none where one of them has no such row."""
    with Contender(tree, row) as ours, Contender(other, row) as theirs:
        return in_turn(ours, theirs) if ours.there and theirs.there else []


# -- trees -------------------------------------------------------------------------------------------------------------


def taken_out(revision: str) -> Path:
    """The tree of a revision, built; SystemExit where git knows no such revision."""
    asked = subprocess.run(["git", "rev-parse", "--verify", f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        raise SystemExit(f"{revision!r} is no revision: {asked.stderr.strip()}")
    commit = asked.stdout.strip()
    tree = ROOT / "build" / "compare" / commit[:12]
    if not tree.exists():
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True)
    return tree


def shown(comparison: Comparison, limit: float) -> str:
    """A line of the table."""
    spread = f"{min(comparison.ratios):.2f}-{max(comparison.ratios):.2f} in {len(comparison.ratios)}"
    verdict = "  slower" if comparison.ratio > limit else ""
    return f"{comparison.row:<52} {comparison.ms:>10.4g} {comparison.other_ms:>10.4g} {comparison.ratio:>6.2f}  {spread:<16}{verdict}"


def main(arguments: Sequence[str]) -> int:
    """Compares; the exit code: 1 where a row is slower than the limit allows."""
    parser = argparse.ArgumentParser(prog="make bench-compare", description="Compare this tree with another revision, row by row.")
    parser.add_argument("revision", metavar="REV", help="what git knows: a commit, a branch, a tag, HEAD~3")
    parser.add_argument("--only", metavar="TEXT", help="rows of `make bench` whose names contain this (else the rows of `netpol bench`)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"how many times the other's time a row may take ({LIMIT:.2f})")
    options = parser.parse_args(arguments)
    rows = [case.row for case in (node_cases() if options.only is None else cases()) if (options.only or "") in case.row]
    if not rows:
        raise SystemExit(f"no row has {options.only!r} in its name")
    other = taken_out(options.revision)
    if os.geteuid() != 0:
        namespaces.enter_private_world()
    print(f"{'':<52} {'this, ms':>10} {other.name[:10]:>10} {'ratio':>6}  in pairs of processes")
    slower = []
    for row in rows:
        comparison = compared(row, partial(pair_of, ROOT, other, row), options.limit)
        if comparison is None:
            print(f"{row:<52} not in {options.revision}")
            continue
        print(shown(comparison, options.limit), flush=True)
        if comparison.ratio > options.limit:
            slower.append(row)
    print(f"{len(slower)} of {len(rows)} rows take more than {options.limit:.2f} times as long as in {options.revision}.")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
