"""Probes: real flows, all in flight at once, and what came of each.

Every probe is a new flow to the connection tracking: source ports of a host are handed out in turn, and none is used twice in
40,000 probes. TCP connections are reset when they are closed, so none lingers.

A flow that the policy drops says nothing, so silence has to be told from slowness. Two ways, and the first that is sure ends the round:
- the firewall's count of drops: when it has grown by as many packets as the unanswered probes have sent, they are all accounted for;
- patience, counted in empty looks at the sockets and not by the clock: a process that the machine kept waiting has not waited.
Datagrams are sent again while waiting; TCP does that itself, after a second, which is why patience is longer than that.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from netpol.errors import LabError
from netpol.kernel import namespaces
from netpol.lab import sctp
from netpol.lab.listeners import address_family, payload
from netpol.lab.values import ECHO, Answer, Probe, source_address
from netpol.model import SCTP, TCP, UDP, Address, Family, family_of, format_address

PATIENCE = 1.5
"""Seconds without any answer after which the rest is silent: time for one retransmission of a SYN."""

LOOK = 0.02
RESEND_EVERY = 15
EVENTS = 1024
ANSWER = 2048
FIRST_PORT, LAST_PORT = 20000, 59999
# Descriptors left for everybody else in the process: the listeners accept a connection while we hold ours.
SPARE = 64

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Python names few of these: linux/in.h, linux/in6.h, linux/tcp.h, linux/icmp.h.
IP_RECVERR, IPV6_RECVERR = 11, 25
TCP_INFO, TOTAL_RETRANS = 11, 100
ECHO_REQUEST = {4: struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"netpol", 6: struct.pack("!BBHHH", 128, 0, 0, 0, 1) + b"netpol"}

# Resets, and what Linux makes of the ICMP errors: unreachable host, net, port and protocol, prohibited, unknown header.
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EACCES, errno.EPROTO, errno.ENOPROTOOPT)
REFUSALS = frozenset((errno.ECONNREFUSED, errno.ECONNRESET, *UNREACHABLE))
SILENCES = frozenset((errno.EPERM, errno.ETIMEDOUT))


class Flight(Struct):
    """A probe on its way: its place in the table, its socket, what to send again (b"" for TCP), and the packets that it has sent."""

    index: int
    probe: Probe
    socket: socket.socket
    port: int
    request: bytes = b""
    sends: int = 1


def verdict(code: int | None) -> Answer:
    """What an error of a probe's socket says; the error itself where it is no answer of the network's."""
    if code in REFUSALS:
        return Answer("refused")
    if code in SILENCES:
        # A filter on the way out of the node tells its own sender.
        return Answer("silent")
    raise LabError(f"a probe failed by itself: {os.strerror(code or 0)}")


def endpoint(address: Address, port: int) -> tuple[str, int]:
    return format_address(address), port


class Prober:
    """Sends probes from the hosts of a lab, and keeps each host's next source port.

    spaces, addresses -- descriptors of namespaces, and addresses, by host; owners -- who has an address.
    """

    def __init__(self, spaces: Mapping[str, int], addresses: Mapping[str, tuple[Address, ...]], owners: Mapping[Address, str]) -> None:
        self._spaces, self._addresses, self._owners = spaces, addresses, owners
        self._ports = dict.fromkeys(spaces, FIRST_PORT)

    def run(self, probes: Sequence[Probe], patience: float, dropped: Callable[[], int] | None) -> tuple[Answer, ...]:
        """The answers, in the order of the probes; more than there are descriptors for go in waves. LabError for a probe that cannot be,
        or one that the wrong host answered."""
        sources = [source_address(probe, self._addresses) for probe in probes]
        answers: dict[int, Answer] = {}
        wave = room()
        for start in range(0, len(probes), wave):
            chosen = range(start, min(start + wave, len(probes)))
            # The whole table of one source at a time: a thread changes its namespace once for all of them.
            order = sorted(chosen, key=lambda index: probes[index].source)
            self._wave([(index, probes[index], sources[index]) for index in order], answers, patience, dropped)
        for index, answer in answers.items():
            owner = self._owners.get(probes[index].destination)
            if answer.host and owner is not None and answer.host != owner:
                raise LabError(f"probe {probes[index]}: {answer.host} answered for {owner}: the packets took a wrong way")
        return tuple(answers.get(index, Answer("silent")) for index in range(len(probes)))

    def _wave(
        self, chosen: Iterable[tuple[int, Probe, Address]], answers: dict[int, Answer], patience: float, dropped: Callable[[], int] | None
    ) -> None:
        before = dropped() if dropped else 0
        flights: dict[int, Flight] = {}
        with select.epoll() as epoll:
            try:
                self._launch(chosen, flights, answers, epoll)
                quiet = 0
                while flights and quiet * LOOK < patience:
                    events = epoll.poll(LOOK, EVENTS)
                    # An event need not be an answer: a raw socket hears its neighbours' too.
                    settled = [descriptor for descriptor, _ in events if self._settle(flights[descriptor], answers)]
                    for descriptor in settled:
                        flights.pop(descriptor).socket.close()
                    if events:
                        quiet = 0 if settled else quiet
                        continue
                    quiet += 1
                    if dropped and dropped() - before >= packets(flights.values()):
                        break
                    if quiet % RESEND_EVERY == 0:
                        resend(flights.values())
            finally:
                for flight in flights.values():
                    flight.socket.close()

    def _launch(
        self, chosen: Iterable[tuple[int, Probe, Address]], flights: dict[int, Flight], answers: dict[int, Answer], epoll: select.epoll
    ) -> None:
        """Opens and sends all probes; `chosen` is sorted by source. Those that fail at once are answered at once."""
        groups: dict[str, list[tuple[int, Probe, Address]]] = {}
        for item in chosen:
            groups.setdefault(item[1].source, []).append(item)
        for name, group in groups.items():
            with namespaces.entered(self._spaces[name]):
                for index, probe, source in group:
                    opened, port = self._open(probe, source)
                    flight = flights[opened.fileno()] = Flight(index, probe, opened, port)
                    failed = depart(flight)
                    if failed is None:
                        epoll.register(opened.fileno(), select.EPOLLIN)
                    else:
                        answers[index] = failed
                        flights.pop(opened.fileno()).socket.close()

    def _open(self, probe: Probe, source: Address) -> tuple[socket.socket, int]:
        """A non-blocking socket of the calling thread's namespace, bound to the source address and a port that it has not used yet."""
        family = family_of(source)
        kind = {TCP: socket.SOCK_STREAM, SCTP: socket.SOCK_RAW}.get(probe.protocol, socket.SOCK_DGRAM)
        opened = socket.socket(address_family(family), kind | socket.SOCK_NONBLOCK, probe.protocol)
        try:
            if probe.protocol == TCP:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            if family == 4:
                opened.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            else:
                opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            for _ in range(FIRST_PORT, LAST_PORT + 1):
                port = self._ports[probe.source]
                self._ports[probe.source] = port + 1 if port < LAST_PORT else FIRST_PORT
                try:
                    opened.bind(endpoint(source, 0 if probe.protocol == SCTP else port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    continue
                return opened, port
            raise LabError(f"probe {probe}: all source ports of {probe.source} are in use")
        except BaseException:
            opened.close()
            raise

    def _settle(self, flight: Flight, answers: dict[int, Answer]) -> bool:
        """Reads what came for a probe; True when that answers it."""
        answer = read(flight)
        if answer is None:
            return False
        if answer.outcome == "reached" and flight.probe.protocol in ECHO:
            answer = Answer("reached", self._owners.get(flight.probe.destination, ""))
        answers[flight.index] = answer
        return True


def room() -> int:
    """How many probes there are descriptors for; the soft limit is raised as far as the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    free = limit - len(os.listdir("/proc/self/fd")) - SPARE
    if free < 1:
        raise LabError(f"no file descriptors left for probes: raise the limit (`ulimit -n`), which is {limit}")
    return free


def depart(flight: Flight) -> Answer | None:
    """Sends a probe's first packet; the answer where that failed at once, as it does when the source's own firewall refuses."""
    probe, opened = flight.probe, flight.socket
    family = family_of(probe.destination)
    try:
        if probe.protocol == TCP:
            code = opened.connect_ex(endpoint(probe.destination, probe.port))
            return None if code in (0, errno.EINPROGRESS) else verdict(code)
        opened.connect(endpoint(probe.destination, probe.port if probe.protocol == UDP else 0))
        if probe.protocol == UDP:
            flight.request = b"who?"
        elif probe.protocol == SCTP:
            flight.request = sctp.request(flight.port, probe.port, flight.port)
        else:
            flight.request = ECHO_REQUEST[family]
        opened.send(flight.request)
    except (BlockingIOError, InterruptedError):
        # Not sent for want of buffers: it is sent again with the others.
        flight.sends = 0
    except OSError as error:
        return verdict(error.errno)
    return None


def resend(flights: Iterable[Flight]) -> None:
    """Sends the datagrams of unanswered probes again. An error that waits in a socket is left for its reader."""
    for flight in flights:
        if flight.request:
            try:
                flight.socket.send(flight.request)
                flight.sends += 1
            except OSError:
                continue


def packets(flights: Iterable[Flight]) -> int:
    """How many packets the unanswered probes have sent so far, TCP's own retransmissions among them."""
    total = 0
    for flight in flights:
        total += flight.sends
        if flight.probe.protocol == TCP:
            info = flight.socket.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TOTAL_RETRANS + 4)
            total += int(struct.unpack_from("=I", info, TOTAL_RETRANS)[0])
    return total


def read(flight: Flight) -> Answer | None:
    """The answer that a readable socket holds, if it is for this probe."""
    if flight.probe.protocol == SCTP:
        return read_sctp(flight)
    try:
        data = flight.socket.recv(ANSWER)
    except BlockingIOError:
        return rejected(flight)
    except OSError as error:
        return verdict(error.errno)
    return Answer("reached", "" if flight.probe.protocol in ECHO else data.decode("utf-8", "replace"))


def read_sctp(flight: Flight) -> Answer | None:
    """Like `read`, for a raw socket. It hears all SCTP between its two addresses: the ports decide, in answers and in ICMP errors."""
    family: Family = family_of(flight.probe.destination)
    while True:
        try:
            reply = sctp.read(payload(flight.socket.recv(ANSWER), family))
        except BlockingIOError:
            return rejected(flight)
        except OSError:
            # The error itself says nothing of its port; the queue of errors does.
            continue
        if reply is not None and reply.destination == flight.port and reply.source == flight.probe.port:
            return Answer("reached" if reply.accepted else "refused", reply.name)


def rejected(flight: Flight) -> Answer | None:
    """Refused if the socket's queue of errors holds an ICMP error about this probe's packet; the queue is empty then.

    Here a TCP probe learns of an error that came back before connect() had returned, which is what a node so near does: as
    the socket's own error it would show a second later only.
    """
    found = None
    while True:
        try:
            offending = flight.socket.recvmsg(ANSWER, 0, socket.MSG_ERRQUEUE)[0]
        except BlockingIOError:
            return found
        if offending[:4] == struct.pack("!HH", flight.port, flight.probe.port):
            found = Answer("refused")
