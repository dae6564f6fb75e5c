"""The drop log on real packets of a lab: who was denied, by which policies, in which direction; and every packet accounted for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from netpol.agent.cutter import Cutter
from netpol.agent.drops import GROUP, DropLog, Sink
from netpol.agent.enforcer import Enforcer
from netpol.agent.limiter import Limiter
from netpol.agent.loop import Listener, Loop
from netpol.cli.main import main
from netpol.kernel.apply import Kernel
from netpol.kube.events import Event, Put, Synced
from netpol.lab import Host, Lab, Probe
from netpol.model import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Namespace,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Requirement,
    Selector,
    format_address,
    network,
    parse_address,
)
from netpol.rules.compile import Settings
from tests.agent.process import Agent, until
from tests.kube.servers import policy as policy_object
from tests.referees import run
from tests.test_agent_packets import ELSEWHERE, FROM_FRIENDS, WHERE, Scene, scene

__all__ = ["scene"]  # a fixture

KINDS: tuple[type[Object], ...] = (Namespace, Node, Pod, Policy)
LISTENS = ((TCP, 80), (UDP, 80), (SCTP, 80))
NAMES = ("free", "inside", "held", "outside")
FOUR = {name: parse_address(f"10.244.0.{number}0") for number, name in enumerate(NAMES, 1)}
SIX = {name: parse_address(f"fd00:244::{number}0") for number, name in enumerate(NAMES, 1)}
ADDRESSES = {4: FOUR, 6: SIX}
HOSTS = tuple(Host(name, (FOUR[name], SIX[name]), LISTENS) for name in NAMES)


def selected(value: str) -> Selector:
    return Selector((Requirement("app", "In", (value,)),))


def pod(namespace: str, name: str) -> Pod:
    return Pod(namespace, name, (("app", name),), "n", (FOUR[name], SIX[name]))


# x/inside lets in TCP 82 only, by two policies; x/held may not send; y/free is free; "outside" is no pod.
OBJECTS: tuple[Object, ...] = (
    Namespace("x"),
    Namespace("y"),
    Node("n", (parse_address("192.168.77.1"),), (network(FOUR["free"], 26), network(SIX["free"], 122))),
    pod("y", "free"),
    pod("x", "inside"),
    pod("x", "held"),
    Policy("x", "in-1", selected("inside"), (PolicyRule(ports=(NumberedPort(TCP, 82, 82),)),), None),
    Policy("x", "in-2", selected("inside"), (), None),
    Policy("x", "elsewhere", selected("nobody"), (), ()),
    Policy("x", "out", selected("held"), None, ()),
)


class Place:
    """A lab, the loop that enforces there, its drop log, and the file that this writes."""

    def __init__(self, lab: Lab, loop: Loop, log: DropLog, file: Path, complaints: list[str]) -> None:
        self.lab, self.loop, self.log, self.file, self.complaints = lab, loop, log, file, complaints

    def lines(self) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def await_line(self, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first line of which this is true, once there is one."""
        until(lambda: any(holds(line) for line in self.lines()), lambda: (self.lines(), self.complaints))
        return next(line for line in self.lines() if holds(line))

    def change(self, *events: Event) -> None:
        """Until they are in force."""
        self.loop.hear(*events)
        until(lambda: self.loop.waiting == 0 and self.loop.in_force)

    def cut(self) -> int:
        """Cuts what is denied by now; how many flows that were."""
        ruleset, pods = self.loop.ask(lambda enforcer: (enforcer.state.wanted(), enforcer.state.judged), 20) or (None, ())
        assert ruleset is not None
        with Cutter(Settings().cut_bit) as cutter:
            return cutter.sweep(ruleset, pods).marked

    def udp(self, name: str, address: bytes, port: int) -> socket.socket:
        with self.lab.entered(name):
            made = socket.socket(socket.AF_INET if len(address) == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        made.settimeout(20)
        made.bind((format_address(address), port))
        return made


@contextmanager
def place(folder: Path, *objects: Object, limiter: Limiter | None = None) -> Iterator[Place]:
    settings = Settings(log_group=7)
    with Lab(HOSTS) as lab, lab.entered(), Kernel(settings.table) as kernel:
        loop = Loop(Enforcer(kernel, "n", settings), KINDS, Listener(), jitter=lambda: 0.5)
        thread = threading.Thread(target=loop.run, daemon=True)
        thread.start()
        loop.hear(*map(Put, objects or OBJECTS), *map(Synced, KINDS))
        until(lambda: loop.in_force)
        complaints: list[str] = []
        file = folder / "drops.json"
        log = DropLog(7, loop, Sink(file), complaints.append, limiter)
        log.start()
        until(lambda: taken(7), lambda: complaints)
        try:
            yield Place(lab, loop, log, file, complaints)
        finally:
            log.stop()
            loop.stop()
            thread.join(20)


def taken(group: int) -> bool:
    """Whether somebody has that group, in the calling thread's namespace."""
    text = Path("/proc/thread-self/net/netfilter/nfnetlink_log").read_text()
    return any(line.split()[0] == str(group) for line in text.splitlines())


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


NAMED = {"free": "y/free", "inside": "x/inside", "held": "x/held"}
SIDES = {
    ("free", "inside"): ("ingress", ["x/in-1", "x/in-2"]),
    ("outside", "inside"): ("ingress", ["x/in-1", "x/in-2"]),
    ("held", "free"): ("egress", ["x/out"]),
    ("held", "outside"): ("egress", ["x/out"]),
    ("held", "inside"): ("egress", ["x/out"]),  # both would deny it, and egress is asked first
}
PROTOCOLS = {4: (TCP, UDP, SCTP, ICMP), 6: (TCP, UDP, SCTP, ICMPV6)}
WORDS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP", ICMP: "ICMP", ICMPV6: "ICMPv6"}


def test_every_denied_flow_has_its_names(tmp_path: Path) -> None:
    """TCP, UDP, SCTP and ICMP, both families, both directions, pods and others: one line each with names, direction and policies, and
    none for what is allowed."""
    expected = {}
    probes = []
    for (source, destination), side in SIDES.items():
        for family, protocols in PROTOCOLS.items():
            for protocol in protocols:
                to = ADDRESSES[family][destination]
                probes.append(Probe(source, to, protocol, 0 if protocol in (ICMP, ICMPV6) else 80))
                expected[source, destination, family, WORDS[protocol]] = side
    allowed = Probe("free", FOUR["outside"], TCP, 80)
    with place(tmp_path) as here:
        answers = here.lab.probe([*probes, allowed], patience=0.3)
        assert [answer.outcome for answer in answers] == ["silent"] * len(probes) + ["reached"]
        until(lambda: len(here.lines()) >= len(expected), lambda: (here.lines(), here.complaints))
        lines = here.lines()
    found = {}
    names = {format_address(address): name for by_name in ADDRESSES.values() for name, address in by_name.items()}
    for line in lines:
        source, destination = names[line["source_address"]], names[line["destination_address"]]
        family = 6 if ":" in line["source_address"] else 4
        key = (source, destination, family, line["protocol"])
        assert line["source"] == NAMED.get(source, line["source_address"])
        assert line["destination"] == NAMED.get(destination, line["destination_address"])
        if "ICMP" in line["protocol"]:
            assert (line["icmp_type"], line["icmp_code"], "port" in line) == (8 if family == 4 else 128, 0, False)
        else:
            assert (line["port"], line["source_port"] > 0, "icmp_type" in line) == (80, True, False)
        assert line["reason"] == "policy"
        assert key not in found
        found[key] = (line["direction"], line["policies"])
    assert found == expected
    assert here.complaints == []


def test_what_changes_is_named_as_it_was_enforced(tmp_path: Path) -> None:
    """A pod that takes another's address, and a policy that comes, are in the next line."""
    with place(tmp_path) as here:
        here.lab.probe([Probe("outside", FOUR["inside"], UDP, 1)], patience=0.1)
        assert here.await_line(lambda line: line.get("port") == 1)["destination"] == "x/inside"
        new = Pod("y", "heir", (("app", "inside"),), "n", (FOUR["inside"],))
        here.loop.hear(Put(new), Put(Policy("y", "late", Selector(), (), None)))
        until(lambda: here.loop.waiting == 0 and here.loop.in_force)
        here.lab.probe([Probe("outside", FOUR["inside"], UDP, 2)], patience=0.1)
        line = here.await_line(lambda line: line.get("port") == 2)
        assert (line["destination"], line["policies"]) == ("y/heir", ["y/late"])


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_that_was_cut(tmp_path: Path, family: int) -> None:
    """Both its ends are told so, whoever speaks, with the policies that deny how it began: not those by which its server may not call."""
    addresses = ADDRESSES[family]
    with place(tmp_path) as here, ExitStack() as stack:
        client, server = (stack.enter_context(here.udp(name, addresses[name], 82)) for name in ("free", "inside"))
        open_to_udp = Policy("x", "in-1", selected("inside"), (PolicyRule(ports=(NumberedPort(UDP, 82, 82),)),), None)
        here.change(Put(open_to_udp))
        for sender, name, receiver in ((client, "inside", server), (server, "free", client)):
            sender.sendto(b"x", (format_address(addresses[name]), 82))
            assert receiver.recv(10) == b"x"
        here.change(Put(Policy("x", "in-1", selected("inside"), (), None)), Put(Policy("x", "mute", selected("inside"), None, ())))
        assert here.cut() == 1
        for sender, name in ((client, "inside"), (server, "free")):
            sender.sendto(b"x", (format_address(addresses[name]), 82))
        there = here.await_line(lambda line: line["source"] == "y/free")
        back = here.await_line(lambda line: line["source"] == "x/inside")
        for line in (there, back):
            assert (line["reason"], line["direction"], line["policies"]) == ("cut", "ingress", ["x/in-1", "x/in-2"])
        assert ("reply" in there, back["reply"]) == (False, True)


def test_extension_headers_and_fragments(tmp_path: Path) -> None:
    """A datagram behind options, and one in three pieces (which the kernel puts together first), have their ports."""
    with place(tmp_path) as here:
        with here.lab.entered("free"):
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            large = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
        with sender:
            # Hop-by-hop and destination options: 8 bytes each, padded.
            for option in (socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS):
                sender.setsockopt(socket.IPPROTO_IPV6, option, bytes((0, 0, 1, 4, 0, 0, 0, 0)))
            sender.sendto(b"x", (format_address(SIX["inside"]), 7001))
        for one, addresses in zip(large, (FOUR, SIX), strict=True):
            with one:
                one.sendto(bytes(4000), (format_address(addresses["inside"]), 7002))
        line = here.await_line(lambda line: line.get("port") == 7001)
        assert (line["protocol"], line["direction"], line["destination"]) == ("UDP", "ingress", "x/inside")
        for mark in (".", ":"):
            line = here.await_line(lambda line, mark=mark: line.get("port") == 7002 and mark in line["source_address"])  # type: ignore[misc]  # a default binds it
            assert "fragment" not in line
            assert "packets" not in line


def rule_counts() -> int:
    """Packets of the NFLOG rules, as the real tools count them."""
    total = 0
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        for row in run(tool, "-t", "mangle", "-nvxL", "NETPOL-DENY").splitlines():
            fields = row.split()
            if len(fields) > 2 and fields[2] == "NFLOG":
                total += int(fields[0])
    return total


def test_every_packet_is_accounted_for(tmp_path: Path) -> None:
    """Floods of few and of many flows: what lines stand for, and what they say was left out, is what the rules counted."""
    with place(tmp_path, limiter=Limiter(interval=0.2, rate=5.0, burst=3)) as here:
        for name in ("free", "outside"):
            with here.lab.entered(name):
                senders = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
            for sender, addresses in zip(senders, (FOUR, SIX), strict=True):
                with sender:
                    for number in range(60):
                        sender.sendto(b"x", (format_address(addresses["inside"]), 7000 + number % 5))
        here.await_line(lambda line: line.get("packets", 1) > 1)
        logged = rule_counts()
        here.log.stop()
    lines = here.lines()
    flows = [line for line in lines if "left_out" not in line]
    left_out = sum(line["left_out"] + line.get("lost", 0) for line in lines if "left_out" in line)
    assert logged >= 80
    assert sum(line.get("packets", 1) for line in flows) + left_out == logged
    assert left_out > 0
    assert len(flows) < logged


def test_what_waits_for_its_line_at_the_end_is_left_out(tmp_path: Path) -> None:
    """Two packets of a flow, and the end before the second has a line: it is counted."""
    with place(tmp_path, limiter=Limiter(interval=1000.0)) as here:
        with here.lab.entered("free"):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for _ in range(2):
                sender.sendto(b"x", (format_address(FOUR["inside"]), 7000))
        here.await_line(lambda line: line.get("port") == 7000)
        until(lambda: rule_counts() == 2)
        here.log.stop()
        assert [line.get("left_out") for line in here.lines()] == [None, 1]


def test_before_everything_is_known(tmp_path: Path) -> None:
    """While a predecessor's rules stand and not all objects have been said, names could be wrong: there are none."""
    with place(tmp_path) as here:
        here.loop.agenda.missing.add(Pod)
        here.lab.probe([Probe("free", FOUR["inside"], UDP, 1)], patience=0.1)
        line = here.await_line(lambda line: line.get("port") == 1)
        assert (line["reason"], line["source"]) == ("unjudged", line["source_address"])


def test_a_loop_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what it can; enforcement and the log go on."""
    monkeypatch.setattr("netpol.agent.drops.QUESTION", 0.05)
    with place(tmp_path) as here:
        held, release = threading.Event(), threading.Event()

        def hold(_: Enforcer) -> None:
            held.set()
            release.wait(20)

        asker = threading.Thread(target=here.loop.ask, args=(hold, 20))
        asker.start()
        assert held.wait(20)
        here.lab.probe([Probe("free", FOUR["inside"], UDP, 1)], patience=0.1)
        line = here.await_line(lambda line: line.get("port") == 1)
        assert (line["reason"], line["source"], line["destination"]) == (
            "unjudged",
            line["source_address"],
            line["destination_address"],
        )
        release.set()
        asker.join()
        here.lab.probe([Probe("free", FOUR["inside"], UDP, 2)], patience=0.1)
        assert here.await_line(lambda line: line.get("port") == 2)["reason"] == "policy"


def test_a_group_that_somebody_else_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and taken as soon as it is free."""
    from netpol.kernel.nflog import NflogSocket

    monkeypatch.setattr("netpol.agent.drops.AGAIN", 0.02)
    with place(tmp_path) as here:
        with NflogSocket(8, "x"):
            second = DropLog(8, here.loop, Sink(tmp_path / "second"), here.complaints.append)
            second.start()
            until(lambda: here.complaints)
        until(lambda: taken(8))
        second.stop()
        assert len(here.complaints) == 1
        assert "NFLOG open group 8: another program reads this group" in here.complaints[0]


@pytest.mark.parametrize("pulse", [5.0, 0.02], ids=["before it is summed up", "sums that are refused, too"])
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pulse: float) -> None:
    """What could not be written is counted, said once, and in the first line that can be."""
    monkeypatch.setattr("netpol.agent.drops.PULSE", pulse)
    with place(tmp_path) as here:
        here.file.mkdir()
        for port in (1, 2):
            here.lab.probe([Probe("free", FOUR["inside"], UDP, port)], patience=0.1)
        until(lambda: here.log._limiter.left_out >= 2)
        time.sleep(0.3)
        here.file.rmdir()
        here.log.stop()
        assert sum(line["left_out"] for line in here.lines()) >= 2
        words = f"the drop log cannot be written: {here.file}: Is a directory; what it leaves out is counted"
        assert here.complaints == [words]


