"""Messages to the kernel's route netlink, and what it says when it refuses one."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from netpol.errors import LabError
from netpol.lab import cables
from netpol.lab.cables import LOOPBACK, Wiring, acknowledgements, netlink
from netpol.model import parse_address


@pytest.fixture
def wiring() -> Iterator[Wiring]:
    gathered = Wiring()
    yield gathered
    gathered.close()


def test_the_first_refusal_is_named_and_the_rest_is_done(netns: int, wiring: Wiring) -> None:
    """The error says which step of the batch it was; the steps around it have happened, and the next batch is a new one."""
    wiring.address(LOOPBACK, parse_address("10.0.0.1"))
    wiring.address(999, parse_address("10.0.0.2"))
    wiring.route(998, parse_address("10.0.0.3"))
    wiring.up(LOOPBACK, arp=True)
    with netlink() as through:
        with pytest.raises(LabError, match=r"give address 10\.0\.0\.2: No such device"):
            wiring.send(through)
        wiring.send(through)
        wiring.address(LOOPBACK, parse_address("10.0.0.1"))
        with pytest.raises(LabError, match=r"give address 10\.0\.0\.1: File exists"):
            wiring.send(through)
    assert "10.0.0.1" in Path("/proc/thread-self/net/fib_trie").read_text()


@pytest.mark.parametrize(("user", "advice"), [(0, r"CAP_NET_ADMIN is missing \(in a container: --privileged\)"), (1000, "run as root")])
def test_who_may_not_is_told_what_helps(wiring: Wiring, monkeypatch: pytest.MonkeyPatch, user: int, advice: str) -> None:
    """Root has lost a power; everybody else never had it."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(cables, "acknowledgements", lambda data: [(number, errno.EPERM) for number, _ in acknowledgements(data)])
    wiring.up(LOOPBACK, arp=True)
    with netlink() as through, pytest.raises(LabError, match=f": {os.strerror(errno.EPERM)}: {advice}$"):
        wiring.send(through)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -17), [(7, 17)], id="a refusal"),
        pytest.param(
            struct.pack("=IHHIIi", 17, 16, 0, 6, 0, 0) + struct.pack("=IHHIIi", 20, 2, 0, 7, 0, 0), [(7, 0)], id="after an answer, padded"
        ),
    ],
)
def test_acknowledgements(data: bytes, found: list[tuple[int, int]]) -> None:
    """Sequence number and error of each, answers passed over."""
    assert acknowledgements(data) == found


@pytest.mark.parametrize("length", [0, 15, 21])
def test_a_message_cut_short(length: int) -> None:
    """A length that the datagram does not hold is an error, not an endless loop or a wrong number."""
    with pytest.raises(LabError, match="cut short"):
        acknowledgements(struct.pack("=IHHIIi", length, 2, 0, 7, 0, 0))
