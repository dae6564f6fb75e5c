"""Links of the documentation, in the Markdown that people read in the repository and in the site that is built from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.site.check import faults

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"https://[a-z0-9.-]+\.[a-z]+(/[\w./%#?=&:@~+-]*)?")


def anchors(page: Path) -> set[str]:
    """Where a page's headings are, as mkdocs and code hosts name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", title)).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    """A file of the repository, and a heading in it; an address elsewhere has the form of one."""
    for link in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        path, _, anchor = link.partition("#")
        if ":" in path:
            assert EXTERNAL.fullmatch(link), link
            continue
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_listed() -> None:
    """docs/README.md links to each page of docs/ but those of decisions, which have a list of their own."""
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        pytest.param('<a href="b.html#here">', None, id="an anchor of another page"),
        pytest.param('<a href="b.html#there">', "no such place", id="an anchor that is not there"),
        pytest.param('<a href="c.html">', "leads nowhere", id="no such page"),
        pytest.param('<img src="p.png">', "leads nowhere", id="no such picture"),
        pytest.param('<a href="/b.html">', None, id="from the top"),
        pytest.param('<a href="https://example.org/x">', None, id="another host"),
        pytest.param('<a href="https://example">', "form", id="no host"),
        pytest.param('<script src="https://example.org/x.js">', "another host", id="a script from elsewhere"),
        pytest.param('<link href="//example.org/x.css">', "another host", id="a style from elsewhere"),
        pytest.param('<img src="https://example.org/x.png">', "another host", id="a picture from elsewhere"),
    ],
)
def test_the_check_of_the_site(tmp_path: Path, html: str, fault: str | None) -> None:
    """What it finds, and what it leaves alone."""
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<h1 id="here">')
    found = faults(tmp_path)
    assert (found == []) if fault is None else (len(found) == 1 and fault in found[0])


def test_styles_and_pictures_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    """A font in a style, and in a picture."""
    (tmp_path / "a.html").write_text("<p>")
    (tmp_path / "a.css").write_text("@font-face { src: url(https://example.org/f.woff) } b { background: url(b.png) }")
    (tmp_path / "a.svg").write_text("<svg><style>@import '//example.org/s.css'</style></svg>")
    assert [line.split(":")[0] for line in faults(tmp_path)] == ["a.css", "a.svg"]
