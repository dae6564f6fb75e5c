"""A restart with another table or another cut bit, and a first install: under traffic, nothing allowed is lost, nothing denied arrives.

What moves is the state of `tests.test_hitless_packets`; its senders make a flow of every packet. Running flows are those of `tests.flows`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace

from netpol.agent.cutter import Cutter
from netpol.agent.enforcer import Enforcer, Report
from netpol.agent.enforcer import clean as remove
from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.kernel.xtables import TableSocket
from netpol.lab import Host, Lab
from netpol.model import TCP, UDP, Namespace, NumberedPort, Object, Policy, PolicyRule
from netpol.rules.compile import Settings
from netpol.rules.compile.skeleton import skeleton
from netpol.rules.diff import diff
from netpol.rules.flows import unpack
from netpol.rules.ruleset import ReplaceTable
from tests.flows import BASE, BIT, CLIENT, FRIENDS_ONLY, HOSTS, NOBODY, PODS, SERVER, SERVER6, World, guard, pod, wait_for
from tests.test_hitless_packets import ADDRESSES, ALWAYS, NEVER, OUTSIDE, Random, Traffic, running, selector, stay

PLAIN = Settings(unknown_pods="allow")
FILTER = replace(PLAIN, table="filter")
REJECT = replace(FILTER, deny="reject")
OTHER_BIT = replace(PLAIN, cut_bit=0x20000000)
OTHER_PORTS = Policy("x", "closed", selector(base="yes"), (PolicyRule(ports=(NumberedPort(UDP, 80, 80),)),), None)

MOVES = {
    "to filter": (PLAIN, FILTER),
    "to mangle": (FILTER, PLAIN),
    "to filter, rejecting": (PLAIN, REJECT),
    "from rejecting to mangle": (REJECT, PLAIN),
    "to another bit": (PLAIN, OTHER_BIT),
    "to filter and another bit": (PLAIN, replace(FILTER, cut_bit=0x20000000)),
}


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_a_restart_that_moves_everything_is_no_window(before: Settings, after: Settings) -> None:
    """There and back, again and again, now and then with another policy: no packet that may pass is lost, none that may not arrives."""
    hosts = [Host("outside", (OUTSIDE,)), *(Host(name, (address,)) for name, address in ADDRESSES.items())]
    drawn = Random(3)
    items: list[Object] = [Namespace("x"), *stay(), *map(drawn.pod, sorted(ADDRESSES))]
    with Lab(hosts) as lab, ExitStack() as stack:
        ends = (("outside", OUTSIDE, "p"), ("p", ADDRESSES["p"], "q"))
        with lab.entered():
            restart(before, items)
        always = [Traffic(lab, *end, ALWAYS) for end in ends]
        never = [Traffic(lab, *end, NEVER) for end in ends]
        for one in (*always, *never):
            stack.callback(one.close)
        rounds = 0
        with running([*always, *never]), lab.entered():
            while rounds < 6 or any(one.sent < 200 for one in always):
                wish = (after, before)[rounds % 2]
                report = restart(wish, [*items, OTHER_PORTS] if rounds % 3 else items)
                assert any(isinstance(step, ReplaceTable) for step in report.steps)
                rounds += 1
        assert [one.sent - one.count() for one in always] == [0, 0]
        assert [one.count() for one in never] == [0, 0]
        with lab.entered(), Kernel("filter" if wish.table == "mangle" else "mangle") as old:
            assert old.read().chains == {}


def restart(wish: Settings, items: list[Object]) -> Report:
    """A new process with these settings takes over; a second one then has nothing to do."""
    with Kernel(wish.table) as kernel:
        enforcer = Enforcer(kernel, "n", wish)
        enforcer.put(*items)
        report = enforcer.enforce()
        with Kernel(wish.table) as again:
            second = Enforcer(again, "n", wish)
            second.put(*items)
            assert second.enforce().steps == ()
    return report


def test_a_table_that_somebody_edited_moves_too() -> None:
    """A chain of ours holds a foreign rule: it cannot be copied; the old table goes when the new one stands, and nothing is stuck."""
    with flows() as world:
        world.put(FRIENDS_ONLY)
        world.tool("iptables-legacy", "-w", "-t", "mangle", "-I", "NETPOL-DENY", "-j", "MARK", "--set-mark", "1")
        with world.lab.entered():
            report = restart(Settings(table="filter"), [*BASE, NOBODY])
            with Kernel("mangle") as old:
                assert old.read().chains == {}
        tables = [(step.family, step.table) for step in report.steps if isinstance(step, ReplaceTable)]
        assert tables == [(6, "filter"), (6, "mangle"), (4, "filter"), (6, "filter"), (4, "mangle")]


@contextmanager
def flows() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(Settings(cut_bit=0x20000000), id="bit"),
        pytest.param(Settings(table="filter"), id="table"),
        pytest.param(Settings(table="filter", cut_bit=0x20000000), id="both"),
    ],
)
def test_what_was_cut_stays_cut(after: Settings) -> None:
    """Not a byte of a flow that the old process cut arrives, also before the new one has swept; one that was not cut goes on."""
    with flows() as world:
        flow, friendly = world.tcp(), world.tcp("friend", port=81)
        world.put(FRIENDS_ONLY)
        # A mark of a life before, on a flow that is allowed: it would be cut by the new gate.
        world.tool("conntrack", "-U", "-s", "10.244.0.30", "-p", "tcp", "-m", str(5 | (after.cut_bit & ~BIT)))
        assert world.sweep().marked == 1
        arrived = [side.arrived for side in flow]
        for side in (*flow, *friendly):
            side.push()
        wait_for(lambda: world.dropped() > 0)
        with world.lab.entered():
            restart(after, [*BASE, FRIENDS_ONLY])
            marks = sorted(entry.mark for entry in unpack(world.conntrack.flows(PODS)))
        assert marks == [5, after.cut_bit]
        world.assert_alive(friendly)
        for side in flow:
            before = side.pushed
            wait_for(lambda side=side, before=before: side.pushed > before + 5)  # type: ignore[misc]  # bound at once
        assert [side.arrived for side in flow] == arrived
        with world.lab.entered(), Kernel(after.table) as kernel, Cutter(after.cut_bit) as cutter:
            enforcer = Enforcer(kernel, "n", after)
            enforcer.put(*BASE, FRIENDS_ONLY)
            enforcer.enforce()
            assert cutter.sweep(enforcer.state.wanted(), PODS).marked == 0
            enforcer.drop(Policy, "server", "x")
            enforcer.enforce()
            assert cutter.sweep(enforcer.state.wanted(), PODS).unmarked == 1
        world.assert_alive(flow)


def test_cleaning_up_gives_back_what_was_cut() -> None:
    """The mark goes with the rules, others' bits stay, and the flow lives on; without a gate there is nothing to tell the bit by."""
    with flows() as world:
        flow = world.tcp()
        world.put(NOBODY)
        world.tool("conntrack", "-U", "-s", "10.244.0.20", "-m", "0x5")
        assert world.sweep().marked == 1
        world.assert_cut(flow, flow[0].say)
        clean(world)
        # Nothing tracks connections now, but an entry lives until its time is up.
        assert [entry.mark for entry in world.entries(TCP)] == [5]
        world.assert_alive(flow)
        clean(world)


