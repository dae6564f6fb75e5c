"""The loop of a node: events from any thread in, and one thread that owns the kernel and makes it so.

Sources call `hear`; the thread in `run` takes in what they said, enforces it, audits, and takes the cheap look, as the `Agenda` has it.
Between an event and its enforcement nothing polls: `hear` wakes the thread. Events that are heard in one call are enforced together.
Each event is stamped as it arrives; how long it took until the kernel was as it wants is counted when it is.

Invariants: only the thread in `run` touches the enforcer, and only it calls the listener; until every kind has been said completely
nothing is written; what the kernel refuses never ends the loop, and what is in force stays. An error that is no refusal ends `run`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from netpol.agent.agenda import NOTHING, Agenda, Due, Pace, Task, Waiting
from netpol.agent.audit import Drift
from netpol.agent.coalesce import coalesced
from netpol.agent.enforcer import Enforcer, Report, identity
from netpol.agent.tally import Tally, kind_name
from netpol.errors import InvalidObject, KernelError, MalformedKernelData, NetpolError
from netpol.kernel.watch import Bell
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.model import Object

T = TypeVar("T")
Refusal = KernelError | MalformedKernelData
# What a refusal tells at most of how long events waited: while it lasts, more are only taken in.
STAMPS = 100_000
# The thread shows that it lives at least this often.
PULSE = 1.0  # seconds
# A write that has been under way for so long waits for somebody, most likely for iptables' lock: what it is to change is not in force.
LATE = 1.0  # seconds


class Listener:
    """What is told of the loop's doings, on its thread. Each method does nothing until it is overridden."""

    def applied(self, report: Report) -> None:
        """The kernel is as wanted. `report.steps` are empty where it was before."""

    def refused(self, error: Refusal) -> None:
        """The kernel refused, or showed what it should not. Told once a change, and not for each further try."""

    def drifted(self, drift: Drift, report: Report | None) -> None:
        """Somebody had changed what is ours; it is repaired, or with no report, not yet: `refused` follows."""

    def invalid(self, put: Put) -> None:
        """An object that cannot be understood whole came, or one whose errors are others than before; no errors: they are gone."""

    def save(self) -> None:
        """The state has not changed for a while, and is other than when this was called last."""

    def pulse(self) -> None:
        """The loop lives; called about every second, and more often."""