def log_of(scene: Scene, file: Path, *more: str) -> Agent:
    return scene.agent("--drop-log", str(file), *more)


def test_the_agent_logs_and_drops_prints(scene: Scene, tmp_path: Path) -> None:
    """From a policy on a real API server to words for people: with the default group, and for one pod or namespace only."""
    file = tmp_path / "log.json"
    scene.api.create("networkpolicies", policy_object(WHERE, "friends", FROM_FRIENDS))
    with log_of(scene, file) as agent:
        scene.ready(agent)
        with scene.lab.entered():
            until(lambda: taken(GROUP), agent.log)
        scene.becomes(False, agent=agent)
        scene.becomes(False, "stranger", agent=agent)
        until(lambda: file.exists() and file.read_text().count("\n") >= 4, agent.log)
        assert agent.stop() == 0
    printed = CliRunner().invoke(main, ["drops", str(file)])
    assert printed.exit_code == 0
    assert f"{WHERE}/client (10.7.0.1) -> {WHERE}/web (10.7.0.2)  TCP port 80  denied by ingress policies {WHERE}/friends" in printed.stdout
    assert f"{ELSEWHERE}/stranger (fd07::3) -> {WHERE}/web (fd07::2)  TCP port 80  denied by ingress policies" in printed.stdout
    lines = CliRunner().invoke(main, ["drops", str(file), "--namespace", ELSEWHERE]).stdout.splitlines()
    assert lines
    assert all("stranger" in line for line in lines)
    assert CliRunner().invoke(main, ["drops", str(file), "--pod", f"{WHERE}/nobody"]).stdout == ""
