"""A small HTTP server for probes and monitoring: GET and HEAD of a few paths, one answer a connection.

It never stands in the way of enforcement: an address that is taken is tried again until it is free, and reported once; at most `MOST`
clients are served at a time, each for `PATIENCE` at most, however it spends them, and the oldest of so many gives way to the next: who
has a page to get has it before, and nobody who comes and says nothing keeps a probe out; a page that cannot be made is a 500, and nothing
else.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple

from netpol.agent.lasting import lasting

MOST = 16  # clients
PATIENCE = 5.0  # seconds for a client, from its connection on
LEAVING = 1.0  # seconds that one who is turned away may take to go
AGAIN = 2.0  # seconds: between two tries to get an address that is taken
TEXT = "text/plain; charset=utf-8"


class Page(NamedTuple):
    """An answer: HTTP status, body, and its type."""

    status: int
    body: bytes
    type: str = TEXT


class Health:
    """See the module. pages -- path -> what makes its answer, called in a thread of the server; complain -- told of troubles."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]], complain: Callable[[str], None]) -> None:
        self.address: tuple[str, int] | None = None  # what it listens on; None as long as it does not
        self._host, self._port, self._pages, self._complain = host, port, pages, complain
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._thread = lasting("health", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._server is not None:
            # Wakes the thread that waits for clients.
            with contextlib.suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                server = _Server(self._host, self._port, self._pages, self._complain)
            except OSError as error:
                if not told:
                    host = self._host or "every address"
                    self._complain(f"cannot listen on {host} port {self._port}, and tries again: {error.strerror or error}")
                told = True
                self._stopping.wait(AGAIN)
                continue
            with server:
                self._server = server
                self.address = (str(server.server_address[0]), int(server.server_address[1]))
                while not self._stopping.is_set():
                    server.handle_request()
            return


class _Server(HTTPServer):
    """A thread a client, up to `MOST`; for one more the oldest is turned away."""

    request_queue_size = 4 * MOST

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]], complain: Callable[[str], None]) -> None:
        self.pages, self.complain = pages, complain
        self._places = threading.BoundedSemaphore(MOST)
        self._clients: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()
        self._told = False
        # "" is every address: of both families where the kernel has both.
        every = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        # What the name means, and so which family it is of.
        info = socket.getaddrinfo(host or every, port, type=socket.SOCK_STREAM)[0]
        self.address_family = info[0]
        super().__init__((str(info[4][0]), int(info[4][1])), _Handler)

    def server_bind(self) -> None:
        # As the base class, without its look-up of our own name, which may ask a name server and wait for it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.address_family == socket.AF_INET6:
            # "::" is IPv4's addresses too, whatever net.ipv6.bindv6only says.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    # Of the types that socketserver allows a request to have only this one is a TCP server's.
    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        if not self._places.acquire(blocking=False):
            self._turn_away()
            if not self._places.acquire(timeout=LEAVING):
                self.shutdown_request(request)
                return
        with self._lock:
            self._clients[request] = None
        try:
            threading.Thread(target=self._serve, args=(request, client_address), name="client", daemon=True).start()
        except RuntimeError as error:
            # No thread can be had: the place is for the next one.
            self._leave(request)
            self.shutdown_request(request)
            self.complain(f"a client cannot be served: {error}")

    def _turn_away(self) -> None:
        """Ends the oldest client: its thread is over soon, whether it waits to read or to write."""
        if not self._told:
            self._told = True
            self.complain(f"more than {MOST} clients at once: the oldest are turned away (said once)")
        with self._lock, contextlib.suppress(OSError):
            oldest = next(iter(self._clients), None)
            if oldest is not None:
                del self._clients[oldest]
                oldest.shutdown(socket.SHUT_RDWR)

    def _leave(self, request: socket.socket) -> None:
        with self._lock:
            self._clients.pop(request, None)
        self._places.release()

    def _serve(self, request: socket.socket, client_address: object) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # a client that went away is nobody's trouble
        except Exception as error:
            self.complain(f"a client cannot be served: {error!r}")
        finally:
            self.shutdown_request(request)
            self._leave(request)


class _Reader(io.RawIOBase):
    """What a client sends, until its time is over: then TimeoutError. A timeout of the socket alone would begin anew with each byte."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection, self._end = connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        _hurry(self._connection, self._end)
        return self._connection.recv_into(buffer)


def _hurry(connection: socket.socket, end: float) -> None:
    """What the socket does next has to be done by then."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "netpol", ""

    def setup(self) -> None:
        super().setup()
        self._end = time.monotonic() + PATIENCE
        self.rfile.close()
        self.rfile = io.BufferedReader(_Reader(self.connection, self._end))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        make = self.server.pages.get(path)
        try:
            page = make() if make is not None else Page(404, f"no such page; there are {', '.join(sorted(self.server.pages))}\n".encode())
        except Exception as error:
            # Whatever went wrong with one page must not take the thread, nor the agent, with it.
            self.server.complain(f"{path} cannot be answered: {error!r}")
            page = Page(500, b"this page could not be made; the log says why\n")
        _hurry(self.connection, self._end)
        self.send_response(page.status)
        self.send_header("Content-Type", page.type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Probes come every few seconds: nobody wants to read of each."""
