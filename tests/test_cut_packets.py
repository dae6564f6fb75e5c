"""Running flows that a change denies stop, whoever speaks next, and live again when it is taken back: real sockets, real packets.

A server, two clients and the node between them, whose kernel follows a cluster. A flow counts as stopped when packets of it are seen
to be dropped while nothing arrives on either side; nothing here depends on how long something takes. Idle flows rest for two
seconds here; what a minute would add is only a minute.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from netpol.agent import cutter
from netpol.agent.cutter import Report
from netpol.errors import KernelError
from netpol.kernel import listing
from netpol.kernel.conntrack import ConntrackSocket
from netpol.kernel.judge import Index
from netpol.lab import NODE, sctp
from netpol.model import (
    SCTP,
    TCP,
    Address,
    NumberedPort,
    Pod,
    Policy,
    PolicyRule,
    Requirement,
    Selector,
)
from netpol.rules.flows import PICKED_UP
from netpol.rules.ruleset import Ruleset
from tests.flows import (
    BIT,
    CLIENT,
    FRIEND,
    FRIEND6,
    FRIENDS_ONLY,
    NOBODY,
    PODS,
    SERVER,
    SERVER6,
    SERVICE,
    Side,
    World,
    guard,
    wait_for,
)


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def speak(*sides: Side) -> Callable[[], None]:
    def speaking() -> None:
        for side in sides:
            side.say()

    return speaking


@contextmanager
def pushing(flow: tuple[Side, Side], who: tuple[int, ...]) -> Iterator[None]:
    for number in who:
        flow[number].push()
    wait_for(lambda: all(flow[1 - number].arrived > 0 for number in who))
    yield


PUSHERS = {"client": (0,), "server": (1,), "both": (0, 1)}


@pytest.mark.parametrize("who", PUSHERS.values(), ids=PUSHERS)
@pytest.mark.parametrize(("server", "touched"), [(SERVER, ()), (SERVER, (SERVER,)), (SERVER6, (SERVER, SERVER6))], ids=["all", "v4", "v6"])
def test_a_connection_that_never_rests(world: World, who: tuple[int, ...], server: Address, touched: tuple[Address, ...]) -> None:
    """It stops although somebody pushes all the time; the friend's goes on; it resumes, the same connection, when allowed again."""
    flow, friendly = world.tcp(server=server), world.tcp("friend", server)
    with pushing(flow, who):
        world.put(FRIENDS_ONLY)
        # The gate lets established packets pass: the rules alone do not stop it.
        world.assert_alive(flow)
        report = world.sweep(*touched)
        assert (report.marked, report.unmarked) == (1, 0)
        world.assert_cut(flow, lambda: None)
        world.assert_alive(friendly)
        assert world.sweep(*touched).marked == 0
        world.drop(Policy, "server")
        assert world.sweep(*touched).unmarked == 1
        world.assert_alive(flow)
        world.assert_alive(friendly)


def test_idle_connections_that_wake_up(world: World) -> None:
    """Two connections rest while the change comes; then one client speaks, and the other's server: nothing arrives."""
    first, second = world.tcp(), world.tcp()
    world.put(FRIENDS_ONLY)
    assert world.sweep(SERVER).marked == 2
    time.sleep(2)
    world.assert_cut(first, speak(first[0]))
    world.assert_cut(second, speak(second[1]))
    world.put(guard("server", CLIENT))
    assert world.sweep(SERVER).unmarked == 2
    world.assert_alive(first)
    world.assert_alive(second)


def test_deleting_the_entry_is_not_enough(world: World) -> None:
    """What other tools do: with the entry deleted, the server's own packets open the flow again, the other way round. Ours is cut."""
    flow = world.tcp()
    with pushing(flow, (1,)):
        world.put(FRIENDS_ONLY)
        assert "ESTABLISHED" in world.tool("conntrack", "-D", "-s", "10.244.0.20")
        wait_for(lambda: [entry.original.source for entry in world.entries(TCP)] == [SERVER])
        assert world.entries(TCP)[0].flags & PICKED_UP
        world.assert_alive(flow)
        assert world.sweep().marked == 1
        world.assert_cut(flow, lambda: None)