@pytest.mark.parametrize("rule", ["0x5 -j RETURN", "0x40/0x40 -j RETURN", "0x30/0x30 -g NETPOL-DENY", "0/0x8 -g NETPOL-DENY"])
def test_others_marks_are_no_cut_bits(rule: str) -> None:
    """A rule about marks that somebody put into a chain of ours while no agent ran: neither a start nor cleaning up touches his marks."""
    with flows() as world:
        flow = world.tcp()
        world.put(NOBODY)
        world.tool("conntrack", "-U", "-s", "10.244.0.20", "-m", "0x7d")
        world.tool("iptables-legacy", "-w", "-t", "mangle", "-I", "NETPOL", "-m", "connmark", "--mark", *rule.split())
        with world.lab.entered():
            restart(Settings(), [*BASE, NOBODY])
        assert [entry.mark for entry in world.entries(TCP)] == [0x7D]
        world.tool("iptables-legacy", "-w", "-t", "mangle", "-I", "NETPOL", "-m", "connmark", "--mark", *rule.split())
        clean(world)
        assert [entry.mark for entry in world.entries(TCP)] == [0x7D]
        world.assert_alive(flow)


# -- a first install ---------------------------------------------------------------------------------------------------


def untracked(stack: ExitStack) -> World:
    """A world in which nothing tracks connections, and nothing of ours is."""
    world = World(stack)
    clean(world)
    return world


def install(world: World, grace: float, *items: Object) -> Enforcer:
    enforcer = Enforcer(world.kernel, "n", Settings(), grace)
    enforcer.put(*BASE, *items)
    return enforcer


def enforced(world: World, enforcer: Enforcer) -> Report:
    with world.lab.entered():
        return enforcer.enforce()


