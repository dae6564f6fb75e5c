"""docs/settings.md says what the commands take."""

from __future__ import annotations

import re
from pathlib import Path

from docs.site.settings import PAGE, page

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_commands_say() -> None:
    """Every option, variable and default; where this fails, `make settings` writes it anew."""
    assert PAGE.read_text() == page()


def test_every_variable_that_the_code_names_is_there() -> None:
    """NETPOL_... of commands, both ways."""
    named = re.compile(r"\bNETPOL_[A-Z_]+\b")
    code = {name for file in (ROOT / "netpol" / "cli").rglob("*.py") for name in re.findall(r'"(NETPOL_[A-Z_]+)"', file.read_text())}
    assert code == set(named.findall(PAGE.read_text()))
