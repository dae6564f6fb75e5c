"""An HTTP server of ours that plays an API server's faults, byte for byte: what a real one will not do when asked to.

A test gives the answers to each path in their order; a request that has none left waits, as a watch does on which nothing happens,
until an answer is given. Every request is kept, so a test can say how many there were, and which.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

Piece = bytes | threading.Event


class Answer(NamedTuple):
    """An answer: a head, and pieces of a body that are sent as HTTP chunks as they stand; an Event is waited for.

    whole -- the body ends as it should; cut: the connection is closed in its midst. A head of None is no answer at all: the connection
    is closed (`pieces` empty) or stays silent.
    """

    head: bytes | None
    pieces: tuple[Piece, ...] = ()
    whole: bool = True


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def what(self) -> str:
        """In a word: sync, watch@VERSION, list, list+CONTINUE, look, which is a list of nothing from a cache, or etcd: one object's."""
        if "sendInitialEvents" in self.query:
            return "sync"
        if "watch" in self.query:
            return f"watch@{self.query.get('resourceVersion', '')}"
        if "continue" in self.query:
            return f"list+{self.query['continue']}"
        if self.query.get("resourceVersion") == "0":
            return "look"
        return "etcd" if self.query.get("limit") == "1" else "list"

    @property
    def place(self) -> str:
        """The path that its answers are given to: a look goes to a part of what is followed."""
        return self.path.replace("/namespaces/default/", "/") if self.what == "look" else self.path


# -- answers -----------------------------------------------------------------------------------------------------------

CLOSED = Answer(None)


def silent() -> Answer:
    """Nothing comes, and the connection stays."""
    return Answer(None, (threading.Event(),))


def head(code: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} {'OK' if code == 200 else 'Error'}", "Transfer-Encoding: chunked"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in {"Content_Type": "application/json", **headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def watch(*pieces: Piece, whole: bool = True) -> Answer:
    """A watch of these pieces."""
    return Answer(head(200), pieces, whole)


def in_protobuf(*pieces: Piece, code: int = 200, whole: bool = True) -> Answer:
    """A watch of these pieces in protobuf, or a refusal."""
    kind = "application/vnd.kubernetes.protobuf"
    return Answer(head(code, Content_Type=f"{kind};stream=watch" if code == 200 else kind), pieces, whole)


def status(code: int, reason: str = "", message: str = "", **headers: str) -> Answer:
    """A refusal as an API server words it."""
    return Answer(head(code, **headers), (_status(code, reason, message),))


def bare(code: int, body: bytes = b"upstream connect error", **headers: str) -> Answer:
    """A refusal by something else that stands on the way."""
    return Answer(head(code, **headers), (body,))


