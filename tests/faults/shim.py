"""The typed face of `shim.c`: which system call fails, and how. Works only in a process into which the shim was preloaded."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
FAIL, CUT, EMPTY, INTERRUPTED, REFUSE = range(5)
WORDS = ("fails", "is cut", "is empty", "is interrupted", "refuses a message")
NAMES = {"k": "socket", "b": "connect", "g": "getsockopt", "s": "setsockopt", "l": "flock", "n": "nanosleep", "o": "open", "c": "close"}
NAMES |= {"w": "send", "r": "recv or recvmmsg"}


class Fault(NamedTuple):
    """What goes wrong: call number `at`, counted from 0, and the `times` - 1 after it; `message` for REFUSE only."""

    at: int
    code: int
    how: int = FAIL
    message: int = 0
    times: int = 1

    def __str__(self) -> str:
        what = f"message {self.message} of call" if self.how == REFUSE else "call"
        word = os.strerror(self.code) if self.how in (FAIL, REFUSE) else WORDS[self.how]
        return f"{what} {self.at}{f' and {self.times - 1} more' if self.times > 1 else ''}: {word}"


class Calls(NamedTuple):
    """The system calls that a block made: a letter each, how many messages each sent; and how many were made to fail."""

    kinds: str
    messages: tuple[int, ...]
    hits: int


NONE = Fault(1 << 30, 0)


def build(directory: Path) -> Path:
    """The shim, made by the C compiler."""
    made = directory / "shim.so"
    compiler = os.environ.get("CC") or "cc"
    subprocess.run([compiler, "-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True)
    return made


class Shim:
    """The shim of this process."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.fault_kinds.restype = ctypes.c_char_p
        self.last = Calls("", (), 0)

    @contextmanager
    def armed(self, fault: Fault = NONE) -> Iterator[None]:
        """The fault happens in the block; `last` says afterwards which calls there were."""
        self._library.fault_arm(fault.at, fault.times, fault.code, fault.how, fault.message)
        try:
            yield
        finally:
            self._library.fault_disarm()
            # A wait for the lock may be of more calls than the shim remembers.
            kinds = self._library.fault_kinds().decode()
            self.last = Calls(kinds, tuple(self._library.fault_messages(i) for i in range(len(kinds))), self._library.fault_hits())
