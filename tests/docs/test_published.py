"""The README and the metadata as an index of packages shows them, made by a release's workflow."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from docs.site.published import main, project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with mypy

ROOT = Path(__file__).parents[2]
HERE = "https://code.example/owner/name"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    main(tmp_path, HERE + "/", "v1.2.3")
    return tmp_path


def test_each_link_leads_into_the_repository(published: Path) -> None:
    """To a file that is there, as it was at the tag; the picture to its bytes; nothing else of the text is changed."""
    text = (published / "README.md").read_text()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) >= 10
    assert sum(bool(picture) for picture, _ in links) == 1
    for picture, link in links:
        start = f"{HERE}/{'raw' if picture else 'blob'}/v1.2.3/"
        assert link.startswith(start)
        assert (ROOT / link.removeprefix(start)).is_file()
    assert re.sub(rf"{HERE}/(raw|blob)/v1\.2\.3/", "", text) == (ROOT / "README.md").read_text()


def test_the_metadata_names_the_repository(published: Path) -> None:
    """All that was there before, and [project.urls] beside it; a second time is an error."""
    before, after = (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, published))
    urls = after["project"].pop("urls")
    assert after == before
    assert urls["Repository"] == HERE
    for name in ("Documentation", "Changelog", "Security"):
        assert (ROOT / urls[name].removeprefix(f"{HERE}/blob/v1.2.3/")).is_file()
    with pytest.raises(ValueError, match="already"):
        project((published / "pyproject.toml").read_text(), HERE, "v1")


def test_the_release_does_it_before_it_builds() -> None:
    """In the job that builds the sdist, of which everything else is made; GitHub says the address and the tag."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["sdist"]["steps"]
    commands = [step.get("run", "") for step in steps]
    makes = commands.index('python3 -m docs.site.published "$GITHUB_SERVER_URL/$GITHUB_REPOSITORY" "$GITHUB_REF_NAME"')
    assert makes < next(i for i, command in enumerate(commands) if "--sdist" in command)
