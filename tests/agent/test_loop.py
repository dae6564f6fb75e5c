"""The loop on a real kernel: step by step with a clock that the test moves, and in its thread."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from netpol.agent.agenda import Pace
from netpol.agent.audit import Drift
from netpol.agent.enforcer import Enforcer, Report
from netpol.agent.loop import LATE, Listener, Loop, Refusal
from netpol.errors import Contended, InvalidObject
from netpol.kernel.apply import Kernel
from netpol.kernel.proofs import Look
from netpol.kernel.watch import Bell
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.model import EVERYTHING, Namespace, Node, Pod, Policy
from netpol.rules.diff import diff
from netpol.rules.ruleset import Step
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")

KINDS = (Namespace, Node, Pod, Policy)
COMPLETE = tuple(Synced(kind) for kind in KINDS)
A = Pod("x", "a", (("app", "web"),), "n", (bytes((10, 0, 0, 1)),))
B = Pod("x", "b", (), "n", (bytes((10, 0, 0, 2)),))
P = Policy("x", "p", EVERYTHING, (), None)
WORLD = (Put(Namespace("x")), Put(A), Put(B), Put(P))


class Heard(Listener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.refusals: list[str] = []
        self.drifts: list[Drift] = []
        self.repaired: list[bool] = []
        self.invalids: list[Put] = []
        self.saves = 0

    def applied(self, report: Report) -> None:
        self.reports.append(report)

    def refused(self, error: Refusal) -> None:
        self.refusals.append(str(error))

    def drifted(self, drift: Drift, report: Report | None) -> None:
        self.drifts.append(drift)
        self.repaired.append(report is not None)

    def invalid(self, put: Put) -> None:
        self.invalids.append(put)

    def save(self) -> None:
        self.saves += 1


class Stage:
    """A loop, the listener, and the clock and the processor's time that the test moves."""

    def __init__(self, kernel: Kernel, pace: Pace, look: Callable[[], bool] | None = None) -> None:
        self.kernel, self.heard, self.now, self.used = kernel, Heard(), 1000.0, 0.0
        self.loop = Loop(
            Enforcer(kernel, "n"),
            KINDS,
            self.heard,
            pace=pace,
            look=look,
            clock=lambda: self.now,
            used=lambda: self.used,
            jitter=lambda: 1.0,
        )

    def pass_time(self, seconds: float) -> None:
        """Moves the clock, and does all that is due then."""
        self.now += seconds
        while self.loop.step():
            pass

    def burden(self, monkeypatch: pytest.MonkeyPatch, used: float, took: float = 0.0) -> None:
        """Each write from now on uses so many seconds of a processor, and takes so many."""
        enforce = self.loop.enforcer.enforce

        def slow() -> Report:
            self.now, self.used = self.now + took, self.used + used
            return enforce()

        monkeypatch.setattr(self.loop.enforcer, "enforce", slow)

    def agrees(self) -> bool:
        """Whether the kernel holds what the loop's cluster wants."""
        return diff(self.loop.enforcer.state.wanted(), self.kernel.read()) == ()


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def stage(kernel: Kernel) -> Stage:
    return Stage(kernel, Pace(look=0.1, audit=10.0))


@pytest.mark.parametrize(("used", "rest"), [(0.0, 0.002), (0.03, 0.03)], ids=["it only waited", "it was busy"])
def test_a_long_write_holds_up_the_next_change_by_what_it_cost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, used: float, rest: float
) -> None:
    """Of 50 ms that a write took only those rest that a processor was busy with it."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    stage.pass_time(1.0)
    stage.burden(monkeypatch, used, took=0.05)
    stage.loop.hear(Gone(Policy, "p", "x"))
    stage.pass_time(0.0)
    stage.loop.hear(Put(P))
    written = len(stage.heard.reports)
    stage.pass_time(rest - 0.001)
    assert len(stage.heard.reports) == written
    stage.pass_time(0.001001)
    assert len(stage.heard.reports) == written + 1


@pytest.mark.parametrize("more", [False, True], ids=["it is over", "more comes"])
def test_what_ends_a_storm_is_written_soon(stage: Stage, monkeypatch: pytest.MonkeyPatch, more: bool) -> None:
    """After a write of many events the next ones are gathered, and taken in meanwhile, until none has come for 20 ms."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    stage.pass_time(1.0)
    stage.burden(monkeypatch, 0.01)
    stage.loop.hear(*[Put(Pod("x", f"p{number}", (), "n", (bytes((10, 1, 0, number)),))) for number in range(100)])
    stage.pass_time(0.0)
    stage.loop.hear(Gone(Policy, "p", "x"))
    stage.pass_time(0.015)
    written = len(stage.heard.reports)
    if more:
        stage.loop.hear(Put(A))
    stage.pass_time(0.006)
    assert stage.loop.waiting == 0
    assert len(stage.heard.reports) == written + (not more)
    assert stage.agrees() == (not more)
    stage.pass_time(0.015)
    assert len(stage.heard.reports) == written + 1
    assert stage.agrees()


