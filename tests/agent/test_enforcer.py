"""One node's enforcement on a real kernel: adoption, failure and retry, drift of each kind, cleaning up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netpol.agent.enforcer import NO_DRIFT, Drift, Enforcer, clean
from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset import Create, Destroy, IpsetSocket
from netpol.model import (
    EVERYTHING,
    TCP,
    Namespace,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    parse_address,
)
from netpol.rules.diff import diff
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")

WEB = Selector((Requirement("app", "In", ("web",)),))
OBJECTS: tuple[Object, ...] = (
    Namespace("x"),
    Pod("x", "a", (("app", "web"),), "n", (parse_address("10.0.0.1"), parse_address("fd00::1"))),
    Pod("x", "b", (), "n", (parse_address("10.0.0.2"), parse_address("fd00::2"))),
    Policy("x", "p", WEB, (PolicyRule((Query("x", EVERYTHING, EVERYTHING),), (NumberedPort(TCP, 80, 80),)),), None),
)


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def enforcer(kernel: Kernel) -> Enforcer:
    made = Enforcer(kernel, "n")
    made.put(*OBJECTS)
    made.enforce()
    return made


def the_set(enforcer: Enforcer) -> str:
    return next(name for name in enforcer.state.wanted().sets if name.startswith("NETPOL4"))


def the_chain(enforcer: Enforcer) -> str:
    return next(name for name in enforcer.state.wanted().chains[4] if name.startswith("NETPOL-I-"))


def test_what_is_there_is_adopted_without_a_write(enforcer: Enforcer) -> None:
    """A second process with the same cluster finds nothing to do, and the kernel is as it was."""
    before = run("iptables-legacy-save", "-t", "mangle"), run("ipset", "save")
    with Kernel() as second:
        other = Enforcer(second, "n")
        other.put(*OBJECTS)
        assert other.enforce().steps == ()
    after = run("iptables-legacy-save", "-t", "mangle"), run("ipset", "save")
    assert [[line for line in text.splitlines() if not line.startswith("#")] for text in after] == [
        [line for line in text.splitlines() if not line.startswith("#")] for text in before
    ]


def test_only_what_differs_is_changed_at_a_start(enforcer: Enforcer) -> None:
    """A process that starts with one pod more adds one member and one leaf, and creates no set anew."""
    with Kernel() as second:
        other = Enforcer(second, "n")
        other.put(*OBJECTS, Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
        assert [type(step).__name__ for step in other.enforce().steps] == ["GrowSet"]


def test_events_that_change_nothing_take_no_system_call(enforcer: Enforcer) -> None:
    """The same objects again: no steps and no calls."""
    enforcer.put(*OBJECTS)
    report = enforcer.enforce()
    assert (report.steps, report.system_calls) == ((), 0)


def test_after_a_failure_the_next_try_starts_from_what_is_there(enforcer: Enforcer, kernel: Kernel) -> None:
    """A set was destroyed under us (the rules that held it flushed): the delta fails by name, and the next enforcement mends everything."""
    name = the_set(enforcer)
    run("iptables-legacy", "-w", "-t", "mangle", "-F")
    run("ipset", "destroy", name)
    enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
    with pytest.raises(KernelError, match=name):
        enforcer.enforce()
    assert enforcer.enforce().steps
    assert diff(enforcer.state.wanted(), kernel.read()) == ()
    assert enforcer.enforce().steps == ()


def test_a_kernel_as_written_has_no_drift(enforcer: Enforcer) -> None:
    """An audit of an untouched kernel finds and changes nothing."""
    drift, report = enforcer.audit()
    assert (drift, report.steps) == (NO_DRIFT, ())


DRIFTS = {
    "hook-deleted": "iptables-legacy -w -t mangle -D FORWARD -j NETPOL",
    "hook-moved": "iptables-legacy -w -t mangle -I FORWARD -j MARK --set-mark 1",
    "chain-edited": "iptables-legacy -w -t mangle -I {chain} -j RETURN",
    "chain-flushed": "iptables-legacy -w -t mangle -F {chain}",
    "chain-added": "iptables-legacy -w -t mangle -N NETPOL-X",
    "table-flushed": "iptables-legacy -w -t mangle -F",
    "member-added": "ipset add {set} 192.0.2.1",
    "member-removed": "ipset del {set} 10.0.0.2",
    "set-flushed": "ipset flush {set}",
    "set-added": "ipset create NETPOL4-stray hash:ip",
}
EXPECTED = {
    "hook-deleted": Drift(hooks=("IPv4",)),
    "hook-moved": Drift(hooks=("IPv4",)),
    "chain-edited": Drift(chains=("IPv4 {chain}",)),
    "chain-flushed": Drift(chains=("IPv4 {chain}",)),
    "chain-added": Drift(chains=("IPv4 NETPOL-X",)),
    "member-added": Drift(sets=(("{set}", 0, 1),)),
    "member-removed": Drift(sets=(("{set}", 1, 0),)),
    "set-flushed": Drift(sets=(("{set}", 2, 0),)),
    "set-added": Drift(stray_sets=("NETPOL4-stray",)),
}


@pytest.mark.parametrize("kind", DRIFTS)
def test_drift_is_named_and_repaired(enforcer: Enforcer, kernel: Kernel, kind: str) -> None:
    """Each kind of interference, made by the real tools: the audit says what it was, and afterwards the kernel is as wanted."""
    places = {"set": the_set(enforcer), "chain": the_chain(enforcer)}
    run(*DRIFTS[kind].format(**places).split())
    drift, report = enforcer.audit()
    if kind == "table-flushed":
        assert drift.hooks == ("IPv4",)
        assert f"IPv4 {places['chain']}" in drift.chains
    else:
        expected = EXPECTED[kind]
        assert drift == Drift(
            expected.hooks,
            tuple(name.format(**places) for name in expected.chains),
            tuple((name.format(**places), missing, extra) for name, missing, extra in expected.sets),
            expected.lost_sets,
            expected.stray_sets,
        )
    assert report.steps
    assert diff(enforcer.state.wanted(), kernel.read()) == ()
    assert enforcer.audit()[0] == NO_DRIFT


def test_a_set_swapped_away_is_found(enforcer: Enforcer) -> None:
    """`ipset swap` with a set of other members leaves ours with those: missing and extra members are told."""
    name = the_set(enforcer)
    run("ipset", "create", "other", "hash:ip", "hashsize", "64")
    run("ipset", "add", "other", "192.0.2.7")
    run("ipset", "swap", name, "other")
    assert enforcer.audit()[0] == Drift(sets=((name, 2, 1),))


def test_cleaning_removes_ours_and_nothing_else(enforcer: Enforcer, kernel: Kernel) -> None:
    """From both tables, also chains without a hook and sets that no rule uses; what is foreign stays, with its counters."""
    with Kernel("filter") as filtered:
        second = Enforcer(filtered, "n")
        run("iptables-legacy-restore", "-c", "-w", "-n", "-T", "mangle", input="*mangle\n:MINE - [0:0]\n[3:4] -A FORWARD -j MINE\nCOMMIT\n")
        run("ipset", "create", "mine", "hash:ip")
        run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
        with IpsetSocket() as ipset:
            ipset.run([Create("NETPOL4-left", "hash:ip", 4)])
        second.put(*OBJECTS)
        second.enforce()
        clean(kernel, filtered)
        assert kernel.read().chains == filtered.read().chains == {}
        assert clean(kernel, filtered) == ()
    assert run("ipset", "list", "-n").split() == ["mine"]
    saved = run("iptables-legacy-save", "-c", "-t", "mangle")
    assert "[3:4] -A FORWARD -j MINE" in saved
    assert "NETPOL" not in saved + run("iptables-legacy-save") + run("ip6tables-legacy-save")


def test_a_set_that_somebody_else_uses_is_named_and_not_fatal(enforcer: Enforcer) -> None:
    """A foreign rule refers to a set that we want to destroy: the error names the set; once the rule is gone the next try succeeds."""
    name = the_set(enforcer)
    run("iptables-legacy", "-w", "-A", "FORWARD", "-m", "set", "--match-set", name, "src", "-j", "ACCEPT")
    enforcer.drop(Policy, "p", "x")
    with pytest.raises(KernelError, match=f"ipset destroy {name}: in use"):
        enforcer.enforce()
    run("iptables-legacy", "-w", "-F", "FORWARD")
    enforcer.enforce()
    assert name not in run("ipset", "list", "-n").split()


def test_destroying_a_set_needs_no_wanted_state(kernel: Kernel) -> None:
    """The step alone, as cleaning up uses it."""
    with IpsetSocket() as ipset:
        ipset.run([Create("NETPOL4-x", "hash:ip", 4)])
        ipset.run([Destroy("NETPOL4-x")])
    assert kernel.read().sets == {}
