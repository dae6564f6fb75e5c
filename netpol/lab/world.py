"""The lab itself: builds the node and the hosts, lets the caller in, takes everything down again.

One network namespace is the node: it forwards both families, without reverse path filters, and has a route and a permanent
neighbour for every address of every host. Each host has a namespace of its own, with one cable to the node and a default
route through it. Packets between two hosts pass the node's FORWARD hook; a host's to itself do not leave it.

Invariants: namespaces have no names; the caller's thread is where it was when a method returns; leaving the block closes every
descriptor and ends the one thread, whatever happened inside. A process that dies leaves nothing: only descriptors hold the
namespaces.
It does not program any firewall; that is what the caller enters the node for. It is for one thread at a time.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from types import TracebackType

from netpol.errors import KernelError, LabError
from netpol.kernel import namespaces
from netpol.lab import probes as probing
from netpol.lab.cables import FIRST_INDEX, GATEWAYS, HOST_DEVICE, HOST_END, LOOPBACK, NODE_END, Wiring, netlink
from netpol.lab.listeners import Listeners
from netpol.lab.values import NODE, Answer, Host, Probe, owners
from netpol.model import Address, family_of, parse_address

NODE_ADDRESSES = (parse_address("169.254.1.1"), parse_address("fd00:6e65:7470:6f6c::1"))
"""Where ICMP errors of the node come from, unless the caller says otherwise. Without an address of a family it cannot send any."""

IPV4_SETTINGS = (("net/ipv4/icmp_ratemask", "0"),)
# Before any device exists, so that they hold from its first packet: no link-local addresses and so no solicitations and
# no duplicate detection. Refusals are not rationed: every probe is to have its own.
IPV6_SETTINGS = (
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/icmp/ratemask", "0"),
)
NODE_IPV4_SETTINGS = (("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/default/rp_filter", "0"))
NODE_IPV6_SETTINGS = (("net/ipv6/conf/all/forwarding", "1"),)
# Group 0 may open echo sockets: that is root, and who became root of a private world.
ECHO_SETTINGS = (("net/ipv4/ping_group_range", "0 0"),)


RTF_LOCAL = 0x80000000
OWN_TRIES, OWN_PAUSE = 5000, 0.002


def become_private() -> None:
    """Makes this process root of a private world, unless it is root already. Call it first thing: a process with threads cannot.

    LabError where the system does not let its users make user namespaces, with what to change.
    """
    if os.geteuid() == 0:
        return
    try:
        namespaces.enter_private_world()
    except KernelError as error:
        if error.code == errno.EINVAL:
            raise LabError("a process with threads cannot become private: call become_private before the first one starts") from error
        raise LabError(
            f"{error}. This user may not make user namespaces: run as root, or allow it with `sysctl user.max_user_namespaces=15000`, "
            "`kernel.unprivileged_userns_clone=1` (Debian) or `kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu)"
        ) from error


def _write_settings(settings: Sequence[tuple[str, str]]) -> None:
    """Writes sysctls of the calling thread's namespace, which is whose /proc/sys/net shows."""
    for name, value in settings:
        try:
            descriptor = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            words = f"cannot set {name.replace('/', '.')}: {error.strerror}"
            raise LabError(f"{words}: the lab needs a writable /proc/sys (a privileged container has one)") from error


def _await_own(addresses: Sequence[Address]) -> None:
    """Waits until the kernel knows these IPv6 addresses of the calling thread's namespace as its own.

    It gets round to that after the message that adds them was answered; a datagram that a host sends to itself before is lost.
    """
    waiting = {address.hex() for address in addresses}
    for _ in range(OWN_TRIES):
        if waiting:
            with open("/proc/thread-self/net/ipv6_route") as routes:
                fields = [line.split() for line in routes]
            waiting -= {line[0] for line in fields if int(line[8], 16) & RTF_LOCAL}
        if not waiting:
            return
        time.sleep(OWN_PAUSE)
    raise LabError(f"the kernel has not taken {len(waiting)} IPv6 addresses for its own in {OWN_TRIES * OWN_PAUSE:.0f} s")


