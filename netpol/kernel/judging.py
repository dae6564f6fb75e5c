"""Flows judged as a dump hands them over, by an index that is not there before the first one comes.

To take the rules apart costs as much as the kernel needs to find out that the pods of a change have no flows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netpol.kernel._native import ffi
from netpol.kernel.judge import Sorting
from netpol.model import Address
from netpol.rules.flows import SIZE, ends


class Judging:
    """Packed flows that are to get the bit, to lose it, and those to ask about: all of them where nothing judges here.

    begin -- called for the first flow: what judges them, or None; with the ends of all that there are, where these are few, else None.
    For one thread.
    """

    def __init__(self, begin: Callable[[frozenset[Address] | None], Sorting | None]) -> None:
        self._begin = begin
        self._begun = False
        self._sorting: Sorting | None = None
        self._kept = bytearray()

    def take(self, flows: Any, count: int, all_of_few: bool = False) -> None:
        """An array of struct np_ct_flow, which is changed. all_of_few -- they are all that will come, and few."""
        if not self._begun:
            self._begun, self._sorting = True, self._begin(ends(bytes(ffi.buffer(flows, count * SIZE))) if all_of_few else None)
        if self._sorting is not None:
            self._sorting.take(flows, count)
        else:
            self._kept += ffi.buffer(flows, count * SIZE)

    @property
    def mark(self) -> bytes:
        return self._sorting.mark if self._sorting is not None else b""

    @property
    def unmark(self) -> bytes:
        return self._sorting.unmark if self._sorting is not None else b""

    @property
    def ask(self) -> bytes:
        return self._sorting.ask if self._sorting is not None else bytes(self._kept)
