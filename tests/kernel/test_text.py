"""The text of rules and sets, held against the tools whose language it is: they load it, and print the same again."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from netpol.model import FAMILIES, Network, Object, parse_network
from netpol.rules.compile import Settings, compiled
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    RETURN,
    Addrtype,
    Chain,
    Connmark,
    Conntrack,
    Continue,
    Hashlimit,
    Icmp,
    Match,
    Multiport,
    Nflog,
    Reject,
    Rule,
    Ruleset,
    Sctp,
    SetMatch,
    Target,
    Tcp,
    Udp,
)
from netpol.rules.sets import Set, net_member, net_port_member, port_member
from netpol.rules.text import ipset_save, iptables_save, rule_text
from tests import clusters
from tests.referees import run

TOOLS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.usefixtures("netns")
@settings(max_examples=10, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(clusters.clusters())
def test_the_tools_load_what_we_print_and_print_it_again(items: tuple[Object, ...]) -> None:
    """`ipset restore` and `iptables-restore` take a random node's text; their own `save` gives the same lines."""
    ruleset = compiled(clusters.build(items), clusters.NODE, Settings(log_group=5))
    for tool in TOOLS.values():
        run(f"{tool}-restore", input="*mangle\nCOMMIT\n")
    run("ipset", "destroy")
    run("ipset", "restore", input=ipset_save(ruleset))
    saved = run("ipset", "save").splitlines()
    assert sorted(line for line in saved if line.startswith("add")) == sorted(
        line for line in ipset_save(ruleset).splitlines() if line.startswith("add")
    )
    assert len(saved) == len(ipset_save(ruleset).splitlines())
    for family, tool in TOOLS.items():
        text = iptables_save(ruleset, 4 if family == 4 else 6)
        run(f"{tool}-restore", input=text)
        assert lines(run(f"{tool}-save", "-t", "mangle")) == text.splitlines()


MATCHES: dict[str, tuple[int, Match]] = {
    "conntrack": (0, Conntrack(("INVALID", "NEW", "UNTRACKED", "SNAT", "DNAT"), invert=True)),
    "connmark": (0, Connmark(5)),
    "connmark-mask": (0, Connmark(4, 12, invert=True)),
    "tcp": (6, Tcp((1, 2), (80, 80), not_source=True)),
    "tcp-flags": (6, Tcp(flags_mask=0x17, flags_set=0x02, not_flags=True)),
    "tcp-none": (6, Tcp(flags_mask=0x3F, option=5, not_option=True)),
    "udp": (17, Udp(destination=(53, 54), not_destination=True)),
    "sctp": (132, Sctp(destination=(7, 9))),
    "sctp-both": (132, Sctp((7, 9), (8, 8), not_source=True)),
    "multiport": (6, Multiport(((1, 1), (5, 9)))),
    "multiport-sources": (17, Multiport(((1, 1), (2, 2)), "sports", invert=True)),
    "multiport-both": (6, Multiport(((1, 3),), "ports")),
    "set": (0, SetMatch("NETPOL4-a", ("src",), invert=True)),
    "set-ports": (0, SetMatch("NETPOL4-b", ("src", "dst"))),
    "addrtype": (0, Addrtype(source=1 << 2, destination=1 << 5, not_destination=True)),
    "addrtype-limit": (0, Addrtype(source=1 << 1, limit_in=True)),
    "hashlimit": (0, Hashlimit("x", 500_000, 7, ("dstport", "srcip"), above=True, size=64, maximum=100, expire=5000, source_length=24)),
    "hashlimit-minute": (0, Hashlimit("y", 6_000_000, 5, ("srcip",), gc_interval=200, expire=60000)),
    "icmp": (1, Icmp(8)),
    "icmp-code": (1, Icmp(3, (4, 4), invert=True)),
}
TARGETS: dict[str, Target] = {
    "accept": ACCEPT,
    "drop": DROP,
    "return": RETURN,
    "none": Continue(),
    "reject": Reject("icmp-admin-prohibited"),
    "nflog": Nflog(3, "x", size=60, threshold=4),
}


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize("name", MATCHES)
def test_each_match_reads_as_iptables_prints_it(name: str) -> None:
    """One rule with the match, appended by the real tool from our text, comes back as the same text."""
    protocol, match = MATCHES[name]
    run("ipset", "create", "NETPOL4-a", "hash:ip")
    run("ipset", "create", "NETPOL4-b", "hash:ip,port")
    there_and_back(Rule(DROP, (match,), protocol=protocol))


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize("name", TARGETS)
def test_each_target_reads_as_iptables_prints_it(name: str) -> None:
    """One rule with the target, appended by the real tool from our text, comes back as the same text."""
    there_and_back(Rule(TARGETS[name], source=parse_network("10.0.0.0/8"), in_interface="eth+", not_in_interface=True))


@pytest.mark.usefixtures("netns")
def test_what_an_entry_itself_says_reads_as_iptables_prints_it() -> None:
    """Addresses, interfaces, protocol, fragments, each inverted."""
    net = parse_network("10.1.0.0/16")
    there_and_back(Rule(DROP, (), net, net, 253, "", "eth1", not_source=True, not_out_interface=True, not_protocol=True))
    there_and_back(Rule(DROP, (), None, net, 0, "lo", "", not_destination=True, fragment=True, not_fragment=True))


def there_and_back(rule: Rule) -> None:
    text = f"-A FORWARD {rule_text(rule, 4)}".rstrip()
    run("iptables-legacy-restore", input=f"*filter\n{text}\nCOMMIT\n")
    assert [line for line in run("iptables-legacy-save", "-t", "filter").splitlines() if line.startswith("-A")] == [text]


@pytest.mark.usefixtures("netns")
def test_sets_of_every_kind_read_as_ipset_prints_them() -> None:
    """All four kinds in both families, with nomatch, loaded by the real tool and printed again."""
    v4, v6 = Network(b"\x0a\x00\x00\x00", 24), Network(b"\xfd" + bytes(15), 64)
    sets = {}
    for net in (v4, v6):
        family = net.family
        content = {
            "hash:ip": {net.address[:-1] + b"\x01"},
            "hash:net": {net_member(net), net_member(Network(net.address, net.length + 1), nomatch=True)},
            "hash:ip,port": {port_member(net.address[:-1] + b"\x07", 132, 80), port_member(net.address[:-1] + b"\x07", 17, 53)},
            "hash:net,port": {net_port_member(net, 6, 443), net_port_member(Network(net.address, net.length + 1), 6, 443, nomatch=True)},
        }
        for kind, members in content.items():
            name = f"NETPOL{family}-{kind.replace(':', '').replace(',', '')}"
            sets[name] = Set(name, kind, family, frozenset(members))  # type: ignore[arg-type]  # one of the four
    ruleset = Ruleset({family: {"NETPOL": Chain("NETPOL", ())} for family in FAMILIES}, sets)
    run("ipset", "restore", input=ipset_save(ruleset))
    added = [line for line in run("ipset", "save").splitlines() if line.startswith("add")]
    assert sorted(added) == sorted(line for line in ipset_save(ruleset).splitlines() if line.startswith("add"))
    assert len(added) == 14
