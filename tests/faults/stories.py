"""What is done while system calls fail, and what has to hold whatever failed: a real kernel, and the law of `netpol.rules.diff`.

A story is one attempt that starts from the same state each time. After an attempt that failed, the kernel's state is read back by somebody
else and interpreted: what the states before and after both allow passes, what both deny does not; each table is one of those that the
plan names; the error is one that the agent's loop survives, and names an object; the next attempt succeeds, and leaves what is wanted.
"""

from __future__ import annotations

import errno
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from netpol.agent.audit import NO_DRIFT
from netpol.agent.enforcer import Enforcer
from netpol.errors import KernelError, MalformedKernelData, NetpolError
from netpol.kernel.apply import Kernel
from netpol.kernel.conntrack import ConntrackSocket
from netpol.model import (
    EVERYTHING,
    FAMILIES,
    TCP,
    Family,
    IPBlock,
    Namespace,
    NumberedPort,
    Object,
    Peer,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    parse_address,
    parse_network,
)
from netpol.rules.diff import diff
from netpol.rules.flows import unpack
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import Chain, GrowSet, ReplaceTable, Ruleset, ShrinkSet
from tests.faults.shim import CUT, EMPTY, INTERRUPTED, REFUSE, Calls, Fault, Shim
from tests.referees import run

CODES = (errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS, errno.EPERM, errno.ENOENT, errno.EINTR)
REFUSALS = (errno.ENOMEM, errno.EPERM, errno.EBUSY)
FOREVER = 1 << 20
NAMED = re.compile(r"NETPOL[46]|mangle|filter|all sets|socket|lock|entries|protocol|UDP 10|UDP fd")


def faults(calls: Calls) -> Iterator[Fault]:
    """Each call with each errno, once and from then on; what the kernel sends cut, missing, or called interrupted; each message refused."""
    for at, kind in enumerate(calls.kinds):
        for code in CODES:
            yield Fault(at, code)
            yield Fault(at, code, times=FOREVER)
        if kind == "r":
            for how in (CUT, EMPTY, INTERRUPTED):
                yield Fault(at, 0, how)
                yield Fault(at, 0, how, times=FOREVER)
        for message in range(calls.messages[at]):
            yield from (Fault(at, code, REFUSE, message) for code in REFUSALS)


class Story(ABC):
    """See the module."""

    error: NetpolError | None = None

    @abstractmethod
    def prepare(self) -> None:
        """The state from which the attempt starts; nothing fails."""

    @abstractmethod
    def attempt(self) -> None:
        """What is done while a system call fails."""

    def again(self) -> None:
        """The next attempt, when one has failed; it may fail too."""
        self.attempt()

    def resume(self) -> None:  # noqa: B027  # most stories have nothing to take
        """Takes the state as it is for the one to start from."""

    @abstractmethod
    def check(self) -> None:
        """What has to hold after the attempt; `error` is what it raised."""

    @abstractmethod
    def retry(self) -> None:
        """The attempt again, or what the loop does next; nothing fails, and all is as it should be after it."""

    def play(self, faults: Sequence[Fault], shim: Shim) -> None:
        """One round: a try for each of the faults, until one succeeds all the same; then one in which nothing fails."""
        self.prepare()
        files = len(os.listdir("/proc/self/fd"))
        for number, fault in enumerate(faults):
            self.error = None
            try:
                with shim.armed(fault):
                    if number:
                        self.again()
                    else:
                        self.attempt()
            except (KernelError, MalformedKernelData) as error:
                self.error = error
            assert self.error is None or NAMED.search(str(self.error)), f"it names nothing: {self.error}"
            self.check()
            if self.error is None:
                break
            self.resume()
        self.retry()
        assert len(os.listdir("/proc/self/fd")) == files, "a descriptor is left open"


# -- rules -------------------------------------------------------------------------------------------------------------


def labelled(name: str, number: int, node: str = "n", **labels: str) -> Pod:
    addresses = parse_address(f"10.0.0.{number}"), parse_address(f"fd00::{number}")
    return Pod("x", name, tuple(sorted(labels.items())), node, addresses)


def selecting(**labels: str) -> Selector:
    return Selector(tuple(Requirement(key, "In", (value,)) for key, value in sorted(labels.items())))


