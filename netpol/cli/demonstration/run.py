"""A scene, played: everything tried before any rule, the rules programmed, everything tried again, the kernel read back.

The specification (`verdict`) says what is expected; the wire says what happens; the interpreter says which rule it was; the kernel's
counters say whether that rule saw the packets. What the four do not agree on is in the report, never smoothed over.

The caller brings the running lab. The thread is in the node's namespace only inside this module's calls.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct

from netpol.cli.demonstration.scene import Connection, Scene
from netpol.cli.demonstration.trace import Counted, Decider, Trace, trace
from netpol.errors import LabError
from netpol.kernel.apply import Kernel
from netpol.lab import NODE, Lab
from netpol.model import PROTOCOL_NAMES
from netpol.policy.verdict import Verdict, verdict
from netpol.rules.compile import compiled
from netpol.rules.diff import diff
from netpol.rules.ruleset import Ruleset
from netpol.rules.text import rule_text

Say = Callable[[str], None]

FREE = "no policy selects either end"


def outcome(reached: bool) -> str:
    """The one pair of words for what is expected and what is observed."""
    return "reached" if reached else "dropped"


class Row(Struct, frozen=True):
    """One flow: whether the specification lets it pass (`said`), whether it reached its destination, and its way through the rules."""

    connection: Connection
    said: Verdict
    reached: bool
    trace: Trace

    @property
    def agrees(self) -> bool:
        return self.said.allowed == self.reached


class Report(Struct, frozen=True):
    """Everything that is shown.

    held -- our part of the kernel as it was read back; counted -- packets of its rules after all flows; milliseconds -- by phase:
    lab, before, compile, program, after; system_calls -- those of programming; objections -- what did not agree beside the flows.
    """

    rows: tuple[Row, ...]
    held: Ruleset
    counted: Counted
    milliseconds: Mapping[str, float]
    system_calls: int
    objections: tuple[str, ...]

    @property
    def agree(self) -> bool:
        return not self.objections and all(row.agrees for row in self.rows)

    def packets(self, decider: Decider) -> int:
        """What a rule has counted, over all flows."""
        return self.counted.get((decider.family, decider.chain, decider.rule), 0)


class Clock:
    """Milliseconds of the phases, by name."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.milliseconds[name] = round((time.perf_counter() - start) * 1e3, 3)


def play(scene: Scene, lab: Lab, clock: Clock, say: Say) -> Report:
    """Plays a scene in its lab. LabError where a flow does not arrive though nothing forbids it; KernelError as the kernel says."""
    count = len(scene.connections)
    say(f"trying {count} flows before any rule")
    with clock.phase("before"):
        _before(scene, lab)
    say("programming the kernel")
    with lab.entered():
        kernel = Kernel()
    with kernel:
        with clock.phase("compile"):
            wanted = compiled(scene.cluster, NODE)
        with lab.entered():
            steps = diff(wanted, kernel.read())
            calls = kernel.calls
            with clock.phase("program"):
                kernel.apply(steps)
            calls = kernel.calls - calls
        say(f"trying the {count} flows again")
        with clock.phase("after"):
            answers = lab.probe([one.probe for one in scene.connections], dropped=lambda: _dropped(lab, kernel))
        with lab.entered():
            held = kernel.read()
            counted = _counted(kernel, held)
    said = [verdict(scene.cluster, one.flow) for one in scene.connections]
    rows = tuple(
        # Whoever refuses has been reached: a firewall of ours drops and never answers.
        Row(one, word, answer.outcome != "silent", trace(wanted, one.flow, word))
        for one, word, answer in zip(scene.connections, said, answers, strict=True)
    )
    objections = (*_drift(wanted, held), *_uncounted(rows, counted))
    return Report(rows, held, counted, clock.milliseconds, calls, objections)


def _before(scene: Scene, lab: Lab) -> None:
    answers = lab.probe([one.probe for one in scene.connections])
    for one, answer in zip(scene.connections, answers, strict=True):
        if answer.outcome != "reached":
            flow = f"{one.source} to {one.destination}, {PROTOCOL_NAMES[one.flow.protocol]} port {one.flow.port}"
            raise LabError(f"{flow} is {answer.outcome} before any rule was made: the packets do not travel here, with or without policies")


def _dropped(lab: Lab, kernel: Kernel) -> int:
    with lab.entered():
        return kernel.dropped()


def _counted(kernel: Kernel, held: Ruleset) -> Counted:
    return {
        (family, name, rule): packets
        for family, chains in held.chains.items()
        for name, counters in kernel.counters(family).items()
        for rule, (packets, _) in zip(chains[name].rules, counters, strict=True)
    }


def _drift(wanted: Ruleset, held: Ruleset) -> Iterator[str]:
    steps = diff(wanted, held)
    if steps:
        yield f"the kernel does not hold what was written to it: {', '.join(type(step).__name__ for step in steps)} would be needed"


def _uncounted(rows: tuple[Row, ...], counted: Counted) -> Iterator[str]:
    """Rules that saw fewer packets than the flows that met them sent: something else decided those."""
    met = Counter(hit for row in rows for hit in row.trace.hits)
    for (family, chain, rule), least in met.items():
        packets = counted.get((family, chain, rule), 0)
        if packets < least:
            yield f"IPv{family}: a rule of {chain} counted {packets} packets, though {least} flows meet it: {rule_text(rule, family)}"


def record(report: Report) -> str:
    """A report as JSON: agree, flows, milliseconds by phase, system_calls of programming."""
    flows = [
        {
            "from": row.connection.source,
            "to": row.connection.destination,
            "protocol": PROTOCOL_NAMES[row.connection.flow.protocol],
            "port": row.connection.flow.port,
            "expected": outcome(row.said.allowed),
            "observed": outcome(row.reached),
            "decided_by": "; ".join(_decided_by(report, decider) for decider in row.trace.deciders) or FREE,
        }
        for row in report.rows
    ]
    return json.dumps({"agree": report.agree, "flows": flows, "milliseconds": report.milliseconds, "system_calls": report.system_calls})


def _decided_by(report: Report, decider: Decider) -> str:
    return f"{decider.why} ({decider.chain} rule {decider.number}, {report.packets(decider)} packets)"
