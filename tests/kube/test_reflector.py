"""What a reflector asks next, and after how long: decided without a server. What it says of the answers is test_sources.py's too."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netpol.kube.events import Gone, Put, Synced
from netpol.kube.reflector import NAMESPACES, NODES, PAGES, PODS, POLICIES, Heard, Reflector, Request, Resource
from netpol.kube.waits import Pause
from netpol.model import Pod
from tests.kube import protobuf
from tests.kube.fake import Answer, added, bookmark, deleted, error, modified, page, pod

START = added(pod("a", 5)) + bookmark("10", True)


class Player:
    """A reflector with a clock that stands still and dice that fall as they should; what it asks, in a word."""

    def __init__(self, dice: float = 1.0, selector: str = "", resource: Resource = PODS) -> None:
        self.now, self.dice = 100.0, dice
        self.reflector = Reflector(resource, selector, clock=lambda: self.now, random=lambda: self.dice)

    def ask(self) -> str | float:
        """A request in a word, or for how long to wait."""
        todo = self.reflector.next()
        return todo.seconds if isinstance(todo, Pause) else _what(todo)

    def next(self) -> str | float:
        """The same, where a look at the server's version finds that it went on."""
        asked = self.ask()
        if asked == "look":
            self.reflector.receive_page(whole(page("1000")))
            asked = self.ask()
        return asked

    def started(self) -> Player:
        """Everything was said; the watch goes on."""
        assert self.next() == "sync"
        self.reflector.receive(START)
        return self

    def refuse(self, code: int, retry_after: float | None = None, body: bytes | None = None) -> None:
        self.reflector.reject(code, json.dumps({"kind": "Status", "code": code}).encode() if body is None else body, retry_after)

    def waits(self, number: int, code: int = 500) -> list[str | float]:
        """What is asked, and the waits in between, while the server refuses."""
        found = []
        for _ in range(number):
            found.append(self.next())
            self.refuse(code)
            found.append(self.next())
        return found


def _what(request: Request) -> str:
    query = dict(request.query)
    if "sendInitialEvents" in query:
        return "sync"
    if request.watch:
        return f"watch@{query['resourceVersion']}"
    if "continue" in query:
        return f"list+{query['continue']}"
    if query.get("resourceVersion") == "0":
        return "look"
    return "etcd" if query["limit"] == "1" else "list"


def whole(answer: Answer) -> bytes:
    (body,) = answer.pieces
    assert isinstance(body, bytes)
    return body


# -- in which form -----------------------------------------------------------------------------------------------------


def asks_protobuf(player: Player) -> bool:
    """Whether the next watch may be in protobuf; the waits and looks before it are passed over."""
    while True:
        todo = player.reflector.next()
        if isinstance(todo, Request) and todo.watch:
            return todo.protobuf
        if isinstance(todo, Request):
            assert not todo.protobuf
            player.reflector.receive_page(whole(page("1000")))


@pytest.mark.parametrize("code", [406, 415])
def test_who_does_not_accept_protobuf_is_asked_for_json(code: int) -> None:
    """From then on; and any other refusal says nothing of that."""
    player = Player().started()
    player.reflector.end("timeout")
    assert asks_protobuf(player)
    player.refuse(403)
    assert asks_protobuf(player)
    player.refuse(code)
    assert not asks_protobuf(player)


def test_protobuf_under_another_name_is_asked_for_in_json() -> None:
    """Bytes that are said to be JSON and are none may be that."""
    player = Player()
    assert asks_protobuf(player)
    player.reflector.granted(False)
    player.reflector.receive(protobuf.added(pod("a", 5)) + b"\n")
    assert player.reflector.trouble is not None
    assert not asks_protobuf(player)


def test_a_page_that_is_malformed_says_nothing_of_protobuf() -> None:
    """It was asked for in JSON."""
    player = Player()
    assert asks_protobuf(player)
    player.reflector.granted(True)
    player.reflector.receive(protobuf.added(pod("a", 5)) + protobuf.bookmark("10", True))
    player.reflector.end("cut")
    assert player.ask() == "look"
    player.reflector.receive_page(b"<html>")
    assert player.reflector.trouble is not None
    assert asks_protobuf(player)


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        pytest.param(0.0, [0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0], id="the shortest"),
        pytest.param(1.0, [1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0], id="the longest"),
    ],
)
def test_waits_grow_from_0_8_to_30_seconds(dice: float, expected: list[float]) -> None:
    """Each failure doubles them; the jitter is half of each."""
    player = Player(dice).started()
    player.reflector.end("cut")
    assert player.waits(7, 403)[1::2] == expected


