"""Draws docs/pictures/rooms.svg: the rooms of the package and which imports which, as every import statement has it.

`python -m docs.site.rooms` writes it; a test compares the file with what this gives now. The words are each room's own docstring, the
arrows and their labels the import graph that tests/test_layers.py holds to its rules. Only where a box stands is written here (`PLACES`):
below what it uses nothing, above what uses it nothing.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from docs.site.paper import CHARACTER, HEAD, LINE, PADDING, box, sheet
from tests.test_layers import NATIVE, ROOMS, imports, room_of, sources, within

PICTURE = Path(__file__).parents[1] / "pictures" / "rooms.svg"
TOP = ("netpol.cli", "netpol.bench")
"""Rooms that may use nearly all others: what they use is said in words, for arrows would hide the rest."""
EVERYONE = ("netpol.model", "netpol.errors")
"""What every room may use, and so without arrows."""
NATIVE_ROOM = "csrc"
PLACES = {
    # row, first column, columns
    "netpol.cli": (0, 0, 3),
    "netpol.bench": (1, 0, 3),
    "netpol.lab": (2, 0, 1),
    "netpol.agent": (2, 1, 2),
    "netpol.kernel": (3, 0, 1),
    "netpol.kube": (3, 2, 1),
    NATIVE_ROOM: (4, 0, 1),
    "netpol.rules": (4, 1, 1),
    "netpol.policy": (5, 1, 2),
    "netpol.model": (6, 0, 2),
    "netpol.errors": (6, 2, 1),
}
COLUMN, ACROSS, DOWN, MARGIN = 222, 42, 46, 20
COLOURS = {"pure": "#00796b", "shell": "#3f51b5", "c": "#6a3d9a"}
STYLE = ".use{fill:none;stroke-width:1.5}.dim{fill:#667}.label{fill:#667;text-anchor:middle}"
C_WORDS = "C: messages and tables made and read, every length checked. np_sys.c alone makes system calls."
MANY = 3


class Use(NamedTuple):
    """One room that uses another: the modules that it imports there; `lazy`: only when something runs."""

    user: str
    used: str
    modules: tuple[str, ...]
    lazy: bool


def uses() -> list[Use]:
    """The import graph by rooms, sorted."""
    files = sources()
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for module, file in files.items():
        for one in imports(ast.parse(file.read_text()), module, file.name == "__init__.py"):
            if not within(one.target, ("netpol",)):
                continue
            used = NATIVE_ROOM if within(one.target, (NATIVE,)) else room_of(one.target)
            if used in (room_of(module), "netpol.__version__", "netpol"):
                continue
            imported = next(name for name in (one.target, one.target.rpartition(".")[0]) if name in files or used == NATIVE_ROOM)
            modules = found.setdefault((room_of(module), used), {})
            modules[imported] = modules.get(imported, True) and one.lazy
    return [Use(user, used, tuple(sorted(modules)), all(modules.values())) for (user, used), modules in sorted(found.items())]


def picture() -> str:
    """The whole picture."""
    found = [use for use in uses() if use.user != "netpol"]
    boxes = {room: _Box(room, found) for room in PLACES}
    strangers = {room for use in found for room in (use.user, use.used)} - boxes.keys()
    if strangers:
        raise LookupError(f"PLACES does not say where {', '.join(sorted(strangers))} stands")
    rows = range(1 + max(row for row, _, _ in PLACES.values()))
    heights = [max(one.height for one in boxes.values() if one.row == row) for row in rows]
    for one in boxes.values():
        one.y = MARGIN + sum(heights[: one.row]) + DOWN * one.row
    arrows = "".join(_arrow(boxes, use) for use in found if use.user not in TOP and use.used not in EVERYONE)
    width = 3 * COLUMN + 2 * ACROSS + 2 * MARGIN
    height = 2 * MARGIN + sum(heights) + DOWN * (len(heights) - 1)
    body = arrows + "".join(
        box(one.x, one.y, one.width, one.height, COLOURS[one.kind], one.room.replace(".", "/"), one.words) for one in boxes.values()
    )
    return sheet("The rooms of netpol, and which uses which", width, height, COLOURS, STYLE, body)


class _Box:
    """A room where it stands, with its words."""

    def __init__(self, room: str, found: list[Use]) -> None:
        self.room = room
        self.row, first, columns = PLACES[room]
        self.x, self.y = float(MARGIN + first * (COLUMN + ACROSS)), 0.0
        self.width = columns * COLUMN + (columns - 1) * ACROSS
        self.kind = "c" if room == NATIVE_ROOM else "pure" if ROOMS[room].pure else "shell"
        words = _docstring(room)
        if room in TOP:
            words += " Uses " + ", ".join(
                use.used.removeprefix("netpol.") for use in found if use.user == room and use.used not in EVERYONE
            )
            words += "."
        if room in EVERYONE:
            words += " Every room may use it."
        self.words = textwrap.wrap(words, int((self.width - 2 * PADDING) / CHARACTER))
        self.height = HEAD + LINE * len(self.words) + 10


def _docstring(room: str) -> str:
    """A room's first sentences, in one line."""
    if room == NATIVE_ROOM:
        return C_WORDS
    text = ast.get_docstring(ast.parse(sources()[room].read_text())) or ""
    return re.sub(r"\s+", " ", text.partition("\n\n")[0]).replace("->", "→").replace("`", "")


def _arrow(boxes: dict[str, _Box], use: Use) -> str:
    user, used = boxes[use.user], boxes[use.used]
    left, right = max(user.x, used.x), min(user.x + user.width, used.x + used.width)
    top, bottom = user.y + user.height, used.y - 2
    colour = COLOURS[used.kind]
    names = [module.rpartition(".")[2].lstrip("_") for module in use.modules]
    label = ", ".join(names) if len(names) <= MANY else ""
    if left < right:
        start = end = (left + right) / 2
    else:
        start, end = (user.x + user.width - 24, used.x + 24) if user.x < used.x else (user.x + 24, used.x + used.width - 24)
    bend = (bottom - top) / 2
    dashes = ' stroke-dasharray="6 3"' if use.lazy else ""
    return (
        f'<path class="use" d="M{start:.0f} {top:.0f} C{start:.0f} {top + bend:.0f} {end:.0f} {bottom - bend:.0f} {end:.0f} {bottom:.0f}" '
        f'stroke="{colour}" marker-end="url(#{used.kind})"{dashes}/>\n'
        f'<text class="label" x="{(start + end) / 2:.0f}" y="{(top + bottom) / 2 + 4:.0f}" stroke="#f6f7fb" stroke-width="4" '
        f'paint-order="stroke">{label}</text>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
