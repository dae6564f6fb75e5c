"""Sources against a server that fails in every way, through the real client: what is asked, how often, and what is said.

The waits are a hundredth of the real ones; how long each is, is tests/kube/test_reflector.py's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from netpol.errors import InvalidObject
from netpol.kube import sources
from netpol.kube.client import Client, configured
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.kube.reflector import NAMESPACES, PODS, Trouble
from netpol.kube.sources import EVERYTHING, Listener, Rests, Selection, Sources, for_node
from netpol.kube.waits import Timing
from netpol.model import Object, Pod
from tests.kube import protobuf
from tests.kube.fake import (
    CLOSED,
    Answer,
    FakeServer,
    added,
    bare,
    bookmark,
    deleted,
    error,
    in_protobuf,
    line,
    modified,
    page,
    pod,
    silent,
    status,
    watch,
)

PROTOBUF = "application/vnd.kubernetes.protobuf,application/json"
TIMING = Timing(first_wait=0.02, last_wait=0.1, short=60.0, steady=60.0)
IMPATIENT = structs.replace(TIMING, silence=0.8)
PATH = PODS.path


class Heard(Listener):
    """What was said, as words: "+name" or "+name/version", "-name", "synced"; and the troubles' reasons."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.events: list[Event] = []
        self.troubles: list[str | None] = []
        self.errors: list[str] = []
        self._change = threading.Condition()

    def __call__(self, *events: Event) -> None:
        with self._change:
            self.events += events
            self.said += map(_word, events)
            self._change.notify_all()

    def troubled(self, kind: type[Object], trouble: Trouble | None) -> None:
        with self._change:
            self.troubles.append(trouble.reason if trouble is not None else None)
            self._change.notify_all()

    def unreadable(self, error: InvalidObject) -> None:
        with self._change:
            self.errors.append(str(error))
            self._change.notify_all()

    def wait(self, *words: str) -> None:
        """Until exactly this was said, in this order."""
        self.until(lambda: self.said == list(words), words)

    def until(self, done: Callable[[], bool], wanted: object = None) -> None:
        with self._change:
            assert self._change.wait_for(done, 30), (self.said, wanted)


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def _word(event: Event) -> str:
    if isinstance(event, Synced):
        return "synced"
    if isinstance(event, Gone):
        return f"-{event.name}"
    assert isinstance(event.object, Pod)
    return "+" + event.object.name + "".join(f" {key}={value}" for key, value in event.object.labels)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers as the test says."""
    with FakeServer() as fake:
        yield fake


@contextmanager
def following(server: FakeServer, folder: Path, timing: Timing = TIMING) -> Iterator[Heard]:
    """What is heard of its pods, from the first request on, which waits for the test's first answer."""
    listener = Heard()
    client = Client(configured(server.kubeconfig(folder)))
    with Sources(client, [Selection(PODS)], listener, listener, timing=timing):
        yield listener


@pytest.fixture
def heard(server: FakeServer, tmp_path: Path) -> Iterator[Heard]:
    """The same, with waits for an answer that no test outlasts."""
    with following(server, tmp_path) as listener:
        yield listener


def asked(server: FakeServer, number: int) -> list[str]:
    """What was asked, when it was so many times; and not once more."""
    return [one.what for one in server.wait(number, PATH)]


START = watch(added(pod("a", 5), pod("b", 6)), bookmark("10", True), whole=False)
HEARD = ("+a", "+b", "synced")
LOOK = page("99", pod("a", 5))