@pytest.mark.parametrize("meddled", [False, True], ids=["nobody else was there", "somebody was"])
def test_an_audit_in_a_rest_takes_what_is_pending_for_no_drift(stage: Stage, monkeypatch: pytest.MonkeyPatch, meddled: bool) -> None:
    """What was taken in and is not written yet is nobody's doing, and goes along with a repair; how long it waited is counted from when it
    came."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    stage.pass_time(9.9)
    stage.burden(monkeypatch, 0.2)
    stage.loop.hear(Gone(Policy, "p", "x"))
    stage.pass_time(0.0)
    audits, written, waited = sum(stage.loop.tally.audits.counts), len(stage.heard.reports), stage.loop.tally.enforced.total
    stage.loop.hear(Put(P))
    if meddled:
        run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
    stage.pass_time(0.15)
    assert (stage.loop.waiting, stage.agrees(), len(stage.heard.reports)) == (0, meddled, written)
    assert sum(stage.loop.tally.audits.counts) == audits + 1
    assert [drift.kinds() for drift in stage.heard.drifts] == [{"jump_deleted": 1}] * meddled
    stage.pass_time(0.06)
    assert (stage.agrees(), len(stage.heard.reports)) == (True, written + 1)
    assert stage.loop.tally.enforced.total - waited == pytest.approx(0.21)


def rules() -> str:
    return run("iptables-legacy-save", "-t", "mangle")


def test_nothing_is_written_before_every_kind_is_complete(stage: Stage) -> None:
    """Not even the table is made, though events are taken in; the last kind's end writes it all."""
    stage.loop.hear(*WORLD, *COMPLETE[:-1])
    stage.pass_time(60.0)
    assert stage.loop.waiting == 0
    assert "NETPOL" not in rules()
    stage.loop.hear(COMPLETE[-1])
    stage.pass_time(0.02)
    assert "-d 10.0.0.1/32" in rules()
    assert stage.agrees()


def test_a_change_is_enforced_without_time_passing(stage: Stage) -> None:
    """The first one after quiet needs no waiting; the next one waits for the rest after it; events of both are counted with their times."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    stage.pass_time(1.0)
    stage.loop.hear(Gone(Policy, "p", "x"))
    stage.pass_time(0.0)
    assert "-d 10.0.0.1/32" not in rules()
    stage.loop.hear(Put(P))
    stage.pass_time(0.0)
    assert "-d 10.0.0.1/32" not in rules()
    stage.pass_time(0.002)
    assert "-d 10.0.0.1/32" in rules()
    tally = stage.loop.tally
    assert sum(tally.enforced.counts) == 6
    assert tally.enforced.total == pytest.approx(4 * 0.02 + 0.0 + 0.002)
    assert tally.events == {
        **{(kind, "synced"): 1 for kind in ("Namespace", "Node", "Pod", "NetworkPolicy")},
        ("Namespace", "put"): 1,
        ("Pod", "put"): 2,
        ("NetworkPolicy", "put"): 2,
        ("NetworkPolicy", "gone"): 1,
    }
    assert tally.system_calls == sum(report.system_calls for report in stage.heard.reports)


def test_events_of_one_call_are_enforced_together(stage: Stage) -> None:
    """A policy that only gets another name costs no step."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    stage.loop.hear(Gone(Policy, "p", "x"), Put(Policy("x", "q", EVERYTHING, (), None)))
    stage.pass_time(1.0)
    assert [bool(report.steps) for report in stage.heard.reports] == [True, False]