@pytest.mark.parametrize("server", [SERVER, SERVER6], ids=["v4", "v6"])
@pytest.mark.parametrize("first", [0, 1], ids=["client-speaks", "server-speaks"])
def test_running_flows_outlive_a_first_install(server: Any, first: int) -> None:
    """The client may call and not be called. Its connection is older than any tracking; in the grace both speak, and then the server."""
    calls_only = (guard("client"), guard("server", CLIENT, *(a for a in PODS if len(a) == 16)), guard("friend", egress=True))
    with ExitStack() as stack:
        world = untracked(stack)
        flow, denied = world.tcp(server=server), world.tcp("friend", server, port=81)
        assert world.entries(6) == []
        enforcer = install(world, 5.0, *calls_only)
        report = enforced(world, enforcer)
        assert report.grace == 5.0
        world.assert_alive((flow[first], flow[1 - first]))
        world.assert_alive(denied)
        report = enforced(world, enforcer)
        assert report.grace == 0
        assert enforced(world, enforcer).steps == ()
        world.assert_alive(flow[::-1])
        with world.lab.entered():
            world.cutter.sweep(enforcer.state.wanted(), enforcer.state.judged)
        world.assert_alive(flow[::-1])
        world.assert_cut(denied, denied[0].say)


def test_without_a_grace_they_are_lost() -> None:
    """The test above can fail: with everything at once, what the server says first never arrives."""
    with ExitStack() as stack:
        world = untracked(stack)
        flow = world.tcp()
        assert enforced(world, install(world, 0.0, guard("client"), guard("server", CLIENT))).grace == 0
        world.assert_cut(flow, flow[1].say)


@pytest.mark.parametrize("at", [1, 2], ids=["one gate", "both gates"])
def test_a_try_that_fails_does_not_take_the_grace_away(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """One gate is in, or both, when the kernel says no: the next try still has only gates, and its grace; then all is in force."""
    with ExitStack() as stack:
        world = untracked(stack)
        enforcer = install(world, 5.0, NOBODY)
        write, writes = TableSocket.write, count(1)

        def refusing(self: TableSocket, *arguments: Any, **options: Any) -> Any:
            number = next(writes)
            done = write(self, *arguments, **options)
            if number == at:
                raise KernelError(errno.ENOMEM, "iptables replace", "mangle", "no memory")
            return done

        monkeypatch.setattr(TableSocket, "write", refusing)
        with pytest.raises(KernelError, match="no memory"):
            enforced(world, enforcer)
        report = enforced(world, enforcer)
        assert report.grace == 5.0
        assert report.whole is not None
        assert {family: len(chains) for family, chains in report.whole.chains.items()} == {4: 3, 6: 3}
        with world.lab.entered():
            assert world.kernel.read() == report.whole
        assert enforced(world, enforcer).grace == 0
        with world.lab.entered():
            assert diff(enforcer.state.wanted(), world.kernel.read()) == ()


def test_when_there_is_a_grace() -> None:
    """For each family by itself: nothing of ours in any table, not one entry, and something to be denied."""
    with ExitStack() as stack:
        world = untracked(stack)
        free = install(world, 5.0)
        assert enforced(world, free).grace == 0
        clean(world)
        # One family is tracked by somebody: it is enforced at once, the other learns.
        world.tool("iptables-legacy", "-w", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
        world.assert_alive(world.tcp())
        report = enforced(world, install(world, 5.0, NOBODY))
        assert report.grace == 5.0
        assert report.whole is not None
        assert (len(report.whole.chains[4]) > 3, len(report.whole.chains[6])) == (True, 3)
        assert {found.family for found in report.whole.sets.values()} <= {4}
        # A process that comes after one that ended in the grace does not begin anew.
        assert enforced(world, install(world, 5.0, NOBODY)).grace == 0
        clean(world)
        world.tool("ip6tables-legacy", "-w", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
        world.assert_alive(world.tcp(server=SERVER6))
        assert enforced(world, install(world, 5.0, NOBODY)).grace == 0


def test_link_local_addresses_alone_are_not_waited_for() -> None:
    """Pods of IPv4 only: their flows are known, and what IPv6 they may speak is no reason to wait; at a first install both learn."""
    four = [pod(host.name, host.addresses[0]) for host in HOSTS]
    with ExitStack() as stack:
        world = untracked(stack)
        assert enforced(world, install(world, 5.0, NOBODY, *four)).grace == 5.0
        world.assert_alive(world.tcp())
        clean(world)
        world.tool("iptables-legacy", "-w", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
        report = enforced(world, install(world, 5.0, NOBODY, *four))
        assert report.grace == 0
        assert report.whole is not None
        assert report.whole.chains[6] == skeleton(6, Settings(), isolated=True)
        with world.lab.entered():
            assert world.kernel.read() == report.whole


def clean(world: World) -> None:
    """What `netpol cleanup` does."""
    with world.lab.entered():
        remove(world.kernel)
