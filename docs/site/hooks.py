"""Files beside docs/ that its pages link to, for mkdocs: it knows one folder, and the repository has more than that.

A page says `../CONTRIBUTING.md`, which is right for whoever reads it in the repository. Here such a file becomes part of the site,
and the link is made to lead there; a link to a file that is not in the repository stays as it is, and `mkdocs build --strict` fails.
Links from those files into docs/ are turned the same way. Nothing is written.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages of the navigation that are not in docs/."""


def _outside(page: str, link: str) -> str | None:
    """The path in the repository of what a page in docs/ links to; None where it is in docs/ itself, or is no file."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "..")) or not (ROOT / path).is_file() else path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is linked to, once each, under the path that it has in the repository."""
    wanted = set(BESIDE)
    for page in files.documentation_pages():
        wanted |= {path for _, link in LINK.findall(page.content_string) if (path := _outside(page.src_uri, link))}
    wanted.discard("README.md")
    for path in sorted(wanted):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to where those files are on the site; the repository's own README is the site's first page."""
    here = posixpath.dirname(page.file.src_uri)

    def turned(found: re.Match[str]) -> str:
        opening, link = found.groups()
        path = link.removeprefix("docs/") if page.file.src_uri in BESIDE else _outside(page.file.src_uri, link) or ""
        return f"{opening}{posixpath.relpath(path, here or '.')}" if path else f"{opening}{link}"

    return LINK.sub(turned, markdown)
