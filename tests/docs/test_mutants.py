"""docs/mutants.md: what it counts adds up, and what it quotes stands in the code. The counts themselves are `make mutants`' to check."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import netpol

PACKAGE = Path(netpol.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "mutants.md").read_text()
ROWS = {
    name: tuple(map(int, counts))
    for name, *counts in re.findall(r"^\| ([a-z.]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
}
QUOTES = re.findall(r"^- `([\w.]+)`: `(.+)` -> `(.+)`$", PAGE, re.MULTILINE)


def module(function: str) -> str:
    """The module of a function that is quoted: no other part of its path has letters that are large, or stands behind one that has."""
    parts = function.split(".")
    return ".".join(next(parts[:end] for end in range(len(parts), 0, -1) if PACKAGE.joinpath(*parts[:end]).with_suffix(".py").exists()))


def test_the_table_adds_up() -> None:
    """Every mutant that was run died or is explained; the last row is the sum of the others; each module that is mutated has a row."""
    *rows, (last, total) = ROWS.items()
    assert last == "all"
    assert total == tuple(map(sum, zip(*(counts for _, counts in rows), strict=True)))
    assert all(mutants == killed + explained + not_run for mutants, killed, explained, not_run in ROWS.values())
    mutated = [
        path for room in ("policy", "rules") for path in (PACKAGE / room).rglob("*.py") if re.search(r"^ *def ", path.read_text(), re.M)
    ]
    assert [name for name, _ in rows] == sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in mutated)


def test_what_is_explained_is_what_is_quoted() -> None:
    """Survivors have quotes, each of one or of several alike; no line of the page is a quote that cannot be read."""
    found = Counter(module(function) for function, _, _ in QUOTES)
    assert found.keys() <= ROWS.keys()
    for name, (_, _, explained, not_run) in ROWS.items():
        assert name == "all" or not_run or (found[name] <= explained and bool(found[name]) == bool(explained)), name
    assert len(QUOTES) == sum(line.startswith("- `") for line in PAGE.splitlines())


def test_what_is_quoted_stands_in_the_code() -> None:
    """A line that was changed since is no explanation of anything."""
    code = {name: " ".join(PACKAGE.joinpath(*name.split(".")).with_suffix(".py").read_text().split()) for name in ROWS if name != "all"}
    assert [quote for quote in QUOTES if " ".join(quote[1].split()) not in code[module(quote[0])]] == []
