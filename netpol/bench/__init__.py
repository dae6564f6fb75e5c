"""What our kernel calls cost beside the programs and libraries that do the same: `cases()` to measure, `measure` to do it.

Here because users will run them too; `bench/` gives them to pytest-benchmark.
"""

from netpol.bench.cases import cases
from netpol.bench.measure import BenchError, Case, Session, measure
from netpol.bench.result import PeerResult, Result

__all__ = ["BenchError", "Case", "PeerResult", "Result", "Session", "cases", "measure"]
