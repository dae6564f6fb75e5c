"""The HTTP server of probes, on real sockets of a namespace of the test's own."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netpol.agent import health
from netpol.agent.health import Health, Page
from netpol.kernel import namespaces
from tests.conftest import raise_loopback


def until(holds: Callable[[], object]) -> None:
    """Waits for something, for twenty seconds at most."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Scene:
    """A server with some pages, and what it complained of."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.complaints: list[str] = []
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.made: list[int] = []
        pages = {
            "/large": self.large,
            "/fine": lambda: Page(200, b"fine\n"),
            "/bad": lambda: Page(503, b"bad\n"),
            "/broken": self.broken,
            "/slow": self.slow,
        }
        self.health = Health(host, port, pages, self.complaints.append)

    def broken(self) -> Page:
        raise ZeroDivisionError

    def large(self) -> Page:
        """More than the buffers between two sockets hold."""
        self.made.append(1)
        return Page(200, bytes(1 << 24))

    def slow(self) -> Page:
        self.asked.set()
        self.answer.wait(20)
        return Page(200, b"slow\n")

    def start(self) -> tuple[str, int]:
        self.health.start()
        until(lambda: self.health.address)
        assert self.health.address is not None
        return self.health.address

    def ask(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        assert self.health.address is not None
        connection = http.client.HTTPConnection(*self.health.address, timeout=20)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def served(self) -> bool:
        try:
            return self.ask("/fine")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    made.start()
    yield made
    made.answer.set()
    made.health.stop()


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        pytest.param("GET", "/fine", 200, b"fine\n", id="a page"),
        pytest.param("GET", "/fine?verbose=1", 200, b"fine\n", id="with a query"),
        pytest.param("HEAD", "/fine", 200, b"", id="its head"),
        pytest.param("GET", "/bad", 503, b"bad\n", id="another status"),
        pytest.param("GET", "/none", 404, b"no such page; there are /bad, /broken, /fine, /large, /slow\n", id="no page"),
        pytest.param("GET", "/broken", 500, b"this page could not be made; the log says why\n", id="a page that cannot be made"),
    ],
)
def test_pages(scene: Scene, method: str, path: str, status: int, body: bytes) -> None:
    """Status and body."""
    assert scene.ask(path, method) == (status, body)


def test_a_client_whose_serving_meets_a_mistake_is_the_only_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, the connection ends, and neither a place nor a thread's death is left of it: that would end the agent."""
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    with monkeypatch.context() as patch:
        patch.setattr(health._Handler, "handle", lambda self: [][0])
        for _ in range(health.MOST + 1):
            assert not scene.served()
    assert scene.served()
    assert set(scene.complaints) == {"a client cannot be served: IndexError('list index out of range')"}
    assert died == []


def test_other_methods_are_refused(scene: Scene) -> None:
    """Nothing can be changed here."""
    assert scene.ask("/fine", "POST")[0] == 501


def test_a_page_that_cannot_be_made_is_reported_and_the_server_goes_on(scene: Scene) -> None:
    """With the path and the error."""
    scene.ask("/broken")
    assert scene.complaints == ["/broken cannot be answered: ZeroDivisionError()"]
    assert scene.ask("/fine")[0] == 200


@pytest.mark.parametrize(
    "bytes_sent", [b"", b"\0\xff\r\n\r\n", b"GET /fine HTTP/9.9\r\n\r\n", b"G" * 100_000], ids=["nothing", "noise", "version", "long"]
)
def test_clients_that_speak_nonsense_or_leave(scene: Scene, bytes_sent: bytes) -> None:
    """The next one is served."""
    assert scene.health.address is not None
    with socket.create_connection(scene.health.address) as client:
        client.sendall(bytes_sent)
    assert scene.ask("/fine")[0] == 200


def test_silent_clients_do_not_keep_others_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes is served at once: the oldest of those that are in go for it. Those who came last stay; it is said once."""
    monkeypatch.setattr(health, "PATIENCE", 600.0)
    assert scene.health.address is not None
    assert scene.ask("/fine") == (200, b"fine\n")
    silent = [socket.create_connection(scene.health.address) for _ in range(health.MOST + 4)]
    for client in silent:
        client.settimeout(20)
    assert scene.ask("/fine") == (200, b"fine\n")
    assert [client.recv(1) for client in silent[:5]] == [b""] * 5
    silent[5].sendall(b"GET /fine HTTP/1.0\r\n\r\n")
    assert silent[5].recv(12) == b"HTTP/1.0 200"
    assert scene.ask("/fine") == (200, b"fine\n")
    for client in silent:
        client.close()
    assert scene.complaints == [f"more than {health.MOST} clients at once: the oldest are turned away (said once)"]


def test_one_that_cannot_be_turned_away_is_passed_over(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page is still being made: who comes first meanwhile finds no place, and the next one has that of the next oldest."""
    monkeypatch.setattr(health, "PATIENCE", 600.0)
    monkeypatch.setattr(health, "LEAVING", 0.05)
    assert scene.health.address is not None
    slow = socket.create_connection(scene.health.address)
    slow.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
    assert scene.asked.wait(20)
    silent = [socket.create_connection(scene.health.address) for _ in range(health.MOST - 1)]
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert scene.ask("/fine") == (0, b"")
    assert scene.ask("/fine") == (200, b"fine\n")
    scene.answer.set()
    for client in (slow, *silent):
        client.close()


