"""The Dockerfile, as far as it can be tried without a container runtime: what it copies is enough to build the wheel that it builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from netpol import __version__
from tests.deploy.manifests import DEPLOY, ROOT, container, read

DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.o")


def copied() -> list[str]:
    """What of the repository goes into the stage that builds."""
    return [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]


def test_what_is_copied_builds_the_whole_wheel(tmp_path: Path) -> None:
    """By the Dockerfile's own command, in a folder that holds nothing else: every module, the native one, and the examples."""
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=IGNORED)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    (command,) = re.findall(r"^RUN pip (wheel .*) --wheel-dir /wheels \.$", DOCKERFILE, re.MULTILINE)
    # Without isolation, which would look for setuptools and cffi on the network; they are here.
    words = [sys.executable, "-m", "pip", *command.split(), "--no-build-isolation", "--quiet", "--wheel-dir", "wheels", "."]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    ours = {str(file.relative_to(ROOT)) for file in (ROOT / "netpol").rglob("*.py")}
    wanted = {*ours, "netpol/py.typed", "netpol/examples/kubernetes-docs.yaml", "netpol/kernel/_native.abi3.so"}
    assert wanted - inside == set()


def test_the_context_is_what_is_copied() -> None:
    """What the Dockerfile's .dockerignore lets through is what it copies."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_the_image_is_of_this_version_and_starts_netpol() -> None:
    """The DaemonSet's tag, and the one that the Dockerfile says to build, are the package's version; arguments are netpol's."""
    image = f"netpol-agent:{__version__}"
    made = container(read(DEPLOY / "daemonset.yaml"))
    assert made["image"] == image
    assert image in DOCKERFILE
    assert "command" not in made
    assert re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE) == ['["/opt/netpol/bin/netpol"]']
