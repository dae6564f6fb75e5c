"""`python -m tests.faults NAME SHIM COUNT SEED`: the story under so many of its faults, drawn at random, or under all where COUNT is 0; and
under a tenth as many rows of up to five faults, one try after another. Says how many there were; ends with 1, and a line for each that
went wrong, where one did."""

from __future__ import annotations

import random
import sys
import traceback

from netpol.kernel import namespaces
from tests.faults.shim import NONE, Fault, Shim
from tests.faults.stories import Story, faults, story


def main(name: str, path: str, count: int, seed: int) -> int:
    shim, drawn = Shim(path), random.Random(seed)
    with namespaces.entered(namespaces.create()):
        told = story(name)
        told.play([NONE], shim)
        assert told.error is None, told.error
        calls = shim.last
        single = list(faults(calls))
        rows = [[fault] for fault in (drawn.sample(single, count) if 0 < count < len(single) else single)]
        rows += [drawn.sample(single, drawn.randint(2, 5)) for _ in range(len(rows) // 10)]
        wrong = [objection for row in rows if (objection := objected(told, row, shim))]
    print(f"{name}: {len(calls.kinds)} calls ({calls.kinds}), {len(rows)} of {len(single)} faults and rows of them, {len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


def objected(told: Story, row: list[Fault], shim: Shim) -> str:
    """What went wrong in a round, or nothing."""
    try:
        told.play(row, shim)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{'; '.join(map(str, row))}: {type(error).__name__}: {error} ({at.filename}:{at.lineno}; it raised: {told.error})"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
