"""Objects of an API server, followed: one thread a kind, which does what its `Reflector` decides and hands on what that hears.

Nothing here decides anything. A thread lives until `stop`; whatever goes wrong is a wait and another try, and what nobody foresaw is
that too, with everything said again. Who waits because the server was away does not wait on once it has answered another kind.

Invariants: the sink is called from these threads, for each kind in order, and not after `stop` has returned; the events of one call
came in one piece. `stop` returns within its patience, whatever the threads are doing: one that a name look-up holds up is left behind,
and does nothing more.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from netpol.errors import ApiError, Cut, InvalidObject, Silence
from netpol.kube.events import Event
from netpol.kube.reflector import NAMESPACES, NODES, PODS, POLICIES, Figures, Heard, Reflector, Request, Resource, Trouble
from netpol.kube.waits import Pause, Timing
from netpol.model import Object

if TYPE_CHECKING:  # importing it takes 0.1 s
    from netpol.kube.client import Client

PATIENCE = 2.0  # seconds
SPAN, THICK = 0.02, 20
"""Events of a kind come thick when so many have come in so many seconds."""
NAP = 0.005
"""Seconds between two readings then. What is enforced of a storm is gathered for longer than that."""


class Selection(Struct, frozen=True):
    """What to follow: all objects of a kind, or those that a field selector leaves."""

    resource: Resource
    field_selector: str = ""


EVERYTHING = (Selection(NAMESPACES), Selection(NODES), Selection(POLICIES), Selection(PODS))


def for_node(name: str) -> tuple[Selection, ...]:
    """What the agent of a node follows: everything, but of the nodes only its own."""
    return (Selection(NAMESPACES), Selection(NODES, f"metadata.name={name}"), Selection(POLICIES), Selection(PODS))


class Sink(Protocol):
    """Where events go."""

    def __call__(self, *events: Event) -> None: ...


class Listener:
    """What is told besides the objects, on the thread of their kind. Each method does nothing until it is overridden."""

    def troubled(self, kind: type[Object], trouble: Trouble | None) -> None:
        """Following a kind does not go well, for another reason than before; None: it does again."""

    def unreadable(self, error: InvalidObject) -> None:
        """Of an object nothing new could be read: it counts as it did before, or not at all."""


class Sources:
    """See the module. A context manager: starts, and stops.

    clock -- seconds that only go forward; jitter -- numbers from 0 to 1. `reflectors` is for reading: figures, troubles.
    """

    def __init__(
        self,
        client: Client,
        selections: Sequence[Selection],
        sink: Sink,
        listener: Listener | None = None,
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._rests = Rests()
        followers = [
            _Follower(
                client,
                Reflector(one.resource, one.field_selector, timing, clock=clock, random=jitter),
                sink,
                listener,
                self._rests,
                Thick(clock),
            )
            for one in selections
        ]
        self.reflectors = tuple(follower.reflector for follower in followers)
        self._threads = [
            threading.Thread(target=follower.run, name=follower.reflector.resource.path.rpartition("/")[2], daemon=True)
            for follower in followers
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float = PATIENCE) -> None:
        """Ends the threads, and closes the client to end what they wait for."""
        self._rests.end()
        self._client.close()
        end = time.monotonic() + patience
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))

    @property
    def figures(self) -> dict[str, Figures]:
        """What happened so far, by the kind's name."""
        return {reflector.resource.kind.__name__: reflector.figures for reflector in self.reflectors}

    def __enter__(self) -> Sources:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class Rests:
    """The rests of several threads: each ends at its time, with the end of all of it, or for who waits for a server, when that is back."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.are_over = False
        self.returns = 0
        """How often a server that had been away was found to be back."""

    def rest(self, seconds: float, returns: int | None = None) -> None:
        """Waits for so many seconds; with `returns`, until there were more of them."""
        with self._changed:
            self._changed.wait_for(lambda: self.are_over or returns not in (None, self.returns), seconds)

    def found_back(self) -> None:
        with self._changed:
            self.returns += 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self.are_over = True
            self._changed.notify_all()


class Thick:
    """Whether events come so thick that it pays to let some of them come before they are read: each reading costs as much as an event.

    clock -- seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began, self._heard = 0.0, 0

    def takes(self, events: int) -> bool:
        """So many have come now."""
        now = self._clock()
        if now - self._began > SPAN:
            self._began, self._heard = now, 0
        self._heard += events
        return self._heard >= THICK


class _Follower:
    """One thread: asks what its reflector wants to know, and passes on what it made of the answer."""

    def __init__(self, client: Client, reflector: Reflector, sink: Sink, listener: Listener | None, rests: Rests, thick: Thick) -> None:
        self.reflector, self._thick = reflector, thick
        self._client, self._sink, self._rests = client, sink, rests
        self._listener = listener or Listener()
        self._told: str | None = None  # the reason of the trouble that was told last
        self._was_away = False  # whether there was nobody to ask, the last time
        self._returns = 0  # what `Rests` had counted when the last request was made

    def run(self) -> None:
        while not self._rests.are_over:
            try:
                self._step()
                self._tell()
            except Exception as error:
                # A mistake in one answer's handling must not end all following: the last rules would stay for ever.
                self.reflector.restart(f"{type(error).__name__}: {error}")

    def _step(self) -> None:
        todo = self.reflector.next()
        if isinstance(todo, Pause):
            self._was_away = todo.outage
            self._rests.rest(todo.seconds, self._returns if todo.outage else None)
            return
        self._returns = self._rests.returns
        try:
            if todo.watch:
                self._watch(todo)
            else:
                self._list(todo)
        except ApiError as error:
            self.reflector.fail(str(error))

    def _list(self, request: Request) -> None:
        answer = self._client.ask("GET", request.path, request.query, compressed=True, silence=request.silence)
        self._answered(answer.code)
        if answer.code == 200:
            self._hand_on(self.reflector.receive_page(answer.body))
        else:
            self.reflector.reject(answer.code, answer.body, answer.retry_after)

    def _watch(self, request: Request) -> None:
        with self._client.watch(request.path, request.query, request.silence, protobuf=request.protobuf) as stream:
            self._answered(stream.code)
            if stream.code != 200:
                self.reflector.reject(stream.code, stream.rest(), stream.retry_after)
                return
            self.reflector.granted(stream.protobuf)
            self._tell()
            while self.reflector.reading:
                try:
                    data = stream.read()
                except Silence as error:
                    self.reflector.end("silence", str(error))
                except Cut as error:
                    self.reflector.end("cut", str(error))
                else:
                    if data:
                        heard = self.reflector.receive(data)
                        self._hand_on(heard)
                        self._tell()
                        if self._thick.takes(len(heard.events)) and self.reflector.phase == "watch":
                            self._rests.rest(NAP)
                    else:
                        self.reflector.end("timeout")

    def _answered(self, code: int) -> None:
        # What a gateway says while the server is away is no answer of it.
        if self._was_away and code < 500:
            self._was_away = False
            self._rests.found_back()

    def _hand_on(self, heard: Heard) -> None:
        if self._rests.are_over:
            return
        if heard.events:
            self._sink(*heard.events)
        for error in heard.invalid:
            self._listener.unreadable(error)

    def _tell(self) -> None:
        trouble = self.reflector.trouble
        reason = trouble.reason if trouble is not None else None
        if reason != self._told and not self._rests.are_over:
            self._told = reason
            self._listener.troubled(self.reflector.resource.kind, trouble)
