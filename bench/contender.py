"""One side of a comparison: a tree's own half of one row, a run at a time, in a process of its own.

`python bench/contender.py TREE ROW` says "ready" when the row was verified once, or "absent" where the tree has no row of that name. Then
it answers each line that it reads with the seconds of one operation. It imports nothing of the tree that it lies in, and of the other one
no more than what revisions have in common.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

PAUSE = 0.03  # seconds: what the kernel frees late is not paid by the next run


def main(tree: str, row: str) -> None:
    """See the module."""
    # In front stands the folder of this file.
    sys.path[0] = tree
    import netpol

    if not Path(str(netpol.__file__)).is_relative_to(tree):
        raise SystemExit(f"netpol is {netpol.__file__}, which is not of {tree}")
    from netpol.bench.cases import cases, node_cases
    from netpol.kernel import namespaces

    case = next((case for case in (*cases(), *node_cases()) if case.row == row), None)
    if case is None:
        print("absent", flush=True)
        return
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="netpol-bench-")))
        stack.enter_context(namespaces.private_lock())
        namespace = namespaces.create()
        stack.callback(os.close, namespace)
        stack.enter_context(namespaces.entered(namespace))
        contest = stack.enter_context(case.open(directory))
        ours = contest.ours
        ours.prepare()
        ours.verify(ours.run())
        print("ready", flush=True)
        for _ in sys.stdin:
            ours.prepare()
            time.sleep(PAUSE)
            start = time.perf_counter()
            ours.run()
            print((time.perf_counter() - start) / contest.operations, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
