"""What somebody else changed, made by the real tools on a real kernel: noticed by the cheap look, named by the audit, repaired."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netpol.agent import audit
from netpol.agent.agenda import Pace
from netpol.agent.audit import NO_DRIFT, Drift, compare, written
from netpol.agent.enforcer import Enforcer, Report
from netpol.agent.files import KINDS
from netpol.agent.loop import Listener, Loop
from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.kernel.blocks import EncodedChain, SetNumbers
from netpol.kernel.encode import encode_chains
from netpol.kernel.held_sets import GLANCE_MEMBERS
from netpol.kernel.ipset import Create, IpsetSocket, pack
from netpol.kernel.watch import Bell
from netpol.kernel.xtables import lock_path
from netpol.kube.events import Put, Synced
from netpol.model import EVERYTHING, TCP, Family, IPBlock, Namespace, Network, NumberedPort, Pod, Policy, PolicyRule, Query, parse_address
from netpol.rules.compile import Settings
from netpol.rules.diff import diff
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, DestroySet, ReplaceTable, Rule, Ruleset, TableName
from netpol.rules.sets import Set
from tests.agent.stage import OBJECTS, WEB, enforced, the_chain, the_set
from tests.referees import require, run

pytestmark = pytest.mark.usefixtures("netns")

WEB_PORT = (NumberedPort(TCP, 80, 80),)
# 172.17.0.0/16 without 172.17.1.0/24: a set of networks, one of them `nomatch`.
BLOCK = Policy("x", "q", WEB, (PolicyRule((IPBlock(Network(b"\xac\x11\0\0", 16), (Network(b"\xac\x11\1\0", 24),)),), WEB_PORT),), None)


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def enforcer(kernel: Kernel) -> Enforcer:
    return enforced(kernel)


def mangle(*arguments: str) -> list[str]:
    return ["iptables-legacy", "-w", "-t", "mangle", *arguments]


# kind of interference -> (what the tools do, what the audit says). {set} and {chain} are an IPv4 set of two members and a class's chain.
FLUSH = [mangle("-F"), mangle("-X")]
INJECTED: dict[str, tuple[list[list[str]], Drift]] = {
    "jump deleted": ([mangle("-D", "FORWARD", "-j", "NETPOL")], Drift(deleted=("IPv4",))),
    "jump moved": (
        [
            mangle("-D", "FORWARD", "-j", "NETPOL"),
            mangle("-A", "FORWARD", "-j", "MARK", "--set-mark", "1"),
            mangle("-A", "FORWARD", "-j", "NETPOL"),
        ],
        Drift(moved=("IPv4",)),
    ),
    "a rule before the jump": ([mangle("-I", "FORWARD", "-j", "MARK", "--set-mark", "1")], Drift(moved=("IPv4",))),
    "a second jump": ([mangle("-A", "FORWARD", "-j", "NETPOL")], Drift(moved=("IPv4",))),
    "chain edited": ([mangle("-I", "{chain}", "-j", "RETURN")], Drift(edited=("IPv4 {chain}",))),
    "rule replaced, as long as it was": (
        [mangle("-R", "NETPOL", "1", "-m", "conntrack", "--ctstate", "NEW", "-j", "RETURN")],
        Drift(edited=("IPv4 NETPOL",)),
    ),
    "chain flushed": ([mangle("-F", "{chain}")], Drift(edited=("IPv4 {chain}",))),
    "chain added": ([mangle("-N", "NETPOL-X")], Drift(stray=("IPv4 NETPOL-X",))),
    "chain deleted": (
        [mangle("-F", "NETPOL-INGRESS"), mangle("-F", "{chain}"), mangle("-X", "{chain}")],
        Drift(edited=("IPv4 NETPOL-INGRESS",), lost=("IPv4 {chain}",)),
    ),
    "table flushed": ([mangle("-F")], Drift(tables=("IPv4",))),
    "table flushed, chains deleted": (FLUSH, Drift(tables=("IPv4",))),
    "both tables flushed": ([*FLUSH, *(["ip6tables-legacy", *command[1:]] for command in FLUSH)], Drift(tables=("IPv4", "IPv6"))),
    "member added": ([["ipset", "add", "{set}", "192.0.2.1"]], Drift(sets=(("{set}", 0, 1),))),
    "member removed": ([["ipset", "del", "{set}", "10.0.0.2"]], Drift(sets=(("{set}", 1, 0),))),
    "member exchanged": ([["ipset", "del", "{set}", "10.0.0.2"], ["ipset", "add", "{set}", "10.0.0.3"]], Drift(sets=(("{set}", 1, 1),))),
    "set flushed": ([["ipset", "flush", "{set}"]], Drift(sets=(("{set}", 2, 0),))),
    "set added": ([["ipset", "create", "NETPOL4-stray", "hash:ip"]], Drift(stray_sets=("NETPOL4-stray",))),
    "set swapped": (
        [["ipset", "create", "other", "hash:ip"], ["ipset", "add", "other", "192.0.2.7"], ["ipset", "swap", "{set}", "other"]],
        Drift(sets=(("{set}", 2, 1),), swapped_sets=("{set}",)),
    ),
    **{
        f"set swapped for one with {option[0]}": (
            [
                ["ipset", "create", "other", "hash:ip", "maxelem", "65536", *option],
                *(["ipset", "-exist", "add", "other", member] for member in ("10.0.0.1", "10.0.0.2")),
                ["ipset", "swap", "{set}", "other"],
            ],
            Drift(sets=(("{set}", 2, 0),), swapped_sets=("{set}",)),
        )
        for option in (["timeout", "600"], ["netmask", "31"], ["bitmask", "255.255.255.254"], ["forceadd"])
    },
    "set added of a type that we do not read": ([["ipset", "create", "NETPOL4-stray", "list:set"]], Drift(stray_sets=("NETPOL4-stray",))),
    "set made anew of another type": (
        [mangle("-F", "{chain}"), ["ipset", "destroy", "{set}"], ["ipset", "create", "{set}", "hash:net"]],
        Drift(edited=("IPv4 {chain}",), sets=(("{set}", 2, 0),), swapped_sets=("{set}",)),
    ),
    "set made anew of a type that we do not read": (
        [mangle("-F", "{chain}"), ["ipset", "destroy", "{set}"], ["ipset", "create", "{set}", "bitmap:port", "range", "1-9"]],
        Drift(edited=("IPv4 {chain}",), sets=(("{set}", 2, 0),), swapped_sets=("{set}",)),
    ),
    "set destroyed": ([mangle("-F", "{chain}"), ["ipset", "destroy", "{set}"]], Drift(edited=("IPv4 {chain}",), lost_sets=("{set}",))),
}
NOTICED_LATER = {"rule replaced, as long as it was", "member exchanged", "set added", "set added of a type that we do not read"}


def filled(drift: Drift, **places: str) -> Drift:
    return Drift(
        drift.tables,
        drift.moved,
        drift.deleted,
        tuple(name.format(**places) for name in drift.edited),
        tuple(name.format(**places) for name in drift.lost),
        drift.stray,
        tuple((name.format(**places), missing, extra) for name, missing, extra in drift.sets),
        tuple(name.format(**places) for name in drift.swapped_sets),
        tuple(name.format(**places) for name in drift.lost_sets),
        drift.stray_sets,
    )


def saved() -> list[str]:
    texts = run("iptables-legacy-save", "-t", "mangle"), run("ip6tables-legacy-save", "-t", "mangle"), run("ipset", "save")
    return [line for text in texts for line in text.splitlines() if line[0] not in "#:"]


def slept(kernel: Kernel) -> bool:
    """Whether a look of a short sleep finds something."""
    now = time.monotonic()
    return kernel.rest(Bell(), now, 60.0, now + 0.01) == 0


@pytest.mark.parametrize("kind", INJECTED)
@pytest.mark.parametrize("looked", [False, True], ids=["never looked at", "looked at before"])
def test_drift_is_noticed_named_and_repaired(kernel: Kernel, enforcer: Enforcer, kind: str, looked: bool) -> None:
    """Each kind of interference: the cheap look says so, by C and by Python, the audit says what it was, and then all is as written."""
    places = {"set": the_set(enforcer), "chain": the_chain(enforcer)}
    commands, expected = INJECTED[kind]
    if looked:
        assert enforcer.audit()[0] == NO_DRIFT
    assert not kernel.touched()
    for command in commands:
        run(*(word.format(**places) for word in command))
    assert slept(kernel) == kernel.touched() == (kind not in NOTICED_LATER)
    drift, report = enforcer.audit()
    assert drift == enforcer.drift == filled(expected, **places)
    assert report.steps
    assert diff(enforcer.state.wanted(), kernel.read()) == ()
    assert not kernel.touched()
    assert enforcer.audit()[0] == NO_DRIFT


def test_every_kind_of_drift_is_injected() -> None:
    """The vocabulary of the metric has no word that no interference above leads to, and each drift has words for people."""
    drifts = [drift for _, drift in INJECTED.values()]
    assert {kind for drift in drifts for kind in drift.kinds()} == set(audit.KINDS)
    assert all(drift and drift.named() for drift in drifts)
    assert NO_DRIFT.kinds() == {}
    assert Drift(sets=(("a", 1, 1), ("b", 0, 5)), swapped_sets=("b",)).kinds() == {"member_added": 1, "member_removed": 1, "set_swapped": 1}


def test_the_same_members_in_another_set(kernel: Kernel, enforcer: Enforcer) -> None:
    """A set of the same members was swapped in: it is told once, and there is nothing to repair."""
    name = the_set(enforcer)
    enforcer.audit()
    run("ipset", "create", "other", "hash:ip", "maxelem", "100")
    for member in ("10.0.0.1", "10.0.0.2"):
        run("ipset", "add", "other", member)
    run("ipset", "swap", name, "other")
    drift, report = enforcer.audit()
    assert (drift, report.steps) == (Drift(swapped_sets=(name,)), ())
    assert enforcer.audit()[0] == NO_DRIFT


def test_two_of_ours_swapped_with_each_other(kernel: Kernel) -> None:
    """Both have the other's members: that is two sets swapped, and both are repaired."""
    enforcer = enforced(kernel, Namespace("y"), Pod("y", "c", (), "", (parse_address("10.0.0.9"),)))
    enforcer.put(Policy("x", "second", WEB, (PolicyRule((Query("y", EVERYTHING, EVERYTHING),), WEB_PORT),), None))
    enforcer.enforce()
    names = sorted(name for name in enforcer.state.wanted().sets if name.startswith("NETPOL4"))
    assert len(names) == 2
    run("ipset", "swap", *names)
    drift, _ = enforcer.audit()
    assert drift.swapped_sets == tuple(names)
    assert {name for name, _, _ in drift.sets} == set(names)
    assert diff(enforcer.state.wanted(), kernel.read()) == ()


