"""`netpol status`: what of netpol's is programmed in this host's kernel."""

from __future__ import annotations

import click


@click.command()
@click.option("--table", type=click.Choice(["mangle", "filter"]), default="mangle", show_default=True, help="The table to look at.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def status(table: str, as_json: bool) -> None:
    """Show the chains and sets that netpol has programmed here, with their packet counters. Nothing is changed."""
    import msgspec
    from rich.console import Console
    from rich.table import Table

    from netpol.kernel.apply import Kernel
    from netpol.model import FAMILIES

    with Kernel(table) as kernel:  # type: ignore[arg-type]  # one of the choices
        found = kernel.read()
        counters = {family: kernel.counters(family) for family in FAMILIES}
        dropped = kernel.dropped()
    chains = [
        {
            "family": family,
            "chain": name,
            "rules": len(chain.rules),
            "packets": sum(packets for packets, _ in counters[family].get(name, ())),
        }
        for family in FAMILIES
        for name, chain in sorted(found.chains.get(family, {}).items())
    ]
    sets = [{"set": s.name, "type": s.kind, "family": s.family, "members": len(s.members)} for _, s in sorted(found.sets.items())]
    if as_json:
        data = {"table": table, "hooked": sorted(found.hooked), "dropped": dropped, "chains": chains, "sets": sets}
        click.echo(msgspec.json.format(msgspec.json.encode(data)).decode())
        return
    console = Console(highlight=False)
    if not chains and not sets:
        console.print(f"Nothing of netpol's is programmed in the table {table} of this network namespace.")
        return
    families = ", ".join(f"IPv{family}" for family in sorted(found.hooked)) or "no family"
    console.print(f"Table {table}: FORWARD begins with netpol for {families}; {dropped} packets dropped.")
    for rows in (chains, sets):
        if rows:
            grid = Table(box=None, header_style="bold", pad_edge=False)
            for key in rows[0]:
                grid.add_column(key, justify="left" if key in ("chain", "set", "type") else "right", no_wrap=True)
            for row in rows:
                grid.add_row(*map(str, row.values()))
            console.print(grid)
