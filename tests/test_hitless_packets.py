"""Changes at full rate under real traffic: what must always pass loses nothing, what must never pass never arrives (SEMANTICS 30).

Every packet is the first of a flow of its own, so each one is judged by the rules of its instant. Policies that stay allow the
always-allowed flows, but by labels that change: always one of those that will do. Never-allowed flows ask for a port that no policy
names, or run between u and v, of whom now one and now the other is ready, and never both. All else changes at random: labels,
policies, pods, namespaces. NETPOL_SOAK=1 makes 1,000 changes (`make soak`), otherwise fewer.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from msgspec.structs import replace

from netpol.agent.enforcer import Enforcer
from netpol.kernel import held_sets, ipset
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset import Swap
from netpol.lab import Host, Lab
from netpol.model import (
    EVERYTHING,
    UDP,
    IPBlock,
    Labels,
    Namespace,
    Network,
    NumberedPort,
    Object,
    Peer,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    canonical,
    format_address,
    parse_address,
)
from netpol.rules.compile import Settings
from netpol.rules.compile.skeleton import FRONT_FROM
from netpol.rules.ruleset import GrowSet, ShrinkSet

CHANGES = 1000 if os.environ.get("NETPOL_SOAK") == "1" else 150
PAUSE = 0.0005  # between packets of a sender: well below what the machine carries
ALWAYS, NEVER, PAIR = 1000, 2000, 1500
OUTSIDE = parse_address("172.30.0.1")
ADDRESSES = {name: parse_address(f"10.244.0.{i}") for i, name in enumerate(("p", "q", "r", "s", "t", "u", "v"), 1)}
KEYS, VALUES = ("app", "tier"), ("a", "b", "c")


def selector(**labels: str) -> Selector:
    return Selector(tuple(Requirement(key, "In", (value,)) for key, value in sorted(labels.items())))


def stay() -> tuple[Policy, ...]:
    """p and q are isolated both ways and meet on one port, whatever `app` they are; u asks for a v with y, v for a u with x."""
    base, ports, pair = selector(base="yes"), (NumberedPort(UDP, ALWAYS, ALWAYS),), (NumberedPort(UDP, PAIR, PAIR),)
    peers: tuple[Peer, ...] = (IPBlock(Network(OUTSIDE, 32)), *(Query("x", EVERYTHING, selector(app=value)) for value in VALUES))
    return (
        Policy("x", "stays", base, (PolicyRule(peers, ports),), (PolicyRule(peers, ports),)),
        Policy("x", "u", selector(pair="u"), None, (PolicyRule((Query("x", EVERYTHING, selector(y="1")),), pair),)),
        Policy("x", "v", selector(pair="v"), (PolicyRule((Query("x", EVERYTHING, selector(x="1")),), pair),), None),
    )


class Enforced(Protocol):
    """What changes are told to."""

    def put(self, *objects: Object) -> None: ...

    def drop(self, kind: type[Object], name: str, namespace: str = "") -> None: ...


class Random:
    """Changes that touch everything but what has to stay."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.turn = False

    def labels(self, name: str) -> Labels:
        stays = name in ("p", "q")
        drawn = {key: self.random.choice(VALUES) for key in KEYS if self.random.random() < 0.7 or (stays and key == "app")}
        if stays:
            drawn["base"] = "yes"
        if name in ("u", "v"):
            drawn["pair"] = name
            if self.turn == (name == "u"):
                drawn["x" if name == "u" else "y"] = "1"
        return tuple(sorted(drawn.items()))

    def pod(self, name: str) -> Pod:
        return Pod("x", name, self.labels(name), "n", (ADDRESSES[name],))

    def policy(self) -> Policy:
        def query() -> Query:
            wanted = selector(**{self.random.choice(KEYS): self.random.choice(VALUES)})
            return (
                Query("x", EVERYTHING, wanted)
                if self.random.random() < 0.5
                else Query("", selector(team=self.random.choice(VALUES)), wanted)
            )

        def rules() -> tuple[PolicyRule, ...] | None:
            if self.random.random() < 0.2:
                return None
            port = self.random.choice((80, 81))
            return tuple(
                PolicyRule(canonical(query() for _ in range(self.random.randint(1, 5))), (NumberedPort(UDP, port, port),))
                for _ in range(self.random.randint(0, 2))
            )

        subject = self.random.choice((EVERYTHING, selector(app="a"), selector(tier="b"), selector(base="yes")))
        return Policy("x", f"random-{self.random.randint(0, 4)}", subject, rules(), rules())

    def change(self, enforcer: Enforced) -> None:
        for _ in range(self.random.randint(1, 4)):
            kind = self.random.random()
            name = self.random.choice(("p", "q", "r", "s", "t"))
            if kind < 0.2:
                self.turn = not self.turn
                enforcer.put(self.pod("u"), self.pod("v"))
            elif kind < 0.45:
                enforcer.put(self.pod(name))
            elif kind < 0.5 and name not in ("p", "q"):
                enforcer.drop(Pod, name, "x")
            elif kind < 0.55:
                enforcer.put(Namespace("x", (("team", self.random.choice(VALUES)),)))
            elif kind < 0.9:
                enforcer.put(self.policy())
            else:
                enforcer.drop(Policy, f"random-{self.random.randint(0, 4)}", "x")


