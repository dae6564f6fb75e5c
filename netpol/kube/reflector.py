"""How one kind of objects is followed: what to ask an API server next, and what its answers mean. Decisions only, no I/O.

As client-go's reflector: the first request is a watch that begins with all objects there are (WatchList); where a server does not
do that, one list in pages. From there on one watch follows another, each from the resourceVersion that the last one reached. Who
drives it (`netpol.kube.sources`) asks `next()` what to do, does it, and says how it went by one of `receive`, `receive_page`, `end`,
`reject`, `malformed` and `fail`.

Invariants
- No position is recorded before everything has been said; `Synced` is said exactly then. What is gone since the last time is said as
  `Gone` just before.
- What comes counts, whatever its resourceVersion: after etcd was restored to an older state, older ones are right.
- Only the server's word leads to another full sync: 410, `REJECTIONS` refusals in a row, or a resourceVersion before ours. An outage,
  however long, does not.
- After a watch that did not end at its time, history may be another one: over an etcd that was restored to an older state, a server
  takes a watch from a version that is yet to come, and says nothing (kube-apiserver 1.37 does). So a look tells its version first: that
  of its cache, which answers at once, also a server that has a storm of changes to take in and ended the watch for that. One whose cache
  is before ours may only lag behind: then a list of one object tells etcd's. Where a restored etcd has passed ours by then, it cannot be
  told: `etcdutl --bump-revision` is for that.
- After a failure it waits: 0.8 to 30 s, at random, longer each time; at least as long as Retry-After says, within a limit. A server that
  has forgotten where we were (410) is well again: the waits of its outage are over, once.
- What the last bytes said may be lost on our side until the next ones come: `restart` has all of it said again, also who is gone.
- What cannot be read of an object is reported and never ends the stream; an object that was readable before stays as it was.

Memory: of each object its namespace and name, and those are the strings of the objects that were said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from netpol.errors import LONGEST, InvalidObject, MalformedAnswer, printable
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.kube.waits import Pause, Timing, Waits
from netpol.kube.watch import GONE, Bookmark, Change, FrameStream, Status, WatchStream, read_object, read_page, read_status
from netpol.model import Namespace, Node, Object, Pod, Policy
from netpol.policy.decode import Decoded, decode_namespace, decode_node, decode_pod, decode_policy

PAGE = 500  # objects a page of a list
PAGES = 4_000  # of one list, which is two million objects: a server that sends more sends them without end
REJECTIONS = 5
EARLY = 5.0  # seconds before its time that a watch may end, and it was the server's clock

# Why a request was not the last one: the values of a metric's label, so they are few.
Reason = Literal[
    "timeout",
    "early",
    "cut",
    "silence",
    "expired",
    "restored",
    "rejected",
    "unauthorized",
    "forbidden",
    "throttled",
    "malformed",
    "unreachable",
    "internal",
]
Phase = Literal["sync", "list", "look", "watch"]
# namespace -> names, as the keys of a dict, which takes half of the room that a set does.
_Names = dict[str, dict[str, None]]
# No object can have this name, so a server finds nothing: by its key, and not by going through all of a kind.
_NOBODY = ("fieldSelector", "metadata.name=-")

# Refusals that say nothing about how we ask: they end by waiting.
_WAIT_FOR: dict[int, Reason] = {401: "unauthorized", 403: "forbidden", 429: "throttled", 503: "unreachable"}
# Refusals of the form that was asked for.
_NOT_ACCEPTED = (406, 415)
# What is over once a watch is granted. Anything else can be wrong with a watch that was: it has to say something first.
_REFUSED: frozenset[Reason] = frozenset(("unreachable", *_WAIT_FOR.values()))


class Resource(Struct, frozen=True):
    """A kind of objects: where an API server has it, how one is read, whether they lie in namespaces, and whether a watch of it can be read
    in protobuf too."""

    kind: type[Object]
    path: str
    decode: Callable[[bytes], Decoded[Any]]
    namespaced: bool = True
    protobuf: bool = False


PODS = Resource(Pod, "/api/v1/pods", decode_pod, protobuf=True)
NAMESPACES = Resource(Namespace, "/api/v1/namespaces", decode_namespace, namespaced=False)
POLICIES = Resource(Policy, "/apis/networking.k8s.io/v1/networkpolicies", decode_policy)
NODES = Resource(Node, "/api/v1/nodes", decode_node, namespaced=False)


class Request(Struct, frozen=True):
    """What to ask: a watch, whose bytes go to `receive` as they come, or a page, which goes to `receive_page` whole.

    silence -- how many seconds may pass without a byte; protobuf -- whether the server may answer in it, if it can: `granted` says.
    """

    path: str
    query: tuple[tuple[str, str], ...]
    watch: bool
    silence: float
    protobuf: bool = False


class Heard(Struct, frozen=True):
    """What an answer said: events, and what is wrong with objects of which nothing new could be said."""

    events: list[Event]
    invalid: list[InvalidObject]


class Trouble(Struct, frozen=True):
    """Why the last request failed, in words."""

    reason: Reason
    message: str


class Figures:
    """What happened so far, for metrics. Read from any thread; each value is right by itself."""

    def __init__(self) -> None:
        self.requests: Counter[Phase] = Counter()
        self.restarts: Counter[Reason] = Counter()
        self.syncs = 0
        self.events = 0
        self.bytes = 0
        self.unreadable = 0  # objects that were left out because not even their name, or nothing else of them, could be read
        self.last_contact: float | None = None  # by the reflector's clock: when the server last said anything


class Reflector:
    """See the module.

    field_selector -- which objects, where not all; clock -- seconds that only go forward; random -- numbers from 0 to 1.
    """

    def __init__(
        self,
        resource: Resource,
        field_selector: str = "",
        timing: Timing | None = None,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self.resource = resource
        self.figures = Figures()
        self.trouble: Trouble | None = None  # what is wrong now; None while the server answers as it should
        self.synced = False  # whether everything was said at least once
        self.reading = False  # whether more of the present answer is wanted
        self.phase: Phase = "sync"
        self.version = ""  # the resourceVersion that everything said so far reaches to; only a watch starts from it
        self._selector = (("fieldSelector", field_selector),) if field_selector else ()
        self._timing = timing or Timing()
        self._clock, self._random = clock, random
        self._names: _Names = {}  # of all that was said to be there
        self._seen: _Names = {}  # the same, in the present sync
        self._leaving: list[tuple[str, str]] = []  # said to be gone by the last answer, and perhaps not heard to be
        self._continue = ""
        self._pages = 0  # of the present list
        self._is_behind = False  # whether the server's cache is before ours, so that only etcd can tell
        self._protobuf = resource.protobuf
        self._asked_protobuf = False  # by the last request
        self._stream: WatchStream | FrameStream = WatchStream()
        self._began = self._due = 0.0  # when the watch began, and when it is to end
        self._heard_any = False
        self._waits = Waits(self._timing, random)
        self._rejections = 0

    # -- what to do ----------------------------------------------------------------------------------------------------

    def next(self) -> Request | Pause:
        """What to do now. Each Request has to be answered before the next call."""
        if pause := self._waits.take():
            return pause
        self.figures.requests[self.phase] += 1
        self._began = self._clock()
        self._heard_any = False
        self.reading = True
        self._asked_protobuf = self._protobuf and self.phase in ("sync", "watch")
        if self.phase == "look":
            if self._is_behind:
                return Request(self.resource.path, (("limit", "1"),), False, self._timing.silence)
            query = (*(self._selector or (_NOBODY,)), ("resourceVersion", "0"))
            return Request(_look_path(self.resource), query, False, self._timing.silence)
        if self.phase == "list":
            if not self._continue:
                self._seen, self._pages = {}, 0
            return self._request(False, ("limit", str(PAGE)), *([("continue", self._continue)] if self._continue else []))
        self._stream = WatchStream()
        shortest, longest = self._timing.watch
        time = int(shortest + (longest - shortest) * self._random())
        self._due = self._began + time
        watch = (("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", str(time)))
        if self.phase == "sync":
            self._seen = {}
            return self._request(True, *watch, ("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan"))
        return self._request(True, *watch, ("resourceVersion", self.version))

    def _request(self, watch: bool, *query: tuple[str, str]) -> Request:
        return Request(self.resource.path, (*query, *self._selector), watch, self._timing.silence, self._asked_protobuf)

    # -- how it went ---------------------------------------------------------------------------------------------------

    def granted(self, protobuf: bool = False) -> None:
        """The server took the watch that was asked for. A quiet one may say nothing for a minute, and an outage is over all the same."""
        self.figures.last_contact = self._clock()
        if protobuf:
            self._stream = FrameStream()
        if self.phase == "watch" and self.trouble is not None and self.trouble.reason in _REFUSED:
            self.trouble = None

    def receive(self, data: bytes) -> Heard:
        """Bytes of the watch that was asked for. When `reading` is False afterwards, the rest is not wanted."""
        heard, self._leaving = Heard([], []), []
        self.figures.bytes += len(data)
        self.figures.last_contact = self._clock()
        try:
            for event in self._stream.feed(data):
                if isinstance(event, Change):
                    self._take(event, heard)
                elif isinstance(event, Bookmark):
                    self._bookmark(event, heard)
                else:
                    self._refuse(event, event.code, event.retry_after, event=True)
                # Before the next line is looked at: what nobody wants any more cannot be malformed.
                if not self.reading:
                    break
        except MalformedAnswer as error:
            self.malformed(error)
        return heard

    def receive_page(self, body: bytes) -> Heard:
        """The page of a list that was asked for."""
        heard, self._leaving = Heard([], []), []
        self.figures.bytes += len(body)
        self.figures.last_contact = self._clock()
        try:
            page = read_page(body)
            if self.phase == "look":
                self._compare(page.version)
                return heard
            self._pages += 1
            if page.next and (page.next == self._continue or self._pages >= PAGES):
                raise MalformedAnswer(f"the list has no end: page {self._pages} says that there are more")
            for item in page.items:
                self._take(read_object(bytes(item), "ADDED"), heard)
            if not page.next:
                self._finish(page.version, heard)
        except MalformedAnswer as error:
            self.malformed(error)
        else:
            self.reading = False
            self._recovered()
            self._continue = page.next
        return heard

    def end(self, reason: Literal["timeout", "cut", "silence"], message: str = "") -> None:
        """The watch ended: as it should, or it broke off, or nothing came for too long."""
        if not self.reading:
            return
        now = self._clock()
        lasted = now - self._began
        ended: Reason = "early" if reason == "timeout" and now < self._due - EARLY else reason
        if self.phase == "sync":
            # A server that ends in good order, or goes silent, may not know what was asked of it; one that breaks off is away.
            if reason == "cut":
                self._fail(reason, message or "the watch broke off before all was said")
                self._doubt()
            else:
                self._list_once(ended, message or "the watch ended before all was said")
        elif lasted < self._timing.short and not self._heard_any:
            first = self._timing.brief_wait if ended == "early" else None
            self._fail(ended, message or f"the watch ended after {lasted:.1f} s without an event", first=first)
        else:
            if lasted >= self._timing.steady:
                self._waits.begin_anew()
            self._rejections = 0
            if ended != "timeout":
                self.phase = "look"
            self._stop_reading(ended)

    def reject(self, code: int, body: bytes, retry_after: float | None = None) -> None:
        """The server answered with an HTTP error. `retry_after` is its header's, in seconds."""
        self.figures.last_contact = self._clock()
        status = read_status(body)
        self._refuse(status, code, retry_after if retry_after is not None else status.retry_after)

    def malformed(self, error: MalformedAnswer) -> None:
        """The answer is none that an API server gives. What may have been in protobuf is asked for in JSON from now on."""
        looking = self.phase == "look"
        if self._asked_protobuf:
            self._protobuf = False
        self._fail("malformed", str(error))
        if not looking:
            self._doubt()

    def fail(self, message: str) -> None:
        """No answer at all came, or a page broke off."""
        self._fail("unreachable", message)

    def restart(self, message: str) -> None:
        """Something went wrong on our side, and what was heard may be lost: everything has to be said again."""
        self._fail("internal", message)
        self.phase, self._continue, self._is_behind = "sync", "", False
        for namespace, name in self._leaving:
            _add(self._names, namespace, name)

    # -- objects -------------------------------------------------------------------------------------------------------

    def _take(self, change: Change, heard: Heard) -> None:
        """An object of a sync or of a watch."""
        self.figures.events += 1
        kind, name, namespace = self.resource.kind, change.name, change.namespace
        if change.type == "DELETED":
            if not name:
                self._unreadable(heard, InvalidObject(kind.__name__, "metadata.name", "a deleted object cannot be told by its name"))
            elif _remove(self._names, namespace, name) | _remove(self._seen, namespace, name):
                self._gone(heard, namespace, name)
        else:
            decoded = self.resource.decode(change.object)
            if decoded.value is not None:
                name, namespace = decoded.value.name, getattr(decoded.value, "namespace", "")
            if not name:
                self._unreadable(heard, *(decoded.errors or [InvalidObject(kind.__name__, "metadata.name", "is empty")]))
            elif decoded.value is None:
                # It is there, whatever it is: what was known of it stays.
                self._unreadable(heard, *decoded.errors)
                if name in self._names.get(namespace, ()):
                    _add(self._seen, namespace, name)
            else:
                _add(self._names, namespace, name)
                if self.phase != "watch":
                    _add(self._seen, namespace, name)
                heard.events.append(Put(decoded.value, decoded.errors))
        if self.phase == "watch":
            self._reached(change.version)

    def _gone(self, heard: Heard, namespace: str, name: str) -> None:
        self._leaving.append((namespace, name))
        heard.events.append(Gone(self.resource.kind, name, namespace))

    def _unreadable(self, heard: Heard, *errors: InvalidObject) -> None:
        self.figures.unreadable += 1
        heard.invalid.extend(errors)

    def _bookmark(self, bookmark: Bookmark, heard: Heard) -> None:
        if self.phase == "watch":
            self._reached(bookmark.version)
        elif bookmark.initial_end:
            self._finish(bookmark.version, heard)
            self._recovered()
            self._began, self._heard_any = self._clock(), True
        else:
            # A server that sends any other bookmark now does not know what was asked of it, and will not say where the start ends.
            self._list_once("rejected", "the server does not begin a watch with the objects that are there")

    def _reached(self, version: str) -> None:
        """The watch has said something, and says where it is."""
        if version:
            self.version = version
        self._heard_any = True
        self._recovered()
        if not self._waits.are_over and self._clock() - self._began >= self._timing.steady:
            self._waits.begin_anew()

    def _finish(self, version: str, heard: Heard) -> None:
        """Everything has been said."""
        if not version:
            raise MalformedAnswer("the end of all objects has no resourceVersion")
        for namespace, names in self._names.items():
            gone = names.keys() - self._seen.get(namespace, {}).keys()
            for name in sorted(gone):
                self._gone(heard, namespace, name)
        self._names, self._seen = self._seen, {}
        heard.events.append(Synced(self.resource.kind))
        self.version = version
        self.phase, self.synced = "watch", True
        self.figures.syncs += 1

    # -- failures ------------------------------------------------------------------------------------------------------

    def _refuse(self, status: Status, code: int, retry_after: float | None, event: bool = False) -> None:
        """An HTTP error, or an ERROR event. `status` is what it says, and empty where the answer is not an API server's."""
        message = f"{code} {status.reason}: {status.message}" if status != Status() else f"HTTP status {code}"
        phase = self.phase
        if code in _NOT_ACCEPTED and self._asked_protobuf:
            self._protobuf = False
        if code == GONE:
            self._waits.forgotten()
            self._fail("expired", message, retry_after)
            self._continue = ""
            if phase == "watch":
                self.phase = "sync"
        elif code in _WAIT_FOR:
            self._fail(_WAIT_FOR[code], message, retry_after)
        elif self.phase == "sync" and (event or code < 500):
            self._list_once("rejected", message)
        else:
            self._fail("rejected", message, retry_after)
            if status != Status() and phase != "look":  # anybody else's answer is an outage
                self._doubt()

    def _fail(self, reason: Reason, message: str, retry_after: float | None = None, first: float | None = None) -> None:
        """The next request has to wait, as `Waits.fail` says."""
        self._waits.fail(retry_after, first, outage=reason == "unreachable")
        self.trouble = Trouble(reason, printable(message, LONGEST))
        if self.phase == "watch":
            self.phase = "look"
        self._stop_reading(reason)

    def _list_once(self, reason: Reason, message: str) -> None:
        """The server does not begin a watch with all objects: they are listed, at once."""
        self.trouble = Trouble(reason, printable(message, LONGEST))
        self.phase, self._continue = "list", ""
        self._stop_reading(reason)

    def _stop_reading(self, reason: Reason) -> None:
        self.figures.restarts[reason] += 1
        self.reading = False

    def _doubt(self) -> None:
        """The server did answer, and not as it should. After some of that in a row the way we ask is what is wrong."""
        self._rejections += 1
        if self._rejections >= REJECTIONS:
            self._rejections, self._continue = 0, ""
            self.phase = "list" if self.phase == "sync" else "sync"

    def _compare(self, version: str) -> None:
        """The server's version now: one before ours is another history's, if etcd says so too. What is no number says nothing."""
        self.reading = False
        now, ours = _number(version), _number(self.version)
        asked_etcd, self._is_behind = self._is_behind, False
        if now is None or ours is None or now >= ours:
            self.phase = "watch"
        elif not asked_etcd:
            self._is_behind = True
        else:
            self.trouble = Trouble("restored", f"the server is at {version}, before {self.version}, where we were")
            self.phase = "sync"
            self._stop_reading("restored")

    def _recovered(self) -> None:
        self.trouble, self._rejections = None, 0


def _look_path(resource: Resource) -> str:
    """Where a server looks for one name by its key: in one namespace, whether that is there or not."""
    group, _, name = resource.path.rpartition("/")
    return f"{group}/namespaces/default/{name}" if resource.namespaced else resource.path


def _number(version: str) -> int | None:
    return int(version) if version.isdecimal() and len(version) <= 20 else None


def _add(names: _Names, namespace: str, name: str) -> None:
    names.setdefault(namespace, {})[name] = None


def _remove(names: _Names, namespace: str, name: str) -> bool:
    """Whether the name was there."""
    inside = names.get(namespace, {})
    if name not in inside:
        return False
    del inside[name]
    if not inside:
        del names[namespace]
    return True
