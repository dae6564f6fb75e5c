"""The pure parts of `netpol demo`: addresses taken from ipBlocks, policies in words, short names, and what very wide results become."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from netpol.cli.demonstration import outside, tables, words
from netpol.cli.demonstration.run import Report, Row
from netpol.cli.demonstration.scene import Connection, Scene, scene
from netpol.cli.demonstration.trace import Decider, Trace, short_names
from netpol.model import (
    EVERYTHING,
    SCTP,
    TCP,
    UDP,
    Flow,
    IPBlock,
    NamedPort,
    Namespace,
    NumberedPort,
    Peer,
    Pod,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    format_address,
    parse_address,
    parse_network,
)
from netpol.policy.cluster import Cluster
from netpol.policy.verdict import Verdict
from netpol.rules import ruleset
from netpol.rules.ruleset import Ruleset

DEMO_POD, NODE_ADDRESS = "10.0.0.10", "169.254.1.1"


@pytest.mark.parametrize(
    ("cidr", "excepts", "found"),
    [
        pytest.param("172.17.0.0/16", ("172.17.1.0/24",), "172.17.0.10 172.17.1.10 172.18.0.1", id="the documented block"),
        pytest.param("10.0.0.0/24", (), "10.0.0.1 10.0.1.1", id="the usual address is a pod's"),
        pytest.param("192.0.2.7/32", (), "192.0.2.7 192.0.2.9", id="one address"),
        pytest.param("192.0.2.0/24", ("192.0.2.0/25",), "192.0.2.138 192.0.2.10 192.0.3.1", id="the first half is excepted"),
        pytest.param("192.0.2.0/31", ("192.0.2.0/32", "192.0.2.1/32"), "192.0.2.0 192.0.2.1 192.0.2.3", id="nothing is left inside"),
        pytest.param("0.0.0.0/0", ("10.0.0.0/8",), "203.0.113.10 10.0.0.1", id="everything"),
        pytest.param("203.0.113.0/24", (), "203.0.113.10 203.0.114.1", id="a network for documentation"),
        pytest.param("127.0.0.0/8", (), "128.0.0.1", id="loopback"),
        pytest.param("224.0.0.0/4", (), "", id="multicast, and nothing behind it"),
        pytest.param("255.255.255.255/32", (), "", id="the end of all addresses"),
        pytest.param("2001:db8:5::/48", ("2001:db8:5:1::/64",), "2001:db8:5::a 2001:db8:5:1::a 2001:db8:6::1", id="IPv6"),
        pytest.param("::/0", (), "2001:db8::10", id="everything in IPv6"),
        pytest.param("::ffff:0:0/96", (), "203.0.113.10", id="addresses that stand for IPv4 ones"),
        pytest.param("ffff::/16", (), "", id="the end of IPv6"),
    ],
)
def test_addresses_around_a_block(cidr: str, excepts: tuple[str, ...], found: str) -> None:
    """One inside, one in each except, one behind; never a pod's, nor one that no host can have."""
    block = IPBlock(parse_network(cidr), tuple(map(parse_network, excepts)))
    chosen = outside.around(block, {parse_address(DEMO_POD), parse_address(NODE_ADDRESS)})
    assert " ".join(map(format_address, chosen)) == found


def test_somebody_else() -> None:
    """Who stands for everybody outside is nobody inside."""
    first, second, third = outside.ELSEWHERE[4]
    assert outside.elsewhere(4, {first}) == (second,)
    assert outside.elsewhere(4, {first, second, third}) == ()


DB = Selector((Requirement("role", "In", ("db",)),))
MIXED = Selector(
    (
        Requirement("a", "In", ("x", "y")),
        Requirement("b", "NotIn", ("x",)),
        Requirement("c", "NotIn", ("x", "y")),
        Requirement("d", "Exists"),
        Requirement("e", "DoesNotExist"),
    )
)


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        pytest.param(Query("default", EVERYTHING, DB), "pods with role=db in default", id="pods"),
        pytest.param(Query("default", EVERYTHING, EVERYTHING), "all pods in default", id="a namespace"),
        pytest.param(Query("", DB, EVERYTHING), "all pods in namespaces with role=db", id="namespaces"),
        pytest.param(Query("", EVERYTHING, EVERYTHING), "all pods in all namespaces", id="all"),
        pytest.param(
            Query("", EVERYTHING, MIXED), "pods with a in (x,y),b!=x,c notin (x,y),d,!e in all namespaces", id="as kubectl takes it"
        ),
        pytest.param(IPBlock(parse_network("10.0.0.0/8")), "10.0.0.0/8", id="a block"),
        pytest.param(
            IPBlock(parse_network("10.0.0.0/8"), (parse_network("10.1.0.0/16"), parse_network("10.2.0.0/16"))),
            "10.0.0.0/8 except 10.1.0.0/16, 10.2.0.0/16",
            id="a block with excepts",
        ),
    ],
)
def test_a_peer_in_words(peer: Peer, text: str) -> None:
    """Whom a peer means."""
    assert words.peer_words(peer) == text


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (NumberedPort(TCP, 80, 80), "80/TCP"),
        (NumberedPort(UDP, 1000, 2000), "1000-2000/UDP"),
        (NumberedPort(SCTP, 0, 65535), "any port of SCTP"),
        (NamedPort(TCP, "http"), "http/TCP"),
    ],
    ids=["a number", "a range", "a protocol", "a name"],
)
def test_a_port_in_words(port: PolicyPort, text: str) -> None:
    """Which ports a policy means."""
    assert words.port_words(port) == text


