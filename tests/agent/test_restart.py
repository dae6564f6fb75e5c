"""A process that starts anew, watched from outside: what it asks the kernel, and that it writes only what differs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from netpol.kernel.apply import Kernel
from netpol.model import Pod, parse_address
from tests.agent.stage import enforced
from tests.referees import require, run

# With "waits" the cluster is not complete: events come and audits and looks are due, but nobody enforces.
SCRIPT = """
import os, sys
from netpol.agent.enforcer import Enforcer
from netpol.kernel.apply import Kernel
from netpol.model import Pod, parse_address
from tests.agent.stage import OBJECTS
with Kernel() as kernel:
    enforcer = Enforcer(kernel, "n")
    enforcer.put(*OBJECTS)
    before = kernel.calls
    os.write(2, b"MARK")
    if "waits" in sys.argv:
        enforcer.audit(), kernel.touched(), enforcer.audit()
    else:
        enforcer.enforce(), enforcer.audit(), enforcer.enforce()
    if "grows" in sys.argv:
        enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
        enforcer.enforce()
    os.write(2, b"MARK")
    print(kernel.calls - before)
"""
# Whatever changes the kernel: x_tables' two, and all of ipset's but those that ask.
ASKING = {"LIST", "GET_BYNAME", "PROTOCOL", "HEADER", "TYPE", "SAVE"}


def traced(tmp_path: Path, *words: str) -> tuple[list[str], list[str], int]:
    """(what it wrote, what it asked, system calls by its own count) between its marks."""
    require("strace")
    log = tmp_path / "log"
    calls = "sendto,recvfrom,recvmmsg,getsockopt,setsockopt,flock,write"
    out = run("strace", "-f", "-e", f"trace={calls}", "-o", str(log), sys.executable, "-c", SCRIPT, *words)
    text = log.read_text().split('"MARK"')[1]
    written = re.findall(r"IP6?T_SO_(SET_\w+)", text)
    asked = re.findall(r"IP6?T_SO_(GET_\w+)", text)
    for command in re.findall(r"IPSET_CMD_(\w+)", "\n".join(line for line in text.splitlines() if "sendto(" in line)):
        (asked if command in ASKING else written).append(command)
    return written, asked, int(out)


@pytest.fixture(autouse=True)
def in_force(netns: int) -> None:
    """A process of before wrote the state, and is gone."""
    with Kernel() as kernel:
        enforced(kernel)


def test_the_same_state_takes_no_write(tmp_path: Path) -> None:
    """It reads both tables and all sets once, to adopt them, and once more to audit them; the lock is not even taken."""
    written, asked, calls = traced(tmp_path)
    assert written == []
    assert {name: asked.count(name) for name in ("GET_INFO", "GET_ENTRIES")} == {"GET_INFO": 4, "GET_ENTRIES": 4}
    assert set(asked) == {"GET_INFO", "GET_ENTRIES", "LIST", "PROTOCOL"}
    assert calls >= len(asked)
    assert "flock" not in (tmp_path / "log").read_text()


def test_what_differs_is_all_that_is_written(tmp_path: Path) -> None:
    """The same process then learns of a peer more: that is one message, and the first that it writes."""
    written, _, _ = traced(tmp_path, "grows")
    assert written == ["ADD"]


def test_an_incomplete_cluster_takes_no_call_at_all(tmp_path: Path) -> None:
    """Until it is told to enforce it neither writes nor reads, whatever else is asked of it."""
    assert traced(tmp_path, "waits") == ([], [], 0)


def test_what_was_changed_while_nobody_ran_is_written(tmp_path: Path) -> None:
    """A second state differs from what is found: the trace sees the write, so that its silence above means something."""
    with Kernel() as kernel:
        enforced(kernel, Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"), parse_address("fd00::3"))))
    run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
    written, _, _ = traced(tmp_path)
    assert {"SET_REPLACE", "DEL"} <= set(written)
