"""`netpol agent` as a process of its own, in the network namespace of the test that starts it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
PATIENCE = 60.0  # seconds that anything may take on a loaded machine; an agent rests up to 30 between two tries


def until(holds: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Waits for something to be true; fails with what there is instead."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited in vain: {what()}"
        time.sleep(0.01)


class Agent:
    """A running agent; a context manager that ends it, if need be, by its id. `port` is where its pages are; `log` a file that it says all
    to instead of one of its own; `before` a program that becomes it."""

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        python: tuple[str, ...] = (),
        listen: int | None = None,
        log: int | None = None,
        forwarding: bool = True,
        before: tuple[str, ...] = (),
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = listen if listen is not None else free.getsockname()[1]
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the agent
        command = [*before, sys.executable, *python, "-m", "netpol.cli.main", "agent", "--listen", f"127.0.0.1:{self.port}", *arguments]
        # As on every node of a cluster: without it nothing crosses FORWARD, and no agent is ready.
        FORWARDING.write_text("1" if forwarding else "0")
        # In a namespace of a test nothing runs that a first install could lose.
        variables = {**os.environ, "NETPOL_GRACE": "0", **(environment or {})}
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self._file if log is None else log, env=variables)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()

    def log(self) -> str:
        """All that it said so far."""
        # At a place of its own: the place of the file is shared with the agent, who would write at it.
        with open(f"/proc/self/fd/{self._file.fileno()}") as said:
            return said.read()

    def says(self, words: str) -> None:
        """Waits until it has said that."""
        until(lambda: words in self.log(), self.log)

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of a page; 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def ready(self) -> None:
        """Waits until it is."""
        until(lambda: self.page("/readyz")[0] == 200, lambda: (self.page("/readyz"), self.log()))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status, after that signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)
