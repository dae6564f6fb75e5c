"""The pictures of docs/ are what the code is today."""

from __future__ import annotations

from xml.etree import ElementTree

from docs.site import chains


def test_the_picture_of_the_chains_is_what_the_compiler_makes() -> None:
    """The file, to the byte; where this fails, `make pictures` draws it anew."""
    assert chains.PICTURE.read_text() == chains.picture()


def test_the_picture_stays_in_its_frame() -> None:
    """It is well-formed, no box leaves it, and no two boxes touch."""
    root = ElementTree.fromstring(chains.PICTURE.read_text())
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    boxes = [[float(one.attrib[key]) for key in ("x", "y", "width", "height")] for one in root.findall(".//{*}rect") if "x" in one.attrib]
    assert len(boxes) > 6
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for at, (x, y, w, h) in enumerate(boxes):
        assert all(x + w < u or u + a < x or y + h < v or v + b < y for u, v, a, b in boxes[at + 1 :])
