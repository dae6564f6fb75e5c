"""`netpol apply`: a host without Kubernetes; manifests on disk are the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from netpol.agent.enforcer import Enforcer
    from netpol.model import Object


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="PATH", help="Manifests: a file, a directory, or - (repeatable)."
)
@click.option("--node", default=None, help="This node's name.  [default: the only one that the pods name]")
@click.option("--table", type=click.Choice(["mangle", "filter"]), default="mangle", show_default=True, help="The table to program.")
@click.option(
    "--unknown-pods",
    type=click.Choice(["auto", "deny", "allow"]),
    default="auto",
    show_default=True,
    help="What happens to unknown addresses of the node's pod CIDRs.",
)
@click.option("--watch", is_flag=True, help="Stay, and follow the files as they change, until TERM or INT; the rules stay in force.")
@click.option("--state", default=None, metavar="FILE", help="Save what was written there, for `netpol restore`.  [default: not saved]")
def apply(files: tuple[str, ...], node: str | None, table: str, unknown_pods: str, watch: bool, state: str | None) -> None:
    """Program this host's kernel for the pods that the manifests put on this node.

    What is there already is adopted: only what differs is changed, without a moment in which neither the old nor the new holds. Bad
    manifests change nothing. `netpol cleanup` takes it all away again.
    """
    from netpol.agent.enforcer import Enforcer
    from netpol.cli.files import node_name
    from netpol.kernel.apply import Kernel
    from netpol.kube.manifests import load
    from netpol.rules.compile import Settings

    objects = load(files)
    settings = Settings(table=table, unknown_pods=unknown_pods)  # type: ignore[arg-type]  # both are of the choices
    with Kernel(settings.table) as kernel:
        enforcer = Enforcer(kernel, node_name(objects, node), settings)
        _enforce(enforcer, objects, state)
        if watch:
            _follow(enforcer, files, state)


def _enforce(enforcer: Enforcer, objects: Sequence[Object], state: str | None) -> None:
    from pathlib import Path

    from netpol.agent.saved import save

    enforcer.replace(objects)
    report = enforcer.enforce()
    if state is not None and report.steps:
        save(Path(state), enforcer.state.wanted())
    done = f"{len(report.steps)} steps" if report.steps else "nothing to change"
    click.echo(f"{done}, {report.system_calls} system calls")


def _follow(enforcer: Enforcer, files: Sequence[str], state: str | None) -> None:
    """Until a signal comes. Files that cannot be understood, and a kernel that refuses, are reported; what is in force stays."""
    import signal

    from netpol.errors import InvalidManifests, KernelError
    from netpol.kernel.inotify import Watcher
    from netpol.kube.manifests import load

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    retry: float | None = None
    with Watcher(files) as watcher:
        try:
            while True:
                watcher.wait(retry)
                retry = None
                watcher.refresh()
                try:
                    _enforce(enforcer, load(files), state)
                except InvalidManifests as error:
                    click.echo(f"netpol: {error}", err=True)
                except KernelError as error:
                    click.echo(f"netpol: {error}", err=True)
                    retry = 1.0
        except KeyboardInterrupt:
            click.echo("stopped; the rules stay in force")
