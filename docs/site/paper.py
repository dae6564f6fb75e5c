"""What the pictures drawn from the code have in common: the sheet, its type, boxes with a head, and arrow heads by colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

LINE, HEAD, CHARACTER, PADDING = 20, 30, 6.7, 14


def sheet(title: str, width: float, height: float, colours: Mapping[str, str], style: str, body: str) -> str:
    """A whole picture; `colours` are those of arrows, by the name of their head."""
    heads = "".join(
        f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        for kind, colour in colours.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n'
        f"<title>{title}</title>\n"
        "<style>text{font:11px ui-monospace,'DejaVu Sans Mono',Menlo,monospace;fill:#222}.name{font-weight:bold;fill:#fff}"
        f"{style}</style>\n"
        f'<defs>{heads}</defs>\n<rect width="100%" height="100%" rx="10" fill="#f6f7fb"/>\n{body}</svg>\n'
    )


def box(x: float, y: float, width: float, height: float, colour: str, name: str, rows: Sequence[str]) -> str:
    """A box with its name in the head, and a row of text for each line."""
    texts = "".join(
        f'<text x="{x + PADDING:.0f}" y="{y + HEAD + LINE * at + 16:.0f}">{escape(text)}</text>\n' for at, text in enumerate(rows)
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:g}" rx="7" fill="#fff" stroke="{colour}"/>\n'
        f'<path d="M{x:.0f} {y + HEAD - 4:.0f} v-19 q0 -7 7 -7 h{width - 14:.0f} q7 0 7 7 v19 z" fill="{colour}"/>\n'
        f'<text class="name" x="{x + PADDING:.0f}" y="{y + 18:.0f}">{escape(name)}</text>\n{texts}'
    )
