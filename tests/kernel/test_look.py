"""The whole look on a real kernel, against what might fool it: bytes that mean something else, states of before, chains nobody needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.rules.diff import diff
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, CreateSet, GrowSet, ReplaceTable, Rule, Ruleset, Set, SetMatch, Step
from tests.referees import run

ONE, TWO = "NETPOL4-one", "NETPOL4-two"
MEMBER, OTHER = b"\x0a\0\0\1", b"\x0a\0\0\2"


def matching(first: str, second: str) -> dict[str, Chain]:
    rules = Rule(RETURN, (SetMatch(first, ("src",)),)), Rule(DROP, (SetMatch(second, ("src",)),))
    return {ROOT: Chain(ROOT, rules), "NETPOL-unused": Chain("NETPOL-unused", ())}


STATE = Ruleset(
    {4: matching(ONE, TWO)}, {name: Set(name, "hash:ip", 4, frozenset((MEMBER,))) for name in (ONE, TWO)}, frozenset((4,)), "mangle"
)


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    """The state is in force and proven."""
    with Kernel() as kernel:
        kernel.apply(diff(STATE, kernel.read()))
        assert not kernel.look()
        yield kernel


def mangle(*arguments: str) -> None:
    run("iptables-legacy", "-w", "-t", "mangle", *arguments)


def remade(first: str, second: str) -> None:
    """Somebody makes both sets anew, in the other order, and rules for them."""
    mangle("-F", ROOT)
    run("ipset", "destroy")
    for name in (TWO, ONE):
        run("ipset", "create", name, "hash:ip")
        run("ipset", "add", name, "10.0.0.1")
    for name, target in ((first, "RETURN"), (second, "DROP")):
        mangle("-A", ROOT, "-m", "set", "--match-set", name, "src", "-j", target)


def repaired(kernel: Kernel) -> None:
    """What differs is read as it is, and what is planned from that leads to the state."""
    found = kernel.reread(STATE, kernel.look())
    with Kernel() as stranger:
        assert stranger.read() == found
    kernel.apply(diff(STATE, found))
    assert not kernel.look()
    with Kernel() as stranger:
        assert stranger.read() == STATE


def test_the_very_bytes_that_mean_other_sets(kernel: Kernel) -> None:
    """The sets have changed their numbers, so that the table that was proven now takes the one for the other."""
    before = kernel._proofs[4]
    remade(TWO, ONE)
    assert kernel._sockets[4].entries("mangle").proof() == before
    look = kernel.look()
    assert look.tables == {4}
    assert look.strangers == {ONE, TWO}
    repaired(kernel)


def test_other_bytes_that_mean_the_same_sets(kernel: Kernel) -> None:
    """The numbers in the rules are others, and so are those of the sets: it is as it was, and there is nothing to repair."""
    remade(ONE, TWO)
    look = kernel.look()
    assert look.strangers == {ONE, TWO}
    assert diff(STATE, kernel.reread(STATE, look)) == ()
    repaired(kernel)


def test_a_state_of_before_is_no_proof(kernel: Kernel) -> None:
    """Somebody puts back, byte for byte, what was in force and proven before we wrote something else."""
    saved = run("iptables-legacy-save", "-t", "mangle")
    kernel.apply([ReplaceTable(4, "mangle", matching(TWO, ONE), True)])
    run("iptables-legacy-restore", "-w", "-T", "mangle", input=saved)
    assert kernel.look().tables == {4}
    kernel.apply([ReplaceTable(4, "mangle", matching(ONE, TWO), True)])
    repaired(kernel)


def test_a_chain_that_no_rule_needs(kernel: Kernel) -> None:
    """It is missed all the same when it is gone, and nothing else is."""
    mangle("-X", "NETPOL-unused")
    assert kernel.look().tables == {4}
    repaired(kernel)


def test_after_a_failure_nothing_is_taken_for_granted(kernel: Kernel) -> None:
    """Sets that a failed batch was about differ, whatever became of them, until they are read; but nobody else has touched them."""
    batch: list[Step] = [GrowSet(TWO, "hash:ip", 4, frozenset((OTHER,))), CreateSet(Set(ONE, "hash:ip", 4, frozenset((OTHER,))))]
    with pytest.raises(KernelError, match=f"ipset create {ONE}: a set of this name exists already"):
        kernel.apply(batch)
    assert not kernel.touched()
    assert kernel.look().sets == {ONE, TWO}
    repaired(kernel)


def test_what_is_read_is_what_is_expected_next(kernel: Kernel) -> None:
    """Drift that nobody repairs is found once: what was read is what there should be until something is written."""
    mangle("-A", ROOT, "-j", "DROP")
    run("ipset", "add", ONE, "10.0.0.2")
    kernel.reread(STATE, kernel.look())
    assert not kernel.look()
    assert not kernel.touched()
