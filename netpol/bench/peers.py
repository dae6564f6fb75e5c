"""What we are compared with: the real `ipset` and `iptables-legacy` programs, started here, and pyroute2.

This is the one place of the package that starts programs of its own choice, because starting them is what is measured; nothing but
a benchmark imports it. A program or library that is not installed is no error: it is not a peer then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from netpol.bench.measure import BenchError
from netpol.model import Family

IPSET = "ipset"
IPTABLES: dict[Family, str] = {4: "iptables-legacy", 6: "ip6tables-legacy"}
RESTORE: dict[Family, str] = {4: "iptables-legacy-restore", 6: "ip6tables-legacy-restore"}
SAVE: dict[Family, str] = {4: "iptables-legacy-save", 6: "ip6tables-legacy-save"}

# Debian keeps them where only root's PATH looks.
SYSTEM_PLACES = "/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """Where a program is, or None."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PLACES}")


class SetLibrary(Protocol):
    """What is used of pyroute2's IPSet."""

    def create(self, name: str, stype: str) -> object: ...

    def add(self, name: str, entry: str) -> object: ...

    def close(self) -> None: ...


@contextmanager
def pyroute2_ipset() -> Iterator[SetLibrary | None]:
    """pyroute2's IPSet with its socket in the calling thread's namespace, or None where it is not installed."""
    try:
        from pyroute2 import IPSet  # type: ignore[import-untyped]  # it has no types
    except ImportError:
        yield None
        return
    library = cast(SetLibrary, IPSet())
    try:
        yield library
    finally:
        library.close()


def execute(*command: str) -> None:
    """Runs a program in the calling thread's network namespace; BenchError, in its own words, when it fails."""
    _finished(subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))


def output(*command: str) -> str:
    """Runs a program in the calling thread's network namespace; what it prints. BenchError when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    _finished(done)
    return done.stdout.decode()


def _finished(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode:
        words = (done.stderr or b"").decode(errors="replace").strip()
        raise BenchError(": ".join((" ".join(done.args), f"exit code {done.returncode}", *([words] if words else []))))
