"""The checks of preflight, again and again: what changes is told, and what stands in the way is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netpol.agent import lookout
from netpol.agent.lookout import Lookout
from netpol.agent.preflight import Check
from tests.agent.process import until


def checks_of(*levels: str) -> tuple[Check, ...]:
    return tuple(Check(f"c{number}", level, level) for number, level in enumerate(levels))  # type: ignore[arg-type]  # levels


def test_what_changes_is_told_once() -> None:
    """What comes, and what is gone; not what stays as it is, nor what is fine."""
    rounds = iter([checks_of("ok", "fail"), checks_of("warn", "fail"), checks_of("ok", "ok"), checks_of("ok", "ok")])
    told: list[tuple[str, str]] = []
    watch = Lookout(lambda: next(rounds), lambda check: told.append((check.name, check.level)))
    expected: list[list[tuple[str, str]]] = [[("c1", "fail")], [("c0", "warn")], [("c0", "ok"), ("c1", "ok")], []]
    for said in expected:
        told.clear()
        watch.look()
        assert told == said
    assert watch.obstacles() == []


def test_the_thread_looks_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the way is gone without anybody asking, soon after it is."""
    monkeypatch.setattr(lookout, "AGAIN", 0.01)
    monkeypatch.setattr(lookout, "INTERVAL", 0.01)
    fine: Callable[[], bool] = lambda: len(rounds) > 3  # noqa: E731 -- two names for what the looks count
    rounds: list[int] = []

    def look() -> tuple[Check, ...]:
        rounds.append(1)
        return checks_of("ok" if fine() else "fail")

    watch = Lookout(look, lambda check: None)
    watch.start()
    assert watch.obstacles() == ["c0: fail"]
    until(lambda: watch.obstacles() == [])
    watch.stop()
    assert not watch._thread.is_alive()