def test_a_nomatch_that_was_turned_over(kernel: Kernel) -> None:
    """The exception of an ipBlock loses its flag: as many members, one of them another; it is found and gets its flag back."""
    enforcer = enforced(kernel, BLOCK)
    name = next(name for name, found in enforcer.state.wanted().sets.items() if found.kind == "hash:net")
    assert enforcer.audit()[0] == NO_DRIFT
    run("ipset", "-exist", "add", name, "172.17.1.0/24")
    assert enforcer.audit()[0] == Drift(sets=((name, 1, 1),))
    assert f"add {name} 172.17.1.0/24 nomatch" in run("ipset", "save", name)
    assert enforcer.audit()[0] == NO_DRIFT


def test_others_may_change_what_is_theirs(kernel: Kernel, enforcer: Enforcer) -> None:
    """Rules of others that move ours around in the table, sets of others that come and go: no drift, and no step."""
    assert enforcer.audit()[0] == NO_DRIFT
    run(*mangle("-N", "AAA"))
    run(*mangle("-A", "AAA", "-p", "tcp", "-j", "ACCEPT"))
    run(*mangle("-A", "FORWARD", "-j", "AAA"))
    run(*mangle("-I", "PREROUTING", "-p", "udp", "-j", "AAA"))
    run("ipset", "create", "aaa", "hash:net")
    run("ipset", "create", "bits", "bitmap:port", "range", "0-1000")
    run("ipset", "add", "bits", "80")
    run("ipset", "create", "lists", "list:set")
    run("ipset", "add", "lists", the_set(enforcer))
    assert kernel.touched()
    before = saved()
    for _ in range(2):
        drift, report = enforcer.audit()
        assert (drift, report.steps) == (NO_DRIFT, ())
        assert not kernel.touched()
    assert saved() == before


