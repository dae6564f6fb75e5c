"""`make bench`: every case once, a table at the end and bench-results.json in the directory that pytest runs from.

A missed goal is printed, not failed: it is a figure of this machine and this hour. A case that errs, or does not do what it should, fails.
"""

from __future__ import annotations

import compileall
import os
import shutil
from pathlib import Path

import pytest

from netpol.bench import Result
from netpol.bench.report import FILE, added, from_json, run_of, table, to_json
from netpol.kernel import namespaces

if os.geteuid() != 0:
    namespaces.enter_private_world()
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # it has no types

    with IPRoute() as routes:
        routes.link("set", index=1, state="up")  # for servers on the loopback

LEAST_WIDTH = 120  # where there is no terminal, too

RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--add", action="store_true", help=f"keep the other rows of {FILE}, where they are of this machine")


def pytest_configure(config: pytest.Config) -> None:
    # As whoever installs it has it: what a checkout compiles at each start is no figure of netpol's.
    compileall.compile_dir(Path(__file__).parents[1] / "netpol", quiet=1)
    config.stash[RESULTS] = []
    try:
        _with_others(config, [])  # before anything is measured that could not be added
    except ValueError as error:
        raise pytest.UsageError(f"{FILE}, which rows are to be added to: {error}") from error


@pytest.fixture
def results(pytestconfig: pytest.Config) -> list[Result]:
    """The rows so far."""
    return pytestconfig.stash[RESULTS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[RESULTS]
    if not rows:
        return
    path, rows = _path(config), _with_others(config, rows)
    path.write_bytes(to_json(run_of(rows)))
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    terminalreporter.write_line("")
    terminalreporter.write(table(rows, width, terminalreporter.hasmarkup))
    terminalreporter.write_line(f"written to {path}")


def _path(config: pytest.Config) -> Path:
    return Path(config.invocation_params.dir) / FILE


def _with_others(config: pytest.Config, rows: list[Result]) -> list[Result]:
    """These rows, and with --add those of the run before; ValueError where it is none that they can be added to."""
    path = _path(config)
    return added(from_json(path.read_bytes()), rows) if config.getoption("--add") and path.exists() else rows
