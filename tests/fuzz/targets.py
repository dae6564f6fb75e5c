"""The libFuzzer targets of csrc: what they are, how they are built, and how one is run.

Each is one file beside this one, which opens with its invariant, linked with all of csrc under sanitizers: AddressSanitizer with UBSan,
or MemorySanitizer, which follows bytes that nobody has set to where they decide something, or go to the kernel. An input that breaks an
invariant becomes a file in regressions/TARGET, which the tests replay ever after.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
TARGETS = ("table", "rules", "ipset", "conntrack", "nflog", "protobuf")
REGRESSIONS = HERE / "regressions"

_FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=undefined", f"-I{CSRC}"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined"],
    "memory": ["-fsanitize=memory", "-fsanitize-memory-track-origins"],
}
_LONGEST = 4096  # bytes of an input: more than any seed has


class Ran(NamedTuple):
    """A run that found nothing: executions, and how many features of the code were reached."""

    executions: int
    features: int


class Found(AssertionError):
    """An input broke an invariant; the words are libFuzzer's."""


def build(folder: Path, sanitizer: str) -> None:
    """Builds all targets into a folder, each under its name, with one of SANITIZERS."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in sorted(CSRC.glob("*.c")):
        objects.append(str(folder / f"{source.stem}.o"))
        _clang(*SANITIZERS[sanitizer], "-fsanitize=fuzzer-no-link", "-c", str(source), "-o", objects[-1])
    for target in TARGETS:
        _clang(*SANITIZERS[sanitizer], "-fsanitize=fuzzer", str(HERE / f"{target}.c"), *objects, "-o", str(folder / target))


def _clang(*arguments: str) -> None:
    done = subprocess.run(["clang", *_FLAGS, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"clang {' '.join(arguments)}: {done.stderr}")


def run(program: Path, *limits: str, corpus: tuple[Path, ...] = (), artifacts: Path) -> Ran:
    """Runs a target from its corpora (the first one grows) within limits such as -runs=20000; Found when it broke."""
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [str(program), *limits, f"-max_len={_LONGEST}", "-print_final_stats=1", "-timeout=60", f"-artifact_prefix={artifacts}/"]
    done = subprocess.run([*command, *map(str, corpus)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Found(f"{program.name}: {done.stderr[-6000:]}")
    executions = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    features = re.findall(r"ft: (\d+)", done.stderr)
    return Ran(int(executions[1]) if executions else 0, int(features[-1]) if features else 0)


def replay(program: Path, file: Path) -> None:
    """Runs a target on one input. Found when it breaks."""
    done = subprocess.run([str(program), str(file)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Found(f"{program.name}, {file.name}: {done.stderr[-6000:]}")
