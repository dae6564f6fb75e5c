"""What `netpol demo` starts and what it leaves: nothing, but for the user's own shell. And what a terminal sees."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from netpol.cli.demo import EXAMPLE, example
from tests.cli.demos import ROOT, after_programming, demo
from tests.referees import require, run

COMMAND = (sys.executable, "-W", "error", "-m", "netpol.cli.main", "demo")


def test_nothing_is_executed(tmp_path: Path) -> None:
    """Neither an audit hook nor strace sees a program, or a process, started by a whole demo."""
    require("strace")
    script = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nseen = []\n"
        "sys.addaudithook(lambda name, _: seen.append(name) if name.split('.')[0] in ('subprocess', 'pty') or "
        "name in ('os.fork', 'os.forkpty', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.system') else None)\n"
        "from netpol.cli.main import main\n"
        "try:\n    main(['demo'])\nexcept SystemExit as end:\n    print(seen, end.code)\n"
    )
    trace = tmp_path / "trace"
    words = ("strace", "-f", "-qq", "-e", "trace=execve,execveat,fork,vfork", "-e", "signal=none", "-o", str(trace))
    lines = run(*words, sys.executable, "-W", "error", "-c", script).splitlines()
    assert lines[-1] == "[] 0"
    assert lines[-2].endswith("nothing was executed.")
    calls = [line for line in trace.read_text().splitlines() if "exited" not in line]
    assert len(calls) == 1, calls
    assert sys.executable in calls[0]


NOBODY = """
import ctypes, os, sys
from netpol.cli.main import main

def demo(*arguments):
    try:
        main(["demo", "--json", *arguments])
    except SystemExit as end:
        return end.code

assert demo() == 0  # and imports what could not be read later
libc = ctypes.CDLL(None)
if os.geteuid() == 0 and open("/proc/self/uid_map").read().split()[2] != "1":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    libc.prctl(4, 1)
sys.exit(demo("-f", "-"))
"""


def test_a_user_without_privileges_sees_the_same() -> None:
    """Nobody's demo, in a user namespace of his own, has the flows and outcomes of root's."""
    text = Path(example()).read_text()
    done = subprocess.run((sys.executable, "-W", "error", "-c", NOBODY), cwd=ROOT, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    ours, theirs = (json.loads(line) for line in done.stdout.splitlines())
    assert theirs["agree"] is True
    assert [flow["observed"] for flow in theirs["flows"]] == [flow["observed"] for flow in ours["flows"]]


def test_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file is the demo's own and gone; the variable, the descriptors and the namespace are what they were."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "of-the-host"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[str] = []
    after_programming(monkeypatch, lambda: seen.append(os.environ["XTABLES_LOCKFILE"]))
    before = len(os.listdir("/proc/self/fd")), os.readlink("/proc/thread-self/ns/net")
    assert demo().exit_code == 0
    assert (len(os.listdir("/proc/self/fd")), os.readlink("/proc/thread-self/ns/net")) == before
    assert seen[0].startswith(f"{tmp_path}/netpol-lock-")
    assert os.environ["XTABLES_LOCKFILE"] == str(tmp_path / "of-the-host")
    assert os.listdir(tmp_path) == []


def test_the_shell_of_keep() -> None:
    """The shell stands in the node: the real tools show the listed rules and sets, the hinted commands get the documented answers."""
    require("iptables-legacy", "ipset", "nsenter", "bash")
    variables = {**os.environ, "SHELL": "/bin/sh", "COLUMNS": "200"}
    with subprocess.Popen(
        (*COMMAND, "--keep"), cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        shown: list[str] = []
        while "who answers there" not in (line := child.stdout.readline()):
            assert line, "".join(shown)
            shown.append(line.strip())
        enter = {line.split("a shell in ")[1].split(",")[0]: line.split("  ")[0] for line in shown if line.startswith("nsenter ")}
        answer = "cat < /dev/tcp/10.244.0.10/6379"
        commands = (
            "iptables-legacy -t mangle -S",
            "ipset list -n",
            f"echo from frontend: $({enter['default/frontend']} -c '{answer}')",
            f"echo from plain: $({enter['default/plain']} -c '{answer} & sleep 0.3; kill $!' 2> /dev/null)",
        )
        try:
            rest, _ = child.communicate("\n".join((*commands, "exit 3\n")), 60)
        finally:
            child.kill()
    lines = rest.splitlines()
    rules = [line.split(maxsplit=2) for line in lines if line.startswith("-A NETPOL")]
    assert len(rules) == 15, "the IPv4 rules of the example"
    assert [rule for _, _, rule in rules if not any(line.endswith(rule) for line in shown)] == []
    sets = [line for line in lines if line.startswith("NETPOL4-")]
    assert len(sets) == 3
    assert [name for name in sets if not any(line.startswith(name) for line in shown)] == []
    assert "from frontend: default/db" in lines
    assert "from plain:" in lines
    assert child.returncode == 0, "the demo agreed; what the shell ended with is the user's"


@pytest.mark.parametrize(("no_color", "green"), [("", True), ("1", False)], ids=["a terminal", "NO_COLOR"])
def test_colours(no_color: str, green: bool) -> None:
    """A terminal sees green and red, unless NO_COLOR is set."""
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": no_color}
    master, slave = pty.openpty()
    with subprocess.Popen(COMMAND, cwd=ROOT, env=variables, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL) as child:
        os.close(slave)
        parts = []
        while part := read(master):
            parts.append(part)
    os.close(master)
    text = b"".join(parts).decode()
    assert child.returncode == 0
    assert "94 as specified" in text
    assert ("\x1b[32mreached" in text, "\x1b[31mdropped" in text) == (green, green)


def read(master: int) -> bytes:
    """What a terminal's program wrote; nothing when that has ended."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


def test_the_example_comes_with_the_package(tmp_path: Path) -> None:
    """What is built holds the repository's one copy, and finds it without the repository."""
    build = (sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib"))
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=60, check=True)
    script = (sys.executable, "-c", "from netpol.cli.demo import example; print(example())")
    found = subprocess.run(script, cwd=tmp_path / "lib", capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    assert Path(found) == tmp_path / "lib" / "netpol" / "examples" / EXAMPLE
    assert Path(found).read_text() == (ROOT / "examples" / EXAMPLE).read_text() == Path(example()).read_text()