def test_all_there_is_then_what_changes(server: FakeServer, heard: Heard) -> None:
    """One request brings the start and the changes after it; the next goes on from where it was."""
    go = threading.Event()
    changes = modified(pod("a", 11, app="x")) + deleted(pod("b", 12)) + bookmark("20")
    server.answer(PATH, watch(added(pod("a", 5), pod("b", 6)), bookmark("10", True), go, changes))
    heard.wait(*HEARD)
    go.set()
    heard.wait(*HEARD, "+a app=x", "-b")
    server.answer(PATH, page("20"))
    assert asked(server, 3) == ["sync", "look", "watch@20"]
    first, look, second = server.asked
    assert look.query == {"fieldSelector": "metadata.name=-", "resourceVersion": "0"}
    assert {key: first.query[key] for key in sorted(first.query) if key != "timeoutSeconds"} == {
        "allowWatchBookmarks": "true",
        "resourceVersionMatch": "NotOlderThan",
        "sendInitialEvents": "true",
        "watch": "true",
    }
    assert second.query.keys() == {"allowWatchBookmarks", "resourceVersion", "timeoutSeconds", "watch"}
    assert all(300 <= int(one.query["timeoutSeconds"]) <= 600 for one in (first, second))
    assert "accept-encoding" not in first.headers or first.headers["accept-encoding"] == "identity"
    assert heard.troubles == []