def test_waits_never_overflow() -> None:
    """A server that is away for years is asked every 30 seconds."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.waits(2000, 403)[-1] == 30.0


@pytest.mark.parametrize(
    ("retry_after", "body", "expected"),
    [
        pytest.param(7.0, None, 7.0, id="header"),
        pytest.param(0.0, None, 1.6, id="shorter than ours"),
        pytest.param(1e9, None, 120.0, id="without reason"),
        pytest.param(None, b'{"kind":"Status","code":429,"details":{"retryAfterSeconds":9}}', 9.0, id="in the status"),
        pytest.param(None, b'{"kind":"Status","code":429,"details":{"retryAfterSeconds":-9}}', 1.6, id="in the past"),
    ],
)
def test_retry_after_is_honoured(retry_after: float | None, body: bytes | None, expected: float) -> None:
    """As a header or in the Status, within reason."""
    player = Player()
    assert player.next() == "sync"
    player.refuse(429, retry_after, body)
    assert [player.next(), player.next()] == [expected, "sync"]


@pytest.mark.parametrize(
    ("code", "retry_after", "outage"),
    [
        pytest.param(None, None, True, id="nobody there"),
        pytest.param(503, None, True, id="unavailable"),
        pytest.param(503, 5.0, False, id="unavailable until"),
        pytest.param(429, None, False, id="throttled"),
        pytest.param(500, None, False, id="refused"),
        pytest.param(410, None, False, id="expired"),
    ],
)
def test_which_waits_end_when_the_server_is_back(code: int | None, retry_after: float | None, outage: bool) -> None:
    """Those for nobody being there, and no other: what a server refuses one kind says nothing of another."""
    player = Player().started()
    player.reflector.end("cut")
    player.ask()
    if code is None:
        player.reflector.fail("no route to host")
    else:
        player.refuse(code, retry_after)
    pause = player.reflector.next()
    assert isinstance(pause, Pause)
    assert pause.outage is outage


def test_a_steady_watch_lets_the_waits_begin_anew() -> None:
    """One that lasted ten seconds; not one that is new."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.waits(3)[1::2] == [1.6, 3.2, 6.4]
    for lasted, expected in ((9.0, 12.8), (10.0, 1.6)):
        assert player.next() == "watch@10"
        player.now += lasted
        player.reflector.end("timeout")
        assert player.waits(1) == ["watch@10", expected]
    assert player.waits(1) == ["watch@10", 3.2]
    assert player.next() == "watch@10"
    player.now += 10
    player.reflector.receive(bookmark("11") + error(500, "InternalError"))
    assert player.next() == 1.6


def test_a_long_start_is_no_steady_watch() -> None:
    """What counts is how long the watch lasted after it."""
    player = Player()
    assert player.waits(3)[1::2] == [1.6, 3.2, 6.4]
    assert player.next() == "sync"
    player.now += 60
    player.reflector.receive(START)
    player.reflector.end("cut")
    assert player.waits(1) == ["watch@10", 12.8]


@pytest.mark.parametrize("reason", ["timeout", "cut", "silence"])
def test_a_watch_that_ends_is_followed_by_the_next_at_once(reason: Literal["timeout", "cut", "silence"]) -> None:
    """After a second, or with an event; a shorter one without has failed."""
    player = Player().started()
    player.reflector.end(reason)
    assert player.next() == "watch@10"
    player.now += 1
    player.reflector.end(reason)
    assert player.next() == "watch@10"
    player.reflector.receive(bookmark("11"))
    player.reflector.end(reason)
    assert player.next() == "watch@11"
    player.now += 0.9
    player.reflector.end(reason)
    assert [player.next(), player.next()] == [0.1 if reason == "timeout" else 1.6, "watch@11"]


# -- what --------------------------------------------------------------------------------------------------------------


