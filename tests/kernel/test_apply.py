"""Steps applied to a real kernel lead where they say, and what somebody else changed there is found and repaired."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from netpol.errors import KernelError
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.kernel.blocks import SetNumbers
from netpol.kernel.encode import encode_chain
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.ipset_values import Command, Create, Swap
from netpol.model import FAMILIES, TCP, Family, Object, Pod, Policy
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
    SetDirection,
    SetMatch,
    ShrinkSet,
    TableName,
)
from netpol.rules.sets import Set, SetKind, port_member
from netpol.rules.text import ipset_save, iptables_save
from tests import clusters
from tests.kernel.iptables import saved
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


def test_a_set_that_is_made_while_somebody_reads(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes it between the sets and the table: its number has no name yet, and what that seemed to be is not kept."""
    rule = Rule(RETURN, (SetMatch("NETPOL4-a", ("src",)),))
    with Kernel() as writer, Kernel() as reader:
        ask = reader._ask_numbers

        def asked() -> None:
            ask()
            writer.apply([CreateSet(Set("NETPOL4-a", "hash:ip", 4, {HOST})), ReplaceTable(4, "mangle", {ROOT: Chain(ROOT, (rule,))}, True)])

        monkeypatch.setattr(reader, "_ask_numbers", asked)
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


# -- sets that are full ------------------------------------------------------------------------------------------------

BOTH: tuple[SetDirection, ...] = ("src", "dst")
LENGTH: dict[Family, int] = {4: 31, 6: 127}
FULL: dict[str, tuple[SetKind, Callable[[Family, int], bytes]]] = {
    "hash:ip": ("hash:ip", lambda family, number: host(family, number)),
    "hash:net": ("hash:net", lambda family, number: host(family, number) + bytes((LENGTH[family], 0))),
    "hash:ip,port": ("hash:ip,port", lambda family, number: port_member(host(family, number), TCP, 80)),
    "hash:net,port": ("hash:net,port", lambda family, number: host(family, number) + bytes((LENGTH[family], 0, TCP)) + b"\0\x50"),
}


def host(family: Family, number: int) -> bytes:
    return bytes((10, *bytes(1 if family == 4 else 13), number, 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "member"), FULL.values(), ids=FULL)
def test_a_set_that_outgrows_its_room_is_exchanged(
    netns: int, kind: SetKind, member: Callable[[Family, int], bytes], family: Family
) -> None:
    """The rule that uses it goes on with the same number and sees the new members; the look finds all as written."""
    name = f"NETPOL{family}-full"
    old, new = frozenset(member(family, number) for number in range(4)), frozenset(member(family, number) for number in range(4, 9))
    chains = {ROOT: Chain(ROOT, (Rule(DROP, (SetMatch(name, BOTH if "port" in kind else BOTH[:1]),)),))}
    run("ipset", "create", name, kind, "family", "inet6" if family == 6 else "inet", "maxelem", "6")
    with Kernel() as kernel, IpsetSocket() as ipset:
        kernel.read()
        kernel.apply([GrowSet(name, kind, family, old), ReplaceTable(family, "mangle", chains, True)])
        before = ipset.headers()[name]
        kernel.apply([GrowSet(name, kind, family, new), ShrinkSet(name, kind, family, frozenset(list(old)[:1]))])
        after = ipset.headers()[name]
        assert (after.index, after.references, after.maxelem, after.entries) == (before.index, 1, 65536, 8)
        # What a set of networks holds after a deletion has to be read.
        assert bool(kernel.look()) == ("net" in kind)
        found = kernel.read()
        assert found.chains[family] == chains
        assert found.sets == {name: Set(name, kind, family, (old | new) - frozenset(list(old)[:1]))}


@pytest.mark.parametrize("kind", ["hash:net", "hash:net,port"])
def test_a_full_set_takes_flags_along(netns: int, kind: SetKind) -> None:
    """A network that turns into a `nomatch` one, while others find no room, is one in the larger set."""
    suffix = bytes((TCP,)) + b"\0\x50" if "port" in kind else b""
    nets = [host(4, number) + bytes((31, 0)) + suffix for number in range(6)]
    flipped = nets[0][:5] + b"\1" + nets[0][6:]
    run("ipset", "create", "NETPOL4-full", kind, "maxelem", "2")
    with Kernel() as kernel:
        kernel.apply([GrowSet("NETPOL4-full", kind, 4, frozenset(nets[:2]))])
        kernel.apply([GrowSet("NETPOL4-full", kind, 4, frozenset((*nets[2:], flipped)))])
        assert kernel.read().sets["NETPOL4-full"].members == frozenset((*nets[1:], flipped))
        assert not kernel.look()


