"""What says the same thing twice about packaging says the same: pyproject.toml, setup.py, the workflows, the table of licences."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import netpol
from tests import licences

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
RUNNERS = {"x86_64": "ubuntu-24.04", "aarch64": "ubuntu-24.04-arm"}
# setup.py, run with setuptools.setup replaced: what it would ask for on a Python whose configuration says so.
ASKED = """
import json, runpy, setuptools, sys, sysconfig
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: int(sys.argv[1]) if name == "Py_GIL_DISABLED" else real(name)
setuptools.setup = lambda **given: print(json.dumps(given["options"]))
runpy.run_path("setup.py")
"""


def jobs(name: str) -> dict[str, dict[str, object]]:
    """The jobs of a workflow."""
    found = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]
    assert isinstance(found, dict)
    return found


def matrix(job: dict[str, object]) -> dict[str, list[str]]:
    """What a job runs on."""
    strategy = job["strategy"]
    assert isinstance(strategy, dict)
    found = strategy["matrix"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(workflow: Path) -> None:
    """Each is YAML, gives itself read rights only, bounds each job's time, and names actions by commit, never by a tag that can move."""
    text = workflow.read_text()
    found = yaml.safe_load(text)
    assert found["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in found["jobs"].values())
    uses = [line.strip().removeprefix("- ") for line in text.splitlines() if "uses:" in line]
    assert uses
    assert [line for line in uses if not PINNED.match(line)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_modules_are_loaded_before_packets_are_judged(workflow: Path) -> None:
    """Nothing of netpol loads legacy x_tables, and a runner's system has not: each job that needs it does, in a step before."""
    for name, job in jobs(workflow.name).items():
        commands = [step.get("run", "") for step in job["steps"]]  # type: ignore[attr-defined]  # YAML
        loads = [i for i, command in enumerate(commands) if command.startswith("sudo modprobe -a ip_tables ip6_tables")]
        judges = [i for i, command in enumerate(commands) if re.search(r"\.ci/(run|lowest|wheel)|make test|netpol demo", command)]
        assert not judges or (loads and loads[0] < judges[0]), name


def test_a_release_tries_each_python_on_each_architecture() -> None:
    """The Pythons are those that pyproject.toml names, with the free-threaded one that cibuildwheel builds for."""
    assert f'requires-python = ">={PYTHONS[0]}"' in PYPROJECT
    built = re.findall(r'"cp3(\d+)t-', PYPROJECT)
    install = matrix(jobs("release.yml")["install"])
    assert install["python"] == [*PYTHONS, *(f"3.{minor}t" for minor in built)]
    architectures = set(re.findall(r"^(?:many|musl)linux-(\w+)-image", PYPROJECT, re.MULTILINE))
    assert set(install["os"]) == set(matrix(jobs("release.yml")["wheels"])["os"]) == {RUNNERS[name] for name in architectures}


def test_the_lowest_dependencies_are_tested_on_the_first_and_last_python() -> None:
    """Where a bound is too low is seen on the oldest Python or on the newest."""
    assert matrix(jobs("ci.yml")["lowest"])["python"] == [PYTHONS[0], PYTHONS[-1]]


def test_only_the_last_job_may_publish() -> None:
    """Nothing is published that was not built from the sdist, checked, installed, listed and attested."""
    release = jobs("release.yml")
    assert [name for name, job in release.items() if any("pypi-publish" in str(step) for step in job["steps"])] == ["publish"]  # type: ignore[attr-defined]  # YAML
    needed: set[str] = set()
    waiting = ["publish"]
    while waiting:
        asked = release[waiting.pop()].get("needs", [])
        more = {asked} if isinstance(asked, str) else set(asked)  # type: ignore[call-overload]  # YAML
        waiting += more - needed
        needed |= more
    assert needed == set(release) - {"publish"}


def test_the_version_has_one_source() -> None:
    """netpol/__init__.py says it; the metadata has it from there, and the examples of deploying name the same image."""
    assert 'version = { attr = "netpol.__version__" }' in PYPROJECT
    assert not re.search(r'^version\s*=\s*"', PYPROJECT, re.MULTILINE)
    assert version("netpol-agent") == netpol.__version__
    for file in ("deploy/Dockerfile", "deploy/daemonset.yaml"):
        assert set(re.findall(r"netpol-agent:(\d[\w.]*)", (ROOT / file).read_text())) == {netpol.__version__}


@pytest.mark.parametrize(
    ("free_threaded", "options"), [("0", {"bdist_wheel": {"py_limited_api": "cp310"}}), ("1", {})], ids=["gil", "free-threaded"]
)
def test_the_limited_api_is_asked_for_where_there_is_one(free_threaded: str, options: dict[str, object]) -> None:
    """A free-threaded Python gets a wheel of its own version."""
    done = subprocess.run([sys.executable, "-c", ASKED, free_threaded], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == options


def test_each_dependency_has_a_lower_bound() -> None:
    """One that has none would be tested at a version of ten years ago, or not at all."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert listed
    requirements = [Requirement(line.strip(' ",')) for line in listed[1].splitlines()]
    assert len(requirements) == 8
    assert [item.name for item in requirements if [bound.operator for bound in item.specifier] != [">="]] == []


def test_licences_are_listed() -> None:
    """Every package that an installation brings, of any depth, stands in docs/licences.md, and each says its licence."""
    rows = licences.listed()
    assert set(licences.installed()) - set(rows) == set(), "run python -m tests.licences"
    assert [name for name, (terms, _) in rows.items() if terms == "unknown"] == []