def test_events_that_come_thick_are_read_together(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings of them a follower rests; not while it is told what there is, of which nothing is to wait."""
    naps: list[int] = []
    rest = Rests.rest

    def noted(rests: Rests, seconds: float, returns: int | None = None) -> None:
        if seconds == sources.NAP:
            naps.append(len(listener.said))
        rest(rests, seconds, returns)

    monkeypatch.setattr(Rests, "rest", noted)
    monkeypatch.setattr(sources, "SPAN", 60.0)
    told = threading.Event()
    many = [pod(f"p{number}", number) for number in range(1, 2 * sources.THICK)]
    with following(server, tmp_path) as listener:
        server.answer(PATH, watch(added(*many), told, bookmark("99", True), whole=False))
        listener.until(lambda: len(listener.said) == len(many))
        told.set()
        listener.until(lambda: bool(naps))
    assert naps[0] == len(many) + 1


def test_how_thick_events_come() -> None:
    """So many in so short a time, and each that follows; a time later it begins anew."""
    now = [5.0]
    thick = sources.Thick(lambda: now[0])
    assert [thick.takes(count) for count in (sources.THICK - 1, 0, 1, 0)] == [False, False, True, True]
    now[0] += sources.SPAN
    assert thick.takes(0)
    now[0] += sources.SPAN / 100
    assert [thick.takes(count) for count in (0, 1, sources.THICK)] == [False, False, True]


def test_a_watch_in_protobuf(server: FakeServer, heard: Heard) -> None:
    """It is asked for where watches are, and read where the server says that it is one."""
    go = threading.Event()
    start = protobuf.added(pod("a", 5), pod("b", 6)) + protobuf.bookmark("10", True)
    changes = protobuf.modified(pod("a", 11, app="x")) + protobuf.deleted(pod("b", 12)) + protobuf.bookmark("20")
    server.answer(PATH, in_protobuf(start[:99], start[99:], go, changes))
    heard.wait(*HEARD)
    go.set()
    heard.wait(*HEARD, "+a app=x", "-b")
    server.answer(PATH, page("20"), watch(modified(pod("a", 21, app="y")), threading.Event()))
    heard.wait(*HEARD, "+a app=x", "-b", "+a app=y")
    assert asked(server, 3) == ["sync", "look", "watch@20"]
    assert [one.headers["accept"] for one in server.asked] == [PROTOBUF, "application/json", PROTOBUF]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(in_protobuf(protobuf.status(410, "Expired", "too old"), code=410), id="410"),
        pytest.param(in_protobuf(protobuf.error(410, "Expired", "too old"), whole=False), id="ERROR event"),
    ],
)
def test_a_refusal_in_protobuf(server: FakeServer, heard: Heard, answer: Answer) -> None:
    """It says what it says in JSON."""
    server.answer(PATH, in_protobuf(protobuf.added(pod("a", 5)) + protobuf.bookmark("10", True)), page("99"), answer)
    heard.wait("+a", "synced")
    heard.until(lambda: "expired" in heard.troubles)
    assert [one.what for one in server.wait(4, PATH)] == ["sync", "look", "watch@10", "sync"]


def test_protobuf_that_cannot_be_read_is_asked_for_in_json(server: FakeServer, heard: Heard) -> None:
    """Once is enough, and for good: what came before is kept, and no object is missed."""
    begun = protobuf.added(pod("a", 5)) + protobuf.bookmark("10", True) + protobuf.modified(pod("a", 11, app="x"))
    server.answer(PATH, in_protobuf(begun + b"\0\0\0\x03abc", protobuf.modified(pod("a", 12, app="y"))))
    server.answer(PATH, page("12"), watch(modified(pod("a", 12, app="y"))), page("12"), watch(modified(pod("a", 13, app="z"))))
    heard.wait("+a", "synced", "+a app=x", "+a app=y", "+a app=z")
    assert "malformed" in heard.troubles
    asked(server, 5)
    assert [one.headers["accept"] for one in server.asked[:5]] == [PROTOBUF, *["application/json"] * 4]
    assert [one.what for one in server.asked[:5]] == ["sync", "look", "watch@11", "look", "watch@12"]


def test_other_kinds_are_asked_for_in_json(server: FakeServer, tmp_path: Path) -> None:
    """Only pods come by the thousand."""
    listener = Heard()
    with Sources(Client(configured(server.kubeconfig(tmp_path))), EVERYTHING, listener, listener, timing=TIMING):
        for selection in EVERYTHING:
            (one,) = server.wait(1, selection.resource.path)
            assert one.headers["accept"] == (PROTOBUF if selection.resource is PODS else "application/json")


def test_a_list_in_pages_where_watchlist_is_not_there(server: FakeServer, heard: Heard) -> None:
    """A refusal of the first request turns into one list, compressed, which a watch follows."""
    server.answer(
        PATH,
        status(422, "Invalid", "sendInitialEvents: Forbidden"),
        page("10", pod("a", 5), next="more", compressed=True),
        page("10", pod("b", 6)),
    )
    heard.wait(*HEARD)
    assert asked(server, 4) == ["sync", "list", "list+more", "watch@10"]
    assert [one.query for one in server.asked[1:3]] == [{"limit": "500"}, {"limit": "500", "continue": "more"}]
    assert server.asked[1].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(watch(added(pod("a", 5)), error(500, "InternalError")), ("+a",), id="an error event"),
        pytest.param(watch(added(pod("a", 5))), ("+a",), id="no end of the start"),
        pytest.param(watch(added(pod("a", 5)), bookmark("7"), threading.Event()), ("+a",), id="a server that knows no start"),
        pytest.param(status(400, "BadRequest"), (), id="bad request"),
        pytest.param(bare(404), (), id="not found"),
    ],
)
def test_one_list_when_the_start_fails(server: FakeServer, heard: Heard, answer: Answer, said: tuple[str, ...]) -> None:
    """At once, and once."""
    server.answer(PATH, answer, page("10", pod("a", 5), pod("b", 6)))
    heard.wait(*said, *HEARD)
    assert asked(server, 3) == ["sync", "list", "watch@10"]


def test_gone_mid_list_starts_the_list_again(server: FakeServer, heard: Heard) -> None:
    """410 on a page: from the first one, and what is not found again is gone."""
    server.answer(
        PATH,
        status(422),
        page("10", pod("a", 5), pod("b", 6), next="more"),
        status(410, "Expired", "the provided continue parameter is too old"),
        page("20", pod("b", 6)),
    )
    heard.wait("+a", "+b", "+b", "-a", "synced")
    assert asked(server, 5) == ["sync", "list", "list+more", "list", "watch@20"]


def test_a_page_that_breaks_off_is_asked_for_again(server: FakeServer, heard: Heard) -> None:
    """An outage in a list goes on with the same page."""
    whole = page("10", pod("b", 6))
    cut = Answer(whole.head, (whole.pieces[0][:40],), whole=False)  # type: ignore[index]  # its one piece is bytes
    server.answer(PATH, status(422), page("10", pod("a", 5), next="more"), cut, CLOSED, whole)
    heard.wait(*HEARD)
    assert asked(server, 6) == ["sync", "list", "list+more", "list+more", "list+more", "watch@10"]


def test_a_slow_page_is_waited_for(server: FakeServer, tmp_path: Path) -> None:
    """A page that comes in small pieces may take longer than a silence may last, and is asked for once."""
    (body,) = page("10", pod("a", 5), pod("b", 6)).pieces
    assert isinstance(body, bytes)
    gates = [threading.Event() for _ in range(8)]
    size = len(body) // len(gates) + 1
    pieces = [piece for place, gate in enumerate(gates) for piece in (body[place * size :][:size], gate)]
    server.answer(PATH, status(422), Answer(page("10").head, tuple(pieces)))
    with following(server, tmp_path, IMPATIENT) as heard:
        server.wait(2)
        for gate in gates:
            time.sleep(IMPATIENT.silence / 4)
            gate.set()
        heard.wait(*HEARD)
        assert asked(server, 3)[:3] == ["sync", "list", "watch@10"]


@pytest.mark.parametrize(
    "gone",
    [pytest.param(status(410, "Gone"), id="HTTP"), pytest.param(watch(error(410, "Expired", "too old resource version")), id="event")],
)
def test_expired_is_another_full_sync(server: FakeServer, heard: Heard, gone: Answer) -> None:
    """410 on a watch: everything again, what is missing is gone, and older versions are taken as they come."""
    server.answer(PATH, START, LOOK, gone, watch(added(pod("b", 3, app="old"), pod("c", 4)), bookmark("5", True), threading.Event()))
    heard.wait(*HEARD, "+b app=old", "+c", "-a", "synced")
    assert asked(server, 4) == ["sync", "look", "watch@10", "sync"]
    heard.until(lambda: heard.troubles == ["expired", None])


def test_silence_in_the_start_is_one_list(server: FakeServer, tmp_path: Path) -> None:
    """A server that begins and then says nothing may not know where the start ends."""
    server.answer(PATH, watch(added(pod("a", 5)), threading.Event()), page("10", pod("a", 5), pod("b", 6)))
    with following(server, tmp_path, IMPATIENT) as heard:
        heard.wait("+a", *HEARD)
        assert asked(server, 3)[:3] == ["sync", "list", "watch@10"]


def test_silence_is_another_watch(server: FakeServer, tmp_path: Path) -> None:
    """A server that says nothing, before its answer or in it, is asked to go on from where it was."""
    last = watch(added(pod("c", 12)), threading.Event())
    server.answer(PATH, START, silent(), LOOK, silent(), LOOK, watch(added(pod("b", 11)), threading.Event()), LOOK, last)
    with following(server, tmp_path, IMPATIENT) as heard:
        heard.wait(*HEARD, "+b", "+c")
        assert asked(server, 8)[:8] == ["sync", "look", "look", "watch@10", "look", "watch@10", "look", "watch@11"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(CLOSED, id="closed"),
        pytest.param(bare(502), id="a gateway without its server"),
        pytest.param(bare(200, b"<html>", Connection="close"), id="something else that answers"),
        pytest.param(status(503, "ServiceUnavailable"), id="unavailable"),
        pytest.param(status(429, "TooManyRequests"), id="throttled"),
        pytest.param(status(403, "Forbidden"), id="forbidden"),
        pytest.param(status(500, "InternalError"), id="internal error"),
        pytest.param(watch(), id="a watch that ends at once"),
        pytest.param(watch(added(pod("c", 11))[:-9], whole=False), id="a torn line"),
        pytest.param(watch(error(500, "InternalError")), id="an error event"),
        pytest.param(watch(b"no event at all\n"), id="garbage"),
    ],
)
def test_a_failure_goes_on_where_it_was(server: FakeServer, heard: Heard, answer: Answer) -> None:
    """Whatever the failure, the next watch starts where the last one was: nothing is listed again."""
    server.answer(PATH, START, LOOK, answer, LOOK, watch(added(pod("c", 11)), threading.Event()))
    heard.wait(*HEARD, "+c")
    assert asked(server, 5) == ["sync", "look", "watch@10", "look", "watch@10"]
    heard.until(lambda: len(heard.troubles) == 2 and heard.troubles[1] is None)


def test_an_outage_is_over_when_a_quiet_watch_is_there_again(server: FakeServer, heard: Heard) -> None:
    """Nothing has to come for that: where nothing changes, nothing does for a minute."""
    server.answer(PATH, START, LOOK, bare(503), LOOK, watch(threading.Event()))
    heard.until(lambda: heard.troubles == ["unreachable", None], heard.troubles)
    assert heard.said == list(HEARD)


@pytest.mark.parametrize("by", ["watch", "look", "refusal"])
def test_a_server_that_is_back_for_one_kind_is_asked_for_the_others_at_once(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Pods wait for ten minutes after the server was away, namespaces for none: when these get an answer, pods are asked for again.
    Once: when that fails they wait, whatever else namespaces are told."""
    rested: list[tuple[Rests, int | None]] = []
    rest = Rests.rest

    def noted(rests: Rests, seconds: float, returns: int | None = None) -> None:
        if threading.current_thread().name == "pods":
            rested.append((rests, returns))
        rest(rests, seconds, returns)

    def dice() -> float:
        """Below 0, so that a wait is nearly none, for the thread of the namespaces."""
        return -0.999 if threading.current_thread().name == "namespaces" else 1.0

    monkeypatch.setattr(Rests, "rest", noted)
    listener, other, go = Heard(), NAMESPACES.path, threading.Event()
    start = watch(bookmark("10", True), *([go] if by == "watch" else []), whole=False)
    client = Client(configured(server.kubeconfig(tmp_path)))
    timing = Timing(first_wait=600, last_wait=600, short=0)
    server.answer(PATH, CLOSED, CLOSED)
    with Sources(client, [Selection(PODS), Selection(NAMESPACES)], listener, listener, timing=timing, jitter=dice):
        listener.until(lambda: listener.troubles == ["unreachable"])
        first = {"watch": [CLOSED, start], "look": [start, CLOSED], "refusal": [CLOSED, bare(503), status(403), start]}[by]
        server.answer(other, *first, page("99"))
        wait_for(lambda: len(rested) == 2)
        go.set()
        server.answer(other, watch(whole=False), page("99"))
        asked = server.wait(len(first) + 4, other)
        assert [one.what for one in asked][len(first) + 1 :] == ["watch@10", "look", "watch@10"]
        assert [(rests.returns, returns) for rests, returns in rested] == [(1, 0), (1, 1)]


def test_rests() -> None:
    """One that nobody's answer ends lasts its time; one that waits for an answer ends with it, also when that came before it began."""
    rests, seen = Rests(), 0
    rests.rest(0.01)
    resting = threading.Thread(target=rests.rest, args=(600, seen), daemon=True)
    resting.start()
    rests.found_back()
    resting.join(30)
    assert not resting.is_alive()
    rests.rest(600, seen)
    other = threading.Thread(target=rests.rest, args=(600,), daemon=True)
    waiting = threading.Thread(target=rests.rest, args=(600, rests.returns), daemon=True)
    other.start()
    waiting.start()
    rests.found_back()
    waiting.join(30)
    assert not waiting.is_alive()
    assert other.is_alive()
    rests.end()
    other.join(30)
    assert not other.is_alive()


def test_an_outage_is_never_a_relist(server: FakeServer, heard: Heard) -> None:
    """However long nobody listens, and whatever stands in between answers, the watch goes on from where it was."""
    server.answer(PATH, START)
    heard.wait(*HEARD)
    server.answer(PATH, LOOK)
    server.wait(3, PATH)
    server.stop()
    heard.until(lambda: "unreachable" in heard.troubles)
    server.start()
    server.answer(PATH, *[bare(504)] * 8, *[CLOSED] * 8, LOOK, bare(504), LOOK, watch(added(pod("c", 11)), threading.Event()))
    heard.wait(*HEARD, "+c")
    assert {one.what for one in server.asked[1:]} == {"look", "watch@10"}


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(status(504, "Timeout", "Too large resource version: 10, current: 3"), id="HTTP"),
        pytest.param(watch(error(500, "InternalError", "etcdserver: mvcc: required revision is a future revision")), id="event"),
    ],
)
def test_a_watch_that_is_refused_five_times_is_a_full_sync(server: FakeServer, heard: Heard, refusal: Answer) -> None:
    """In a row; what is older by its version is what is right."""
    older = watch(added(pod("a", 2, app="old")), bookmark("3", True), modified(pod("a", 4)), threading.Event())
    server.answer(PATH, START, *[LOOK, refusal] * 5, older)
    heard.wait(*HEARD, "+a app=old", "-b", "synced", "+a")
    assert asked(server, 12) == ["sync", *["look", "watch@10"] * 5, "sync"]


