"""`netpol status`: what of netpol's is programmed in this host's kernel, and whether it is what was written last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from netpol.cli import options
from netpol.cli.counted import counted
from netpol.cli.paper import paper

if TYPE_CHECKING:
    from netpol.agent.audit import Drift
    from netpol.kernel.apply import Kernel
    from netpol.rules.ruleset import Ruleset

Row = Mapping[str, Any]


@click.command()
@options.table
@options.saved_state("The saved state to compare with, where there is one.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def status(table: str, state: str, as_json: bool) -> None:
    """Show the chains and sets that netpol has programmed here, with their packet counters. Nothing is changed.

    With a saved state: when something was changed last, and how what is here differs from it. While the agent saves a change of this very
    moment, the two may differ by it.
    """
    import msgspec

    from netpol.errors import printable
    from netpol.kernel.apply import Kernel
    from netpol.model import FAMILIES

    with Kernel(table) as kernel:  # type: ignore[arg-type]  # one of the choices
        found = kernel.read()
        counters = {family: kernel.counters(family) for family in FAMILIES}
        dropped = kernel.dropped()
        saved = _saved(state, found, kernel)
    chains = [
        {
            "family": family,
            "chain": printable(name),
            "rules": len(chain.rules),
            "packets": sum(packets for packets, _ in counters[family].get(name, ())),
        }
        for family in FAMILIES
        for name, chain in sorted(found.chains.get(family, {}).items())
    ]
    sets = [{"set": printable(s.name), "type": s.kind, "family": s.family, "members": s.entries} for _, s in sorted(found.sets.items())]
    if as_json:
        data = {"table": table, "hooked": sorted(found.hooked), "dropped": dropped, "chains": chains, "sets": sets, "saved": saved}
        click.echo(msgspec.json.format(msgspec.json.encode(data)).decode())
    else:
        _show(table, found, dropped, chains, sets, saved)


def _saved(file: str, found: Ruleset, kernel: Kernel) -> dict[str, Any] | None:
    """What the saved state says, and how what was found differs from it; None where nothing was saved."""
    from datetime import datetime
    from pathlib import Path

    from netpol.agent.audit import compare
    from netpol.agent.saved import SavedStateError, load

    path = Path(file)
    try:
        ruleset = load(path)
        changed = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds") if ruleset is not None else ""
    except (SavedStateError, OSError) as error:
        return {"file": file, "error": str(error)}
    if ruleset is None:
        return None
    if ruleset.table != found.table:
        return {"file": file, "last_change": changed, "error": f"{file}: it is of the table {ruleset.table}"}
    drift: Drift = compare(ruleset, found, kernel.moved)
    return {"file": file, "last_change": changed, "drift": dict(drift.kinds()), "differs": list(drift.named())}


def _show(table: str, found: Ruleset, dropped: int, chains: Sequence[Row], sets: Sequence[Row], saved: Row | None) -> None:
    from rich.table import Table

    console = paper()
    if not chains and not sets:
        console.print(f"Nothing of netpol's is programmed in the table {table} of this network namespace.")
    else:
        families = ", ".join(f"IPv{family}" for family in sorted(found.hooked)) or "no family"
        console.print(f"Table {table}: FORWARD begins with netpol for {families}; {counted(dropped, 'packet')} dropped.")
        rules, members = sum(row["rules"] for row in chains), sum(row["members"] for row in sets)
        held = f"{counted(len(sets), 'set')} with {counted(members, 'member')}"
        console.print(f"{counted(len(chains), 'chain')} with {counted(rules, 'rule')}, {held}.")
    if saved is not None:
        for line in _words(saved):
            console.print(line, soft_wrap=True)
    for rows in (chains, sets):
        if rows:
            grid = Table(box=None, header_style="bold", pad_edge=False)
            for key in rows[0]:
                grid.add_column(key, justify="left" if key in ("chain", "set", "type") else "right", no_wrap=True)
            for row in rows:
                grid.add_row(*map(str, row.values()))
            console.print(grid)


def _words(saved: Row) -> list[str]:
    lines = [f"Last change: {saved['last_change']}, saved in {saved['file']}."] if "last_change" in saved else []
    if "error" in saved:
        return [*lines, f"The saved state cannot be compared with: {saved['error']}."]
    if not saved["differs"]:
        return [*lines, "What is here is what was saved."]
    return [*lines, "What is here differs from what was saved:", *(f"  {words}" for words in saved["differs"])]