def test_a_new_connection_on_the_same_5_tuple(world: World) -> None:
    """After a cut, and after it is allowed again, the client's port and the server's make a new connection."""
    client, server = world.tcp(own=40000)
    world.put(FRIENDS_ONLY)
    world.sweep(SERVER)
    world.assert_cut((client, server), speak(client, server))
    linger = struct.pack("ii", 1, 0)  # close with a reset and no waiting
    for side in (client, server):
        side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        side.socket.close()
    world.drop(Policy, "server")
    world.sweep(SERVER)
    world.assert_alive(world.tcp(own=40000))


@pytest.mark.parametrize("server", [SERVER, SERVER6], ids=["v4", "v6"])
def test_udp(world: World, server: Address) -> None:
    """A UDP flow that both ends keep alive is cut, and one that was never answered, which resumes at once; the friend's lives on."""
    flow, silent, friendly = world.udp(server=server), world.udp(server=server, port=54), world.udp("friend", server, port=55)
    world.assert_alive(flow)
    world.put(FRIENDS_ONLY)
    assert world.sweep().marked == 2
    world.assert_cut(flow, speak(*flow))
    world.assert_cut(silent, speak(silent[0]))
    world.assert_alive(friendly)
    world.drop(Policy, "server")
    before = silent[1].arrived
    silent[0].say()
    wait_for(lambda: silent[1].arrived > before)
    assert world.sweep().unmarked == 2
    world.assert_alive(flow)


def test_sctp(world: World) -> None:
    """An association is cut in both directions by its entry, here one of an INIT and its answer over raw sockets."""
    ends = [world._socket(name, 4, socket.SOCK_RAW, address, 0, SCTP) for name, address in (("client", CLIENT), ("server", SERVER))]
    client, server = Side(ends[0], ("10.244.0.10", 0)), Side(ends[1], ("10.244.0.20", 0))
    init = sctp.request(40000, 80, 7)
    answer = sctp.respond(init, frozenset((80,)), b"server")
    assert answer is not None

    def talk() -> None:
        client.say(init)
        server.say(answer)

    talk()
    wait_for(lambda: client.arrived > 0 and server.arrived > 0)
    world.put(FRIENDS_ONLY)
    assert world.sweep(SERVER).marked == 1
    world.assert_cut((client, server), talk)
    world.drop(Policy, "server")
    assert world.sweep(SERVER).unmarked == 1
    before = client.arrived, server.arrived
    talk()
    wait_for(lambda: client.arrived > before[0] and server.arrived > before[1])


def test_services_are_judged_by_their_backend(world: World) -> None:
    """Two ports of a Service's address lead to two backends: the flow to the one that is denied now is cut, by the pod's own port."""
    for port, backend in ((8080, "10.244.0.10:80"), (8081, "10.244.0.30:80")):
        dnat = ("-p", "tcp", "-d", SERVICE, "--dport", str(port), "-j", "DNAT", "--to-destination", backend)
        world.tool("iptables-legacy", "-w", "-t", "nat", "-A", "PREROUTING", *dnat)
    flow, other = world.tcp(via=(SERVICE, 8080)), world.tcp(server=FRIEND, via=(SERVICE, 8081))
    world.put(guard("server", CLIENT, ports=(NumberedPort(TCP, 80, 80),)))
    assert world.sweep(SERVER).marked == 0
    world.put(guard("server", CLIENT, ports=(NumberedPort(TCP, 8080, 8080),)))
    assert world.sweep(SERVER).marked == 1
    world.assert_cut(flow, speak(*flow))
    world.assert_alive(other)
    world.put(guard("client", SERVER, egress=True), guard("server", CLIENT))
    assert world.sweep().marked == 1
    world.assert_alive(flow)
    world.assert_cut(other, speak(*other))


def test_others_bits_of_the_mark(world: World) -> None:
    """What another program wrote into the mark is there while the flow is cut and after it lives again."""
    flow = world.tcp()
    world.tool("conntrack", "-U", "-s", "10.244.0.20", "-m", "0x4005")
    world.put(NOBODY)
    world.sweep()
    assert [entry.mark for entry in world.entries(TCP)] == [BIT | 0x4005]
    world.assert_cut(flow, speak(*flow))
    world.drop(Policy, "server")
    world.sweep()
    assert [entry.mark for entry in world.entries(TCP)] == [0x4005]
    world.assert_alive(flow)


def test_the_node_is_never_cut_from_its_pods(world: World) -> None:
    """The node's connection to an isolated pod lives on and its entry is not touched; neither is one of nobody's here."""
    probe = world.tcp(NODE)
    world.put(NOBODY)
    report = world.sweep()
    assert (report.judged, report.marked) == (1, 0)
    world.assert_alive(probe)


