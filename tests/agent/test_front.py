"""The set in front of a tree on a real kernel: over restarts and updates, drift and repair, and on a kernel that has no such set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from netpol.agent import saved
from netpol.agent.enforcer import Enforcer, clean
from netpol.kernel import ipset
from netpol.kernel.apply import Kernel
from netpol.model import EVERYTHING, Namespace, Pod, Policy, parse_address
from netpol.rules.compile import Settings
from netpol.rules.diff import diff
from netpol.rules.ruleset import NEW, CreateSet, DestroySet, GrowSet, ReplaceTable, Ruleset, ShrinkSet, front_match, is_front
from tests.referees import run

A, B, C = (parse_address(f"10.0.0.{i}") for i in (1, 2, 3))
WITH, WITHOUT = Settings(front_from=1), Settings(front_from=0)
NAME = "NETPOL4-INGRESS"


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


def enforcer(kernel: Kernel, settings: Settings, *addresses: bytes) -> Enforcer:
    """For pods with these addresses, that one policy isolates."""
    found = Enforcer(kernel, "n", settings)
    pods = [Pod("x", f"pod-{address[-1]}", (), "n", (address,)) for address in addresses]
    found.put(Namespace("x"), Policy("x", "all", EVERYTHING, (), None), *pods)
    return found


def kinds(one: Enforcer) -> list[str]:
    return [type(step).__name__ for step in one.enforce().steps]


def fronts(kernel: Kernel) -> list[str]:
    held = kernel.read()
    asked = [rule.matches == (front_match(4, "ingress"),) for rule in held.chains[4][NEW].rules]
    found = [name for name in held.sets if is_front(name)]
    assert any(asked) == bool(found)
    return found


def test_another_process_takes_it_over(kernel: Kernel) -> None:
    """As it is, without a write; with other pods by what differs, growth before the table and shrinking after it."""
    enforcer(kernel, WITH, A, B).enforce()
    with Kernel() as second:
        assert kinds(enforcer(second, WITH, A, B)) == []
    with Kernel() as third:
        steps = enforcer(third, WITH, B, C).enforce().steps
        assert [type(step) for step in steps] == [GrowSet, ReplaceTable, ShrinkSet]
        assert steps[0] == GrowSet(NAME, "bitmap:ip", 4, frozenset((C,)))
        assert third.sizes() == {NAME: 2}


def test_a_netpol_that_knows_none_and_one_that_does(kernel: Kernel) -> None:
    """An update makes the set before the rules that ask it, and going back destroys it after them."""
    enforcer(kernel, WITHOUT, A, B).enforce()
    assert fronts(kernel) == []
    with Kernel() as newer:
        assert kinds(enforcer(newer, WITH, A, B)) == [CreateSet.__name__, ReplaceTable.__name__]
        assert fronts(newer) == [NAME]
    with Kernel() as older:
        assert kinds(enforcer(older, WITHOUT, A, B)) == [ReplaceTable.__name__, DestroySet.__name__]
        assert fronts(older) == []


def test_a_restart_in_another_table_takes_it_along(kernel: Kernel) -> None:
    """The old table's rules ask the set until they go: members that are to go leave it after the new table stands."""
    enforcer(kernel, WITH, A, B).enforce()
    with Kernel("filter") as moved:
        steps = enforcer(moved, Settings(table="filter", front_from=1), B, C).enforce().steps
        assert fronts(moved) == [NAME]
        assert moved.sizes() == {NAME: 2}
        written = [
            type(step) for step in steps if isinstance(step, GrowSet | ShrinkSet) or (isinstance(step, ReplaceTable) and step.family == 4)
        ]
        assert written[-3:] == [GrowSet, ReplaceTable, ShrinkSet]
    assert kernel.read().chains == {}


def test_what_was_saved_is_restored(kernel: Kernel, tmp_path: Path) -> None:
    """After a boot the kernel holds what the file has: the set with its range."""
    one = enforcer(kernel, WITH, A, B)
    one.enforce()
    held = kernel.read()
    saved.save(tmp_path / "state", held)
    clean(kernel)
    assert kernel.read() == Ruleset({}, {})
    wanted = saved.load(tmp_path / "state")
    assert wanted == held
    kernel.apply(diff(held, kernel.read()))
    assert kernel.read() == held
    with Kernel() as second:
        assert kinds(enforcer(second, WITH, A, B)) == []


def test_an_audit_repairs_it(kernel: Kernel) -> None:
    """A pod that somebody took out of the set would be open: it is found like a member that any set lost."""
    one = enforcer(kernel, WITH, A, B)
    one.enforce()
    run("ipset", "del", NAME, "10.0.0.1")
    run("ipset", "add", NAME, "10.0.9.9")
    drift, report = one.audit()
    assert drift.sets == ((NAME, 1, 1),)
    assert [type(step) for step in report.steps] == [GrowSet, ShrinkSet]
    assert not one.audit()[0]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_kernel_without_bitmaps_goes_without(kernel: Kernel, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked for a revision of the type that none has, and says what it says of a type that it lacks: the tree is enough."""
    monkeypatch.setitem(ipset._REVISIONS, "bitmap:ip", 99)
    one = enforcer(kernel, Settings(front_from=2), A, *((B,) if at_once else ()))
    one.enforce()
    if not at_once:
        one.put(Pod("x", "pod-2", (), "n", (B,)))
        assert "ReplaceTable" in kinds(one)
    assert fronts(kernel) == []
    assert kernel.read() == one.state.wanted()
    one.put(Pod("x", "pod-3", (), "n", (C,)))
    assert kinds(one) == ["ReplaceTable"]
    assert not one.audit()[0]