class Traffic:
    """One sender: numbered datagrams from one host's address to a port of another's, and the receiver that counts them.

    destination -- the address of that host; None where it is one of `ADDRESSES`.
    """

    def __init__(self, lab: Lab, source: str, address: bytes, target: str, port: int, destination: bytes | None = None) -> None:
        self.sent, self.received = 0, 0
        destination = destination or ADDRESSES[target]
        with lab.entered(target):
            self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.receiver.bind((format_address(destination), port))
        with lab.entered(source):
            self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.raw.connect((format_address(destination), 0))
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, UDP, 0, address, destination)
        self.head, self.port = ip, port

    def send(self) -> None:
        """The next datagram: a source port that was not used for a long while."""
        source_port = 1024 + self.sent % 60000
        self.raw.send(self.head + struct.pack("!HHHHI", source_port, self.port, 12, 0, self.sent))
        self.sent += 1

    def count(self) -> int:
        """How many of them have arrived by now."""
        self.receiver.setblocking(False)
        try:
            while True:
                self.receiver.recv(16)
                self.received += 1
        except BlockingIOError:
            return self.received

    def close(self) -> None:
        self.raw.close()
        self.receiver.close()


@contextmanager
def running(traffic: list[Traffic]) -> Iterator[None]:
    """All of it is sent, in turn, while the block runs."""
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            for one in traffic:
                one.send()
                one.count()
            time.sleep(PAUSE)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("seed", "is_tight"),
    [pytest.param(1, False, id="1"), pytest.param(2, False, id="2"), pytest.param(4, True, id="each set is full")],
)
def test_30_no_change_is_a_window(seed: int, is_tight: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random batches as fast as they go: not one packet of the always-allowed flows is lost, not one of the never-allowed arrives."""
    exchanged: list[Swap] = []

    def exchange(larger: str, full: str) -> Swap:
        exchanged.append(Swap(larger, full))
        return exchanged[-1]

    if is_tight:
        # No set has room for more than it is made with: whatever grows is exchanged for a larger one.
        monkeypatch.setattr(ipset, "room", lambda count: max(1, count))
        monkeypatch.setattr(held_sets, "Swap", exchange)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    hosts = [Host("outside", (OUTSIDE,)), *(Host(name, (address,)) for name, address in ADDRESSES.items())]
    drawn = Random(seed)
    with Lab(hosts) as lab:
        with lab.entered():
            kernel = Kernel()
        with kernel:
            # Of so few that a tree has a set in front, now and then, and with members that come and go.
            enforcer = Enforcer(kernel, "n", Settings(unknown_pods="allow", front_from=4))
            enforcer.put(Namespace("x"), *stay(), *map(drawn.pod, sorted(ADDRESSES)))
            with lab.entered():
                enforcer.enforce()
            ends = (("outside", OUTSIDE, "p"), ("p", ADDRESSES["p"], "q"))
            always = [Traffic(lab, *end, ALWAYS) for end in ends]
            never = [*(Traffic(lab, *end, NEVER) for end in ends), Traffic(lab, "u", ADDRESSES["u"], "v", PAIR)]
            steps: set[str] = set()
            changes = 0
            with running([*always, *never]), lab.entered():
                # On a busy machine the senders come seldom: it goes on until there was a packet for each change.
                while changes < CHANGES or any(one.sent <= CHANGES for one in always):
                    drawn.change(enforcer)
                    steps |= {type(step).__name__ for step in enforcer.enforce().steps}
                    changes += 1
            try:
                assert (len(exchanged) > CHANGES // 10) == is_tight
                assert steps == {"CreateSet", "GrowSet", "ReplaceTable", "ShrinkSet", "DestroySet"}
                assert [one.sent - one.count() for one in always] == [0, 0]
                assert [one.count() for one in never] == [0, 0, 0]
            finally:
                for one in (*always, *never):
                    one.close()
            with lab.entered():
                assert enforcer.audit()[0] == type(enforcer.audit()[0])()


@pytest.mark.parametrize("front_from", [1, FRONT_FROM])
def test_isolation_goes_from_one_end_to_the_other(front_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now the source may not send, now the destination may not receive: nothing arrives, with and without sets in front of the trees."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    with Lab([Host(name, (ADDRESSES[name],)) for name in ("u", "v")]) as lab:
        with lab.entered():
            kernel = Kernel()
        with kernel:
            enforcer = Enforcer(kernel, "n", Settings(unknown_pods="allow", front_from=front_from))
            silent, deaf = Policy("x", "u", selector(pair="u"), None, ()), Policy("x", "v", selector(pair="v"), (), None)
            pods = [Pod("x", name, (("pair", name),), "n", (ADDRESSES[name],)) for name in ("u", "v")]
            # Of each side one pod stays isolated, so that its set stays.
            others = [Pod("x", f"other-{i}", (("pair", "other"),), "n", (parse_address(f"10.244.0.{200 + i}"),)) for i in range(3)]
            enforcer.put(Namespace("x"), Policy("x", "others", selector(pair="other"), (), ()), *pods, *others, silent)
            with lab.entered():
                enforcer.enforce()
            never, steps = Traffic(lab, "u", ADDRESSES["u"], "v", NEVER), set()
            with running([never]), lab.entered():
                changes = 0
                while changes < CHANGES or never.sent <= CHANGES:
                    comes, goes = (deaf, silent) if changes % 2 == 0 else (silent, deaf)
                    enforcer.put(comes)
                    enforcer.drop(Policy, goes.name, "x")
                    steps |= {type(step) for step in enforcer.enforce().steps}
                    changes += 1
            arrived = never.count()
            never.close()
            assert arrived == 0
            assert ({GrowSet, ShrinkSet} <= steps) == (front_from == 1)


def test_the_traffic_itself_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment without the jump from FORWARD lets never-allowed packets in, and one without the rules' allowance loses others."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    hosts = [Host("outside", (OUTSIDE,)), *(Host(name, (address,)) for name, address in ADDRESSES.items())]
    with Lab(hosts) as lab:
        with lab.entered():
            kernel = Kernel()
        with kernel:
            enforcer = Enforcer(kernel, "n", Settings(unknown_pods="allow"))
            pod = replace(Random(1).pod("p"), labels=(("base", "yes"),))
            enforcer.put(Namespace("x"), *stay(), pod)
            never, always = Traffic(lab, "outside", OUTSIDE, "p", NEVER), Traffic(lab, "outside", OUTSIDE, "p", ALWAYS)
            with lab.entered():
                enforcer.enforce()
                with running([never, always]):
                    time.sleep(0.05)
                    enforcer.put(replace(pod, labels=()))
                    enforcer.enforce()
                    time.sleep(0.05)
                    enforcer.put(pod)
                    enforcer.enforce()
            assert 0 < never.count() < never.sent
            assert always.count() == always.sent
            with lab.entered(), running([always]):
                enforcer.drop(Policy, "stays", "x")
                enforcer.put(Policy("x", "closed", EVERYTHING, (), None))
                enforcer.enforce()
                time.sleep(0.05)
            assert always.count() < always.sent
            never.close()
            always.close()
