"""The real tools that our work is held against, and the rule that CI skips nothing."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def require(*programs: str) -> None:
    """Skips the calling test where one of the programs is missing, with a sentence; under NETPOL_REQUIRE_ALL=1 fails it instead."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        _do_without(f"needs {', '.join(missing)}: install it, or run `make test` as root, which does")


def require_bridges() -> None:
    """As `require`, where packets between two ports of a bridge meet no rules on this kernel."""
    if not os.path.isdir("/proc/sys/net/bridge"):
        _do_without("needs rules that see bridged packets: run `modprobe br_netfilter`")


def _do_without(sentence: str) -> None:
    if os.environ.get("NETPOL_REQUIRE_ALL") == "1":
        pytest.fail(sentence)
    pytest.skip(sentence)


def run(*command: str, input: str | None = None, seconds: float = 60) -> str:
    """Runs a real tool in the calling thread's network namespace; its standard output. Fails the test with the tool's words."""
    require(command[0])
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
