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


def test_who_opens_the_file_while_it_is_looked_at(tmp_path: Path) -> None:
    """He waits for the look to end, and the signal that the kernel sends for it ends nobody."""
    program = """
import fcntl, sys, threading, time
from netpol.kernel import leases

real = fcntl.fcntl

def slowly(descriptor, what, value):
    found = real(descriptor, what, value)
    if (what, value) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
        threading.Thread(target=open, args=(sys.argv[1], "a")).start()
        time.sleep(0.3)
    return found

leases.fcntl.fcntl = slowly
print(leases.is_being_written(sys.argv[1]))
"""
    (tmp_path / "file").write_text("x")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "file"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_what_the_kernel_does_not_tell_of(tmp_path: Path) -> None:
    """A file that is not there, a directory, a pipe: nobody is writing, nothing is waited for, and nothing stays open."""
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    assert not any(is_being_written(str(path)) for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"))
    assert len(os.listdir("/proc/self/fd")) == before
