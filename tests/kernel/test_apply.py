"""Steps applied to a real kernel lead where they say, and what somebody else changed there is found and repaired."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from netpol.errors import KernelError
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.kernel.blocks import SetNumbers
from netpol.kernel.encode import encode_chain
from netpol.model import FAMILIES, Family, Object, Pod, Policy
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings, compiled
from netpol.rules.diff import diff
from netpol.rules.ruleset import (
    DROP,
    HOOK,
    RETURN,
    ROOT,
    Chain,
    CreateSet,
    DestroySet,
    GrowSet,
    Jump,
    ReplaceTable,
    Rule,
    Ruleset,
    SetMatch,
    ShrinkSet,
    TableName,
)
from netpol.rules.sets import Set, port_member
from netpol.rules.text import ipset_save, iptables_save
from tests import clusters
from tests.kernel.iptables import saved
from tests.kernel.test_exchange import host
from tests.referees import run

TABLES = pytest.mark.parametrize("table", ["mangle", "filter"])
FEW = settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
HOST = b"\x0a\0\0\1"


def agree(kernel: Kernel, wanted: Ruleset) -> None:
    """The kernel holds what is wanted, by our own reading and by that of another process, which has written nothing."""
    found = kernel.read()
    assert found == wanted
    assert diff(wanted, found) == ()
    with Kernel(wanted.table) as stranger:
        assert stranger.read() == wanted


def shown(wanted: Ruleset) -> None:
    """`iptables-save` and `ipset save` show what is wanted, as far as it is ours."""
    for family in FAMILIES:
        lines = [line for line in iptables_save(wanted, family).splitlines() if not line.startswith("#")]
        assert saved(family, wanted.table) == [line.removesuffix(" [0:0]") for line in lines]
    ours = [line for line in run("ipset", "save").splitlines() if line.startswith("add")]
    assert sorted(ours) == sorted(line for line in ipset_save(wanted).splitlines() if line.startswith("add"))


@TABLES
@FEW
@given(
    st.lists(clusters.namespaces | clusters.pods() | clusters.policies() | clusters.nodes | clusters.pods(), min_size=8, max_size=25),
    st.integers(1, 6),
    st.integers(0, 2),
)
def test_any_events_lead_to_what_is_wanted(table: TableName, story: list[Object], batch: int, removed: int) -> None:
    """Batch by batch, things come and go: after each the kernel holds exactly the wanted state, and a restart finds nothing to do."""
    cluster = Cluster()
    wish = Settings(table=table, log_group=5)
    namespace = namespaces.create()
    try:
        with namespaces.private_lock(), namespaces.entered(namespace), Kernel(table) as kernel:
            state = NodeState(cluster, clusters.NODE, wish)
            for at, event in enumerate(story, 1):
                if at % 5 == removed and isinstance(event, Pod | Policy):
                    state.follow(cluster.drop(type(event), event.name, event.namespace))
                else:
                    state.follow(cluster.put(event))
                if at % batch == 0:
                    kernel.apply(diff(*state.pending()))
                    state.applied()
            kernel.apply(diff(*state.pending()))
            state.applied()
            agree(kernel, state.wanted())
            shown(state.wanted())
            kernel.apply(diff(Ruleset({}, {}, table=table), kernel.read()))
            agree(kernel, Ruleset({}, {}, table=table))
            assert not [line for family in FAMILIES for line in saved(family, table) if "NETPOL" in line]
            assert run("ipset", "save") == ""
    finally:
        os.close(namespace)


@FEW
@given(clusters.clusters(), clusters.clusters())
def test_from_any_state_to_any_other(first: tuple[Object, ...], second: tuple[Object, ...]) -> None:
    """What a diff of two unrelated states plans, done to a kernel that holds the one, leaves it holding the other."""
    namespace = namespaces.create()
    try:
        with namespaces.private_lock(), namespaces.entered(namespace), Kernel() as kernel:
            for items in (first, second, first):
                wanted = compiled(clusters.build(items), clusters.NODE)
                kernel.apply(diff(wanted, kernel.read()))
                agree(kernel, wanted)
    finally:
        os.close(namespace)


def wanted(table: TableName = "mangle") -> Ruleset:
    """A small state of both families, with a set, an empty chain, jumps and the hook."""
    peers = Set("NETPOL-4-peers", "hash:ip", 4, frozenset((HOST, b"\x0a\0\0\2")))
    ports = Set("NETPOL-4-ports", "hash:ip,port", 4, frozenset((port_member(HOST, 6, 80),)))
    rules = (Rule(RETURN, (SetMatch(peers.name, ("src",)),)), Rule(DROP, (SetMatch(ports.name, ("dst", "dst")),)))
    four = {ROOT: Chain(ROOT, (Rule(Jump("NETPOL-A")),)), "NETPOL-A": Chain("NETPOL-A", rules)}
    six = {ROOT: Chain(ROOT, ())}
    return Ruleset({4: four, 6: six}, {peers.name: peers, ports.name: ports}, frozenset(FAMILIES), table)


def iptables(*arguments: str, family: int = 4) -> Callable[[TableName], object]:
    return lambda table: run("iptables-legacy" if family == 4 else "ip6tables-legacy", "-w", "-t", table, *arguments)


def ipset(*arguments: str) -> Callable[[TableName], object]:
    return lambda table: run("ipset", *arguments)


DRIFT: dict[str, list[Callable[[TableName], object]]] = {
    "a rule more": [iptables("-A", "NETPOL-A", "-p", "tcp", "-j", "RETURN")],
    "a rule of theirs": [iptables("-I", "NETPOL-A", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")],
    "a rule that we cannot say": [iptables("-I", "NETPOL-A", "-s", "10.0.0.0/255.0.255.0", "-j", "ACCEPT")],
    "a rule less": [iptables("-D", "NETPOL-A", "1")],
    "another order": [iptables("-D", "NETPOL-A", "1"), iptables("-A", "NETPOL-A", "-m", "set", "--match-set", "NETPOL-4-peers", "src")],
    "another set": [iptables("-R", "NETPOL-A", "1", "-m", "set", "--match-set", "NETPOL-4-ports", "src", "-j", "RETURN")],
    "another chain to jump to": [iptables("-N", "THEIRS"), iptables("-R", ROOT, "1", "-j", "THEIRS")],
    "a goto": [iptables("-R", ROOT, "1", "-g", "NETPOL-A")],
    "an empty chain": [iptables("-F", "NETPOL-A")],
    "a chain of ours more": [iptables("-N", "NETPOL-B")],
    "a chain of IPv6": [iptables("-A", ROOT, "-j", "DROP", family=6)],
    "no hook": [iptables("-D", HOOK, "1")],
    "a moved hook": [iptables("-I", HOOK, "-p", "tcp", "-j", "ACCEPT")],
    "two hooks": [iptables("-A", HOOK, "-j", ROOT)],
    "a hook with a condition": [iptables("-R", HOOK, "1", "-p", "tcp", "-j", ROOT)],
    "everything": [iptables("-F"), iptables("-X"), iptables("-F", family=6), iptables("-X", family=6)],
    "a member more": [ipset("add", "NETPOL-4-peers", "10.0.0.9")],
    "a member less": [ipset("del", "NETPOL-4-ports", "10.0.0.1,tcp:80")],
    "no members": [ipset("flush")],
    "a set more": [ipset("create", "NETPOL-new", "hash:net")],
    "sets and rules": [ipset("flush"), iptables("-F", "NETPOL-A"), iptables("-D", HOOK, "1", family=6)],
}


@TABLES
@pytest.mark.parametrize("changes", DRIFT.values(), ids=DRIFT)
def test_what_somebody_changed_is_found_and_repaired(netns: int, changes: list[Callable[[TableName], object]], table: TableName) -> None:
    """Reading finds that the kernel differs, a diff of it says what is to do, doing that repairs it, and then there is nothing to do."""
    with Kernel(table) as kernel:
        kernel.apply(diff(wanted(table), kernel.read()))
        agree(kernel, wanted(table))
        for change in changes:
            change(table)
        steps = diff(wanted(table), kernel.read())
        assert steps
        with Kernel(table) as stranger:
            assert diff(wanted(table), stranger.read()) == steps
        kernel.apply(steps)
        agree(kernel, wanted(table))


def test_sets_that_changed_their_numbers_are_found(netns: int) -> None:
    """The very bytes that we wrote mean something else when two sets were made anew in another order: they are not taken for ours."""
    with Kernel() as kernel:
        kernel.apply(diff(wanted(), kernel.read()))
        before = kernel.read().chains[4]["NETPOL-A"]
        run("iptables-legacy", "-w", "-t", "mangle", "-F", "NETPOL-A")
        run("ipset", "destroy")
        run("ipset", "create", "NETPOL-4-ports", "hash:ip,port")
        run("ipset", "create", "NETPOL-4-peers", "hash:ip")
        for name, directions, target in (("NETPOL-4-ports", "src", "RETURN"), ("NETPOL-4-peers", "dst,dst", "DROP")):
            rule = ["-m", "set", "--match-set", name, directions, "-j", target]
            run("iptables-legacy", "-w", "-t", "mangle", "-A", "NETPOL-A", *rule)
        after = kernel.read().chains[4]["NETPOL-A"]
        sets = SetNumbers({"NETPOL-4-peers": 0, "NETPOL-4-ports": 1}), SetNumbers({"NETPOL-4-peers": 1, "NETPOL-4-ports": 0})
        assert encode_chain(before, 4, sets[0]).data == encode_chain(after, 4, sets[1]).data
        assert before != after
        kernel.apply(diff(wanted(), kernel.read()))
        agree(kernel, wanted())


def test_bytes_that_were_kept_do_not_outlive_the_numbers_in_them(netns: int) -> None:
    """A chain that was written before is encoded anew when its sets were made again, with other numbers, behind our back."""
    with Kernel() as kernel:
        kernel.apply(diff(wanted(), kernel.read()))
        run("iptables-legacy", "-w", "-t", "mangle", "-F")
        run("ipset", "destroy")
        run("ipset", "create", "between", "hash:ip")
        steps = diff(wanted(), Ruleset({}, {}))
        kernel.apply(steps)
        agree(kernel, wanted())


def test_every_set_that_is_left_over_is_told(netns: int) -> None:
    """Whatever comes behind it: growth, which travels by itself, a table, another set that somebody uses."""
    names = [f"NETPOL4-{number}" for number in range(3)]
    run("ipset", "create", "other", "list:set")
    with Kernel() as kernel:
        kernel.apply([CreateSet(Set(name, "hash:ip", 4)) for name in (*names, "NETPOL4-grows")])
        for name in names:
            run("ipset", "add", "other", name)
        grows = GrowSet("NETPOL4-grows", "hash:ip", 4, frozenset({HOST}))
        table = ReplaceTable(4, "mangle", {ROOT: Chain(ROOT, ())}, True)
        first, second, third = map(DestroySet, names)
        assert kernel.apply([first, grows, second, table, third, DestroySet("NETPOL4-none")]) == tuple(names)
        run("ipset", "destroy", "other")
        assert kernel.apply([first, second, third]) == ()


def test_a_step_for_another_table(netns: int) -> None:
    """It is refused, and no table is written: what the handle knows is of the one that it is for."""
    with Kernel() as kernel:
        with pytest.raises(ValueError, match="the filter table, and this is a handle of mangle"):
            kernel.apply([ReplaceTable(4, "filter", wanted().chains[4], True)])
        assert kernel.read() == Ruleset({}, {})
    with Kernel("filter") as kernel:
        assert kernel.read() == Ruleset({}, {}, table="filter")


def test_a_set_that_is_made_while_somebody_reads(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes it between the sets and the table: its number has no name yet, and what that seemed to be is not kept."""
    rule = Rule(RETURN, (SetMatch("NETPOL4-a", ("src",)),))
    with Kernel() as writer, Kernel() as reader:
        ask = reader._sets.ask_numbers

        def asked() -> None:
            ask()
            writer.apply([CreateSet(Set("NETPOL4-a", "hash:ip", 4, {HOST})), ReplaceTable(4, "mangle", {ROOT: Chain(ROOT, (rule,))}, True)])

        monkeypatch.setattr(reader._sets, "ask_numbers", asked)
        reader.read()
        monkeypatch.undo()
        assert reader.read() == writer.read()
        assert reader.read().chains[4][ROOT].rules == (rule,)