def test_an_address_that_changes_its_holder(world: World) -> None:
    """A flow of the old holder is cut when the new one may not have it, lives again when the next may, and is nobody's in the end."""
    flow, egress = world.tcp(), world.tcp("server", FRIEND)
    world.put(NOBODY)
    free = Pod("x", "other", (("app", "other"),), "n", (SERVER, SERVER6))
    world.sweep(SERVER)
    world.assert_cut(flow, speak(*flow))
    world.assert_alive(egress)
    world.drop(Pod, "server")
    world.put(free)
    assert world.sweep(SERVER).unmarked == 1
    world.assert_alive(flow)
    world.put(Policy("x", "other", Selector((Requirement("app", "In", ("other",)),)), (PolicyRule(),), ()))
    assert world.sweep(SERVER).marked == 1
    world.assert_alive(flow)
    world.assert_cut(egress, speak(*egress))
    world.drop(Pod, "other")
    with world.lab.entered():
        # The friend's pod is still ours; the other end of the flow is nobody's.
        report = world.cutter.sweep(world.ruleset, PODS - {SERVER}, (SERVER,))
    assert report.unmarked == 1
    world.assert_alive(egress)


def test_marks_that_a_former_life_left(world: World) -> None:
    """One sweep at start un-marks what is allowed by now, the flows of nobody included; `forget` un-marks what is denied as well."""
    flow, denied = world.tcp(), world.tcp(port=81)
    world.put(guard("server", CLIENT, ports=(NumberedPort(TCP, 80, 80),)))
    world.tool(
        "conntrack", "-I", "-s", "192.0.2.1", "-d", "192.0.2.2", "-p", "udp", "--sport", "1", "--dport", "2", "-t", "99", "-m", str(BIT)
    )
    world.tool("conntrack", "-U", "-s", "10.244.0.20", "-p", "tcp", "-m", str(BIT))
    report = world.sweep()
    assert (report.looked_at, report.judged, report.marked, report.unmarked) == (3, 3, 0, 2)
    world.assert_alive(flow)
    world.assert_cut(denied, speak(*denied))
    with world.lab.entered():
        rules = world.ruleset
        seen = [world.cutter.sweep(rules, pods) for pods in (PODS, PODS, frozenset[Address](), PODS)]
        assert [(report.marked, report.unmarked) for report in seen] == [(0, 0), (0, 0), (0, 1), (1, 0)]
        assert world.cutter.forget().unmarked == 1
        assert world.cutter.forget() == Report(0, 0, 0, 0, world.cutter.forget().calls)
    world.assert_alive(denied)


def test_what_a_sweep_costs_in_system_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some flows, of which none changed: what is asked and read, and not one update."""
    flows = [world.tcp() for _ in range(3)]
    world.put(guard("server", CLIENT))
    # How many flows there are; they are few: four files are read, and each flow is asked for in one send.
    monkeypatch.setattr(listing, "RELEASE", "6.18")
    assert world.sweep() == world.sweep(SERVER) == Report(3, 3, 0, 0, 2 + 4 * 4 + 4)
    assert world.sweep(SERVER6) == Report(0, 0, 0, 0, 2 + 4 * 4)
    # Where the kernel's list is not to be trusted, one dump of all of them, and not two that the kernel filters.
    monkeypatch.setattr(listing, "RELEASE", "6.17")
    assert world.sweep() == world.sweep(SERVER) == Report(3, 3, 0, 0, 5)
    with monkeypatch.context() as patch:
        patch.setattr(cutter, "WALK", 0)
        patch.setattr(cutter, "FEW", 0)
        assert world.sweep(SERVER) == Report(3, 3, 0, 0, 7)
    assert world.sweep(SERVER, SERVER6, FRIEND, FRIEND6) == Report(3, 3, 0, 0, 5)
    world.put(NOBODY)
    # One send for all, one look for errors, and one that finds nothing more.
    assert world.sweep() == Report(3, 3, 3, 0, 8)
    world.assert_cut(flows[2], speak(*flows[2]))


@pytest.mark.parametrize(
    ("walk", "release"),
    [
        pytest.param(cutter.WALK, "6.17", id="all read"),
        pytest.param(cutter.WALK, "6.18", id="found in the list"),
        pytest.param(0, "6.18", id="filtered by the kernel"),
    ],
)
def test_whether_any_flow_is_cut(world: World, monkeypatch: pytest.MonkeyPatch, walk: int, release: str) -> None:
    """Known from a look at all that have the bit, and kept as long as none is marked; a look at some says nothing of the others."""
    monkeypatch.setattr(cutter, "WALK", walk)
    monkeypatch.setattr(cutter, "FEW", min(walk, cutter.FEW))
    monkeypatch.setattr(listing, "RELEASE", release)
    world.tcp()
    world.tcp("friend", port=81)
    clear = [world.cutter.is_clear]

    def swept(*touched: Address) -> tuple[int, int]:
        report = world.sweep(*touched)
        clear.append(world.cutter.is_clear)
        return report.marked, report.unmarked

    assert [swept(CLIENT), swept(), swept(CLIENT)] == [(0, 0)] * 3
    world.put(NOBODY)
    assert swept(SERVER) == (2, 0)
    world.put(FRIENDS_ONLY)
    assert swept(FRIEND) == (0, 1)
    world.drop(Policy, "server")
    assert swept(CLIENT) == (0, 1)
    # Where the kernel filters, only what was given back is a reason to ask for the others.
    assert clear == [False, walk > 0, True, True, False, False, True]


def test_a_flow_between_two_touched_addresses_is_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filtered dumps find it by either end: it is cut once, and given back once."""
    monkeypatch.setattr(cutter, "WALK", 0)
    monkeypatch.setattr(cutter, "FEW", 0)
    flow = world.tcp()
    world.tcp("friend")
    world.put(NOBODY)
    assert world.sweep(SERVER, CLIENT).marked == 2
    world.assert_cut(flow, speak(*flow))
    world.drop(Policy, "server")
    assert world.sweep(SERVER, CLIENT).unmarked == 2
    world.assert_alive(flow)


