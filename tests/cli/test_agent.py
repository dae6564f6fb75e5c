"""`netpol agent` as a command: its help, what it refuses, and how it says why it cannot begin."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from netpol.cli.agent import agent as command
from netpol.cli.main import main
from tests.agent.process import PATIENCE, Agent
from tests.referees import require


def test_every_setting_is_in_the_help() -> None:
    """With its default, and its variable."""
    entries = re.split(r"\n  (?=-)", CliRunner().invoke(main, ["agent", "--help"]).output)
    for option in command.params:
        (entry,) = [" ".join(entry.split()) for entry in entries if entry.startswith(f"{option.opts[0]} ")]
        assert "default: " in entry
        assert "env var: NETPOL_" in entry


@pytest.mark.parametrize("value", ["nonsense", "1.2.3.4", "::1:9479", "host:99999", "host:x"])
def test_a_bad_address_to_listen_on_is_refused(value: str) -> None:
    """With the forms that there are."""
    result = CliRunner().invoke(main, ["agent", "--listen", value])
    assert result.exit_code == 2
    assert "is not HOST:PORT" in result.stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_why_it_cannot_begin(netns: int, form: str) -> None:
    """In words, and the exit status is that of what this machine lacks; where the log is JSON, all of it is."""
    require("setpriv")
    without = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    with Agent("--log-format", form, before=without) as agent:
        assert agent.process.wait(PATIENCE) == 1
        lines = agent.log().splitlines()
    # In text it is no line of the log, and may stand before the last one of those.
    said = [json.loads(line)["message"] for line in lines] if form == "json" else [line for line in lines if line.startswith("netpol: ")]
    assert "not permitted" in said[-1]
    assert "CAP_NET_ADMIN" in said[-1]
