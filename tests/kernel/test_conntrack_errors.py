"""What ctnetlink refuses comes back in words that say what to do, and a kernel that is played says what real ones seldom do."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from netpol.errors import KernelError, MalformedKernelData, NotPermitted, Unsupported
from netpol.kernel import listing
from netpol.kernel.conntrack import ConntrackSocket, translate
from netpol.rules.flows import SIZE, Entry, Tuple, pack, unpack
from tests.kernel.test_conntrack import BIT, MADE, A, B, C, many, marks
from tests.kernel.test_listing import NEW, lists
from tests.kernel.unprivileged import refusal

# In the words of this C library.
BUSY = os.strerror(errno.EBUSY)


@pytest.fixture
def conntrack(netns: int) -> Iterator[ConntrackSocket]:
    with ConntrackSocket() as opened:
        yield opened


def test_without_the_capability(conntrack: ConntrackSocket) -> None:
    """Opening, and marking many through a socket that a mightier thread opened, says what is missing; nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    error = refusal(ConntrackSocket)
    assert isinstance(error, NotPermitted)
    assert str(error).startswith("conntrack open netlink socket: not permitted: run netpol as root, or with CAP_NET_ADMIN")
    assert len(os.listdir("/proc/self/fd")) == before
    many(300)
    found = conntrack.flows((A,))
    error = refusal(lambda: conntrack.mark(found, BIT))
    assert isinstance(error, NotPermitted)
    assert set(marks()) == {0}
    assert conntrack.mark(found, BIT) == 300


def test_a_kernel_without_netfilter_netlink(netns: int) -> None:
    """A netlink protocol that the kernel does not have is refused as a kernel that lacks all of it would be."""
    with pytest.raises(Unsupported, match=r"no netfilter netlink.*modprobe nf_conntrack_netlink"):
        ConntrackSocket(protocol=30)


def test_words() -> None:
    """The same number means different things for different operations."""
    assert isinstance(translate(errno.EINVAL, "open", "s"), Unsupported)
    assert "modprobe nf_conntrack_netlink" in str(translate(errno.EINVAL, "open", "s"))
    assert str(translate(errno.EINVAL, "mark", "flow", " (and so on)")) == "conntrack mark flow: Invalid argument (and so on)"
    assert "CONFIG_NF_CONNTRACK_MARK" in str(translate(errno.EOPNOTSUPP, "unmark", "flow"))


# -- a kernel that is played: bytes of our own in the place of its answers ---------------------------------------------


def message(type: int, seq: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type, 0, seq, 0) + body


def attribute(type: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type) + value + bytes(-len(value) % 4)


def entry_of(seq: int, source: bytes, destination: bytes) -> bytes:
    """An entry of protocol 89, which has no numbers."""
    sides = ((1, source, destination), (2, destination, source))
    tuples = (attribute(t, attribute(1, attribute(1, a) + attribute(2, b)) + attribute(2, attribute(1, b"\x59"))) for t, a, b in sides)
    return message(1 << 8, seq, b"\2\0\0\0" + b"".join(tuples))


def done(seq: int) -> bytes:
    return message(3, seq, bytes(4))


def answer(seq: int, code: int) -> bytes:
    return message(2, seq, struct.pack("=i", -code) + bytes(16))


