"""Which packets become lines: decided from packets and times alone."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from netpol.agent.limiter import Limiter, Told
from netpol.kernel.nflog import Packet
from netpol.model import ICMP, UDP


def packet(port: int = 80, source: int = 1, time: int = 0, icmp: tuple[int, int] | None = None) -> Packet:
    ports = (4000 + time, port) if icmp is None else None
    return Packet(time, bytes((10, 0, 0, source)), bytes((10, 0, 0, 9)), UDP if icmp is None else ICMP, ports, icmp, 0, 0, False, False)


def shown(told: Told | None) -> tuple[Packet, int]:
    """The packet and how many there were."""
    assert told is not None
    return told.packet, told.packets


def test_the_first_at_once_and_the_others_together() -> None:
    """A flow is a line; what follows is one more after the interval, with the last packet of it; then it begins anew."""
    limiter = Limiter(interval=10)
    assert shown(limiter.hear(packet(time=1), 0.0)) == (packet(time=1), 1)
    assert [limiter.hear(packet(time=n), 1.0) for n in (2, 3)] == [None, None]
    assert limiter.next_due() == 10.0
    assert limiter.due(9.9) == []
    assert [shown(told) for told in limiter.due(10.0)] == [(packet(time=3), 2)]
    assert limiter.hear(packet(time=4), 11.0) is None
    assert [shown(told) for told in limiter.due(20.0)] == [(packet(time=4), 1)]
    assert limiter.due(30.0) == []
    assert limiter.next_due() is None
    assert shown(limiter.hear(packet(time=5), 31.0)) == (packet(time=5), 1)
    assert limiter.left_out == 0


def test_what_was_said_of_a_flow_is_kept_as_long_as_it_goes_on() -> None:
    """From line to line, and no longer."""
    limiter = Limiter(interval=10)
    first = limiter.hear(packet(), 0.0)
    assert first is not None
    assert first.flow.said is None
    first.flow.said = "one"
    limiter.hear(packet(time=1), 1.0)
    (second,) = limiter.due(10.0)
    assert second.flow.said == "one"
    second.flow.said = "two"
    limiter.hear(packet(time=2), 11.0)
    assert [told.flow.said for told in limiter.due(20.0)] == ["two"]
    assert limiter.due(30.0) == []
    again = limiter.hear(packet(), 31.0)
    assert again is not None
    assert again.flow.said is None


def test_what_makes_another_flow() -> None:
    """The destination's port, an address, ICMP's type and code; not the source's port."""
    limiter = Limiter()
    others = [packet(81), packet(80, 2), packet(icmp=(8, 0)), packet(icmp=(3, 0)), packet(icmp=(3, 1))]
    assert limiter.hear(packet(), 0.0) is not None
    assert limiter.hear(packet(time=9), 0.0) is None
    assert all(limiter.hear(one, 0.0) is not None for one in others)


def test_all_together_have_a_rate() -> None:
    """A burst, then so many a second; what is too much is left out and not remembered."""
    limiter = Limiter(rate=2.0, burst=3)
    assert [limiter.hear(packet(port), 0.0) is not None for port in range(5)] == [True] * 3 + [False] * 2
    assert limiter.left_out == 2
    assert [limiter.hear(packet(port), 1.0) is not None for port in range(10, 13)] == [True, True, False]
    assert [limiter.hear(packet(port), 100.0) is not None for port in range(20, 24)] == [True] * 3 + [False]


def test_no_more_flows_than_memory() -> None:
    """Those beyond the most are left out; places become free."""
    limiter = Limiter(interval=1.0, burst=100, most=2)
    assert [limiter.hear(packet(port), 0.0) is not None for port in range(3)] == [True, True, False]
    assert limiter.due(1.0) == []
    assert limiter.hear(packet(3), 1.0) is not None


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 3), st.booleans()), max_size=60), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_every_packet_is_in_one_line_or_left_out(steps: list[tuple[int, float, bool]], burst: int, most: int) -> None:
    """Whatever comes whenever; and no flow has two lines within its interval, nor all of them more than the rate."""
    limiter = Limiter(interval=2.0, rate=1.0, burst=burst, most=most)
    now, heard, lines = 0.0, 0, list[tuple[float, Told]]()
    for port, pause, ask in steps:
        now += pause
        if ask:
            lines += [(now, told) for told in limiter.due(now)]
            continue
        heard += 1
        told = limiter.hear(packet(port), now)
        lines += [(now, told)] if told is not None else []
    limiter.forget()
    assert sum(told.packets for _, told in lines) + limiter.left_out == heard
    assert len(lines) <= burst + now * 1.0 + 1e-6
    for port in range(6):
        times = [at for at, told in lines if told.packet.ports == (4000, port)]
        assert all(later - earlier >= 2.0 for earlier, later in itertools.pairwise(times))
