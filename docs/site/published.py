"""Makes README.md and pyproject.toml ready for an index of packages: `python -m docs.site.published ADDRESS TAG`.

There the README stands alone, and its links to files and its picture would lead nowhere: they are made to lead into the repository at
ADDRESS, as it was at TAG. The index's own list of links, [project.urls], is added. Both files are changed where they are, so this is
for the checkout that a release is built from, whose workflow knows the address: no file of the repository has to.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)")


def readme(text: str, address: str, tag: str) -> str:
    """With links that lead somewhere from anywhere: pictures to their bytes, the rest to pages."""
    return LINK.sub(lambda found: f"{found[1]}{found[2]}{address}/{'raw' if found[1] else 'blob'}/{tag}/{found[3]}", text)


def project(text: str, address: str, tag: str) -> str:
    """With [project.urls]; ValueError where there are some."""
    if "[project.urls]" in text:
        raise ValueError("pyproject.toml has [project.urls] already")
    urls = {
        "Repository": address,
        "Documentation": f"{address}/blob/{tag}/docs/README.md",
        "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        "Security": f"{address}/blob/{tag}/SECURITY.md",
        "Issues": f"{address}/issues",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return text.replace("[project.scripts]\n", f"[project.urls]\n{lines}\n[project.scripts]\n", 1)


def main(root: Path, address: str, tag: str) -> None:
    for name, change in (("README.md", readme), ("pyproject.toml", project)):
        file = root / name
        file.write_text(change(file.read_text(), address.rstrip("/"), tag))


if __name__ == "__main__":
    main(ROOT, *sys.argv[1:])
