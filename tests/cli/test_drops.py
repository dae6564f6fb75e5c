"""`netpol drops`: lines for people, of what is there and of what comes."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from netpol.agent.logs import Lines
from netpol.cli.drops import describe
from netpol.cli.main import main
from tests.agent.process import ROOT, until

BASE = {"time": "2026-01-01T00:00:00.000001Z", "reason": "policy", "protocol": "TCP"}
ENDS = {"source": "x/a", "destination": "192.0.2.1", "source_address": "10.0.0.1", "destination_address": "192.0.2.1"}
EGRESS = {"direction": "egress", "policies": ["x/p", "x/q"]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param({**EGRESS, "port": 80}, "x/a (10.0.0.1) -> 192.0.2.1  TCP port 80  denied by egress policies x/p, x/q", id="a flow"),
        pytest.param(
            {**EGRESS, "port": 80, "packets": 3},
            "x/a (10.0.0.1) -> 192.0.2.1  TCP port 80  denied by egress policies x/p, x/q  (3 packets)",
            id="more",
        ),
        pytest.param(
            {**EGRESS, "protocol": "ICMP", "icmp_type": 8, "icmp_code": 0},
            "x/a (10.0.0.1) -> 192.0.2.1  ICMP type 8 code 0  denied by egress policies x/p, x/q",
            id="ICMP",
        ),
        pytest.param(
            {"reason": "unknown_pod", "direction": "egress"},
            "x/a (10.0.0.1) -> 192.0.2.1  TCP  denied: no known pod has the address",
            id="unknown",
        ),
        pytest.param(
            {**EGRESS, "reason": "cut", "reply": True, "port": 9},
            "x/a (10.0.0.1) -> 192.0.2.1  TCP port 9  denied: the flow was cut, egress policies x/p, x/q (a reply)",
            id="a flow that was cut",
        ),
    ],
)
def test_words(line: dict[str, object], words: str) -> None:
    """Who, where to, what, and why."""
    assert describe({**BASE, **ENDS, **line}) == f"2026-01-01T00:00:00.000001Z  {words}"


def test_what_was_left_out() -> None:
    """It is a line too."""
    assert describe({"time": "T", "left_out": 7, "lost": 2}) == "T  7 packets of others were left out, 2 lost"


LINE = (
    b'{"time":"T","reason":"policy","source":"x/a","destination":"y/b","source_address":"10.0.0.1","destination_address":"10.0.0.2",'
    b'"protocol":"UDP","direction":"ingress","policies":["y/p"],"port":53}\n'
)
WORDS = "T  x/a (10.0.0.1) -> y/b (10.0.0.2)  UDP port 53  denied by ingress policies y/p\n"
OTHERS = b'{"time":"T","left_out":3}\n'


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        pytest.param((), True, id="all"),
        pytest.param(("-n", "x"), True, id="the source's namespace"),
        pytest.param(("-n", "y"), True, id="the destination's namespace"),
        pytest.param(("-n", "z"), False, id="another namespace"),
        pytest.param(("--pod", "y/b"), True, id="a pod"),
        pytest.param(("--pod", "y/a"), False, id="another pod"),
        pytest.param(("--pod", "y/b", "-n", "z"), False, id="both must hold"),
    ],
)
def test_which(tmp_path: Path, arguments: tuple[str, ...], shown: bool) -> None:
    """By namespace and pod, at either end; what was left out is nobody's."""
    file = tmp_path / "log"
    file.write_bytes(LINE + OTHERS)
    done = CliRunner().invoke(main, ["drops", str(file), *arguments])
    assert done.stdout == (WORDS if shown else "") + ("" if arguments else "T  3 packets of others were left out\n")


def test_lines_that_are_none(tmp_path: Path) -> None:
    """They are counted, and the others shown."""
    file = tmp_path / "log"
    file.write_bytes(b'noise\n[]\n{}\n{"time":1}\n\xff\n' + LINE + LINE[:20])
    done = CliRunner().invoke(main, ["drops", str(file)])
    assert (done.stdout, done.stderr) == (WORDS, "5 lines are none of a drop log\n")


def test_lines_of_the_agent_s_log(tmp_path: Path) -> None:
    """They are passed over without a word, where a container's log has both."""
    file = tmp_path / "log"
    record = logging.LogRecord("netpol", logging.WARNING, __file__, 0, "not in force: %s", ("x",), None)
    file.write_bytes(Lines("json").format(record).encode() + b"\n" + LINE)
    done = CliRunner().invoke(main, ["drops", str(file)])
    assert (done.stdout, done.stderr) == (WORDS, "")


