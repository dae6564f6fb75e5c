"""Other programs work on the same tables and sets while we do: each finds what is his as he left it, with its counters.

A writer as kube-proxy is (`iptables-legacy-restore --noflush`, chains that come, change and go, now and then a rule put before our jump),
one a family, and a user of `ipset` who fills, swaps and destroys sets and lists all of them, work as fast as they can; packets are
counted by a foreign rule in the very table that we replace. We change policies and pods, audit, and take the cheap look. NETPOL_SOAK=1
does so for three minutes (`make soak`) and says how it went, otherwise for a few seconds.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from netpol.agent.audit import NO_DRIFT
from netpol.agent.enforcer import Enforcer
from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.model import EVERYTHING, FAMILIES, TCP, Family, NumberedPort, Pod, Policy, PolicyRule, Query, parse_address
from netpol.rules.diff import diff
from tests.agent.stage import OBJECTS, WEB
from tests.kernel.iptables import TOOL
from tests.referees import require, run

SOAK = os.environ.get("NETPOL_SOAK") == "1"
SECONDS = 180.0 if SOAK else 4.0
PAUSE = 0.0005  # between packets
PORT = 9
# In tables and hooks that packets of the test do not pass, counters as if some had.
SEEDED = "[12:345] -A {chain} -p tcp -m tcp --dport 4711 -m comment --comment mine -j ACCEPT"
COUNTED = f"-A OUTPUT -d 127.0.0.1/32 -p udp -m udp --dport {PORT} -j ACCEPT"


class Writer(threading.Thread):
    """Does something again and again until `stop`; what it raises is raised by `stop`."""

    def __init__(self, turn: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._turn, self._ended = turn, threading.Event()
        self.turns = 0
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._turn()
                self.turns += 1
        except BaseException as error:
            self._error = error

    def stop(self) -> None:
        self._ended.set()
        self.join()
        if self._error is not None:
            raise self._error


class Proxy:
    """Writes its services' chains as kube-proxy does: those that changed anew, the rest not at all, those that are gone deleted."""

    def __init__(self, family: Family, seed: int) -> None:
        self.family, self.random = family, random.Random(seed)
        self.services: dict[str, tuple[int, ...]] = {}
        self.before = 0  # rules of his before our jump, ever

    def turn(self) -> None:
        changed = {f"KUBE-SVC-{self.random.randint(0, 12):02}" for _ in range(3)}
        for name in changed:
            if name in self.services and self.random.random() < 0.3:
                del self.services[name]
            else:
                self.services[name] = tuple(self.random.randint(1, 65535) for _ in range(self.random.randint(1, 5)))
        for table in ("filter", "mangle"):
            run(f"{TOOL[self.family]}-restore", "-w", "--noflush", "--counters", input=self.text(table, changed))
        if self.random.random() < 0.2:
            self.before += 1
            run(TOOL[self.family], "-w", "-t", "mangle", "-I", "FORWARD", "-m", "mark", "--mark", "0x8000", "-j", "RETURN")
            run(TOOL[self.family], "-w", "-t", "mangle", "-D", "FORWARD", "-m", "mark", "--mark", "0x8000", "-j", "RETURN")

    def text(self, table: str, changed: set[str]) -> str:
        heads = [":KUBE-SERVICES - [0:0]", *(f":{name} - [0:0]" for name in sorted(changed))]
        rules = [f"-A KUBE-SERVICES -j {name}" for name in sorted(self.services)]
        rules += [
            f"-A {name} -p tcp -m tcp --dport {port} -j RETURN"
            for name in sorted(changed & self.services.keys())
            for port in self.services[name]
        ]
        gone = [f"-X {name}" for name in sorted(changed - self.services.keys())]
        return "\n".join((f"*{table}", *heads, *rules, *gone, "COMMIT", ""))

    def rules(self, name: str) -> list[str]:
        return [f"-A {name} -p tcp -m tcp --dport {port} -j RETURN" for port in self.services[name]]

    def check(self) -> None:
        """Both tables hold his chains as he wrote them last, in his order."""
        for table in ("filter", "mangle"):
            lines = run(f"{TOOL[self.family]}-save", "-t", table).splitlines()
            expected = [f"-A KUBE-SERVICES -j {name}" for name in sorted(self.services)]
            expected += [
                f"-A {name} -p tcp -m tcp --dport {port} -j RETURN" for name in sorted(self.services) for port in self.services[name]
            ]
            assert sorted(line for line in lines if line.startswith("-A KUBE")) == sorted(expected)
            assert {line.split()[0] for line in lines if line.startswith(":KUBE-SVC")} == {f":{name}" for name in self.services}


class SetUser:
    """Fills a new set, swaps it with the one in use, destroys it; and lists whatever there is."""

    def __init__(self) -> None:
        self.random, self.members = random.Random(7), set[str]()
        run("ipset", "create", "theirs", "hash:ip")

    def turn(self) -> None:
        self.members = {f"192.0.2.{self.random.randint(1, 254)}" for _ in range(20)}
        lines = ["create new hash:ip", *(f"add new {member}" for member in self.members), "swap new theirs", "destroy new"]
        run("ipset", "restore", input="\n".join(lines) + "\n")
        run("ipset", "save")

    def check(self) -> None:
        listed = [line.split()[2] for line in run("ipset", "save", "theirs").splitlines() if line.startswith("add")]
        assert sorted(listed) == sorted(self.members)


