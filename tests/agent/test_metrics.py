"""What a scrape says: parsed by prometheus_client's own parser, against docs/metrics.md, and against packets that were denied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from netpol.agent.agenda import Pace
from netpol.agent.census import Census, CensusTaker
from netpol.agent.enforcer import Enforcer
from netpol.agent.loop import Loop
from netpol.agent.metrics import Exposition
from netpol.agent.tally import Histogram
from netpol.errors import InvalidObject
from netpol.kernel.apply import Kernel
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.kube.reflector import POLICIES, Reflector
from netpol.lab import Host, Lab, Probe
from netpol.model import EVERYTHING, TCP, Namespace, Node, Pod, Policy, parse_address, parse_network
from netpol.rules.compile import Settings
from tests.agent.stage import OBJECTS
from tests.referees import run

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
KINDS = (Namespace, Node, Pod, Policy)
A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
EVENTS: tuple[Event, ...] = (
    Put(Namespace("x")),
    Put(Pod("x", "a", (), "n", (A,))),
    Put(Pod("x", "b", (), "n", (B,))),
    Put(Policy("x", "p", EVERYTHING, (), None), (InvalidObject("NetworkPolicy x/p", "spec.ingress[0]", "is broken"),)),
    Gone(Policy, "q", "x"),
    *(Synced(kind) for kind in KINDS),
)


@pytest.fixture
def loop(netns: int) -> Iterator[Loop]:
    """A loop that has done something of each kind of its work."""
    with Kernel() as kernel:
        now = [0.0]
        loop = Loop(Enforcer(kernel, "n"), KINDS, pace=Pace(audit=1.0), clock=lambda: now[0], used=lambda: 0.0, jitter=lambda: 1.0)
        loop.hear(*EVENTS)
        for turn in range(30):
            now[0] += 0.1
            while loop.step():
                pass
            if turn == 15:
                run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
        yield loop


def scraped(loop: Loop) -> dict[str, Metric]:
    """The families of a scrape by the name that is documented: a counter's has its _total."""
    taker = CensusTaker()
    reflector = Reflector(POLICIES, clock=lambda: 1.0, random=lambda: 1.0)
    reflector.next()
    reflector.receive(b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1"}}}\n')
    text, content_type = Exposition(loop, lambda: taker.look(loop.enforcer), [reflector]).text()
    assert content_type.startswith("text/plain")
    families = {}
    for family in text_string_to_metric_families(text.decode()):
        families[family.name + ("_total" if family.type == "counter" else "")] = family
    return families


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """The table of docs/metrics.md: name -> type and labels."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", DOCUMENT.read_text(), re.M)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_what_is_documented_is_what_there_is(loop: Loop) -> None:
    """Names, types and labels, both ways; every family has a help text."""
    found = {
        name: (family.type, frozenset(label for sample in family.samples for label in sample.labels) - {"le"})
        for name, family in scraped(loop).items()
        if name.startswith("netpol_")
    }
    assert found == documented()
    assert all(family.documentation for family in scraped(loop).values())


def described() -> dict[tuple[str, str], frozenset[str]]:
    """The table of label values: (label, what it is of) -> values. A row without a label goes on with the one above."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    last = ("", "")
    table = DOCUMENT.read_text().partition("## Values of labels")[2]
    for label, of, values in re.findall(r"^\| (`\w+`)? ?\| (.*?) ?\| (`.*?) \|", table, re.M):
        last = (label.strip("`"), of.strip("`")) if label else last
        found[last] = found.get(last, frozenset()) | frozenset(re.findall(r"`(\w+)`", values))
    return found


def test_the_values_of_labels_are_those_that_are_documented(loop: Loop) -> None:
    """Each label of each family has values of its row only, and those of lists have all of them at once."""
    rows = described()
    seen: dict[tuple[str, str], set[str]] = {}
    for name, family in scraped(loop).items():
        for sample in family.samples:
            for label in sample.labels.keys() - {"le", "version"}:
                (row,) = [key for key in rows if key == (label, name)] or [key for key in rows if key[0] == label and " " in key[1]]
                seen.setdefault(row, set()).add(sample.labels[label])
    assert seen == rows


def test_the_process_is_there(loop: Loop) -> None:
    """Each name that the document gives, and a resident memory that a Python process can have."""
    names = re.findall(r"`(process_\w+)`", DOCUMENT.read_text())
    families = scraped(loop)
    assert len(names) == 6
    assert set(names) <= families.keys()
    assert 1e6 < families["process_resident_memory_bytes"].samples[0].value < 1e10


def test_names_follow_the_conventions(loop: Loop) -> None:
    """Lower case with the unit last; a histogram ends with +Inf, which equals its count."""
    for name, family in scraped(loop).items():
        assert re.fullmatch(r"(netpol|process)_[a-z_]+", name)
        if family.type == "histogram":
            assert name.endswith("_seconds")
            buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
            (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
            assert buckets["+Inf"] == count
            assert sorted(buckets.values()) == list(buckets.values())


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    (found,) = [sample.value for sample in families[name].samples if labels.items() <= sample.labels.items() and sample.name == name]
    return float(found)


def test_values(loop: Loop) -> None:
    """Of a loop that took in a few events, wrote once, and repaired once."""
    families = scraped(loop)
    assert value(families, "netpol_complete") == value(families, "netpol_in_force") == 1.0
    assert value(families, "netpol_events_total", kind="Pod", type="put") == 2.0
    assert value(families, "netpol_events_total", kind="NetworkPolicy", type="gone") == 1.0
    assert value(families, "netpol_object_errors_total", kind="NetworkPolicy") == 1.0
    assert value(families, "netpol_object_errors_total", kind="Pod") == 0.0
    assert value(families, "netpol_invalid_objects", kind="NetworkPolicy") == 1.0
    assert value(families, "netpol_drift_total", kind="jump_deleted") == 1.0
    assert value(families, "netpol_drift_total", kind="chain_edited") == 0.0
    assert value(families, "netpol_system_calls_total") > 0.0
    assert 0.0 < value(families, "netpol_lock_longest_hold_seconds") < 60.0
    assert value(families, "netpol_lost_counters_total") == 0.0
    assert value(families, "netpol_watch_requests_total", kind="NetworkPolicy", phase="sync") == 1.0
    assert value(families, "netpol_watch_restarts_total", kind="NetworkPolicy", reason="rejected") == 1.0
    assert value(families, "netpol_watch_received_bytes_total", kind="NetworkPolicy") > 0.0
    lines = [line for line in run("iptables-legacy-save", "-t", "mangle").splitlines() if line.startswith("-A NETPOL")]
    assert value(families, "netpol_rules", family="ipv4") == len(lines)


def test_durations_are_those_that_were_tallied(loop: Loop) -> None:
    """Each histogram is of its own kind of work: as often as that was done, and as long."""
    tally = loop.tally
    kinds = {
        "event_to_enforced": tally.enforced,
        "apply_duration": tally.applies,
        "audit_duration": tally.audits,
        "cut_duration": tally.sweeps,
    }
    for number, kept in enumerate(kinds.values()):
        for _ in range(number + 3):
            kept.observe(2.0**number)
    families = scraped(loop)
    for name, kept in kinds.items():
        samples = {sample.name: sample.value for sample in families[f"netpol_{name}_seconds"].samples}
        assert samples[f"netpol_{name}_seconds_count"] == sum(kept.counts)
        assert samples[f"netpol_{name}_seconds_sum"] == kept.total
    assert len({kept.total for kept in kinds.values()}) == len({sum(kept.counts) for kept in kinds.values()}) == 4


def test_the_queue_is_what_was_heard_and_not_taken_in(loop: Loop) -> None:
    """Nothing while the loop keeps up, and then as many events as came."""
    assert value(scraped(loop), "netpol_queue_depth") == 0.0
    loop.hear(*EVENTS[:3])
    assert value(scraped(loop), "netpol_queue_depth") == 3.0


def test_a_kernel_that_cannot_be_asked_leaves_the_rest(loop: Loop) -> None:
    """Without an answer those families are missing, and no other."""
    text, _ = Exposition(loop, lambda: None).text()
    assert "netpol_rules" not in text.decode()
    assert "netpol_in_force 1.0" in text.decode()


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        pytest.param(0.0, 0, id="none"),
        pytest.param(0.0005, 0, id="on a bound"),
        pytest.param(0.00051, 1, id="above"),
        pytest.param(31.0, 15, id="more than all"),
    ],
)
def test_a_duration_falls_into_one_range(seconds: float, place: int) -> None:
    """Bounds belong to the range that ends there, as Prometheus has it."""
    histogram = Histogram()
    histogram.observe(seconds)
    assert [at for at, count in enumerate(histogram.counts) if count] == [place]


