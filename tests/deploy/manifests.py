"""What deploy/ holds, as the tests here read it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
import yaml

from netpol.cli.main import main
from tests.kube.servers import Json, programs

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EVENTS = DEPLOY / "events"
SYSTEM = "kube-system"


def read(file: Path) -> Json:
    found: Json = yaml.safe_load(file.read_text())
    return found


def kustomize(folder: Path) -> list[Json]:
    """The objects that `kubectl apply -k` would apply."""
    done = subprocess.run([programs() / "kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def with_events(folder: Path, **more: Any) -> Path:
    """A kustomization of somebody's own, in that folder: all of deploy/, and its component."""
    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # kustomize takes no absolute paths.
        "resources": [_relative(DEPLOY, folder)],
        "components": [_relative(EVENTS, folder)],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return folder


def _relative(path: Path, start: Path) -> str:
    return "/".join([".."] * (len(start.resolve().parts) - 1)) + str(path)


def of_kind(kind: str, objects: list[Json]) -> Json:
    """The one object of that kind."""
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def container(daemonset: Json) -> Json:
    """The one container of its pods."""
    (found,) = daemonset["spec"]["template"]["spec"]["containers"]
    return dict(found)


def understood(words: list[str]) -> click.Context:
    """What netpol takes this command line for; fails with its words where it does not know an option."""
    name, *arguments = words
    command = main.get_command(click.Context(main), name)
    assert command is not None, name
    return command.make_context(name, arguments)


def variables_of(option: click.Parameter) -> set[str]:
    """The environment variables of an option."""
    names = option.envvar or ()
    return {names} if isinstance(names, str) else set(names)


def variables(command: click.Command) -> set[str]:
    """Those of all its options."""
    return set().union(*map(variables_of, command.params))
