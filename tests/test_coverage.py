"""The explanations of lines that no test runs are held to the lines, both ways."""

from __future__ import annotations

import pytest

from tests.coverage import PAGE, ROOT, ROW, disagreements

TOLD = "| `np_nl.c` | `return 0;` | because |\n"
NEVER = ("csrc/np_nl.c", 7, "return 0;")


@pytest.mark.parametrize(
    ("never", "page", "words"),
    [
        pytest.param([NEVER], TOLD, [], id="explained"),
        pytest.param([NEVER], "", ["does not say why: return 0;"], id="unexplained"),
        pytest.param([], TOLD, ["or is gone: return 0;"], id="runs, or is gone"),
        pytest.param([NEVER, NEVER], TOLD, ["does not say why: return 0;"], id="one of two"),
        pytest.param([("csrc/np_ct.c", 7, "return 0;")], TOLD, ["csrc/np_ct.c", "csrc/np_nl.c"], id="of another file"),
    ],
)
def test_each_line_has_its_reason(never: list[tuple[str, int, str]], page: str, words: list[str]) -> None:
    """A line without a row, and a row without its line, are told, with the file and the line."""
    told = list(disagreements(never, page))
    assert len(told) == len(words)
    assert all(word in line for word, line in zip(words, told, strict=True))


def test_what_is_explained_is_there() -> None:
    """Each row of the page quotes a line of its file, whatever this machine's compiler counts."""
    for file, text in ROW.findall(PAGE.read_text()):
        assert text in [line.strip() for line in (ROOT / "csrc" / file).read_text().splitlines()], f"{file}: {text}"