class Packets:
    """Sends datagrams to the loopback device, each of which the foreign rule counts."""

    def __init__(self) -> None:
        self.sent = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def turn(self) -> None:
        self.socket.sendto(b"x", ("127.0.0.1", PORT))
        self.sent += 1
        time.sleep(PAUSE)


@contextmanager
def at_work(*turns: Callable[[], None]) -> Iterator[list[Writer]]:
    writers = [Writer(turn) for turn in turns]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stop()


def seeded() -> dict[tuple[Family, str], str]:
    """Foreign rules with counters that nothing should change, in every table; (family, table) -> the line of `iptables-save`."""
    lines = {}
    for family in FAMILIES:
        for table, chain in (("filter", "INPUT"), ("mangle", "PREROUTING"), ("raw", "PREROUTING")):
            line = SEEDED.format(chain=chain)
            run(f"{TOOL[family]}-restore", "-w", "--noflush", "--counters", input=f"*{table}\n{line}\nCOMMIT\n")
            lines[family, table] = line
    return lines


def changed(rng: random.Random, enforcer: Enforcer) -> None:
    """Something else is wanted: a peer more or less, another address, another port, a policy more or less."""
    number = rng.randint(1, 30)
    kind = rng.random()
    if kind < 0.4:
        addresses = parse_address(f"10.0.1.{rng.randint(1, 250)}"), parse_address(f"fd00::1:{rng.randint(1, 250)}")
        enforcer.put(Pod("x", f"peer-{number}", (), "elsewhere", addresses))
    elif kind < 0.6:
        enforcer.drop(Pod, f"peer-{number}", "x")
    elif kind < 0.9:
        port = rng.randint(1, 9)
        rule = PolicyRule((Query("x", EVERYTHING, EVERYTHING),), (NumberedPort(TCP, port, port),))
        enforcer.put(Policy("x", f"policy-{number % 4}", WEB, (rule,), None))
    else:
        enforcer.drop(Policy, f"policy-{number % 4}", "x")


def loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def test_everybody_finds_what_is_his(netns: int, capsys: pytest.CaptureFixture[str]) -> None:
    """After thousands of changes on all sides: foreign chains, sets and counters are exact, ours is what is wanted, and the only drift
    that the audits ever told of is the jump that a foreign rule was put before."""
    require("iptables-legacy-restore", "ip6tables-legacy-restore", "ipset")
    loopback_up()
    lines = seeded()
    run("iptables-legacy", "-w", "-t", "mangle", *COUNTED.split())
    proxies, user, packets = [Proxy(family, family) for family in FAMILIES], SetUser(), Packets()
    rng, kinds, refusals = random.Random(1), Counter[str](), Counter[str]()
    changes = audits = 0
    with Kernel() as kernel:
        enforcer = Enforcer(kernel, "n")
        enforcer.put(*OBJECTS)
        enforcer.enforce()
        start = look = audit = time.monotonic()
        with at_work(*(proxy.turn for proxy in proxies), user.turn, packets.turn) as writers:
            while (now := time.monotonic()) < start + SECONDS:
                try:
                    changed(rng, enforcer)
                    changes += bool(enforcer.enforce().steps)
                    if now >= look:
                        look = now + 0.1
                        audit = now if kernel.touched() else audit
                    if now >= audit:
                        audit = now + 1
                        audits += 1
                        kinds.update(enforcer.audit()[0].kinds())
                except KernelError as error:
                    refusals[str(error)] += 1
        turns = [writer.turns for writer in writers]
        enforcer.enforce()
        enforcer.audit()
        assert enforcer.audit()[0] == NO_DRIFT
        assert diff(enforcer.state.wanted(), kernel.read()) == ()
        hold = kernel.longest_hold
    for proxy in proxies:
        proxy.check()
        first = next(line for line in run(f"{TOOL[proxy.family]}-save", "-t", "mangle").splitlines() if line.startswith("-A FORWARD"))
        assert first == "-A FORWARD -j NETPOL"
    user.check()
    packets.socket.close()
    for (family, table), line in lines.items():
        assert line in run(f"{TOOL[family]}-save", "-c", "-t", table).splitlines()
    counted = re.search(rf"\[(\d+):\d+\] {re.escape(COUNTED)}", run("iptables-legacy-save", "-c", "-t", "mangle"))
    assert counted is not None
    assert int(counted[1]) == packets.sent
    assert set(kinds) <= {"jump_moved"}
    # Somebody lists the set that we want to destroy: it is destroyed at the next try.
    assert all("ipset destroy" in refusal and "listing" in refusal for refusal in refusals), refusals
    assert changes
    assert audits
    assert all(turns)
    if SOAK:
        with capsys.disabled():
            print(
                f"\n{SECONDS:g} s: {changes} changes, {audits} audits that found {dict(kinds)}, {refusals.total()} sets destroyed at the "
                f"next try; {turns[:2]} restores, {turns[2]} of ipset, {packets.sent} packets; the lock held {hold * 1000:.1f} ms at most"
            )