def test_pending_changes_are_no_drift(kernel: Kernel, enforcer: Enforcer) -> None:
    """Events that are not enforced yet: the audit of an untouched kernel leaves them alone; with drift they go along with the repair."""
    name = the_set(enforcer)
    enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)), BLOCK)
    enforcer.drop(Pod, "b", "x")
    drift, report = enforcer.audit()
    assert (drift, report.steps) == (NO_DRIFT, ())
    run("ipset", "del", name, "10.0.0.1")
    run(*mangle("-N", "NETPOL-X"))
    assert enforcer.audit()[0] == Drift(stray=("IPv4 NETPOL-X",), sets=((name, 1, 0),))
    assert diff(enforcer.state.wanted(), kernel.read()) == ()
    assert enforcer.enforce().steps == ()


def test_a_set_that_is_about_to_leave_is_no_drift(kernel: Kernel, enforcer: Enforcer) -> None:
    """The policy is gone, its set is still there: only what somebody else did is told."""
    enforcer.drop(Policy, "p", "x")
    run(*mangle("-N", "NETPOL-X"))
    assert enforcer.audit()[0] == Drift(stray=("IPv4 NETPOL-X",))
    assert kernel.read().sets == {}


def test_what_was_written_is_told_from_what_is_wanted(kernel: Kernel, enforcer: Enforcer) -> None:
    """Whatever is pending, what the state says was written is what the kernel holds."""

    def last() -> Ruleset:
        ahead, behind, _ = enforcer.state.pending()
        return written(enforcer.state.wanted(), ahead, behind)

    before = kernel.read()
    assert last() == before
    enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)), BLOCK)
    enforcer.drop(Pod, "b", "x")
    assert last() == before
    enforcer.enforce()
    assert last() == kernel.read() == enforcer.state.wanted()


