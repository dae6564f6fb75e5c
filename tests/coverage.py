"""`python -m tests.coverage`, in the tree that `make coverage` built and ran: which lines of C ran, file by file.

Ends with 1 where fewer than LEAST percent of them did, or where docs/c-coverage.md and the lines that never ran are not the same: one that
it does not explain, or one that it explains and that ran, or is gone. Which lines there are depends a little on the compiler; with another
one than COMPILER what differs is told and no error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LEAST = 95.0
PAGE, ROW = ROOT / "docs" / "c-coverage.md", re.compile(r"^\| `(\w+\.[ch])` \| `(.+)` \| .+ \|$", re.MULTILINE)
COMPILER = 12  # of GCC


def counted() -> dict[str, dict[int, int]]:
    """File -> line -> how often it ran, whichever file included it."""
    found: dict[str, dict[int, int]] = {}
    for data in sorted(ROOT.glob("build/temp.*/csrc/*.gcda")):
        words = ("gcov", "--json-format", "--stdout", str(data))
        for file in json.loads(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)["files"]:
            if file["file"].startswith("csrc/"):
                lines = found.setdefault(file["file"], {})
                for line in file["lines"]:
                    lines[line["line_number"]] = lines.get(line["line_number"], 0) + line["count"]
    return found


def missed(lines: Mapping[str, Mapping[int, int]]) -> Iterator[tuple[str, int, str]]:
    """File, number and text of each line that never ran."""
    for file, counts in sorted(lines.items()):
        text = (ROOT / file).read_text().splitlines()
        yield from ((file, number, text[number - 1].strip()) for number, count in sorted(counts.items()) if not count)


def main() -> int:
    lines = counted()
    for file, counts in sorted(lines.items()):
        print(f"{file:26} {sum(map(bool, counts.values())):5} of {len(counts):5}  {percent(counts):6.2f} %")
    every = {(file, number): count for file, counts in lines.items() for number, count in counts.items()}
    print(f"{'all':26} {sum(map(bool, every.values())):5} of {len(every):5}  {percent(every):6.2f} %")
    never = list(missed(lines))
    print("\n".join(f"{file}:{number}: never runs: {text}" for file, number, text in never))
    wrong = list(disagreements(never, PAGE.read_text()))
    print("\n".join(wrong))
    return int(not every or percent(every) < LEAST or bool(wrong and compiler() == COMPILER))


def disagreements(never: Iterable[tuple[str, int, str]], page: str) -> Iterator[str]:
    """In words: what the page's table and the lines that never ran do not have in common. What stands twice in a file is two rows."""
    found = Counter((file.removeprefix("csrc/"), text) for file, _, text in never)
    told = Counter(ROW.findall(page))
    yield from (f"csrc/{file}: never runs, and {PAGE.name} does not say why: {text}" for file, text in (found - told).elements())
    yield from (
        f"csrc/{file}: {PAGE.name} says that it never runs, and it does, or is gone: {text}" for file, text in (told - found).elements()
    )


def compiler() -> int:
    """The first number of gcc's version."""
    return int(subprocess.run(("gcc", "-dumpversion"), capture_output=True, text=True, check=True).stdout.partition(".")[0])


def percent(counts: Mapping[Any, int]) -> float:
    return 100 * sum(map(bool, counts.values())) / max(1, len(counts))


if __name__ == "__main__":
    sys.exit(main())
