"""Which of memcheck's errors `make valgrind` takes for ours."""

from __future__ import annotations

import pytest

from tests import valgrind

FRAME = "<frame><obj>{obj}</obj><fn>{fn}</fn></frame>"
ERROR = "<error><kind>{kind}</kind><what>said</what><stack>{stack}</stack><auxwhat>made by</auxwhat><stack>{origin}</stack></error>"
PYTHON, OURS = FRAME.format(obj="/usr/bin/python3", fn="PyEval"), FRAME.format(obj="/x/_native.abi3.so", fn="np_sort")

CFFI = FRAME.format(obj="/x/_cffi_backend.so", fn="build")


def report(stack: str, origin: str = "", kind: str = "UninitCondition") -> str:
    return f"<valgrindoutput>{ERROR.format(kind=kind, stack=stack, origin=origin)}</valgrindoutput>"


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        pytest.param(report(OURS + PYTHON), True, id="in C"),
        pytest.param(report(PYTHON, OURS), True, id="of bytes that come from C"),
        pytest.param(report(OURS, kind="Leak_DefinitelyLost"), True, id="a loss"),
        pytest.param(report(PYTHON, PYTHON), False, id="CPython's"),
        pytest.param(report(CFFI + OURS.replace("np_", "_cffi_"), kind="Leak_DefinitelyLost"), False, id="what cffi keeps"),
    ],
)
def test_whose_an_error_is(text: str, ours: bool) -> None:
    """Ours, where our module stands in the calls to it, or to where the bytes come from; the words name it."""
    ((mine, words),) = valgrind.errors(text)
    assert mine == ours
    assert ("np_sort (/x/_native.abi3.so:?)" in words) == ours
