"""The chains that are always there, rule by rule, and the selections behind sets: their names, their members."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from netpol.model import EVERYONE, FAMILIES, TCP, UDP, Address, ContainerPort, Family, Namespace, Network, Pod, parse_address, parse_network
from netpol.policy.cluster import Cluster, Standing
from netpol.rules.compile.selections import (
    BlockSelection,
    PodSelection,
    PortSelection,
    Selection,
    content_hash,
    covers,
    empty_set,
    members_at,
    queries_of,
    set_name,
    whole_set,
)
from netpol.rules.compile.skeleton import Settings, closed, gate, skeleton
from netpol.rules.ruleset import (
    DENY,
    DROP,
    EGRESS,
    INGRESS,
    NEW,
    RETURN,
    ROOT,
    Chain,
    Connmark,
    Conntrack,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Nflog,
    Reject,
    Rule,
    Ruleset,
)
from netpol.rules.sets import Set, SetKind, net_member, port_member
from tests.rules.watched import own

BIT = 0x10000000
IS_NEW = Rule(Goto(NEW), (Conntrack(("RELATED", "ESTABLISHED"), invert=True),))
GATE = Chain(ROOT, (IS_NEW, Rule(Goto(DENY), (Connmark(BIT, BIT),))))
SOURCES, DESTINATIONS = parse_network("10.0.0.0/24"), parse_network("10.0.0.8/30")
LOCAL, MANY = parse_network("fe80::/10"), parse_network("ff00::/8")
LINK_LOCAL = (
    Rule(Goto(DENY), destination=LOCAL),
    Rule(Goto(DENY), source=LOCAL, destination=MANY, not_destination=True),
    Rule(Goto(DENY), (Icmp(134),), source=LOCAL, protocol=58),
)
DISCOVERY = (
    *(Rule(RETURN, (Icmp(number),), protocol=58) for number in (130, 131, 132, 133)),
    Rule(RETURN, (Icmp(134),), source=LOCAL, not_source=True, protocol=58),
    *(Rule(RETURN, (Icmp(number),), protocol=58) for number in (135, 136, 137, 143)),
)


@pytest.mark.parametrize(
    ("family", "isolated", "new", "deny"),
    [
        pytest.param(4, False, (), (Rule(DROP),), id="IPv4"),
        pytest.param(4, True, (), (Rule(DROP),), id="IPv4, isolated pods"),
        pytest.param(6, False, (), (*DISCOVERY, Rule(DROP)), id="IPv6"),
        pytest.param(6, True, LINK_LOCAL, (*DISCOVERY, Rule(DROP)), id="IPv6, isolated pods"),
    ],
)
def test_the_skeleton(family: Family, isolated: bool, new: tuple[Rule, ...], deny: tuple[Rule, ...]) -> None:
    """The gate; of new flows those to and from link-local addresses; what always passes, and the end."""
    assert skeleton(family, Settings(), isolated) == {ROOT: GATE, NEW: Chain(NEW, new), DENY: Chain(DENY, deny)}


@pytest.mark.parametrize(
    ("egress", "ingress", "new"),
    [
        pytest.param(SOURCES, None, (Rule(Jump(EGRESS), source=SOURCES),), id="sources"),
        pytest.param(None, DESTINATIONS, (Rule(Goto(INGRESS), destination=DESTINATIONS),), id="destinations"),
        pytest.param(
            SOURCES,
            DESTINATIONS,
            (Rule(Jump(EGRESS), source=SOURCES), Rule(Goto(INGRESS), destination=DESTINATIONS)),
            id="one, then the other",
        ),
        pytest.param(parse_network("0.0.0.0/0"), parse_network("0.0.0.0/0"), (Rule(Jump(EGRESS)), Rule(Goto(INGRESS))), id="everybody"),
    ],
)
def test_only_packets_that_may_concern_a_pod_are_looked_up(egress: Network | None, ingress: Network | None, new: tuple[Rule, ...]) -> None:
    """Each side that has isolated pods is entered by packets whose address of that side lies where those are."""
    assert skeleton(4, Settings(), True, egress, ingress)[NEW].rules == new


@pytest.mark.parametrize(("family", "width"), [(4, 32), (6, 128)])
def test_the_log_stands_before_the_drop(family: Family, width: int) -> None:
    """Ten a second for each pair of whole addresses, in a table of its family; the group that was asked for. Each packet meets one."""
    limit = Hashlimit(f"netpol-deny{family}", 100_000, 20, ("dstip", "srcip"), source_length=width, destination_length=width)
    known = "RELATED", "ESTABLISHED"
    rules = skeleton(family, Settings(log_group=0), False)[DENY].rules
    assert rules[-4:] == (
        Rule(Nflog(0, "netpol-cut", size=128), (Conntrack(known, direction="ORIGINAL"), limit)),
        Rule(Nflog(0, "netpol-cut-reply", size=128), (Conntrack(known, direction="REPLY"), limit)),
        Rule(Nflog(0, "netpol", size=128), (Conntrack(known, invert=True), limit)),
        Rule(DROP),
    )


@pytest.mark.parametrize(("family", "answer"), [(4, "icmp-admin-prohibited"), (6, "icmp6-adm-prohibited")])
def test_what_is_denied_can_be_answered(family: Family, answer: str) -> None:
    """TCP by a reset, all else by ICMP, but not what connection tracking does not know; behind the log and what always passes; in the
    filter table only."""
    wish = Settings(table="filter", deny="reject", log_group=3)
    rules = skeleton(family, wish, False)[DENY].rules
    before = skeleton(family, replace(wish, deny="drop"), False)[DENY].rules
    unknown = Rule(DROP, (Conntrack(("INVALID",)),))
    assert rules == (*before[:-1], unknown, Rule(Reject("tcp-reset"), protocol=TCP), Rule(Reject(answer)))
    with pytest.raises(ValueError, match=r"^the kernel takes REJECT in the filter table only$"):
        Settings(deny="reject")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_alone_lets_everything_begin(family: Family) -> None:
    """What is there with no policy: connections are tracked, cut flows are denied, and a new one meets no rule more."""
    settings = Settings(cut_bit=4)
    assert gate(family, settings) == skeleton(family, settings, False)
    assert gate(family, settings)[NEW].rules == ()


def test_the_cut_bit_is_a_setting() -> None:
    """It is matched with its own mask."""
    assert skeleton(4, Settings(cut_bit=4), False)[ROOT].rules == (IS_NEW, Rule(Goto(DENY), (Connmark(4, 4),)))


@pytest.mark.parametrize("settings", [Settings(), Settings(table="filter", cut_bit=4, log_group=5)])
def test_a_node_whose_state_is_not_known_is_closed(settings: Settings) -> None:
    """Both ways for its ranges, each in its family; pods of a family without a range have link-local addresses."""
    four, six = parse_network("10.0.0.0/24"), parse_network("fd00::/64")
    shut = closed(settings, (four,))
    assert shut == Ruleset(
        {
            4: {
                **skeleton(4, settings, True, four, four),
                EGRESS: Chain(EGRESS, (Rule(Goto(DENY), source=four),)),
                INGRESS: Chain(INGRESS, (Rule(Goto(DENY), destination=four),)),
            },
            6: skeleton(6, settings, True),
        },
        {},
        frozenset((4, 6)),
        settings.table,
    )
    both = closed(settings, (four, six))
    assert both.chains[4] == shut.chains[4]
    assert both.chains[6][NEW].rules[:3] == LINK_LOCAL
    assert both.chains[6][INGRESS].rules == (Rule(Goto(DENY), destination=six),)


# -- selections --------------------------------------------------------------------------------------------------------

NET, NET_6 = parse_network("10.0.0.0/24"), parse_network("fd00::/64")
PREFIXES = ((parse_network("10.0.0.0/24"), False), (parse_network("10.0.0.0/30"), True), (parse_network("10.0.0.1/32"), False))
A, B, C, A6 = (parse_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.9", "fd00::1"))
PORTS = (ContainerPort("sql", TCP, 3306), ContainerPort("sql", TCP, 3307), ContainerPort("sql", UDP, 1), ContainerPort("x", TCP, 2))
WEBS, BLOCK = PodSelection((own("web"), own("api"))), BlockSelection(PREFIXES)
SQL = PortSelection(TCP, "sql", (own("web"),), ())
SQL_INSIDE = PortSelection(TCP, "sql", (own("web"),), PREFIXES)
KINDS: tuple[tuple[Selection, SetKind], ...] = ((WEBS, "hash:ip"), (BLOCK, "hash:net"), (SQL, "hash:ip,port"))


def test_a_name_is_made_of_content_alone() -> None:
    """The same in every process and every version: another one would replace each set and each chain at the next start."""
    assert content_hash(("x", 1), 19) == "b7c80934aa3bd4d345a"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("selection", "kind"), KINDS)
def test_the_set_of_a_selection(selection: Selection, kind: SetKind, family: Family) -> None:
    """Its type follows what is selected; its name fits, and begins with its family's."""
    made = empty_set(selection, family)
    assert made == Set(set_name(selection, family), kind, family)
    assert len(made.name) == 31
    assert made.name.startswith(f"NETPOL{family}-")


