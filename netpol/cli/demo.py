"""`netpol demo`: policies enforced on real packets, in a world that is made for it and gone afterwards.

It builds pods out of namespaces, sends a packet along every path before any rule and again after our own programming of the kernel,
and shows what the specification expects beside what the wire does. The host's own tables and sets are not touched, no program is
started (but for the user's shell under --keep), and a user who is not root moves into a user namespace first.

Exit codes: 0 when all agrees, 1 when it does not or the system lacks something, 2 for manifests or options that cannot be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netpol.cli.paper import paper

if TYPE_CHECKING:
    from rich.console import RenderableType

    from netpol.cli.demonstration.scene import Scene
    from netpol.lab import Lab

EXAMPLE = "kubernetes-docs.yaml"


@click.command()
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="PATH",
    help="Manifests, as YAML or JSON: Pods (their labels, ports and addresses count), Namespaces and NetworkPolicies. A file, "
    "a directory, or - for standard input (repeatable).  [default: the example of the Kubernetes documentation]",
)
@click.option(
    "--pod-cidr",
    "cidrs",
    multiple=True,
    default=("10.244.0.0/16",),
    show_default=True,
    metavar="CIDR",
    help="Addresses for pods that have none; one of each family makes them dual-stack (repeatable).",
)
@click.option("--all", "every", is_flag=True, help="Show every flow, chain and set.  [default: what policies decide]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.  [default: tables]")
@click.option("--keep", is_flag=True, help="Open a shell on the node afterwards, with the rules in force.  [default: take everything down]")
@click.pass_context
def demo(ctx: click.Context, files: tuple[str, ...], cidrs: tuple[str, ...], every: bool, as_json: bool, keep: bool) -> None:
    """Enforce policies on real packets in a private world, and show what happens.

    Every pod becomes a network namespace on one node, with listeners. Every flow is tried before any rule is made; then the
    policies are compiled and programmed into the node's kernel, and every flow is tried again. What is observed must be what the
    specification expects.

    Addresses of no pod come from the ipBlocks of the policies: inside, excepted and just behind. Nothing outside this world is
    touched, and it is gone when the command ends. Root is not needed where users may make user namespaces.

    Exits with 0 when all agrees, 1 when something does not or the system lacks something, 2 when the manifests are wrong.
    """
    if keep and (as_json or "-" in files):
        raise click.UsageError(f"--keep opens a shell here, which does not go with {'--json' if as_json else '--file -'}")
    from netpol.cli.demonstration import tables
    from netpol.cli.demonstration.run import Clock, play, record
    from netpol.cli.demonstration.scene import scene
    from netpol.cli.files import read_cluster
    from netpol.kernel.namespaces import private_lock
    from netpol.lab import Lab, become_private

    stage = scene(read_cluster(files or (example(),), cidrs))
    # Before anything that starts a thread.
    become_private()
    clock = Clock()
    with private_lock(), ExitStack() as world:
        with progress() as say:
            with clock.phase("lab"):
                lab = world.enter_context(Lab(stage.hosts, progress=lambda done, count: say(f"building host {done} of {count}")))
            report = play(stage, lab, clock, say)
        if as_json:
            click.echo(record(report))
        else:
            title = f"{', '.join(files) or f'examples/{EXAMPLE}'}, enforced on real packets"
            show(lambda width, unicode: tables.everything(title, stage, report, every, width, unicode))
        if keep:
            shell(stage, lab)
    ctx.exit(0 if report.agree else 1)


def example() -> str:
    """The file of the example: inside the package where that was installed, else in the repository beside it."""
    package = Path(__file__).parent.parent
    return str(next(folder / EXAMPLE for folder in (package / "examples", package.parent / "examples") if (folder / EXAMPLE).exists()))


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is going on, where a terminal shows it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("building hosts") as status:
        yield lambda words: status.update(words)


def show(parts: Callable[[int, bool], Iterable[RenderableType]]) -> None:
    """Prints what `parts(width, unicode)` gives on standard output; without colours where it is no terminal, and under NO_COLOR."""
    console = paper()
    unicode = console.encoding.startswith("utf")
    with console.capture() as captured:
        for part in parts(console.width, unicode):
            console.print(part)
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    # Trees and cut-off names have no ASCII form: a question mark is better than a traceback.
    click.echo(text if unicode else text.encode("ascii", "replace").decode(), color=console.is_terminal)


def shell(stage: Scene, lab: Lab) -> None:
    """The user's shell on the node, after a word on what to do there."""
    from netpol.cli.demonstration import tables

    places = {host.name: f"/proc/{os.getpid()}/fd/{lab.host(host.name)}" for host in stage.hosts}
    show(lambda width, unicode: tables.hints(stage, places))
    lab.shell()
