"""Says on a NetworkPolicy itself that it cannot be understood: a Kubernetes Event, which `kubectl describe` shows.

Once for an object and what is wrong with it, however many agents see it and however often they start: the Event's name is a hash of the
two, so that whoever comes second is told by the API server that it is there. From a thread of its own, slowly, with a bound on what waits:
what cannot be said is in the log anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from netpol.agent.lasting import lasting
from netpol.errors import ApiError, InvalidObject
from netpol.kube.events import Put
from netpol.kube.watch import UNREADABLE
from netpol.model import Policy

if TYPE_CHECKING:  # importing it takes 0.2 s
    from netpol.kube.client import Answer, Client

POLICIES = "/apis/networking.k8s.io/v1"
EVENTS = "/api/v1"
WAITING = 1000  # policies
PAUSE = 1.0  # seconds between two Events at least
TRIES = 5
# What an API server takes of each; a name gets a dot and the hash behind it.
MESSAGE, NAME = 1024, 230
CREATED, CONFLICT, NOT_FOUND, FORBIDDEN = 201, 409, 404, 403
ENDING = "NamespaceTerminating"


class _Meta(Struct):
    uid: str = ""


class _Item(Struct):
    metadata: _Meta


class _Items(Struct):
    items: list[_Item] | None = None


class _Cause(Struct):
    reason: str = ""


class _Details(Struct):
    causes: list[_Cause] | None = None


class _Status(Struct):
    details: _Details | None = None


class Announcer:
    """See the module. `complain` is told, mostly by its thread, what could not be said; now -- the time for people."""

    def __init__(
        self,
        client: Client,
        complain: Callable[[str], None],
        pause: float = PAUSE,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._client, self._complain, self._pause, self._now = client, complain, pause, now
        self._waiting: dict[tuple[str, str], tuple[InvalidObject, ...]] = {}
        self._change = threading.Condition(threading.Lock())
        self._stopping = self._told = False
        self._thread = lasting("announcer", self._run)
        self._thread.start()

    def tell(self, put: Put) -> None:
        """An object came with these errors, or with none any more. Waits for nothing; of objects that are no policies nothing is said."""
        if not isinstance(put.object, Policy):
            return
        with self._change:
            if not put.errors:
                self._waiting.pop(put.object.key, None)
                return
            fits = put.object.key in self._waiting or len(self._waiting) < WAITING
            if fits:
                self._waiting[put.object.key] = put.errors
                self._change.notify()
            told, self._told = self._told, self._told or not fits
        if not fits and not told:
            self._complain(f"more than {WAITING} policies wait for Events: others get none (said once)")

    def close(self, timeout: float) -> None:
        """Says nothing more."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        failures = 0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or self._waiting)
                if self._stopping:
                    return
                key, errors = next(iter(self._waiting.items()))
            try:
                trouble = self._say(*key, errors)
            except Exception:
                self._forget(key, errors)  # a mistake of ours is no reason for the others to wait
                raise
            failures = failures + 1 if trouble else 0
            with self._change:
                if trouble is None or failures >= TRIES:
                    failures = 0
                    self._forget(key, errors)
                self._change.wait_for(lambda: self._stopping, self._pause * 2**failures)
            if trouble and not failures:
                self._complain(f"an Event on NetworkPolicy {key[0]}/{key[1]} could not be written: {trouble}")

    def _forget(self, key: tuple[str, str], errors: tuple[InvalidObject, ...]) -> None:
        """Unless other errors came meanwhile."""
        if self._waiting.get(key) == errors:
            del self._waiting[key]

    def _say(self, namespace: str, name: str, errors: tuple[InvalidObject, ...]) -> str | None:
        """None where it is said, or need not be; else what is in the way."""
        try:
            found = self._client.ask(
                "GET", f"{POLICIES}/namespaces/{namespace}/networkpolicies", (("fieldSelector", f"metadata.name={name}"),)
            )
            if found.code >= 400:
                return f"HTTP status {found.code} for the policy"
            items = msgspec.json.decode(found.body, type=_Items).items
            if not items:
                return None
            answer = self._client.ask(
                "POST", f"{EVENTS}/namespaces/{namespace}/events", body=event(namespace, name, items[0].metadata.uid, errors, self._now())
            )
        except (ApiError, *UNREADABLE) as error:
            return str(error)
        if answer.code in (200, CREATED, CONFLICT, NOT_FOUND) or _tells_of_an_end(answer):
            return None
        return f"HTTP status {answer.code}"


def _tells_of_an_end(answer: Answer) -> bool:
    """Whether the namespace is being deleted: it takes no Events any more. Any other 403 is a right that is missing."""
    if answer.code != FORBIDDEN:
        return False
    try:
        details = msgspec.json.decode(answer.body, type=_Status).details
    except UNREADABLE:
        return False
    return details is not None and any(cause.reason == ENDING for cause in details.causes or ())


def event(namespace: str, name: str, uid: str, errors: tuple[InvalidObject, ...], now: datetime) -> dict[str, object]:
    """The Event, as an API server takes it."""
    words = "; ".join(f"{error.field}: {error.reason}" if error.field else error.reason for error in errors)
    digest = sha256(f"{uid}\n{words}".encode()).hexdigest()[:16]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{name[:NAME].rstrip('.-')}.{digest}"},
        "involvedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": namespace, "name": name, "uid": uid},
        "type": "Warning",
        "reason": "NotUnderstood",
        "message": f"netpol isolates what this selects, as far as it cannot be understood: {words}"[:MESSAGE],
        "source": {"component": "netpol"},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