def test_the_queries() -> None:
    """As the documentation of the API has them; the selector is on every one, the time of a watch at random."""
    player = Player(0.5, "spec.nodeName=n")
    first = player.reflector.next()
    assert isinstance(first, Request)
    common = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "450", "fieldSelector": "spec.nodeName=n"}
    assert dict(first.query) == {**common, "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    assert (first.path, first.watch, first.silence) == ("/api/v1/pods", True, 150.0)
    player.refuse(422)
    second = player.reflector.next()
    assert second == Request("/api/v1/pods", (("limit", "500"), ("fieldSelector", "spec.nodeName=n")), False, 150.0)
    player.reflector.receive_page(whole(page("7", pod("a", 5))))
    third = player.reflector.next()
    assert isinstance(third, Request)
    assert dict(third.query) == {**common, "resourceVersion": "7"}


@pytest.mark.parametrize(
    ("reason", "lasted", "expected"),
    [
        pytest.param("timeout", 600, "watch@10", id="at its time"),
        pytest.param("timeout", 596, "watch@10", id="at its time by the server's clock"),
        pytest.param("timeout", 300, "look", id="before its time"),
        pytest.param("cut", 600, "look", id="broken off"),
        pytest.param("silence", 600, "look", id="silent"),
    ],
)
def test_a_look_at_the_version_after_a_watch_that_did_not_end_at_its_time(
    reason: Literal["timeout", "cut", "silence"], lasted: float, expected: str
) -> None:
    """It may go on in another history."""
    player = Player().started()
    player.now += lasted
    player.reflector.end(reason)
    assert player.ask() == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        pytest.param("10", "watch@10", id="the same"),
        pytest.param("11", "watch@10", id="later"),
        pytest.param("9", "etcd", id="before"),
        pytest.param("", "watch@10", id="none"),
        pytest.param("x1", "watch@10", id="no number"),
        pytest.param("0" * 5000, "watch@10", id="a number too long"),
    ],
)
def test_a_look_finds_out_whether_the_server_is_before_us(version: str, expected: str) -> None:
    """And nothing of the page counts but its version."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.ask() == "look"
    assert player.reflector.receive_page(whole(page(version, pod("x", 1)))) == Heard([], [])
    assert player.reflector.trouble is None
    assert player.ask() == expected


@pytest.mark.parametrize(
    ("version", "expected", "troubled"),
    [pytest.param("9", "sync", True, id="so is etcd"), pytest.param("10", "watch@10", False, id="its cache lagged behind")],
)
def test_a_version_before_ours_is_another_history(version: str, expected: str, troubled: bool) -> None:
    """If etcd has it too; each look begins with the cache."""
    player = Player().started()
    for _ in range(2):
        player.now += 1
        player.reflector.end("cut")
        assert player.ask() == "look"
        player.reflector.receive_page(whole(page("9")))
        assert player.ask() == "etcd"
        assert player.reflector.receive_page(whole(page(version, pod("x", 1)))) == Heard([], [])
        assert (player.reflector.trouble is not None) == troubled
        assert player.ask() == expected
        player.reflector.receive(START if troubled else bookmark("10"))


@pytest.mark.parametrize(
    ("resource", "selector", "place", "selected"),
    [
        pytest.param(PODS, "", "/api/v1/namespaces/default/pods", "metadata.name=-", id="pods"),
        pytest.param(POLICIES, "", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", "metadata.name=-", id="policies"),
        pytest.param(NAMESPACES, "", "/api/v1/namespaces", "metadata.name=-", id="namespaces"),
        pytest.param(NODES, "metadata.name=n", "/api/v1/nodes", "metadata.name=n", id="the node, which is one"),
    ],
)
def test_a_look_is_answered_by_a_key(resource: Resource, selector: str, place: str, selected: str) -> None:
    """By the server's cache, and not by going through all objects; only etcd is asked for one."""
    player = Player(selector=selector, resource=resource).started()
    player.reflector.end("cut")
    assert player.reflector.next() == Request(place, (("fieldSelector", selected), ("resourceVersion", "0")), False, 150.0)
    player.reflector.receive_page(whole(page("9")))
    assert player.reflector.next() == Request(resource.path, (("limit", "1"),), False, 150.0)


