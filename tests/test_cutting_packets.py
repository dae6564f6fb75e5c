"""Flows are cut by the thread that is told of enforcements, as an agent does it: real sockets, real packets, and nobody sweeps by hand.

What is waited for here is the mark of an entry, or its end. Idle flows rest for two seconds, and a whole minute with NETPOL_SOAK=1.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from netpol.agent import cutter
from netpol.agent.cutter import Cutter, Report
from netpol.lab import NODE
from netpol.model import EVERYTHING, TCP, Address, NumberedPort, Pod, Policy, PolicyRule, Query, Requirement, Selector, parse_address
from netpol.rules.flows import Entry
from netpol.rules.ruleset import Ruleset
from tests.flows import BIT, CLIENT, FRIENDS_ONLY, HOSTS, NOBODY, SERVER, SERVER6, Side, World, guard, wait_for

REST = 60.0 if os.environ.get("NETPOL_SOAK") == "1" else 2.0


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def marked(world: World, *ports: int) -> None:
    """Until exactly the connections to these ports of the server have the bit."""

    def port(entry: Entry) -> int:
        return entry.reply.source_port

    wait_for(lambda: sorted(port(entry) for entry in world.entries(TCP) if entry.mark & BIT) == sorted(ports))


def push(flow: tuple[Side, Side], who: tuple[int, ...]) -> None:
    for number in who:
        flow[number].push()
    wait_for(lambda: all(flow[1 - number].arrived > 0 for number in who))


@pytest.mark.parametrize(
    ("who", "server"),
    [
        pytest.param((0,), SERVER, id="client"),
        pytest.param((1,), SERVER, id="server"),
        pytest.param((0, 1), SERVER, id="both"),
        pytest.param((0, 1), SERVER6, id="both-v6"),
    ],
)
def test_a_connection_that_never_rests(world: World, who: tuple[int, ...], server: Address) -> None:
    """It stops by itself although somebody pushes all the time; the friend's and the node's go on; it resumes when it is allowed again."""
    world.cut()
    flow, friendly, probe = world.tcp(server=server, port=81), world.tcp("friend", server), world.tcp(NODE, server)
    push(flow, who)
    world.put(FRIENDS_ONLY)
    marked(world, 81)
    world.assert_cut(flow, lambda: None)
    world.assert_alive(friendly)
    world.assert_alive(probe)
    world.drop(Policy, "server")
    marked(world)
    world.assert_alive(flow)


def test_idle_connections_that_wake_up(world: World) -> None:
    """Two connections rest while the change comes and long after; then one client speaks, and the other's server: nothing arrives."""
    world.cut()
    first, second, friendly = world.tcp(), world.tcp(port=81), world.tcp("friend", port=82)
    world.put(FRIENDS_ONLY)
    marked(world, 80, 81)
    time.sleep(REST)
    world.assert_cut(first, first[0].say)
    world.assert_cut(second, second[1].say)
    world.assert_alive(friendly)
    world.put(guard("server", CLIENT))
    marked(world, 82)
    world.assert_alive(first)
    world.assert_alive(second)


def test_a_new_connection_on_the_same_5_tuple(world: World) -> None:
    """A client that calls again from the same port, as soon as it is allowed again, is not held off by the mark of what was cut."""
    world.cut()
    flow = world.tcp(own=40000)
    world.put(FRIENDS_ONLY)
    marked(world, 80)
    world.assert_cut(flow, flow[0].say)
    for side in flow:
        side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset and no waiting
        side.socket.close()
    world.drop(Policy, "server")
    marked(world)
    world.assert_alive(world.tcp(own=40000))


def test_others_bits_of_the_mark(world: World) -> None:
    """What another program wrote into the mark is there while the flow is cut and after it lives again."""
    world.cut()
    flow = world.tcp()
    world.tool("conntrack", "-U", "-s", "10.244.0.20", "-m", "0x4005")
    world.put(NOBODY)
    marked(world, 80)
    assert [entry.mark for entry in world.entries(TCP)] == [BIT | 0x4005]
    world.assert_cut(flow, flow[0].say)
    world.drop(Policy, "server")
    marked(world)
    assert [entry.mark for entry in world.entries(TCP)] == [0x4005]
    world.assert_alive(flow)