def test_changes_are_followed(kernel: Kernel, enforcer: Enforcer) -> None:
    """After deltas of sets, new and destroyed sets and replaced tables, a look still needs to read nothing as values."""
    for step in range(40):
        pod = Pod("x", f"c{step}", (), "elsewhere", (parse_address(f"10.0.1.{step + 1}"), parse_address(f"fd00::1:{step + 1}")))
        enforcer.put(pod)
        if step % 10 == 4:
            enforcer.put(BLOCK)
        if step % 10 == 8:
            enforcer.drop(Policy, "q", "x")
        if step % 3 == 2:
            enforcer.drop(Pod, f"c{step - 1}", "x")
        enforcer.enforce()
        assert not kernel.touched()
        if step % 10 != 5:
            assert not kernel.look()


def test_nothing_is_written_before_the_first_enforcement(kernel: Kernel, enforcer: Enforcer) -> None:
    """A new process whose cluster is not complete yet: whatever it is asked but to enforce, it makes no system call."""
    before = saved()
    with Kernel() as second:
        other = Enforcer(second, "n")
        calls = second.calls
        assert not second.touched()
        assert other.audit() == (NO_DRIFT, Report((), 0))
        other.put(*OBJECTS[:2])
        assert other.audit() == (NO_DRIFT, Report((), 0))
        assert second.calls == calls
    assert saved() == before


def test_after_a_failure_the_audit_leaves_it_to_the_next_try(kernel: Kernel, enforcer: Enforcer) -> None:
    """An enforcement failed on the way: an audit neither compares nor writes; the next enforcement mends, and audits go on."""
    name = the_set(enforcer)
    run(*mangle("-F"))
    run("ipset", "destroy", name)
    enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
    with pytest.raises(KernelError, match=name):
        enforcer.enforce()
    assert enforcer.audit() == (NO_DRIFT, Report((), 0))
    assert enforcer.enforce().steps
    assert enforcer.audit()[0] == NO_DRIFT
    assert diff(enforcer.state.wanted(), kernel.read()) == ()