def policy(name: str, subject: Selector, *peers: Peer, egress: bool = False) -> Policy:
    rules = (PolicyRule(peers, (NumberedPort(TCP, 80, 80),)),)
    return Policy("x", name, subject, None if egress else rules, rules if egress else None)


def peers(**labels: str) -> Query:
    return Query("x", EVERYTHING, selecting(**labels))


BLOCK = IPBlock(parse_network("172.16.0.0/12"), (parse_network("172.17.0.0/16"),))
FIRST: tuple[Object, ...] = (
    Namespace("x"),
    labelled("p", 1, app="p", x="1"),
    labelled("q", 2, app="q"),
    *(labelled(f"r{number}", 10 + number, "elsewhere", y="1") for number in range(3)),
    policy("out", selecting(app="p"), peers(y="1"), egress=True),
    policy("in", selecting(app="q"), peers(x="1"), BLOCK),
)
# From one to the next: both ends of a flow change beside their sets; members come and go; a policy with new sets comes; all of them go.
OPPOSED = (labelled("p", 1, app="p"), labelled("q", 2, app="q", y="1"))
MEMBERS = (*OPPOSED, labelled("r0", 10, "elsewhere", x="1"), labelled("r3", 13, "elsewhere", y="1"), labelled("r4", 14, "elsewhere", x="1"))
MORE = (*MEMBERS, policy("more", EVERYTHING, peers(z="1"), BLOCK), labelled("r5", 15, "elsewhere", z="1", y="1"))


def objects(*changes: Object) -> tuple[Object, ...]:
    """The first state, as later objects of the same name change it."""
    by_name = {(type(item), item.name): item for item in (*FIRST, *changes)}
    return tuple(by_name.values())


STATES: dict[str, tuple[tuple[Object, ...], tuple[Object, ...]]] = {
    "beside": (objects(), objects(*OPPOSED)),
    "members": (objects(*OPPOSED), objects(*MEMBERS)),
    "new sets": (objects(*MEMBERS), objects(*MORE)),
    "old sets": (objects(*MORE), objects(*OPPOSED)),
    "everything": ((), objects(*MORE)),
    "nothing": (objects(*MORE), ()),
}
ADDRESSES = [
    *(parse_address(f"10.0.0.{number}") for number in (1, 2, 10, 11, 13, 14, 15)),
    *(parse_address(f"fd00::{number}") for number in (1, 2, 10, 11, 13, 14, 15)),
    parse_address("172.16.0.1"),
    parse_address("172.17.0.1"),
]
PACKETS = [
    Packet(source, destination, TCP, port, 40000)
    for source in ADDRESSES
    for destination in ADDRESSES
    if len(source) == len(destination) and source != destination
    for port in (80, 81)
]


class Rules(Story):
    """The law, for attempts that lead from one ruleset to another."""

    def __init__(self, before: tuple[Object, ...], after: tuple[Object, ...]) -> None:
        self.before, self.after = before, after
        self.observer = Kernel()
        self.kernel = Kernel()
        self.enforcer = self.made(self.kernel, before)
        self.enforcer.enforce()

    def made(self, kernel: Kernel, items: tuple[Object, ...]) -> Enforcer:
        enforcer = Enforcer(kernel, "n")
        enforcer.put(*items)
        return enforcer

    def resume(self) -> None:
        """What was found, what is wanted, and which tables the way from the one to the other may leave."""
        self.found, self.wanted = self.observer.read(), self.enforcer.state.wanted()
        plans = (*diff(self.wanted, self.found), *diff(*self.enforcer.state.pending()))
        self.tables: dict[Family, list[Mapping[str, Chain]]] = {
            family: [
                self.found.chains.get(family, {}),
                self.wanted.chains.get(family, {}),
                *(step.chains for step in plans if isinstance(step, ReplaceTable) and step.family == family),
            ]
            for family in FAMILIES
        }

    def check(self) -> None:
        now = self.observer.read()
        for family in FAMILIES:
            assert now.chains.get(family, {}) in self.tables[family], f"the table of IPv{family} is neither old nor new"
        before, after, passing = (self.passing(ruleset) for ruleset in (self.found, self.wanted, now))
        assert before & after <= passing, "lost"
        assert passing <= before | after, "let through"
        if self.error is None:
            assert now == self.wanted, "it said nothing, and is not as it should be"

    def passing(self, ruleset: Ruleset) -> frozenset[Packet]:
        return frozenset(packet for packet in PACKETS if interpret(ruleset, packet).passes)

    def settled(self) -> None:
        assert self.observer.read() == self.enforcer.state.wanted()


