"""`netpol matrix`: who reaches whom, by the specification, by the interpreted rules, or by real packets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from netpol.cli.counted import counted
from netpol.cli.paper import paper

if TYPE_CHECKING:
    from rich.text import Text

    from netpol.cli.connections import Connection, Engine, Judgement, Service

MARKS, ASCII = "●✗·", "ox."
"""Allowed, denied, not asked: as `netpol demo` has them."""
ENGINES: tuple[Engine, ...] = ("spec", "rules", "packets")


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="PATH", help="Manifests: a file, a directory, or - (repeatable)."
)
@click.option("--node", default=None, help="Only connections from or to the pods of this node.  [default: all]")
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="PORT/PROTOCOL",
    help="Such as 80/TCP (repeatable).  [default: all that pods declare or policies name]",
)
@click.option("--by", type=click.Choice([*ENGINES, "all"]), default="spec", show_default=True, help="Who judges; `all` compares the three.")
@click.option(
    "--pod-cidr", "cidrs", multiple=True, default=("10.244.0.0/16",), show_default=True, help="Addresses for pods without one (repeatable)."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def matrix(files: tuple[str, ...], node: str | None, ports: tuple[str, ...], by: str, cidrs: tuple[str, ...], as_json: bool) -> None:
    """Show which pods reach which, for each port.

    `spec` asks the specification, `rules` compiles each node and interprets both ends, `packets` builds a private world, programs its
    kernel and sends a real packet for every connection. Two that disagree are a bug: `--by all` compares them and exits 1.
    """
    import msgspec

    if by in ("packets", "all"):
        from netpol.lab import become_private

        become_private()
    from netpol.cli import connections as judging
    from netpol.cli.files import read_cluster

    try:
        wanted = tuple(judging.parse_service(text) for text in ports)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--port") from None
    cluster = read_cluster(files, cidrs)
    if node is not None and node not in {pod.node for pod in cluster.all_pods()}:
        click.echo(f"netpol: no pod of the manifests is on node {node} (spec.nodeName)", err=True)
    asked = judging.connections(cluster, wanted or judging.services(cluster), node)
    engines = ENGINES if by == "all" else tuple(engine for engine in ENGINES if engine == by)
    said = {engine: _judge(engine, cluster, asked) for engine in engines}
    if as_json:
        flows = [_flow(connection, judgement) for connection, judgement in zip(asked, said[engines[0]], strict=True)]
        click.echo(msgspec.json.format(msgspec.json.encode({"by": by, "flows": flows})).decode())
    else:
        console = paper()
        for part in tables(asked, said[engines[0]], MARKS if console.encoding.startswith("utf") else ASCII):
            console.print(part, overflow="ignore", no_wrap=True, crop=False)
    wrong = judging.disagreements(asked, said)
    for sentence in wrong:
        click.echo(f"netpol: {sentence}", err=True)
    if wrong:
        raise click.exceptions.Exit(1)


def _judge(engine: Engine, cluster: object, asked: Sequence[Connection]) -> list[Judgement]:
    from rich.console import Console

    from netpol.cli import connections as judging
    from netpol.kernel.namespaces import private_lock
    from netpol.policy.cluster import Cluster
    from netpol.rules.compile import Settings

    assert isinstance(cluster, Cluster)
    # Every pod of the manifests is known: there is nothing to be closed for addresses that are not.
    settings = Settings(unknown_pods="allow")
    if engine == "spec":
        return judging.by_spec(cluster, asked)
    if engine == "rules":
        return judging.by_rules(cluster, asked, settings)
    with private_lock(), Console(stderr=True).status("building the lab") as status:
        said = judging.by_packets(cluster, asked, settings, status.update)
    pods = len({str(pod) for connection in asked for pod in (connection.source, connection.destination)})
    click.echo(f"{counted(len(asked), 'real packet')} between {counted(pods, 'pod')}", err=True)
    return said


def _flow(connection: Connection, judgement: Judgement) -> dict[str, object]:
    from netpol.model import PROTOCOL_NAMES

    flow: dict[str, object] = {
        "from": str(connection.source),
        "to": str(connection.destination),
        "protocol": PROTOCOL_NAMES[connection.flow.protocol],
        "port": connection.flow.port,
        "family": 4 if len(connection.flow.source) == 4 else 6,
        "allowed": judgement.allowed,
    }
    if judgement.egress is not None:
        flow |= {"egress": judgement.egress, "ingress": judgement.ingress}
    return flow


# -- for people --------------------------------------------------------------------------------------------------------


def tables(asked: Sequence[Connection], said: Sequence[Judgement], marks: str = MARKS) -> list[Text]:
    """A grid for each family and set of ports that behave alike: rows are sources, columns destinations by the rows' numbers."""
    from rich.text import Text

    from netpol.cli.connections import family
    from netpol.model import PROTOCOL_NAMES

    grids: dict[int, dict[Service, dict[tuple[str, str], bool]]] = {}
    for connection, judgement in zip(asked, said, strict=True):
        service = (connection.flow.protocol, connection.flow.port or 0)
        grid = grids.setdefault(family(connection), {}).setdefault(service, {})
        grid[str(connection.source), str(connection.destination)] = judgement.allowed
    parts: list[Text] = []
    for number, by_service in sorted(grids.items()):
        alike: dict[tuple[tuple[tuple[str, str], bool], ...], list[Service]] = {}
        for service, grid in sorted(by_service.items()):
            alike.setdefault(tuple(sorted(grid.items())), []).append(service)
        for cells, found in alike.items():
            names = ", ".join(f"{port}/{PROTOCOL_NAMES[protocol]}" for protocol, port in found)
            allowed = sum(value for _, value in cells)
            title = f"{names}" + (" over IPv6" if number == 6 else "")
            parts += [
                Text.assemble((title, "bold"), f"   {allowed} of {len(cells)} connections allowed"),
                *_grid(dict(cells), marks),
                Text(""),
            ]
    if not parts:
        return [Text("no pods with addresses, or no ports: nothing to show")]
    return [*parts, Text(f"{marks[0]} allowed   {marks[1]} denied   {marks[2]} not asked", style="dim")]


def _grid(cells: dict[tuple[str, str], bool], marks: str) -> list[Text]:
    from rich.text import Text

    pods = sorted({pod for pair in cells for pod in pair})
    width = max(map(len, pods))
    digits = len(str(len(pods)))
    groups = [pod.partition("/")[0] for pod in pods]

    def gap(i: int) -> str:
        return "  " if i and groups[i] != groups[i - 1] else " "

    margin = " " * (width + digits + 2)
    lines = [
        Text(margin + "".join(gap(i) + str(i + 1).rjust(digits)[place] for i in range(len(pods))), style="dim") for place in range(digits)
    ]
    for row, source in enumerate(pods):
        if row and groups[row] != groups[row - 1]:
            lines.append(Text(""))
        line = Text.assemble(source.ljust(width), (f" {row + 1:>{digits}} ", "dim"))
        for column, destination in enumerate(pods):
            line.append(gap(column))
            allowed = cells.get((source, destination))
            mark, style = (marks[2], "dim") if allowed is None else (marks[0], "green") if allowed else (marks[1], "bold red")
            line.append(mark, style=style)
        lines.append(line)
    return lines