def test_a_restarted_loop_writes_nothing(stage: Stage, kernel: Kernel) -> None:
    """It adopts what its predecessor left, with no write."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    second = Stage(kernel, Pace())
    second.loop.hear(*WORLD, *COMPLETE)
    second.pass_time(0.02)
    assert [report.steps for report in second.heard.reports] == [()]


def test_a_refusal_is_told_once_and_tried_again(stage: Stage) -> None:
    """Iptables' lock cannot be had: told once a change, a change is tried at once, and what is wanted is in force when it can be had."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    lock = Path(os.environ["XTABLES_LOCKFILE"])
    lock.unlink()
    lock.mkdir()
    stage.loop.hear(Gone(Policy, "p", "x"))
    for _ in range(60):
        stage.pass_time(1.0)
    (told,) = stage.heard.refusals
    assert "lock" in told
    tries = stage.loop.tally.refusals
    assert tries > 3
    stage.loop.hear(Put(Policy("x", "q", EVERYTHING, None, ())))
    stage.pass_time(0.1)
    assert stage.loop.tally.refusals == tries + 1
    assert len(stage.heard.refusals) == 2
    assert "-d 10.0.0.1/32" in rules()
    lock.rmdir()
    for _ in range(31):
        stage.pass_time(1.0)
    assert stage.loop.agenda.in_force
    assert stage.agrees()
    assert len(stage.heard.refusals) == 2