def test_a_rule_in_words() -> None:
    """What is not restricted, and what allows nothing, is said; a direction too."""
    assert (words.ports_words(PolicyRule()), words.peers_words(PolicyRule(), "ingress")) == ("every port", ("from anywhere",))
    nothing = PolicyRule((), ())
    assert (words.ports_words(nothing), words.peers_words(nothing, "egress")) == ("no port", ("to nobody",))
    policy = Policy("default", "p", EVERYTHING, (PolicyRule(),), ())
    assert (words.direction_words(policy, "ingress"), words.direction_words(policy, "egress")) == ("accept only", "connect to nothing")
    assert words.direction_words(Policy("default", "p", EVERYTHING, None, None), "egress") == "egress is not this policy's business"


def test_short_names() -> None:
    """As short as they can be and still differ."""
    assert short_names(("NETPOL-I-ABCDEFG", "NETPOL-E-ABCDEFG", "NETPOL-I-ABCDEFG")) == {
        "NETPOL-I-ABCDEFG": "I-ABCD",
        "NETPOL-E-ABCDEFG": "E-ABCD",
    }
    assert set(short_names(("NETPOL-I-ABCDEFG", "NETPOL-I-ABCDEXY")).values()) == {"I-ABCDEF", "I-ABCDEX"}
    assert short_names(()) == {}


# -- results that are too many for one screen --------------------------------------------------------------------------


def world(pods: int) -> Scene:
    """So many pods in one namespace, and no policy."""
    cluster = Cluster()
    cluster.put(Namespace("default"))
    for number in range(pods):
        cluster.put(Pod("default", f"pod-{number:02}", addresses=(bytes((10, 1, 0, number + 1)),)))
    return scene(cluster)


def row(number: int, reached: bool, expected: bool, decided: bool) -> Row:
    flow = Flow(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), TCP, number)
    rule = ruleset.Rule(ruleset.RETURN)
    decider = Decider(4, "NETPOL-I-ABCD", 1, rule, "ingress", reached, (), ("default/p",))
    return Row(Connection("a/a", "a/b", flow), Verdict(expected), reached, Trace(reached, (), (decider,) if decided else ()))


@pytest.mark.parametrize(
    ("rows", "every", "ports"),
    [
        pytest.param([row(1, True, True, False), row(2, True, True, True)], False, [2], id="what policies decide"),
        pytest.param([row(1, True, True, False), row(2, True, True, True)], True, [1, 2], id="all"),
        pytest.param([row(1, False, True, False), row(2, True, True, True)], False, [1, 2], id="and what disagrees"),
        pytest.param(
            [row(n, n % 2 > 0, n % 2 > 0, True) for n in range(1, 100)], False, list(range(2, 100, 2)), id="of many what is dropped"
        ),
        pytest.param(
            [row(n, False, n == 200, True) for n in range(1, 201)],
            False,
            [*range(1, tables.ROWS), 200],
            id="of very many some, the wrong one too",
        ),
    ],
)
def test_the_flows_that_are_shown(rows: list[Row], every: bool, ports: list[int]) -> None:
    """Those that are left out were as specified."""
    assert [one.connection.flow.port for one in tables.chosen(rows, every)] == ports


def text_of(*parts: RenderableType, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


@pytest.mark.parametrize(
    ("pods", "width", "grid"), [(3, 60, True), (30, 100, False), (30, 250, True)], ids=["few", "too many", "many on a wide screen"]
)
def test_the_matrix_or_numbers(pods: int, width: int, grid: bool) -> None:
    """Hosts by hosts where there is room, else numbers for each source; never wider than the terminal."""
    stage = world(pods)
    rows = [Row(one, Verdict(True), one.flow.destination[3] != 1, Trace(True, (), ())) for one in stage.connections]
    report = Report(tuple(rows), Ruleset({}, {}), {}, {"program": 1.0}, 1, ())
    text = text_of(*tables.matrix(stage, report, width, True), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert ("✗" in text) == grid
    assert ("reached after" in text) != grid
    assert f"{pods * (pods - 1)} of {pods * (pods - 1)} flows before, {(pods - 1) ** 2} after" in text


def test_ascii_marks() -> None:
    """A terminal without Unicode gets letters."""
    stage = world(2)
    rows = [Row(one, Verdict(True), False, Trace(True, (), ())) for one in stage.connections]
    report = Report(tuple(rows), Ruleset({}, {}), {}, {"program": 1.0}, 1, ())
    assert text_of(*tables.matrix(stage, report, 100, False)).isascii()
