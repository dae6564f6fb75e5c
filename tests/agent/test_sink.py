"""Where the drop log's lines go: a disk that has no room, a pipe that nobody reads."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netpol.agent import drops
from netpol.agent.drops import Sink

# In a process of its own, whose files may be 25 bytes long for a while: lines have ten.
PROGRAM = """
import resource, sys
from pathlib import Path
from netpol.agent.drops import Sink

def room(number):
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))

path, before, more = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sink = Sink(None if sys.argv[4:] else path)
sink.write([b'{"a": 10}\\n'] * before)
room(25)
number, error = sink.write([b'{"b": 10}\\n'] * more)
room(resource.RLIM_INFINITY)
print(number, error.errno, error.filename, file=sys.stderr)
sink.write([b'{"c": 10}\\n'])
"""


@pytest.mark.parametrize(("before", "more"), [(0, 3), (1, 2), (2, 1)], ids=["the first lines", "lines of many", "one line"])
def test_a_write_that_finds_no_room_leaves_no_half_line(tmp_path: Path, before: int, more: int) -> None:
    """It is an error, and so counted as left out; the next line stands by itself."""
    path = tmp_path / "drops"
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, str(before), str(more)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, f"0 {errno.ENOSPC} {path}\n")
    assert path.read_text().splitlines() == ['{"a": 10}'] * before + ['{"c": 10}']


@pytest.mark.parametrize("append", [False, True])
def test_the_same_of_standard_output(tmp_path: Path, append: bool) -> None:
    """Lines that were written whole stay, and are not counted as left out."""
    path = tmp_path / "drops"
    with path.open("ab" if append else "wb") as output:
        command = [sys.executable, "-c", PROGRAM, str(path), "1", "3", "out"]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, f"1 {errno.ENOSPC} standard output\n")
    assert path.read_text().splitlines() == ['{"a": 10}', '{"b": 10}', '{"c": 10}']


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    """It is not waited for without end; what it took are whole lines, and those are counted."""
    monkeypatch.setattr(drops, "TAKING", 0.05)
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    monkeypatch.setattr(drops, "STANDARD_OUTPUT", writer)
    lines = [b"%07d" % number + b"x" * 1000 + b"\n" for number in range(100)]
    number, error = Sink(None).write(lines)
    assert error is not None
    assert (error.errno, error.strerror) == (errno.EAGAIN, "nobody takes what is written to standard output")
    assert 0 < number < 100
    assert os.read(reader, 1 << 20) == b"".join(lines[:number])
    assert Sink(None).write(lines[number:])[0] > 0
    os.close(reader)
    found = Sink(None).write(lines[:1])[1]
    assert found is not None
    assert found.errno == errno.EPIPE
    os.close(writer)


def test_standard_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another file's by now."""
    monkeypatch.setattr(sys, "stdout", None)
    number, error = Sink(None).write([b"x\n"])
    assert (number, str(error)) == (0, f"[Errno {errno.EBADF}] standard output is closed")


def test_a_pipe_without_a_reader_in_place_of_the_file(tmp_path: Path) -> None:
    """An error, and no wait for one who reads."""
    os.mkfifo(tmp_path / "drops")
    number, error = Sink(tmp_path / "drops").write([b"x\n"])
    assert error is not None
    assert (number, error.errno) == (0, errno.ENXIO)
    (tmp_path / "drops").unlink()
    assert Sink(tmp_path / "drops").write([b"x\n"]) == (1, None)
