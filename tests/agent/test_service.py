"""What ends a loop, whichever thread the kernel tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import signal, sys, threading, time
from netpol.agent.service import heed_signals, run_until_signal

class Loop:
    def __init__(self):
        self.ended = threading.Event()
    def run(self):
        self.ended.wait()
    def stop(self):
        self.ended.set()

def send():
    # To this thread itself, as the kernel does where the main thread is held up.
    whom = threading.get_ident() if "another" in sys.argv else threading.main_thread().ident
    signal.pthread_kill(whom, getattr(signal, sys.argv[1]))

def stopping():
    print("stopping", flush=True)
    if "hangs" in sys.argv:
        time.sleep(100)

def fail():
    if "dies" in sys.argv:
        loop.stop = lambda: print("told to stop", flush=True)
        raise ValueError("a mistake")
    if "alone" in sys.argv:
        def none(thread):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = none
    send()

def soon():
    threading.Timer(0.2, fail).start()

ends = heed_signals()
if "before" in sys.argv:
    send()
loop = Loop()
try:
    print(run_until_signal(ends, loop, (lambda: None) if "before" in sys.argv else soon, stopping))
finally:
    if "dies" in sys.argv:
        loop.ended.wait(100)
if "late" in sys.argv:
    time.sleep(100)
"""


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_whichever_thread_gets_it(number: str, thread: str) -> None:
    """The main thread alone runs handlers; it looks up by itself where another one was told."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, number, thread], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("stopping\nTrue\n", "")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_before_it_runs_is_not_lost(number: str) -> None:
    """One that comes while the process sets itself up ends it as soon as it can end."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, number, "before"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("stopping\nTrue\n", "")


@pytest.mark.parametrize("what", ["hangs", "late"])
def test_after_a_signal_the_process_ends_whatever_does_not(what: str) -> None:
    """What is to be done before the loop ends, or after it, takes a hundred seconds: it does not get them."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, "SIGTERM", "main", what], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, "stopping", "")


def test_where_no_thread_can_be_had_it_ends_all_the_same() -> None:
    """The one that would end it in any case cannot be started."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, "SIGTERM", "alone"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("stopping\nTrue\n", "")


def test_a_thread_that_dies_of_a_mistake_ends_it() -> None:
    """Whoever started it starts it again; half of an agent would look well. The loop is told to end, and not waited for without an end: it
    may wait for iptables' lock."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, "SIGTERM", "dies"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "told to stop\n")