def test_what_a_predecessor_wrote_is_decoded_once(netns: int) -> None:
    """The second reading of the same bytes gives the very values of the first."""
    with Kernel() as kernel:
        kernel.apply(diff(wanted(), kernel.read()))
    with Kernel() as kernel:
        first, second = kernel.read().chains[4], kernel.read().chains[4]
        assert first == second == wanted().chains[4]
        assert all(first[name] is second[name] for name in first)


def test_adopting_writes_nothing(netns: int) -> None:
    """A new process that finds the wanted state makes no replace for it, even when it is told to: looking is all it does."""
    with Kernel() as kernel:
        kernel.apply(diff(wanted(), kernel.read()))
    before = [saved(family, counters=True) for family in FAMILIES]
    with Kernel() as kernel:
        calls = kernel.calls
        kernel.apply([ReplaceTable(family, "mangle", wanted().chains[family], True) for family in FAMILIES])
        # open, flock, GET_INFO, GET_ENTRIES, close: for each family
        assert kernel.calls - calls == 10
        kernel.apply([])
        assert kernel.calls - calls == 10
    assert [saved(family, counters=True) for family in FAMILIES] == before


def test_reading_creates_no_table(netns: int) -> None:
    """A kernel that holds nothing of ours is found to, and has as few tables as before."""
    with Kernel() as kernel:
        assert kernel.read() == Ruleset({}, {})
        assert kernel.counters(4) == {}
    for name in ("ip_tables_names", "ip6_tables_names"):
        with open(f"/proc/thread-self/net/{name}") as file:
            assert file.read() == ""