def test_an_older_state_of_etcd_is_found(server: FakeServer, heard: Heard) -> None:
    """A server that would take our version and say nothing is found out by its own, and everything is said again."""
    older = watch(added(pod("a", 2, app="old")), bookmark("3", True), modified(pod("a", 4)), threading.Event())
    server.answer(PATH, START, page("3"), page("3", pod("a", 2)), older)
    heard.wait(*HEARD, "+a app=old", "-b", "synced", "+a")
    assert asked(server, 4) == ["sync", "look", "etcd", "sync"]
    heard.until(lambda: heard.troubles == ["restored", None])


def test_an_object_that_cannot_be_read_stops_nothing(server: FakeServer, heard: Heard) -> None:
    """It is named with its field; it counts as it did before, also through a full sync; one without a name is counted."""
    broken = line("MODIFIED", '{"metadata":{"name":"a","namespace":"default","labels":{"app":5}}}')
    nameless = line("ADDED", '{"metadata":{"name":5}}') + line("DELETED", '{"metadata":{}}')
    half = line("ADDED", '{"metadata":{"name":"h","namespace":"default"},"status":{"podIP":"10.0.0.256"}}')
    again = watch(broken.replace(b"MODIFIED", b"ADDED"), bookmark("30", True), threading.Event())
    server.answer(PATH, START, LOOK, watch(broken, nameless, half, modified(pod("b", 12))), LOOK, status(410), again)
    heard.wait(*HEARD, "+h", "+b", "-b", "-h", "synced")
    assert heard.errors == [
        "Pod default/a: metadata.labels[app]: Expected `str`, got `int`",
        "Pod: metadata.name: Expected `str`, got `int`",
        "Pod: metadata.name: a deleted object cannot be told by its name",
        "Pod default/a: metadata.labels[app]: Expected `str`, got `int`",
    ]
    (put,) = [event for event in heard.events if isinstance(event, Put) and event.object == Pod("default", "h")]
    assert [str(one) for one in put.errors] == ["Pod default/h: status.podIP: '10.0.0.256' is not an IP address"]


