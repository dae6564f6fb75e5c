"""What tables are printed on: standard output, with names as they are, for other people choose those."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 140  # where it is no terminal, and nobody says: nothing is cut short then


def paper() -> Console:
    """As wide as the terminal, or as COLUMNS says. Nothing in a text means a colour, a link or a picture."""
    from rich.console import Console

    # rich itself takes a COLUMNS of 0 for a width, and prints nothing.
    return Console(highlight=False, markup=False, emoji=False, width=shutil.get_terminal_size((WIDTH, 24)).columns)
