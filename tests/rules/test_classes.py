"""A class of pods -> its chain: the rules, match by match.

That a chain says what its policies say is a law (tests/rules/test_laws.py); here is how it says it.
"""

from __future__ import annotations

import pytest
from msgspec import structs

from netpol.model import (
    DIRECTIONS,
    EVERYTHING,
    FAMILIES,
    SCTP,
    TCP,
    UDP,
    Direction,
    Family,
    IPBlock,
    NamedPort,
    NumberedPort,
    Peer,
    Policy,
    PolicyPort,
    PolicyRule,
    parse_network,
)
from netpol.rules.compile.classes import FEW, ClassChain, class_chain, named_ports
from netpol.rules.compile.prefixes import prefixes, union
from netpol.rules.compile.selections import BlockSelection, PodSelection, PortSelection, Selection, set_name
from netpol.rules.ruleset import DENY, RETURN, Goto, Match, Multiport, Rule, Sctp, SetMatch, Tcp, Udp
from tests.rules.watched import app, own

BLOCK, BLOCK_6 = IPBlock(parse_network("10.0.0.0/8")), IPBlock(parse_network("fd00::/8"))


def allow(*rules: PolicyRule, name: str = "p") -> Policy:
    return Policy("ns", name, EVERYTHING, rules, rules)


def rule(*peers: Peer, ports: tuple[PolicyPort, ...] | None = None) -> PolicyRule:
    return PolicyRule(peers or None, ports)


def tcp(*ports: int) -> tuple[PolicyPort, ...]:
    return tuple(NumberedPort(TCP, number, number) for number in ports)


def chain(*policies: Policy, direction: Direction = "ingress", family: Family = 4) -> ClassChain:
    return class_chain(direction, family, policies, {(TCP, "http"): (8080, 80), (UDP, "http"): (81,)})


def in_set(selection: Selection, *directions: str, family: Family = 4) -> SetMatch:
    return SetMatch(set_name(selection, family), directions)  # type: ignore[arg-type]  # "src" or "dst"


WEB = in_set(PodSelection((own("web"),)), "src")


@pytest.mark.parametrize(
    ("ports", "protocol", "matches"),
    [
        pytest.param((NumberedPort(TCP, 80, 80),), TCP, [(Tcp(destination=(80, 80)),)], id="TCP"),
        pytest.param((NumberedPort(UDP, 53, 54),), UDP, [(Udp(destination=(53, 54)),)], id="UDP"),
        pytest.param((NumberedPort(SCTP, 7, 9),), SCTP, [(Sctp(destination=(7, 9)),)], id="SCTP"),
        pytest.param((NumberedPort(UDP, 0, 65535),), UDP, [()], id="all of a protocol"),
        pytest.param((NumberedPort(TCP, 0, 65534),), TCP, [(Tcp(destination=(0, 65534)),)], id="all but one"),
        pytest.param((NumberedPort(TCP, 1, 65535),), TCP, [(Tcp(destination=(1, 65535)),)], id="all but none"),
        pytest.param(tcp(1, 3), TCP, [(Multiport(((1, 1), (3, 3))),)], id="two ports"),
        pytest.param((NumberedPort(SCTP, 1, 2), NumberedPort(SCTP, 5, 5)), SCTP, [(Multiport(((1, 2), (5, 5))),)], id="SCTP, two"),
        pytest.param(tcp(*range(1, 31, 2)), TCP, [(Multiport(tuple((n, n) for n in range(1, 31, 2))),)], id="15 ports"),
        pytest.param(
            tcp(*range(1, 33, 2)),
            TCP,
            [(Tcp(destination=(31, 31)),), (Multiport(tuple((n, n) for n in range(1, 31, 2))),)],
            id="16 ports",
        ),
        pytest.param(
            (*tcp(*range(1, 29, 2)), NumberedPort(TCP, 100, 200), NumberedPort(TCP, 300, 300)),
            TCP,
            [(Multiport(tuple((n, n) for n in range(1, 29, 2))),), (Multiport(((100, 200), (300, 300))),)],
            id="a range takes two places",
        ),
        pytest.param(
            (*tcp(*range(1, 27, 2)), NumberedPort(TCP, 100, 200)),
            TCP,
            [(Multiport((*((n, n) for n in range(1, 27, 2)), (100, 200))),)],
            id="13 ports and a range fit",
        ),
        pytest.param(
            tuple(NumberedPort(TCP, low, low + 5) for low in range(10, 170, 10)),
            TCP,
            [
                (Multiport(tuple((low, low + 5) for low in range(80, 150, 10))),),
                (Multiport(tuple((low, low + 5) for low in range(10, 80, 10))),),
                (Multiport(((150, 155), (160, 165))),),
            ],
            id="16 ranges are three rules",
        ),
        pytest.param((NamedPort(TCP, "http"),), TCP, [(Multiport(((80, 80), (8080, 8080))),)], id="a name is its numbers"),
        pytest.param((NamedPort(UDP, "http"),), UDP, [(Udp(destination=(81, 81)),)], id="of its protocol"),
    ],
)
def test_ports(ports: tuple[PolicyPort, ...], protocol: int, matches: list[tuple[Match, ...]]) -> None:
    """A match of the protocol for one range, multiport of at most 15 places for more; before the set, which costs more."""
    found = chain(allow(rule(own("web"), ports=ports))).chain.rules
    expected = [Rule(RETURN, (*match, WEB), protocol=protocol) for match in matches]
    assert sorted(map(repr, found)) == sorted(map(repr, (*expected, Rule(Goto(DENY)))))
    bare = chain(allow(rule(ports=ports))).chain.rules
    assert sorted(map(repr, bare)) == sorted(map(repr, (*(Rule(RETURN, match, protocol=protocol) for match in matches), Rule(Goto(DENY)))))


