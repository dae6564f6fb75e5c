"""A case measured in a process of its own, which did nothing else before: no row pays for the memory, the caches or the garbage of
another, and each has its own figures of memory.

`python -m netpol.bench.apart WHAT PAIRS` is that process. WHAT is the case and where its modules are found, pickled, in hex; it prints a
`Measured`, as JSON. It inherits the network namespace of the thread that asks, and leaves it for the case's own like every session.
"""

from __future__ import annotations

import pickle
import sys

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from netpol.bench.measure import BenchError, Case, Session
from netpol.bench.peers import output
from netpol.bench.report import peak, resident
from netpol.bench.result import Result


class Measured(Struct, frozen=True, tag=True):
    """The row; the seconds that each of our runs took, all its operations together, and how many these are."""

    result: Result
    times: tuple[float, ...]
    operations: int


class Failed(Struct, frozen=True, tag=True):
    """The words of a BenchError."""

    words: str


def apart(case: Case, pairs: int = 0) -> Measured:
    """Measures a case in a fresh process; `pairs` as in `measure`. BenchError when it does not do what it should."""
    what = pickle.dumps((sys.path, pickle.dumps(case)))
    printed = output(sys.executable, "-m", __name__, what.hex(), str(pairs))
    outcome: Measured | Failed = msgspec.json.decode(printed, type=Measured | Failed)
    if isinstance(outcome, Failed):
        raise BenchError(outcome.words)
    return outcome


def main(what: str, pairs: str) -> bytes:
    """Measures here; a `Measured`, or `Failed`, as JSON."""
    # The path first: only then the case's modules are found.
    sys.path, packed = pickle.loads(bytes.fromhex(what))
    case: Case = pickle.loads(packed)
    least = resident()
    try:
        with Session(case) as session:
            session.run(int(pairs))
            result = replace(session.result(), least_mebibytes=round(least, 1), peak_mebibytes=round(peak(), 1))
            return msgspec.json.encode(Measured(result, session.times, session.operations))
    except BenchError as error:
        return msgspec.json.encode(Failed(str(error)))


if __name__ == "__main__":
    print(main(*sys.argv[1:]).decode())
