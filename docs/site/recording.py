"""Records `netpol demo` in a terminal and draws docs/pictures/demo.svg from it: a picture that moves by CSS alone.

`python -m docs.site.recording` types the command into a real shell on a pseudo-terminal and keeps every byte with its time. Typing and
the run have their own timing; when all is printed the picture scrolls through it, with a rest at each part, for a person reads more slowly
than the demo prints. What stands still is the last frame: where no animation is shown, and for a reader who wants less motion.

A test records again and compares: a picture that no longer says what the demo says fails it.
"""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from html import escape, unescape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich.ansi import AnsiDecoder
from rich.style import Style

PICTURE = Path(__file__).parents[1] / "pictures" / "demo.svg"
COMMAND = "netpol demo"
# Wide enough that no rule of the example is broken in two.
COLUMNS, ROWS = 108, 44
PROMPT = b"$ "
# Seconds: between two keys; at most for the whole run; what follows sooner belongs to the same frame.
KEY, LIMIT, MOMENT = 0.09, 120.0, 0.05
# Seconds that the picture rests: when all is printed, at its top, on the pages between, at its end; and takes to scroll.
PRINTED, TOP, PAGE, END, SCROLL = 0.8, 6.0, 4.0, 9.0, 0.7

ADVANCE, LINE, SIZE, MARGIN, BAR = 8.4, 17, 14, 16, 34
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
# By the terminal's numbers.
COLOURS = {1: ("red", "#ff7b72"), 2: ("green", "#7ee787"), 3: ("yellow", "#e3b341"), 5: ("magenta", "#d2a8ff"), 6: ("cyan", "#79c0ff")}
QUIET, PLAIN, GROUND = "#8b949e", "#e6edf3", "#0d1117"
PIECES = re.compile(rb"\x1b\[([?\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")
COLUMN = re.compile(r"\S+(?: \S+)*")


class Run(NamedTuple):
    """Characters of one look in a line: the column where they start, and the classes of their style."""

    column: int
    text: str
    look: str


class Frame(NamedTuple):
    """What a terminal shows, scrolled back or not, and the seconds since the first key."""

    seconds: float
    lines: tuple[tuple[Run, ...], ...]

    def text(self) -> list[str]:
        """Its lines without any look."""
        return [text_of(line) for line in self.lines]


def text_of(line: tuple[Run, ...]) -> str:
    """A line's characters, each in its column."""
    text = ""
    for run in line:
        text = text.ljust(run.column) + run.text
    return text


