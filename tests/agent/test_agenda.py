"""What the loop does next and when, from made-up times: no clock, no thread, no kernel."""

from __future__ import annotations

import pytest

from netpol.agent.agenda import FEW, NOTHING, Agenda, Due, Pace, Waiting
from netpol.model import Namespace, Pod


def at(due: Due | None, task: str) -> float:
    """When that task, and no other one, is due first."""
    assert due is not None
    assert due.task == task
    return due.at


def came(at: float) -> Waiting:
    """An event that was not taken in."""
    return Waiting(at, at)


def taken(newest: float) -> Waiting:
    """Events that were all taken in, and are not written."""
    return Waiting(newest)


PACE = Pace(look=0.1, audit=10.0, gather=0.02, rest=(0.002, 0.1), retry=(0.1, 30.0), save=(1.0, 5.0))


def agenda(pace: Pace = PACE, jitter: float = 1.0) -> Agenda:
    """One that waits for namespaces and pods."""
    return Agenda((Namespace, Pod), pace, lambda: jitter)


def in_force(pace: Pace = PACE, jitter: float = 1.0) -> Agenda:
    """One whose kernel is as wanted since 100.0, after a write of 50 ms; nothing is unsaved."""
    made = agenda(pace, jitter)
    made.heard_all(Namespace, 99.0)
    made.heard_all(Pod, 99.0)
    made.applied(100.0, 0.05, changed=True)
    made.saved()
    return made


def test_looks_that_somebody_else_takes() -> None:
    """What is due besides them, and his next one, which is due at once where he found something."""
    made = in_force(Pace(look=0.1, audit=10.0))
    assert made.due(NOTHING, 100.0, looking=False) == Due(110.0, "audit")
    assert in_force(Pace(look=0.1, audit=0.0)).due(NOTHING, 100.0, looking=False) is None
    made.plan_look(103.25)
    assert made.due(NOTHING, 100.0) == Due(103.25, "look")
    made.plan_look(0.0)
    assert made.due(NOTHING, 100.0) == Due(100.0, "look")


def test_nothing_is_written_before_every_kind_is_complete() -> None:
    """Events are only taken in, gathered for a moment; no look, no audit; the last kind makes the write due at once."""
    made = agenda()
    assert made.due(NOTHING, 5.0) is None
    assert made.due(came(1.0), 1.0) == Due(1.02, "absorb")
    made.heard_all(Namespace, 2.0)
    made.heard_all(Namespace, 2.5)
    assert made.due(came(2.0), 2.0) == Due(2.02, "absorb")
    made.heard_all(Pod, 3.0)
    assert made.complete
    assert made.due(NOTHING, 3.0) == Due(3.0, "apply")


def test_complete_is_for_good() -> None:
    """A kind that is said again completely, as after an outage, is no reason to write where nothing changed."""
    made = in_force()
    made.heard_all(Pod, 200.0)
    assert made.complete
    assert made.due(NOTHING, 100.0) == Due(100.1, "look")


def test_the_first_change_after_quiet_goes_at_once() -> None:
    """It is due when it came, also where a look and an audit are overdue."""
    made = in_force()
    assert made.due(came(150.0), 150.0001) == Due(150.0001, "apply")


@pytest.mark.parametrize(
    ("took", "events", "rest"),
    [
        pytest.param(0.0001, 1, 0.002, id="not shorter than the least"),
        pytest.param(0.03, FEW, 0.03, id="as long as the write took"),
        pytest.param(0.01, 2 * FEW, 0.02, id="twice as long where it was of many events"),
        pytest.param(0.01, 9 * FEW, 0.09, id="and longer the more they were"),
        pytest.param(0.01, 100 * FEW, 0.1, id="ten times as long where they were very many"),
        pytest.param(0.06, 100 * FEW, 0.5, id="not longer than the most"),
        pytest.param(4.0, 1, 0.5, id="nor where it took as long itself"),
    ],
)
def test_a_burst_is_gathered(took: float, events: int, rest: float) -> None:
    """What comes while the kernel is written, or right after, waits until the write has rested, as long as more comes."""
    made = in_force(Pace(look=1000.0, audit=0.0))
    ended = 200.0 + took
    made.applied(ended, took, changed=True, events=events)
    assert at(made.due(taken(ended + rest), ended), "apply") == pytest.approx(ended + rest)