def test_queries_that_must_be_known() -> None:
    """Those that are asked for; and everyone, where a block has named ports."""
    assert queries_of(WEBS) == (own("web"), own("api"))
    assert queries_of(BLOCK) == ()
    assert queries_of(SQL) == (own("web"),)
    assert queries_of(SQL_INSIDE) == (own("web"), EVERYONE)


@pytest.mark.parametrize(("address", "covered"), [(A, True), (B, False), (C, True), (parse_address("10.0.1.1"), False), (A6, False)])
def test_the_longest_prefix_decides(address: Address, covered: bool) -> None:
    """As in a hash:net set."""
    assert covers(PREFIXES, address) == covered


def standing(*queries: str, ports: tuple[ContainerPort, ...] = PORTS, everyone: bool = True) -> Standing:
    pod = Pod("ns", "p", (("app", queries[0] if queries else ""),), ports=ports)
    return Standing(pod, frozenset(own(name) for name in queries) | ({EVERYONE} if everyone else frozenset()))


MEMBERS = {port_member(A, TCP, 3306), port_member(A, TCP, 3307)}


@pytest.mark.parametrize(
    ("selection", "address", "stands", "expected"),
    [
        pytest.param(WEBS, A, None, set(), id="nobody has the address"),
        pytest.param(WEBS, A, standing("web"), {A}, id="one query selects it"),
        pytest.param(WEBS, A, standing("db"), set(), id="no query selects it"),
        pytest.param(BLOCK, A, standing("web"), set(), id="a block does not look at pods"),
        pytest.param(SQL, A, standing("web"), MEMBERS, id="its ports of that name and protocol"),
        pytest.param(SQL, A, standing("web", ports=PORTS[2:]), set(), id="it has no such port"),
        pytest.param(SQL, A, standing("db"), set(), id="no query selects it, ports"),
        pytest.param(SQL_INSIDE, A, standing("db"), MEMBERS, id="inside the block"),
        pytest.param(SQL_INSIDE, B, standing("db"), set(), id="outside of it"),
        pytest.param(SQL_INSIDE, A, standing("db", everyone=False), set(), id="inside, but of a namespace that is not known"),
    ],
)
def test_what_an_address_accounts_for(selection: Selection, address: Address, stands: Standing | None, expected: set[bytes]) -> None:
    """The members that come and go with it."""
    assert members_at(selection, address, stands) == expected


