"""What a packet of a new flow pays, and one of an established flow: the same packets through nodes that are alike but for their rulesets,
in turn.

A client sends UDP packets from prepared bytes through a node to a network that throws them away: each the first of a flow, or all of few
flows that are tracked as established, and that a new flow could not be. What a run takes is the sender's time, which is the whole way
of the packet through the node. The rules are those of the compiler, for clusters made for the question.

A percent or two is to be seen, and a machine that others use drifts by more within a tenth of a second. So each ruleset is in force in
a node of its own all the time, a run is short, and nothing is done between two runs: those of a pair are a millisecond apart. Where
tables and flows happen to lie in memory matters as much: a contender has several nodes, which take turns. Tracked flows are flushed,
and made, outside the clock.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from netpol.bench.flows import create
from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.bench.peers import RESTORE, execute, find
from netpol.kernel.apply import Kernel
from netpol.lab import Host, Lab
from netpol.model import (
    EVERYTHING,
    UDP,
    Address,
    Namespace,
    NumberedPort,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    format_address,
    parse_address,
)
from netpol.policy.cluster import Cluster
from netpol.rules.compile import Settings, compiled
from netpol.rules.diff import diff
from netpol.rules.ruleset import RETURN, ROOT, Chain, Rule, Ruleset

NODE = "node"
NODES, RUN = 3, 250  # nodes a contender has; packets a run sends
FLOWS, KNOWN_FLOWS = 8_000, 500  # new ones after which a node's are flushed; established ones
SETTLING = 0.02  # seconds in which the kernel frees what was flushed
PATIENCE = 20  # looks, a hundredth of a second apart
PORT, DENIED_PORT = 80, 81
CLIENT, SINK = parse_address("172.20.0.2"), parse_address("172.20.0.3")
PODS, PREFIX = 0x0AF50000, "10.245.0.0"  # 10.245.0.0/16, behind the sink
PEERS = 0x0AF60000

NOTHING = Ruleset({}, {})
MATCH_ONLY, GATE_ONLY = "conntrack match only", "gate only"
MATCH = b"*mangle\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\nCOMMIT\n"


class Question(NamedTuple):
    """A ruleset, and the packets to send through it, to `more` destinations in turn where there are some; `known` are those of established
    flows, on a port that is denied to new ones; `others` is what iptables-restore is given first."""

    ruleset: Ruleset
    source: Address
    destination: Address
    known: bool = False
    others: bytes = b""
    more: tuple[Address, ...] = ()


def policies_on_one_pod(row: str, count: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A pod that `count` policies select, each allowing another peer on one port, beside a tenth of them, and so on to one."""
    counts = [count // 10**i for i in range(len(str(count)) - 1, -1, -1)]
    return _case(row, pairs, {_policies(n): partial(_with_policies, n) for n in counts}, _policies(count), goals)


def isolated_pods(row: str, counts: tuple[int, ...], pairs: int, goals: Mapping[str, float]) -> Case:
    """The last of so many isolated pods of one class, beside fewer, and beside the least that there can be, and no rules."""
    questions: dict[str, Callable[[], Question]] = {_pods(n): partial(_among, n) for n in counts}
    questions |= {**_least(), "no rules": _no_rules}
    return _case(row, pairs, questions, _pods(counts[-1]), goals)


def free_pod(row: str, count: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A pod without policy among so many isolated ones, beside the least that there can be."""
    questions: dict[str, Callable[[], Question]] = {row: partial(_free_among, count), **_least()}
    return _case(row, pairs, questions, row, goals)


def free_pods(row: str, count: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """As many pods without policy as there are isolated ones, among those, in turn: what a packet meets is not met again soon. Beside the
    least that there can be, for the same packets."""
    free = [_address(PODS, number) for number in _mixed(count)[1]]
    random.Random(count).shuffle(free)
    questions: dict[str, Callable[[], Question]] = {row: partial(_among_mixed, count), **_least()}
    return _case(row, pairs, {name: partial(_to, ask, free) for name, ask in questions.items()}, row, goals)


def known_by_policies(row: str, count: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """An established flow to a pod that `count` policies select, beside one policy, the least that there can be, and no rules."""
    questions: dict[str, Callable[[], Question]] = {_policies(n): partial(_known, partial(_with_policies, n)) for n in (count, 1)}
    questions |= {name: partial(_known, ask) for name, ask in {**_least(), "no rules": _no_rules}.items()}
    return _case(row, pairs, questions, _policies(count), goals)


def known_by_pods(row: str, counts: tuple[int, ...], pairs: int, goals: Mapping[str, float]) -> Case:
    """An established flow to the last of so many isolated pods, beside fewer."""
    questions: dict[str, Callable[[], Question]] = {_pods(n): partial(_known, partial(_among, n)) for n in counts}
    return _case(row, pairs, questions, _pods(counts[-1]), goals)


def peers_in_a_set(row: str, counts: tuple[int, ...], pairs: int, goals: Mapping[str, float]) -> Case:
    """A new flow to a pod whose one policy allows so many peers, which are one set; the sender is the last of them. Beside fewer."""
    questions = {_peers(n): partial(_with_peers, n) for n in counts}
    return _case(row, pairs, questions, _peers(counts[-1]), goals)


def _case(row: str, pairs: int, questions: Mapping[str, Callable[[], Question]], ours: str, goals: Mapping[str, float]) -> Case:
    return Case(row, pairs, partial(_contest, questions, ours), goals, few=300)


def _least() -> dict[str, Callable[[], Question]]:
    """One rule with the gate's match: in FORWARD itself, where a program can put it; and in NETPOL, where every packet has to go for it."""
    return ({MATCH_ONLY: _match_only} if find(RESTORE[4]) else {}) | {GATE_ONLY: _gate_only}


def _peers(count: int) -> str:
    return f"{count} peers"


def _policies(count: int) -> str:
    return f"{count} {'policy' if count == 1 else 'policies'}"


def _pods(count: int) -> str:
    return f"{count} pods"


# -- clusters ----------------------------------------------------------------------------------------------------------


def _address(base: int, number: int) -> Address:
    return (base + 1 + number).to_bytes(4, "big")


def _selector(key: str, value: str) -> Selector:
    return Selector((Requirement(key, "In", (value,)),))


def _compiled(*items: Namespace | Pod | Policy) -> Ruleset:
    cluster = Cluster()
    cluster.put(Namespace("bench"))
    for item in items:
        cluster.put(item)
    return compiled(cluster, NODE, Settings(unknown_pods="allow"))


def _with_policies(count: int) -> Question:
    """The sender is the peer of the last policy."""
    pods = [Pod("bench", "target", (("app", "target"),), NODE, (_address(PODS, 0),))]
    pods += [Pod("bench", f"peer-{i}", (("peer", str(i)),), "elsewhere", (_address(PEERS, i),)) for i in range(count)]
    rules = [PolicyRule((Query("bench", EVERYTHING, _selector("peer", str(i))),), (NumberedPort(UDP, PORT, PORT),)) for i in range(count)]
    policies = [Policy("bench", f"policy-{i}", _selector("app", "target"), (rule,), None) for i, rule in enumerate(rules)]
    return Question(_compiled(*pods, *policies), _address(PEERS, count - 1), _address(PODS, 0))


def _with_peers(count: int) -> Question:
    """One policy and one set, of pods elsewhere."""
    pods = [Pod("bench", "target", (("app", "target"),), NODE, (_address(PODS, 0),))]
    pods += [Pod("bench", f"peer-{i}", (("app", "peer"),), "elsewhere", (_address(PEERS, i),)) for i in range(count)]
    rule = PolicyRule((Query("bench", EVERYTHING, _selector("app", "peer")),), (NumberedPort(UDP, PORT, PORT),))
    policy = Policy("bench", "policy", _selector("app", "target"), (rule,), None)
    return Question(_compiled(*pods, policy), _address(PEERS, count - 1), _address(PODS, 0))


def _known(ask: Callable[[], Question]) -> Question:
    return ask()._replace(known=True)


def _among(count: int, but: int | None = None) -> Question:
    """One class for all; the packets go to the last of them by address, from an address that the policy's block allows.

    but -- the number that none of them has."""
    return _isolated([i for i in range(count if but is None else count + 1) if i != but])


def _isolated(numbers: Sequence[int]) -> Question:
    pods = [Pod("bench", f"pod-{i}", (), NODE, (_address(PODS, i),)) for i in numbers]
    policy = Policy("bench", "ports", EVERYTHING, (PolicyRule(None, (NumberedPort(UDP, PORT, PORT),)),), None)
    return Question(_compiled(*pods, policy), _address(PEERS, 0), _address(PODS, numbers[-1]))


def _free_among(count: int) -> Question:
    """The free pod stands among the isolated ones, at three quarters: a long way in the tree, not the end of it."""
    free = 3 * count // 4
    return _among(count, but=free)._replace(destination=_address(PODS, free))


def _mixed(count: int) -> tuple[list[int], list[int]]:
    """(numbers of so many isolated pods, numbers of so many free ones), in no order that a prefix could tell."""
    numbers = list(range(2 * count))
    random.Random(1).shuffle(numbers)
    return sorted(numbers[:count]), sorted(numbers[count:])


def _among_mixed(count: int) -> Question:
    return _isolated(_mixed(count)[0])


def _to(ask: Callable[[], Question], destinations: Sequence[Address]) -> Question:
    return ask()._replace(destination=destinations[0], more=tuple(destinations[1:]))


def _gate_only() -> Question:
    """A match like that of the gate's rule, and nothing else."""
    gate = Rule(RETURN, _compiled().chains[4][ROOT].rules[0].matches)
    return Question(Ruleset({4: {ROOT: Chain(ROOT, (gate,))}}, {}, frozenset({4})), _address(PEERS, 0), _address(PODS, 0))


def _match_only() -> Question:
    return _no_rules()._replace(others=MATCH)


def _no_rules() -> Question:
    return Question(NOTHING, _address(PEERS, 0), _address(PODS, 0))


# -- the road ----------------------------------------------------------------------------------------------------------


@contextmanager
def _contest(questions: Mapping[str, Callable[[], Question]], ours: str, directory: Path) -> Iterator[Contest]:
    asked = {name: ask() for name, ask in questions.items()}
    with _one_processor(), ExitStack() as stack:
        nodes: dict[str, list[_Node]] = {name: [] for name in asked}
        for _ in range(NODES):
            for name, question in asked.items():
                nodes[name].append(_Node(stack, question, directory))
        contenders = {name: _contender(found) for name, found in nodes.items()}
        yield Contest(contenders.pop(ours), contenders, lambda: 0, RUN, pause=0.0)


@contextmanager
def _one_processor() -> Iterator[None]:
    """The calling thread stays where it is: a packet's way through the node is where its sender is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _contender(nodes: Sequence[_Node]) -> Contender:
    """Its nodes by turns, each found to do what is asked for already."""
    for node in nodes:
        node.send()
        node.verify()
    turns = deque(nodes)

    def prepare() -> None:
        turns.rotate()
        turns[0].prepare()

    return Contender(prepare, lambda: turns[0].send(), lambda outcome: turns[0].verify())


def _route_pods_to_sink() -> None:
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # it has no types

    with IPRoute() as netlink:
        host_route = next(iter(netlink.get_routes(family=socket.AF_INET, dst=format_address(SINK), dst_len=32)))
        netlink.route("add", dst=f"{PREFIX}/16", gateway=format_address(SINK), oif=host_route.get_attr("RTA_OIF"), flags=["onlink"])


class _Node:
    """A node with a ruleset in force, between the client and the sink."""

    def __init__(self, stack: ExitStack, question: Question, directory: Path) -> None:
        self.question = question
        self.lab = stack.enter_context(Lab((Host("client", (CLIENT,)), Host("sink", (SINK,)))))
        source, destination, port = question.source, question.destination, DENIED_PORT if question.known else PORT
        count, ends = KNOWN_FLOWS if question.known else FLOWS, (destination, *question.more)
        flows = [(source, ends[i % len(ends)], 1024 + i, port) for i in range(count)]
        with self.lab.entered():
            _route_pods_to_sink()
            if question.others:
                (directory / "others").write_bytes(question.others)
                execute(str(find(RESTORE[4])), "--noflush", str(directory / "others"))
            self.kernel = stack.enter_context(Kernel())
            self.kernel.apply(diff(question.ruleset, self.kernel.read()))
            if question.known:
                create(flows, UDP)
        with self.lab.entered("client"):
            self.raw = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self.raw.connect((format_address(destination), 0))
        self.runs = [[_packet(*flow) for flow in flows[i : i + RUN]] for i in range(0, len(flows), RUN)]
        self.at = 0
        self.received = self._received()

    def prepare(self) -> None:
        """Has a run ready, of flows that are new or that are tracked as established."""
        self.at = (self.at + 1) % len(self.runs)
        if self.at or self.question.known:
            return
        with self.lab.entered():
            _flush_flows()
        time.sleep(SETTLING)
        self.send()  # the first after that is nobody's
        self.received += RUN
        self.at = 1

    def send(self) -> None:
        send = self.raw.send
        for packet in self.runs[self.at]:
            send(packet)

    def verify(self) -> None:
        with self.lab.entered():
            if self.kernel.read().chains != self.question.ruleset.chains:
                raise BenchError("the rules are not those of the question")
        passed = self._received() - self.received
        for _ in range(PATIENCE):  # the kernel may hand the last ones on a little later
            if passed >= RUN:
                break
            time.sleep(0.01)
            passed = self._received() - self.received
        self.received += passed
        if passed < RUN or passed > RUN + 100:
            raise BenchError(f"{passed} of {RUN} packets went through")

    def _received(self) -> int:
        """Packets that came to the sink. What the node counts as forwarded has not met its rules yet."""
        with self.lab.entered("sink"), open("/proc/thread-self/net/snmp") as file:
            names, values = (line.split() for line in file if line.startswith("Ip:"))
        return int(values[names.index("InReceives")])


def _packet(source: Address, destination: Address, source_port: int, port: int) -> bytes:
    """IPv4 and UDP headers; the kernel fills in the checksum of the first, and 0 is none for the second."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, UDP, 0, source, destination)
    return header + struct.pack("!HHHH", source_port, port, 8, 0)


def _flush_flows() -> None:
    """Empties the node's table of tracked flows: one message of ctnetlink."""
    delete = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as netlink:
        netlink.send(struct.pack("=IHHIIBBH", 20, delete, 5, 1, 0, socket.AF_UNSPEC, 0, 0))
        (code,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    if code:
        raise BenchError(f"cannot flush tracked flows: {os.strerror(-code)}")