def test_a_server_that_cannot_keep_up_is_asked_again_soon() -> None:
    """It ended the watch in good order before its time, and before it said anything; later each time."""
    player = Player().started()
    player.reflector.end("timeout")
    for wait in (0.1, 0.2, 0.4):
        assert player.next() == "watch@10"
        player.reflector.end("timeout")
        assert player.ask() == wait
    assert player.reflector.figures.restarts == {"early": 4}


@pytest.mark.parametrize("code", [401, 403, 410, 429, 500, 503])
def test_a_look_that_fails_is_tried_again(code: int) -> None:
    """However often: it says nothing about where we are."""
    player = Player().started()
    player.reflector.end("cut")
    for _ in range(10):
        assert player.ask() == "look"
        player.refuse(code)
        assert isinstance(player.ask(), float)
        assert player.ask() == "look"
        player.reflector.receive_page(b"<html>")
        assert isinstance(player.ask(), float)
    assert player.next() == "watch@10"


def test_no_position_before_everything_is_said() -> None:
    """A start that breaks off is a start again, whatever versions were seen in it."""
    player = Player()
    assert player.next() == "sync"
    heard = player.reflector.receive(added(pod("a", 5), pod("b", 6)))
    assert [type(event) for event in heard.events] == [Put, Put]
    player.reflector.end("cut")
    assert [player.next(), player.next()] == [1.6, "sync"]
    assert player.reflector.receive(added(pod("b", 6)) + bookmark("9", True)).events[1:] == [Gone(Pod, "a", "default"), Synced(Pod)]
    player.now += 60
    player.reflector.end("timeout")
    assert player.next() == "watch@9"


def test_a_deletion_in_the_start_is_one() -> None:
    """What was said to be there and is deleted before all is said is gone, once."""
    player = Player()
    player.next()
    heard = player.reflector.receive(added(pod("a", 5), pod("b", 6)) + deleted(pod("a", 7), pod("x", 8)) + bookmark("9", True))
    assert heard.events[2:] == [Gone(Pod, "a", "default"), Synced(Pod)]
    assert player.reflector.receive(deleted(pod("a", 10))).events == []


@pytest.mark.parametrize(
    ("code", "body", "after"),
    [
        pytest.param(410, None, [1.6, "sync"], id="410"),
        pytest.param(401, None, [1.6, "sync"], id="401"),
        pytest.param(403, None, [1.6, "sync"], id="403"),
        pytest.param(429, None, [1.6, "sync"], id="429"),
        pytest.param(500, None, [1.6, "sync"], id="500"),
        pytest.param(502, b"bad gateway", [1.6, "sync"], id="502"),
        pytest.param(503, None, [1.6, "sync"], id="503"),
        pytest.param(400, None, ["list"], id="400"),
        pytest.param(404, b"", ["list"], id="404"),
        pytest.param(422, None, ["list"], id="422"),
    ],
)
def test_a_refused_start(code: int, body: bytes | None, after: list[str | float]) -> None:
    """What only time can help is asked again later; a server that does not know such a start lists at once."""
    player = Player()
    assert player.next() == "sync"
    player.refuse(code, body=body)
    assert [player.next() for _ in after] == after


def test_five_refusals_of_the_start_are_a_list_and_the_other_way_round() -> None:
    """One that never does what it was asked for may do something else."""
    player = Player()
    assert player.waits(5)[::2] == ["sync"] * 5
    assert player.next() == "list"
    player.reflector.receive_page(whole(page("7", pod("a", 5), next="more")))
    assert player.waits(15)[::2] == ["list+more"] * 5 + ["sync"] * 5 + ["list"] * 5


def test_five_refusals_of_a_watch_are_a_full_sync() -> None:
    """In a row: an event in between begins the count anew, and so does a watch that lasts."""
    player = Player().started()
    player.reflector.end("cut")
    player.waits(4)
    assert player.next() == "watch@10"
    player.reflector.receive(bookmark("11") + error(500, "InternalError"))
    assert isinstance(player.next(), float)
    assert player.waits(3)[::2] == ["watch@11"] * 3
    assert player.next() == "watch@11"
    player.now += 2
    player.reflector.end("timeout")
    assert player.waits(5)[::2] == ["watch@11"] * 5
    assert player.next() == "sync"


