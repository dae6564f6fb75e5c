"""`netpol apply`: a host without Kubernetes; manifests on disk are the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from netpol.cli import options
from netpol.cli.counted import counted

if TYPE_CHECKING:
    from netpol.agent.enforcer import Enforcer, Report
    from netpol.kube.manifests import Stamp
    from netpol.model import Object
    from netpol.rules.compile import Settings


# How long the last state may take to be saved when the command ends.
SAVING = 1.0  # seconds


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="PATH", help="Manifests: a file, a directory, or - (repeatable)."
)
@click.option("--node", default=None, help="This node's name.  [default: the only one that the pods name]")
@options.settings
@options.cut_flows
@options.grace
@click.option("--watch", is_flag=True, help="Stay, and follow the files as they change, until TERM or INT; the rules stay in force.")
@options.state
def apply(
    files: tuple[str, ...], node: str | None, settings: Settings, cut_flows: bool, grace: float, watch: bool, state: str | None
) -> None:
    """Program this host's kernel for the pods that the manifests put on this node.

    What is there already is adopted: only what differs is changed, without a moment in which neither the old nor the new holds. Bad
    manifests change nothing. `netpol cleanup` takes it all away again.
    """
    import time
    from pathlib import Path

    from netpol.agent.enforcer import Enforcer
    from netpol.agent.files import read
    from netpol.agent.saved import save
    from netpol.cli import isolation
    from netpol.cli.files import node_name
    from netpol.kernel.apply import Kernel
    from netpol.kube.manifests import STANDARD_INPUT

    if watch and STANDARD_INPUT in files:
        raise click.UsageError("--watch follows files, and standard input is none: it could be read once only")
    objects, seen = read(files)
    with Kernel(settings.table) as kernel:
        enforcer = Enforcer(kernel, node_name(objects, node), settings, grace)
        if watch:
            _follow(enforcer, objects, files, seen, state, cut_flows)
            return
        enforcer.replace(objects)
        report = enforcer.enforce()
        if report.grace:
            click.echo(_warning(report), err=True)
            time.sleep(report.grace)
            report = enforcer.enforce()
        try:
            _sweep(enforcer, cut_flows)
            click.echo(_told(report))
            isolation.tell(enforcer.state)
        finally:
            # It is in force, whether or not anybody reads so.
            if state is not None:
                save(Path(state), enforcer.state.wanted())


def _follow(enforcer: Enforcer, objects: Sequence[Object], files: Sequence[str], seen: Stamp, state: str | None, cut_flows: bool) -> None:
    """Until a signal comes. Files that cannot be understood, and a kernel that refuses, are reported; what is in force stays.

    seen -- the stamp of the files when they gave these objects.
    """
    import random
    import sys
    from pathlib import Path

    from netpol.agent.audit import Drift
    from netpol.agent.cutting import Cutting
    from netpol.agent.files import KINDS, FileSource
    from netpol.agent.logs import speaker
    from netpol.agent.loop import Listener, Loop
    from netpol.agent.saver import Saver
    from netpol.agent.service import heed_signals, leave, run_until_signal
    from netpol.cli import isolation
    from netpol.errors import NetpolError, said

    ends = heed_signals()
    # Enforcement neither waits for whoever reads this nor ends with him.
    tell, warn = speaker(sys.stdout), speaker(sys.stderr)

    def complain(error: Exception) -> None:
        warn(said(error))

    class Words(Listener):
        isolated = ""  # what was said of that last

        def applied(self, report: Report) -> None:
            cutting.changed(report)
            if report.grace:
                warn(_warning(report))
                return
            tell(_told(report))
            text, is_mistake = isolation.words(enforcer.state)
            if text != self.isolated:
                self.isolated = text
                (warn if is_mistake else tell)(text)

        def refused(self, error: NetpolError) -> None:
            cutting.doubted()
            complain(error)

        def drifted(self, drift: Drift, report: Report | None) -> None:
            what = ", ".join(drift.named())
            if report is None:
                warn(f"somebody else changed, and it could not be repaired at once: {what}")
                return
            cutting.changed(report)
            warn(f"repaired what somebody else changed: {what}")

        def save(self) -> None:
            if saver is not None:
                saver.give(enforcer.state.wanted())

    saver = Saver(Path(state), complain) if state is not None else None
    loop = Loop(enforcer, KINDS, Words(), look=enforcer.kernel.touched, rest=enforcer.kernel.rest, jitter=random.random)
    source = FileSource(files, loop.hear, complain)
    source.say(objects, seen)
    with Cutting(enforcer.state.settings.cut_bit, cut=cut_flows, failed=complain) as cutting:
        ended = run_until_signal(ends, loop, source.start, lambda: None)
    if saver is not None:
        saver.close(SAVING)
    tell("stopped; the rules stay in force")
    if not ended:
        leave()


def _sweep(enforcer: Enforcer, cut_flows: bool) -> None:
    """Cuts what is denied now, once; a kernel that cannot is no failure of the command."""
    from netpol.agent.cutter import Cutter
    from netpol.errors import Unsupported

    try:
        with Cutter(enforcer.state.settings.cut_bit) as cutter:
            report = cutter.sweep(enforcer.state.wanted(), enforcer.state.judged) if cut_flows else cutter.forget()
    except Unsupported as error:
        click.echo(f"netpol: running flows are not cut: {error}", err=True)
        return
    if report.marked or report.unmarked:
        click.echo(f"{counted(report.marked, 'running flow')} cut, {report.unmarked} given back")


def _warning(report: Report) -> str:
    return f"netpol: this node tracked no connections: those that run are learnt before anything is denied, for {report.grace:g} s"


def _told(report: Report) -> str:
    done = counted(len(report.steps), "step") if report.steps else "nothing to change"
    return f"{done}, {counted(report.system_calls, 'system call')}"
