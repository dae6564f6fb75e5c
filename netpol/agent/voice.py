"""What the parts of the agent tell, said in its log, counted, and handed on to those of them that need it.

Levels: an error is what keeps the node from being as it should; a warning is what somebody should look at though it is; info is what
happens once; debug is each change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from netpol.agent import cutter
from netpol.agent.audit import Drift
from netpol.agent.enforcer import Report
from netpol.agent.loop import Listener, Refusal
from netpol.agent.notify import Notifier
from netpol.agent.preflight import Check
from netpol.agent.saved import SavedStateError
from netpol.agent.standing import Standing
from netpol.agent.tally import Tally, kind_name
from netpol.errors import InvalidObject
from netpol.kube import sources
from netpol.kube.events import Put
from netpol.kube.reflector import Trouble
from netpol.model import Object

NAMED = 10  # things that one line names

log = logging.getLogger("netpol")


class Voice(Listener, sources.Listener):
    """See the module. Each method is called by one thread only, as its section says.

    changed -- what follows each change in force; doubted -- told when one failed on its way; keep -- has the state saved; announce -- told
    of objects that cannot be understood.
    """

    def __init__(
        self,
        notifier: Notifier,
        tally: Tally,
        *,
        changed: Callable[[Report], None],
        doubted: Callable[[], None],
        keep: Callable[[], None],
        announce: Callable[[Put], None],
    ) -> None:
        self.standing: Standing | None = None
        self._notifier, self._tally = notifier, tally
        self._changed, self._doubted, self._keep, self._announce = changed, doubted, keep, announce
        self._in_force = False
        self._leftover: tuple[str, ...] = ()

    # -- the loop's thread ---------------------------------------------------------------------------------------------

    def applied(self, report: Report) -> None:
        if report.steps or report.whole is not None or report.touched != frozenset():
            self._changed(report)
        if report.steps:
            log.debug("%d steps, %d system calls", len(report.steps), report.system_calls)
        if self.standing is not None:
            self.standing.waits_for = f"policies come into force in {report.grace:.1f} s" if report.grace else None
        if report.grace:
            log.warning(
                "policies come into force in %.1f s: this node tracked no connections, and those that run are to be known by then",
                report.grace,
            )
        elif not self._in_force:
            self._in_force = True
            log.info("everything is in force: %d steps, %d system calls", len(report.steps), report.system_calls)
            self._notifier.ready()
            for words in self.standing.nowhere() if self.standing is not None else ():
                log.warning("%s", words)
        self._tell_leftover(report)

    def refused(self, error: Refusal) -> None:
        self._in_force = False
        self._doubted()
        if self.standing is not None:
            self.standing.waits_for = str(error)
        log.error("%s; what of it came into force stays so, and it is tried again", error)

    def drifted(self, drift: Drift, report: Report | None) -> None:
        if report is None:
            log.warning("somebody else changed what is ours, and it could not be repaired at once: %s", _some(drift.named()))
            return
        self._changed(report)
        self._tell_leftover(report)
        log.warning("somebody else changed what is ours, and it is repaired: %s", _some(drift.named()))

    def _tell_leftover(self, report: Report) -> None:
        if report.leftover and report.leftover != self._leftover:
            log.warning("sets that somebody else's rule or set uses, and that go when they are free: %s", _some(report.leftover))
        self._leftover = report.leftover

    def invalid(self, put: Put) -> None:
        for error in put.errors[:NAMED]:
            log.warning("%s", error)
        self._announce(put)

    def save(self) -> None:
        self._keep()

    def pulse(self) -> None:
        self._notifier.alive()
        if self.standing is not None:
            self._notifier.status("; ".join(self.standing.objections()) or "in force")

    # -- the threads of the sources ------------------------------------------------------------------------------------

    def troubled(self, kind: type[Object], trouble: Trouble | None) -> None:
        if trouble is None:
            log.info("%s: followed again", kind_name(kind))
        else:
            log.warning("%s: %s; the last rules stay in force, and it is tried again", kind_name(kind), trouble.message)

    def unreadable(self, error: InvalidObject) -> None:
        log.warning("%s; what was known of it stays", error)

    # -- the cutting thread --------------------------------------------------------------------------------------------

    def swept(self, report: cutter.Report, seconds: float) -> None:
        self._tally.sweeps.observe(seconds)
        self._tally.cut += report.marked
        self._tally.given_back += report.unmarked
        if report.marked or report.unmarked:
            log.debug("%d flows cut, %d given back, in %.3f s", report.marked, report.unmarked, seconds)

    def not_swept(self, error: Exception) -> None:
        self._tally.sweep_failures += 1
        log.error("flows that are denied now could not be cut: %s; it is tried again", error)

    # -- the lookout's thread ------------------------------------------------------------------------------------------

    def checked(self, check: Check) -> None:
        level = {"ok": logging.INFO, "warn": logging.WARNING, "fail": logging.ERROR}[check.level]
        log.log(level, "preflight: %s: %s", check.name, check.words)

    # -- others --------------------------------------------------------------------------------------------------------

    def not_saved(self, error: SavedStateError) -> None:
        log.error("%s", error)

    def trouble(self, words: str) -> None:
        log.error("%s", words)


def _some(things: Sequence[str]) -> str:
    more = len(things) - NAMED
    return ", ".join(things[:NAMED]) + (f" and {more} more" if more > 0 else "")
