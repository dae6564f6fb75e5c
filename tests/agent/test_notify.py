"""What a service manager hears, on a real socket of its kind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netpol.agent.notify import Notifier


class Manager:
    """The other end."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["file", "abstract"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a manager listens: both forms of NOTIFY_SOCKET."""
    return str(tmp_path / "notify") if request.param == "file" else f"@netpol-test-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def manager(place: str) -> Iterator[Manager]:
    made = Manager(place)
    yield made
    made.socket.close()


def test_what_is_said(manager: Manager, place: str) -> None:
    """Ready, a status each time that it is another one, stopping."""
    notifier = Notifier({"NOTIFY_SOCKET": place}, 1, lambda: 0.0)
    notifier.status("waits\nfor Pods")
    notifier.status("waits\nfor Pods")
    notifier.ready()
    notifier.status("in force")
    notifier.alive()
    notifier.stopping()
    notifier.close()
    assert manager.heard() == ["STATUS=waits for Pods", "READY=1", "STATUS=in force", "STOPPING=1"]


def test_a_manager_who_does_not_listen_for_a_while(manager: Manager, place: str) -> None:
    """His socket is full: all that he was not told he is told when there is room, each once; the watchdog is fed as soon as it can be."""
    now = 0.0
    notifier = Notifier({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "60000000"}, 1, lambda: now)
    while True:
        try:
            notifier._socket.send(b"x")  # type: ignore[union-attr]
        except BlockingIOError:
            break
    now = 30.0
    notifier.ready()
    notifier.status("in force")
    notifier.alive()
    assert set(manager.heard()) == {"x"}
    now = 31.0
    for _ in range(2):
        notifier.alive()
        notifier.status("in force")
    assert manager.heard() == ["READY=1", "WATCHDOG=1", "STATUS=in force"]
    notifier.close()


def test_words_that_are_no_text(manager: Manager, place: str) -> None:
    """Somebody's bytes, in the name of a chain, do not end who says them."""
    notifier = Notifier({"NOTIFY_SOCKET": place}, 1, lambda: 0.0)
    notifier.status("the chain x\udcff")
    notifier.close()
    assert manager.heard() == ["STATUS=the chain x\\udcff"]


def test_the_watchdog_is_fed_in_half_of_its_time(manager: Manager, place: str) -> None:
    """However often the loop says that it lives."""
    now = 0.0
    notifier = Notifier({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "17"}, 17, lambda: now)
    assert notifier.watchdog == 2.0
    for _ in range(31):
        notifier.alive()
        now += 0.125
    notifier.close()
    assert manager.heard() == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="none"),
        pytest.param({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "18"}, id="another process'"),
        pytest.param({"WATCHDOG_USEC": "0"}, id="zero"),
        pytest.param({"WATCHDOG_USEC": "soon"}, id="no number"),
    ],
)
def test_no_watchdog(environment: dict[str, str]) -> None:
    """What is not meant for this process, or nonsense, is none."""
    assert Notifier(environment, 17, lambda: 0.0).watchdog is None


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="no manager"),
        pytest.param({"NOTIFY_SOCKET": ""}, id="empty"),
        pytest.param({"NOTIFY_SOCKET": "relative"}, id="relative"),
        pytest.param({"NOTIFY_SOCKET": "/nowhere/at/all"}, id="nobody there"),
    ],
)
def test_nobody_to_tell_is_no_trouble(environment: dict[str, str]) -> None:
    """Everything may be called, and nothing happens."""
    notifier = Notifier({**environment, "WATCHDOG_USEC": "1"}, 1, lambda: 1.0)
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    notifier.close()
