"""Files that somebody is writing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from netpol.kernel.leases import is_being_written


def test_who_has_a_file_open_for_writing_is_writing_it(tmp_path: Path) -> None:
    """Until he closes it, whatever he does with it, and also another process; readers do not count, nor do other files."""
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("x")
    other.write_text("x")
    with file.open():
        assert not is_being_written(str(file))
    for mode in ("a", "r+", "w"):
        with file.open(mode):
            assert is_being_written(str(file))
            assert not is_being_written(str(other))
        assert not is_being_written(str(file))
    (tmp_path / "link").symlink_to("file")
    script = "import sys; file = open(sys.argv[1], 'a'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert is_being_written(str(tmp_path / "link"))
        process.stdin.close()
        process.wait(20)
    assert not is_being_written(str(file))


def test_what_the_kernel_does_not_tell_of(tmp_path: Path) -> None:
    """A file that is not there, a directory, a pipe: nobody is writing, nothing is waited for, and nothing stays open."""
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    assert not any(is_being_written(str(path)) for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"))
    assert len(os.listdir("/proc/self/fd")) == before
