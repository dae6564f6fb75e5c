"""Measuring by itself: pairs, operations, failures that are named, caches that are forgotten, members, words."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from netpol.bench import Case, PeerResult, Result, Session, measure
from netpol.bench.measure import BenchError, Contender, Contest, forget
from netpol.bench.members import Make, networks, pod_addresses, scattered_addresses
from netpol.bench.peers import execute, output
from netpol.bench.report import table
from netpol.bench.result import summarise
from tests.referees import require

ROOT = Path(__file__).parent.parent.parent


class Made:
    """A case whose contenders write down what happens; a run is three operations of two calls. `wrong` names the one that fails."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.log: list[str] = []
        self.calls = 0

    def case(self) -> Case:
        return Case("made up", 2, self._open, {"peer": 2.0})

    def _contender(self, name: str) -> Contender:
        return Contender(self._note(f"{name} prepared"), self._run(name), self._verify(name))

    def _note(self, word: str) -> Callable[[], None]:
        return lambda: self.log.append(word)

    def _run(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.log.append(f"{name} run")
            self.calls += 6
            return name

        return run

    def _verify(self, name: str) -> Callable[[object], None]:
        def verify(outcome: object) -> None:
            self.log.append(f"{name} verified {outcome}")
            if self.wrong == name:
                raise BenchError("wrong")

        return verify

    @contextmanager
    def _open(self, directory: Path) -> Iterator[Contest]:
        peers = {name: self._contender(name) for name in ("peer", "other")}
        yield Contest(self._contender("ours"), peers, lambda: self.calls, operations=3)
        self.log.append("closed")


def test_contenders_take_turns() -> None:
    """All are verified once before anything is timed; then each round is the peers and ours, each prepared just before it."""
    made = Made()
    result = measure(made.case())
    checked = [f"{name} {word}" for name in ("peer", "other", "ours") for word in ("prepared", "run", f"verified {name}")]
    a_round = [f"{name} {word}" for name in ("peer", "other", "ours") for word in ("prepared", "run")]
    assert made.log == [*checked, *a_round, *a_round, "closed"]
    assert (result.row, result.pairs, set(result.peers)) == ("made up", 2, {"peer", "other"})
    assert (result.peers["peer"].goal, result.peers["other"].goal) == (2.0, None)


def test_a_run_of_several_operations_is_divided() -> None:
    """System calls, as times, are those of one operation."""
    assert measure(Made().case()).system_calls == 2


@pytest.mark.parametrize(("wrong", "name"), [("ours", "netpol"), ("peer", "peer")], ids=["ours", "a peer"])
def test_who_does_not_do_what_was_asked_is_named(wrong: str, name: str) -> None:
    """A failed verification says the row and the contender, nothing is measured, and the session is closed."""
    made = Made(wrong)
    with pytest.raises(BenchError, match=f"made up: {name}: wrong"):
        measure(made.case())
    assert made.log[-1] == "closed"
    assert made.log.count("peer run") == 1


def test_a_case_that_does_not_open_leaves_the_thread_where_it_was() -> None:
    """What was entered for it is left again."""
    home = Path("/proc/thread-self/ns/net").readlink()

    def fails(directory: Path) -> AbstractContextManager[Contest]:
        raise BenchError("no")

    with pytest.raises(BenchError, match="no"), Session(Case("fails", 1, fails)):
        pass
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    """Not the ratio of the medians, which would be 3 here."""
    result = summarise("row", [0.001, 0.002, 0.010], {"peer": [0.010, 0.005, 0.006]}, {"peer": 3.5}, 7)
    assert result == Result("row", 2.0, {"peer": PeerResult(6.0, 2.5, 3.5)}, 7, 3)


def test_times_that_do_not_pair_up_are_refused() -> None:
    """A round that was broken off must not shift the pairs."""
    with pytest.raises(ValueError, match="zip"):
        summarise("row", [1.0, 2.0], {"peer": [1.0]}, {}, 1)


def test_caches_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of functions of the kernel room's modules; others are not ours to empty."""

    def module(name: str) -> Callable[[int], int]:
        cached = lru_cache(lambda number: number + 1)
        made = ModuleType(name)
        vars(made)["cached"] = cached
        monkeypatch.setitem(sys.modules, name, made)
        assert cached(1) == 2
        return cached

    kernel, other = module("netpol.kernel.made_up"), module("netpol.rules.made_up")
    forget()
    assert [vars(sys.modules[f"netpol.{room}.made_up"])["cached"].cache_info().currsize for room in ("kernel", "rules")] == [0, 1]
    assert (kernel(1), other(1)) == (2, 2)


@pytest.mark.parametrize(
    ("make", "size"), [(pod_addresses, 4), (scattered_addresses, 4), (networks, 6)], ids=["pods", "scattered", "networks"]
)
def test_members_are_as_many_as_asked_for_and_the_same_every_time(make: Make, size: int) -> None:
    """Packed, distinct, and independent of what was made before."""
    members = make(1000)
    assert len(members) == 1000
    assert {len(member) for member in members} == {size}
    assert make(1000) == members
    assert make(10) != members


def test_members_have_the_shapes_they_are_named_after() -> None:
    """Pods' addresses mostly have a neighbour, scattered ones do not; one network in ten is nomatch, and none is there both ways."""

    def neighbours(members: frozenset[bytes]) -> int:
        return sum((int.from_bytes(member, "big") + 1).to_bytes(4, "big") in members for member in members)

    assert neighbours(pod_addresses(1000)) > 900
    assert neighbours(scattered_addresses(1000)) < 10
    nets = networks(1000)
    assert sum(member[5] for member in nets) == 100
    assert len({member[:5] for member in nets}) == 1000


@pytest.mark.parametrize("start", [execute, output], ids=["execute", "output"])
def test_a_program_that_fails_is_an_error(start: Callable[..., object], capfd: pytest.CaptureFixture[str]) -> None:
    """With its exit code, and its own words: in the error, or where they go by themselves."""
    require("ipset")
    with pytest.raises(BenchError, match=r"^ipset bogus: exit code [1-9]") as caught:
        start("ipset", "bogus")
    assert "argument bogus" in str(caught.value) + capfd.readouterr().err


def test_only_the_peers_start_programs() -> None:
    """Of the whole room, one module imports what programs are started with."""
    found = set()
    for file in sorted((ROOT / "netpol" / "bench").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {"subprocess", "multiprocessing", "asyncio", "pty"} & set(names):
                found.add(file.name)
    assert found == {"peers.py"}


def test_the_table_says_which_goals_were_met() -> None:
    """Each peer has a line with its ratio, its goal, and a word that needs no colour."""
    peers = {"fast": PeerResult(20.0, 9.99, 10.0), "slow": PeerResult(250.0, 10.0, 10.0), "free": PeerResult(0.5, 0.25)}
    alone = Result("alone", 0.00451, {}, 2, 3, least_mebibytes=31.6, peak_mebibytes=78.2)
    rows = [Result("a row", 2.0, peers, 5, 3, least_mebibytes=33.0, peak_mebibytes=64.0), alone]
    drawn = table(rows, 120, colours=False)
    lines = {name: next(line for line in drawn.splitlines() if f" {name} " in line) for name in (*peers, "alone")}
    assert all(part in lines["fast"] for part in ("a row", "2.00", " 5 ", "20.0", "9.99x", ">= 10x missed"))
    assert all(part in lines["slow"] for part in ("250", "10.0x", ">= 10x met"))
    assert "0.25x" in lines["free"]
    assert ">=" not in lines["free"]
    assert all(part in lines["alone"] for part in ("0.0045", "nothing installed"))
    assert "Linux" in drawn
    assert "32 MiB resident before a case, 78 MiB at most" in drawn
    assert "\x1b" not in drawn
