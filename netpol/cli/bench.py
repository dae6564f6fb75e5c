"""`netpol bench`: what netpol's kernel calls cost on this node, beside the programs that do the same."""

from __future__ import annotations

import click


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes and one pair a row: whether everything works, not how fast it is.")
@click.option("--only", metavar="TEXT", default="", help="Only rows whose names contain this.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True), help="Write machine, memory and rows to this file, too.")
def bench(quick: bool, only: str, file: str | None) -> None:
    """Measure sets, tables, changes and packets in private network namespaces, for about a minute.

    Each row is measured in a fresh process, in interleaved pairs with ipset, iptables-legacy and pyroute2, where they are installed,
    and every contender is verified first. Ratios hold; times are of this machine and this hour.
    """
    import os
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from netpol.bench.apart import apart
    from netpol.bench.cases import node_cases
    from netpol.bench.report import missing, run_of, table, to_json
    from netpol.kernel import namespaces

    chosen = [case for case in node_cases(quick) if only in case.row]
    if not chosen:
        raise click.BadParameter(f"no row has {only!r} in its name", param_hint="--only")
    if file is not None:
        try:
            Path(file).touch()
        except OSError as error:
            raise click.ClickException(f"--json {file}: {error.strerror}") from error
    if os.geteuid() != 0:
        namespaces.enter_private_world()
    if absent := missing():
        click.echo(f"netpol: not installed, and so not compared with: {', '.join(absent)}", err=True)
    results = []
    errors = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=errors, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for case in chosen:
            progress.update(task, description=case.row)
            results.append(apart(case, pairs=1 if quick else min(case.pairs, case.few)).result)
            progress.advance(task)
    console = Console()
    click.echo(table(results, max(100, console.width), console.is_terminal), nl=False)
    if file is not None:
        Path(file).write_bytes(to_json(run_of(results)))
