"""The services of all hosts, on one thread: whoever asks is told the host's name.

A listener belongs to the namespace it was opened in, so the thread itself never moves.
TCP: the name, then end of stream. UDP: the name for each datagram. SCTP: INIT ACK on an open port and ABORT on any
other, with the name in it (`netpol.lab.sctp`).
UDP and SCTP sockets are one for each address, so that an answer comes from the address that was asked.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from functools import partial

from netpol.lab import sctp
from netpol.lab.values import Host
from netpol.model import SCTP, TCP, UDP, Address, Family, family_of, format_address

# As long as the kernel's own limit (net.core.somaxconn) allows.
BACKLOG = 65535
REQUEST = 2048
WILDCARDS: dict[Family, str] = {4: "0.0.0.0", 6: "::"}


def address_family(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


class Listeners:
    """One thread from `start` to `close`. `open` first, in each host's namespace."""

    def __init__(self) -> None:
        self._sockets: dict[int, tuple[socket.socket, Callable[[socket.socket], None]]] = {}
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def open(self, host: Host) -> None:
        """Opens what the host listens on; the calling thread is in its namespace."""
        name = host.name.encode()
        for family in sorted({family_of(address) for address in host.addresses}):
            for protocol, port in host.listens:
                if protocol == TCP:
                    self._tcp(family, port, name)
        for address in host.addresses:
            for protocol, port in host.listens:
                if protocol == UDP:
                    self._bound(address, port, socket.SOCK_DGRAM, UDP, partial(_answer_udp, name))
            # On every host: an INIT to one that listens nowhere is refused too, whatever other raw sockets it has.
            ports = frozenset(port for protocol, port in host.listens if protocol == SCTP)
            self._bound(address, 0, socket.SOCK_RAW, SCTP, partial(_answer_sctp, ports, name, family_of(address)))

    def start(self) -> None:
        """Starts to answer. The thread is born where the caller is, so that is not in a host's namespace."""
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._loop, name="lab-listeners", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
        for listener, _ in self._sockets.values():
            listener.close()
        self._epoll.close()
        os.close(self._stop)

    def _tcp(self, family: Family, port: int, name: bytes) -> None:
        listener = socket.socket(address_family(family), socket.SOCK_STREAM)
        self._add(listener, partial(_answer_tcp, name))
        if family == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((WILDCARDS[family], port))
        listener.listen(BACKLOG)

    def _bound(self, address: Address, port: int, kind: int, protocol: int, answer: Callable[[socket.socket], None]) -> None:
        listener = socket.socket(address_family(family_of(address)), kind, protocol)
        self._add(listener, answer)
        listener.bind((format_address(address), port))

    def _add(self, listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        self._sockets[listener.fileno()] = listener, answer
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def _loop(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._stop:
                    return
                listener, answer = self._sockets[descriptor]
                try:
                    answer(listener)
                except OSError:
                    # The asker has gone, or there is nothing more to answer; the socket itself is as good as before.
                    continue


def _answer_tcp(name: bytes, listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.send(name)


def _answer_udp(name: bytes, listener: socket.socket) -> None:
    while True:
        _, asker = listener.recvfrom(REQUEST)
        listener.sendto(name, asker)


def _answer_sctp(ports: frozenset[int], name: bytes, family: Family, listener: socket.socket) -> None:
    while True:
        packet, asker = listener.recvfrom(REQUEST)
        said = sctp.respond(payload(packet, family), ports, name)
        if said is not None:
            listener.sendto(said, asker)


def payload(packet: bytes, family: Family) -> bytes:
    """What follows the IP header in what a raw socket received: IPv4 sockets hand the header out, IPv6 ones do not."""
    return packet[(packet[0] & 0x0F) * 4 :] if family == 4 and packet else packet
