"""The command table: what `netpol` lists, loads and says when something fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner, Result

import netpol
from netpol.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kubernetes-docs.yaml"
Invoke = Callable[[str], Result]

OBJECT = 'InvalidObject("Pod default/web", "status.podIP", "is no address", "pods.yaml")'


def command(*arguments: str, stdout: IO[bytes]) -> subprocess.CompletedProcess[str]:
    """A process of its own, whose standard output is that."""
    words = [sys.executable, "-m", "netpol.cli.main", *arguments]
    return subprocess.run(words, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command of its own, `try-it`, whose body is the one statement given."""

    def call(body: str) -> Result:
        module = "command_for_test_main"
        text = f"import click\nfrom netpol.errors import *\n\n@click.command()\ndef try_it():\n    {body}\n"
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(COMMANDS, "try-it", (module, "Tries it."))
        return CliRunner().invoke(main, ["try-it"])

    return call


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        pytest.param('print("done")', 0, "", id="nothing is wrong"),
        pytest.param('raise LabError("no /dev/net/tun")', 1, "netpol: no /dev/net/tun\n", id="an error of ours"),
        pytest.param(
            'raise KernelError(16, "ipset destroy", "NETPOL-x", "in use")',
            1,
            "netpol: ipset destroy NETPOL-x: in use\n",
            id="the kernel refused",
        ),
        pytest.param(f"raise {OBJECT}", 2, "netpol: pods.yaml: Pod default/web: status.podIP: is no address\n", id="an object"),
        pytest.param(
            f"raise InvalidManifests(({OBJECT},) * 2)",
            2,
            "netpol: pods.yaml: Pod default/web: status.podIP: is no address\n" * 2,
            id="manifests",
        ),
    ],
)
def test_an_error_becomes_words_and_an_exit_code(invoke: Invoke, body: str, code: int, words: str) -> None:
    """Ours: `netpol: ` before each line, on standard error; 2 for bad input and 1 for the rest."""
    result = invoke(body)
    assert (result.exit_code, result.stderr) == (code, words)


def test_an_error_that_is_not_ours_is_not_hidden(invoke: Invoke) -> None:
    """A bug in netpol keeps its traceback."""
    assert isinstance(invoke("1 / 0").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("render", "-f", str(EXAMPLE)), id="render"),
        pytest.param(("matrix", "-f", str(EXAMPLE)), id="matrix"),
        pytest.param(("matrix", "-f", str(EXAMPLE), "--json"), id="matrix --json"),
        pytest.param(("preflight",), id="a table"),
        pytest.param(("render", "--help"), id="help"),
        pytest.param(("--help",), id="help of all"),
        pytest.param(("--version",), id="version"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_becomes_words(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], unbuffered: str) -> None:
    """Where the output goes: exit code 1, and no traceback, whether or not something is left to be written at the end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "wb") as full:
        done = command(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (1, f"netpol: the output cannot be written: {os.strerror(errno.ENOSPC)}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [("render", "-f", str(EXAMPLE)), ("matrix", "-f", str(EXAMPLE)), ("--help",)], ids=lambda found: found[0]
)
def test_a_reader_who_went_away_is_no_error(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], unbuffered: str) -> None:
    """As `netpol render | head` is: not a word."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    end, other = os.pipe()
    os.close(end)
    with open(other, "wb") as closed:
        done = command(*arguments, stdout=closed)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("error", ['OSError(errno.EBADF, "x")', 'OSError(errno.ENOSPC, "x", "file")'])
def test_another_error_of_the_system_is_not_hidden(invoke: Invoke, error: str) -> None:
    """Of another kind, or about a file that is named: whoever opened it had to say so."""
    assert isinstance(invoke(f"import errno; raise {error}").exception, OSError)


def test_help_lists_a_command_whose_module_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """--help works from the table alone."""
    monkeypatch.setitem(COMMANDS, "absent", ("netpol.cli.no_such_module", "Is not there."))
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout and words.split()[0] in result.stdout for name, (_, words) in COMMANDS.items())


def test_an_unknown_command_is_a_usage_error() -> None:
    """Exit code 2, and the name that was not found."""
    result = CliRunner().invoke(main, ["no-such-command"])
    assert result.exit_code == 2
    assert "no-such-command" in result.stderr


def test_version() -> None:
    """--version names the program and the package's version."""
    assert CliRunner().invoke(main, ["--version"]).stdout == f"netpol, version {netpol.__version__}\n"
