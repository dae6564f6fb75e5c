"""Each system call fails in turn, with each error that it can have: nothing opens, nothing tears, the next try succeeds (`tests.faults`).

NETPOL_SOAK=1 plays all faults of each story (`make soak`), otherwise some of each, drawn anew by the number of the story.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.shim import build
from tests.faults.stories import NAMES
from tests.referees import require

SOAK = os.environ.get("NETPOL_SOAK") == "1"
FEW = 40


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(os.environ.get("CC") or "cc")
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_fails_the_rules_hold(name: str, shim: Path, netns: int) -> None:
    """The state that is left lets pass what both states do, denies what both deny, and is old or new; errors name what they are about."""
    require("conntrack")
    words = (sys.executable, "-m", "tests.faults", name, str(shim), "0" if SOAK else str(FEW), str(NAMES.index(name)))
    done = subprocess.run(
        words,
        # A sanitizer's runtime, where there is one, comes first.
        env={**os.environ, "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {shim}"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=3000 if SOAK else 300,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
