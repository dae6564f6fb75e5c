"""Threads that outlive mistakes: what nobody foresaw is logged, and the work begins again. Enforcement does not end with a log's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

AGAIN = 5.0  # seconds
LONG = 60.0  # seconds of work after which a mistake is not the one of before

log = logging.getLogger("netpol")


def lasting(name: str, work: Callable[[], None]) -> threading.Thread:
    """A thread that does `work` until that returns; not started, and it ends with the process. A mistake that comes again at once is logged
    once."""

    def run() -> None:
        told = ""
        while True:
            began = time.monotonic()
            try:
                work()
            except Exception as error:
                if repr(error) != told or time.monotonic() - began > LONG:
                    told = repr(error)
                    log.exception("a mistake in the thread %r, which begins again; the rules stay in force", name)
                time.sleep(AGAIN)
            else:
                return

    return threading.Thread(target=run, name=name, daemon=True)
