"""Pods on one bridge, as many network plug-ins have them: their packets to each other pass FORWARD by br_netfilter, and IPv6 gives each of
them a link-local address that no API server knows. Real packets, real neighbour discovery, and what is dropped is counted by the kernel.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import pytest

from netpol.agent.cutting import Cutting
from netpol.agent.enforcer import Enforcer
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.lab.cables import FIRST_INDEX, HOST_DEVICE, LOOPBACK, Wiring, netlink
from netpol.model import Address, Namespace, Node, Object, Policy, family_of, format_address, network, parse_address, parse_network
from netpol.rules.compile import Settings
from tests.flows import guard, pod, wait_for
from tests.referees import require_bridges

NAMES = ("server", "client", "friend")
FOUR = {name: parse_address(f"10.244.0.{number}") for number, name in enumerate(NAMES, 10)}
SIX = {name: parse_address(f"fd00:244::{number}") for number, name in enumerate(NAMES, 10)}
BRIDGE, PORT = 500, 80
AT_ONCE = {"net/ipv6/conf/default/accept_dad": "0"}
OF_THE_NODE = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
}
LINK_SCOPE, GLOBAL_SCOPE = "20", "00"
ALL_NODES, STRANGE = parse_address("ff02::1"), parse_network("2001:db8:bad::/64")
TENTATIVE = 0x40
Kind = str  # of a datagram's addresses, the source's first: "v4", "v6", "local", "v6 to local", "local to v6"
WAYS_AROUND: tuple[Kind, ...] = ("local", "v6 to local", "local to v6")


class Bridging(Wiring):
    """What else a bridge takes."""

    def bridge(self) -> None:
        self._what.append("make a bridge")
        self._batch.link("add", index=BRIDGE, ifname="cni0", kind="bridge", state="up")

    def port(self, number: int, namespace: int) -> None:
        """A cable as `cable` lays it, with hardware addresses of the kernel's choice, whose end here is a port of the bridge."""
        self._what += [f"make cable {number}", f"put cable {number} into the bridge"]
        index, peer = FIRST_INDEX + number, {"ifname": HOST_DEVICE, "net_ns_fd": namespace}
        self._batch.link("add", index=index, ifname=f"veth{number}", kind="veth", state="up", peer=peer)
        self._batch.link("set", index=index, master=BRIDGE)

    def subnets(self, index: int, families: tuple[int, ...]) -> None:
        for net in [net for family, net in ((4, "10.244.0.0/24"), (6, "fd00:244::/64")) if family in families]:
            self._what.append(f"route {net}")
            self._batch.route("add", dst=net, oif=index)