def test_a_token_that_ran_out_is_followed_by_the_rotated_one(server: FakeServer, tmp_path: Path) -> None:
    """401 is waited out, and the watch goes on from where it was as soon as the file holds a good token."""
    (tmp_path / "token").write_text("old")
    server.tokens = {"old"}
    go = threading.Event()
    start = watch(added(pod("a", 5), pod("b", 6)), bookmark("10", True), go)
    server.answer(PATH, start, LOOK, watch(added(pod("c", 11)), threading.Event()))
    listener = Heard()
    client = Client(configured(server.kubeconfig(tmp_path, {"tokenFile": "token"})))
    with Sources(client, [Selection(PODS)], listener, listener, timing=TIMING):
        listener.wait(*HEARD)
        server.tokens = {"new"}
        go.set()
        listener.until(lambda: listener.troubles == ["unauthorized"])
        (tmp_path / "token").write_text("new")
        listener.wait(*HEARD, "+c")
        listener.until(lambda: listener.troubles == ["unauthorized", None])
    assert [one.what for one in server.asked if one.headers["authorization"] == "Bearer new"] == ["look", "watch@10"]
    assert {one.what for one in server.asked[1:]} == {"look", "watch@10"}


def test_an_error_of_ours_is_a_full_sync(server: FakeServer, tmp_path: Path) -> None:
    """What takes the events fails once: everything is said again, and following goes on."""

    class Clumsy(Heard):
        def __call__(self, *events: Event) -> None:
            if not self.troubles:
                raise KeyError("x")
            super().__call__(*events)

    listener = Clumsy()
    server.answer(PATH, START, START)
    with Sources(Client(configured(server.kubeconfig(tmp_path))), [Selection(PODS)], listener, listener, timing=TIMING) as sources:
        listener.wait(*HEARD)
        assert asked(server, 3) == ["sync", "sync", "look"]
        assert sources.figures["Pod"].restarts["internal"] == 1


