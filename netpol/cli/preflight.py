"""`netpol preflight`: whether enforcement on this node would be real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netpol.cli import options
from netpol.cli.paper import paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netpol.agent.preflight import Check
    from netpol.model import Network


@click.command()
@options.table
@options.cut_bit
@options.pod_cidrs("not known: every bridge counts")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_context
def preflight(ctx: click.Context, table: str, cut_bit: int, pod_cidrs: tuple[Network, ...], as_json: bool) -> None:
    """Look whether enforcement on this node would be real, and say what to do where it would not. No rule, set or setting is
    changed; what the kernel has for them it may load.

    Exit status 1: something makes enforcement an illusion, or impossible; the agent is not ready then and says the same. docs/preflight.md
    explains each check.
    """
    import msgspec

    from netpol.agent.preflight import obstacles
    from netpol.agent.preflight import preflight as look
    from netpol.rules.compile import Settings

    settings = Settings(table=table, cut_bit=cut_bit)  # type: ignore[arg-type]  # one of the choices
    checks = look(settings, pod_cidrs)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(checks)).decode())
    else:
        _show(checks)
    ctx.exit(1 if obstacles(checks) else 0)


def _show(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    # In a narrow terminal too nothing is cut off: what is to be typed stands there.
    grid.add_column(overflow="fold")
    for check in checks:
        grid.add_row(Text(check.level, style=colours[check.level]), check.name, Text(check.words))
    paper().print(grid)
