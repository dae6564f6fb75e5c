"""Options that commands share: what they become, and what is refused in words."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner, Result

from netpol.cli import options
from netpol.rules.compile import Settings
from tests.rules.watched import PODS


@click.command()
@options.settings
@options.cut_flows
@options.grace
def command(settings: Settings, cut_flows: bool, grace: float) -> None:
    cidrs = [str(net) for net in settings.pod_cidrs]
    found = [settings.table, settings.deny, settings.cut_bit, settings.log_group, settings.unknown_pods, cidrs, cut_flows, grace]
    click.echo(json.dumps(found))


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(command, arguments, env={f"NETPOL_{name}": value for name, value in variables.items()})


DEFAULTS = ["mangle", "drop", 0x10000000, None, "auto", [], True, 0.5]


@pytest.mark.parametrize(
    ("arguments", "place", "value"),
    [
        pytest.param("--table filter", 0, "filter", id="table"),
        pytest.param("--cut-bit 0x20000000", 2, 0x20000000, id="bit"),
        pytest.param("--cut-bit 65536", 2, 65536, id="a decimal bit"),
        pytest.param("--cut-bit 0x80000000", 2, 1 << 31, id="the last bit"),
        pytest.param("--log-group 0", 3, 0, id="log group"),
        pytest.param("--unknown-pods deny", 4, "deny", id="unknown pods"),
        pytest.param(f"--pod-cidr {PODS}", 5, [str(PODS)], id="ranges"),
        pytest.param("--no-cut-flows", 6, False, id="no cutting"),
        pytest.param("--grace 0", 7, 0.0, id="no grace"),
    ],
)
def test_one_option_changes_one_setting(arguments: str, place: int, value: object) -> None:
    """The others have their defaults."""
    expected = list(DEFAULTS)
    expected[place] = value
    assert json.loads(run(*arguments.split()).output) == expected


def test_reject_and_its_table() -> None:
    """Both together are settings; by environment too."""
    expected = ["filter", "reject", *DEFAULTS[2:]]
    assert json.loads(run("--table=filter", "--deny=reject").output) == expected
    assert json.loads(run(TABLE="filter", DENY="reject").output) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param("--deny reject", "--deny=reject needs --table=filter", id="reject in mangle"),
        pytest.param("--cut-bit x", "'x' is no number", id="no number"),
        pytest.param("--cut-bit 0", "0 is not one bit of 32", id="no bit"),
        pytest.param("--cut-bit 3", "3 is not one bit of 32", id="two bits"),
        pytest.param("--cut-bit 0x100000000", "is not one bit of 32", id="a 33rd bit"),
        pytest.param("--cut-bit -1", "-1 is not one bit of 32", id="below nothing"),
        pytest.param("--cut-bit 0x4000", "0x4000 is kube-proxy's", id="kube-proxy's"),
        pytest.param("--cut-bit 0x8000", "0x8000 is kube-proxy's", id="kube-proxy's other"),
        pytest.param("--log-group 65536", "65536 is not in the range", id="no group"),
        pytest.param("--pod-cidr 10.0.0.0/33", "10.0.0.0/33", id="no range"),
        pytest.param("--grace -1", "-1", id="a grace in the past"),
        pytest.param("--grace inf", "'inf' is no number of seconds", id="a grace without end"),
        pytest.param("--grace nan", "'nan' is no number of seconds", id="no number of seconds"),
        pytest.param("--grace 1e10", "'1e10' is no number of seconds", id="a grace of centuries"),
    ],
)
def test_what_is_refused(arguments: str, words: str) -> None:
    """A usage error, exit 2, that says what is wrong with it."""
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