def test_drift_that_cannot_be_repaired_is_told_all_the_same(
    kernel: Kernel, enforcer: Enforcer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock cannot be taken: the error names its file, and `drift` says what was found."""
    run("iptables-legacy", "-w", "-t", "mangle", "-F", the_chain(enforcer))
    with monkeypatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path / "missing" / "lock"))
        with pytest.raises(KernelError, match="missing/lock"):
            enforcer.audit()
    assert enforcer.drift == Drift(edited=(f"IPv4 {the_chain(enforcer)}",))
    enforcer.enforce()
    assert enforcer.audit()[0] == NO_DRIFT


def test_a_stray_set_that_somebody_uses_is_drift_once(enforcer: Enforcer) -> None:
    """It cannot be destroyed, which is said; from then on it is left over, and goes when it is free."""
    run("ipset", "create", "NETPOL4-stray", "hash:ip")
    run("iptables-legacy", "-w", "-A", "FORWARD", "-m", "set", "--match-set", "NETPOL4-stray", "src", "-j", "ACCEPT")
    drift, report = enforcer.audit()
    assert (drift, report.leftover) == (Drift(stray_sets=("NETPOL4-stray",)), ("NETPOL4-stray",))
    run("ipset", "add", "NETPOL4-stray", "192.0.2.1")
    drift, report = enforcer.audit()
    assert (drift, report.leftover) == (NO_DRIFT, ("NETPOL4-stray",))
    run("iptables-legacy", "-w", "-F", "FORWARD")
    assert enforcer.audit()[1].steps == (DestroySet("NETPOL4-stray"),)
    assert "NETPOL4-stray" not in run("ipset", "list", "-n").split()


def test_the_loop_notices_by_the_cheap_look_alone(kernel: Kernel) -> None:
    """No audit has a period; a flushed table is repaired all the same, and told."""
    told: list[Drift] = []

    class Ear(Listener):
        def drifted(self, drift: Drift, report: Report | None) -> None:
            told.append(drift)

    loop = Loop(Enforcer(kernel, "n"), KINDS, Ear(), pace=Pace(audit=0.0), look=kernel.touched, rest=kernel.rest, jitter=lambda: 0.5)
    loop.hear(*(Put(item) for item in OBJECTS), *(Synced(kind) for kind in KINDS))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        until(lambda: "-A FORWARD -j NETPOL" in saved())
        run(*mangle("-F"))
        until(lambda: bool(told))
    finally:
        loop.stop()
        thread.join()
    assert told == [Drift(tables=("IPv4",))]
    assert "-A FORWARD -j NETPOL" in saved()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_start_beside_sets_of_our_name_that_we_do_not_read(netns: int) -> None:
    """They are strays like any other: what is wanted comes into force, and they are destroyed."""
    run("ipset", "create", "NETPOL-x", "bitmap:port", "range", "1-9")
    run("ipset", "create", "NETPOL6-y", "list:set")
    with Kernel() as kernel:
        enforcer = enforced(kernel)
        assert kernel.read() == enforcer.state.wanted()
    assert not {"NETPOL-x", "NETPOL6-y"} & set(run("ipset", "list", "-n").split())


# -- what a look costs -------------------------------------------------------------------------------------------------


def test_what_looking_costs(kernel: Kernel, enforcer: Enforcer) -> None:
    """The cheap look: a call a family, and two for each set's header. The whole one: two a family, two for all names (received 128 sets
    at a time), two for each set's members. Sets of others cost their name, however large they are."""
    enforcer.audit()
    sets = len(enforcer.state.wanted().sets)
    for others in (0, 1):
        calls = kernel.calls
        assert not kernel.touched()
        assert kernel.calls - calls == 2 + 2 * sets
        calls = kernel.calls
        drift, report = enforcer.audit()
        assert drift == NO_DRIFT
        assert report.system_calls == kernel.calls - calls == 4 + 2 + 2 * sets
        with IpsetSocket() as ipset:
            many = pack((0x0A000000 + i).to_bytes(4, "big") for i in range(1, 30_000))
            ipset.run([Create(f"others-{others}", "hash:ip", 4, many)])