@pytest.mark.parametrize("code", [401, 403, 429, 503])
def test_other_refusals_are_never_a_full_sync(code: int) -> None:
    """They say nothing about where the watch starts."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.waits(20, code)[::2] == ["watch@10"] * 20


def test_an_outage_is_never_a_full_sync() -> None:
    """Nobody there, or something else that answers: for as long as it lasts."""
    player = Player().started()
    player.reflector.end("cut")
    for number in range(40):
        assert player.next() == "watch@10"
        if number % 2:
            player.refuse(504, body=b"<html>")
        else:
            player.reflector.fail("connection refused")
        assert isinstance(player.next(), float)


@pytest.mark.parametrize("code", [None, 401, 403, 429, 503], ids=["nobody there", "401", "403", "429", "503"])
def test_an_outage_is_over_when_a_watch_is_granted(code: int | None) -> None:
    """Though nothing comes: what was wrong before is not wrong any more."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.next() == "watch@10"
    if code is None:
        player.reflector.fail("connection refused")
    else:
        player.refuse(code)
    assert isinstance(player.ask(), float)
    assert player.next() == "watch@10"
    assert player.reflector.trouble is not None
    player.reflector.granted()
    assert player.reflector.trouble is None


def test_a_watch_that_is_granted_may_be_in_trouble_all_the_same() -> None:
    """One that is granted and breaks off at once, again and again, is in trouble until it says something."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.next() == "watch@10"
    for _ in range(3):
        player.reflector.end("cut")
        assert isinstance(player.ask(), float)
        assert player.next() == "watch@10"
        player.reflector.granted()
        assert player.reflector.trouble is not None
    player.reflector.receive(bookmark("11"))
    assert player.reflector.trouble is None


def test_gone_again_and_again_waits_longer_each_time() -> None:
    """Full syncs that bring nothing do not follow each other at once."""
    player = Player().started()
    waits = []
    for _ in range(5):
        player.reflector.receive(error(410, "Expired"))
        assert not player.reflector.reading
        waits.append(player.next())
        assert player.next() == "sync"
        player.reflector.receive(START)
    assert waits == [1.6, 3.2, 6.4, 12.8, 25.6]


def test_who_is_gone_after_an_outage_does_not_wait_as_long_as_that() -> None:
    """The server is back: all is said again soon. If it is gone once more before it was steady, the waits grow as ever."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.waits(8, 503)[-1] == 30.0
    assert player.next() == "watch@10"
    player.reflector.granted()
    player.reflector.receive(error(410, "Expired"))
    assert [player.next(), player.next()] == [1.6, "sync"]
    player.reflector.receive(START)
    player.reflector.receive(error(410, "Expired"))
    assert [player.next(), player.next()] == [3.2, "sync"]
    player.reflector.receive(START)
    player.now += 10.0
    player.reflector.receive(bookmark("11"))
    player.reflector.end("cut")
    assert player.waits(3, 503)[1::2] == [1.6, 3.2, 6.4]
    assert player.next() == "watch@11"
    player.refuse(410)
    assert [player.next(), player.next()] == [1.6, "sync"]
    player.reflector.receive(START)
    player.now += 10.0
    player.reflector.end("timeout")
    assert player.waits(3, 503)[1::2] == [1.6, 3.2, 6.4]
    assert player.next() == "watch@10"
    player.refuse(410)
    assert [player.next(), player.next()] == [1.6, "sync"]


def test_a_server_that_restarts_again_and_again_is_followed_soon_each_time() -> None:
    """Who is gone after each of two outages waits for the second time as for a second 410, and not as for all that was refused before."""
    player = Player().started()
    waits = []
    for _ in range(3):
        player.reflector.end("cut")
        player.waits(6, 503)
        assert player.next() == "watch@10"
        player.reflector.granted()
        player.reflector.receive(error(410, "Expired"))
        waits.append(player.next())
        assert player.next() == "sync"
        player.reflector.receive(START)
    assert waits == [1.6, 3.2, 6.4]


