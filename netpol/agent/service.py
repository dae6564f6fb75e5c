"""A loop that runs until a signal comes: its thread, the signals, the end.

TERM and INT end the process; the rules stay in force. A loop that ends by itself, on an error that nobody foresaw, ends the process
too, and so does any other thread without which enforcement is half of one (those of `netpol.agent.lasting` begin again): whoever started
the process starts it again, and meanwhile the last rules stay.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeAlias

if TYPE_CHECKING:  # signals are heeded before what takes long to import
    from netpol.agent.loop import Loop

# How long the task at hand may take to end.
PATIENCE = 1.0  # seconds
# How long the process may live after a signal, whatever does not end: a disk, a pipe that nobody reads, a sweep of a large table.
END = 1.5  # seconds
# How long the main thread sleeps without looking up. The kernel gives a signal to another thread where the main one is held up (by a
# debugger, or strace); only the main one runs handlers, and nothing else would wake it.
GLANCE = 0.5  # seconds


# What has ended the loop: its error, or None for a signal.
Ends: TypeAlias = "queue.SimpleQueue[BaseException | None]"


def heed_signals() -> Ends:
    """From now on TERM and INT are remembered for `run_until_signal`, and no longer end the process. For the main thread, first of all:
    a container's first process never gets a signal that it does not handle.
    """
    # SimpleQueue.put may be called in a signal handler, whatever the main thread is doing with the queue.
    ends: Ends = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.put(None))
    return ends


def run_until_signal(ends: Ends, loop: Loop, ready: Callable[[], None], stopping: Callable[[], None]) -> bool:
    """Runs the loop in a thread of its own until TERM or INT comes. For the main thread.

    ends -- of `heed_signals`: one that came before is heard at once; ready -- starts what feeds the loop, once it runs; stopping --
    called when the signal has come. Raises what ended the loop, or another thread, if something did. From either on the process lives for
    `END` at most.
    False where its thread has not ended in time: it waits for somebody, most likely for iptables' lock, and must not be robbed of its
    sockets. The kernel's state, and a saved one, is whole at any moment: then there is nothing to do but `leave`.
    """

    def run() -> None:
        try:
            loop.run()
        except BaseException as error:
            ends.put(error)

    thread = threading.Thread(target=run, name="loop", daemon=True)
    before, threading.excepthook = threading.excepthook, lambda died: ends.put(died.exc_value)
    try:
        thread.start()
        ready()
        error = _next(ends)
    finally:
        threading.excepthook = before
    if error is not None:
        # It may be another thread's, and the loop wait for somebody.
        _end_in(END, 1)
        loop.stop()
        raise error
    _end_in(END, 0)
    stopping()
    loop.stop()
    thread.join(PATIENCE)
    return not thread.is_alive()


def _next(ends: Ends) -> BaseException | None:
    """The first one that comes."""
    while True:
        with suppress(queue.Empty):
            return ends.get(timeout=GLANCE)


def _end_in(seconds: float, status: int) -> None:
    """Ends the process then, and leaves unsaid what nobody takes: a log may be what does not end."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    # Where no thread can be had it ends when all else has ended.
    with suppress(RuntimeError):
        timer.start()


def leave() -> NoReturn:
    """Ends the process at once, with its last words."""
    logging.shutdown()
    os._exit(0)
