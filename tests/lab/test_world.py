"""A lab on the real kernel: what its probes say, held against rules of the real iptables."""

import os
import resource
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from netpol.errors import LabError
from netpol.lab import NODE, Answer, Host, Lab, Probe
from netpol.lab.probes import LOOK
from netpol.model import ICMP, ICMPV6, SCTP, TCP, UDP, Address, Family, family_of, format_address, parse_address
from tests.referees import run

LISTENS = ((TCP, 80), (UDP, 53), (SCTP, 99))
PORTS = {TCP: 80, UDP: 53, SCTP: 99, ICMP: 0, ICMPV6: 0}
FAMILIES: tuple[Family, Family] = (4, 6)
FILTERS = {4: "iptables-legacy", 6: "ip6tables-legacy"}
NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}


def four(number: int) -> Address:
    return bytes([10, 1, 0, number])


def six(number: int) -> Address:
    return parse_address(f"fd01::{number}")


def address_of(host: Host, family: Family) -> Address:
    return next(address for address in host.addresses if family_of(address) == family)


HOSTS = tuple(Host(f"pod-{number}", (four(number), six(number)), LISTENS) for number in range(1, 11))
FIRST, SECOND, THIRD = HOSTS[:3]


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real tools lock a file of the test's own."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


@pytest.fixture
def lab(lock: None) -> Iterator[Lab]:
    """Three of the hosts, and a node without rules."""
    with Lab(HOSTS[:3]) as built:
        yield built


@pytest.fixture(scope="module")
def ten() -> Iterator[Lab]:
    """Ten hosts on a node that no test gives any rules."""
    with Lab(HOSTS) as built:
        yield built


def rule(lab: Lab, family: Family, *words: str) -> None:
    with lab.entered():
        run(FILTERS[family], "-w", *words)


def packets(lab: Lab, family: Family, chain: str = "FORWARD") -> int:
    """What the rules of a chain have counted."""
    with lab.entered():
        lines = run(FILTERS[family], "-w", "-nvxL", chain).splitlines()
    return sum(int(line.split()[0]) for line in lines[2:])


def tables(path: str) -> list[str]:
    """The rows of a file with a line of names and a line of numbers for each protocol, as lines of "name number"."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return [
        f"{name} {value}" for names, values in zip(lines[::2], lines[1::2], strict=True) for name, value in zip(names, values, strict=True)
    ]


def outcomes(answers: tuple[Answer, ...]) -> Counter[str]:
    return Counter(answer.outcome for answer in answers)


@pytest.mark.parametrize(
    ("protocol", "family"),
    [(TCP, 4), (TCP, 6), (UDP, 4), (UDP, 6), (SCTP, 4), (SCTP, 6), (ICMP, 4), (ICMPV6, 6)],
)
def test_everyone_reaches_everyone(ten: Lab, protocol: int, family: Family) -> None:
    """Ten hosts, all pairs and themselves, at once: each answer is in its place and names the host that the address belongs to."""
    table = [(Probe(a.name, address_of(b, family), protocol, PORTS[protocol]), b.name) for a in HOSTS for b in HOSTS]
    assert ten.probe([probe for probe, _ in table]) == tuple(Answer("reached", name) for _, name in table)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
def test_an_absent_listener_refuses(ten: Lab, protocol: int, family: Family) -> None:
    """A closed port is refused, also two hundred times in a row: the kernel does not ration its ICMP errors here."""
    answers = ten.probe([Probe("pod-1", address_of(SECOND, family), protocol, 7)] * 200, patience=0.5)
    assert outcomes(answers) == {"refused": 200}
    with ten.entered("pod-2"):
        counted = Path("/proc/thread-self/net/snmp6").read_text().splitlines() if family == 6 else tables("/proc/thread-self/net/snmp")
    assert [line for line in counted if "RateLimit" in line and line.split()[1] != "0"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_probes_and_is_probed(ten: Lab, family: Family) -> None:
    """The node is a host too, without listeners, and its packets come from an address that gets answers."""
    echo = ICMP if family == 4 else ICMPV6
    own = parse_address("169.254.1.1" if family == 4 else "fd00:6e65:7470:6f6c::1")
    probes = [Probe(NODE, address_of(FIRST, family), TCP, 80), Probe("pod-1", own, echo), Probe("pod-1", own, TCP, 80)]
    assert ten.probe(probes) == (Answer("reached", "pod-1"), Answer("reached", NODE), Answer("refused"))


def test_the_node_s_own_firewall_silences_it(lab: Lab) -> None:
    """What the node's OUTPUT drops is silent, though the kernel tells the sender of a datagram about it."""
    rule(lab, 4, "-A", "OUTPUT", "-j", "DROP")
    answers = lab.probe([Probe(NODE, four(1), protocol, PORTS[protocol]) for protocol in (TCP, UDP, SCTP, ICMP)], patience=0.2)
    assert outcomes(answers) == {"silent": 4}


