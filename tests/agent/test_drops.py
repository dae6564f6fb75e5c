"""Lines of the drop log, and the file they end in. On real packets: tests/test_drops_packets.py."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from netpol.agent.denials import Denial
from netpol.agent.drops import Sink, line_of
from netpol.agent.limiter import Told
from netpol.kernel.nflog import Packet
from netpol.model import ICMPV6, TCP, parse_address

A, B = parse_address("10.0.0.1"), parse_address("10.0.0.2")
AT = 1_700_000_000_000_042


def packet(**more: object) -> Packet:
    whole = Packet(AT, A, B, TCP, (4000, 80), None, 1, 2, False, False)
    return whole._replace(**more)  # type: ignore[arg-type]  # fields of a packet


DENIAL = Denial("policy", "ingress", ("x/p",), "x/a", "10.0.0.2")
BASE = {
    "time": "2023-11-14T22:13:20.000042Z",
    "reason": "policy",
    "source": "x/a",
    "destination": "10.0.0.2",
    "source_address": "10.0.0.1",
    "destination_address": "10.0.0.2",
    "protocol": "TCP",
    "direction": "ingress",
    "policies": ["x/p"],
}
PORTS = {"source_port": 4000, "port": 80}


@pytest.mark.parametrize(
    ("told", "denial", "line"),
    [
        pytest.param(Told(packet(), 1), DENIAL, BASE | PORTS, id="a flow"),
        pytest.param(Told(packet(), 7), DENIAL, BASE | PORTS | {"packets": 7}, id="more packets"),
        pytest.param(
            Told(packet(protocol=ICMPV6, ports=None, icmp=(128, 0)), 1),
            DENIAL,
            BASE | {"protocol": "ICMPv6", "icmp_type": 128, "icmp_code": 0},
            id="ICMP",
        ),
        pytest.param(Told(packet(protocol=47, ports=None), 1), DENIAL, BASE | {"protocol": "47"}, id="another protocol"),
        pytest.param(Told(packet(ports=None, fragment=True), 1), DENIAL, BASE | {"fragment": True}, id="a fragment"),
        pytest.param(
            Told(packet(), 1),
            Denial("cut", "egress", ("x/p",), "x/a", "10.0.0.2", is_reply=True),
            BASE | PORTS | {"reason": "cut", "direction": "egress", "reply": True},
            id="a reply",
        ),
    ],
)
def test_lines(told: Told, denial: Denial, line: dict[str, object]) -> None:
    """Each has what is known, and no field for what is not."""
    assert msgspec.json.decode(msgspec.json.encode(line_of(told, denial))) == line


@pytest.mark.parametrize("stamp", [0, (1 << 64) - 1, 200_000_000_000 * 1_000_000])
def test_a_time_that_cannot_be_is_now(stamp: int) -> None:
    """A packet without a time, or with one that no calendar has, was logged a moment ago."""
    found = datetime.fromisoformat(line_of(Told(packet(time=stamp), 1), DENIAL).time.replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - found) < timedelta(minutes=5)


def test_a_file_that_is_long_becomes_another(tmp_path: Path) -> None:
    """Lines are never parted, the last two files are kept, and one that somebody moved away is made anew."""
    file = tmp_path / "log"
    sink = Sink(file, most=10)
    for line in (b"1234\n", b"5678\n", b"9\n", b"abcdefgh\n"):
        sink.write(line)
    assert (file.read_bytes(), Path(f"{file}.1").read_bytes()) == (b"abcdefgh\n", b"9\n")
    file.rename(tmp_path / "taken")
    sink.write(b"x\n")
    assert file.read_bytes() == b"x\n"
    sink.write(b"a line that is longer than the file may be\n")
    assert file.read_bytes() == b"a line that is longer than the file may be\n"


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Without a path lines go there, at once."""
    Sink(None).write(b"x\n")
    assert capfdbinary.readouterr().out == b"x\n"
