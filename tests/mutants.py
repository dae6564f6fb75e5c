"""What `mutmut run` found, as a table and as the survivors that nobody has explained: the end of `make mutants`.

A survivor is explained when docs/mutants.md quotes what it changes: the function, the line as it is and the line as the mutant has
it. Numbers of mutants shift with every edit; the quotes do not, so what was explained once stays so until its line changes.
Exits 1 when a mutant that was run neither died nor is explained; and, after a run of all, when an explanation is of no survivor.

This module reads what mutmut says of its results (`mutmut results`, `mutmut show`) and runs no mutant.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

EXPLAINED = Path("docs/mutants.md")
KILLED, LOOPED, NOT_RUN = "killed", "timeout", "not checked"  # mutmut's words; what is none of them lived


def mutmut(*arguments: str) -> list[str]:
    return subprocess.run([sys.executable, "-m", "mutmut", *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def fates() -> dict[str, str]:
    """mutant -> what became of it, in mutmut's words."""
    found = (line.strip().rpartition(": ") for line in mutmut("results", "--all", "true"))
    return {mutant.removeprefix("netpol."): fate for mutant, _, fate in found}


def module(mutant: str) -> str:
    return mutant.rpartition(".")[0]


def quote(mutant: str) -> str:
    """What a mutant changes, as docs/mutants.md quotes it: `module.function`: `line` -> `line`."""
    lines = [line for line in mutmut("show", f"netpol.{mutant}") if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]
    before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    function = mutant.rpartition("__mutmut_")[0].rpartition(".")[2].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return f"`{module(mutant)}.{function}`: `{before}` -> `{after}`"


def main() -> int:
    found = fates()
    table = {name: Counter(fate for mutant, fate in found.items() if module(mutant) == name) for name in map(module, found)}
    print("| module | mutants | killed | out of time | survived | not run |", "|---|---|---|---|---|---|", sep="\n")
    for name, counts in {**table, "all": Counter(found.values())}.items():
        killed, looped, not_run = (counts[fate] for fate in (KILLED, LOOPED, NOT_RUN))
        cells = (counts.total(), killed, looped, counts.total() - killed - looped - not_run, not_run)
        print(f"| {name} | {' | '.join(map(str, cells))} |")
    survivors = {quote(mutant) for mutant, fate in found.items() if fate not in (KILLED, LOOPED, NOT_RUN)}
    explained = {line.removeprefix("- ") for line in EXPLAINED.read_text().splitlines() if line.startswith("- `")}
    idle = set() if NOT_RUN in found.values() else explained - survivors
    for title, lines in (("Survived, and not explained", survivors - explained), ("Explained, and no survivor", idle)):
        if lines:
            print(f"\n{title} ({len(lines)}):", *(f"- {line}" for line in sorted(lines)), sep="\n")
    return 1 if survivors - explained or idle else 0


if __name__ == "__main__":
    sys.exit(main())