class Lab:
    """The world of these hosts, from `with Lab(hosts) as lab:` to the end of the block.

    `progress(done, all)` is called as hosts come up. LabError for hosts that contradict each other, and, with what to do, where the
    system lacks something.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        node_addresses: Sequence[Address] = NODE_ADDRESSES,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.hosts = tuple(hosts)
        self._owners = owners(self.hosts, node_addresses)
        self._addresses = {NODE: tuple(node_addresses), **{host.name: host.addresses for host in self.hosts}}
        self._progress = progress
        self._spaces: dict[str, int] = {}
        self._prober: probing.Prober | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> Lab:
        if self._prober is not None:
            raise LabError("this lab is running already")
        with ExitStack() as stack:
            stack.callback(self._forget)
            try:
                self._build(stack)
            except KernelError as error:
                raise LabError(str(error)) from error
            except OSError as error:
                advice = ": raise the limit (`ulimit -n`)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
                raise LabError(f"cannot build the lab: {error.strerror or error}{advice}") from error
            self._prober = probing.Prober(self._spaces, self._addresses, self._owners)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cleanup.close()

    @property
    def node(self) -> int:
        """The descriptor of the node's namespace; the lab closes it."""
        return self.host(NODE)

    def host(self, name: str) -> int:
        """The descriptor of a host's namespace; the lab closes it."""
        if name not in self._spaces:
            raise LabError(f"the lab has no host {name!r}" if self._spaces else "the lab is not running")
        return self._spaces[name]

    def entered(self, name: str = NODE) -> AbstractContextManager[None]:
        """The calling thread, and what it starts, is in the node, or on that host, inside the block."""
        return namespaces.entered(self.host(name))

    def probe(
        self, probes: Sequence[Probe], patience: float = probing.PATIENCE, dropped: Callable[[], int] | None = None
    ) -> tuple[Answer, ...]:
        """Sends all probes at once; what came of each, in their order.

        patience -- seconds without any answer after which the rest is silent.
        dropped -- how many packets the firewall has dropped, since any fixed time: the round ends as soon as that accounts for all
        that is unanswered. It is called in the caller's own namespace.
        LabError for a probe that cannot be, and for one that the wrong host answered.
        """
        if self._prober is None:
            raise LabError("the lab is not running")
        return self._prober.run(probes, patience, dropped)

    def shell(self, environment: Mapping[str, str] | None = None) -> int:
        """The user's own shell, in the node, until the user leaves it; its exit status. The one program that a lab ever starts.

        environment -- variables to add to this process's own.
        """
        # Ctrl-C is the shell's while it runs. A handler, since a signal that is ignored would be ignored by the shell as well.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            with self.entered():
                shell = subprocess.Popen([os.environ.get("SHELL") or "/bin/sh"], env={**os.environ, **(environment or {})})
            return shell.wait()
        except OSError as error:
            raise LabError(f"cannot start a shell: {error}: set SHELL to one") from error
        finally:
            signal.signal(signal.SIGINT, before)

    def _forget(self) -> None:
        self._spaces.clear()
        self._prober = None

    def _build(self, stack: ExitStack) -> None:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        probing.room()
        six = self._has_ipv6()
        listeners = Listeners()
        stack.callback(listeners.close)
        with closing(Wiring()) as wiring, ExitStack() as sockets:
            node = self._space(NODE, stack)
            with namespaces.entered(node):
                through = sockets.enter_context(netlink())
                _write_settings(IPV4_SETTINGS + NODE_IPV4_SETTINGS + ECHO_SETTINGS + (IPV6_SETTINGS + NODE_IPV6_SETTINGS if six else ()))
            wiring.up(LOOPBACK, arp=True)
            for address in self._addresses[NODE]:
                if family_of(address) == 4 or six:
                    wiring.address(LOOPBACK, address)
            wiring.send(through)
            for number, host in enumerate(self.hosts):
                self._attach(number, host, self._space(host.name, stack), wiring, through, listeners, six)
                if self._progress:
                    self._progress(number + 1, len(self.hosts))
        for host in self.hosts:
            with namespaces.entered(self._spaces[host.name]):
                _await_own([address for address in host.addresses if family_of(address) == 6])
        listeners.start()

    def _attach(self, number: int, host: Host, space: int, wiring: Wiring, through: socket.socket, listeners: Listeners, six: bool) -> None:
        """Lays a host's cable, gives both ends what they need, and opens its listeners."""
        with namespaces.entered(space):
            _write_settings(IPV4_SETTINGS + ECHO_SETTINGS + (IPV6_SETTINGS if six else ()))
            wiring.cable(number, space)
            for address in host.addresses:
                wiring.route(FIRST_INDEX + number, address)
                wiring.neighbour(FIRST_INDEX + number, address, HOST_END)
            wiring.send(through)
            device = socket.if_nametoindex(HOST_DEVICE)
            wiring.up(LOOPBACK, arp=True)
            wiring.up(device)
            for address in host.addresses:
                wiring.address(device, address)
            for family in sorted({family_of(address) for address in host.addresses}):
                wiring.neighbour(device, GATEWAYS[family], NODE_END)
                wiring.default(device, GATEWAYS[family])
            with netlink() as inside:
                wiring.send(inside)
            listeners.open(host)

    def _space(self, name: str, stack: ExitStack) -> int:
        space = namespaces.create()
        stack.callback(os.close, space)
        self._spaces[name] = space
        return space

    def _has_ipv6(self) -> bool:
        """Whether this kernel has IPv6; LabError where it has not and a host needs it."""
        if os.path.isdir("/proc/sys/net/ipv6"):
            return True
        needy = [host.name for host in self.hosts if any(family_of(address) == 6 for address in host.addresses)]
        if needy:
            raise LabError(f"host {needy[0]} has an IPv6 address and this kernel has no IPv6: boot without ipv6.disable=1")
        return False