def test_sets_are_not_glanced_at_where_they_are_large(kernel: Kernel) -> None:
    """With many members the cheap look is the two calls of the tables; the whole look still finds one member of them gone."""
    members = frozenset((0x0A000000 + i).to_bytes(4, "big") for i in range(1, GLANCE_MEMBERS + 3))
    wanted = Ruleset({4: {ROOT: Chain(ROOT, (Rule(DROP),))}}, {"NETPOL4-x": Set("NETPOL4-x", "hash:ip", 4, members)}, frozenset((4,)))
    kernel.apply(diff(wanted, kernel.read()))
    run("ipset", "del", "NETPOL4-x", "10.0.0.7")
    calls = kernel.calls
    assert not kernel.touched()
    assert kernel.calls - calls == 1
    assert kernel.look().sets == {"NETPOL4-x"}


@pytest.mark.parametrize("table", ["mangle", "filter"])
def test_what_we_write_is_no_touch(netns: int, table: TableName) -> None:
    """In both tables, which have different hooks: after any write of ours nobody has touched anything; after his, somebody has."""
    with Kernel(table) as kernel:
        enforcer = Enforcer(kernel, "n", Settings(table=table))
        enforcer.put(*OBJECTS)
        enforcer.enforce()
        assert not kernel.touched()
        enforcer.put(BLOCK)
        enforcer.enforce()
        assert not kernel.touched()
        run("iptables-legacy", "-w", "-t", table, "-I", "OUTPUT", "-p", "tcp")
        assert kernel.touched()
        assert enforcer.audit()[0] == NO_DRIFT
        assert not kernel.touched()


def test_a_look_that_fails_is_a_touch(kernel: Kernel, enforcer: Enforcer) -> None:
    """A cheap look that the kernel refuses says yes; the audit that follows says why."""
    kernel.close()
    assert kernel.touched()
    with pytest.raises(KernelError, match="it is closed"):
        enforcer.audit()


def test_a_look_makes_no_table(netns: int) -> None:
    """A process that found nothing of ours and no table leaves it so."""
    with Kernel() as kernel:
        kernel.read()
        assert not kernel.look()
        assert not kernel.touched()
    for name in ("ip_tables_names", "ip6_tables_names"):
        with open(f"/proc/thread-self/net/{name}") as file:
            assert file.read() == ""


def test_a_table_that_appears_is_looked_at(netns: int) -> None:
    """Where there was no table, somebody makes one with a chain of our name: the look says so."""
    with Kernel() as kernel:
        kernel.read()
        run(*mangle("-N", "NETPOL-X"))
        assert kernel.look().tables == {4}
        kernel.apply([ReplaceTable(4, "mangle", {}, False)])
        assert not kernel.look()


def test_the_lock_is_not_held_while_chains_are_encoded(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that can be computed before the table is read is: at that time another program gets the lock at once."""
    require("flock")
    tries: list[int] = []

    def watched(chains: list[Chain], family: Family, sets: SetNumbers) -> list[EncodedChain]:
        tries.append(subprocess.run(["flock", "--nonblock", lock_path(), "true"], check=False).returncode)
        return encode_chains(chains, family, sets)

    monkeypatch.setattr("netpol.kernel.held_table.encode_chains", watched)
    with Kernel() as kernel:
        kernel.apply([ReplaceTable(4, "mangle", {ROOT: Chain(ROOT, (Rule(RETURN),))}, True)])
        assert 0 < kernel.longest_hold < 60
    assert tries == [0]


def test_comparing_is_pure() -> None:
    """Two values: nothing differs from itself, and a family that was never hooked cannot have been flushed."""
    state = Ruleset({4: {ROOT: Chain(ROOT, (Rule(DROP),))}}, {}, frozenset((4,)))
    assert compare(state, state) == NO_DRIFT
    assert compare(state, Ruleset({}, {})) == Drift(tables=("IPv4",))
    assert compare(Ruleset({}, {}), state).stray == (f"IPv4 {ROOT}",)
