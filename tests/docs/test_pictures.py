"""The pictures of docs/ are what the code is today."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.site import chains, event, rooms
from tests.test_layers import ROOMS


def test_the_picture_of_the_chains_is_what_the_compiler_makes() -> None:
    """The file, to the byte; where this fails, `make pictures` draws it anew."""
    assert chains.PICTURE.read_text() == chains.picture()


def test_the_picture_of_the_rooms_is_what_imports_what() -> None:
    """The file, to the byte; where this fails, `make pictures` draws it anew. Each room of the architecture stands in it."""
    assert rooms.PICTURE.read_text() == rooms.picture()
    assert set(ROOMS) - {"netpol"} | {rooms.NATIVE_ROOM} == set(rooms.PLACES)


def test_arrows_between_rooms_lead_down() -> None:
    """A room stands below those that use it, so that an arrow that goes up would be seen, and a circle cannot be drawn."""
    found = rooms.uses()
    assert {use.user for use in found} >= set(ROOMS) - {"netpol", "netpol.model", "netpol.errors"}
    assert [use for use in found if rooms.PLACES[use.user][0] >= rooms.PLACES[use.used][0]] == []


def test_the_picture_of_an_event_is_what_is_called() -> None:
    """Traced again, the calls are those of the file; where this fails, `make pictures` draws it anew."""
    found = event.trace()
    assert event.PICTURE.read_text() == event.picture(found)
    assert [[one.lane for one in calls][-1] for calls, _ in found.values()] == ["rules", "rules"]
    assert all({one.lane for one in calls} == set(event.LANES) for calls, _ in found.values())


@pytest.mark.parametrize("picture", [pytest.param(one.PICTURE, id=one.PICTURE.stem) for one in (chains, rooms)])
def test_a_picture_stays_in_its_frame(picture: Path) -> None:
    """It is well-formed, no box leaves it, and no two boxes touch."""
    root = ElementTree.fromstring(picture.read_text())
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    boxes = [[float(one.attrib[key]) for key in ("x", "y", "width", "height")] for one in root.findall(".//{*}rect") if "x" in one.attrib]
    assert len(boxes) > 6
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for at, (x, y, w, h) in enumerate(boxes):
        assert all(x + w < u or u + a < x or y + h < v or v + b < y for u, v, a, b in boxes[at + 1 :])