def test_who_was_gone_when_an_error_of_ours_came_is_not_forgotten(server: FakeServer, tmp_path: Path) -> None:
    """What takes the events fails at a deletion: the full sync says it."""

    class Clumsy(Heard):
        failed = False

        def __call__(self, *events: Event) -> None:
            if not self.failed and any(isinstance(event, Gone) for event in events):
                self.failed = True
                raise KeyError("x")
            super().__call__(*events)

    listener, go = Clumsy(), threading.Event()
    server.answer(PATH, watch(added(pod("a", 5), pod("b", 6)), bookmark("10", True), go, deleted(pod("b", 11)), threading.Event()))
    server.answer(PATH, watch(added(pod("a", 5)), bookmark("12", True), threading.Event()))
    with Sources(Client(configured(server.kubeconfig(tmp_path))), [Selection(PODS)], listener, listener, timing=TIMING):
        listener.wait(*HEARD)
        go.set()
        listener.wait(*HEARD, "+a", "-b", "synced")


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([silent()], id="no answer"),
        pytest.param([watch(added(pod("a", 5)), threading.Event())], id="in a watch"),
        pytest.param([status(422), Answer(page("1").head, (b'{"me', threading.Event()))], id="in a page"),
        pytest.param([status(429, Retry_After="100")], id="in a wait"),
        pytest.param([watch(*[added(pod("a", 5)) * 100] * 20_000)], id="in a flood"),
    ],
)
def test_stop_ends_whatever_goes_on(server: FakeServer, tmp_path: Path, answers: list[Answer]) -> None:
    """Every thread is over, and nothing is said afterwards."""
    server.answer(PATH, *answers)
    listener = Heard()
    client = Client(configured(server.kubeconfig(tmp_path)))
    sources = Sources(client, [Selection(PODS)], listener, listener, timing=Timing(silence=600))
    sources.start()
    server.wait(len(answers))
    if answers[0].head == watch().head:
        listener.until(lambda: bool(listener.said))
    before = set(threading.enumerate())
    sources.stop(patience=60)
    said = len(listener.said)
    assert not [thread for thread in before if thread.name == "pods" and thread.is_alive()]
    assert len(listener.said) == said


def test_stop_leaves_behind_what_cannot_be_woken(server: FakeServer, tmp_path: Path) -> None:
    """An exec plugin that hangs: stop returns, and when it comes back nothing is asked."""
    plugin = tmp_path / "plugin"
    plugin.write_text("#!/bin/sh\necho > began; until [ -e go ]; do sleep 0.05; done; exit 1\n")
    plugin.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}}
    sources = Sources(Client(configured(server.kubeconfig(tmp_path, user))), for_node("n"), Heard(), timing=TIMING)
    sources.start()
    try:
        wait_for((tmp_path / "began").exists)
        sources.stop(patience=0.1)
    finally:
        (tmp_path / "go").touch()
    wait_for(lambda: not any(thread.name in ("pods", "nodes", "namespaces", "networkpolicies") for thread in threading.enumerate()))
    assert server.asked == []
