"""The README is a page, and what it says twice is what the longer pages say."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LINES, WORDS = 65, 650


def rows(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """The rows of figures: name -> milliseconds, and what the last column has, without goals."""
    found = re.findall(r"^\| (.+?) \| ([\d.]+) \|(?:.*\|)? (.+?) \|$", text, re.M)
    return {name: (ms, frozenset(re.sub(r" \(goal .*?\)", "", beside).split("; "))) for name, ms, beside in found}


def test_it_is_a_page() -> None:
    """Longer things go to docs/, and the README says where."""
    assert len(README.splitlines()) <= LINES
    assert len(README.split()) <= WORDS


def test_figures_are_those_of_the_performance_page() -> None:
    """Row by row, and the sentence below them: where a figure moves, it moves in both."""
    performance = (ROOT / "docs" / "performance.md").read_text()
    figures, all_figures = rows(README), rows(performance)
    assert len(figures) >= 5
    for name, (ms, beside) in figures.items():
        assert all_figures[name][0] == ms, name
        assert beside <= all_figures[name][1], name
    (median,) = re.findall(r"denies on the wire ([\d.]+) ms", README)
    (memory,) = re.findall(r"takes (\d+ MiB)", README)
    assert f"| a policy is created: denied on the wire | {median} |" in performance
    assert f"| memory | {memory}," in performance


def test_dependencies_are_those_of_the_package() -> None:
    """Each by its name, here and with its bound in docs/install.md; the extras too."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, re.M | re.S)
    assert listed
    required = [Requirement(line.strip(' ",')) for line in listed[1].splitlines()]
    (named,) = re.findall(r"Dependencies: ([\w, -]+), all of them", README)
    assert named.split(", ") == [item.name for item in required]
    bounds = dict(re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|", (ROOT / "docs" / "install.md").read_text(), re.M))
    assert bounds == {item.name: str(item.specifier).removeprefix(">=") for item in required}
    extras = re.findall(r"^(\w+) = \[", PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M)
    (words,) = re.findall(r"the extras \((.*?)\)", README)
    assert sorted(re.findall(r"`(\w+)`", words)) == sorted(extras)


def test_size_and_times_are_those_of_the_page_on_installing() -> None:
    """The wheel's size, and the whole `netpol --help`."""
    install = (ROOT / "docs" / "install.md").read_text()
    (size,) = re.findall(r"The wheel is (about \d+ kB)", README)
    assert f"| size of the wheel | {size}," in install
    (shown,) = re.findall(r"`netpol --help` about (\d+) ms", README)
    least, most = map(int, re.findall(r"the whole command (\d+)-(\d+) ms", install)[0])
    assert least <= int(shown) <= most