def test_a_failed_step_leaves_the_earlier_ones(netns: int) -> None:
    """What was done before the failure is in force and is known; the next attempt needs only the rest."""
    good = wanted()
    bad = Chain("NETPOL-A", (Rule(RETURN, (SetMatch("NETPOL-none", ("src",)),)),))
    with Kernel() as kernel:
        creates = [CreateSet(found) for found in good.sets.values()]
        with pytest.raises(KernelError, match="iptables rule NETPOL-A, rule 1: there is no set NETPOL-none"):
            kernel.apply([*creates, ReplaceTable(4, "mangle", {**good.chains[4], "NETPOL-A": bad}, True), DestroySet("NETPOL-4-peers")])
        found = kernel.read()
        assert (found.sets, found.chains) == (good.sets, {})
        with pytest.raises(KernelError, match="ipset create NETPOL-4-peers: a set of this name exists already"):
            kernel.apply([CreateSet(Set("NETPOL-new", "hash:ip", 4)), creates[0], ReplaceTable(4, "mangle", good.chains[4], True)])
        # The set that was made before the failure has a number that is known.
        only = Chain(ROOT, (Rule(RETURN, (SetMatch("NETPOL-new", ("src",)),)),))
        kernel.apply([ReplaceTable(4, "mangle", {ROOT: only}, True)])
        assert kernel.read().chains == {4: {ROOT: only}}
        kernel.apply(diff(good, kernel.read()))
        agree(kernel, good)


