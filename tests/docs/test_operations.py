"""What docs/operations.md quotes is what the program says, and what it names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from netpol.cli.main import COMMANDS
from tests.agent.test_metrics import documented

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
SAID = re.findall(r"^\| `(.+?)` \|", PAGE.partition("## By its words")[2], re.M)
FORMAT = re.compile(r"%[.\d]*[sdrf]")


def texts() -> Iterator[str]:
    """Every string of the package, with an ellipsis for what is put into it."""
    for file in sorted((ROOT / "netpol").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield FORMAT.sub("…", node.value)


TEXTS = list(texts())


@pytest.mark.parametrize("said", SAID)
def test_what_is_quoted_is_said(said: str) -> None:
    """Word for word, with what differs at the same places; an end may be left out."""
    assert any(said.rstrip("…") in text for text in TEXTS)


def test_there_are_quotes() -> None:
    """The table was read."""
    assert len(SAID) > 15


def test_names_are_those_of_metrics_commands_and_options() -> None:
    """Metrics of docs/metrics.md; commands; options that some command has."""
    assert set(re.findall(r"\bnetpol_\w+", PAGE)) <= set(documented())
    assert set(re.findall(r"`netpol ([a-z]+)", PAGE)) <= set(COMMANDS)
    options = set(re.findall(r"`(--[a-z-]+)`", (ROOT / "docs" / "settings.md").read_text()))
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= options