def test_all_members() -> None:
    """Of one family each; of pods once, however many queries select them; of a block with named ports every pod inside it."""
    cluster = Cluster()
    cluster.put(Namespace("ns"))
    for query in (own("web"), own("api"), EVERYONE):
        cluster.index.register(query)
    cluster.put(Pod("ns", "p", (("app", "web"),), addresses=(A, A6), ports=PORTS))
    cluster.put(Pod("ns", "q", (("app", "db"),), addresses=(C,), ports=PORTS[:1]))
    cluster.put(Pod("ns", "r", (("app", "api"),), addresses=(B,), ports=PORTS[2:]))
    assert whole_set(WEBS, 4, cluster).members == {A, B}
    assert whole_set(WEBS, 6, cluster).members == {A6}
    twice = whole_set(PodSelection((own("web"), EVERYONE)), 4, cluster)
    assert twice.members == {A, B, C}
    assert twice.entries == 3
    assert whole_set(BLOCK, 4, cluster).members == {net_member(net, nomatch) for net, nomatch in PREFIXES}
    assert whole_set(SQL, 4, cluster).members == MEMBERS
    assert whole_set(SQL, 6, cluster).members == {port_member(A6, TCP, 3306), port_member(A6, TCP, 3307)}
    assert whole_set(SQL_INSIDE, 4, cluster).members == {*MEMBERS, port_member(C, TCP, 3306)}
