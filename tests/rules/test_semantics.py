"""Every numbered line of the specification that rules can show, judged three times.

By the specification's own evaluator, by the rules compiled from scratch, and by the rules of a node that followed the objects one by
one. What does not fit into a case stands below the cases. Lines about time (30, 32) and about bytes (34) are elsewhere, with their numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netpol.model import EVERYTHING, ICMPV6, TCP, Flow, Policy, PolicyRule, parse_network
from netpol.policy.verdict import verdict
from netpol.rules.compile import Settings, compiled
from netpol.rules.interpret import Packet, interpret
from tests.rules.forms import well_formed
from tests.semantics import HERE, Case, address, parse, played
from tests.semantics_cases import CASES, ONE_PORT


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_semantics(case: Case) -> None:
    """The evaluator says of each flow what the case says, and so do both ways to the rules."""
    cluster, state = played(case)
    followed, scratch = state.wanted(), compiled(cluster, HERE)
    assert followed == scratch
    well_formed(scratch)
    for line in case.flows.split(","):
        flow, allowed = parse(line)
        assert verdict(cluster, flow).allowed == allowed, line
        if case.forwarded:
            done = interpret(scratch, Packet(flow.source, flow.destination, flow.protocol, flow.port, 40000))
            assert done.passes == allowed, (line, done.hits)


def test_every_line_has_a_case() -> None:
    """1 to 28 and 33, but for 26, which is about packets of one flow and stands below."""
    assert {int(case.id.partition("-")[0]) for case in CASES} == {*range(1, 29), 33} - {26}


def test_every_line_has_a_test() -> None:
    """1 to 35: what is no case is a test whose name begins with the number."""
    names = [re.findall(r"^def test_(\d+)_", file.read_text(), re.M) for file in Path(__file__).parents[1].rglob("test_*.py")]
    elsewhere = {int(number) for found in names for number in found}
    assert elsewhere | {int(case.id.partition("-")[0]) for case in CASES} == {*range(1, 36)}


CLOSED = Case("", {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress]}"}, "")


@pytest.mark.parametrize("rule", [PolicyRule(peers=()), PolicyRule(ports=()), PolicyRule((), ())], ids=["no peers", "no ports", "neither"])
def test_12_what_resolved_to_nothing_allows_nothing(rule: PolicyRule) -> None:
    """No list is everything; an empty one, which no decoded rule has, is nothing."""
    cluster, state = played(Case("", {}, ""))
    state.follow(cluster.put(Policy("x", "p", EVERYTHING, (rule,), (rule,))))
    for source, destination in (("z/web", "x/web"), ("x/web", "z/web"), ("z/web6", "x/web6")):
        assert not verdict(cluster, Flow(address(source), address(destination), TCP, 80)).allowed
        assert not interpret(state.wanted(), Packet(address(source), address(destination), TCP, 80, 40000)).passes


@pytest.mark.parametrize("state", ["ESTABLISHED", "RELATED"])
@pytest.mark.parametrize("ends", [("x/web", "z/web"), ("z/web", "x/web"), ("x/web6", "z/web6")], ids="-".join)
def test_26_replies_and_related_errors_pass_with_their_flow(ends: tuple[str, str], state: str) -> None:
    """What belongs to a flow passes in both directions, though nothing new would."""
    ruleset = compiled(played(CLOSED)[0], HERE)
    packet = Packet(address(ends[0]), address(ends[1]), TCP, 80, 80)
    assert not interpret(ruleset, packet).passes
    assert interpret(ruleset, Packet(packet.source, packet.destination, TCP, 80, 80, state=state)).passes  # type: ignore[arg-type]  # two of its values


@pytest.mark.parametrize("port", [80, 81])
def test_35_a_packet_without_an_entry_is_judged_as_new(port: int) -> None:
    """What connection tracking holds to be INVALID passes where a new flow would, and not where it would not."""
    ruleset = compiled(played(Case("", {"x/p": ONE_PORT}, ""))[0], HERE)
    for source, destination in (("z/web", "x/web"), ("z/web6", "x/web6")):
        packet = Packet(address(source), address(destination), TCP, port, 80, state="INVALID")
        assert interpret(ruleset, packet).passes == (port == 80)


def test_31_a_flow_that_was_cut_stays_cut() -> None:
    """An established packet with the cut bit in its connmark is dropped in both directions, whatever its other bits are."""
    ruleset = compiled(played(CLOSED)[0], HERE)
    for source, destination in (("x/web", "z/web"), ("z/web", "x/web"), ("z/web", "y/web")):
        for mark, passes in ((0x10000000, False), (0x10004001, False), (0x00004001, True)):
            packet = Packet(address(source), address(destination), TCP, 80, 80, state="ESTABLISHED", connmark=mark)
            assert interpret(ruleset, packet).passes == passes


@pytest.mark.parametrize("icmp_type", range(126, 146))
def test_25_neighbour_discovery_and_listener_discovery_pass(icmp_type: int) -> None:
    """ICMPv6 130 to 137 and 143 always pass; an echo and its neighbours in number do not."""
    cluster, _ = played(CLOSED)
    source, destination = address("z/web6"), address("x/web6")
    allowed = icmp_type in (*range(130, 138), 143)
    assert verdict(cluster, Flow(source, destination, ICMPV6), icmp_type).allowed == allowed
    assert interpret(compiled(cluster, HERE), Packet(source, destination, ICMPV6, icmp_type=icmp_type)).passes == allowed


def test_25_ipv4_has_no_such_exception() -> None:
    """The same numbers as ICMP types mean nothing."""
    cluster, _ = played(CLOSED)
    for icmp_type in (0, 8, 130, 135):
        assert not verdict(cluster, Flow(address("z/web"), address("x/web"), 1), icmp_type).allowed
        packet = Packet(address("z/web"), address("x/web"), 1, icmp_type=icmp_type)
        assert not interpret(compiled(cluster, HERE), packet).passes


def test_29_unknown_addresses_of_the_pod_ranges() -> None:
    """While they are denied: in both directions, only in the ranges, and not what belongs to a known pod or to the pod itself."""
    cluster, _ = played(Case("", {"x/p": ONE_PORT}, ""))
    ruleset = compiled(cluster, HERE, Settings(unknown_pods="deny", pod_cidrs=(parse_network("10.0.0.0/24"), parse_network("fd00::/112"))))
    lines = """\
10.0.0.77 z/web 80/TCP no
z/web 10.0.0.77 80/TCP no
x/bare x/db 80/TCP yes
x/bare 10.0.0.77 80/TCP no
10.0.1.77 z/web 80/TCP yes
fd00::77 z/web6 80/TCP no
x/web x/web 81/TCP yes
z/web x/web 80/TCP yes
z/web x/web 81/TCP no
x/web z/web 81/TCP yes
10.0.0.77 x/web 80/TCP no"""
    for line in lines.splitlines():
        flow, allowed = parse(line)
        assert interpret(ruleset, Packet(flow.source, flow.destination, flow.protocol, flow.port, 40000)).passes == allowed, line
