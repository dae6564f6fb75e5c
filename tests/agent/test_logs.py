"""What the agent says: one line a record, in both forms, and how a flood is bounded."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from netpol.agent.logs import BURST, PLACES, REFILL, Form, RateLimit, configure


class Scene:
    """A stream that what is said goes to, and the clock of the rate limit."""

    def __init__(self) -> None:
        self.stream, self.now = io.StringIO(), 0.0

    def logger(self, form: Form, level: str = "info") -> logging.Logger:
        return configure(form, level, self.stream, lambda: self.now)

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """The process' own loggers are put back afterwards."""
    root, own = logging.getLogger(), logging.getLogger("netpol")
    before = root.handlers[:], root.level, own.level
    yield Scene()
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)


def test_text_is_one_line_with_time_and_level(scene: Scene) -> None:
    """Arguments are filled in, and lines inside a message are indented so that nobody can forge one."""
    scene.logger("text").warning("NetworkPolicy %s: %s", "x/p", "first\n2026-01-01T00:00:00.000Z error   forged")
    first, second = scene.lines()
    assert first[10] == "T"
    assert first[23:] == "Z warning NetworkPolicy x/p: first"
    assert second.startswith("  2026")


def test_text_moves_no_cursor(scene: Scene) -> None:
    """What is not printable is escaped: a terminal's commands, a carriage return, what turns the direction of writing."""
    scene.logger("text").warning("Pod %s", "a\x1b[2J\r\u202e\x9b\ud800é")
    (line,) = scene.lines()
    assert line.endswith(r"Pod a\x1b[2J\r\u202e\x9b\ud800é")


def test_json_moves_no_cursor(scene: Scene) -> None:
    """A line is printable, without DEL, the controls of C1 and what turns the direction of writing; who reads it has the very message."""
    told = "a\x1b[2J\r\n\x7f\x85\x9b31m\u202e\ud800é"
    scene.logger("json").warning("Pod %s", told)
    line = scene.stream.getvalue().removesuffix("\n")
    assert line.isprintable()
    assert json.loads(line)["message"] == f"Pod {told}"


def test_json_is_one_object_a_line(scene: Scene) -> None:
    """With an error's traceback inside the message."""
    log = scene.logger("json")
    try:
        raise ValueError("what\nwent wrong")
    except ValueError:
        log.exception("the loop ended")
    (line,) = scene.lines()
    data = json.loads(line)
    assert (data["level"], data["logger"]) == ("error", "netpol")
    assert data["message"].startswith("the loop ended\nTraceback")
    assert "went wrong" in data["message"]


@pytest.mark.parametrize(
    ("level", "said"),
    [
        pytest.param("debug", ["d", "i", "w", "e"], id="debug"),
        pytest.param("info", ["i", "w", "e"], id="info"),
        pytest.param("warning", ["w", "e"], id="warning"),
        pytest.param("error", ["e"], id="error"),
    ],
)
def test_levels(scene: Scene, level: str, said: list[str]) -> None:
    """The level is of our own words; libraries are heard from warnings on."""
    log = scene.logger("text", level)
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    logging.getLogger("urllib3").info("chatter")
    assert [line.rpartition(" ")[2] for line in scene.lines()] == said
    logging.getLogger("urllib3").warning("trouble")
    assert scene.lines()[-1].endswith("trouble")


def test_a_flood_is_bounded(scene: Scene) -> None:
    """One place may say `BURST` lines at once and one more each `REFILL` seconds; other places go on."""
    log = scene.logger("text")

    def say(times: int) -> None:
        for number in range(times):
            log.info("flood %d", number)

    say(1000)
    assert len(scene.lines()) == BURST
    log.info("elsewhere")
    assert scene.lines()[-1].endswith("elsewhere")
    scene.now += 2.5 * REFILL
    say(1000)
    assert len(scene.lines()) == BURST + 1 + 2
    scene.now += 1e6
    say(1000)
    assert len(scene.lines()) == BURST + 1 + 2 + BURST


def test_the_next_line_says_how_many_were_left_out(scene: Scene) -> None:
    """In words, and as a number."""
    log = scene.logger("json")

    def say() -> None:
        log.info("again")

    for _ in range(BURST + 7):
        say()
    scene.now += REFILL
    say()
    assert json.loads(scene.lines()[-1])["omitted"] == 7
    assert "omitted" not in json.loads(scene.lines()[0])


def test_places_are_bounded() -> None:
    """However many places say something, the limit remembers a bounded number."""
    limit = RateLimit(lambda: 0.0)
    for line in range(3 * PLACES):
        assert limit.filter(logging.LogRecord("x", logging.INFO, "file.py", line, "m", (), None))
    assert len(limit._places) <= PLACES
