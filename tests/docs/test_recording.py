"""The moving picture of the demo says what the demo says now, and is one that any page can show."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from docs.site import recording
from tests.cli.demos import plain

SVG = recording.PICTURE.read_text()


def test_the_recording_is_what_the_demo_shows_now() -> None:
    """Recorded again, the last frame has the same lines in the same colours; where this fails, `make recording` draws it anew."""
    frames = recording.record()
    now, then = frames[-1].lines, recording.read(SVG)
    assert [plain(recording.text_of(line)) for line in then] == [plain(recording.text_of(line)) for line in now]
    assert [[run.look for run in line] for line in then] == [[run.look for run in line] for line in now]
    assert "94 flows, 94 as specified." in frames[-1].text()[-3]
    assert any("trying" in line or "building" in line for frame in frames for line in frame.text()), "no frame of the work itself"


def test_the_last_frame_is_what_stands_still() -> None:
    """Without an animation the film stands where the animation ends, and a reader who wants less motion has none."""
    ElementTree.fromstring(SVG)
    (still,) = re.findall(r"#film\{transform:(translateY\(-\d+px\));animation:play", SVG)
    (keys,) = re.findall(r"@keyframes play\{(.*)\}$", SVG, re.M)
    assert re.findall(r"100\.00%\{transform:(.*?);", keys) == [still]
    places = [float(at) for at in re.findall(r"([\d.]+)%\{", keys)]
    assert places == sorted(places)
    assert "@media (prefers-reduced-motion:reduce){#film{animation:none}}" in SVG
    lines = len(recording.read(SVG))
    last = int(still[len("translateY(-") : -len("px)")])
    frames = SVG.count("<g>")
    assert last == (frames * recording.ROWS + max(0, lines - recording.ROWS)) * recording.LINE


def test_the_picture_is_small_and_needs_nothing() -> None:
    """Below 150 kB; no script, and no address but that of SVG itself."""
    assert len(SVG.encode()) < 150_000
    assert "<script" not in SVG
    assert "href" not in SVG
    assert re.findall(r"https?://[^\"]+", SVG) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        pytest.param(b"a\r\nb", ["a", "b"], id="two lines"),
        pytest.param(b"\x1b[?25l\x1b[32mx\x1b[0m wait\r\x1b[2Kdone", ["done"], id="a line that is wiped"),
        pytest.param(b"wait\r\n\x1b[?25h\r\x1b[1A\x1b[2Kdone\r\nb", ["done", "b"], id="back to a line and wiped"),
        pytest.param("é".encode()[:1], [""], id="half a character"),
        pytest.param(b"\x1b[1mTitle\x1b[0m  \x1b[2mx\x1b[0m", ["Title  x"], id="looks"),
    ],
)
def test_what_a_terminal_shows(written: bytes, lines: list[str]) -> None:
    """Texts of lines."""
    assert recording.Frame(0.0, recording.shown(written)).text() == lines


@pytest.mark.parametrize("written", [pytest.param(b"a\x1b[5;5Hb", id="a place"), pytest.param(b"wait\rdone", id="over a text")])
def test_what_is_not_known_is_refused(written: bytes) -> None:
    """Drawn wrong it would look right."""
    with pytest.raises(RuntimeError):
        recording.shown(written)


def test_looks() -> None:
    """Colours, weight and columns come out of a picture as they went in."""
    lines = recording.shown(b"\x1b[1;36mname\x1b[0m: <&>  \x1b[31m\xe2\x9c\x97\x1b[0m\x1b[2m  q\x1b[0m\r\n\r\nend")
    assert lines[0] == (
        recording.Run(0, "name", "cyan bold"),
        recording.Run(4, ": <&>", ""),
        recording.Run(11, "✗", "red"),
        recording.Run(14, "q", "dim"),
    )
    frames = [recording.Frame(0.0, lines[:1]), recording.Frame(1.0, lines)]
    assert tuple(recording.read(recording.picture(frames))) == lines