class Loop:
    """See the module.

    kinds -- what has to be said completely before anything is written; look -- the cheap look: whether somebody else wrote one of our
    tables since we did (None: there is none); rest -- sleeps, and goes on looking meanwhile, as `Kernel.rest` (None: every look is
    `look`); clock -- seconds that only go forward; used -- seconds of a processor that the calling thread
    has used; jitter -- numbers from 0 to 1.
    """

    def __init__(
        self,
        enforcer: Enforcer,
        kinds: Iterable[type[Object]],
        listener: Listener | None = None,
        *,
        pace: Pace | None = None,
        look: Callable[[], bool] | None = None,
        rest: Callable[[Bell, float, float, float], float] | None = None,
        tally: Tally | None = None,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
        jitter: Callable[[], float],
    ) -> None:
        self.enforcer, self.kinds = enforcer, tuple(kinds)
        self.agenda = Agenda(self.kinds, pace or Pace(), jitter)
        self.tally = tally or Tally()
        self.errors: dict[tuple[type[Object], str, str], tuple[InvalidObject, ...]] = {}
        self.last_pulse = clock()
        self._listener = listener or Listener()
        self._look, self._rest, self._clock, self._used = look, rest, clock, used
        self._lock, self._bell = threading.Lock(), Bell()
        self._heard: deque[tuple[float, Event]] = deque()
        self._asked: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._stamps: list[float] = []  # of what was taken in and is not in force yet
        self._taken = NOTHING  # in since a write was tried last
        self._at_work_since: float | None = None  # on the kernel
        self._told: str | None = None  # the refusal that was reported last

    # -- from any thread -----------------------------------------------------------------------------------------------

    def hear(self, *events: Event) -> None:
        """Takes events, in their order; those of one call are enforced together."""
        now = self._clock()
        with self._lock:
            first = not self._heard
            self._heard.extend((now, event) for event in events)
        if first:
            self._bell.ring()

    def ask(self, question: Callable[[Enforcer], T], timeout: float) -> T | None:
        """What the loop's thread answers to a question about the enforcer, between two tasks; None where it did not in time: then it is
        not asked any more.

        An error of netpol is raised here, and is no matter to the loop.
        """
        answers: queue.SimpleQueue[T | NetpolError] = queue.SimpleQueue()
        is_wanted = True

        def answer() -> None:
            if not is_wanted:
                return
            try:
                answers.put(question(self.enforcer))
            except NetpolError as error:
                answers.put(error)

        self._asked.append(answer)
        self._bell.ring()
        try:
            found = answers.get(timeout=timeout)
        except queue.Empty:
            is_wanted = False
            return None
        if isinstance(found, NetpolError):
            raise found
        return found

    def stop(self) -> None:
        """Ends `run` after the task at hand; what is in force stays."""
        self._stopping = True
        self._bell.ring()

    @property
    def in_force(self) -> bool:
        """Whether everything was said once, and the kernel holds what it should, as far as we know; for as long as a write usually takes
        what it held before counts."""
        began = self._at_work_since
        return self.agenda.in_force and (began is None or self._clock() - began < LATE)

    @property
    def waiting(self) -> int:
        """Events that were heard and not taken in yet."""
        return len(self._heard)

    # -- the loop's thread ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`; what was not saved then is."""
        while not self._stopping:
            self._pulse()
            if not self.step():
                self._sleep()
        if self.agenda.unsaved:
            self._save()

    def step(self) -> bool:
        """Answers what was asked and does the first task that is due; False where none is. For the thread in `run`, and for tests."""
        # What is asked meanwhile waits for the next step: who asks without end must not keep us from what is due.
        for _ in range(len(self._asked)):
            self._asked.popleft()()
        now = self._clock()
        due = self._due(now)
        if due is None or due.at > now:
            return False
        self._do(due.task)
        return True

    def _sleep(self) -> None:
        """Until something is due, or the bell rings: rung, it stays so until a sleep ends by it, and nothing is slept through."""
        now = self._clock()
        due = self._due(now)
        until = now + PULSE if due is None else min(due.at, now + PULSE)
        if self._rest is None or due is None or due.task != "look":
            self._bell.wait(until - now)
            return
        other = self._due(now, looking=False)
        until = now + PULSE if other is None else min(other.at, now + PULSE)
        self.agenda.plan_look(self._rest(self._bell, due.at, self.agenda.pace.look, until))

    def _do(self, task: Task) -> None:
        if task == "absorb":
            self._absorb()
        elif task == "apply":
            self._absorb()
            self._apply()
        elif task == "look":
            touched = self._look is not None and self._look()
            self.agenda.looked(self._clock(), touched)
        elif task == "audit":
            self._audit()
        else:
            self._save()

    def _save(self) -> None:
        self._listener.save()
        self.agenda.saved()

    def _due(self, now: float, looking: bool = True) -> Due | None:
        heard = self._heard
        return self.agenda.due(Waiting(heard[-1][0], heard[0][0]) if heard else self._taken, now, looking)

    def _pulse(self) -> None:
        self.last_pulse = self._clock()
        self._listener.pulse()

    def _absorb(self) -> None:
        """Takes in all that was heard."""
        with self._lock:
            heard, self._heard = self._heard, deque()
        if heard:
            self._taken = Waiting(heard[-1][0])
        now = self._clock()
        changes: list[Put | Gone] = []
        for stamp, event in heard:
            if isinstance(event, Synced):
                self.agenda.heard_all(event.kind, now)
                self.tally.events[kind_name(event.kind), "synced"] += 1
                continue
            changes.append(event)
            if len(self._stamps) < STAMPS:
                self._stamps.append(stamp)
            kind, word = (event.kind, "gone") if isinstance(event, Gone) else (type(event.object), "put")
            self.tally.events[kind_name(kind), word] += 1
            if self.errors or (isinstance(event, Put) and event.errors):
                self._remember_errors(event)
        if changes:
            self._told = None
        puts: list[Object] = []
        for event in coalesced(changes):
            if isinstance(event, Put):
                puts.append(event.object)
                continue
            self.enforcer.put(*puts)
            puts = []
            self.enforcer.drop(event.kind, event.name, event.namespace)
        self.enforcer.put(*puts)

    def _remember_errors(self, event: Put | Gone) -> None:
        if isinstance(event, Gone):
            self.errors.pop((event.kind, event.namespace, event.name), None)
            return
        key = identity(event.object)
        before = self.errors.pop(key, ())
        if event.errors:
            self.errors[key] = event.errors
        if [str(error) for error in before] != [str(error) for error in event.errors]:
            self.tally.object_errors[kind_name(key[0])] += len(event.errors)
            self._listener.invalid(event)

    def _apply(self) -> None:
        began, used = self._clock(), self._used()
        self._taken = NOTHING
        try:
            with self._at_work(began):
                report = self.enforcer.enforce()
        except (KernelError, MalformedKernelData) as error:
            self._refuse(began, error)
            return
        self._done(began, self._used() - used, report)

    def _done(self, began: float, took: float, report: Report) -> None:
        ended = self._clock()
        self.tally.applies.observe(ended - began)
        self.tally.system_calls += report.system_calls
        self._told = None
        if report.grace:
            self.agenda.hold(ended + report.grace)
            self._listener.applied(report)
            return
        stamps, self._stamps = self._stamps, []
        self.tally.enforced.observe_all(ended - stamp for stamp in stamps)
        self.agenda.applied(ended, took, bool(report.steps), len(stamps))
        self._listener.applied(report)

    def _audit(self) -> None:
        began = self._clock()
        try:
            # What it repairs is not in force while that waits.
            with self._at_work(began):
                drift, report = self.enforcer.audit()
        except (KernelError, MalformedKernelData) as error:
            # It was found, though it could not be repaired.
            if self.enforcer.drift:
                self.tally.drift.update(self.enforcer.drift.kinds())
                self._listener.drifted(self.enforcer.drift, None)
            self._refuse(began, error)
            return
        ended = self._clock()
        self.tally.audits.observe(ended - began)
        self.tally.system_calls += report.system_calls
        self.agenda.audited(ended, bool(report.steps))
        if drift:
            self.tally.drift.update(drift.kinds())
            self._listener.drifted(drift, report)

    @contextmanager
    def _at_work(self, began: float) -> Iterator[None]:
        self._at_work_since = began
        try:
            yield
        finally:
            self._at_work_since = None

    def _refuse(self, began: float, error: Refusal) -> None:
        self.tally.refusals += 1
        self.agenda.refused(began, self._clock())
        if self._told != str(error):
            self._told = str(error)
            self._listener.refused(error)
