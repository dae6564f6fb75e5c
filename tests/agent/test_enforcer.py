"""One node's enforcement on a real kernel: adoption, failure and retry, cleaning up. Drift is `test_audit`'s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netpol.agent.audit import NO_DRIFT
from netpol.agent.enforcer import Enforcer, clean
from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset import Create, Destroy, IpsetSocket
from netpol.model import Pod, Policy, parse_address
from netpol.rules.diff import diff
from tests.agent.stage import OBJECTS, enforced, the_set
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def enforcer(kernel: Kernel) -> Enforcer:
    return enforced(kernel)


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