class World:
    """A node with three pods on its bridge. `families` are those of the addresses that the plug-in gave to them."""

    def __init__(self, stack: ExitStack, families: tuple[int, ...] = (4, 6), settings: Settings | None = None) -> None:
        self.stack = stack
        self._tokens = count()
        self.addresses = {name: {f"v{f}": each[name] for f, each in ((4, FOUR), (6, SIX)) if f in families} for name in NAMES}
        self.node = self._space()
        self.pods = {name: self._space() for name in NAMES}
        self._build(families)
        for name in NAMES:
            self.addresses[name]["local"] = self._link_local(name)
        self.servers = {name: self._server(name) for name in NAMES}
        with namespaces.entered(self.node):
            self.kernel = stack.enter_context(Kernel((settings or Settings()).table))
            self.cutting = stack.enter_context(Cutting((settings or Settings()).cut_bit))
        self.enforcer = Enforcer(self.kernel, "n", settings)
        given = [(name, [address for kind, address in self.addresses[name].items() if kind != "local"]) for name in NAMES]
        ranges = tuple(network(FOUR["server"], 24) if family == 4 else network(SIX["server"], 64) for family in families)
        self.put(Namespace("x"), Node("n", (), ranges), *(pod(name, *addresses) for name, addresses in given))

    def put(self, *objects: Object) -> None:
        self.enforcer.put(*objects)
        self._enforce()

    def drop(self, kind: type[Object], name: str) -> None:
        self.enforcer.drop(kind, name, "x")
        self._enforce()

    def _enforce(self) -> None:
        with namespaces.entered(self.node):
            self.cutting.changed(self.enforcer.enforce())

    def dropped(self) -> int:
        with namespaces.entered(self.node):
            return self.kernel.dropped()

    # -- packets --

    def bound(self, name: str, address: Address = b"", port: int = 0) -> socket.socket:
        """One of a pod's, bound to that address of its."""
        with namespaces.entered(self.pods[name]):
            made = socket.socket(socket.AF_INET if len(address) == 4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.stack.callback(made.close)
            made.bind(self._place(name, address, port))
        return made

    def _place(self, name: str, address: Address, port: int) -> tuple[object, ...]:
        """An address as sockets of that pod have it."""
        if not address or family_of(address) == 4:
            return (format_address(address) if address else "", port)
        with namespaces.entered(self.pods[name]):
            return (format_address(address), port, 0, socket.if_nametoindex(HOST_DEVICE) if address[0] >= 0xFE else 0)

    def sender(self, source: str, destination: str, kind: Kind) -> Sender:
        one, _, other = kind.partition(" to ")
        target = self.addresses[destination][other or one]
        return Sender(self, self.bound(source, self.addresses[source][one]), self._place(source, target, PORT), destination)

    def passes(self, source: str, destination: str, kind: Kind) -> bool:
        """Whether the first datagram of a new flow arrives; one that does not is dropped by our rules, and by nothing else."""
        return self.sender(source, destination, kind).passes()

    def arrived(self, name: str) -> dict[bytes, tuple[object, ...]]:
        """What has arrived at a pod's server since it was asked last, and from where."""
        found: dict[bytes, tuple[object, ...]] = {}
        while True:
            try:
                token, peer = self.servers[name].recvfrom(100)
            except BlockingIOError:
                return found
            found[token] = peer

    def token(self) -> bytes:
        return str(next(self._tokens)).encode()

    # -- building --

    def _space(self) -> int:
        space = namespaces.create()
        self.stack.callback(os.close, space)
        return space

    def _build(self, families: tuple[int, ...]) -> None:
        for space in (self.node, *self.pods.values()):
            with namespaces.entered(space):
                for name, value in (AT_ONCE | (OF_THE_NODE if space == self.node else {})).items():
                    Path("/proc/sys", name).write_text(value)
        with closing(Bridging()) as wiring:
            wiring.up(LOOPBACK, arp=True)
            wiring.bridge()
            for number, name in enumerate(NAMES):
                wiring.port(number, self.pods[name])
            self._send(wiring, self.node)
            for name in NAMES:
                with namespaces.entered(self.pods[name]):
                    device = socket.if_nametoindex(HOST_DEVICE)
                wiring.up(LOOPBACK, arp=True)
                wiring.up(device, arp=True)
                for address in self.addresses[name].values():
                    wiring.address(device, address)
                wiring.subnets(device, families)
                self._send(wiring, self.pods[name])

    def _send(self, wiring: Wiring, space: int) -> None:
        with namespaces.entered(space), netlink() as through:
            wiring.send(through)

    def _link_local(self, name: str) -> Address:
        """The one that the kernel gave to the pod's device, once it may be used."""
        wait_for(lambda: bool(self.ipv6(name, LINK_SCOPE)))
        return self.ipv6(name, LINK_SCOPE)[0]

    def ipv6(self, name: str, scope: str) -> list[Address]:
        """A pod's addresses of that scope that may be used."""
        with namespaces.entered(self.pods[name]):
            lines = [line.split() for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines()]
        return [bytes.fromhex(line[0]) for line in lines if line[3] == scope and not int(line[4], 16) & TENTATIVE]

    def advertise(self, name: str) -> None:
        """That pod plays the router: whoever hears it may give itself an address of a strange network. It needs CAP_NET_RAW."""
        prefix = struct.pack("!BBBBIII", 3, 4, STRANGE.length, 0xC0, 86400, 14400, 0) + STRANGE.address
        with namespaces.entered(self.pods[name]), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as made:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            made.bind(self._place(name, self.addresses[name]["local"], 0))
            made.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 0, 0, 0) + prefix, self._place(name, ALL_NODES, 0))

    def _server(self, name: str) -> socket.socket:
        with namespaces.entered(self.pods[name]):
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.stack.callback(made.close)
            made.bind(("::", PORT))
        return made


