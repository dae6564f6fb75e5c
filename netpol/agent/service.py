"""A loop that runs until a signal comes: its thread, the signals, the end.

TERM and INT end the process; the rules stay in force. A loop that ends by itself, on an error that nobody foresaw, ends the process
too: whoever started it starts it again, and meanwhile the last rules stay.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable

from netpol.agent.loop import Loop

# How long the task at hand may take to end. The kernel's state is whole at any moment, so it is no harm to leave earlier.
PATIENCE = 1.5  # seconds


def run_until_signal(loop: Loop, ready: Callable[[], None]) -> None:
    """Runs the loop in a thread of its own until TERM or INT comes. `ready` starts what feeds it, once it runs.

    For the main thread. Raises what ended the loop, if something did.
    """
    # SimpleQueue.put may be called in a signal handler, whatever the main thread is doing with the queue.
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            loop.run()
        except BaseException as error:
            ends.put(error)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.put(None))
    thread = threading.Thread(target=run, name="loop", daemon=True)
    thread.start()
    ready()
    error = ends.get()
    if error is not None:
        raise error
    loop.stop()
    thread.join(PATIENCE)
