"""`python -m tests.valgrind [arguments of pytest]`: the hot C paths, or tests, under valgrind's memcheck, and what of its errors is ours.

An error is ours where our module, or cffi's, stands in the calls that lead to it, or to where its bytes come from: a byte read or written
outside, a decision by a byte that nobody set, one that goes to the kernel, a block that is lost. CPython's own errors are not
suppressed one by one: they are counted, told, and no failure. Its allocator is malloc meanwhile, so that blocks are seen as they are; the
module is built without optimisation (`make valgrind`), so that fields are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = ("_native", "_cffi_backend")
# What is kept for as long as the process lives is no loss; memory that a pointer into the middle keeps is Python's way.
LEAKS = ["--leak-check=full", "--show-leak-kinds=definite"]
OPTIONS = ["--tool=memcheck", *LEAKS, "--track-origins=yes", "--num-callers=30", "--xml=yes"]

# What makes pytest's start long: under memcheck it takes longer than the tests.
PYTEST = ["--assert=plain", *(word for name in ("cacheprovider", "faulthandler", "benchmark") for word in ("-p", f"no:{name}"))]


# The kernel writes the counters of the old rules behind a pointer that setsockopt takes, which memcheck does not know: they are cleared
# before.
PROGRAM = """
import runpy, sys
from netpol.kernel import xtables
xtables._allocate = xtables.ffi.new_allocator()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def errors(report: str) -> Iterator[tuple[bool, str]]:
    """Whether each error of a report is ours, and the error in words: what, and the calls."""
    for error in ElementTree.fromstring(report).iter("error"):
        frames = list(error.iter("frame"))
        what = [node.text or "" for tag in ("what", "xwhat/text", "auxwhat") for node in error.iterfind(tag)]
        kind = error.findtext("kind") or "?"
        ours = any(is_ours(frame, kind) for frame in frames)
        calls = [f"  {f.findtext('fn') or '?'} ({f.findtext('file') or f.findtext('obj')}:{f.findtext('line') or '?'})" for f in frames]
        yield ours, "\n".join([f"{kind}: {'; '.join(what)}", *calls])


def is_ours(frame: ElementTree.Element, kind: str) -> bool:
    """Whether a call is in our module or cffi's. Of blocks that are lost only C's own count: cffi keeps what makes up a module for ever."""
    module = Path(frame.findtext("obj") or "").name
    if kind.startswith("Leak_"):
        return module.startswith("_native") and (frame.findtext("fn") or "").startswith("np_")
    return module.startswith(OURS)


def run(arguments: Sequence[str], folder: Path) -> tuple[int, list[str], int]:
    """Runs a module of Python's, its name and its arguments, under memcheck: its exit code, what is ours, and how many errors are not.

    Processes that it forks are looked at too; programs that it starts are not.
    """
    command = ["valgrind", *OPTIONS, f"--xml-file={folder}/%p.xml", sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONMALLOC": "malloc"})
    ours, others = list[str](), 0
    for file in sorted(folder.glob("*.xml")):
        # A process that was killed, or became another program, leaves a report without its end.
        text = file.read_text()
        for mine, words in errors(text if text.rstrip().endswith("</valgrindoutput>") else f"{text}</valgrindoutput>"):
            ours += [words] if mine else []
            others += not mine
    return done.returncode, ours, others


def main() -> int:
    arguments = ["pytest", *PYTEST, *sys.argv[1:]] if sys.argv[1:] else ["tests.bench.instructions"]
    with tempfile.TemporaryDirectory() as folder:
        code, ours, others = run(arguments, Path(folder))
    print("\n\n".join(ours))
    print(f"memcheck: {len(ours)} errors in our module; {others} in CPython and its libraries")
    return code or int(bool(ours))


if __name__ == "__main__":
    sys.exit(main())
