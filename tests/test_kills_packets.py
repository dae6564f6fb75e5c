"""`kill -9` at random moments of a stream of changes, under traffic: whoever comes next makes the kernel what it should be.

The traffic is that of `tests.test_hitless_packets`, and goes on over all of it; the processes are those of `tests.kills`. NETPOL_SOAK=1
kills 1,000 of them (`make soak`), otherwise some.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from netpol.lab import Host, Lab
from tests.kills import Tally
from tests.test_hitless_packets import ADDRESSES, ALWAYS, NEVER, OUTSIDE, PAIR, Traffic, running

KILLS = 1000 if os.environ.get("NETPOL_SOAK") == "1" else 60


def test_no_kill_is_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each kill the next process finds its way to the wanted state; nothing allowed is lost meanwhile, nothing denied arrives."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    hosts = [Host("outside", (OUTSIDE,)), *(Host(name, (address,)) for name, address in ADDRESSES.items())]
    with Lab(hosts) as lab:
        ends = (("outside", OUTSIDE, "p"), ("p", ADDRESSES["p"], "q"))
        kill(lab, 1)
        always = [Traffic(lab, *end, ALWAYS) for end in ends]
        never = [*(Traffic(lab, *end, NEVER) for end in ends), Traffic(lab, "u", ADDRESSES["u"], "v", PAIR)]
        try:
            with running([*always, *never]):
                tally = kill(lab, KILLS)
            print(tally)
            assert tally.wrong == []
            assert min(tally.adopting, tally.compared, tally.broken) > 0, tally
            assert [one.sent - one.count() for one in always] == [0, 0]
            assert [one.count() for one in never] == [0, 0, 0]
            assert min(one.sent for one in (*always, *never)) > KILLS
        finally:
            for one in (*always, *never):
                one.close()


def kill(lab: Lab, kills: int) -> Tally:
    """So many processes, one after another, from the same first state on."""
    with lab.entered():
        words = (sys.executable, "-m", "tests.kills", "1", str(kills))
        done = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=3000)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return msgspec.json.decode(done.stdout, type=Tally)