def test_no_address_but_those_given_and_no_noise(ten: Lab) -> None:
    """A host has its IPv6 address and loopback, none that is link-local; nothing is tentative, nothing was ever forwarded by itself."""
    with ten.entered("pod-1"):
        rows = [line.split() for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == sorted([six(1).hex(), "1".zfill(32)])
    assert [row for row in rows if int(row[4], 16) & 0x40] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_flows_are_silent_and_no_others(lab: Lab, family: Family) -> None:
    """DROP rules for one pair, for one port and for one protocol make exactly those probes silent."""
    one, two, three = (format_address(address_of(host, family)) for host in HOSTS[:3])
    rule(lab, family, "-A", "FORWARD", "-s", one, "-d", two, "-j", "DROP")
    rule(lab, family, "-A", "FORWARD", "-d", three, "-p", "udp", "--dport", "53", "-j", "DROP")
    rule(lab, family, "-A", "FORWARD", "-s", three, "-d", one, "-p", "sctp", "-j", "DROP")
    table = [(a, b, protocol) for a in HOSTS[:3] for b in HOSTS[:3] if a != b for protocol in (TCP, UDP, SCTP)]
    answers = lab.probe([Probe(a.name, address_of(b, family), protocol, PORTS[protocol]) for a, b, protocol in table])
    silent = {(a.name, b.name, protocol) for (a, b, protocol), answer in zip(table, answers, strict=True) if answer.outcome == "silent"}
    # The rules know no connections: what answers a probe in the other direction is dropped as well.
    cut = {("pod-1", "pod-2", protocol) for protocol in (TCP, UDP, SCTP)} | {("pod-2", "pod-1", protocol) for protocol in (TCP, UDP, SCTP)}
    assert silent == cut | {("pod-1", "pod-3", UDP), ("pod-2", "pod-3", UDP), ("pod-3", "pod-1", SCTP), ("pod-1", "pod-3", SCTP)}
    assert outcomes(answers)["refused"] == 0


@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rejected_flow_is_refused(lab: Lab, protocol: int, family: Family) -> None:
    """An ICMP error of the node counts as a refusal, and only for the port that it is about."""
    reason = "icmp-admin-prohibited" if family == 4 else "icmp6-adm-prohibited"
    rule(lab, family, "-A", "FORWARD", "-p", NAMES[protocol], "--dport", "7777", "-j", "REJECT", "--reject-with", reason)
    target = address_of(SECOND, family)
    answers = lab.probe([Probe("pod-1", target, protocol, 7777), Probe("pod-1", target, protocol, PORTS[protocol])] * 5, patience=0.5)
    assert answers == (Answer("refused"), Answer("reached", "pod-2")) * 5


def test_the_firewall_s_count_ends_a_round(lab: Lab) -> None:
    """With an hour's patience a round ends when drops account for what is silent; packets sent again are not taken for other probes."""
    for protocol in ("tcp", "udp", "sctp"):
        rule(lab, 4, "-A", "FORWARD", "-d", "10.1.0.2", "-p", protocol, "-j", "DROP")
    asked: list[int] = []

    def dropped() -> int:
        asked.append(packets(lab, 4))
        return asked[-1]

    probes = [Probe("pod-1", address_of(host, 4), p, PORTS[p]) for host in (SECOND, THIRD) for p in (TCP, UDP, SCTP) for _ in range(3)]
    answers = lab.probe(probes, patience=3600, dropped=dropped)
    assert [answer.outcome for answer in answers] == ["silent"] * 9 + ["reached"] * 9
    assert asked[0] == 0
    assert asked[-1] >= 9
    # A second round starts from a count that is not 0.
    assert outcomes(lab.probe(probes, patience=3600, dropped=dropped)) == {"silent": 9, "reached": 9}


@pytest.mark.parametrize(("protocol", "looks"), [(UDP, 35), (TCP, 75)])
def test_what_the_firewall_has_not_counted_is_waited_for(lab: Lab, protocol: int, looks: int) -> None:
    """One of two silent probes is counted: that its packets, sent again, are counted again does not end the round; patience does."""
    rule(lab, 4, "-A", "FORWARD", "-d", "10.1.0.2", "-p", NAMES[protocol], "-j", "DROP")
    rule(lab, 4, "-N", "uncounted")
    rule(lab, 4, "-I", "FORWARD", "-d", "10.1.0.3", "-g", "uncounted")
    rule(lab, 4, "-A", "uncounted", "-j", "DROP")
    asked: list[int] = []

    def dropped() -> int:
        with lab.entered():
            lines = run("iptables-legacy", "-w", "-nvxL", "FORWARD").splitlines()
        asked.append(next(int(line.split()[0]) for line in lines if "DROP" in line and "10.1.0.2" in line))
        return asked[-1]

    probes = [Probe("pod-1", four(2), protocol, PORTS[protocol]), Probe("pod-1", four(3), protocol, PORTS[protocol])]
    assert outcomes(lab.probe(probes, patience=looks * LOOK, dropped=dropped)) == {"silent": 2}
    assert asked[-1] >= 2
    assert len(asked) >= looks


def test_every_probe_is_a_new_flow(lab: Lab) -> None:
    """The connection tracking takes no probe, of any round, for part of an earlier one; and each SCTP packet for a valid one."""
    rule(lab, 4, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    rule(lab, 4, "-N", "new")
    rule(lab, 4, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "new")
    rule(lab, 4, "-A", "new", "-j", "RETURN")
    probes = [Probe("pod-1", four(2), protocol, PORTS[protocol]) for protocol in (TCP, UDP, SCTP, ICMP)] * 10
    for _ in range(3):
        assert outcomes(lab.probe(probes)) == {"reached": 40}
    assert packets(lab, 4, "new") == 120
    with lab.entered():
        kept = run("conntrack", "-L", "-p", "tcp").splitlines()
    assert len(kept) == 30
    assert [line for line in kept if " CLOSE " not in line] == [], "a connection was not reset"


def test_a_source_s_other_address(lock: None) -> None:
    """A probe leaves from the address that it names, and a service answers from the address that was asked."""
    hosts = (Host("two", (four(1), four(2)), LISTENS), Host("one", (four(3),), LISTENS))
    with Lab(hosts) as lab:
        rule(lab, 4, "-A", "FORWARD", "-s", "10.1.0.2", "-d", "10.1.0.3", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
        for protocol in (TCP, UDP, SCTP):
            port = PORTS[protocol]
            probes = [Probe("two", four(3), protocol, port, four(1)), Probe("two", four(3), protocol, port, four(2))]
            assert [answer.outcome for answer in lab.probe(probes, patience=0.3)] == ["reached", "silent"]
            assert lab.probe([Probe("one", four(2), protocol, port)]) == (Answer("reached", "two"),)


def test_hosts_of_one_family(lock: None) -> None:
    """IPv4 hosts, IPv6 hosts and hosts of both live on one node."""
    hosts = (Host("a", (four(1),), LISTENS), Host("b", (six(2),), LISTENS), Host("c", (four(3), six(3)), LISTENS))
    with Lab(hosts) as lab:
        probes = [Probe("c", four(1), TCP, 80), Probe("c", six(2), TCP, 80), Probe("a", four(3), UDP, 53), Probe("b", six(3), UDP, 53)]
        assert [answer.host for answer in lab.probe(probes)] == ["a", "b", "c", "c"]


def test_the_wrong_host_s_answer_is_an_error(lab: Lab) -> None:
    """Packets that reach another host than the one with the address are not taken for reached."""
    rule(lab, 4, "-t", "nat", "-A", "PREROUTING", "-d", "10.1.0.2", "-j", "DNAT", "--to-destination", "10.1.0.3")
    with pytest.raises(LabError, match="pod-3 answered for pod-2"):
        lab.probe([Probe("pod-1", four(2), TCP, 80)])
    rule(lab, 4, "-t", "nat", "-A", "PREROUTING", "-d", "10.9.9.9", "-j", "DNAT", "--to-destination", "10.1.0.3")
    assert lab.probe([Probe("pod-1", parse_address("10.9.9.9"), TCP, 80)]) == (Answer("reached", "pod-3"),)


def test_a_hundred_hosts_and_all_their_pairs() -> None:
    """Ten thousand TCP connections, in flight together, are all answered by the right host; progress is told host by host."""
    hosts = [Host(f"pod-{number}", (four(number),), ((TCP, 80),)) for number in range(1, 101)]
    told: list[tuple[int, int]] = []
    with Lab(hosts, progress=lambda done, total: told.append((done, total))) as lab:
        answers = lab.probe([Probe(a.name, b.addresses[0], TCP, 80) for a in hosts for b in hosts])
    assert answers == tuple(Answer("reached", b.name) for _ in hosts for b in hosts)
    assert told == [(done, 100) for done in range(1, 101)]


def state() -> tuple[int, int, str, list[tuple[int, str]], tuple[int, int]]:
    """What a lab could leave behind in its process: descriptors, threads, the namespace it is in, devices, a limit."""
    files, here = len(os.listdir("/proc/self/fd")), os.readlink("/proc/thread-self/ns/net")
    return files, threading.active_count(), here, socket.if_nameindex(), resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.mark.parametrize("where", ["nowhere", "inside", "while building", "inside the node"])
def test_nothing_stays_open(where: str) -> None:
    """Whatever goes wrong where, the descriptors, the threads and the thread's namespace are afterwards what they were before."""

    def progress(done: int, total: int) -> None:
        if where == "while building" and done == 2:
            raise ZeroDivisionError

    def use() -> None:
        with Lab(HOSTS[:3], progress=progress) as lab:
            lab.probe([Probe("pod-1", four(2), TCP, 80), Probe("pod-1", four(2), UDP, 7)])
            if where == "inside":
                raise ZeroDivisionError
            with lab.entered():
                if where == "inside the node":
                    raise ZeroDivisionError

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1] - 1, limits[1]))
    try:
        before = state()
        with pytest.raises(ZeroDivisionError) if where != "nowhere" else nullcontext():
            use()
        assert state() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_lab_can_be_built_again(lock: None) -> None:
    """One description, two worlds, one after the other; the second knows nothing of the first's rules."""
    lab = Lab(HOSTS[:2])
    for _ in range(2):
        with lab:
            assert lab.probe([Probe("pod-1", four(2), TCP, 80)]) == (Answer("reached", "pod-2"),)
            rule(lab, 4, "-P", "FORWARD", "DROP")
            assert lab.probe([Probe("pod-1", four(2), TCP, 80)], patience=0.2) == (Answer("silent"),)
        with pytest.raises(LabError, match="not running"):
            lab.host("pod-1")


def test_the_shell_is_in_the_node(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own shell runs in the node's namespace, with the variables given, and its exit status comes back."""
    shell = tmp_path / "shell"
    shell.write_text(f'#!/bin/sh\nreadlink /proc/self/ns/net > {tmp_path}/seen\necho "$WORD" >> {tmp_path}/seen\nexit 7\n')
    shell.chmod(0o755)
    monkeypatch.setenv("SHELL", str(shell))
    assert lab.shell({"WORD": "said"}) == 7
    assert (tmp_path / "seen").read_text() == f"net:[{os.fstat(lab.node).st_ino}]\nsaid\n"
    monkeypatch.setenv("SHELL", str(tmp_path / "none"))
    with pytest.raises(LabError, match="cannot start a shell"):
        lab.shell()
