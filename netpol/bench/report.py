"""Results in words and in files: the table for people, bench-results.json for programs, and the machine they were measured on.

Figures of two machines, or of two days, are not to be compared: ratios inside a row are what holds. So the machine stands above the
table, and in the file beside the rows.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from netpol.bench.peers import IPSET, IPTABLES, RESTORE, find
from netpol.bench.result import Figure, PeerResult, Result

FILE = "bench-results.json"


class Run(Struct, frozen=True):
    """A run of a benchmark, as it stands in its file.

    least_mebibytes, peak_mebibytes -- of the rows' own processes in memory: the least that one had before its case began, and the most that
    one ever had; missing -- programs that would have been peers.
    """

    machine: str
    least_mebibytes: float
    peak_mebibytes: float
    missing: tuple[str, ...]
    rows: tuple[Result, ...]


def run_of(results: Sequence[Result]) -> Run:
    """The run of these rows, on this machine."""
    return Run(machine(), *_memory(results), missing(), tuple(results))


def added(run: Run, results: Sequence[Result]) -> list[Result]:
    """The rows of an earlier run, those of the same name in the place of theirs, and the others behind them.

    ValueError where it was made on another machine, which no ratio would tell.
    """
    if run.machine != machine():
        raise ValueError(f"the rows are of another machine: {run.machine}")
    now = {result.row: result for result in results}
    return [now.pop(result.row, result) for result in run.rows] + list(now.values())


def _memory(results: Sequence[Result]) -> tuple[float, float]:
    """The least and the most of the rows' processes, or of this one where it measured them all."""
    least = [result.least_mebibytes for result in results if result.least_mebibytes is not None]
    most = [result.peak_mebibytes for result in results if result.peak_mebibytes is not None]
    return min(least, default=round(resident(), 1)), max(most, default=round(peak(), 1))


def to_json(run: Run) -> bytes:
    """{"machine", "least_mebibytes", "peak_mebibytes", "missing", "rows"}, the last a list of
    {"row", "ms", "peers": {name: {"ms", "ratio", "goal" where there is one}}, "system_calls", "pairs"}, and "least_mebibytes" and
    "peak_mebibytes" where a process of its own measured it.

    Rows about memory have no peers, and "mebibytes" and "most", which is their goal. Rows with goals of their own have no peers, and
    "figures": {name: {"value", "unit", "goal" where there is one, "least": true where it is a minimum}}.
    """
    return msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n"


def from_json(raw: bytes) -> Run:
    """What `to_json` wrote; msgspec.ValidationError for anything else."""
    return msgspec.json.decode(raw, type=Run)


def missing() -> tuple[str, ...]:
    """Programs to compare with that are not installed."""
    return tuple(name for name in (IPSET, *IPTABLES.values(), *RESTORE.values()) if find(name) is None)


def machine() -> str:
    """Kernel, processors and Python, in a line."""
    kernel, python = platform.uname(), platform.python_version()
    count = len(os.sched_getaffinity(0))
    processors = f"{count} CPU{'' if count == 1 else 's'}{_processor()}"
    return f"{kernel.system} {kernel.release} {kernel.machine}, {processors}, {platform.python_implementation()} {python}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return f" ({value.strip()})"
    return ""


def resident() -> float:
    """MiB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def peak() -> float:
    """The most MiB of this process that ever were in memory at once, since its program began."""
    # getrusage would tell of the process that started it, too.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def table(results: Sequence[Result], width: int, colours: bool) -> str:
    """The table for a terminal of that width, a line for each peer, with the machine and the rows' memory above it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=width, force_terminal=colours, no_color=not colours)
    drawn = Table("", "netpol, ms", "system calls", "beside", "ms", "ratio", "goal")
    for column in drawn.columns[1:3] + drawn.columns[4:6]:
        column.justify = "right"
        column.no_wrap = True
    for result in results:
        mine = [result.row, _figure(result.ms), str(result.system_calls)]
        for name, peer in result.peers.items():
            drawn.add_row(*mine, name, _figure(peer.ms), f"{_ratio(peer.ratio)}x", _goal(peer))
            mine = ["", "", ""]
        for name, figure in result.figures.items():
            drawn.add_row(*mine, f"{name}: {_figure(figure.value)} {figure.unit}", "", "", _bound(figure))
            mine = ["", "", ""]
        if result.mebibytes is not None and result.most is not None:
            verdict = "[green]met[/]" if result.mebibytes <= result.most else "[red]missed[/]"
            drawn.add_row(*mine, f"takes {_figure(result.mebibytes)} MiB", "", "", f"<= {result.most:.3g} MiB {verdict}")
        elif not result.peers and not result.figures:
            drawn.add_row(*mine, "nothing installed", "", "", "")
        drawn.add_section()
    with console.capture() as captured:
        console.print(machine(), highlight=False)
        least, most = _memory(results)
        console.print(f"{least:.0f} MiB resident before a case, {most:.0f} MiB at most", highlight=False)
        console.print(drawn)
        console.print("Medians of runs in turn; a ratio is the median of the pairs' ratios. Above 1 netpol is faster.", highlight=False)
    return captured.get()


def _figure(number: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 0.1 else f"{number:.4f}"


def _ratio(number: float) -> str:
    """As exact as goals of some percent are."""
    return f"{number:.3f}" if 0.5 <= number < 2 else _figure(number)


def _goal(peer: PeerResult) -> str:
    if peer.goal is None:
        return ""
    return f">= {peer.goal:.3g}x [green]met[/]" if peer.met else f">= {peer.goal:.3g}x [red]missed[/]"


def _bound(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"{'>=' if figure.least else '<='} {figure.goal:g} {figure.unit} {'[green]met[/]' if figure.met else '[red]missed[/]'}"