@pytest.mark.parametrize(
    ("newest", "due"),
    [
        pytest.param(200.05, 200.07, id="it ends in the rest"),
        pytest.param(200.01, 200.04, id="the write has rested by then"),
        pytest.param(200.2999, 200.31, id="it goes on"),
    ],
)
def test_the_end_of_a_storm_is_not_waited_for(newest: float, due: float) -> None:
    """When no event has come for 20 ms, those that wait are the last: only as long as it was busy has a write to rest."""
    made = in_force(Pace(look=1000.0, audit=0.0))
    made.applied(200.01, 0.03, changed=True, events=100 * FEW)
    assert at(made.due(taken(newest), 200.02), "apply") == pytest.approx(due)


@pytest.mark.parametrize(
    ("waiting", "now", "due"),
    [
        pytest.param(Waiting(200.015, 200.0), 200.015, Due(200.02, "absorb"), id="it has long to wait"),
        pytest.param(Waiting(200.03, 200.025), 200.03, Due(200.045, "absorb"), id="others were taken in before"),
        pytest.param(Waiting(200.1, 200.1), 200.1, Due(200.11, "apply"), id="it will be written soon"),
        pytest.param(Waiting(200.1, 200.015), 200.12, Due(200.12, "apply"), id="it is to be written"),
    ],
)
def test_what_comes_in_a_rest_is_taken_in_meanwhile(waiting: Waiting, now: float, due: Due) -> None:
    """A while after it came, so that it is not taken in event by event; the end of a storm is left with little to do."""
    made = in_force(Pace(look=1000.0, audit=0.0, rest=(0.002, 0.1)))
    made.applied(200.01, 0.03, changed=True, events=100 * FEW)
    assert at(made.due(waiting, now), due.task) == pytest.approx(due.at)


def test_a_storm_that_changes_nothing_holds_nothing_up() -> None:
    """Of a relist nothing had to be written: what comes next does not wait for as many again."""
    made = in_force(Pace(look=1000.0, audit=0.0))
    made.applied(200.0, 0.001, changed=False, events=100 * FEW)
    assert at(made.due(came(200.0), 200.0), "apply") == pytest.approx(200.002)


def test_looks_and_audits_come_by_the_clock() -> None:
    """Every 0.1 s and every 10 s; a look that sees somebody's hand brings the audit at once."""
    made = in_force()
    assert made.due(NOTHING, 100.0) == Due(100.1, "look")
    made.looked(100.1, touched=False)
    assert at(made.due(NOTHING, 100.1), "look") == pytest.approx(100.2)
    made.looked(109.95, touched=False)
    assert made.due(NOTHING, 110.0) == Due(110.0, "audit")
    made.audited(110.0)
    assert at(made.due(NOTHING, 110.0), "look") == pytest.approx(110.05)
    made.looked(110.05, touched=True)
    assert made.due(NOTHING, 110.05) == Due(110.05, "audit")


def test_writes_do_not_put_audits_off() -> None:
    """Under steady change audits and looks keep their times."""
    made = in_force()
    for second in range(101, 112):
        made.applied(second + 0.001, 0.001, changed=True)
        made.looked(second + 0.002, touched=False)
    assert made.due(NOTHING, 111.003) == Due(111.003, "audit")


def test_audits_can_be_off() -> None:
    """An interval of 0 means none, but for those that a look brings."""
    made = in_force(Pace(audit=0.0))
    made.looked(1e6, touched=False)
    assert made.due(NOTHING, 1e6) == Due(1e6 + 0.1, "look")
    made.looked(1e6, touched=True)
    assert made.due(NOTHING, 1e6) == Due(1e6, "audit")
    made.audited(1e6)
    assert made.due(NOTHING, 1e6) == Due(1e6 + 0.1, "look")