def test_denied_packets_are_counted_by_side() -> None:
    """Real packets: those that ingress denied, those that egress denied; counters that begin anew take nothing away."""
    hosts = (Host("a", (A,)), Host("b", (B,), ((TCP, 80),)))
    with Lab(hosts) as lab, lab.entered(), Kernel() as kernel:
        enforcer = Enforcer(kernel, "n")
        enforcer.put(*(event.object for event in EVENTS if isinstance(event, Put)))
        enforcer.enforce()
        taker = CensusTaker()
        probe = Probe("a", B, TCP, 80, A)

        def denied() -> Census:
            lab.probe([probe], dropped=kernel.dropped)
            return taker.look(enforcer)

        taker.look(enforcer)
        first = denied().denied
        assert first["ingress", "policy"] > 0
        assert first["egress", "policy"] == first["both", "cut"] == 0
        enforcer.put(Policy("x", "p", EVERYTHING, None, ()))
        enforcer.enforce()
        second = denied().denied
        assert second["ingress", "policy"] == first["ingress", "policy"]
        assert second["egress", "policy"] > 0
        run("iptables-legacy", "-w", "-t", "mangle", "-Z")
        assert taker.look(enforcer).denied == second
        third = denied().denied
        assert third["egress", "policy"] > second["egress", "policy"]


def test_a_rule_that_moves_in_its_chain_is_counted_once(netns: int) -> None:
    """Pods that come before it in the tree's first chain: what unknown addresses were denied does not grow by that."""
    with Kernel() as kernel:
        enforcer = Enforcer(kernel, "n", Settings(unknown_pods="deny", pod_cidrs=(parse_network("10.0.0.0/24"),)))
        enforcer.put(*OBJECTS)
        enforcer.enforce()
        taker = CensusTaker()
        taker.look(enforcer)
        for place in ("1", "4"):
            rules = run("iptables-legacy", "-w", "-t", "mangle", "-S", "NETPOL-INGRESS").splitlines()
            last = len(rules) - 1
            counted = ("-d", "10.0.0.0/24", "-g", "NETPOL-DENY", "-c", f"{place}000", "60000")
            run("iptables-legacy", "-w", "-t", "mangle", "-R", "NETPOL-INGRESS", str(last), *counted)
            assert taker.look(enforcer).denied["ingress", "unknown_pod"] == int(place) * 1000
            enforcer.put(Pod("x", f"p{place}", (), "n", (parse_address(f"10.0.0.{place}0"),)))
            enforcer.enforce()
            assert run("iptables-legacy", "-w", "-t", "mangle", "-S", "NETPOL-INGRESS").splitlines()[last] != rules[last]
            assert taker.look(enforcer).denied["ingress", "unknown_pod"] == int(place) * 1000