def test_a_destroyed_set_is_forgotten(netns: int) -> None:
    """A chain that uses a set which is no more is refused before the kernel is asked, and so is one whose bytes were kept."""
    with Kernel() as kernel:
        kernel.apply(diff(wanted(), kernel.read()))
        kernel.apply(diff(Ruleset({}, {}), kernel.read()))
        with pytest.raises(KernelError, match="there is no set NETPOL-4-peers"):
            kernel.apply([ReplaceTable(4, "mangle", wanted().chains[4], True)])


def test_a_set_that_took_the_number_of_another(netns: int) -> None:
    """Where somebody destroyed a set of ours and a new one got its number, no rule asks the new one in its place; and both can go again."""
    first, other = Set("NETPOL-4-first", "hash:ip", 4, frozenset({HOST})), Set("NETPOL-4-other", "hash:ip", 4, frozenset({HOST}))
    chain = Chain(ROOT, (Rule(DROP, (SetMatch(first.name, ("src",)),)),))
    with Kernel() as kernel:
        kernel.apply([CreateSet(first)])
        run("ipset", "destroy", first.name)
        kernel.apply([CreateSet(other)])
        with pytest.raises(KernelError, match="there is no set NETPOL-4-first"):
            kernel.apply([ReplaceTable(4, "mangle", {ROOT: chain}, True)])
        kernel.apply([CreateSet(first), ReplaceTable(4, "mangle", {ROOT: chain}, True)])
        assert kernel.read().chains[4] == {ROOT: chain}
        kernel.apply([DestroySet(other.name)])
        assert kernel.read().sets == {first.name: first}