def test_nothing_is_read_after_an_error() -> None:
    """What follows an ERROR event in the same bytes does not count."""
    player = Player().started()
    heard = player.reflector.receive(error(500, "InternalError") + modified(pod("a", 20)) + bookmark("30"))
    assert heard == Heard([], [])
    player.reflector.end("timeout")
    assert [player.next(), player.next()] == [1.6, "watch@10"]


@pytest.mark.parametrize("body", [b"[]", b'{"metadata":{},"items":[]}', b"<html>"])
def test_a_page_that_is_none(body: bytes) -> None:
    """It is asked for again; the last one needs a resourceVersion."""
    player = Player()
    player.next()
    player.refuse(422)
    assert player.next() == "list"
    assert player.reflector.receive_page(body).events == []
    assert [player.next(), player.next()] == [1.6, "list"]
    assert player.reflector.trouble is not None
    assert player.reflector.trouble.reason == "malformed"


@pytest.mark.parametrize("is_same", [True, False], ids=["the same again", "always another"])
def test_a_list_without_end(is_same: bool) -> None:
    """A server that always says that there are more is in trouble, and is asked in another way after some tries."""
    player = Player()
    player.next()
    player.refuse(422)
    asked, pages = [player.next()], 0
    while player.reflector.trouble is None or player.reflector.trouble.reason != "malformed":
        pages += 1
        assert pages <= (2 if is_same else PAGES)
        player.reflector.receive_page(whole(page("5", pod("a", 5), next="more" if is_same else f"more{pages}")))
        asked = [player.next()]
    assert asked == [1.6]
    assert player.reflector.trouble.message == f"the list has no end: page {pages} says that there are more"
    for wait in (3.2, 6.4, 12.8, 25.6):
        assert str(player.next()).startswith("list+more")
        player.reflector.receive_page(whole(page("5", next="more" if is_same else "others")))
        assert player.next() == wait
    assert player.next() == "sync"


def test_what_is_lost_on_our_side_is_said_again() -> None:
    """After an error that nobody foresaw everything is said again."""
    player = Player().started()
    player.reflector.restart("KeyError: 'x'")
    assert [player.next(), player.next()] == [1.6, "sync"]


def test_who_a_full_sync_said_to_be_gone_is_said_to_be_gone_again() -> None:
    """Where that was lost, and however often; what was heard since is not said again."""
    player = Player().started()
    player.reflector.receive(added(pod("b", 11), pod("c", 12)))
    player.reflector.receive(deleted(pod("c", 13)))
    player.refuse(410)
    for _ in range(3):
        assert [player.next(), player.next()][-1] == "sync"
        heard = player.reflector.receive(START)
        assert [event.name for event in heard.events if isinstance(event, Gone)] == ["b"]
        player.reflector.restart("KeyError: 'x'")


def test_a_look_after_an_error_of_ours_begins_with_the_cache() -> None:
    """What the look before it was about to find out is over."""
    player = Player().started()
    player.reflector.end("cut")
    assert player.ask() == "look"
    player.reflector.receive_page(whole(page("9")))
    player.reflector.restart("KeyError: 'x'")
    assert [player.ask(), player.ask()] == [1.6, "sync"]
    player.reflector.receive(START)
    player.now += 1
    player.reflector.end("cut")
    assert player.ask() == "look"


def test_figures() -> None:
    """What happened is counted, by reasons that are few."""
    player = Player().started()
    player.now += 5
    player.reflector.receive(modified(pod("a", 11)) + added({"metadata": {}}))
    player.now += 600
    player.reflector.end("timeout")
    player.waits(1, 403)
    figures = player.reflector.figures
    assert (figures.requests, figures.restarts) == ({"sync": 1, "watch": 1}, {"timeout": 1, "forbidden": 1})
    assert (figures.syncs, figures.events, figures.unreadable, figures.last_contact) == (1, 3, 1, 705.0)
    assert figures.bytes == len(START + modified(pod("a", 11)) + added({"metadata": {}}))


def test_a_node_by_its_name() -> None:
    """A kind without namespaces is told by its name; what a selector no longer matches is deleted."""
    reflector = Reflector(NODES, "metadata.name=n", clock=lambda: 0.0, random=lambda: 0.0)
    reflector.next()
    node = {"metadata": {"name": "n", "resourceVersion": "1"}}
    heard = reflector.receive(added(node) + bookmark("2", True) + deleted(node) + deleted(node))
    assert [type(event) for event in heard.events] == [Put, Synced, Gone]
    assert heard.events[2] == Gone(NODES.kind, "n")


