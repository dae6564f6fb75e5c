"""The whole look on a real kernel, against what might fool it: bytes that mean something else, states of before, chains nobody needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.errors import KernelError
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.kernel.encode import encode_chain
from netpol.kernel.ipset import Add, Create, Delete, Destroy, IpsetSocket, Swap
from netpol.kernel.xtables import TableSocket
from netpol.rules.diff import diff
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, CreateSet, ReplaceTable, Rule, Ruleset, SetMatch, ShrinkSet, Step
from netpol.rules.sets import Set
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
    before = kernel._there[4]._proof
    remade(TWO, ONE)
    assert kernel._there[4].socket.entries("mangle").proof() == before
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
    batch: list[Step] = [ShrinkSet(TWO, "hash:ip", 4, frozenset((OTHER,))), CreateSet(Set(ONE, "hash:ip", 4, frozenset((OTHER,))))]
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


# -- any interference --------------------------------------------------------------------------------------------------


class Hand:
    """Somebody else's: he changes what is ours, undoes it, and changes what is his, through sockets of his own."""

    def __init__(self, kernel: Kernel, ipset: IpsetSocket, socket: TableSocket) -> None:
        self.kernel, self.ipset, self.socket = kernel, ipset, socket

    def member(self, name: str, number: int) -> None:
        """Adds a member that is not there, or takes one away that is."""
        member = bytes((10, 0, 0, number))
        found = self.kernel.read().sets.get(name)
        if found is not None:
            self.ipset.run([(Delete if member in found.members else Add)(name, "hash:ip", 4, member)])

    def swap(self, name: str, other: str) -> None:
        if {name, other} <= self.ipset.headers().keys():
            self.ipset.run([Swap(name, other)])

    def stray(self, name: str) -> None:
        self.ipset.run([Destroy(name) if name in self.ipset.headers() else Create(name, "hash:ip", 4)])

    def rules(self, chain: str, rule: Rule | None) -> None:
        """Puts a rule before a chain of ours, or takes its first one away."""
        chains = dict(self.kernel.read().chains.get(4, {}))
        before = chains.get(chain, Chain(chain, ())).rules
        chains[chain] = Chain(chain, (rule, *before) if rule is not None else before[1:])
        self.write(chains, True)

    def chain(self, chain: str) -> None:
        """Takes a chain away, or makes one."""
        chains = dict(self.kernel.read().chains.get(4, {}))
        if chains.pop(chain, None) is None:
            chains[chain] = Chain(chain, ())
        self.write(chains, True)

    def jump(self, hooked: bool) -> None:
        self.write(self.kernel.read().chains.get(4, {}), hooked)

    def write(self, chains: Mapping[str, Chain], hooked: bool) -> None:
        self.kernel.apply([ReplaceTable(4, "mangle", chains, hooked and ROOT in chains)])

    def his(self, rules: int) -> None:
        """Chains of his, before ours and behind them in the table."""
        chains = {name: encode_chain(Chain(name, (Rule(RETURN, protocol=99),) * rules), 4) for name in ("AAA", "ZZZ")}
        self.socket.change("mangle", chains, False, lambda name: name in ("AAA", "ZZZ"))


OURS = st.sampled_from((ONE, TWO))
TURNS = st.one_of(
    st.builds(lambda name, number: lambda hand: hand.member(name, number), OURS, st.integers(1, 3)),
    st.builds(lambda name, other: lambda hand: hand.swap(name, other), OURS, st.sampled_from((TWO, "his"))),
    st.builds(lambda name: lambda hand: hand.stray(name), st.sampled_from(("NETPOL4-stray", "his-too"))),
    st.builds(
        lambda chain, rule: lambda hand: hand.rules(chain, rule),
        st.sampled_from((ROOT, "NETPOL-unused")),
        st.sampled_from((None, Rule(RETURN), Rule(DROP, (SetMatch(TWO, ("src",)),)))),
    ),
    st.builds(lambda chain: lambda hand: hand.chain(chain), st.sampled_from(("NETPOL-unused", "NETPOL-more"))),
    st.builds(lambda hooked: lambda hand: hand.jump(hooked), st.booleans()),
    st.builds(lambda rules: lambda hand: hand.his(rules), st.integers(0, 3)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(TURNS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_interference(story: list[list[Callable[[Hand], None]]]) -> None:
    """A look is silent exactly where another process reads what was written (but for sets that were only exchanged for equal ones); what
    is read again is what the other reads; and it is repaired."""
    namespace = namespaces.create()
    try:
        with namespaces.private_lock(), namespaces.entered(namespace), ExitStack() as stack:
            kernel, stranger = stack.enter_context(Kernel()), stack.enter_context(Kernel())
            hand = Hand(stranger, stack.enter_context(IpsetSocket()), stack.enter_context(TableSocket(4)))
            kernel.apply(diff(STATE, kernel.read()))
            hand.ipset.run([Create("his", "hash:ip", 4, MEMBER)])
            for turns in story:
                for turn in turns:
                    turn(hand)
                look, found = kernel.look(), stranger.read()
                assert bool(look.tables or look.sets) == (found != STATE)
                assert kernel.reread(STATE, look) == found
                kernel.apply(diff(STATE, found))
                assert not kernel.look()
                assert not kernel.touched()
                assert stranger.read() == STATE
    finally:
        os.close(namespace)
