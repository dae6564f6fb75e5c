"""The memory of a long-lived process of many threads, each of which allocates little."""

from __future__ import annotations

from netpol.kernel._native import lib


def one_heap() -> bool:
    """Has all threads share one heap, instead of each keeping what it freed to itself. To be called before the first thread starts.

    False where the C library has no such setting.
    """
    return bool(lib.np_sys_one_heap())