def test_clients_that_do_not_read_do_not_keep_others_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has its answer, and takes none of it, gives way like any other."""
    monkeypatch.setattr(health, "PATIENCE", 600.0)
    assert scene.health.address is not None
    asked = [socket.create_connection(scene.health.address) for _ in range(health.MOST)]
    for client in asked:
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
    until(lambda: len(scene.made) == health.MOST)
    assert scene.ask("/fine") == (200, b"fine\n")
    for client in asked:
        client.close()


@pytest.mark.parametrize("first", [b"", b"GET /fine HTTP/1.0\r\nX: "], ids=["in the request line", "in a header"])
def test_clients_that_drip_do_not_keep_others_out(scene: Scene, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    """A byte now and then is no reason to wait longer: each has its time, and no more."""
    monkeypatch.setattr(health, "PATIENCE", 0.5)
    assert scene.health.address is not None
    clients = [socket.create_connection(scene.health.address) for _ in range(health.MOST)]
    done = threading.Event()

    def drip() -> None:
        for client in clients:
            client.sendall(first)
        while not done.wait(0.1):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(b"G")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        until(scene.served)
    finally:
        done.set()
        thread.join(20)
        for client in clients:
            client.close()


def test_a_page_that_takes_longer_than_a_client_has_is_not_sent(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made late is for nobody; the next one has time of its own."""
    monkeypatch.setattr(health, "PATIENCE", 2.0)
    assert scene.health.address is not None
    with socket.create_connection(scene.health.address, timeout=20) as client:
        client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        assert scene.asked.wait(20)
        time.sleep(health.PATIENCE)
        scene.answer.set()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
    assert scene.served()


def test_a_thread_that_cannot_be_had_is_no_place_less(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who came is turned away, and it is said; when there are threads again, everybody is served."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refuse)
        for _ in range(health.MOST + 1):
            assert not scene.served()
    assert scene.served()
    assert scene.complaints == ["a client cannot be served: can't start new thread"] * (health.MOST + 1)


def test_two_clients_at_once(scene: Scene) -> None:
    """One that waits for a slow page does not hold up a probe."""
    thread = threading.Thread(target=scene.ask, args=("/slow",))
    thread.start()
    assert scene.asked.wait(20)
    assert scene.ask("/fine")[0] == 200
    scene.answer.set()
    thread.join(20)


def test_an_address_that_is_taken_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported once, with the address; served as soon as it is free."""
    monkeypatch.setattr(health, "AGAIN", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scene = Scene(port=port)
        scene.health.start()
        until(lambda: scene.complaints)
        time.sleep(0.1)
        assert scene.complaints == [f"cannot listen on 127.0.0.1 port {port}, and tries again: {os.strerror(errno.EADDRINUSE)}"]
    until(lambda: scene.health.address)
    assert scene.ask("/fine")[0] == 200
    scene.health.stop()


def test_it_ends_when_it_is_told(scene: Scene) -> None:
    """Also where it waits for an address; the port is free at once."""
    address = scene.health.address
    scene.health.stop()
    assert not scene.health._thread.is_alive()
    socket.create_server(address).close()  # type: ignore[arg-type]  # the fixture waited until it has one


def test_ipv6() -> None:
    """An address of the other family is one, too."""
    scene = Scene(host="::1")
    assert scene.start()[0] == "::1"
    assert scene.ask("/fine")[0] == 200
    scene.health.stop()


def reached(port: int) -> list[str]:
    """The loopback addresses at which somebody answers there."""
    found = []
    for host in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=20):
            found.append(host)
    return found


def without_ipv6() -> None:
    """As `sysctl net.ipv6.conf.all.disable_ipv6=1` leaves the calling thread's namespace: a family without addresses."""
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")


@pytest.mark.parametrize(
    ("prepare", "families", "hosts"),
    [
        pytest.param(lambda: None, True, ["127.0.0.1", "::1"], id="both families"),
        pytest.param(without_ipv6, True, ["127.0.0.1"], id="IPv6 is switched off"),
        pytest.param(lambda: None, False, ["127.0.0.1"], id="a kernel without IPv6"),
        pytest.param(lambda: Path("/proc/sys/net/ipv6/bindv6only").write_text("1"), True, ["127.0.0.1", "::1"], id="bindv6only"),
    ],
)
def test_no_host_is_every_address(monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], object], families: bool, hosts: list[str]) -> None:
    """Of both families; of IPv4 alone where there is nothing else."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: families)
    scene = Scene(host="")
    space = namespaces.create()
    try:
        with namespaces.entered(space):
            raise_loopback()
            prepare()
            # Its thread begins where this one is.
            _, port = scene.start()
            assert reached(port) == hosts
    finally:
        scene.health.stop()
        os.close(space)
