"""The numbers of the agent under the names that monitoring reads: docs/metrics.md is their table.

`prometheus_client` does the text format, and is imported when somebody asks for the first time: an agent that nobody scrapes does not
pay for it. Label values come from lists in the code, never from objects: there are as many series in a large cluster as in a small one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from netpol import __version__
from netpol.agent.audit import KINDS
from netpol.agent.census import Census
from netpol.agent.loop import Loop
from netpol.agent.tally import BOUNDS, Histogram, kind_name

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Extra = Callable[[], Iterable["Metric"]]


class Exposition:
    """Makes the text of a scrape. census -- what the kernel holds now, None where nobody could say in time; extra -- more families."""

    def __init__(self, loop: Loop, census: Callable[[], Census | None], extra: Iterable[Extra] = ()) -> None:
        self._loop, self._census, self._extra = loop, census, tuple(extra)

    def text(self) -> tuple[bytes, str]:
        """The text and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """All families but those of the process."""
        yield from _of_the_loop(self._loop)
        census = self._census()
        if census is not None:
            yield from _of_the_kernel(census)
        for families in self._extra:
            yield from families()


def _of_the_loop(loop: Loop) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    tally, agenda = loop.tally, loop.agenda
    yield InfoMetricFamily("netpol_build", "What runs here.", {"version": __version__})
    yield GaugeMetricFamily("netpol_complete", "Whether all objects of every kind were said once: 1 or 0.", float(agenda.complete))
    yield GaugeMetricFamily("netpol_in_force", "Whether the kernel holds what it should, as far as is known: 1 or 0.", float(loop.in_force))
    yield GaugeMetricFamily("netpol_queue_depth", "Events that wait to be taken in.", loop.waiting)
    yield GaugeMetricFamily("netpol_loop_idle_seconds", "Since the loop last showed that it lives.", time.monotonic() - loop.last_pulse)

    events = CounterMetricFamily("netpol_events", "Events taken in.", labels=("kind", "type"))
    for (kind, word), count in sorted(tally.events.copy().items()):
        events.add_metric((kind, word), count)
    yield events

    yield _histogram("netpol_event_to_enforced_seconds", "From an event's arrival until the kernel was as it wants.", tally.enforced)
    yield _histogram("netpol_apply_duration_seconds", "What it took to make the kernel as wanted.", tally.applies)
    yield _histogram("netpol_audit_duration_seconds", "What it took to read the kernel back, compare and repair.", tally.audits)
    yield CounterMetricFamily("netpol_apply_failures", "Times that the kernel refused.", tally.refusals)
    yield CounterMetricFamily("netpol_system_calls", "System calls to program and to audit the kernel.", tally.system_calls)

    drift = CounterMetricFamily("netpol_drift", "Things of ours that somebody else had changed, repaired.", labels=("kind",))
    for kind in KINDS:
        drift.add_metric((kind,), tally.drift[kind])
    yield drift

    errors = CounterMetricFamily("netpol_object_errors", "Things in objects that could not be understood.", labels=("kind",))
    invalid = GaugeMetricFamily("netpol_invalid_objects", "Objects that cannot be understood whole, now.", labels=("kind",))
    now = Counter(kind_name(found) for found, _, _ in loop.errors.copy())
    for name in map(kind_name, loop.kinds):
        errors.add_metric((name,), tally.object_errors[name])
        invalid.add_metric((name,), now[name])
    yield errors
    yield invalid


def _of_the_kernel(census: Census) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, words, counts in (
        ("netpol_rules", "Rules of ours in the kernel.", census.rules),
        ("netpol_sets", "Sets of ours in the kernel.", census.sets),
        ("netpol_set_members", "Members of our sets in the kernel.", census.members),
    ):
        family = GaugeMetricFamily(name, words, labels=("family",))
        for number, count in sorted(counts.items()):
            family.add_metric((f"ipv{number}",), count)
        yield family
    denied = CounterMetricFamily("netpol_denied_packets", "Packets denied since the agent started.", labels=("direction", "reason"))
    for labels, count in sorted(census.denied.items()):
        denied.add_metric(labels, count)
    yield denied


def _histogram(name: str, words: str, found: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    counts, total = list(found.counts), found.total
    sums = [sum(counts[: place + 1]) for place in range(len(counts))]
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    return HistogramMetricFamily(name, words, buckets=list(zip(bounds, sums, strict=True)), sum_value=total)
