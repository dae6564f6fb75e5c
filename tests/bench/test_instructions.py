"""Gates: how many instructions the hot C paths take, as callgrind counts them. More of them fail the build.

The work is `tests.bench.instructions`: 1,000 of everything. How many instructions it takes does not depend on how busy the machine is, nor
on chance; but it does on the compiler. So the ceilings are close for the compiler that the figures are from, and far for any other.
After a change that is meant, a failure prints the new figures in the form of the table below.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import netpol.kernel
from tests.referees import require, run

COMPILER, ROOM, OTHERS = "GCC 12", 1.03, 2.0

# function of csrc/ -> thousands of instructions, those of what it calls included, for all of the work
THOUSANDS = {
    "np_ipset_members": 290,  # 3,000 members written
    "np_runs_begin": 96,  # of which 2,000 are marked or sorted
    "np_ipset_parse_dump": 1893,  # read, and again for digests
    "np_sort": 453,  # sorted, to be written and when they were read
    "np_digest_members": 2235,
    "np_digest": 3859,  # of these, and of a table of 1,000 rules
    "np_xt_encode": 1413,  # written once
    "np_xt_split": 741,  # taken apart, before the first replace and when it is read
    "np_xt_normalise": 489,
    "np_xt_same": 152,  # beside what was left
    "np_xt_link": 10,
    "np_ct_parse_dump": 1365,  # 1,000 flows read
    "np_judge_sort": 211,  # and judged
}


def compiler() -> str:
    """What the native module was made with."""
    module = next(Path(netpol.kernel.__file__).parent.glob("_native*.so")).read_bytes()
    found = re.search(rb"GCC: \([^)]*\) (\d+)", module)
    return "clang" if b"clang version" in module else f"GCC {found[1].decode()}" if found else "unknown"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Function -> thousands of instructions. Of the process only what Python calls in C is counted."""
    require("valgrind", "callgrind_annotate")
    out = tmp_path_factory.mktemp("callgrind") / "out"
    options = ["--tool=callgrind", "--quiet", "--toggle-collect=_cffi_f_np_*", f"--callgrind-out-file={out}"]
    # Members come in the order of their hashes.
    run("env", "PYTHONHASHSEED=0", "valgrind", *options, sys.executable, "-m", "tests.bench.instructions", seconds=300)
    return inclusive(run("callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)))


def inclusive(text: str) -> dict[str, float]:
    """What callgrind_annotate says: of a function there is a line for each file that something in it comes from, and one for all of it."""
    found: dict[str, float] = {}
    for count, name in re.findall(r"^ *([\d,]+) \([ \d.]+%\)  [^=\n]*:(np_\w+)(?= \[|$)", text, re.MULTILINE):
        found[name] = max(found.get(name, 0.0), int(count.replace(",", "")) / 1000)
    return found


@pytest.mark.parametrize("function", THOUSANDS)
def test_a_hot_path_takes_no_more_instructions(counted: dict[str, float], function: str) -> None:
    """Nothing that the machine does meanwhile changes the figure."""
    room = ROOM if compiler() == COMPILER else OTHERS
    now = ", ".join(f'"{name}": {counted[name]:.0f}' for name in THOUSANDS)
    assert counted[function] <= room * THOUSANDS[function], f"{compiler()}: {{{now}}}"


def test_what_is_read_is_what_callgrind_says() -> None:
    """The line for all of a function counts, be its name shortened to a file of another or not; a caller's share does not."""
    text = """\
   416 (10.00%)  /x/csrc/np_ct.c:np_ct_open
   405 ( 9.81%)  csrc/np_ct.c:np_ct_open [/x/_native.so]
     9 ( 0.02%)  => csrc/np_ct.c:np_ct_open (1x)
 1,365 (90.00%)  ???:np_sort [/x/_native.so]
"""
    assert inclusive(text) == {"np_ct_open": 0.416, "np_sort": 1.365}
