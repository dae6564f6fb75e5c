"""The fuzz targets of Python: what they are, and how one is run.

Each is one file beside this one, which opens with its invariant: `INPUTS` are bytes that hypothesis makes, `check` raises where the
invariant breaks. An input that did becomes a file in regressions/TARGET, which the tests replay ever after.
"""

from __future__ import annotations

import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import manifests, objects, watch
from tests.fuzz.targets import Found


class Reader(NamedTuple):
    """A target: what it is fed, and what holds of that."""

    inputs: st.SearchStrategy[bytes]
    check: Callable[[bytes], None]


READERS = {
    "watch": Reader(watch.INPUTS, watch.check),
    "objects": Reader(objects.INPUTS, objects.check),
    "manifests": Reader(manifests.INPUTS, manifests.check),
}
ROUND = 500  # examples of one seed


def run(reader: Reader, artifacts: Path, *, examples: int = 0, seconds: float = 0.0) -> int:
    """Executions: so many examples, always the same ones; or new ones each time, until so many seconds are over.

    Found, with the input in `artifacts`, when one breaks.
    """
    end, rounds = time.monotonic() + seconds, 0
    if not seconds:
        return _round(reader, artifacts, 0, examples)
    executions = 0
    first = time.time_ns()
    while time.monotonic() < end:
        executions += _round(reader, artifacts, first + rounds, ROUND)
        rounds += 1
    return executions


def _round(reader: Reader, artifacts: Path, number: int, examples: int) -> int:
    executions = 0
    last = b""

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.inputs)
    def law(data: bytes) -> None:
        nonlocal executions, last
        executions += 1
        last = data
        reader.check(data)

    try:
        law()
    except Exception as error:
        # The last one is the simplest.
        artifacts.mkdir(parents=True, exist_ok=True)
        file = artifacts / f"{zlib.crc32(last):08x}"
        file.write_bytes(last)
        raise Found(f"{file}: {last[:2000]!r}\n{''.join(traceback.format_exception(error))[-4000:]}") from None
    return executions