@pytest.mark.parametrize(("jitter", "share"), [pytest.param(0.0, 0.5, id="least"), pytest.param(1.0, 1.0, id="most")])
def test_what_was_refused_is_tried_again_ever_later(jitter: float, share: float) -> None:
    """0.1 s doubled each time, up to 30 s, with jitter down to a half; a success begins anew."""
    made = in_force(jitter=jitter)
    for wait in [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]:
        made.refused(200.0, 200.0)
        assert at(made.due(NOTHING, 200.0), "apply") == pytest.approx(200.0 + wait * share)
    made.applied(300.0, 0.0, changed=False)
    assert made.due(NOTHING, 300.0) != Due(300.0, "apply")
    made.refused(400.0, 400.0)
    assert at(made.due(NOTHING, 400.0), "apply") == pytest.approx(400.0 + 0.1 * share)


def test_a_thousand_refusals_are_counted() -> None:
    """The doubling does not run out of numbers."""
    made = in_force()
    for _ in range(2000):
        made.refused(200.0, 200.0)
    assert made.due(NOTHING, 200.0) == Due(230.0, "apply")


def test_a_change_does_not_wait_for_the_retry() -> None:
    """It may have nothing to do with what is refused; but it waits long enough that a stream of them is no storm of tries."""
    made = in_force()
    for _ in range(10):
        made.refused(200.0, 200.0)
    assert made.due(taken(200.0), 200.0) == Due(200.05, "apply")


def test_nobody_looks_or_audits_while_the_kernel_refuses() -> None:
    """The retry reads everything anyway."""
    made = in_force()
    for _ in range(10):
        made.refused(200.0, 200.0)
    assert made.due(NOTHING, 229.0) == Due(230.0, "apply")


def test_the_state_is_saved_in_quiet_and_under_steady_change() -> None:
    """A second after the last change, but not later than five after the first; not while the kernel lacks something; once."""
    made = in_force(Pace(look=1000.0))
    made.applied(200.0, 0.0, changed=False)
    assert not made.unsaved
    made = in_force(Pace(look=1000.0, audit=0.0))
    made.applied(200.0, 0.0, changed=True)
    assert made.due(NOTHING, 200.0) == Due(201.0, "save")
    for tenth in range(2001, 2050):
        made.applied(tenth / 10, 0.0, changed=True)
    assert made.due(NOTHING, 204.9) == Due(205.0, "save")
    made.refused(204.9, 204.9)
    assert not made.unsaved
    made.applied(205.5, 0.0, changed=False)
    assert made.due(NOTHING, 205.5) == Due(205.5, "save")
    made.saved()
    assert made.due(NOTHING, 206.0) == Due(1205.5, "look")


def test_what_came_into_force_by_a_refused_try_is_saved() -> None:
    """All of it may be done before the kernel says no: the next try finds nothing to do, and the file is old all the same."""
    made = in_force(Pace(look=1000.0, audit=0.0))
    made.applied(200.0, 0.0, changed=True)
    made.saved()
    made.refused(201.0, 201.0)
    made.applied(202.0, 0.0, changed=False)
    assert made.due(NOTHING, 202.0) == Due(203.0, "save")


def test_what_an_audit_wrote_is_saved() -> None:
    """A repair takes with it what was pending; an audit that finds nothing writes nothing."""
    made = in_force(Pace(look=1000.0, audit=0.0))
    made.applied(200.0, 0.0, changed=True)
    made.saved()
    made.audited(201.0)
    assert not made.unsaved
    made.audited(202.0, changed=True)
    assert made.due(NOTHING, 202.0) == Due(203.0, "save")


def test_the_state_is_saved_once_though_nothing_changed() -> None:
    """A process that finds all as wanted saves it: what an earlier one saved may be lost, damaged, or of another version."""
    made = agenda(Pace(look=1000.0, audit=0.0))
    made.heard_all(Namespace, 99.0)
    made.heard_all(Pod, 99.0)
    made.applied(100.0, 0.0, changed=False)
    assert made.due(NOTHING, 100.0) == Due(101.0, "save")
    made.saved()
    made.applied(200.0, 0.0, changed=False)
    assert not made.unsaved


def test_a_first_install_holds_everything() -> None:
    """Neither a change nor a look nor an audit comes before the grace is over; then it is written, and all is as ever."""
    made = in_force()
    made.hold(105.0)
    assert not made.in_force
    assert made.due(NOTHING, 101.0) == made.due(taken(101.0), 101.0) == Due(105.0, "apply")
    made.applied(105.0, 0.0, changed=True)
    assert made.due(NOTHING, 105.0) == Due(105.1, "look")