def record() -> list[Frame]:
    """The frames of a real run; RuntimeError when it does not end, or writes what `shown` does not know."""
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES", "COLORTERM", "ENV")}
    environment |= {"PS1": PROMPT.decode(), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("sh", ["sh", "-i"], environment)
    moments: list[tuple[float, bytes]] = []
    try:
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        written = next(all_of_it for all_of_it in _heard(terminal) if all_of_it.endswith(PROMPT))[-len(PROMPT) :]
        begun = time.monotonic()
        for key in COMMAND:
            moments.append((time.monotonic() - begun, written))
            time.sleep(KEY)
            os.write(terminal, key.encode())
            written += os.read(terminal, 1)
        os.write(terminal, b"\r")
        for more in _heard(terminal):
            moments.append((time.monotonic() - begun, written + more))
            if more.endswith(b"\n" + PROMPT):
                break
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    kept = [one for one, after in pairwise(moments) if after[0] - one[0] > MOMENT]
    return [Frame(seconds, shown(written)) for seconds, written in (*kept, moments[-1])]


def _heard(terminal: int) -> Iterator[bytes]:
    """What is written from now on, whole again after each piece."""
    written, end = b"", time.monotonic() + LIMIT
    while True:
        if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            raise RuntimeError(f"no prompt after {LIMIT:.0f} s: {written[-200:]!r}")
        written += os.read(terminal, 1 << 16)
        yield written


def shown(written: bytes) -> tuple[tuple[Run, ...], ...]:
    """The lines that a terminal shows after these bytes. It knows what the demo's output needs and refuses the rest."""
    lines, row, column = [b""], 0, 0
    for found in PIECES.finditer(written):
        numbers, letter, home, feed, text = found.groups()
        if feed:
            row, column = row + 1, 0
            lines += [b""] * (row + 1 - len(lines))
        elif home:
            column = 0
        elif letter == b"K" and numbers == b"2":
            lines[row] = b""
        elif letter == b"A":
            row -= int(numbers or b"1")
        elif letter == b"m":
            lines[row] += found.group()
        elif text:
            if column == 0 and _plain(lines[row]):
                raise RuntimeError(f"written over: {lines[row]!r}")
            lines[row] += text
            column += len(text)
        elif letter not in (b"h", b"l"):
            raise RuntimeError(f"not known here: {found.group()!r}")
    # A piece that is not whole yet: of a character, or of a sequence.
    decoder = AnsiDecoder()
    decoded = [decoder.decode_line(line.decode(errors="ignore")) for line in lines]
    return tuple(
        tuple(_runs(line.plain, [(span.start, span.end, Style.parse(str(span.style))) for span in line.spans])) for line in decoded
    )


def _plain(line: bytes) -> bytes:
    return re.sub(rb"\x1b\[[\d;]*m", b"", line)


def _runs(text: str, spans: list[tuple[int, int, Style]]) -> Iterator[Run]:
    """A line in runs: where the look changes, and where two blanks separate columns, which then stand right in any font."""
    looks = [""] * len(text)
    for start, end, style in spans:
        classes = [COLOURS[style.color.number][0]] if style.color and style.color.number is not None else []
        classes += [word for word, on in (("bold", style.bold), ("dim", style.dim)) if on]
        looks[start:end] = [" ".join(classes)] * (min(end, len(text)) - start)
    at = 0
    while at < len(text):
        end = at
        while end < len(text) and looks[end] == looks[at]:
            end += 1
        yield from (Run(at + part.start(), part.group(), looks[at]) for part in COLUMN.finditer(text[at:end]))
        at = end


# -- the picture -------------------------------------------------------------------------------------------------------


def picture(frames: list[Frame]) -> str:
    """The frames as SVG: stacked on a film behind a window, which is moved by one animation."""
    *early, last = frames
    window = ROWS * LINE
    bottom = len(early) * window + max(0, len(last.lines) - ROWS) * LINE
    film = "".join(
        _group("", at * window, frame.lines[-ROWS:]) if frame is not last else _group(' id="last"', at * window, frame.lines)
        for at, frame in enumerate(frames)
    )
    moves, seconds = _moves(early, last, window, bottom)
    keys = "".join(
        f"{100 * at / seconds:.2f}%{{transform:translateY({-offset}px);animation-timing-function:{how}}}" for at, offset, how in moves
    )
    width, height = COLUMNS * ADVANCE + 2 * MARGIN, window + BAR + MARGIN
    colours = "".join(f".{name}{{fill:{colour}}}" for name, colour in COLOURS.values())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">\n'
        f"<title>{COMMAND}, recorded in a terminal</title>\n"
        f"<style>text{{font:{SIZE}px {FONTS};fill:{PLAIN};white-space:pre}}.bold{{font-weight:bold}}.dim{{fill:{QUIET}}}{colours}\n"
        f"#film{{transform:translateY({-bottom}px);animation:play {seconds:.2f}s infinite}}\n"
        f"@keyframes play{{{keys}}}\n"
        "@media (prefers-reduced-motion:reduce){#film{animation:none}}</style>\n"
        f'<rect width="100%" height="100%" rx="9" fill="{GROUND}"/>\n'
        f'<text class="dim" x="{width / 2:.0f}" y="22" text-anchor="middle">{COMMAND}</text>\n'
        f'<svg x="{MARGIN}" y="{BAR}" width="{COLUMNS * ADVANCE:.0f}" height="{window}"><g id="film">\n{film}</g></svg>\n</svg>\n'
    )


def _moves(early: list[Frame], last: Frame, window: int, bottom: int) -> tuple[list[tuple[float, int, str]], float]:
    """The animation: (second, how far the film is moved up, how it goes on from there), and how long all of it takes."""
    moves = [(frame.seconds, at * window, "step-end") for at, frame in enumerate(early)]
    top, now = len(early) * window, last.seconds
    moves.append((now, bottom, "step-end"))
    now += PRINTED
    pages = list(range(top, bottom, window - 4 * LINE))
    # A last page that is all but the end is left to the end.
    stops = [(page, TOP if page == top else PAGE) for page in pages if page == top or bottom - page > window // 3]
    before = bottom
    for offset, rest in (*stops, (bottom, END)):
        moves.append((now, before, "ease-in-out"))
        moves.append((now + SCROLL, offset, "step-end"))
        now, before = now + SCROLL + rest, offset
    return [*moves, (now, bottom, "step-end")], now


def _group(name: str, y: int, lines: tuple[tuple[Run, ...], ...]) -> str:
    rows = []
    for at, line in enumerate(lines):
        runs = "".join(
            f'<tspan x="{run.column * ADVANCE:.4g}"{f" class={chr(34)}{run.look}{chr(34)}" if run.look else ""}>{escape(run.text)}</tspan>'
            for run in line
        )
        rows.append(f'<text y="{y + at * LINE + SIZE}">{runs}</text>\n' if runs else "")
    return f"<g{name}>\n{''.join(rows)}</g>\n"


def read(svg: str) -> list[tuple[Run, ...]]:
    """The last frame of a picture, as it was recorded: `picture` backwards."""
    body = svg.partition('<g id="last">')[2].partition("</g>")[0]
    rows = {int(y): runs for y, runs in re.findall(r'<text y="(\d+)">(.*?)</text>', body)}
    first = min(rows)
    lines = [rows.get(y, "") for y in range(first, max(rows) + 1, LINE)]
    return [
        tuple(
            Run(round(float(x) / ADVANCE), unescape(text), look)
            for x, look, text in re.findall(r'<tspan x="([\d.]+)"(?: class="([^"]*)")?>(.*?)</tspan>', line)
        )
        for line in lines
    ]


if __name__ == "__main__":
    PICTURE.write_text(picture(record()))
    print(f"{PICTURE.relative_to(Path.cwd())}: {PICTURE.stat().st_size / 1000:.0f} kB")