@pytest.mark.parametrize(
    "ports", [pytest.param((), id="no port"), pytest.param((NamedPort(TCP, "nobody's"),), id="a name that no container has")]
)
def test_what_no_port_is_allowed_by(ports: tuple[PolicyPort, ...]) -> None:
    """The rule allows nothing; the class chain denies."""
    assert chain(allow(rule(own("web"), ports=ports))).chain.rules == (Rule(Goto(DENY)),)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("direction", "side"), [("ingress", "src"), ("egress", "dst")])
def test_peers(direction: Direction, side: str, family: Family) -> None:
    """Few plain prefixes are addresses in rules, more are a set, as is one with a hole; few queries have a set each, more have one."""
    base = "10.{}.0.0/16" if family == 4 else "fd00:{}::/32"
    nets = [parse_network(base.format(number)) for number in range(2, 2 * (FEW + 2), 2)]
    blocks = [IPBlock(net) for net in nets]
    queries = [own(f"q{number}") for number in range(FEW + 1)]
    other = BLOCK_6 if family == 4 else BLOCK

    def rules(*peers: Peer) -> tuple[list[Rule], dict[str, Selection]]:
        made = chain(allow(rule(*peers, other)), direction=direction, family=family)
        return [one for one in made.chain.rules if one.target == RETURN], dict(made.selections)

    def direct(net_index: int) -> Rule:
        net = nets[net_index]
        return Rule(RETURN, source=net) if direction == "ingress" else Rule(RETURN, destination=net)

    def of_set(selection: Selection) -> tuple[Rule, dict[str, Selection]]:
        return Rule(RETURN, (in_set(selection, side, family=family),)), {set_name(selection, family): selection}

    assert rules(*blocks[:FEW]) == ([direct(index) for index in range(FEW)], {})
    in_one, noted = of_set(BlockSelection(prefixes(union(blocks, family), family)))
    assert rules(*blocks) == ([in_one], noted)
    hole = IPBlock(nets[0], (parse_network("10.2.3.0/24" if family == 4 else "fd00:2:3::/48"),))
    in_one, noted = of_set(BlockSelection(prefixes(union([hole], family), family)))
    assert rules(hole) == ([in_one], noted)
    each = [of_set(PodSelection((query,))) for query in queries[:FEW]]
    assert rules(*queries[:FEW]) == ([one for one, _ in each], {name: one for _, noted in each for name, one in noted.items()})
    in_one, noted = of_set(PodSelection(tuple(queries)))
    assert rules(*queries) == ([in_one], noted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ports_of_a_block(direction: Direction, family: Family) -> None:
    """A rule with its prefix allows only its ports, and only from there or to there."""
    block = BLOCK if family == 4 else BLOCK_6
    expected = Rule(RETURN, (Tcp(destination=(80, 80)),), protocol=TCP)
    expected = structs.replace(expected, **{"source" if direction == "ingress" else "destination": block.cidr})
    made = chain(allow(rule(block, ports=tcp(80))), direction=direction, family=family)
    assert made.chain.rules == (expected, Rule(Goto(DENY)))


@pytest.mark.parametrize("family", FAMILIES)
def test_named_ports_of_the_destination(family: Family) -> None:
    """An egress rule's name is a set of addresses and ports, of its queries and blocks, or of everyone's; and needs no port match."""
    name = NamedPort(UDP, "dns")
    block, other = (BLOCK, BLOCK_6) if family == 4 else (BLOCK_6, BLOCK)
    everyone = union([IPBlock(parse_network("0.0.0.0/0" if family == 4 else "::/0"))], family)
    for peers, selection in (
        ((own("web"), other), PortSelection(UDP, "dns", (own("web"),), ())),
        ((own("web"), block), PortSelection(UDP, "dns", (own("web"),), prefixes(union([block], family), family))),
        ((block,), PortSelection(UDP, "dns", (), prefixes(union([block], family), family))),
        ((), PortSelection(UDP, "dns", (), prefixes(everyone, family))),
    ):
        made = chain(allow(rule(*peers, ports=(name,))), direction="egress", family=family)
        assert made.chain.rules[:-1] == (Rule(RETURN, (in_set(selection, "dst", "dst", family=family),), protocol=UDP),)
        assert made.selections == {set_name(selection, family): selection}
    assert chain(allow(rule(other, ports=(name,))), direction="egress", family=family).chain.rules == (Rule(Goto(DENY)),)


def test_a_name_whose_ports_are_all_allowed_is_not_said() -> None:
    """Neither beside all of its protocol, nor where everyone has it; of another protocol, or of a part, it is."""
    name = NamedPort(TCP, "sql")

    def count(*rules: PolicyRule) -> int:
        return len(chain(allow(*rules), direction="egress").chain.rules) - 1

    assert count(rule(own("web"), ports=(name, NumberedPort(TCP, 0, 65535)))) == 1
    assert count(rule(own("web"), ports=(name, NumberedPort(UDP, 0, 65535)))) == 2
    assert count(rule(own("web"), ports=(name, NumberedPort(TCP, 1, 65535)))) == 2
    assert count(rule(own("web"), ports=(name,)), rule(ports=(name,))) == 1
    assert count(rule(own("web"), ports=(name,)), rule(ports=(NamedPort(UDP, "sql"),))) == 2
    assert count(rule(own("web"), ports=(name,)), rule(ports=(NamedPort(TCP, "http"),))) == 2


def test_what_everyone_may_use_is_taken_out_of_what_a_peer_may() -> None:
    """Port by port; and a peer that has nothing of its own left has no rule."""
    for_all = rule(ports=(NumberedPort(TCP, 10, 20), NumberedPort(UDP, 1, 1)))
    mine = rule(own("web"), ports=(NumberedPort(TCP, 5, 25), NumberedPort(SCTP, 1, 1)))
    found = chain(allow(for_all, mine)).chain.rules
    assert set(found) == {
        Rule(RETURN, (Tcp(destination=(10, 20)),), protocol=TCP),
        Rule(RETURN, (Udp(destination=(1, 1)),), protocol=UDP),
        Rule(RETURN, (Multiport(((5, 9), (21, 25))), WEB), protocol=TCP),
        Rule(RETURN, (Sctp(destination=(1, 1)), WEB), protocol=SCTP),
        Rule(Goto(DENY)),
    }
    assert len(chain(allow(for_all, rule(own("web"), ports=(NumberedPort(TCP, 12, 13),)))).chain.rules) == 3
    assert chain(allow(rule(), mine)).chain.rules == (Rule(RETURN), Rule(Goto(DENY)))


def test_cheap_rules_come_first() -> None:
    """Those without a set, then those with one, then those with ports in it; of each the shorter first. The last one denies."""
    sql = rule(own("db"), ports=(NamedPort(TCP, "sql"),))
    found = chain(allow(sql, rule(own("a"), ports=tcp(80)), rule(own("b")), rule(BLOCK, ports=tcp(5)), rule(BLOCK)), direction="egress")
    kinds = [[type(match).__name__ for match in one.matches] for one in found.chain.rules]
    assert kinds == [[], ["SetMatch"], ["Tcp", "SetMatch"], ["SetMatch"], []]
    assert found.chain.rules[-1] == Rule(Goto(DENY))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_name_of_a_chain(direction: Direction) -> None:
    """By direction, family and content: the same rules of other policies are the same chain, in any order."""
    web, api = allow(rule(own("web"))), allow(rule(own("api")), name="q")
    name = chain(web, api, direction=direction).chain.name
    assert name.startswith("NETPOL-E-" if direction == "egress" else "NETPOL-I-")
    assert len(name) == 28
    assert chain(allow(rule(own("api"), own("web"))), direction=direction).chain.name == name
    assert chain(api, web, direction=direction).chain == chain(web, api, direction=direction).chain
    assert chain(web, direction=direction).chain.name != name
    assert chain(direction=direction, family=4).chain.name != chain(direction=direction, family=6).chain.name


def test_the_names_that_ingress_rules_use() -> None:
    """Sorted, once each; egress rules' names belong to the destination and are not among them."""
    used = (NamedPort(UDP, "dns"), NumberedPort(TCP, 1, 1), NamedPort(TCP, "http"), NamedPort(TCP, "a"))
    ingress = Policy("ns", "p", app("x"), (rule(ports=used), rule(ports=used[:1]), rule(own("web"))), None)
    egress = Policy("ns", "q", app("x"), None, (rule(ports=(NamedPort(TCP, "sql"),)),))
    assert named_ports((ingress, egress)) == ((TCP, "a"), (TCP, "http"), (UDP, "dns"))