def page(version: str, *objects: dict[str, Any], next: str = "", compressed: bool = False) -> Answer:
    """A page of a list."""
    meta = {"resourceVersion": version, **({"continue": next} if next else {})}
    body = json.dumps({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": objects}).encode()
    return Answer(head(200, Content_Encoding="gzip"), (gzip.compress(body),)) if compressed else Answer(head(200), (body,))


def _status(code: int, reason: str, message: str) -> bytes:
    return json.dumps(
        {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
    ).encode()


def line(type: str, object: dict[str, Any] | str) -> bytes:
    return f'{{"type":"{type}","object":{object if isinstance(object, str) else json.dumps(object)}}}\n'.encode()


def added(*objects: dict[str, Any]) -> bytes:
    return b"".join(line("ADDED", one) for one in objects)


def modified(*objects: dict[str, Any]) -> bytes:
    return b"".join(line("MODIFIED", one) for one in objects)


def deleted(*objects: dict[str, Any]) -> bytes:
    return b"".join(line("DELETED", one) for one in objects)


def bookmark(version: str, initial_end: bool = False) -> bytes:
    meta: dict[str, Any] = {"resourceVersion": version, "creationTimestamp": None}
    if initial_end:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": {"containers": None}, "status": {}})


def error(code: int, reason: str = "", message: str = "") -> bytes:
    return line("ERROR", _status(code, reason, message).decode())


def pod(name: str, version: int | str, address: str = "10.0.0.1", namespace: str = "default", **labels: str) -> dict[str, Any]:
    """A pod as an API server hands it out, as far as it matters."""
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": str(version), "labels": labels},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


# -- the server --------------------------------------------------------------------------------------------------------


class FakeServer:
    """See the module. A context manager."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self.tokens: set[str] | None = None  # those that are good; None: no one is asked for any
        self.tls: ssl.SSLContext | None = None  # for connections from now on
        self._answers: dict[str, deque[Answer]] = {}
        self._change = threading.Condition()
        self._live: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, *answers: Answer) -> None:
        """The next answers to requests of a path."""
        with self._change:
            self._answers.setdefault(path, deque()).extend(answers)
            self._change.notify_all()

    def wait(self, number: int, path: str | None = None, timeout: float = 30) -> list[Asked]:
        """The requests (of a path), once there are so many; AssertionError where they do not come."""
        with self._change:
            done = self._change.wait_for(lambda: len(self.of(path)) >= number, timeout)
            assert done, f"asked {[one.what for one in self.of(path)]}, not {number} times"
            return self.of(path)

    def of(self, path: str | None) -> list[Asked]:
        return [one for one in self.asked if path in (None, one.place)]

    def start(self) -> None:
        """Listens, on the port it had before if there was one."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def stop(self) -> None:
        """Nobody listens any more, and every connection is reset."""
        with self._change:
            listener, self._listener = self._listener, None
            live = list(self._live)
        if listener is not None:
            _shut(listener)
            listener.close()
        for connection in live:
            _shut(connection)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        with self._change:
            self._change.notify_all()
        for thread in self._threads:
            thread.join(10)

    def kubeconfig(self, folder: Path, user: dict[str, Any] | None = None, server: str | None = None) -> str:
        """A kubeconfig for this server, written into a folder; its path."""
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "someone"}}],
            "clusters": [{"name": "fake", "cluster": {"server": server or self.url}}],
            "users": [{"name": "someone", "user": user or {}}],
        }
        path.write_text(json.dumps(config))
        return str(path)

    # -- threads -------------------------------------------------------------------------------------------------------

    def _spawn(self, target: Any, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._change:
                if self._listener is not listener:
                    connection.close()
                    return
                self.connections += 1
                self._live.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self.tls.wrap_socket(connection, server_side=True) if self.tls else connection as wire, wire.makefile("rb") as reader:
                for asked in iter(lambda: _read_request(reader), None):
                    with self._change:
                        self.asked.append(asked)
                        self._change.notify_all()
                    if not self._reply(wire, self._take(asked, wire)):
                        return
        except OSError:
            pass
        finally:
            with self._change:
                self._live.discard(connection)

    def _take(self, asked: Asked, connection: socket.socket) -> Answer:
        if self.tokens is not None and asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return status(401, "Unauthorized", "Unauthorized")
        waiting = self._answers.setdefault(asked.place, deque())
        with self._change:
            while not waiting:
                if self._listener is None or _has_gone(connection):
                    return CLOSED
                self._change.wait(0.1)
            return waiting.popleft()

    def _reply(self, connection: socket.socket, answer: Answer) -> bool:
        """Whether the connection can be asked again."""
        if answer.head is not None:
            connection.sendall(answer.head)
        for piece in answer.pieces:
            if isinstance(piece, threading.Event):
                while not piece.wait(0.05):
                    if self._listener is None or _has_gone(connection):
                        return False
            elif piece:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        if answer.head is None or not answer.whole:
            return False
        connection.sendall(b"0\r\n\r\n")
        return True


def _read_request(reader: Any) -> Asked | None:
    first = reader.readline().decode().split()
    if len(first) != 3:
        return None
    headers = dict(_headers(reader))
    url = urlsplit(first[1])
    body = reader.read(int(headers.get("content-length", 0)))
    return Asked(first[0], url.path, dict(parse_qsl(url.query)), headers, body)


def _headers(reader: Any) -> Iterator[tuple[str, str]]:
    for text in iter(lambda: reader.readline().decode().strip(), ""):
        name, _, value = text.partition(":")
        yield name.lower(), value.strip()


def _has_gone(connection: socket.socket) -> bool:
    try:
        # By the socket itself: what TLS has of it cannot be looked at.
        return socket.socket.recv(connection, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
