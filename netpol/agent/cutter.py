"""Cuts the flows that a change denied, and gives back those that it allows: entries read, judged, marked.

One `sweep` makes the marks of the connection tracking table agree with the rules in force, once. When to sweep is the caller's
business: after a change that narrowed something, that widened something while a flow is cut, or that moved an address, at most once a
second; once more a second later, for entries that no packet had confirmed yet, unless `settle` has waited for those; one of everything
at start; and off the thread that applies rules, for a sweep of 100,000 entries takes as long as the kernel needs to send them.

Flows are judged in C where the rules in force have the form that netpol gives them (`netpol.kernel.judge`), which costs less than a tenth
of what the kernel needs to send them; what is not, by the interpreter of rules (`netpol.rules.cut`), which costs more than a dump.

Invariants: a sweep changes the cut bit only; done twice, with nothing in between, the second one changes nothing. Judged against the
ruleset that is given, which has to be the one in force: marking comes after the rules, un-marking may let pass only what they allow.
"""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType

from msgspec import Struct

from netpol.kernel.addresses import local_addresses
from netpol.kernel.conntrack import ConntrackSocket, filtered_dumps
from netpol.kernel.judge import Index, Sorting
from netpol.kernel.judging import Judging
from netpol.model import Address
from netpol.rules.cut import Judge
from netpol.rules.flows import SIZE, each_once
from netpol.rules.ruleset import Ruleset

FILTERED = 3
"""Up to so many addresses, dumps that the kernel filters cost less than one of everything, where there are many entries."""
WALK = 5_000
"""So many entries cost as much, in a dump of everything, as one more dump costs that finds nothing: each walks over all of the kernel's
table, whose size follows from the machine's memory and not from what is in it."""

FEW = 2_000
"""Up to so many entries no filter is asked, whoever was touched: the kernel's list tells which ones matter (`netpol.kernel.listing`), or,
where it is not to be trusted, a dump of all, which costs little more than one of IPv6 alone."""


class Report(Struct, frozen=True):
    """What a sweep did: entries that the kernel sent, those of them that were judged, marked and un-marked (and still there), and system
    calls on the connection tracking table."""

    looked_at: int
    judged: int
    marked: int
    unmarked: int
    calls: int


class Cutter:
    """The connection tracking table of the calling thread's network namespace; a context manager, for one thread.

    bit -- the connmark bit of flows that are cut (`Settings.cut_bit`). Errors as `ConntrackSocket`.
    """

    def __init__(self, bit: int) -> None:
        self._bit = bit
        self._socket = ConntrackSocket()
        self._judge: Judge | None = None
        self._index = Index()
        self._has_own_form = False  # the last judge's ruleset is none for an index
        self.is_clear = False
        """Whether no entry has the bit, as the last sweeps saw them; False where they do not know."""

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket; marks stay."""
        self._socket.close()

    def settle(self) -> bool:
        """Waits for packets under way, whose entries a sweep would miss; False where it may miss some all the same."""
        return self._socket.settle()

    def sweep(self, ruleset: Ruleset, pods: Collection[Address], touched: Collection[Address] | None = None) -> Report:
        """Marks what is now denied and un-marks what is not.

        ruleset -- the one in force; pods -- the addresses of this node's pods; touched -- those of them, and those that were theirs until
        lately, whose flows may be judged otherwise than by the last sweep. None is all of them, and every entry that has the bit.
        After a change that only lets more through, and while `is_clear`, no sweep is needed.
        With the very same ruleset, pods and node addresses as last time (the second look a second later) no flow is judged twice.
        """
        calls, looked_at, wanted, had = self._socket.calls, self._socket.looked_at, self._socket.wanted, self._socket.counted
        was_clear, self.is_clear = self.is_clear, False
        judge = self._ready(ruleset, frozenset(pods), local_addresses())
        judging = Judging(lambda ends: self._sorting(judge, ends))
        reads_all = self._read(pods, touched, judging)
        cuts = judge.sort_out(judging.ask, self._bit)
        mark, unmark = cuts.mark + judging.mark, cuts.unmark + judging.unmark
        if not reads_all:
            # A flow between two of the addresses was read for each.
            mark, unmark = each_once(mark), each_once(unmark)
        marked = self._socket.mark(mark, self._bit)
        unmarked = self._socket.unmark(unmark, self._bit)
        if reads_all:
            # What had the bit and is to keep it may be gone by now; the next sweep will tell.
            self.is_clear = not mark and self._socket.counted - had == len(unmark) // SIZE
        else:
            self.is_clear = not mark and (was_clear or (bool(unmark) and not self._socket.marked(self._bit)))
        looked_at, wanted = self._socket.looked_at - looked_at, self._socket.wanted - wanted
        return Report(looked_at, wanted, marked, unmarked, self._socket.calls - calls)

    def forget(self) -> Report:
        """Un-marks every entry that has the bit, whatever its flow: for when netpol goes, or cutting is switched off."""
        calls, looked_at = self._socket.calls, self._socket.looked_at
        entries = self._socket.marked(self._bit)
        unmarked = self._socket.unmark(entries, self._bit)
        return Report(self._socket.looked_at - looked_at, len(entries) // SIZE, 0, unmarked, self._socket.calls - calls)

    def _read(self, pods: Collection[Address], touched: Collection[Address] | None, judging: Judging) -> bool:
        """Whether all entries were read."""
        entries = self._socket.count()
        if touched is None:
            self._socket.flows(pods, self._bit, judging, self._bit, entries, link_local=True)
        elif len(touched) > FILTERED or entries <= max(WALK * (filtered_dumps(touched) - 1), FEW):
            self._socket.flows(touched, 0, judging, self._bit, entries)
        else:
            self._socket.flows_at(touched, judging)
            return False
        return True

    def _ready(self, ruleset: Ruleset, pods: frozenset[Address], local: frozenset[Address]) -> Judge:
        """The last judge, where it would judge everything as a new one."""
        last = self._judge
        if last is not None and last.ruleset is ruleset and (last.pods, last.local) == (pods, local):
            return last
        self._judge, self._has_own_form = Judge(ruleset, pods, local), False
        return self._judge

    def _sorting(self, judge: Judge, ends: frozenset[Address] | None) -> Sorting | None:
        """What judges in C, between these ends, as the last judge does; None where the rules have a form of their own."""
        if not self._has_own_form:
            self._has_own_form = not self._index.build(judge.ruleset, judge.pods, judge.local, ends)
        return self._index.sorting(self._bit) if not self._has_own_form else None
