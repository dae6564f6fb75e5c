"""Writes docs/licences.md: what an installation of netpol holds, and under which licences. Run it as `python -m tests.licences`.

The table is made from the metadata of what is installed, so a licence is what its package says of itself. Rows of packages that
this Python does not need (an older one does) are kept: run it under the oldest Python too.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).parent.parent / "docs" / "licences.md"
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
HEAD = """# Licences

netpol is under the Apache License 2.0. `pip install netpol-agent` brings these packages; none of them is part of netpol's own wheel.
This page is made by `python -m tests.licences` from what the packages say of themselves, and a test holds it to what is installed.
A release carries the same with versions, as an SBOM (CycloneDX).

| package | licence | for |
| --- | --- | --- |
"""


def licence(found: Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the free text."""
    fields = {name: (found.metadata.get_all(name) or []) for name in ("License-Expression", "Classifier", "License")}
    named = [line.rpartition(" :: ")[2] for line in fields["Classifier"] if line.startswith("License :: ")]
    named = [name for name in named if name != "OSI Approved"]
    text = "\n".join(fields["License"]).strip().partition("\n")[0]
    return " ".join(fields["License-Expression"]) or " / ".join(named) or text or "unknown"


def installed() -> dict[str, tuple[str, str]]:
    """Every run-time dependency, of any depth: its name, its licence, and what asked for it first."""
    rows: dict[str, tuple[str, str]] = {}
    waiting = ["netpol-agent"]
    while waiting:
        parent = waiting.pop(0)
        for line in distribution(parent).requires or []:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name in rows or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            rows[name] = (licence(distribution(name)), "netpol" if parent == "netpol-agent" else parent)
            waiting.append(name)
    return rows


def listed() -> dict[str, tuple[str, str]]:
    """The rows of the page."""
    if not PAGE.exists():
        return {}
    return {name: (terms, parent) for name, terms, parent in ROW.findall(PAGE.read_text()) if name not in ("package", "---")}


def main() -> None:
    rows = {**listed(), **installed()}
    PAGE.write_text(HEAD + "".join(f"| {name} | {terms} | {parent} |\n" for name, (terms, parent) in sorted(rows.items())))


if __name__ == "__main__":
    main()
