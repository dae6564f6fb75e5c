"""An exec plugin of a kubeconfig: a program that gives credentials, run as the `kubernetes` package runs it, and ended where it hangs.

The package waits for the program, and for whoever else holds its output open, for as long as they like. Here the wait has an end. What
the program is told ($KUBERNETES_EXEC_INFO, its environment, the terminal where there is one) and how its answer is read are the
package's ways.

Invariants
- The program has a session of its own, and so a process group: when its time is over, or when nobody wants its answer any more, it and
  its children are killed. At a terminal it stays in ours, for it may ask there, and is killed alone. What a program that ended by itself
  left running, as one that keeps credentials does, stays.
- Nobody who holds the output open is waited for once the program has ended.
- Only the thread in `run` waits for the program, so the group is never another's by the time that it is killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from netpol.errors import ApiError

DEADLINE = 30.0  # seconds that a plugin may take
LOGIN = 300.0  # the same at a terminal, where somebody may have to log in
GLANCE = 0.05  # seconds between two looks at whether it has ended, or has to
BURIAL = 1.0  # seconds that a killed program may take to be gone


class Plugin(NamedTuple):
    """What to run. cluster -- what the kubeconfig has of the cluster, where the plugin is to be told."""

    command: Sequence[str]
    environ: Mapping[str, str]
    folder: str | None
    api_version: str
    cluster: Mapping[str, Any] | None

    def run(self, closing: threading.Event) -> dict[str, Any]:
        """The status that it gives. ApiError where it gives none, takes too long, or is not wanted any more; OSError: cannot be run."""
        at_terminal = sys.stdout is not None and sys.stdout.isatty()
        process = subprocess.Popen(
            self.command,
            stdin=sys.stdin if at_terminal else None,
            stdout=subprocess.PIPE,
            stderr=sys.stderr if at_terminal else subprocess.PIPE,
            cwd=self.folder,
            env={**self.environ, "KUBERNETES_EXEC_INFO": json.dumps(self._told(at_terminal))},
            start_new_session=not at_terminal,
        )
        try:
            said, complaint = self._output(process, LOGIN if at_terminal else DEADLINE, closing)
        finally:
            _end(process, alone=at_terminal)
        if process.returncode != 0:
            words = complaint.decode(errors="replace").strip()
            raise self._failed(f"returned {process.returncode}" + (f": {words}" if words else ""))
        return self._read(said)

    def _told(self, at_terminal: bool) -> dict[str, Any]:
        spec: dict[str, Any] = {"interactive": at_terminal}
        if self.cluster is not None:
            spec["cluster"] = dict(self.cluster)
            for extension in self.cluster.get("extensions") or ():
                if extension["name"] == "client.authentication.k8s.io/exec":
                    spec["cluster"]["config"] = extension["extension"]
                    break
        return {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": spec}

    def _output(self, process: subprocess.Popen[bytes], seconds: float, closing: threading.Event) -> tuple[bytes, bytes]:
        """All that it writes, when it has ended."""
        end = time.monotonic() + seconds
        while True:
            # Asked before what it wrote is read: when nothing more waits that is all of it, whoever else could write more.
            ended = process.poll() is not None
            try:
                said, complaint = process.communicate(timeout=GLANCE)
            except subprocess.TimeoutExpired as late:
                if ended and not _waiting(process):
                    return late.output or b"", late.stderr or b""
            else:
                return said, complaint or b""
            if closing.is_set():
                raise ApiError("the client is closed")
            if time.monotonic() >= end:
                raise self._failed(f"did not end within {seconds:g} seconds, and was killed")

    def _read(self, said: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(said)
        except ValueError as error:
            raise self._failed(f"gave what cannot be decoded: {error}") from error
        if not isinstance(answer, dict) or "kind" not in answer or not isinstance(status := answer.get("status"), dict):
            raise self._failed("gave no status")
        if answer.get("apiVersion") != self.api_version:
            raise self._failed(f"answers in version {answer.get('apiVersion')}, not in {self.api_version}")
        return status

    def _failed(self, words: str) -> ApiError:
        return ApiError(f"configuration: exec: {self.command[0]} {words}")


def _waiting(process: subprocess.Popen[bytes]) -> bool:
    """Whether something that was written, or the end of it, is still to be read."""
    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None and not pipe.closed]
    return bool(select.select(pipes, [], [], 0)[0])


def _end(process: subprocess.Popen[bytes], alone: bool) -> None:
    """Kills the program, where it has not ended, and its children unless `alone`, and lets go of what it wrote to."""
    if process.poll() is None:
        if alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        # One that waits for a dead disk is not gone by that, and is not waited for.
        with suppress(subprocess.TimeoutExpired):
            process.wait(BURIAL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