class Change(Rules):
    """Events are enforced."""

    def prepare(self) -> None:
        self.enforcer.replace(self.before)
        self.enforcer.enforce()
        self.enforcer.replace(self.after)
        self.resume()

    def attempt(self) -> None:
        self.enforcer.enforce()

    def retry(self) -> None:
        report = self.enforcer.enforce()
        assert report.leftover == ()
        self.settled()
        assert self.enforcer.audit()[0] == NO_DRIFT


class Adoption(Rules):
    """A new process takes over what another one left."""

    def prepare(self) -> None:
        self.enforcer.replace(self.before)
        self.enforcer.adopt()
        self.enforcer.replace(self.after)
        self.resume()

    def attempt(self) -> None:
        with Kernel() as kernel:
            self.made(kernel, self.after).enforce()

    def retry(self) -> None:
        self.attempt()
        self.settled()


class Repair(Rules):
    """An audit finds what somebody else changed: the jump, a chain, members."""

    def prepare(self) -> None:
        self.enforcer.adopt()
        self.observer.read()
        wanted = self.enforcer.state.wanted()
        victim = next(found for name, found in sorted(wanted.sets.items()) if found.kind == "hash:ip" and len(found.members) > 1)
        lost, extra = frozenset(sorted(victim.members)[:1]), frozenset((parse_address("10.0.0.14" if victim.family == 4 else "fd00::e"),))
        self.observer.apply(
            [
                GrowSet(victim.name, victim.kind, victim.family, extra),
                ShrinkSet(victim.name, victim.kind, victim.family, lost),
                ReplaceTable(4, "mangle", wanted.chains[4], False),
                ReplaceTable(6, "mangle", {**wanted.chains[6], "NETPOL-DENY": Chain("NETPOL-DENY", ())}, True),
            ]
        )
        self.resume()
        self.tables[6].append({**wanted.chains[6], "NETPOL-DENY": Chain("NETPOL-DENY", ())})

    def attempt(self) -> None:
        self.enforcer.audit()

    def again(self) -> None:
        self.enforcer.enforce()

    def retry(self) -> None:
        self.enforcer.enforce()
        self.settled()
        assert self.enforcer.audit()[0] == NO_DRIFT


# -- flows -------------------------------------------------------------------------------------------------------------

BIT, OTHERS = 0x10000000, 0x4005


class Flows(Story):
    """Flows are found and marked, and others lose their mark."""

    A, B = parse_address("10.0.0.1"), parse_address("fd00::1")

    def prepare(self) -> None:
        if self.marks():
            run("conntrack", "-F")
        for mark in (OTHERS, OTHERS | BIT):
            for source, destination in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
                words = ("-s", source, "-d", destination, "--protonum", "udp", "--sport", str(4000 + mark % 7), "--dport", "53")
                run("conntrack", "-I", *words, "--timeout", "1000", "-m", str(mark))

    def attempt(self) -> None:
        with ConntrackSocket() as socket:
            marked = socket.marked(BIT)
            found = socket.flows((self.A, self.B))
            socket.flows_at((self.A, self.B))
            socket.mark(found, BIT)
            socket.unmark(marked, BIT)

    def check(self) -> None:
        assert {mark & ~BIT for mark in self.marks()} == {OTHERS}
        assert len(self.marks()) == 4

    def retry(self) -> None:
        with ConntrackSocket() as socket:
            found = socket.flows((self.A, self.B))
            socket.unmark(found, BIT)
            assert self.marks() == [OTHERS] * 4
            assert socket.mark(found, BIT) == 4
        assert self.marks() == [OTHERS | BIT] * 4

    def marks(self) -> list[int]:
        with ConntrackSocket() as socket:
            return sorted(entry.mark for entry in unpack(socket.flows((self.A, self.B))))


def story(name: str) -> Story:
    if name == "flows":
        return Flows()
    kind, _, state = name.partition(": ")
    kinds: dict[str, type[Change | Adoption | Repair]] = {"change": Change, "adoption": Adoption, "repair": Repair}
    return kinds[kind](*STATES[state])


NAMES = (*(f"change: {name}" for name in STATES), "adoption: beside", "adoption: everything", "repair: members", "flows")
