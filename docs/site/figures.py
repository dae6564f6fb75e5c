"""Draws docs/pictures/figures.svg, and writes the rows of docs/performance.md: the figures of docs/bench-results.json, which is a run of
`make bench` as it writes it.

`python -m docs.site.figures` does both anew; `python -m docs.site.figures bench-results.json` takes over a new run first. A test compares
picture and page with what this gives now. A bar is a ratio: how many times our time the other way takes, on a logarithmic scale, from
1, where both take the same; a thin line across it is the goal.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from msgspec.structs import replace

from bench.floors import floor_cases
from docs.site.paper import sheet
from netpol.bench import cases
from netpol.bench.report import Run, from_json, to_json
from netpol.bench.result import Figure, PeerResult, Result

DOCS = Path(__file__).parents[1]
PICTURE, PAGE, RESULTS = DOCS / "pictures" / "figures.svg", DOCS / "performance.md", DOCS / "bench-results.json"
BEGIN, END = "<!-- rows: begin -->\n", "<!-- rows: end -->\n"

ROWS = {
    "sets": (
        "60k members into hash:ip",
        "60k members into hash:net, 10% nomatch",
        "10k members into hash:ip",
        "1 member added to 60k",
        "10k members added to 60k",
    ),
    "tables": (
        "1k rules into a table",
        "10k rules into a table",
        "1 chain changed in a table of 10k rules",
        "1 rule appended in a table of 10k rules",
        "1k rules into a table with 10k foreign ones",
        "a table of 10k rules read",
    ),
    "changes": ("policy change, 10k pods", "policy change, 100k pods"),
    "floor": ("60k members, the least", "10k rules, the least"),
}
"""What the picture shows, by colour; a row that was not measured is left out."""
COLOURS = {"sets": "#6a3d9a", "tables": "#3f51b5", "changes": "#00796b", "floor": "#ad5a00"}
DARK = {"sets": "#b58fe0", "tables": "#8c9eff", "changes": "#4db6a2", "floor": "#f0a04b"}
LEAST, MOST = 0.25, 2000.0  # of the scale
LEFT, RIGHT, WORDS, LINE, BAR, GAP, TOP = 340, 700, 240, 17, 11, 8, 40


def picture(run: Run) -> str:
    """The whole picture of a run."""
    found = {result.row: result for result in run.rows}
    y, body = TOP, ""
    for kind, names in ROWS.items():
        for result in (found[name] for name in names if name in found and found[name].peers):
            body += f'<text class="row" x="{LEFT - 10}" y="{y + BAR - 1}">{escape(result.row)}</text>\n'
            for name, peer in result.peers.items():
                body += _bar(kind, y, name, peer)
                y += LINE
            y += GAP
    axis = "".join(_tick(ratio, y) for ratio in (0.3, 1, 3, 10, 30, 100, 300, 1000))
    dark = "".join(f".{kind}{{fill:{colour}}}" for kind, colour in DARK.items())
    light = "".join(f".{kind}{{fill:{colour}}}" for kind, colour in COLOURS.items())
    style = (
        f".row,.tick{{text-anchor:end}}.tick{{text-anchor:middle;fill:#667}}.grid{{stroke:#ccd;fill:none}}.one{{stroke:#667}}"
        f".goal{{stroke:#222;stroke-width:2}}{light}"
        "@media(prefers-color-scheme:dark){svg>rect:first-of-type{fill:#1c1e27}text{fill:#e4e5ee}.tick{fill:#99a}.grid{stroke:#3a3d4a}"
        f".one{{stroke:#99a}}.goal{{stroke:#fff}}{dark}}}"
    )
    title = "How many times netpol's time the other way takes"
    head = f'<text x="{LEFT - 10}" y="18" class="row">{title}</text>\n'
    return sheet(title, RIGHT + WORDS, y + 12, {}, style, head + axis + body)


def _at(ratio: float) -> float:
    """Where a ratio stands."""
    inside = min(max(ratio, LEAST), MOST)
    return LEFT + (RIGHT - LEFT) * math.log(inside / LEAST) / math.log(MOST / LEAST)


def _bar(kind: str, y: int, name: str, peer: PeerResult) -> str:
    start, end = sorted((_at(1.0), _at(peer.ratio)))
    goal = "" if peer.goal is None else f'<path class="goal" d="M{_at(peer.goal):.1f} {y - 2} v{BAR + 4}"/>'
    words = f"{ratio_text(peer.ratio)} {name}"
    return (
        f'<rect class="{kind}" x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="{BAR}" rx="2"/>{goal}'
        f'<text x="{max(end, _at(peer.goal or 1.0)) + 6:.1f}" y="{y + BAR - 1}">{escape(words)}</text>\n'
    )


def _tick(ratio: float, bottom: int) -> str:
    x, kind = _at(ratio), "grid one" if ratio == 1 else "grid"
    return f'<path class="{kind}" d="M{x:.1f} {TOP - 8} V{bottom}"/><text class="tick" x="{x:.1f}" y="{TOP - 12}">{ratio:g}x</text>\n'


def ratio_text(ratio: float) -> str:
    """Two digits or more."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def page(text: str, run: Run) -> str:
    """The page with the rows of a run between its two marks. ValueError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN.strip()} and {END.strip()}")
    return "".join((before, begin, *_table(run), end, after))


def _table(run: Run) -> Iterator[str]:
    yield f"{run.machine}\n\n"
    yield "| row | ms | system calls | MiB at most | beside |\n|---|---|---|---|---|\n"
    for result in run.rows:
        memory = "" if result.peak_mebibytes is None else f"{result.peak_mebibytes:.0f}"
        yield f"| {result.row} | {_digits(result.ms)} | {result.system_calls or ''} | {memory} | {_beside(result)} |\n"


def _beside(result: Result) -> str:
    words = [f"{ratio_text(peer.ratio)} {name}{_goal(peer)}" for name, peer in result.peers.items()]
    words += [f"{name} {_digits(figure.value)} {figure.unit}{_bound(figure)}" for name, figure in result.figures.items()]
    if result.mebibytes is not None:
        words.append(f"takes {result.mebibytes:.0f} MiB")
    return "; ".join(words)


def _goal(peer: PeerResult) -> str:
    return "" if peer.goal is None else f" (goal {ratio_text(peer.goal)}, {'met' if peer.met else '**missed**'})"


def _bound(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f" (goal at {'least' if figure.least else 'most'} {figure.goal:g}, {'met' if figure.met else '**missed**'})"


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"


def taken(run: Run) -> Run:
    """A run as it is published: its rows in the order of `make bench`, and of the kernel's release only what is the same elsewhere."""
    order = {case.row: number for number, case in enumerate((*cases(), *floor_cases()))}
    rows = sorted(run.rows, key=lambda result: order.get(result.row, len(order)))
    return replace(run, rows=tuple(rows), machine=re.sub(r"^(\S+ [\d.]+)\S*", r"\1", run.machine))


def main(file: str = "") -> None:
    if file:
        RESULTS.write_bytes(to_json(taken(from_json(Path(file).read_bytes()))))
    run = from_json(RESULTS.read_bytes())
    PICTURE.write_text(picture(run))
    PAGE.write_text(page(PAGE.read_text(), run))


if __name__ == "__main__":
    main(*sys.argv[1:])
