"""The numbers of the agent under the names that monitoring reads: docs/metrics.md is their table.

`prometheus_client` does the text format, and is imported when somebody asks for the first time: an agent that nobody scrapes does not
pay for it. Label values come from lists in the code, never from objects: there are as many series in a large cluster as in a small one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from netpol import __version__
from netpol.agent.audit import KINDS
from netpol.agent.census import Census
from netpol.agent.loop import Loop
from netpol.agent.tally import BOUNDS, Histogram, kind_name
from netpol.kube.reflector import Phase, Reason, Reflector

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Exposition:
    """Makes the text of a scrape.

    census -- what the kernel holds now, None where nobody could say in time; reflectors -- what follows an API server.
    """

    def __init__(self, loop: Loop, census: Callable[[], Census | None], reflectors: Sequence[Reflector] = ()) -> None:
        self._loop, self._census, self._reflectors = loop, census, reflectors

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
        yield from _of_the_sources(self._reflectors, time.monotonic())


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

    kernel = loop.enforcer.kernel
    hold = kernel.longest_hold
    yield GaugeMetricFamily("netpol_lock_longest_hold_seconds", "The longest that iptables' lock was held since the start.", hold)
    yield CounterMetricFamily("netpol_lost_counters", "Times that a table was written and its counters were lost.", kernel.lost_counters)

    flows = CounterMetricFamily("netpol_cut_flows", "Running flows that were cut, and given back.", labels=("action",))
    flows.add_metric(("cut",), tally.cut)
    flows.add_metric(("given_back",), tally.given_back)
    yield flows
    yield _histogram("netpol_cut_duration_seconds", "What it took to look at running flows once.", tally.sweeps)
    yield CounterMetricFamily("netpol_cut_failures", "Times that running flows could not be looked at.", tally.sweep_failures)

    drift = CounterMetricFamily("netpol_drift", "Things of ours that somebody else had changed.", labels=("kind",))
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
    denied = CounterMetricFamily("netpol_denied_packets", "Packets denied since somebody first asked.", labels=("direction", "reason"))
    for labels, count in sorted(census.denied.items()):
        denied.add_metric(labels, count)
    yield denied


def _of_the_sources(reflectors: Sequence[Reflector], now: float) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    requests = CounterMetricFamily("netpol_watch_requests", "Requests for objects, by what they were to give.", labels=("kind", "phase"))
    restarts = CounterMetricFamily("netpol_watch_restarts", "Requests that were not the last one, by why.", labels=("kind", "reason"))
    syncs = CounterMetricFamily("netpol_watch_syncs", "Times that all objects were said.", labels=("kind",))
    size = CounterMetricFamily("netpol_watch_received_bytes", "What the API server sent.", labels=("kind",))
    unreadable = CounterMetricFamily("netpol_watch_unreadable_objects", "Objects of which nothing new could be read.", labels=("kind",))
    silence = GaugeMetricFamily("netpol_watch_silence_seconds", "Since the API server last said anything.", labels=("kind",))
    for reflector in reflectors:
        name, figures = kind_name(reflector.resource.kind), reflector.figures
        for phase in get_args(Phase):
            requests.add_metric((name, phase), figures.requests[phase])
        for reason in get_args(Reason):
            restarts.add_metric((name, reason), figures.restarts[reason])
        syncs.add_metric((name,), figures.syncs)
        size.add_metric((name,), figures.bytes)
        unreadable.add_metric((name,), figures.unreadable)
        if figures.last_contact is not None:
            silence.add_metric((name,), now - figures.last_contact)
    yield from (requests, restarts, syncs, size, unreadable, silence)


def _histogram(name: str, words: str, found: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    counts, total = list(found.counts), found.total
    sums = [sum(counts[: place + 1]) for place in range(len(counts))]
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    return HistogramMetricFamily(name, words, buckets=list(zip(bounds, sums, strict=True)), sum_value=total)
