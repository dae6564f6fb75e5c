"""Which logged packets become a line: the first of a flow at once, those that follow it together, and never more than so many lines.

A flow here is what a reader calls one: both addresses, protocol, and the destination's port or ICMP's type and code. Every packet is in
the end part of one line, or counted as left out; nothing is remembered of flows that have been quiet, nor of more than `most` of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from netpol.kernel.nflog import Packet

Key = tuple[bytes, bytes, int, int | tuple[int, int] | None]


class Flow:
    """A flow that has a line. `said` is for whoever writes it: what he said of the flow, in the lines of one that goes on."""

    __slots__ = ("last", "packets", "said", "until")

    def __init__(self, until: float, said: object = None) -> None:
        self.until, self.said = until, said
        self.packets = 0
        self.last: Packet | None = None


class Told(NamedTuple):
    """A line to be: the packet that it shows, how many packets it stands for, and whose they are."""

    packet: Packet
    packets: int
    flow: Flow


class Limiter:
    """See the module. Times are of any clock that only goes forward.

    interval -- seconds between two lines of one flow; rate, burst -- lines a second, and at once; most -- flows that are remembered.
    """

    def __init__(self, interval: float = 10.0, rate: float = 50.0, burst: int = 200, most: int = 10_000) -> None:
        self.left_out = 0
        """Packets that are part of no line."""
        self._interval, self._rate, self._burst, self._most = interval, rate, burst, most
        self._tokens, self._filled = float(burst), float("-inf")
        # In the order of `until`, for each lasts as long as the others.
        self._flows: OrderedDict[Key, Flow] = OrderedDict()

    def hear(self, packet: Packet, now: float) -> Told | None:
        """A packet came; the line that it is at once, if it is one."""
        port = packet.ports[1] if packet.ports is not None else packet.icmp
        key = (packet.source, packet.destination, packet.protocol, port)
        flow = self._flows.get(key)
        if flow is not None:
            flow.packets += 1
            flow.last = packet
            return None
        if len(self._flows) >= self._most or not self._may(now):
            self.left_out += 1
            return None
        flow = self._flows[key] = Flow(now + self._interval)
        return Told(packet, 1, flow)

    def due(self, now: float) -> list[Told]:
        """The lines that flows are due which went on since their last one."""
        lines: list[Told] = []
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if flow.until > now:
                break
            del self._flows[key]
            if flow.last is None:
                continue
            if self._may(now):
                again = self._flows[key] = Flow(now + self._interval, flow.said)
                lines.append(Told(flow.last, flow.packets, again))
            else:
                self.left_out += flow.packets
        return lines

    def next_due(self) -> float | None:
        """When `due` has to be asked next."""
        return next((flow.until for flow in self._flows.values()), None)

    def forget(self) -> None:
        """The end: what waits for its line is left out."""
        self.left_out += sum(flow.packets for flow in self._flows.values())
        self._flows.clear()

    def _may(self, now: float) -> bool:
        self._tokens = (
            min(float(self._burst), self._tokens + (now - self._filled) * self._rate) if self._tokens < self._burst else self._tokens
        )
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
