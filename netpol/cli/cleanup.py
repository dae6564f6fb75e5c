"""`netpol cleanup`: takes everything of netpol's out of this host's kernel, and nothing else."""

from __future__ import annotations

import click

from netpol.cli.counted import counted


@click.command()
def cleanup() -> None:
    """Remove netpol's rules, chains and sets from this network namespace; everybody else's stay as they are.

    Works without a cluster, on half of a state, and where there is nothing to remove.
    """
    from netpol.agent.enforcer import clean
    from netpol.kernel.apply import Kernel
    from netpol.rules.ruleset import DestroySet, ReplaceTable

    with Kernel("mangle") as mangle, Kernel("filter") as filtered:
        steps = clean(mangle, filtered)
    tables = sum(isinstance(step, ReplaceTable) for step in steps)
    sets = sum(isinstance(step, DestroySet) for step in steps)
    click.echo(
        f"removed netpol's chains from {counted(tables, 'table')}, and {counted(sets, 'set')}"
        if tables or sets
        else "nothing of netpol's is here"
    )
