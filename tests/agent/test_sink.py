"""The drop log's file where the disk has no room for it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, whose files may be 25 bytes long for a while: lines have ten.
PROGRAM = """
import resource, sys
from pathlib import Path
from netpol.agent.drops import Sink

def room(number):
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))

path, before, more = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sink = Sink(path)
sink.write(b'{"a": 10}\\n' * before)
room(25)
try:
    sink.write(b'{"b": 10}\\n' * more)
except OSError as error:
    print(error.errno, error.filename)
room(resource.RLIM_INFINITY)
sink.write(b'{"c": 10}\\n')
"""


@pytest.mark.parametrize(("before", "more"), [(0, 3), (1, 2), (2, 1)], ids=["the first lines", "lines of many", "one line"])
def test_a_write_that_finds_no_room_leaves_no_half_line(tmp_path: Path, before: int, more: int) -> None:
    """It is an error, and so counted as left out; the next line stands by itself."""
    path = tmp_path / "drops"
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, str(before), str(more)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{errno.ENOSPC} {path}\n"
    assert path.read_text().splitlines() == ['{"a": 10}'] * before + ['{"c": 10}']