@pytest.mark.parametrize("pod", ["web", "/web", "x/", ""])
def test_a_pod_without_its_namespace(tmp_path: Path, pod: str) -> None:
    """It would be found nowhere: that is said, and nothing is printed."""
    file = tmp_path / "log"
    file.write_bytes(LINE)
    done = CliRunner().invoke(main, ["drops", str(file), "--pod", pod])
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{pod!r} is not NAMESPACE/NAME" in done.stderr


def test_what_moves_a_cursor(tmp_path: Path) -> None:
    """A name, a policy or a time of a file that somebody else wrote is shown as characters: a terminal's commands, a line's end."""
    file = tmp_path / "log"
    file.write_bytes(
        LINE.replace(b'"T"', rb'"T\u001b[2J"').replace(b"x/a", "x/\x9b\u202e".encode()).replace(b'["y/p"]', rb'["y/p\nT  forged"]')
    )
    shown = CliRunner().invoke(main, ["drops", str(file)]).stdout
    assert shown == (r"T\x1b[2J  x/\x9b\u202e (10.0.0.1) -> y/b (10.0.0.2)  UDP port 53  denied by ingress policies y/p\nT  forged" + "\n")


def test_a_line_that_nests_without_end(tmp_path: Path) -> None:
    """It is one of those that are none, and no traceback."""
    file = tmp_path / "log"
    file.write_bytes(b'{"time":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n" + LINE)
    done = CliRunner().invoke(main, ["drops", str(file)])
    assert (done.exit_code, done.stdout, done.stderr) == (0, WORDS, "1 lines are none of a drop log\n")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the agent's standard output may be."""
    assert CliRunner().invoke(main, ["drops", "-"], input=io.BytesIO(LINE)).stdout == WORDS


def test_no_file(tmp_path: Path) -> None:
    """A word, and no traceback."""
    done = CliRunner().invoke(main, ["drops", str(tmp_path / "none")])
    assert (done.exit_code, "No such file or directory: an agent writes it where it runs with --drop-log" in done.stderr) == (1, True)


def test_following(tmp_path: Path) -> None:
    """What comes is shown as it comes, a line that is written in two pieces once, and a new file in the old one's place is gone on with."""
    file, out = tmp_path / "log", tmp_path / "out"
    file.write_bytes(LINE)
    with open(out, "wb") as target:
        follower = subprocess.Popen([sys.executable, "-m", "netpol.cli.main", "drops", "-f", str(file)], cwd=ROOT, stdout=target)
    try:
        until(lambda: out.read_text() == WORDS, out.read_text)
        with open(file, "ab", buffering=0) as log:
            log.write(LINE[:50])
            log.write(LINE[50:])
        until(lambda: out.read_text() == WORDS * 2, out.read_text)
        with open(file, "ab", buffering=0) as log:
            os.replace(file, tmp_path / "log.1")
            log.write(LINE)
            file.write_bytes(LINE + OTHERS)
        until(lambda: out.read_text() == WORDS * 4 + "T  3 packets of others were left out\n", out.read_text)
        with open(file, "ab", buffering=0) as log:
            # What a full disk took a part of is taken back, when it was seen already; then another line comes.
            begin = log.tell()
            log.write(LINE.replace(b'"T"', b'"U"')[:-30])
            time.sleep(0.5)
            log.truncate(begin)
            log.write(LINE)
        until(lambda: out.read_text() == WORDS * 4 + "T  3 packets of others were left out\n" + WORDS, out.read_text)
        with open(file, "r+b", buffering=0) as log:
            log.truncate(0)
            time.sleep(0.5)
            log.write(LINE)
        until(lambda: out.read_text() == WORDS * 4 + "T  3 packets of others were left out\n" + WORDS * 2, out.read_text)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 0
    finally:
        follower.kill()
        follower.wait()


@pytest.mark.parametrize("follow", [(), ("-f",)], ids=["once", "following"])
@pytest.mark.parametrize("full", [False, True], ids=["a reader who left", "a full disk"])
def test_where_the_output_goes_is_not_the_log_s_fault(tmp_path: Path, follow: tuple[str, ...], full: bool) -> None:
    """As of any command: not a word, or that the output cannot be written."""
    file = tmp_path / "log"
    file.write_bytes(LINE)
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") if full else open(writer, "wb", closefd=False) as output:
        command = [sys.executable, "-m", "netpol.cli.main", "drops", *follow, str(file)]
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    words = "netpol: the output cannot be written: No space left on device\n" if full else ""
    assert (done.returncode, done.stderr) == (1, words)