# -- a law -------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d"])


class Following(RuleBasedStateMachine):
    """A made-up server whose objects change, and an answer of any kind to each request."""

    @initialize()
    def begin(self) -> None:
        self.player = Player()
        self.there: dict[str, int] = {}
        self.log: list[tuple[int, bytes]] = []
        self.version = 1_000_000
        self.known: dict[str, int] = {}
        self.asking: str | None = None

    def hear(self, heard: Heard) -> None:
        for event in heard.events:
            if isinstance(event, Put):
                assert isinstance(event.object, Pod)
                self.known[event.object.name] = int(dict(event.object.labels)["n"])
            elif isinstance(event, Gone):
                del self.known[event.name]

    def change(self, name: str, value: int | None) -> bytes:
        self.version += 1
        if value is None:
            self.there.pop(name, None)
            return deleted(pod(name, self.version, n="0"))
        self.there[name] = value
        return modified(pod(name, self.version, n=str(value)))

    @rule(name=NAMES, value=st.none() | st.integers(0, 9))
    def churn(self, name: str, value: int | None) -> None:
        data = self.change(name, value)
        self.log.append((self.version, data))

    @rule(there=st.dictionaries(NAMES, st.integers(0, 9)))
    def restore(self, there: dict[str, int]) -> None:
        """What runs breaks off, and the server is what it was long ago."""
        if self.asking is not None:
            self.answer("away", 0)
        elif self.player.reflector.reading:
            self.player.reflector.end("cut")
        self.there, self.log, self.version = dict(there), [], self.version - 1000

    @precondition(lambda self: self.asking is None)
    @rule()
    def ask(self) -> None:
        asked = self.player.ask()
        while isinstance(asked, float):
            asked = self.player.ask()
        self.asking = asked

    @precondition(lambda self: self.asking is not None)
    @rule(how=st.sampled_from(["good", "cut", "torn", "gone", "refused", "away", "silence"]), at=st.integers(0, 5))
    def answer(self, how: str, at: int) -> None:
        assert self.asking is not None
        asked, self.asking = self.asking, None
        reflector = self.player.reflector
        if how == "gone":
            return self.player.refuse(410)
        if how == "refused":
            return self.player.refuse(422 if at % 2 else 500)
        if how == "away":
            return reflector.fail("away")
        objects = [pod(name, 5, n=str(value)) for name, value in self.there.items()]
        if asked in ("look", "etcd"):
            self.hear(reflector.receive_page(whole(page(str(self.version), *objects[:1], next="1"))))
            return None
        if asked.startswith("list"):
            start = int(asked.partition("+")[2] or 0)
            if start == 0:
                self.listed, self.listed_at = objects, str(self.version)
            part, more = self.listed[start : start + 2], len(self.listed) > start + 2
            self.hear(reflector.receive_page(whole(page(self.listed_at, *part, next=str(start + 2) if more else ""))))
            return None
        if asked == "sync":
            data = added(*objects) + bookmark(str(self.version), True)
        else:
            since = int(asked.partition("@")[2])
            data = b"".join(line for version, line in self.log if version > since)
        if how == "good":
            self.hear(reflector.receive(data))
        else:
            self.hear(reflector.receive(data[: len(data) * at // 6]))
        reflector.end({"cut": "cut", "torn": "timeout", "silence": "silence"}.get(how, "timeout"))  # type: ignore[arg-type]  # of the three
        return None

    @rule()
    def settle(self) -> None:
        """When the server answers as it should, what is known is what is there."""
        for _ in range(30):
            if self.asking is None:
                self.ask()
            synced = self.player.reflector.phase == "watch" and self.asking == f"watch@{self.version}"
            if synced:
                break
            self.answer("good", 0)
        assert self.known == self.there

    @invariant()
    def bounded(self) -> None:
        assert self.player.reflector.figures.restarts.keys() <= {
            "timeout", "early", "cut", "silence", "expired", "restored", "rejected", "unreachable", "malformed",
        }  # fmt: skip


Following.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFollowing = Following.TestCase
