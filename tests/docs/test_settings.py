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


def test_every_other_variable_that_the_code_reads_is_there() -> None:
    """Those without an option, which the page has from a list that is kept by hand; none on it is read by nobody."""
    reads = re.compile(r"""environ(?:ment)?(?:\.get\(|\[)['"]([A-Z_]+)['"]|"([A-Z_]+)" (?:not )?in os\.environ""")
    files = [file.read_text() for file in (ROOT / "netpol").rglob("*.py")]
    read = {name for text in files for found in reads.findall(text) for name in found if name}
    listed = set(re.findall(r"`([A-Z_]+)`", PAGE.read_text().partition("\n## Environment\n")[2]))
    # Read by libraries: rich, shutil, and the kubernetes package.
    of_libraries = {"NO_COLOR", "COLUMNS", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HTTPS_PROXY", "NO_PROXY"}
    assert listed - read == of_libraries
    assert read - listed == set()
