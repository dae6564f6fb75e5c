"""Looks at the built site, as a reader's browser would: every link inside it leads somewhere, and nothing is loaded from another host.

mkdocs looks at the Markdown, this at what came of it. Links to other hosts are looked at for their form alone, for a build that
fails because somebody else's server is away tells nothing. Exits with 1 and a line for each fault.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = frozenset({"audio", "embed", "iframe", "img", "link", "object", "script", "source", "video"})
"""Elements whose address a browser fetches by itself."""
STYLE_URL = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


class Page(HTMLParser):
    """One page: its anchors, and its links as (element, address)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src", "data") and value:
                self.links.append((tag, value))


def faults(site: Path) -> list[str]:
    """What is wrong with a site, a sentence each."""
    pages = {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    found = [f"no pages in {site}"] if not pages else []
    for file, page in pages.items():
        for tag, link in page.links:
            if fault := _fault(site, pages, file, tag, link):
                found.append(f"{file.relative_to(site)}: {link}: {fault}")
    for file in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        found += [f"{file.relative_to(site)}: {url}: loaded from another host" for url in STYLE_URL.findall(file.read_text())]
    return found


def _fault(site: Path, pages: dict[Path, Page], file: Path, tag: str, link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto"):
        return None
    if parts.scheme or parts.netloc:
        if tag in LOADING:
            return "loaded from another host"
        good = parts.scheme == "https" and "." in parts.netloc and " " not in link
        return None if good or parts.hostname in ("127.0.0.1", "localhost") else "not the form of an address"
    # The page for what is not there says "/...", for nobody knows where it is asked for.
    base = site if parts.path.startswith("/") else file.parent
    target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else file
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "leads nowhere"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors | {"__skip"}:
        return "no such place on that page"
    return None


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]).resolve())
    print("\n".join(wrong) or f"{sys.argv[1]}: every link leads somewhere, and nothing comes from elsewhere")
    sys.exit(bool(wrong))