def test_a_sweep_that_fails_leaves_nothing_clear(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have marked some; the next one finds them marked, marks nothing, and is not clear either. Nor is it after another's mark."""
    flow = world.tcp()
    world.sweep()
    assert world.cutter.is_clear
    world.put(NOBODY)
    mark = ConntrackSocket.mark

    def fails(socket: ConntrackSocket, flows: bytes, bit: int) -> int:
        mark(socket, flows, bit)
        raise KernelError(errno.ENOBUFS, "conntrack mark", "1 entries", "sweep again")

    with monkeypatch.context() as patch:
        patch.setattr(ConntrackSocket, "mark", fails)
        with pytest.raises(KernelError):
            world.sweep(SERVER)
    clear = [world.cutter.is_clear]
    assert world.sweep(SERVER).marked == 0
    clear.append(world.cutter.is_clear)
    world.drop(Policy, "server")
    assert world.sweep(SERVER).unmarked == 1
    world.tool("conntrack", "-U", "-s", "10.244.0.20", "-p", "tcp", "-m", str(BIT))
    world.put(NOBODY)
    assert world.sweep(SERVER).marked == 0
    assert [*clear, world.cutter.is_clear] == [False] * 3
    world.drop(Policy, "server")
    world.sweep(SERVER)
    world.assert_alive(flow)


def test_rules_are_taken_apart_for_flows_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a state of the rules, and not at all where those who were touched have no flow; then the flows are judged by the rules of
    now, whatever was left out; where they are few, only as far as it is about their ends."""
    built: list[frozenset[Address] | None] = []
    take_apart = Index._take_apart

    def counted(index: Index, ruleset: Ruleset, about: Any) -> dict[str, Any]:
        built.append(about.ends)
        return take_apart(index, ruleset, about)

    monkeypatch.setattr(Index, "_take_apart", counted)
    monkeypatch.setattr(listing, "RELEASE", "6.18")
    flow = world.tcp()
    assert (world.sweep(FRIEND).judged, len(built)) == (0, 0)
    world.put(NOBODY)
    assert (world.sweep(FRIEND, FRIEND6).judged, len(built)) == (0, 0)
    assert (world.sweep(SERVER).marked, len(built)) == (1, 1)
    with world.lab.entered():
        rules = world.ruleset
        assert [world.cutter.sweep(rules, PODS, {SERVER}).judged for _ in range(2)] == [1, 1]
    assert len(built) == 1
    world.put(guard("server", CLIENT))
    assert (world.sweep(CLIENT).unmarked, len(built)) == (1, 2)
    assert set(built) == {frozenset((CLIENT, SERVER))}
    world.assert_alive(flow)
