"""The picture and the rows of docs/performance.md are those of docs/bench-results.json, and can be read."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bench.floors import floor_cases
from docs.site import figures
from docs.site.paper import CHARACTER
from netpol.bench import PeerResult, Result, cases
from netpol.bench.report import Run, from_json
from netpol.bench.result import Figure

LIGHT, DARK = "#f6f7fb", "#1c1e27"


def run(*rows: Result, machine: str = "Linux 6.1.0-18-amd64 x86_64, 2 CPUs") -> Run:
    return Run(machine, 30.0, 60.0, (), rows)


def row(name: str, **ratios: float) -> Result:
    """A row whose peers have these ratios; `peer_goal` is the goal beside `peer`."""
    peers = {key: PeerResult(1.0, ratio, ratios.get(f"{key}_goal")) for key, ratio in ratios.items() if not key.endswith("_goal")}
    return Result(name, 1.0, peers, 2, 3, peak_mebibytes=61.4)


def bars(picture: str) -> list[tuple[float, float]]:
    """Where each bar begins and ends."""
    found = [one for one in ElementTree.fromstring(picture).findall(".//{*}rect") if "class" in one.attrib]
    return [(float(one.attrib["x"]), float(one.attrib["x"]) + float(one.attrib["width"])) for one in found]


def test_picture_and_page_are_of_the_results() -> None:
    """To the byte; where this fails, `make pictures` makes them anew."""
    found = from_json(figures.RESULTS.read_bytes())
    assert figures.PICTURE.read_text() == figures.picture(found)
    text = figures.PAGE.read_text()
    assert text == figures.page(text, found)
    assert all(f"\n| {result.row} | " in text for result in found.rows)


def test_the_results_have_every_row_of_the_picture() -> None:
    """A row that is renamed is renamed in the picture too; each has been measured in a process of its own."""
    known = {case.row for case in (*cases(), *floor_cases())}
    names = [name for rows in figures.ROWS.values() for name in rows]
    assert set(names) <= known
    measured = {result.row: result for result in from_json(figures.RESULTS.read_bytes()).rows}
    assert set(names) <= measured.keys()
    assert all(measured[name].peak_mebibytes for name in names)


def test_a_bar_is_as_long_as_its_ratio() -> None:
    """On a logarithmic scale from 1: a hundredfold is twice as far as tenfold; what is less than 1 stands before it."""
    name = figures.ROWS["sets"][0]
    ten, hundred, less = bars(figures.picture(run(row(name, ten=10.0, hundred=100.0, less=0.5))))
    assert [hundred[0], less[1]] == pytest.approx([ten[0], ten[0]], abs=0.2)
    assert hundred[1] - hundred[0] == pytest.approx(2 * (ten[1] - ten[0]), abs=0.2)
    assert less[0] < less[1]


def test_what_was_not_measured_is_left_out() -> None:
    """Nor does a row without peers have a bar; the same run gives the same bytes."""
    first, second = figures.ROWS["tables"][:2]
    given = run(row(first, peer=7.0, peer_goal=7.0), row(second))
    assert len(bars(figures.picture(given))) == 1
    assert second not in figures.picture(given)
    assert figures.picture(given) == figures.picture(run(row(first, peer=7.0, peer_goal=7.0), row(second)))


def test_nothing_leaves_the_frame() -> None:
    """No bar and no word, by the width that a character has."""
    root = ElementTree.fromstring(figures.PICTURE.read_text())
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for text in root.findall(".//{*}text"):
        x, y, size = float(text.attrib["x"]), float(text.attrib["y"]), len(text.text or "") * CHARACTER
        start = x - size if text.get("class") == "row" else x - size / 2 if text.get("class") == "tick" else x
        assert start >= 0
        assert start + size <= width
        assert 0 < y <= height
    assert all(0 <= start < end <= width for start, end in bars(figures.PICTURE.read_text()))


def test_figures_stand_beside_with_their_goals() -> None:
    """Those of a row that has no other way beside it: at most, or at least, and whether it is so."""
    found = {
        "p99": Figure(12.0, "ms", 25.0),
        "drained": Figure(4000.0, "events/s", 5000.0, least=True),
        "slowest": Figure(2.5, "ms"),
    }
    text = figures.page(figures.BEGIN + figures.END, run(Result("agent", 3.5, {}, 4, 9, figures=found)))
    beside = "p99 12 ms (goal at most 25, met); drained 4000 events/s (goal at least 5000, **missed**); slowest 2.5 ms"
    assert f"| agent | 3.5 | 4 |  | {beside} |" in text


def contrast(one: str, other: str) -> float:
    """Of two colours, by WCAG 2: from 1 to 21."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_can_be_read_in_light_and_in_dark() -> None:
    """Bars stand out from the sheet 3 to 1 at least, words 4.5 to 1, in both; each has both its colours, and the sheet its own."""
    style = figures.picture(run()).partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("@media(prefers-color-scheme:dark)")
    for words, sheet in ((light, LIGHT), (dark, DARK)):
        found = dict(re.findall(r"\.?([a-z]+)\{[^}]*?(?:fill|stroke):(#\w+)", words))
        assert {"text", "tick", "goal", *figures.COLOURS} <= found.keys()
        assert all(contrast(found[name], sheet) >= 4.5 for name in ("text", "tick"))
        assert all(contrast(found[name], sheet) >= 3 for name in ("goal", *figures.COLOURS))
    assert f"rect:first-of-type{{fill:{DARK}}}" in dark
    assert f'fill="{LIGHT}"' in figures.picture(run())


def test_the_rows_stand_between_the_marks() -> None:
    """What is around them stays; a goal says whether it was met. Without marks nothing is guessed."""
    text = f"before\n{figures.BEGIN}old\n{figures.END}after\n"
    made = figures.page(text, run(row("a row", peer=6.0, peer_goal=7.0, other=12.6)))
    assert made.startswith(f"before\n{figures.BEGIN}")
    assert made.endswith(f"{figures.END}after\n")
    assert "| a row | 1 | 2 | 61 | 6.0x peer (goal 7.0x, **missed**); 13x other |" in made
    assert "old" not in made
    with pytest.raises(ValueError, match="rows: begin"):
        figures.page("no marks", run())


def test_a_run_is_published_in_order_and_without_what_is_only_here() -> None:
    """The rows as `make bench` has them, unknown ones last; of the kernel no more than its version."""
    first, second = (case.row for case in cases()[:2])
    taken = figures.taken(run(row("unknown"), row(second), row(first)))
    assert [result.row for result in taken.rows] == [first, second, "unknown"]
    assert taken.machine == "Linux 6.1.0 x86_64, 2 CPUs"
