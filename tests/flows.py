"""A world of running flows: a server, two clients and the node between them, whose kernel follows a cluster and whose flows are cut.

Nothing in it depends on how long something takes: what must happen is waited for, what must not is looked for while packets are seen
to be dropped.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from netpol.agent.cutter import Cutter, Report
from netpol.agent.cutting import Cutting
from netpol.agent.enforcer import Enforcer
from netpol.kernel.apply import Kernel
from netpol.kernel.conntrack import ConntrackSocket
from netpol.lab import Host, Lab
from netpol.model import (
    Address,
    IPBlock,
    Namespace,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Requirement,
    Selector,
    family_of,
    format_address,
    network,
    parse_address,
)
from netpol.rules.compile import Settings
from netpol.rules.flows import Entry, unpack
from netpol.rules.ruleset import Ruleset
from tests.referees import run

SERVER, CLIENT, FRIEND = (parse_address(f"10.244.0.{i}") for i in (10, 20, 30))
SERVER6, CLIENT6, FRIEND6 = (parse_address(f"fd00:244::{i}") for i in (10, 20, 30))
SERVICE = "10.96.0.1"
NODE_ADDRESSES = (parse_address("192.168.77.1"), parse_address("fd00:77::1"))
HOSTS = (Host("server", (SERVER, SERVER6)), Host("client", (CLIENT, CLIENT6)), Host("friend", (FRIEND, FRIEND6)))
PODS = frozenset(address for host in HOSTS for address in host.addresses)
BIT = Settings().cut_bit
PATIENCE = 20.0  # seconds before a test gives up on what must happen
PUSHES = 15
PAUSE = 0.02


def pod(name: str, *addresses: Address) -> Pod:
    return Pod("x", name, (("app", name),), "n", addresses)


BASE: tuple[Object, ...] = (Namespace("x"), Node("n", NODE_ADDRESSES), *(pod(host.name, *host.addresses) for host in HOSTS))


def guard(name: str, *friends: Address, ports: tuple[NumberedPort, ...] | None = None, egress: bool = False) -> Policy:
    """A policy by which a pod is spoken to (or, with `egress`, speaks) by these addresses only."""
    rules = (PolicyRule(tuple(IPBlock(network(friend, len(friend) * 8)) for friend in friends), ports),) if friends else ()
    selector = Selector((Requirement("app", "In", (name,)),))
    return Policy("x", name, selector, None if egress else rules, rules if egress else None)


FRIENDS_ONLY = guard("server", FRIEND, FRIEND6)
NOBODY = guard("server")


def wait_for(what: Callable[[], bool]) -> None:
    """Until it is so; the test fails where it never is."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(PAUSE / 4)


