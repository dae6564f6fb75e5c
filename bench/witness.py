"""Processes that stand beside the agent and say when something happened, each with its own interpreter: none waits for another.

`wire` sends numbered datagrams and says when the network's verdict on them changed; `watch` says when the API server sent an object;
`read` reads what it sends an agent, and makes nothing of it; `relay` carries connections to a server of another network namespace.
Times are CLOCK_MONOTONIC, in nanoseconds.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from netpol.kernel import namespaces
from netpol.kube.client import Client, configured
from netpol.kube.reflector import PODS
from netpol.kube.sources import NAP
from netpol.kube.waits import Timing
from netpol.kube.watch import Bookmark, Change, FrameStream
from tests.kube.servers import relay

ROOT = Path(__file__).parents[1]
PORTS = 64  # source ports in turn: no flow is so old that it is anything but new
INTERVAL = 0.0005  # seconds between two datagrams, which is how fine times on the wire are
UNDER_WAY = 10  # datagrams later one that has not arrived is lost
STABLE = 20  # so many with another verdict are a change, and the first of them is when it was


class Witness:
    """A process that writes a line for what it saw; a context manager that ends it, by its id."""

    def __init__(self, what: str, *arguments: object, descriptors: tuple[int, ...] = ()) -> None:
        command = [sys.executable, "-m", "bench.witness", what, *map(str, arguments)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=descriptors)
        assert self._process.stdout is not None
        self._out = self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._rest = b""
        self._lines: list[str] = []

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()

    def forget(self) -> None:
        """What was said so far is of no interest."""
        self._read()
        self._lines.clear()

    def said(self, word: str, patience: float = 30.0) -> int:
        """The number of the next line that begins with this word; AssertionError where none comes."""
        end = time.monotonic() + patience
        while True:
            self._read()
            while self._lines:
                first, _, number = self._lines.pop(0).partition(" ")
                if first == word:
                    return int(number)
            assert self._process.poll() is None, f"a witness ended with {self._process.returncode}"
            assert time.monotonic() < end, f"nobody saw {word!r}"
            time.sleep(0.002)

    def _read(self) -> None:
        while data := self._out.read(1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines += [line.decode() for line in lines]


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def wire(source: int, sink: int, address: str, port: int, interval: float) -> None:
    """Datagrams from one namespace to an address in another; "open TIME" and "closed TIME" at each change of verdict."""
    with namespaces.entered(sink):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((address, port))
        receiver.setblocking(False)
    with namespaces.entered(source):
        senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(PORTS)]
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    sent: dict[int, int] = {}  # not judged yet
    arrived: set[int] = set()
    verdict: bool | None = None
    since: list[int] = []  # when those were sent that contradict the verdict, without one between that does not
    number = 0
    while True:
        sent[number] = time.monotonic_ns()
        with suppress(OSError):
            senders[number % PORTS].sendto(number.to_bytes(8, "big"), (address, port))
        number += 1
        with suppress(BlockingIOError):
            while True:
                arrived.add(int.from_bytes(receiver.recv(8), "big"))
        judged = number - UNDER_WAY
        if judged in sent:
            at, came = sent.pop(judged), judged in arrived
            arrived.discard(judged)
            since = [*since, at] if came != verdict else []
            if len(since) >= STABLE:
                verdict = came
                _say("open" if came else "closed", since[0])
                since = []
        time.sleep(interval)


def watch(port: int, ca: str, token: str, path: str, since: str) -> None:
    """A watch from a version on: "TYPE/NAME TIME" for each event, "watching 0" before.

    A server that sends faster than we read cuts the connection; the next one goes on where this one was.
    """
    context = ssl.create_default_context(cafile=ca)
    begun = False
    while True:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        connection.request("GET", f"{path}&resourceVersion={since}", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        if not begun:
            _say("watching", 0)
        begun = True
        rest = b""
        while piece := answer.read1(1 << 18):
            now = time.monotonic_ns()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                # Names and versions stand in front, and the rest of a pod is not worth the time.
                type, name, version = (_after(line, words) for words in (b'"type":"', b'"name":"', b'"resourceVersion":"'))
                since = version or since
                _say(f"{type}/{name}", now)
        connection.close()


def read(namespace: int, kubeconfig: str, since: str, name: str) -> None:
    """A watch of all pods as an agent's, of which nothing is made: "read TIME" each time that this name was in what came."""
    client, version, sought = Client(configured(kubeconfig)), since, name.encode()
    with namespaces.entered(namespace):
        while True:
            query = (("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", version))
            pieces: list[bytes] = []
            with client.watch(PODS.path, query, Timing().silence, protobuf=True) as stream:
                assert stream.code == 200, stream.rest()
                assert stream.protobuf
                if version == since:
                    _say("reading", 0)
                while piece := stream.read():
                    pieces.append(piece)
                    if sought in b"".join(pieces[-2:]):
                        _say("read", time.monotonic_ns())
                    time.sleep(NAP)
            # The server could not keep up, and this one goes on where it was.
            for event in FrameStream().feed(b"".join(pieces)):
                if isinstance(event, Change | Bookmark):
                    version = event.version


def _after(line: bytes, words: bytes) -> str:
    at = line.find(words) + len(words)
    return line[at : line.index(b'"', at)].decode() if at >= len(words) else ""


def carry(namespace: int, port: int) -> None:
    """A relay; "port PORT" is where it listens in that namespace."""
    with relay(namespace, port) as near:
        _say("port", near)
        while True:
            time.sleep(3600)


def main(what: str, *arguments: str) -> None:
    if what == "wire":
        source, sink, address, port, interval = arguments
        wire(int(source), int(sink), address, int(port), float(interval))
    elif what == "watch":
        number, ca, token, path, since = arguments
        watch(int(number), ca, token, path, since)
    elif what == "read":
        node, kubeconfig, since, name = arguments
        read(int(node), kubeconfig, since, name)
    else:
        carry(*map(int, arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
