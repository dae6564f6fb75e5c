"""What becomes of a denied packet, on the wire: silence or an answer, and the log before it."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from netpol.lab import NODE
from netpol.model import FAMILIES, ICMP, TCP, UDP, NumberedPort, PolicyRule, format_address
from netpol.rules.compile import Settings
from netpol.rules.ruleset import DENY
from tests.flows import wait_for
from tests.test_semantics_packets import A4, B4, B6, World, isolate, world


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


ONE_PORT = isolate("p", "b", ingress=(PolicyRule(ports=(NumberedPort(TCP, 80, 80),)),), egress=())


@pytest.mark.parametrize(
    ("wish", "outcome"),
    [
        pytest.param(Settings(), "silent", id="drop"),
        pytest.param(Settings(table="filter"), "silent", id="drop in filter"),
        pytest.param(Settings(table="filter", deny="reject"), "refused", id="reject"),
    ],
)
def test_what_a_denied_sender_hears(wish: Settings, outcome: str) -> None:
    """TCP, UDP and ICMP, both families, both directions; who is allowed, and the node, notice nothing. Each one is counted."""
    with world(wish) as w:
        w.put(ONE_PORT)
        denied = (("a", B4, TCP, 81), ("a", B6, TCP, 81), ("a", B4, UDP, 80), ("a", B6, UDP, 80), ("a", B4, ICMP, 0), ("b", A4, TCP, 80))
        for probe in denied:
            before = dropped(w)
            assert w.probe(*probe).outcome == outcome, probe
            assert dropped(w) > before
        before = dropped(w)
        assert [w.probe("a", address).outcome for address in (B4, B6)] == ["reached", "reached"]
        assert w.probe(NODE, B4, UDP).outcome == "reached"
        assert dropped(w) == before


def dropped(w: World) -> int:
    with w.lab.entered():
        return w.kernel.dropped()


def counts(w: World, family: int) -> list[int]:
    with w.lab.entered():
        return [packets for packets, _ in w.kernel.counters(4 if family == 4 else 6)[DENY]]


def test_a_stray_segment_of_an_allowed_connection_is_not_answered() -> None:
    """Connection tracking does not know it, so it is judged as a new one, and denied: a reset would end the connection."""
    with world(Settings(table="filter", deny="reject")) as w:
        w.put(isolate("p", "b", ingress=()))
        with w.lab.entered("a"):
            server = socket.create_server((format_address(A4), 5000))
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with w.lab.entered("b"):
            client = socket.create_connection((format_address(A4), 5000), 10)
        with server, raw, client:
            served, (_, port) = server.accept()
            with served:
                # SYN and FIN: which sequence numbers it would have to have to be none of the connection's is nobody's to know.
                head = struct.pack("!HHIIBBHHH", 5000, port, 1, 1, 5 << 4, 0x03, 1000, 0, 0)
                total = sum(struct.unpack("!16H", A4 + B4 + struct.pack("!HH", TCP, len(head)) + head))
                total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
                raw.sendto(head[:16] + struct.pack("!H", total) + head[18:], (format_address(B4), 0))
                wait_for(lambda: counts(w, 4)[0] > 0)
                assert counts(w, 4) == [1, 0, 0]
                served.sendall(b"x")
                assert client.recv(1) == b"x"


@pytest.mark.parametrize("wish", [Settings(log_group=7), Settings(table="filter", deny="reject", log_group=7)], ids=["drop", "reject"])
def test_a_flood_is_logged_in_part(wish: Settings) -> None:
    """Of 400 denied packets at once, all are dropped and some are logged: at least a burst, and by far not all. One more pair is logged. By
    the last rule that logs: the first two are about flows that are known."""
    with world(wish) as w:
        w.put(ONE_PORT)
        flood(w, "a", 400)
        wait_for(lambda: dropped(w) >= 400)
        known, back, logged = counts(w, 4)[:3]
        assert (known, back) == (0, 0)
        assert 20 <= logged <= 200
        assert w.probe("b", A4).outcome != "reached"
        assert counts(w, 4)[2] > logged


def test_no_group_no_log() -> None:
    """There is no other rule in NETPOL-DENY than its end, and what IPv6 cannot do without."""
    with world() as w:
        w.put(ONE_PORT)
        flood(w, "a", 10)
        wait_for(lambda: dropped(w) >= 10)
        assert [len(counts(w, family)) for family in FAMILIES] == [1, 10]


def flood(w: World, host: str, count: int) -> None:
    with w.lab.entered(host):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(count):
            sender.sendto(b"x", (format_address(B4), 80))