def test_a_peer_that_leaves_is_looked_at_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label that let it in goes: its flow is cut, and by a look that the kernel filters, in which the other peer's does not occur."""
    monkeypatch.setattr(cutter, "WALK", 0)  # as if there were many flows
    reports: list[Report] = []
    peer = Query("x", EVERYTHING, Selector((Requirement("in", "Exists"),)))
    client, friend = (Pod("x", host.name, (("app", host.name), ("in", "")), "n", host.addresses) for host in HOSTS[1:])
    world.put(client, friend, Policy("x", "server", Selector((Requirement("app", "In", ("server",)),)), (PolicyRule((peer,)),), None))
    flow, friendly = world.tcp(), world.tcp("friend", port=81)
    world.cut(swept=lambda report, seconds: reports.append(report))
    wait_for(lambda: len(reports) == 1)
    world.put(replace(client, labels=(("app", "client"),)))
    marked(world, 80)
    assert [report.looked_at for report in reports] == [2, 1]
    world.assert_cut(flow, flow[1].say)
    world.assert_alive(friendly)


def test_a_peer_that_comes_is_looked_at_only_where_a_flow_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is let through, and nothing has the bit: nobody looks. Once a peer that left was cut, its coming back is looked at, and then
    nothing has the bit again."""
    looks: list[Collection[Address] | None] = []
    sweep = Cutter.sweep

    def spied(cutter: Cutter, ruleset: Ruleset, pods: Collection[Address], touched: Collection[Address] | None = None) -> Report:
        looks.append(touched)
        return sweep(cutter, ruleset, pods, touched)

    monkeypatch.setattr(Cutter, "sweep", spied)
    monkeypatch.setattr(Cutter, "settle", lambda cutter: True)  # one look each; none of these flows is under way
    peer = Query("x", EVERYTHING, Selector((Requirement("in", "Exists"),)))
    client, friend = (Pod("x", host.name, (("app", host.name), ("in", "")), "n", host.addresses) for host in HOSTS[1:])
    away = replace(client, labels=(("app", "client"),)), replace(friend, labels=(("app", "friend"),))
    world.put(away[0], friend, Policy("x", "server", Selector((Requirement("app", "In", ("server",)),)), (PolicyRule((peer,)),), None))
    friendly = world.tcp("friend", port=81)
    swept: list[Report] = []
    world.cut(swept=lambda report, seconds: swept.append(report))
    wait_for(lambda: len(swept) == 1)
    world.put(client)
    flow = world.tcp()
    world.put(away[1])
    marked(world, 81)
    world.put(friend)
    marked(world)
    world.put(away[0])
    marked(world, 80)
    world.put(client)
    marked(world)
    world.put(Pod("x", "late", friend.labels, "other", (parse_address("10.9.9.9"),)))
    world.put(away[1])
    marked(world, 81)
    ours, theirs = (set(host.addresses) for host in HOSTS[1:])
    assert [set(touched or ()) for touched in looks] == [set(), theirs, theirs, ours, ours, theirs]
    world.assert_alive(flow)
    world.assert_cut(friendly, friendly[1].say)


def test_a_switch_turns_it_off(world: World) -> None:
    """What was cut before lives again, whatever the rules say, and nothing is cut any more; switched on again it is cut at once."""
    world.cut()
    flow, other = world.tcp(), world.tcp(port=81)
    world.put(guard("server", CLIENT, ports=(NumberedPort(TCP, 81, 81),)))
    marked(world, 80)
    world.cut(False)
    marked(world)
    world.put(NOBODY)
    world.assert_alive(flow)
    world.assert_alive(other)
    world.cut()
    marked(world, 80, 81)
    world.assert_cut(other, other[1].say)
