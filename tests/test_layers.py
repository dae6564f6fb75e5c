"""Who may import whom, room by room, held against every import statement of the package: inside functions and TYPE_CHECKING too.

The lists below are the architecture's, written once more so that a change of them is made on purpose. A new room, or a new
module at the top, needs a row; a pure room's part of the standard library is a list of what it may use, so that no I/O, clock
or log comes in by a door that nobody thought of.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
NATIVE = "netpol.kernel._native"
NATIVE_USERS = ("netpol.kernel", "netpol.kube.protobuf")
EVERYONE = ("netpol.__version__", "netpol.errors", "netpol.model")

# What values and decisions need of the standard library.
# fmt: off
PURE = frozenset({
    "__future__", "abc", "array", "base64", "bisect", "collections", "contextlib", "dataclasses", "enum", "fractions",
    "functools", "graphlib", "hashlib", "heapq", "ipaddress", "itertools", "json", "math", "operator", "re", "string",
    "struct", "textwrap", "types", "typing", "unicodedata",
})
# fmt: on
PURE_BUILTINS_FORBIDDEN = frozenset({"open", "print", "input", "breakpoint", "exec", "eval"})


class Room(NamedTuple):
    """What a room or a module may import: prefixes of netpol (besides EVERYONE), and third-party packages.

    own -- its own room too; pure -- of the standard library only PURE and `standard`, and no built-in that does I/O;
    lazy -- netpol and third parties inside functions only, but for EVERYONE, the room itself and click.
    """

    netpol: tuple[str, ...] = ()
    third_party: frozenset[str] = frozenset()
    own: bool = True
    pure: bool = False
    lazy: bool = False
    standard: frozenset[str] = frozenset()


MSGSPEC = frozenset({"msgspec"})

ROOMS = {
    "netpol": Room(own=False),
    "netpol.errors": Room(own=False, pure=True),
    # socket is there for inet_pton and inet_ntop.
    "netpol.model": Room(third_party=MSGSPEC, own=False, pure=True, standard=frozenset({"socket"})),
    # sys is there for intern.
    "netpol.policy": Room(third_party=MSGSPEC, pure=True, standard=frozenset({"sys"})),
    "netpol.rules": Room(third_party=MSGSPEC, pure=True),
    "netpol.kernel": Room(("netpol.rules.ruleset", "netpol.rules.sets", "netpol.rules.flows"), MSGSPEC),
    "netpol.kube": Room(("netpol.policy.decode",), MSGSPEC | {"yaml"}),
    "netpol.agent": Room(("netpol.policy", "netpol.rules", "netpol.kernel", "netpol.kube"), MSGSPEC | {"prometheus_client"}),
    "netpol.lab": Room(("netpol.kernel.namespaces",), MSGSPEC | {"pyroute2"}),
    # pyroute2 is measured, and the agent's audit; rich draws the table that pytest's face and the command share.
    "netpol.bench": Room(
        ("netpol.policy", "netpol.rules", "netpol.kernel", "netpol.kube", "netpol.agent", "netpol.lab"),
        MSGSPEC | {"pyroute2", "kubernetes", "rich"},
    ),
    "netpol.cli": Room(("netpol",), MSGSPEC | {"click", "rich"}, lazy=True),
}

# Modules, and all inside them, that are held to more or allowed more than their room. Of rules, only the compiler knows policy. The
# specification and the interpreter share nothing with the compiler, so that each can convict it.
MODULES = {
    # One matcher of labels serves the specification and the index: tests/policy/test_selectors.py holds it against the documentation.
    "netpol.policy.verdict": Room(("netpol.policy.cluster", "netpol.policy.selectors"), MSGSPEC, own=False, pure=True),
    "netpol.rules.compile": Room(("netpol.policy",), MSGSPEC, pure=True),
    "netpol.rules.interpret": Room(("netpol.rules.ruleset", "netpol.rules.sets"), MSGSPEC, own=False, pure=True),
    # Bytes in, values out; and what to ask next. The connection and the threads are others'.
    "netpol.kube.watch": Room((), MSGSPEC, pure=True),
    # The one reader of bytes in C that are no kernel's.
    "netpol.kube.protobuf": Room((NATIVE,), frozenset(), own=False, pure=True, standard=frozenset({"errno"})),
    "netpol.kube.buffer": Room((), frozenset(), own=False, pure=True, standard=frozenset({"io"})),
    "netpol.kube.reflector": Room(("netpol.policy.decode",), MSGSPEC, pure=True),
    # The one module that imports the kubernetes package, and so takes 0.2 s: whoever needs it imports it when it runs.
    "netpol.kube.client": Room((), MSGSPEC | {"kubernetes", "urllib3"}),
    # Its one purpose is the import of whatever others name.
    "netpol.kube.later": Room((), frozenset(), own=False, standard=frozenset({"importlib"})),
    # What a command imports when it runs, and nobody before.
    "netpol.cli.connections": Room(("netpol",), MSGSPEC),
    "netpol.cli.main": Room((), frozenset({"click"}), own=False, lazy=True, standard=frozenset({"importlib"})),
    # What `netpol demo` is made of: loaded when that command runs, and so free to import what it needs.
    "netpol.cli.demonstration": Room(("netpol",), MSGSPEC | {"rich"}),
}
# Nobody outside these rooms needs the two judges, the compiler least of all. What judges running flows asks the interpreter.
JUDGES = ("netpol.policy.verdict", "netpol.rules.interpret")
READERS = ("netpol.agent", "netpol.bench", "netpol.cli", "netpol.rules.cut")


class Import(NamedTuple):
    """One imported name, dotted and absolute; `lazy` ones do not run when the module is imported."""

    target: str
    line: int
    lazy: bool


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the prefixes, or inside one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imports(tree: ast.Module, module: str, package: bool) -> Iterator[Import]:
    """Every imported name of a module, in no order: `from a import b` is a.b, a relative import is made absolute."""
    home = module.split(".") if package else module.split(".")[:-1]
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, lazy = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(start if alias.name == "*" else f"{start}.{alias.name}", node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lazy = True
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += [(child, True) for child in node.body] + [(child, lazy) for child in node.orelse]
            continue
        waiting += [(child, lazy) for child in ast.iter_child_nodes(node)]


def room_of(module: str) -> str:
    """The row of ROOMS that a module falls under: its first two names."""
    return ".".join(module.split(".")[:2])


def objection(module: str, room: Room, found: Import) -> str | None:
    """Why a module may not have this import; None where it may."""
    target, top = found.target, found.target.partition(".")[0]
    own = (room_of(module),) if room.own else ()
    if within(target, (NATIVE,)) and not within(module, NATIVE_USERS):
        return "only netpol.kernel touches the native module, and the reader of protobuf"
    if within(target, JUDGES) and not within(module, READERS):
        return "what judges the compiler is shared with nobody"
    if top == "netpol":
        if not within(target, EVERYONE + own + room.netpol):
            return "not on the list of its room"
        if room.lazy and not found.lazy and not within(target, EVERYONE + own):
            return "only inside a function: commands import what they need when they run"
    elif top in sys.stdlib_module_names:
        if room.pure and top not in PURE | room.standard:
            return "a pure room does no I/O, reads no clock and writes no log"
        if top == "importlib" and top not in room.standard and not within(target, ("importlib.resources", "importlib.metadata")):
            return "an import that no reader of the source can see"
    elif top not in room.third_party:
        return "a third-party package that its room does not use"
    elif room.lazy and not found.lazy and top != "click":
        return "only inside a function: commands import what they need when they run"
    return None


def violations(module: str, source: str, package: bool = False) -> list[str]:
    """What is wrong with a module's imports, a sentence each: "module:line: imported name: reason"."""
    if room_of(module) not in ROOMS:
        return [f"{module}: a room without a row in ROOMS"]
    room = next((row for name, row in MODULES.items() if within(module, (name,))), ROOMS[room_of(module)])
    tree = ast.parse(source)
    found = [(one.line, one.target, objection(module, room, one)) for one in imports(tree, module, package)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "__import__":
                found.append((node.lineno, "__import__", "an import that no reader of the source can see"))
            elif room.pure and node.func.id in PURE_BUILTINS_FORBIDDEN:
                found.append((node.lineno, node.func.id, "a pure room does no I/O, reads no clock and writes no log"))
    return [f"{module}:{line}: {target}: {reason}" for line, target, reason in sorted(found, key=lambda one: one[:2]) if reason]


def sources() -> dict[str, Path]:
    """Every module of the package: dotted name -> file."""
    files = sorted((ROOT / "netpol").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@pytest.mark.parametrize(("module", "file"), [pytest.param(module, file, id=module) for module, file in sources().items()])
def test_a_module_imports_what_its_room_may(module: str, file: Path) -> None:
    """The real import graph, one module at a time."""
    assert violations(module, file.read_text(), file.name == "__init__.py") == []


UNSANITIZED = re.findall(r"--ignore=tests/(\w+)(?= )", (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("room", [room for room in UNSANITIZED if room != "fuzz"])
def test_what_the_sanitizers_leave_out_has_no_c(room: str) -> None:
    """The rooms of tests that `make sanitize` does not run import, by any way, values and decisions only (or bring sanitizers)."""
    waiting = sorted((ROOT / "tests" / room).glob("*.py"))
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        names = [one.target for one in imports(ast.parse(file.read_text()), f"tests.{room}.x", package=False)]
        assert not [
            name for name in names if within(name, ("netpol",)) and not within(name, (*EVERYONE, "netpol.policy", "netpol.rules"))
        ], file
        for name in names:
            parts = name.split(".")
            files = {ROOT.joinpath(*parts[:depth]).with_suffix(".py") for depth in range(2, len(parts) + 1) if parts[0] == "tests"}
            new = {file for file in files if file.exists()} - seen
            waiting, seen = waiting + sorted(new), seen | new


@pytest.mark.parametrize("folder", ["bench", "tests"])
def test_the_native_module_is_the_kernel_rooms_own(folder: str) -> None:
    """Outside the package too, only the tests of netpol.kernel import it."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        if file.parent != ROOT / "tests" / "kernel":
            names = [one.target for one in imports(ast.parse(file.read_text()), "", package=True)]
            assert not [name for name in names if within(name, (NATIVE,))], file


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        pytest.param("netpol.policy.cluster", "import netpol.rules.ruleset", "not on the list", id="policy has rules"),
        pytest.param(
            "netpol.policy.cluster", "def f():\n  from ..rules import diff", "not on the list", id="a relative import in a function"
        ),
        pytest.param("netpol.policy", "from ..kernel import ipset", "not on the list", id="a relative import in a package"),
        pytest.param("netpol.policy.decode", "import socket", "pure", id="policy has sockets"),
        pytest.param("netpol.policy.decode", "from os import path", "pure", id="policy has os"),
        pytest.param("netpol.policy.decode", "import time", "pure", id="policy has a clock"),
        pytest.param("netpol.rules.diff", "import logging", "pure", id="rules log"),
        pytest.param("netpol.rules.diff", "import random", "pure", id="rules throw dice"),
        pytest.param("netpol.rules.diff", "import threading", "pure", id="rules have threads"),
        pytest.param("netpol.rules.diff", "import pathlib", "pure", id="rules have files"),
        pytest.param("netpol.rules.text", "print(1)", "pure", id="rules print"),
        pytest.param("netpol.errors", "import msgspec", "third-party", id="errors have msgspec"),
        pytest.param("netpol.policy.decode", "import yaml", "third-party", id="policy has yaml"),
        pytest.param("netpol.policy.verdict", "from netpol.policy import decode", "not on the list", id="verdict knows more than cluster"),
        pytest.param("netpol.rules.diff", "from netpol.policy.cluster import Cluster", "not on the list", id="only compile knows policy"),
        pytest.param("netpol.rules.interpret", "from netpol.rules.compile import compile", "not on the list", id="interpret knows compile"),
        pytest.param("netpol.rules.compile", "from netpol.policy import verdict", "judges", id="compile knows the specification"),
        pytest.param("netpol.rules.compile", "from netpol.rules.interpret import run", "judges", id="compile knows the interpreter"),
        pytest.param("netpol.kernel.ipset", "from netpol.rules import diff", "not on the list", id="kernel knows more than ruleset"),
        pytest.param("netpol.kernel.ipset", "from netpol.policy.decode import decode", "not on the list", id="kernel knows policy"),
        pytest.param("netpol.kernel.ipset", "import pyroute2", "third-party", id="kernel has pyroute2"),
        pytest.param("netpol.kube.watch", "from netpol.policy.cluster import Cluster", "not on the list", id="kube knows more than decode"),
        pytest.param("netpol.agent.loop", "import netpol.lab.world", "not on the list", id="agent has a lab"),
        pytest.param("netpol.agent.loop", "def f():\n  import pyroute2", "third-party", id="agent has pyroute2"),
        pytest.param("netpol.lab.world", "from netpol.kernel import ipset", "not on the list", id="lab knows more than namespaces"),
        pytest.param("netpol.lab.world", "import netpol.kernel", "not on the list", id="lab has the whole kernel room"),
        pytest.param("netpol.lab.world", "from netpol.kernel._native import lib", "native", id="lab is native"),
        pytest.param("netpol.cli.demo", "def f():\n  from netpol.kernel import _native", "native", id="cli is native"),
        pytest.param("netpol.cli.demo", "from netpol.lab import world", "inside a function", id="a command is not lazy"),
        pytest.param("netpol.cli.demo", "if True:\n  import rich.table", "inside a function", id="a command is not lazy about rich"),
        pytest.param("netpol.cli.main", "def f():\n  from netpol.cli import demo", "not on the list", id="the table knows a command"),
        pytest.param("netpol.kube.client", "from importlib import import_module", "no reader", id="a hidden import"),
        pytest.param("netpol.kube.client", "__import__('netpol.lab')", "no reader", id="a hidden import, the old way"),
        pytest.param("netpol.extra.thing", "", "without a row", id="an unknown room"),
        pytest.param("netpol.utils", "", "without a row", id="an unknown module at the top"),
    ],
)
def test_the_checker_objects(module: str, source: str, reason: str) -> None:
    """A made-up module that breaks one rule is found out, once, and for that reason."""
    (found,) = violations(module, source, package=module == "netpol.policy")
    assert reason in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("netpol.policy.verdict", "from netpol.policy.cluster import Cluster\nfrom netpol.model import Pod", id="verdict"),
        pytest.param(
            "netpol.rules.compile", "import netpol.policy.cluster\nfrom . import ruleset\nfrom hashlib import sha256", id="compile"
        ),
        pytest.param(
            "netpol.kernel.ipset",
            "import os\nfrom netpol.kernel._native import ffi, lib\nfrom netpol.rules.ruleset import Set",
            id="kernel",
        ),
        pytest.param(
            "netpol.lab.world", "import pyroute2\nfrom netpol.kernel import namespaces\nfrom netpol.errors import LabError", id="lab"
        ),
        pytest.param("netpol.kube.manifests", "import yaml\nfrom netpol.policy.decode import decode", id="kube"),
        pytest.param(
            "netpol.cli.demo",
            "import click\nfrom typing import TYPE_CHECKING\nfrom netpol import errors, __version__\nfrom netpol.cli import words\n"
            "if TYPE_CHECKING:\n  import rich.table\ndef demo():\n  import rich\n  from netpol.lab import world\n"
            "  from importlib.resources import files",
            id="cli",
        ),
    ],
)
def test_the_checker_agrees(module: str, source: str) -> None:
    """What the list allows is allowed."""
    assert violations(module, source) == []