@pytest.fixture
def played(conntrack: ConntrackSocket) -> Iterator[tuple[ConntrackSocket, socket.socket, int]]:
    """A socket whose other end is ours, that end, and the next sequence number."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        os.dup2(theirs.fileno(), conntrack.fileno(), inheritable=False)
        yield conntrack, ours, conntrack._seq


def test_a_kernel_that_does_not_filter(played: tuple[ConntrackSocket, socket.socket, int]) -> None:
    """One that sends all the same is found out, asked for all at once, and not asked for less again; what is found is right."""
    conntrack, kernel, seq = played
    for number in range(seq, seq + 3):
        kernel.send(entry_of(number, A, B) + entry_of(number, C, B) + done(number))
    expected = [Entry(89, Tuple(A, B), Tuple(B, A), flags=0)]
    assert list(unpack(conntrack.flows_at((A,)))) == expected
    assert list(unpack(conntrack.flows_at((A,)))) == expected
    assert conntrack._seq == seq + 3


def test_a_kernel_that_refuses_the_filter(played: tuple[ConntrackSocket, socket.socket, int]) -> None:
    """One that has the attribute and not the meaning is asked for all."""
    conntrack, kernel, seq = played
    kernel.send(answer(seq, errno.EOPNOTSUPP))
    kernel.send(entry_of(seq + 1, A, B) + done(seq + 1))
    # Draining after a refusal would take what is queued for later.
    conntrack._drain = lambda: None  # type: ignore[method-assign]
    assert len(conntrack.flows_at((A,))) == SIZE


def test_left_overs_are_passed_over(played: tuple[ConntrackSocket, socket.socket, int]) -> None:
    """Answers to an older request are neither entries nor errors of this one."""
    conntrack, kernel, seq = played
    kernel.send(entry_of(seq - 1, A, B) + done(seq - 1) + answer(seq - 1, errno.EBUSY))
    kernel.send(done(seq))
    assert conntrack.flows((A,)) == b""
    kernel.send(answer(seq - 1, errno.EBUSY) + answer(seq + 2, 0))
    assert conntrack.mark(pack([MADE["udp"][1]]), BIT) == 1
    kernel.send(answer(seq + 1, errno.EBUSY))
    kernel.send(message(1 << 8 | 5, seq + 3, bytes(4) + attribute(1, struct.pack(">I", 5))))
    assert conntrack.count() == 5


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ((errno.EBUSY, 0, 0), f"UDP 10.0.0.1:40000 > 10.0.0.2:53, replies 10.0.0.2:53 > 10.0.0.1:40000: {BUSY}"),
        ((errno.ENOENT, errno.ENOMEM, 0), "protocol 47 10.0.0.1:1 > 10.0.0.2:2, replies 10.0.0.2:2 > 10.0.0.1:1: the kernel is out of mem"),
        ((errno.EINVAL, errno.EBUSY, errno.EBUSY), r"UDP .*: Invalid argument \(and 2 others of 3 entries\)"),
    ],
    ids=["the first", "the second", "all"],
)
def test_a_refused_update_is_named(played: tuple[ConntrackSocket, socket.socket, int], codes: tuple[int, ...], words: str) -> None:
    """The error tells of the first entry that the kernel refused; one that is gone is not one."""
    conntrack, kernel, seq = played
    entries = pack([MADE["udp"][1], MADE["gre"][1], MADE["icmp"][1]])
    kernel.send(b"".join(answer(seq + i, code) for i, code in enumerate((*codes, 0)) if code or i == 3))
    with pytest.raises(KernelError, match=f"conntrack mark {words}"):
        conntrack.mark(entries, BIT)


def test_answers_of_nonsense_or_none(played: tuple[ConntrackSocket, socket.socket, int]) -> None:
    """What does not come is not waited for, what has not the form of an answer is said to have none."""
    conntrack, kernel, _ = played
    entry = pack([MADE["udp"][1]])
    with pytest.raises(KernelError, match="conntrack mark 1 entries: the kernel did not answer all of it"):
        conntrack.mark(entry, BIT)
    with pytest.raises(KernelError, match="conntrack list entries: the kernel did not answer"):
        conntrack.flows((A,))
    for type in (None, 99):
        conntrack._drain()  # before the next request it would throw away what this kernel says too early
        kernel.send(bytes(3) if type is None else message(type, conntrack._seq, b""))
        with pytest.raises(MalformedKernelData, match="conntrack unmark 1 entries: an answer"):
            conntrack.unmark(entry, BIT)
    conntrack._drain()
    kernel.send(entry_of(conntrack._seq, A, B)[:-4])
    with pytest.raises(MalformedKernelData, match=r"conntrack list entries of 10\.0\.0\.1: what the kernel sent"):
        conntrack.flows_at((A,))
    conntrack._drain()
    kernel.send(answer(conntrack._seq, errno.EBUSY))
    with pytest.raises(KernelError, match=f"conntrack list entries: {BUSY}"):
        conntrack.marked(BIT)
    for type in (None, 1 << 8 | 5):
        conntrack._drain()  # before the next request it would throw away what this kernel says too early
        kernel.send(bytes(3) if type is None else message(type, conntrack._seq, b"\2\0\0\0"))
        with pytest.raises(MalformedKernelData, match="conntrack count"):
            conntrack.count()


@pytest.mark.parametrize(
    "said",
    [lambda seq: answer(seq, errno.EBUSY), lambda seq: entry_of(seq, A, B)[:-4], lambda seq: answer(seq, 0)],
    ids=["refused", "torn", "no entry"],
)
def test_an_entry_asked_for_by_name_and_no_such_answer(
    played: tuple[ConntrackSocket, socket.socket, int], monkeypatch: pytest.MonkeyPatch, said: Callable[[int], bytes]
) -> None:
    """Then a dump is asked for, and what it says holds."""
    conntrack, kernel, seq = played
    monkeypatch.setattr(listing, "RELEASE", "6.18.0")
    lists(monkeypatch, NEW, NEW)
    # Draining after the refusal would take what is queued for later.
    conntrack._drain = lambda: None  # type: ignore[method-assign]
    kernel.send(said(seq))
    kernel.send(entry_of(seq + 1, A, B) + done(seq + 1))
    assert list(unpack(conntrack.flows((A,), entries=1))) == [Entry(89, Tuple(A, B), Tuple(B, A), flags=0)]


def test_an_entry_asked_for_by_name_and_no_answer(
    played: tuple[ConntrackSocket, socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is waited for; the dump, which is not answered either, says so."""
    monkeypatch.setattr(listing, "RELEASE", "6.18.0")
    lists(monkeypatch, NEW, NEW)
    with pytest.raises(KernelError, match="conntrack list entries: the kernel did not answer"):
        played[0].flows((A,), entries=1)