class Sender:
    """One flow: datagrams from one port of one pod to the server of another."""

    def __init__(self, world: World, made: socket.socket, target: tuple[object, ...], destination: str) -> None:
        self._world, self._socket, self._target, self._destination = world, made, target, destination
        self._peer: tuple[object, ...] = ()  # as the server knows it

    def passes(self) -> bool:
        """Whether another datagram of it arrives, and not: is dropped."""
        world, token, before = self._world, self._world.token(), self._world.dropped()
        self._socket.sendto(token, self._target)
        arrived: dict[bytes, tuple[object, ...]] = {}

        def ended() -> bool:
            arrived.update(world.arrived(self._destination))
            return token in arrived or world.dropped() > before

        wait_for(ended)
        self._peer = arrived.get(token, self._peer)
        return token in arrived

    def is_answered(self) -> bool:
        """Whether what the server says arrives: from then on it is a known connection, whose packets pass by the rules."""
        assert self.passes()
        self._world.servers[self._destination].sendto(b"answer", self._peer)
        wait_for(self._heard)
        return True

    def _heard(self) -> bool:
        try:
            return self._socket.recv(100) == b"answer"
        except BlockingIOError:
            return False


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    require_bridges()
    with ExitStack() as found:
        yield found


NOBODY = guard("server")
SILENT = guard("server", egress=True)
SETTINGS_OF = [Settings(), Settings(table="filter")]


@pytest.mark.parametrize("settings", SETTINGS_OF, ids=["mangle", "filter"])
@pytest.mark.parametrize("policy", [NOBODY, SILENT], ids=["ingress", "egress"])
def test_no_address_is_a_way_around(stack: ExitStack, policy: Policy, settings: Settings) -> None:
    """Neither of a pod's own kinds, nor a mixture of them; others reach each other by what the API server knows, and meet for the first
    time by neighbour discovery that goes through the same rules. Without the policy everything is open again."""
    world = World(stack, settings=settings)
    source, destination = ("client", "server") if policy is NOBODY else ("server", "client")
    kinds: tuple[Kind, ...] = ("v4", "v6", *WAYS_AROUND)
    assert [kind for kind in kinds if not world.passes(source, destination, kind)] == []
    world.put(policy)
    assert [kind for kind in kinds if world.passes(source, destination, kind)] == []
    assert [kind for kind in ("v4", "v6") if not world.passes("client", "friend", kind)] == []
    world.drop(Policy, policy.name)
    assert [kind for kind in kinds if not world.passes(source, destination, kind)] == []


def test_pods_of_ipv4_have_link_local_addresses(stack: ExitStack) -> None:
    """Which no policy can name, and no set has."""
    world = World(stack, families=(4,))
    assert world.passes("client", "server", "local")
    world.put(NOBODY)
    assert [kind for kind in ("v4", "local") if world.passes("client", "server", kind)] == []
    assert world.passes("client", "friend", "v4")


@pytest.mark.parametrize("families", [(4, 6), (4,)], ids=["dual stack", "IPv4"])
def test_no_pod_gives_addresses_to_others(stack: ExitStack, families: tuple[int, ...]) -> None:
    """By a router's advertisement: no policy would know them. Without an isolated pod it is nobody's business; nobody loses an address."""
    world = World(stack, families)
    world.put(NOBODY)
    known, before = world.ipv6("server", GLOBAL_SCOPE), world.dropped()
    world.advertise("client")
    wait_for(lambda: world.dropped() == before + 2)  # one for each of the others
    assert world.passes("client", "friend", "v4")
    assert world.ipv6("server", GLOBAL_SCOPE) == known
    world.drop(Policy, NOBODY.name)
    world.advertise("client")
    wait_for(lambda: any(address in STRANGE for address in world.ipv6("server", GLOBAL_SCOPE)))


@pytest.mark.parametrize("kind", WAYS_AROUND)
def test_flows_that_run_between_link_local_addresses_are_cut(stack: ExitStack, kind: Kind) -> None:
    """By the first pod that is isolated, and given back when the last one is free; a second policy between the two changes nothing."""
    world = World(stack, families=(4, 6))
    flow = world.sender("client", "server", kind)
    other = world.sender("friend", "client", "v6")
    assert flow.is_answered()
    assert other.is_answered()
    world.put(NOBODY)
    wait_for(lambda: not flow.passes())
    world.put(guard("friend"))
    assert other.passes()
    assert not flow.passes()
    world.drop(Policy, NOBODY.name)
    assert not flow.passes()
    world.drop(Policy, "friend")
    wait_for(flow.passes)
