"""What the agent says: one line a record, in both forms, and how a flood is bounded."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netpol.agent.logs import BURST, LAST_WORDS, PLACES, REFILL, WAITING, Form, RateLimit, configure
from tests.agent.process import until


class Scene:
    """A file that what is said goes to, and the clock of the rate limit."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        self.file = path.open("wb")

    def logger(self, form: Form, level: str = "info", descriptor: int | None = None) -> logging.Logger:
        return configure(form, level, self.file.fileno() if descriptor is None else descriptor, lambda: self.now)

    def text(self) -> str:
        (writer,) = logging.getLogger().handlers
        writer.flush()
        return self.path.read_text()

    def lines(self) -> list[str]:
        return self.text().splitlines()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """The process' own loggers are put back afterwards."""
    root, own = logging.getLogger(), logging.getLogger("netpol")
    before = root.handlers[:], root.level, own.level
    scene = Scene(tmp_path / "log")
    with scene.file:
        yield scene
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
    line = scene.text().removesuffix("\n")
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


# -- whoever reads -----------------------------------------------------------------------------------------------------


class Pipe:
    """A pipe that holds a page, is full from the start, and is read when the test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)
        os.write(self.writing, b"x" * 4095 + b"\n")
        os.set_blocking(self.reading, False)
        self.read = b""

    def lines(self) -> list[str]:
        """What has been read, after one more look, without what filled it."""
        with suppress(BlockingIOError):
            while part := os.read(self.reading, 65536):
                self.read += part
        return self.read.decode().splitlines()[1:]

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            os.close(descriptor)


@pytest.fixture(params=[True, False], ids=["blocking", "non-blocking"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    pipe = Pipe()
    os.set_blocking(pipe.writing, request.param)
    yield pipe
    pipe.lines()
    pipe.close()


def test_who_speaks_does_not_wait_for_who_reads(scene: Scene, pipe: Pipe) -> None:
    """Nobody reads: what is said waits, up to a number, and then is counted; when somebody does, it is all there, in its order."""
    log = scene.logger("text", descriptor=pipe.writing)
    # One is out of the queue, and waits in the thread that writes.
    log.warning("0")
    (writer,) = logging.getLogger().handlers
    until(lambda: writer._lines.qsize() == 0)  # type: ignore[attr-defined]  # nothing else tells
    for number in range(1, WAITING + 20):
        scene.now += REFILL
        log.warning("%d", number)
    until(lambda: len(pipe.lines()) == WAITING + 1)
    scene.now += REFILL
    log.warning("after")
    log.warning("again")
    until(lambda: pipe.lines()[-1].endswith("again"))
    said = [line.partition(" warning ")[2] for line in pipe.lines()]
    gap = "19 lines were left out before this: nobody read them"
    assert said == [*map(str, range(WAITING + 1)), gap, "after", "again"]


def test_a_line_that_is_longer_than_a_pipe(scene: Scene, pipe: Pipe) -> None:
    """It is read whole, though a page of it is taken at a time."""
    scene.logger("text", descriptor=pipe.writing).warning("%s", "x" * 20_000 + "end")
    until(lambda: pipe.lines()[-1:] and pipe.read.endswith(b"\n"))
    (line,) = pipe.lines()
    assert line.endswith(" warning " + "x" * 20_000 + "end")


def test_what_a_flood_left_out_is_counted_with_the_rest(scene: Scene, pipe: Pipe) -> None:
    """A line that would have said how many were left out before it is left out itself."""
    log = scene.logger("json", descriptor=pipe.writing)
    log.warning("0")
    (writer,) = logging.getLogger().handlers
    until(lambda: writer._lines.qsize() == 0)  # type: ignore[attr-defined]  # as above

    def say() -> None:
        log.warning("again")

    for _ in range(BURST + 7):
        say()
    for number in range(WAITING - BURST):
        scene.now += REFILL
        log.warning("%d", number)
    say()
    until(lambda: len(pipe.lines()) == WAITING + 1)
    log.error("after")
    until(lambda: len(pipe.lines()) == WAITING + 3)
    gap, after = [json.loads(line) for line in pipe.lines()[-2:]]
    assert gap["message"].startswith("8 lines were left out")
    assert (gap["level"], after["message"]) == ("warning", "after")


def test_the_end_does_not_wait_long_for_who_reads(scene: Scene, pipe: Pipe) -> None:
    """What is not written then is not, and the process ends."""
    scene.logger("text", descriptor=pipe.writing).warning("nobody reads this")
    (writer,) = logging.getLogger().handlers
    began = time.monotonic()
    writer.flush()
    assert LAST_WORDS <= time.monotonic() - began < 4 * LAST_WORDS


def test_a_reader_that_went_away(scene: Scene) -> None:
    """Nothing can be said to nobody; a file that is there again, under the same descriptor, has the next line."""
    reading, writing = os.pipe()
    os.close(reading)
    log = scene.logger("text", descriptor=writing)
    log.warning("lost")
    scene.text()
    os.dup2(scene.file.fileno(), writing)
    log.warning("heard")
    (line,) = scene.lines()
    os.close(writing)
    assert line.endswith("heard")


def test_a_line_that_cannot_be_written_is_not_the_last(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in its way: the thread that writes goes on with the next one."""
    log = scene.logger("text")
    real, tries = os.write, list[bytes]()

    def write(descriptor: int, data: bytes) -> int:
        tries.append(data)
        if len(tries) == 1:
            raise MemoryError
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    log.warning("lost")
    log.warning("heard")
    (line,) = scene.lines()
    assert line.endswith("heard")
