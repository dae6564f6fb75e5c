"""The drop log: one JSON line for each flow that was denied here, with the names of who was denied, and by what.

A thread of its own reads the NFLOG group of NETPOL-DENY's rule. Who holds an address and which policies deny it is asked of the loop,
between two of its tasks, a few packets at a time: names and policies are those of the state that was enforced, and enforcement never waits
for a log. What a flood, a slow disk or a silent loop leaves no room for is counted, and the counts are lines too.

Lines end in a file that is never longer than `MOST`: then it becomes FILE.1, and a new one begins. docs/drops.md describes the fields.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from msgspec import Struct

from netpol.agent.denials import Denial, Reason, judge, unjudged
from netpol.agent.lasting import lasting
from netpol.agent.limiter import Limiter, Told
from netpol.agent.loop import Loop
from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel.nflog import NflogSocket, Packet, unpack
from netpol.model import PROTOCOL_NAMES, Direction, format_address
from netpol.rules.compile.skeleton import LOG

GROUP = 9479  # where the user names none
MOST = 64 << 20  # bytes of a file
BATCH = 16  # packets of one question to the loop
DATAGRAMS = 16  # read before lines are written
QUESTION = 2.0  # seconds that the loop may take to answer
PULSE = 5.0  # seconds between two looks at what was left out
AGAIN = 5.0  # seconds before a group that could not be had is tried again
ENDING = 1.0  # seconds
TAKING = 2.0  # seconds that somebody may take to read of standard output
STANDARD_OUTPUT = 1


class Line(Struct, frozen=True, omit_defaults=True):
    """A denied flow; docs/drops.md has the words."""

    time: str
    reason: Reason
    source: str
    destination: str
    source_address: str
    destination_address: str
    protocol: str
    direction: Direction | None = None
    policies: tuple[str, ...] = ()
    source_port: int | None = None
    port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    reply: bool = False
    fragment: bool = False
    packets: int = 1


class LeftOut(Struct, frozen=True, omit_defaults=True):
    """Packets since the last such line that are part of no other: limited, lost before they were read, unreadable."""

    time: str
    left_out: int
    lost: int = 0
    unreadable: int = 0


class Sink:
    """Where lines go: a file, by its path, or standard output where there is none."""

    def __init__(self, path: Path | None, most: int = MOST) -> None:
        self._path, self._most = path, most

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Whole lines, at the end: how many of them are there now, and why not all. A file is opened anew each time: whoever moves it away
        gets a new one."""
        if self._path is None:
            return _written_out(lines)
        try:
            whole = b"".join(lines)
            if self._length() + len(whole) > self._most:
                os.replace(self._path, f"{self._path}.1")
            # Where a pipe without a reader stands there, this is an error, and no wait.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            with open(descriptor, "wb", buffering=0) as file:
                _append(file.fileno(), whole, str(self._path))
        except OSError as error:
            return 0, error
        return len(lines), None

    def _length(self) -> int:
        assert self._path is not None
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0


def _written_out(lines: Sequence[bytes]) -> tuple[int, OSError | None]:
    """`Sink.write` for standard output: line by line, and not while nobody takes them. Not by way of Python's own buffer, which keeps what
    could not be written, and would be waited for when the process ends."""
    if sys.stdout is None:
        return 0, OSError(errno.EBADF, "standard output is closed")
    room = select.poll()
    room.register(STANDARD_OUTPUT, select.POLLOUT)
    for number, line in enumerate(lines):
        try:
            if not room.poll(TAKING * 1000):
                raise OSError(errno.EAGAIN, "nobody takes what is written to standard output")
            _append(STANDARD_OUTPUT, line, "standard output")
        except OSError as error:
            return number, error
    return len(lines), None


def _append(descriptor: int, data: bytes, name: str) -> None:
    """All of it, or of a file nothing: a full disk takes what it has room for, and the next line would be glued to the half of one."""
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        while data:
            data = data[os.write(descriptor, data) :]
        return
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    if os.write(descriptor, data) < len(data):
        os.ftruncate(descriptor, before.st_size)
        os.lseek(descriptor, place, os.SEEK_SET)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