def test_what_a_killed_exchange_left_is_no_obstacle(netns: int) -> None:
    """The larger set that a process made, and did not come to put in its place, is made again."""
    run("ipset", "create", "NETPOL4-full", "hash:ip", "maxelem", "1")
    run("ipset", "create", "NETPOL4xfull", "hash:net")
    with Kernel() as kernel:
        kernel.apply([GrowSet("NETPOL4-full", "hash:ip", 4, frozenset(host(4, number) for number in range(4)))])
        assert {name: len(found.members) for name, found in kernel.read().sets.items()} == {"NETPOL4-full": 4}


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "member"), FULL.values(), ids=FULL)
@pytest.mark.parametrize("hindered", [False, True], ids=["exchanged", "deleted"])
def test_what_most_members_leave_is_exchanged(
    netns: int, kind: SetKind, member: Callable[[Family, int], bytes], family: Family, hindered: bool
) -> None:
    """The rule goes on with the same number and sees what is left in a set of its own size. Where another set is in the way they are
    deleted. What comes before in the batch is done before, and what comes after it after."""
    name = f"NETPOL{family}-many"
    small, new = (Set(f"NETPOL{family}-{which}", kind, family, frozenset((member(family, 1),))) for which in ("small", "new"))
    old, left = (frozenset(member(family, number) for number in range(count)) for count in (200, 10))
    chains = {ROOT: Chain(ROOT, (Rule(DROP, (SetMatch(name, BOTH if "port" in kind else BOTH[:1]),)),))}
    if hindered:
        run("ipset", "create", f"NETPOL{family}xmany", "hash:net")
        run("ipset", "create", "other", "list:set")
        run("ipset", "add", "other", f"NETPOL{family}xmany")
    with Kernel() as kernel, IpsetSocket() as ipset:
        kernel.read()
        kernel.apply([CreateSet(Set(name, kind, family, old)), CreateSet(small), ReplaceTable(family, "mangle", chains, True)])
        before = ipset.headers()[name]
        kernel.apply(
            [
                ShrinkSet(small.name, kind, family, small.members),
                ShrinkSet(name, kind, family, old - left, Set(name, kind, family, left)),
                CreateSet(new),
            ]
        )
        after = ipset.headers()[name]
        assert (after.index, after.references, after.entries) == (before.index, 1, 10)
        assert (before.hashsize, after.hashsize) == (256, 256 if hindered else 64)
        if not hindered:
            assert name not in kernel.look().sets
        assert set(ipset.names("NETPOL")) == {name, small.name, new.name, *([f"NETPOL{family}xmany"] if hindered else [])}
        assert len(run("ipset", "save", name).splitlines()) == 11
        found = kernel.read()
        assert found.chains[family] == chains
        assert [found.sets[one] for one in (name, small.name, new.name)] == [
            Set(name, kind, family, left),
            small.with_members(frozenset()),
            new,
        ]
        kernel.apply([GrowSet(name, kind, family, old)])
        assert ipset.read(name).members == old


@pytest.mark.parametrize("done", range(5), ids=["nothing", "made", "filled", "exchanged", "destroyed"])
def test_an_exchange_that_fails_leaves_nothing(netns: int, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """Whatever was done before: the members are right, and so is what is known of them; nothing stays aside."""
    real, failing = IpsetSocket.run, [True]

    def run_some(self: IpsetSocket, commands: Sequence[Command], numbered: bool = False) -> dict[str, int]:
        first, parts = commands[0], list[Sequence[Command]]()
        if failing and isinstance(first, Create) and first.name.startswith("NETPOL4x") and done < 3:
            parts = [[], [replace(first, members=b"")], [first]]
        elif failing and isinstance(first, Swap):
            parts = [[], [], [], [first], list(commands)]
        else:
            return real(self, commands, numbered)
        failing.clear()
        real(self, parts[done], numbered)
        raise KernelError(16, "ipset", first.name if isinstance(first, Create) else first.first, "Device or resource busy")

    monkeypatch.setattr(IpsetSocket, "run", run_some)
    name = "NETPOL4-many"
    old, left = (frozenset(host(4, number) for number in range(count)) for count in (200, 10))
    with Kernel() as kernel, IpsetSocket() as ipset:
        kernel.read()
        kernel.apply([CreateSet(Set(name, "hash:ip", 4, old))])
        assert not kernel.look()
        assert kernel.apply([ShrinkSet(name, "hash:ip", 4, old - left, Set(name, "hash:ip", 4, left))]) == ()
        assert failing == []
        assert ipset.names("NETPOL") == [name]
        assert ipset.read(name).members == left
        assert not kernel.look()
        # The next one goes well.
        kernel.apply([GrowSet(name, "hash:ip", 4, old - left)])
        assert kernel.apply([ShrinkSet(name, "hash:ip", 4, old - left, Set(name, "hash:ip", 4, left))]) == ()
        assert (ipset.headers()[name].hashsize, ipset.names("NETPOL")) == (64, [name])


def test_what_an_exchange_leaves_is_told(netns: int) -> None:
    """Where somebody uses it, so that it cannot be destroyed: his set has the name that it needs."""
    run("ipset", "create", "NETPOL4xmany", "hash:ip")
    run("ipset", "create", "other", "list:set")
    run("ipset", "add", "other", "NETPOL4xmany")
    old, left = (frozenset(host(4, number) for number in range(count)) for count in (200, 10))
    with Kernel() as kernel:
        kernel.apply([CreateSet(Set("NETPOL4-many", "hash:ip", 4, old))])
        steps = [ShrinkSet("NETPOL4-many", "hash:ip", 4, old - left, Set("NETPOL4-many", "hash:ip", 4, left))]
        assert kernel.apply(steps) == ("NETPOL4xmany",)
        assert kernel.apply([CreateSet(Set("NETPOL4-new", "hash:ip", 4, left))]) == ()


def test_what_was_refused_is_not_kept(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
            kernel.apply([ReplaceTable(4, "mangle", {}, False)])
        assert [one() for one in made] == [None]
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
