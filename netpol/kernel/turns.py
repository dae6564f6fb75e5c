"""One thread at a time: what every handle of this room holds its callers to.

A handle's buffers, its descriptor and what it remembers belong to the call that is running. A call by another thread meanwhile is refused
with `InUse` and does nothing; closing waits for the call that is running, so that no call ever works on a descriptor that was closed, and
maybe opened again as something else. The same thread may call again from inside a call. What a handle counts (`calls` and the like), and
its `fileno`, may be read by any thread at any time.

It costs a call what two calls of Python cost; the one method that is called for single members has it written out, for half of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from netpol.errors import InUse

CLOSED = "it is closed"


class Handle:
    """What one thread at a time may use."""

    def __init__(self) -> None:
        self._turn = RLock()


class Closing(Handle, ABC):
    """A handle that holds what has to be given back; a context manager."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Gives it back; a second time does nothing."""


P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Handle)
C = TypeVar("C", bound=Closing)


def exclusive(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """A method that is refused with InUse while another thread is in one."""

    @wraps(method)
    def call(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        turn = self._turn
        if not turn.acquire(False):
            raise in_use(self, method.__name__)
        try:
            return method(self, *args, **kwargs)
        finally:
            turn.release()

    return call


@contextmanager
def alone(handle: Handle, doing: str) -> Iterator[None]:
    """The same for a block; `doing` is what it is called where it is refused."""
    if not handle._turn.acquire(False):
        raise in_use(handle, doing)
    try:
        yield
    finally:
        handle._turn.release()


def last(method: Callable[[H], R]) -> Callable[[H], R]:
    """A method that waits until no other thread is in one: it closes the handle."""

    @wraps(method)
    def call(self: H) -> R:
        with self._turn:
            return method(self)

    return call


def in_use(handle: Handle, doing: str) -> InUse:
    """The error of a method that is refused."""
    return InUse(type(handle).__name__, doing)
