"""The state is saved off the loop's thread, and again where it could not be."""

from __future__ import annotations

import queue
from pathlib import Path

from netpol.agent.saved import SavedStateError, load
from netpol.agent.saver import Saver
from netpol.rules.compile import Settings
from netpol.rules.compile.skeleton import closed
from netpol.rules.ruleset import Ruleset
from tests.agent.process import until

ONE, OTHER = Ruleset({}, {}), closed(Settings(), ())


def test_what_cannot_be_saved_is_tried_again(tmp_path: Path) -> None:
    """It is said once, whatever the number of tries; the last state that was given is saved as soon as that goes, without another one."""
    told: queue.SimpleQueue[SavedStateError] = queue.SimpleQueue()
    path = tmp_path / "later" / "state"
    saver = Saver(path, told.put, again=0.01)
    saver.give(ONE)
    assert str(told.get(timeout=10)) == f"the state could not be saved: {path}: No such file or directory"
    saver.give(OTHER)
    path.parent.mkdir()
    until(path.exists)
    until(lambda: load(path) == OTHER)
    saver.close(10)
    assert told.empty()


def test_it_is_said_anew_when_it_went_meanwhile(tmp_path: Path) -> None:
    """The same reason later is another matter."""
    told: queue.SimpleQueue[SavedStateError] = queue.SimpleQueue()
    path = tmp_path / "state"
    path.mkdir()
    saver = Saver(path, told.put, again=0.01)
    saver.give(ONE)
    first = str(told.get(timeout=10))
    path.rmdir()
    until(path.exists)
    until(lambda: load(path) == ONE)
    path.unlink()
    path.mkdir()
    saver.give(OTHER)
    assert str(told.get(timeout=10)) == first
    saver.close(10)
    assert told.empty()


def test_the_end_does_not_wait_for_another_try(tmp_path: Path) -> None:
    """What waits is tried once more, and that is all."""
    told: queue.SimpleQueue[SavedStateError] = queue.SimpleQueue()
    saver = Saver(tmp_path / "nowhere" / "state", told.put, again=1000)
    saver.give(ONE)
    told.get(timeout=10)
    saver.close(10)
    assert not saver._thread.is_alive()
    assert told.empty()