def test_what_takes_long_to_be_written_is_not_in_force(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits, for iptables' lock most likely; as long as one usually takes, what was in force before counts."""
    stage.loop.hear(*(Synced(kind) for kind in KINDS))
    stage.pass_time(1)
    assert stage.loop.in_force
    enforce, seen = stage.loop.enforcer.enforce, list[bool]()

    def slow() -> Report:
        for seconds in (0.0, LATE - 0.1, 0.2):
            stage.now += seconds
            seen.append(stage.loop.in_force)
        return enforce()

    monkeypatch.setattr(stage.loop.enforcer, "enforce", slow)
    stage.loop.hear(Put(Namespace("late")), Put(Policy("late", "p", EVERYTHING, (), None)))
    stage.pass_time(1)
    assert seen == [True, True, False]
    assert stage.loop.in_force


def test_what_takes_long_to_be_repaired_is_not_in_force(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody flushed the table and keeps the lock: an audit that has begun may have found that nothing is there any more."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(1)
    audit, seen = stage.loop.enforcer.audit, list[bool]()

    def slow() -> tuple[Drift, Report]:
        for seconds in (0.0, LATE - 0.1, 0.2):
            stage.now += seconds
            seen.append(stage.loop.in_force)
        return audit()

    monkeypatch.setattr(stage.loop.enforcer, "audit", slow)
    stage.pass_time(15)
    assert seen[:3] == [True, True, False]
    assert stage.loop.in_force


def test_an_audit_repairs_and_counts(stage: Stage) -> None:
    """By the clock alone, where nobody looks."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
    stage.pass_time(9.9)
    assert stage.heard.drifts == []
    stage.pass_time(0.2)
    assert stage.heard.drifts == [Drift(deleted=("IPv4",))]
    assert "-A FORWARD -j NETPOL" in rules()
    assert stage.loop.tally.drift["jump_deleted"] == 1
    assert sum(stage.loop.tally.drift.values()) == 1


def test_drift_that_cannot_be_repaired_is_counted(stage: Stage) -> None:
    """Once, when it is found: the stray set that somebody's rule uses is no refusal, and goes with the rule."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    run("ipset", "create", "NETPOL4-stray", "hash:ip")
    run("iptables-legacy", "-w", "-A", "FORWARD", "-m", "set", "--match-set", "NETPOL4-stray", "src")
    for _ in range(5):
        stage.pass_time(10.1)
    assert stage.loop.tally.drift == {"set_stray": 1}
    assert stage.heard.drifts == [Drift(stray_sets=("NETPOL4-stray",))]
    assert stage.loop.tally.refusals == 0
    run("iptables-legacy", "-w", "-F", "FORWARD")
    stage.pass_time(100)
    assert "NETPOL4-stray" not in run("ipset", "list", "-n").split()


def test_drift_that_the_kernel_does_not_let_be_repaired_is_named(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the refusal that it met, and once: what finds the kernel right later repairs it without a word of drift."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")

    def refusing(self: Kernel, steps: Sequence[Step]) -> tuple[str, ...]:
        raise Contended(errno.EAGAIN, "iptables lock", "/run/xtables.lock", "another program has held it for 10 s")

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "apply", refusing)
        stage.pass_time(10.1)
    assert (stage.heard.drifts, stage.heard.repaired) == ([Drift(deleted=("IPv4",))], [False])
    assert len(stage.heard.refusals) == 1
    stage.pass_time(100)
    assert "-A FORWARD -j NETPOL" in rules()
    assert stage.heard.repaired == [False]
    assert stage.loop.tally.drift == {"jump_deleted": 1}


def test_an_audit_that_is_refused_and_found_nothing_tells_of_no_drift(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a refusal, and no more."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)

    def refusing(self: Kernel) -> Look:
        raise Contended(errno.EAGAIN, "ipset list", "all sets", "they changed")

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "look", refusing)
        stage.pass_time(10.1)
    assert (stage.heard.drifts, len(stage.heard.refusals)) == ([], 1)


def test_a_look_that_sees_a_foreign_hand_audits_at_once(kernel: Kernel) -> None:
    """The look is asked about every 0.1 s, and its yes repairs within the same moment."""
    looks: list[bool] = []
    touched = False

    def look() -> bool:
        looks.append(touched)
        return touched

    stage = Stage(kernel, Pace(look=0.1, audit=0.0), look)
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    for _ in range(10):
        stage.pass_time(0.101)
    assert looks == [False] * 10
    run("iptables-legacy", "-w", "-t", "mangle", "-F", "NETPOL-DENY")
    touched = True
    stage.pass_time(0.101)
    assert [drift.edited for drift in stage.heard.drifts] == [("IPv4 NETPOL-DENY",)]


def test_a_sleep_that_looks_lasts_until_something_else_is_due(kernel: Kernel) -> None:
    """It is told when the first look is due, the pause between two, and when it has to end: to save, to audit, or to show that the thread
    lives. What it says of the next look is believed: one that is due at once is taken."""
    sleeps: list[tuple[float, float, float]] = []
    looks: list[float] = []
    now = 101.0

    def rest(bell: Bell, first: float, every: float, until: float) -> float:
        nonlocal now
        sleeps.append((first, every, until))
        if len(sleeps) == 1:
            now = until
            return until + 0.05
        if len(sleeps) == 2:
            now = until - 0.9
            return 0.0
        loop.stop()
        return first

    def look() -> bool:
        looks.append(now)
        return False

    pace = Pace(look=0.1, audit=1.9, save=(0.5, 0.5))
    loop = Loop(Enforcer(kernel, "n"), KINDS, pace=pace, look=look, rest=rest, clock=lambda: now, used=lambda: 0.0, jitter=lambda: 1.0)
    loop.hear(*WORLD, *COMPLETE)
    now += 1.0
    loop.run()
    assert sleeps == [pytest.approx(sleep) for sleep in ((102.1, 0.1, 102.5), (102.55, 0.1, 103.5), (102.7, 0.1, 103.6))]
    assert looks == [pytest.approx(102.6)]


def test_errors_of_objects_are_kept_and_told_when_they_change(stage: Stage) -> None:
    """Once for the same errors, again for others, once when they are gone; forgotten with the object, and counted."""
    bad = InvalidObject("NetworkPolicy x/p", "spec.ingress[0].ports[0].port", "0 is not a port")
    worse = InvalidObject("NetworkPolicy x/p", "spec.podSelector", "is no selector")
    events: list[Event] = [Put(P, (bad,)), Put(P, (bad,)), Put(P, (worse,)), Put(P), Put(P), Put(P, (bad,)), Gone(Policy, "p", "x"), Put(P)]
    for event in events:
        stage.loop.hear(event)
        stage.pass_time(0.02)
    assert [put.errors for put in stage.heard.invalids] == [(bad,), (worse,), (), (bad,)]
    assert stage.loop.tally.object_errors == {"NetworkPolicy": 3}
    assert stage.loop.errors == {}
    stage.loop.hear(Put(P, (bad, worse)))
    stage.pass_time(0.02)
    assert stage.loop.errors == {(Policy, "x", "p"): (bad, worse)}


def test_the_state_is_saved_in_quiet(stage: Stage) -> None:
    """Once, a second after the last change."""
    stage.loop.hear(*WORLD, *COMPLETE)
    stage.pass_time(0.02)
    stage.pass_time(0.9)
    assert stage.heard.saves == 0
    stage.pass_time(0.2)
    stage.pass_time(5.0)
    assert stage.heard.saves == 1


# -- in its thread -----------------------------------------------------------------------------------------------------


def until(holds: Callable[[], bool]) -> None:
    """Waits for something, for twenty seconds at most."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def running(kernel: Kernel) -> Iterator[tuple[Loop, Heard]]:
    """A loop in its thread, with a world in force, that neither looks nor audits."""
    heard = Heard()
    loop = Loop(Enforcer(kernel, "n"), KINDS, heard, pace=Pace(look=1000.0, audit=0.0), jitter=lambda: 1.0)
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.hear(*WORLD, *COMPLETE)
    until(lambda: loop.agenda.in_force)
    yield loop, heard
    loop.stop()
    thread.join(20)
    assert not thread.is_alive()


def changed_in_quiet(kernel: Kernel, pace: Pace, times: int) -> None:
    """A loop in its thread enforces a world, and then so many changes, each heard when the one before it was in force."""
    loop = Loop(Enforcer(kernel, "n"), KINDS, pace=pace, look=kernel.touched, rest=kernel.rest, jitter=lambda: 1.0)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        loop.hear(*WORLD, *COMPLETE)
        for i in range(times + 1):
            until(lambda i=i: sum(loop.tally.enforced.counts) == len(WORLD) + i)  # type: ignore[misc]  # mypy knows no such lambda
            if i < times:
                loop.hear(Put(P) if i % 2 else Gone(Policy, "p", "x"))
    finally:
        loop.stop()
        thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("look", [3600.0, 0.001], ids=["asleep", "asleep with an open eye"])
def test_an_event_wakes_the_thread(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, look: float) -> None:
    """Nothing polls: with a thread that would not wake by itself for an hour, each of 100 changes heard in quiet is enforced."""
    monkeypatch.setattr("netpol.agent.loop.PULSE", 3600.0)
    changed_in_quiet(kernel, Pace(look=look, audit=0.0), 100)


def test_an_event_that_a_pause_keeps_waiting_is_not_slept_through(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rang when it came, and many looks are due before the pause is over: they are taken, and then it is enforced."""
    monkeypatch.setattr("netpol.agent.loop.PULSE", 3600.0)
    changed_in_quiet(kernel, Pace(look=0.001, audit=0.0, rest=(0.2, 0.2), save=(3600.0, 3600.0)), 3)


def test_a_storm_of_threads_ends_in_the_right_state(running: tuple[Loop, Heard]) -> None:
    """Four sources at once, 4,000 events on 400 pods, a policy that comes and goes: nothing is lost, it ends as the last ones say."""
    loop, heard = running

    def source(number: int) -> None:
        for turn in range(10):
            for i in range(100):
                loop.hear(Put(Pod("x", f"p{number}-{i}", (("turn", str(turn)),), "n", (bytes((10, 1, number, i)),))))
            loop.hear(Put(P) if turn % 2 else Gone(Policy, "p", "x"))

    threads = [threading.Thread(target=source, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: sum(loop.tally.enforced.counts) == len(WORLD) + 4 * 1010)
    wanted, found = loop.ask(lambda enforcer: (enforcer.state.wanted(), enforcer.kernel.read()), 20) or (None, None)
    assert wanted is not None
    assert found is not None
    assert diff(wanted, found) == ()
    assert len(wanted.chains[4]) == len(found.chains[4])
    assert "-d 10.1.3.99/32" in rules()
    assert len(heard.reports) < 2000, "bursts were not gathered"


def test_questions_are_answered_by_the_thread(running: tuple[Loop, Heard]) -> None:
    """The answer, an error that the asker gets, and None where the loop has no time."""
    loop, _ = running
    assert loop.ask(lambda enforcer: (enforcer.state.node, threading.current_thread() is threading.main_thread()), 20) == ("n", False)
    with pytest.raises(InvalidObject):
        loop.ask(raise_it, 20)
    assert loop.ask(lambda enforcer: time.sleep(0.2), 0.01) is None
    assert loop.ask(lambda enforcer: 1, 20) == 1


def test_who_asks_without_end_does_not_keep_an_event_from_being_enforced(stage: Stage) -> None:
    """What is asked while another question is answered waits for the next step."""
    stage.loop.hear(*WORLD, *COMPLETE)
    askers: list[threading.Thread] = []
    in_force: list[bool] = []

    def ask() -> None:
        askers.append(threading.Thread(target=stage.loop.ask, args=(again, 20)))
        askers[-1].start()
        until(lambda: bool(stage.loop._asked))

    def again(enforcer: Enforcer) -> None:
        in_force.append(stage.loop.in_force)
        if len(askers) < 5:
            ask()

    ask()
    stage.pass_time(1.0)
    while stage.loop._asked:
        stage.loop.step()
    assert (len(in_force), in_force[0], in_force[-1]) == (5, False, True)
    for asker in askers:
        asker.join(20)


def test_a_question_that_was_given_up_is_not_answered(stage: Stage) -> None:
    """Nobody waits for it any more."""
    asked: list[int] = []
    assert stage.loop.ask(lambda _: asked.append(1), 0.01) is None
    stage.loop.step()
    assert asked == []


def raise_it(enforcer: Enforcer) -> None:
    raise InvalidObject("a", "b", "c")


def test_the_thread_shows_that_it_lives(running: tuple[Loop, Heard]) -> None:
    """With nothing to do, too."""
    loop, _ = running
    last = loop.last_pulse
    until(lambda: loop.last_pulse > last)
