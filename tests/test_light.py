"""`import netpol` and `netpol --help` import next to nothing: people run the command often, and the agent is small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"pyroute2", "rich", "yaml", "msgspec", "kubernetes", "cffi", "_cffi_backend", "asyncio", "ssl", "http"}
ROOMS = {"policy", "rules", "kernel", "kube", "lab", "agent", "bench"}


def imported(*arguments: str) -> set[str]:
    """The modules that a fresh interpreter imports when it runs with these arguments."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    ("arguments", "must"),
    [
        pytest.param(("-c", "import netpol"), "netpol", id="import netpol"),
        pytest.param(("-m", "netpol.cli.main", "--help"), "netpol.errors", id="netpol --help"),
        pytest.param(("-m", "netpol.cli.main", "--version"), "netpol.errors", id="netpol --version"),
    ],
)
def test_light(arguments: tuple[str, ...], must: str) -> None:
    """Nothing heavy, no room but cli, and so never the native module."""
    modules = imported(*arguments)
    assert must in modules, "the list of imports was not read"
    assert not {module.partition(".")[0] for module in modules} & HEAVY
    assert not {module for module in modules if module.startswith(tuple(f"netpol.{room}" for room in ROOMS))}
    assert not {module for module in modules if module.startswith("netpol.cli.") and module != "netpol.cli.main"}


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        pytest.param(("-c", "import netpol"), set(), id="import netpol"),
        pytest.param(("-m", "netpol.cli.main", "--help"), {"click", "netpol.cli", "netpol.errors"}, id="netpol --help"),
    ],
)
def test_nothing_but_click(arguments: tuple[str, ...], more: set[str]) -> None:
    """Beside the standard library, what Python starts with anyway, and parts of click: exactly these modules."""
    modules = {module for module in imported(*arguments) - imported("-c", "") if module.partition(".")[0] not in sys.stdlib_module_names}
    assert {"click" if module.startswith("click.") else module for module in modules} == {"netpol", *more}


def test_the_kubernetes_package_waits_for_a_client() -> None:
    """Following an API server is decided without it: only what connects imports it."""
    modules = imported("-c", "import netpol.kube.sources")
    assert "netpol.kube.reflector" in modules, "the list of imports was not read"
    assert not {module.partition(".")[0] for module in modules} & {"kubernetes", "urllib3", "pydantic"}