def test_counters_by_chain(netns: int) -> None:
    """The counters of our rules, and of nobody else's, are read by chain, in the order of the rules."""
    text = f"*mangle\n:{ROOT} - [0:0]\n:THEIRS - [0:0]\n[3:30] -A {ROOT} -p tcp\n[4:40] -A {ROOT} -j DROP\n[5:50] -A THEIRS\nCOMMIT\n"
    run("iptables-legacy-restore", "-c", input=text)
    with Kernel() as kernel:
        assert kernel.counters(4) == {ROOT: ((3, 30), (4, 40))}
        assert kernel.counters(6) == {}


def test_members_stay_in_one_piece(netns: int) -> None:
    """Whoever loads a set, proves it, reads it back or follows a few that come and go makes no object for a member of it."""
    packed = b"".join(sorted(host(4, number) for number in range(200)))
    wanted = Set.of_packed("NETPOL4-S", "hash:ip", 4, packed)
    few = frozenset((host(4, 201),))
    with Kernel() as kernel:
        kernel.apply([CreateSet(wanted)])
        assert not kernel.look()
        found = kernel.read().sets[wanted.name]
        assert found == wanted
        assert found.packed == packed
        more = wanted.plus(few)
        assert more.minus(few) == wanted
        assert [vars(one) for one in (wanted, found, more)] == [{}, {}, {}]


@pytest.mark.parametrize("families", [(4,), (4, 6)], ids=["one table", "both"])
def test_what_was_refused_is_not_kept(families: tuple[Family, ...], netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what was made for it, which may be as large as a table: the error leads back to nothing of that."""

    class Large:
        pass

    made: list[weakref.ref[Large]] = []

    def refuse(self: Kernel, step: ReplaceTable) -> None:
        large = Large()
        made.append(weakref.ref(large))
        raise KernelError(12, "iptables replace", "mangle", "Cannot allocate memory")

    monkeypatch.setattr(Kernel, "_replace", refuse)
    gc.disable()
    try:
        with Kernel() as kernel, pytest.raises(KernelError, match="Cannot allocate"):
            kernel.apply([ReplaceTable(family, "mangle", {}, False) for family in families])
        assert [one() for one in made] == [None] * len(families)
    finally:
        gc.enable()


def test_nothing_narrows_before_what_widens_is_done(netns: int) -> None:
    """A growth that the kernel refuses leaves the members that were to go where they are."""
    with Kernel() as kernel:
        kernel.apply([CreateSet(Set("NETPOL4-S", "hash:ip", 4, frozenset((host(4, 1),))))])
        grow = GrowSet("NETPOL4-none", "hash:ip", 4, frozenset((host(4, 2),)))
        with pytest.raises(KernelError, match="NETPOL4-none"):
            kernel.apply([grow, ShrinkSet("NETPOL4-S", "hash:ip", 4, frozenset((host(4, 1),)))])
        assert kernel.read().sets["NETPOL4-S"].members == {host(4, 1)}
