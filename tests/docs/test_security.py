"""SECURITY.md: what it says is tested, is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.fuzz import readers, targets

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:tests|csrc)/[\w./]*|tests/[\w/.]+::\w+)`", TEXT)))
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("name", NAMED)
def test_what_it_names_is_there(name: str) -> None:
    """A file, or a function of one; a file of tests has some."""
    path, _, function = name.partition("::")
    assert (ROOT / path).exists()
    if Path(path).name.startswith("test_"):
        found = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}
        assert function in found if function else any(each.startswith("test_") for each in found)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_names_tests(row: list[str]) -> None:
    """Who, what, what is defended, and the tests of that."""
    assert len(row) == 4
    assert re.fullmatch(r"`tests/[\w./]+`(, `tests/[\w./]+`)*", row[3])


def test_every_fuzz_target_of_foreign_bytes_has_a_row() -> None:
    """Rules are our own: they are packed by us, and no one else's bytes."""
    files = {f"tests/fuzz/{name}.c" for name in targets.TARGETS if name != "rules"} | {f"tests/fuzz/{name}.py" for name in readers.READERS}
    assert files <= set(NAMED)
