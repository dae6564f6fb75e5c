"""A mistake that nobody foresaw ends no thread: it is logged, and the work begins again."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from netpol.agent import files, lasting, saver
from netpol.agent.announcer import Announcer
from netpol.agent.drops import DropLog
from netpol.agent.files import FileSource
from netpol.agent.health import Health
from netpol.agent.lookout import Lookout
from netpol.agent.saved import load
from netpol.agent.saver import Saver
from netpol.errors import InvalidObject
from netpol.kube.events import Event, Put
from netpol.model import EVERYTHING, Pod, Policy
from tests.agent.process import until
from tests.agent.test_files import POD
from tests.agent.test_saver import ONE


def broken(*_: object) -> NoReturn:
    raise ZeroDivisionError("nobody foresaw it")


def test_the_work_begins_again_and_ends_when_it_is_done(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake is logged with its place, once until it is another one; between two tries there is time."""
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    mistakes = [ValueError("one"), ValueError("one"), ValueError("other"), ValueError("one")]

    def work() -> None:
        if mistakes:
            raise mistakes.pop(0)

    thread = lasting.lasting("worker", work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    words = "a mistake in the thread 'worker', which begins again; the rules stay in force"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.ERROR, words)] * 3
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["one", "other", "one"]
    assert rests == [lasting.AGAIN] * 4
    assert thread.daemon
    assert thread.name == "worker"


def test_the_same_mistake_long_afterwards_is_another_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What was well for more than a minute and is not any more is logged again."""
    now, lengths = [0.0], [0.0, lasting.LONG, lasting.LONG + 1, 1.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    logged: list[int] = []

    def work() -> None:
        logged.append(len(caplog.records))
        if lengths:
            now[0] += lengths.pop(0)
            raise ValueError

    thread = lasting.lasting("worker", work)
    thread.start()
    thread.join(10)
    assert logged == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("kind", "given"),
    [(Announcer, (None, None)), (DropLog, (0, None, None, None)), (Health, ("", 0, {}, None)), (Lookout, (None, None))],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_threads_that_only_tell_outlive_mistakes(monkeypatch: pytest.MonkeyPatch, kind: Any, given: tuple[Any, ...]) -> None:
    """Each of them begins again; started as it is in the agent."""
    monkeypatch.setattr(lasting, "AGAIN", 0.0)
    monkeypatch.setattr(Lookout, "look", lambda self: None)
    begun: list[str] = []

    def run(self: object) -> None:
        begun.append(threading.current_thread().name)
        if len(begun) == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(kind, "_run", run)
    made = kind(*given)
    if hasattr(made, "start"):
        made.start()
    until(lambda: len(begun) == 2)
    assert begun == [made._thread.name] * 2


@pytest.mark.parametrize("ends", [False, True], ids=["at once", "at the end"])
def test_a_state_is_saved_after_a_mistake(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The very one that it was made with: nobody gives it again."""
    monkeypatch.setattr(lasting, "AGAIN", 0.0)
    path = tmp_path / "state"
    keeper = Saver(path, lambda error: None, again=1000 if ends else 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(saver, "save", broken)
        keeper.give(ONE)
        until(lambda: bool(caplog.records))
    if not ends:
        until(path.exists)
    keeper.close(10)
    assert load(path) == ONE
    assert not keeper._thread.is_alive()


def test_a_mistake_with_one_policy_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said, and those behind it are."""
    monkeypatch.setattr(lasting, "AGAIN", 0.0)
    said: list[str] = []

    def say(_: object, namespace: str, name: str, errors: object) -> None:
        said.append(name)
        if name == "bad":
            raise ZeroDivisionError

    monkeypatch.setattr(Announcer, "_say", say)
    announcer = Announcer(cast(Any, None), said.append, pause=0.0)
    error = (InvalidObject("NetworkPolicy x/bad", "spec", "nobody foresaw it"),)
    for name in ("bad", "good", "fine"):
        announcer.tell(Put(Policy("x", name, EVERYTHING, (), None), error))
    until(lambda: said == ["bad", "good", "fine"])
    announcer.close(10)


def test_files_are_followed_after_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What changed while it was made is found."""
    monkeypatch.setattr(lasting, "AGAIN", 0.0)
    monkeypatch.setattr(files, "GLANCE", 0.01)
    said: list[str] = []

    def hear(*events: Event) -> None:
        said.extend(event.object.name for event in events if isinstance(event, Put) and isinstance(event.object, Pod))

    source = FileSource([str(tmp_path)], hear, lambda error: None)
    with monkeypatch.context() as patch:
        patch.setattr(files, "stamp", broken)
        source.start()
        until(lambda: bool(caplog.records))
        (tmp_path / "a.json").write_text(POD % "a")
    until(lambda: said == ["a"])