class DropLog:
    """See the module. complain -- told of troubles, once each, by the log's thread."""

    def __init__(self, group: int, loop: Loop, sink: Sink, complain: Callable[[str], None], limiter: Limiter | None = None) -> None:
        self._group, self._loop, self._sink, self._complain = group, loop, sink, complain
        self._limiter = limiter or Limiter()
        self.lines = 0
        """Written so far."""
        self._told: str | None = None
        self._said = (0, 0, 0)  # of what was left out, as the last line about it had it
        self._reading, self._waking = os.pipe2(os.O_CLOEXEC)
        self._stopping = threading.Event()
        self._thread = lasting("drops", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends it; what came before is written."""
        self._stopping.set()
        os.write(self._waking, b"x")
        self._thread.join(ENDING)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with NflogSocket(self._group, LOG) as socket:
                    self._follow(socket)
            except KernelError as error:
                self._trouble(f"{error}; it is tried again")
                self._stopping.wait(AGAIN)

    def _follow(self, socket: NflogSocket) -> None:
        self._said = (self._limiter.left_out, 0, 0)
        spoken = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            due = min(self._limiter.next_due() or now + PULSE, now + PULSE)
            select.select([socket.fileno(), self._reading], [], [], max(0.0, due - now))
            self._work(socket)
            if time.monotonic() - spoken >= PULSE:
                spoken = time.monotonic()
                self._sum_up(socket)
        self._work(socket)
        self._limiter.forget()
        self._sum_up(socket)

    def _work(self, socket: NflogSocket) -> None:
        """Reads some of what there is, and writes what becomes of it."""
        told: list[Told] = []
        for _ in range(DATAGRAMS):
            try:
                packed = socket.receive()
            except MalformedKernelData as error:
                self._trouble(str(error))
                continue
            if packed is None:
                break
            now = time.monotonic()
            told += [line for packet in unpack(packed) if (line := self._limiter.hear(packet, now)) is not None]
        told += self._limiter.due(time.monotonic())
        for first in range(0, len(told), BATCH):
            batch = told[first : first + BATCH]
            judged = self._judge([one.packet for one in batch])
            self._write([line_of(one, as_it_began(one, denial)) for one, denial in zip(batch, judged, strict=True)])

    def _judge(self, packets: Sequence[Packet]) -> Sequence[Denial]:
        """What the loop says of these; what can be said without it, where it knows too little yet or does not answer in time."""
        loop = self._loop
        patience = ENDING / 10 if self._stopping.is_set() else QUESTION
        known = loop.ask(lambda enforcer: [judge(enforcer.state, packet) for packet in packets] if loop.agenda.complete else None, patience)
        return known or [unjudged(packet) for packet in packets]

    def _sum_up(self, socket: NflogSocket) -> None:
        counts = socket.counts
        now = (self._limiter.left_out, counts.lost, counts.unreadable)
        if now != self._said:
            left_out, lost, unreadable = (new - old for new, old in zip(now, self._said, strict=True))
            # Where it cannot be written the next such line has it.
            if self._write([LeftOut(_time(0), left_out, lost, unreadable)]):
                self._said = now

    def _write(self, lines: Sequence[Line | LeftOut]) -> bool:
        """Whether it could be."""
        written, error = self._sink.write([msgspec.json.encode(line) + b"\n" for line in lines])
        self.lines += written
        if error is not None:
            self._limiter.left_out += sum(line.packets for line in lines[written:] if isinstance(line, Line))
            why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            self._trouble(f"the drop log cannot be written: {why}; what it leaves out is counted")
            return False
        self._told = None
        return True

    def _trouble(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._complain(words)


def as_it_began(told: Told, now: Denial) -> Denial:
    """What is said of a flow: as it is judged now, or as it was when its last line was written, where other pods have its addresses since
    then, or nobody can judge it now. A line that sums up comes up to ten seconds after its packets, which may be another pod's."""
    was = told.flow.said
    if now.reason != "unjudged":
        told.flow.said = now
    if not isinstance(was, Denial) or (now.reason != "unjudged" and (was.source, was.destination) == (now.source, now.destination)):
        return now
    return was


def line_of(told: Told, denial: Denial) -> Line:
    """A packet and what is known of it, as a line."""
    packet = told.packet
    source_port, port = packet.ports or (None, None)
    icmp_type, icmp_code = packet.icmp or (None, None)
    return Line(
        time=_time(packet.time),
        reason=denial.reason,
        direction=denial.direction,
        policies=denial.policies,
        source=denial.source,
        destination=denial.destination,
        source_address=format_address(packet.source),
        destination_address=format_address(packet.destination),
        protocol=PROTOCOL_NAMES.get(packet.protocol, str(packet.protocol)),
        source_port=source_port,
        port=port,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
        reply=denial.is_reply,
        fragment=packet.fragment,
        packets=told.packets,
    )


def _time(microseconds: int) -> str:
    """As RFC 3339 in UTC; now, where the kernel gave none."""
    moment = datetime.fromtimestamp((microseconds or time.time_ns() // 1000) / 1e6, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