class Side:
    """One end of a flow: what it sends, at once or all the time, and how much has arrived at it."""

    def __init__(self, made: socket.socket, peer: tuple[str, int] | None = None) -> None:
        made.setblocking(False)
        if made.type == socket.SOCK_STREAM:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.peer = made, peer
        self.pushed = self._arrived = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, data: bytes = b"1234567890") -> None:
        self.pushed += 1
        try:
            if self.peer:
                self.socket.sendto(data, self.peer)
            else:
                self.socket.send(data)
        except BlockingIOError:
            pass  # TCP holds as much as it may already

    def push(self) -> None:
        """Speaks 50 times a second from now on."""

        def work() -> None:
            while not self._stop.wait(PAUSE):
                self.say()

        self._thread = threading.Thread(target=work)
        self._thread.start()

    @property
    def arrived(self) -> int:
        """Bytes so far."""
        try:
            while found := self.socket.recv(65536):
                self._arrived += len(found)
        except BlockingIOError:
            pass
        return self._arrived

    def rest(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()


class World:
    """A lab whose node's kernel follows a cluster, and the cutter of its flows: swept by hand, or by the thread once `cut` was called."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.lab = stack.enter_context(Lab(HOSTS, NODE_ADDRESSES))
        with self.lab.entered():
            self.kernel = stack.enter_context(Kernel())
            self.cutter = stack.enter_context(Cutter(BIT))
            self.conntrack = stack.enter_context(ConntrackSocket())
        self.enforcer = Enforcer(self.kernel, "n", Settings())
        self.cutting: Cutting | None = None
        self.put(*BASE)

    def cut(self, cut: bool = True, **told: Callable[..., object]) -> None:
        """Flows are cut in the background from now on, or marks forgotten."""
        self.close()
        with self.lab.entered():
            self.cutting = Cutting(BIT, cut=cut, **told)  # type: ignore[arg-type]  # callbacks of a test
            self.stack.callback(self.close)
            self.cutting.changed(self.enforcer.adopt())

    def close(self) -> None:
        if self.cutting is not None:
            self.cutting.close()

    def put(self, *items: Object) -> None:
        self.enforcer.put(*items)
        self._apply()

    def drop(self, kind: type[Object], name: str) -> None:
        self.enforcer.drop(kind, name, "x")
        self._apply()

    def _apply(self) -> None:
        with self.lab.entered():
            report = self.enforcer.enforce()
        if self.cutting is not None:
            self.cutting.changed(report)

    @property
    def ruleset(self) -> Ruleset:
        return self.enforcer.state.wanted()

    def sweep(self, *touched: Address) -> Report:
        with self.lab.entered():
            return self.cutter.sweep(self.ruleset, PODS, touched or None)

    def tool(self, *command: str) -> str:
        with self.lab.entered():
            return run(*command)

    def dropped(self) -> int:
        with self.lab.entered():
            return self.kernel.dropped()

    def entries(self, protocol: int) -> list[Entry]:
        with self.lab.entered():
            return [entry for entry in unpack(self.conntrack.flows(PODS)) if entry.protocol == protocol]

    # -- flows --

    def _socket(self, host: str, family: int, kind: int, address: Address = b"", port: int = 0, protocol: int = 0) -> socket.socket:
        with self.lab.entered(host):
            made = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind, protocol)
        self.stack.callback(made.close)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address:
            made.bind((format_address(address), port))
        made.settimeout(PATIENCE)
        return made

    def tcp(
        self, client: str = "client", server: Address = SERVER, port: int = 80, via: tuple[str, int] | None = None, own: int = 0
    ) -> tuple[Side, Side]:
        """A connection to a port of the host that has this address, `via` an address and port of a Service, from the port `own`."""
        family = family_of(server)
        listener = self._socket(self._host(server), family, socket.SOCK_STREAM, server, port)
        listener.listen()
        calling = self._socket(client, family, socket.SOCK_STREAM)
        calling.bind(("", own))
        calling.connect(via or (format_address(server), port))
        called, _ = listener.accept()
        listener.close()
        return self._sides(Side(calling), Side(called))

    def udp(self, client: str = "client", server: Address = SERVER, port: int = 53) -> tuple[Side, Side]:
        """A UDP flow after the client's first datagram; the server knows where to answer."""
        family = family_of(server)
        called = self._socket(self._host(server), family, socket.SOCK_DGRAM, server, port)
        calling = self._socket(client, family, socket.SOCK_DGRAM)
        calling.connect((format_address(server), port))
        calling.send(b"first")
        _, peer = called.recvfrom(100)
        return self._sides(Side(calling), Side(called, peer))

    def _sides(self, client: Side, server: Side) -> tuple[Side, Side]:
        for side in (client, server):
            self.stack.callback(side.socket.close)
        # Both rest before one closes: what is unread then resets the other.
        for side in (client, server):
            self.stack.callback(side.rest)
        return client, server

    def _host(self, address: Address) -> str:
        return next(host.name for host in HOSTS if address in host.addresses)

    # -- what is to be seen --

    def assert_alive(self, flow: tuple[Side, Side]) -> None:
        """What either end says now arrives at the other."""
        for sender, receiver in (flow, flow[::-1]):
            before = receiver.arrived
            sender.say()
            wait_for(lambda receiver=receiver, before=before: receiver.arrived > before)  # type: ignore[misc]  # bound at once

    def assert_cut(self, flow: tuple[Side, Side], speaks: Callable[[], None]) -> None:
        """While both speak, as `speaks` makes them, packets are dropped and not a byte arrives at either end."""
        before = self.dropped()
        speaks()
        wait_for(lambda: self.dropped() > before)
        arrived, before = [side.arrived for side in flow], self.dropped()
        for _ in range(PUSHES):
            speaks()
            time.sleep(PAUSE)
        wait_for(lambda: self.dropped() >= before + 2)
        assert [side.arrived for side in flow] == arrived
