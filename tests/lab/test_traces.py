"""What a lab leaves behind in the system and what it starts: nothing. Each test watches a process of its own from outside."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.referees import require, run

ROOT = Path(__file__).parent.parent.parent

WORLD = """
import os, sys, time
from netpol.lab import Host, Lab, Probe, become_private
from netpol.model import SCTP, TCP, UDP
ports = ((TCP, 80), (UDP, 53), (SCTP, 99))
hosts = [Host(f"pod-{n}", (bytes((10, 1, 0, n)), bytes((0xFD,)) + bytes(14) + bytes((n,))), ports) for n in (1, 2, 3)]
probes = [Probe(a.name, address, *port) for a in hosts for b in hosts for address in b.addresses for port in ports]
def reached(lab):
    answers = lab.probe(probes)
    assert [a.outcome for a in answers] == ["reached"] * len(probes), answers
"""

# A child that has become nobody: everything that is imported late is imported first, since it could not read the files any
# more; and the kernel gives the files of /proc/self back to a process that changed its user only when it is asked to.
NOBODY = """
import asyncio, ctypes
from netpol.lab.cables import Wiring
wiring = Wiring()
wiring.address(1, bytes((10, 0, 0, 1)))
wiring.close()
libc = ctypes.CDLL(None)
if os.geteuid() == 0 and open("/proc/self/uid_map").read().split()[2] != "1":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    libc.prctl(4, 1)
"""


def python(script: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", script]


def namespaces_in_use() -> set[tuple[int, str]]:
    """Network namespaces, by their inode numbers, and the processes of the system that are in them or hold them open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for link in (*process.glob("task/*/ns/net"), *process.glob("fd/*")):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("net:["):
                found.add((int(target[5:-1]), process.name))
    return found


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_nothing_is_left_of_a_process_that_ends(end: signal.Signals) -> None:
    """The namespaces of a child that is killed in the middle of its lab are gone, and no device has come into ours."""
    before = socket.if_nameindex()
    script = WORLD + (
        "with Lab(hosts) as lab:\n"
        "    reached(lab)\n"
        "    print(*(os.fstat(lab.host(h.name)).st_ino for h in hosts), os.fstat(lab.node).st_ino, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(python(script), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        made = {int(word) for word in child.stdout.readline().split()}
        alive = namespaces_in_use()
        child.send_signal(end)
        child.wait(60)
    assert len(made) == 4
    assert made <= {number for number, _ in alive}
    # A number is given to the next namespace that somebody makes: it is another one where it was not his before.
    assert {number for number, _ in alive & namespaces_in_use()} & made == set()
    assert socket.if_nameindex() == before


def test_nothing_is_executed(tmp_path: Path) -> None:
    """Neither strace nor an audit hook sees a program, or a process, started by a lab from its beginning to its end."""
    require("strace")
    script = (
        "import sys\nseen = []\n"
        "sys.addaudithook(lambda name, _: seen.append(name) if name.split('.')[0] in ('subprocess', 'pty') or "
        "name in ('os.fork', 'os.forkpty', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.system') else None)\n"
    )
    script += WORLD + "with Lab(hosts) as lab:\n    reached(lab)\nprint(seen)\n"
    trace = tmp_path / "trace"
    words = ("strace", "-f", "-qq", "-e", "trace=execve,execveat,fork,vfork", "-e", "signal=none", "-o", str(trace))
    assert run(*words, *python(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}")) == "[]\n"
    calls = [line for line in trace.read_text().splitlines() if "exited" not in line]
    assert len(calls) == 1, calls
    assert sys.executable in calls[0]


def child(script: str) -> str:
    done = subprocess.run(python(script), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_user_without_privileges_has_a_lab() -> None:
    """Nobody, made root of a private world, reaches all hosts by all protocols."""
    assert child(WORLD + NOBODY + "become_private()\nwith Lab(hosts) as lab:\n    reached(lab)\nprint('reached')\n") == "reached\n"


def test_become_private_says_what_is_wrong() -> None:
    """A process with a thread is told to call it earlier; a lab without it what a user can do. For root it does nothing."""
    lines = child(
        WORLD
        + NOBODY
        + "import threading\nfrom netpol.errors import LabError\n"
        + "def words(call):\n    try:\n        call()\n    except LabError as error:\n        return str(error)\n    return 'nothing'\n"
        + "print(words(lambda: Lab(hosts).__enter__()))\n"
        + "stop = threading.Event()\nthread = threading.Thread(target=stop.wait)\nthread.start()\n"
        + "print(words(become_private))\nstop.set()\nthread.join()\n"
    ).splitlines()
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        # This run is in a private world of one user already, so the child is root there.
        assert lines == ["nothing", "nothing"]
    else:
        assert lines[0] == (f"unshare network namespace: {os.strerror(errno.EPERM)}: run as root, or let this user make user namespaces")
        assert "before the first one starts" in lines[1]


def test_few_descriptors_mean_waves() -> None:
    """With room for a few dozen probes at a time a table of 270 is still answered whole; a lab that does not fit at all says so."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))\n"
    waves = "with Lab(hosts) as lab:\n    probes *= 5\n    reached(lab)\nprint('reached')\n"
    assert child(limit.format(150) + WORLD + waves) == "reached\n"
    words = "try:\n    Lab(hosts).__enter__()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    assert child(limit.format(60) + WORLD + words).startswith("LabError no file descriptors left for probes: raise the limit")
    many = "hosts = [Host(f'h{n}', (bytes((10, 2, 0, n)),), ports) for n in range(1, 100)]\n"
    refused = f"LabError cannot build the lab: {os.strerror(errno.EMFILE)}: raise the limit"
    assert child(limit.format(150) + WORLD + many + words).startswith(refused)
