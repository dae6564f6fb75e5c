"""Flows judged by the index in C, held against the judge that asks the interpreter of rules."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from netpol.kernel import judge as module
from netpol.kernel._native import ffi, lib
from netpol.kernel.judge import Index
from netpol.model import ICMP, ICMPV6, SCTP, TCP, UDP, Address, Family, Network, NumberedPort, Object, network
from netpol.rules.compile import NodeState, Settings
from netpol.rules.compile.skeleton import closed
from netpol.rules.cut import Judge
from netpol.rules.diff import diff
from netpol.rules.flows import EXPECTED, HAS_PORTS, IS_ICMP, PICKED_UP, SIZE, Entry, Tuple, ends, pack, unpack
from netpol.rules.replay import Replay
from netpol.rules.ruleset import (
    ACCEPT,
    DENY,
    DROP,
    EGRESS,
    INGRESS,
    NEW,
    RETURN,
    ROOT,
    Chain,
    Conntrack,
    Goto,
    Icmp,
    Jump,
    Multiport,
    Rule,
    Ruleset,
    SetDirection,
    SetMatch,
    Tcp,
    front_name,
)
from netpol.rules.sets import Set, SetKind, net_member, net_port_member
from tests import clusters
from tests.rules.test_laws import play, slow
from tests.rules.watched import Watched, own, peers, pod, policy

BIT = 0x10000000
A, B, C, OUT = (bytes((10, 0, 0, i)) for i in (1, 2, 3, 99))


Unknown = Literal["auto", "deny", "allow"]


class Both:
    """The two judges of one ruleset."""

    def __init__(
        self,
        index: Index,
        ruleset: Ruleset,
        pods: frozenset[Address],
        local: frozenset[Address] = frozenset(),
        ends: frozenset[Address] | None = None,
    ) -> None:
        self.index, self.slow = index, Judge(ruleset, pods, local)
        assert index.build(ruleset, pods, local, ends)

    def agree(self, entries: list[Entry]) -> list[Entry]:
        """They do, on these; those that the index asked about."""
        packed = pack(entries)
        sorting = self.index.sorting(BIT)
        area = ffi.from_buffer("struct np_ct_flow[]", bytearray(packed))
        half = len(entries) // 2
        sorting.take(area, half)
        sorting.take(area + half, len(entries) - half)
        assert sorting.judged == len(entries)
        expected, asked = self.slow.sort_out(packed, BIT), self.slow.sort_out(sorting.ask, BIT)
        assert parts(sorting.mark + asked.mark) == parts(expected.mark)
        assert parts(sorting.unmark + asked.unmark) == parts(expected.unmark)
        return list(unpack(sorting.ask))


def parts(packed: bytes) -> list[bytes]:
    return sorted(packed[i : i + SIZE] for i in range(0, len(packed), SIZE))


def entries(addresses: list[Address]) -> st.SearchStrategy[list[Entry]]:
    """Of any protocol, between these addresses of one family, as conntrack could have them."""
    ports = st.sampled_from((1, 80, 81, 443, 32767, 32768, 40000, 65535))

    @st.composite
    def one(draw: st.DrawFn) -> Entry:
        source = draw(st.sampled_from(addresses))
        destination = draw(st.sampled_from([address for address in addresses if len(address) == len(source)]))
        protocol = draw(st.sampled_from((TCP, TCP, UDP, SCTP, ICMP if len(source) == 4 else ICMPV6, 47)))
        mark, status = draw(st.sampled_from((0, 5, BIT, BIT | 5))), draw(st.sampled_from((0, 0, 0, 14, 14 | EXPECTED)))
        if protocol in (ICMP, ICMPV6):
            kind = draw(st.sampled_from((8 << 8, 128 << 8, 135 << 8)))
            return Entry(protocol, Tuple(source, destination, 7, kind), Tuple(destination, source, 7, 0), mark, status, 0, IS_ICMP)
        if protocol == 47:
            return Entry(protocol, Tuple(source, destination), Tuple(destination, source), mark, status, 0, 0)
        flags = HAS_PORTS | (PICKED_UP if protocol == TCP and draw(st.booleans()) else 0)
        client, server = draw(ports), draw(ports)
        service = draw(st.sampled_from((server, 8080)))  # behind DNAT
        ends = Tuple(source, destination, client, service), Tuple(destination, source, server, client)
        return Entry(protocol, *ends, mark, status, 0, flags)

    return st.lists(one(), max_size=60)


@slow
@given(clusters.clusters(), st.sampled_from(("auto", "deny", "allow")), st.data())
def test_it_judges_as_the_interpreter_does(items: tuple[Object, ...], unknown: Unknown, data: st.DataObject) -> None:
    """Any cluster, any flows, before and after changes that the same index follows; only ICMPv6 and hairpins are asked about."""
    cluster = clusters.build(items)
    state = NodeState(cluster, clusters.NODE, Settings(unknown_pods=unknown, front_from=data.draw(st.sampled_from((0, 1, 2)))))
    index, found = Index(), Replay(state.wanted())
    state.applied()
    for _ in range(3):
        addresses = sorted({*clusters.V4, *clusters.V6, *clusters.OUTSIDE, *state.judged})
        # Whose addresses are pods' and the node's own is the caller's word: rules may be about others.
        pods = data.draw(st.sampled_from((state.judged, frozenset(addresses[::2]), state.judged | frozenset(addresses[:3]))))
        local = frozenset(data.draw(st.sampled_from(((), addresses[1:2], cluster.nodes[clusters.NODE].addresses))))
        flows = data.draw(entries(addresses))
        few = data.draw(st.sampled_from((None, ends(pack(flows)), ends(pack(flows)) | frozenset(addresses[::3]))))
        asked = Both(index, found.ruleset(), pods, local, few).agree(flows)
        assert all(entry.protocol == ICMPV6 or entry.original.source == entry.reply.source for entry in asked), asked
        for event in data.draw(st.lists(clusters.alterations(cluster), min_size=1, max_size=4)):
            state.follow(play(cluster, event))  # type: ignore[arg-type]  # a Change
        found.follow(diff(*state.pending()))
        state.applied()


GATE = Settings()
RULES = (pod("db", A), pod("api", B), policy("p", "db", peers(own("web"), ports=(NumberedPort(TCP, 80, 80),))), pod("web", C, node="there"))


def db() -> tuple[Ruleset, str]:
    """Rules for one isolated pod, and the name of its chain."""
    ruleset = Watched(*RULES).wanted()
    return ruleset, next(name for name in ruleset.chains[4] if name.startswith("NETPOL-I-"))


def edited(name: str, *rules: Rule, family: Family = 4) -> Callable[[Ruleset], Ruleset]:
    def edit(ruleset: Ruleset) -> Ruleset:
        chains = {**ruleset.chains[family], name: Chain(name, rules)}
        return replace(ruleset, chains={**ruleset.chains, family: chains})

    return edit


def call(source: Address, destination: Address, port: int = 80, protocol: int = TCP) -> Entry:
    return Entry(protocol, Tuple(source, destination, 40000, port), Tuple(destination, source, port, 40000))


def sides(*new: Rule) -> Callable[[Ruleset], Ruleset]:
    """Both sides have a tree, and these rules lead to them."""
    return lambda ruleset: edited(NEW, *new)(edited(EGRESS)(ruleset))


def test_a_flow_with_one_link_local_end_is_asked_about() -> None:
    """Rules of their own deny it, whichever end that is, and the index knows nothing of them."""
    here, there, near = (bytes.fromhex(f"fd00{n:028x}") for n in (1, 2, 3))
    near = b"\xfe\x80" + near[2:]
    ruleset = Watched(pod("db", A), pod("free", here)).wanted()
    isolated = Watched(pod("db", A), pod("free", here), policy("p", "db")).wanted()
    flows = [call(here, near), call(near, here), call(here, there)]
    assert Both(Index(), isolated, frozenset((A, here))).agree(flows) == flows[:2]
    slow = Judge(isolated, frozenset((A, here)), frozenset())
    assert slow.sort_out(pack(flows), BIT).mark == pack(flows[:2])
    assert Judge(ruleset, frozenset((A, here)), frozenset()).sort_out(pack(flows), BIT).mark == b""


def test_a_flow_between_link_local_addresses_is_asked_about() -> None:
    """Nobody knows whose pods' they are. One with the node itself passes, and so do others between addresses of no pod."""
    near, far, node = (bytes.fromhex(f"fe80{n:028x}") for n in (1, 2, 3))
    isolated = Watched(pod("db", A), policy("p", "db")).wanted()
    flows = [call(near, far), call(near, node), call(node, far), call(b"\xfd" + near[1:], b"\xfd" + far[1:])]
    assert Both(Index(), isolated, frozenset((A,)), frozenset((node,))).agree(flows) == flows[:1]
    slow = Judge(isolated, frozenset((A,)), frozenset((node,)))
    assert slow.sort_out(pack(flows), BIT).mark == pack(flows[:1])
    assert Judge(Watched(pod("db", A)).wanted(), frozenset((A,)), frozenset((node,))).sort_out(pack(flows), BIT).mark == b""


IS_NEW = Rule(Goto(NEW), (Conntrack(("RELATED", "ESTABLISHED"), invert=True),))
GO = Goto("NETPOL-I-x")
NET = network(A, 24)
LEAF = Rule(GO, source=network(A, 32), destination=network(A, 32), not_source=True)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(edited(ROOT), id="no gate"),
        pytest.param(edited(ROOT, Rule(Goto(NEW))), id="a gate for all"),
        pytest.param(edited(ROOT, Rule(Goto(NEW), (Conntrack(("NEW",)),))), id="a gate for some"),
        pytest.param(edited(ROOT, Rule(RETURN, protocol=UDP), IS_NEW), id="a way around the gate"),
        pytest.param(sides(Rule(Goto(INGRESS)), Rule(Jump(EGRESS))), id="the other order"),
        pytest.param(sides(Rule(Goto(EGRESS))), id="a side that does not come back"),
        pytest.param(sides(Rule(Jump(EGRESS)), Rule(Jump(INGRESS))), id="a side that comes back"),
        pytest.param(sides(Rule(Jump(EGRESS)), Rule(Jump(EGRESS))), id="a side twice"),
        pytest.param(sides(Rule(Goto(INGRESS)), Rule(Goto(INGRESS))), id="the other side twice"),
        pytest.param(sides(Rule(RETURN), Rule(Goto(INGRESS))), id="a way around"),
        pytest.param(sides(Rule(DROP, protocol=UDP), Rule(Goto(INGRESS))), id="a rule of its own"),
        pytest.param(sides(Rule(Goto(INGRESS), destination=network(B, 32))), id="a side for others"),
        pytest.param(sides(Rule(Goto(INGRESS), source=network(A, 8))), id="a side by the wrong end"),
        pytest.param(sides(Rule(Jump(EGRESS), destination=network(A, 8))), id="the other side by the wrong end"),
        pytest.param(edited(NEW, Rule(Jump(EGRESS))), id="a side that is not there"),
        pytest.param(edited(DENY), id="a deny that denies nothing"),
        pytest.param(edited(DENY, Rule(RETURN, protocol=UDP), Rule(DROP)), id="a deny that lets through"),
        pytest.param(edited(DENY, Rule(DROP, protocol=UDP)), id="a deny of some"),
        pytest.param(edited(DENY, Rule(DROP), Rule(ACCEPT)), id="a deny that accepts"),
        pytest.param(edited(DENY, Rule(RETURN, (Icmp(1),), protocol=58), Rule(DROP)), id="an exception of the other family"),
        pytest.param(edited(INGRESS, Rule(DROP)), id="not by address"),
        pytest.param(edited(INGRESS, Rule(GO, source=NET)), id="by the wrong end"),
        pytest.param(edited(INGRESS, Rule(GO, destination=network(A, 32))), id="a leaf without its hairpin"),
        pytest.param(edited(INGRESS, Rule(GO, source=NET, destination=NET, not_source=True)), id="a leaf of many"),
        pytest.param(edited(INGRESS, Rule(Jump("NETPOL-I-x"), destination=NET)), id="a jump"),
        pytest.param(edited(INGRESS, Rule(Goto("nowhere"), destination=NET)), id="to nowhere"),
        pytest.param(edited(INGRESS, Rule(GO, (Tcp(),), destination=NET, protocol=TCP)), id="by protocol"),
        pytest.param(edited(INGRESS, Rule(Goto(DENY), destination=NET), LEAF), id="a leaf behind the range"),
        pytest.param(edited(INGRESS, Rule(Goto(DENY), destination=network(A, 8))), id="a range for which nobody comes here"),
        pytest.param(edited(INGRESS, LEAF, LEAF), id="two leaves of an address"),
        pytest.param(edited(INGRESS, Rule(Goto(INGRESS), destination=NET)), id="in a circle"),
        pytest.param(edited(INGRESS, replace(LEAF, target=Goto(DENY))), id="a leaf that only denies"),
        pytest.param(lambda found: replace(found, sets={}), id="no sets"),
        pytest.param(lambda found: replace(found, chains={}), id="no chains"),
        pytest.param(
            lambda found: replace(found, sets={name: one.with_members(frozenset({b"short"})) for name, one in found.sets.items()}),
            id="members of another form",
        ),
    ],
)
def test_rules_of_another_form(edit: Callable[[Ruleset], Ruleset]) -> None:
    """There is no index of them; of what comes after them there is one again."""
    ruleset, _ = db()
    index = Index()
    assert not index.build(edit(ruleset), (A,), ())
    assert index.build(ruleset, (A,), ())


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(edited(NEW), id="no side"),
        pytest.param(sides(Rule(Jump(EGRESS))), id="one side"),
        pytest.param(sides(Rule(Goto(INGRESS))), id="the other side"),
        pytest.param(sides(Rule(Jump(EGRESS)), Rule(Goto(INGRESS), destination=network(A, 30))), id="both"),
        pytest.param(edited(ROOT, IS_NEW), id="nothing for known connections"),
    ],
)
def test_a_side_may_be_left_out(edit: Callable[[Ruleset], Ruleset]) -> None:
    """Where nobody is isolated: what only the other tree denies passes."""
    both = Both(Index(), edit(db()[0]), frozenset({A, B}))
    assert both.agree([call(source, A, port) for source in (B, C, OUT) for port in (80, 81)]) == []
    assert both.agree([call(A, destination, port) for destination in (B, OUT) for port in (80, 81)]) == []


ANY = SetMatch("s", ("src",))


@pytest.mark.parametrize(
    ("rules", "asks"),
    [
        pytest.param((Rule(Goto(DENY)),), False, id="nothing"),
        pytest.param((Rule(RETURN), Rule(Goto(DENY))), False, id="everything"),
        pytest.param((Rule(RETURN, protocol=UDP), Rule(Goto(DENY))), False, id="a protocol"),
        pytest.param((Rule(RETURN, (Tcp(destination=(80, 81)),), protocol=TCP), Rule(Goto(DENY))), False, id="a range of ports"),
        pytest.param((Rule(RETURN, (Multiport(((1, 2), (80, 80))),), protocol=TCP), Rule(Goto(DENY))), False, id="several ports"),
        pytest.param((Rule(RETURN, source=network(C, 30)), Rule(Goto(DENY))), False, id="a network"),
        pytest.param((Rule(RETURN, destination=network(B, 30)), Rule(Goto(DENY))), False, id="the other end's network"),
        pytest.param((Rule(RETURN, (ANY,)), Rule(Goto(DENY))), False, id="a set"),
        pytest.param((Rule(RETURN, (replace(ANY, directions=("dst",)), ANY)), Rule(Goto(DENY))), False, id="two sets"),
        pytest.param((Rule(RETURN, (ANY, ANY, ANY)), Rule(Goto(DENY))), True, id="three sets"),
        pytest.param((Rule(RETURN, (replace(ANY, invert=True),)), Rule(Goto(DENY))), True, id="not in a set"),
        pytest.param((Rule(RETURN, source=network(C, 30), not_source=True), Rule(Goto(DENY))), True, id="not a network"),
        pytest.param((Rule(RETURN, source=NET, destination=NET), Rule(Goto(DENY))), True, id="two networks"),
        pytest.param((Rule(RETURN, (Tcp(source=(1, 2)),), protocol=TCP), Rule(Goto(DENY))), True, id="a source port"),
        pytest.param((Rule(RETURN, (Multiport(((80, 80),), invert=True),), protocol=TCP), Rule(Goto(DENY))), True, id="not a port"),
        pytest.param((Rule(RETURN, (Multiport(((80, 80),), "sports"),), protocol=TCP), Rule(Goto(DENY))), True, id="source ports"),
        pytest.param((Rule(RETURN, (Icmp(8),), protocol=ICMP), Rule(Goto(DENY))), True, id="a type of ICMP"),
        pytest.param((Rule(DROP, protocol=UDP), Rule(RETURN), Rule(Goto(DENY))), True, id="another target"),
        pytest.param((Rule(RETURN),), True, id="another end"),
        pytest.param((), True, id="empty"),
    ],
)
def test_what_a_class_may_ask_for(rules: tuple[Rule, ...], asks: bool) -> None:
    """Each form by itself, held against the interpreter; of others every flow of the pod is asked about, and no other."""
    ruleset, name = db()
    ruleset = edited(name, *rules)(replace(ruleset, sets={**ruleset.sets, "s": Set("s", "hash:ip", 4, frozenset({A, C}))}))
    both = Both(Index(), ruleset, frozenset({A, B}))
    calls = [call(source, A, port, protocol) for source in (B, C, OUT) for port in (80, 81, 82) for protocol in (TCP, UDP)]
    assert len(both.agree(calls)) == (len(calls) if asks else 0)
    assert both.agree([call(A, B), call(OUT, B), call(C, OUT)]) == []


NETWORKS = st.tuples(st.builds(network, st.sampled_from((A, B, C, OUT, bytes((192, 0, 2, 1)))), st.integers(1, 32)), st.booleans())


@settings(deadline=None)
@given(st.sets(NETWORKS, max_size=12), st.sampled_from(("src", "dst")), st.booleans())
def test_networks_by_the_longest(nets: set[tuple[Network, bool]], direction: SetDirection, ports: bool) -> None:
    """Matches and nomatches of any lengths, with ports and without, say what the interpreter finds."""
    kind: SetKind = "hash:net,port" if ports else "hash:net"
    members = {net_port_member(net, TCP, 80, not_) if ports else net_member(net, not_) for net, not_ in nets}
    unique = {member[:5] + member[6:]: member for member in sorted(members)}
    match = SetMatch("s", (direction, "dst") if ports else (direction,))
    ruleset, name = db()
    ruleset = replace(ruleset, sets={**ruleset.sets, "s": Set("s", kind, 4, frozenset(unique.values()))})
    both = Both(Index(), edited(name, Rule(RETURN, (match,)), Rule(Goto(DENY)))(ruleset), frozenset({A}))
    calls = [
        call(source, A, port, protocol) for source in (B, C, OUT, bytes((192, 0, 2, 9))) for port in (80, 81) for protocol in (TCP, UDP)
    ]
    portless = [Entry(47, Tuple(source, A), Tuple(A, source), flags=0) for source in (B, C, OUT)]
    assert both.agree(calls + portless) == []


def test_a_set_of_the_other_family_has_nobody() -> None:
    """As the kernel has it: an IPv4 packet is in no set of IPv6."""
    ruleset, name = db()
    ruleset = replace(ruleset, sets={**ruleset.sets, "s": Set("s", "hash:ip", 6, frozenset({B + bytes(12), bytes(16)}))})
    both = Both(Index(), edited(name, Rule(RETURN, (ANY,)), Rule(Goto(DENY)))(ruleset), frozenset({A}))
    assert both.agree([call(source, A) for source in (B, C, OUT)]) == []


BASE_RULE = {"port_count": 2, "set_count": 1, "sets": [0, 0], "net_side": 2, "net_length": 32}
BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole": ({}, {}),
    "a set that is not there": ({"sets": [1, 0]}, {}),
    "too many sets": ({"set_count": 3}, {}),
    "half a range of ports": ({"port_count": 1}, {}),
    "more ports than there are": ({"port_count": 4}, {}),
    "ports behind the end": ({"first_port": 2}, {}),
    "no such side": ({"net_side": 3}, {}),
    "no such length": ({"net_length": 129}, {}),
    "more rules than there are": ({}, {"classes": [(0, 2)]}),
    "rules behind the end": ({}, {"classes": [(1, 1)]}),
    "no such class": ({}, {"ends": [(bytes(16), [4, 0], 4, 1)]}),
    "no such class of the other side": ({}, {"ends": [(bytes(16), [0, 4], 4, 1)]}),
    "no such length of a range": ({}, {"ranges": [(bytes(16), 129, 4, 0)]}),
    "no room": ({}, {"slots": 1}),
    "slots that are no power of two": ({}, {"slots": 3}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_points_into_its_arrays(case: str) -> None:
    """What would be read outside of them is refused before it is used."""
    rule, other = BROKEN[case]
    arrays = {
        "sets": ffi.new("struct np_judge_set[]", 1),
        "rules": ffi.new("struct np_judge_rule[]", [{**BASE_RULE, **rule}]),
        "ports": ffi.new("uint16_t[]", [1, 2]),
        "classes": ffi.new("struct np_judge_class[]", other.get("classes", [(0, 1)])),
        "ends": ffi.new("struct np_judge_end[]", other.get("ends", [(bytes(16), [3, 3], 4, 1)])),
        "ranges": ffi.new("struct np_judge_range[]", other.get("ranges", [(bytes(16), 128, 4, 0)])),
        "slots": ffi.new("uint32_t[]", other.get("slots", 2)),
    }
    counts = {
        "set_count": 1,
        "rule_count": 1,
        "port_count": 2,
        "class_count": 1,
        "end_count": 1,
        "range_count": 1,
        "slot_count": len(arrays["slots"]),
    }
    native = ffi.new("struct np_judge *", {**arrays, **counts})
    assert (lib.np_judge_index(native) == 0) == (case == "whole")
    if case == "whole":
        assert lib.np_judge_flow(native, ffi.new("struct np_ct_flow *")) == lib.NP_JUDGE_ASK  # of no family


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        pytest.param({}, True, id="whole"),
        pytest.param({"slot_count": 1}, False, id="no room"),
        pytest.param({"slot_count": 3}, False, id="no power of two"),
        pytest.param({"width": 8}, False, id="no such family"),
        pytest.param({"record": 5}, False, id="another record"),
        pytest.param({"has_port": 1}, False, id="a port"),
        pytest.param({"members": ffi.new("uint8_t[]", bytes((10, 0, 0, 1, 33, 0)))}, False, id="no such length"),
    ],
)
def test_a_set_is_what_it_says(change: dict[str, Any], fine: bool) -> None:
    """Sizes that do not fit, and lengths that cannot be, are refused."""
    members, slots = ffi.new("uint8_t[]", bytes((10, 0, 0, 0, 24, 0))), ffi.new("uint32_t[]", 4)
    known = {"members": members, "count": 1, "slots": slots, "slot_count": 4, "width": 4, "record": 6, "is_net": 1}
    assert (lib.np_judge_index_set(ffi.new("struct np_judge_set *", {**known, **change})) == 0) == fine


@pytest.mark.parametrize("client", [1, 32767, 32768, 65535])
@pytest.mark.parametrize("server", [80, 32767, 32768, 65535])
def test_connections_that_were_met_in_their_middle(client: int, server: int) -> None:
    """Whoever has the ephemeral port is the client; the pod may call and not be called."""
    ruleset, _ = db()
    both = Both(Index(), ruleset, frozenset({A}))
    for source, destination in ((OUT, A), (A, OUT)):
        ends = Tuple(source, destination, client, server), Tuple(destination, source, server, client)
        assert both.agree([Entry(TCP, *ends, flags=HAS_PORTS | flag) for flag in (0, PICKED_UP)]) == []


def test_a_node_that_knows_nothing_yet() -> None:
    """The ranges of `--boot=closed`: from and to them everything is denied, the pods' own included."""
    ruleset = closed(GATE, (network(A, 24),))
    both = Both(Index(), ruleset, frozenset({A, OUT}))
    assert both.agree([call(A, B), call(B, bytes((192, 0, 2, 1))), call(OUT, A), call(bytes((192, 0, 2, 1)), A)]) == []


def test_a_family_that_is_not_hooked_denies_nothing() -> None:
    """Rules that no packet meets: whoever has the bit loses it."""
    ruleset, _ = db()
    both = Both(Index(), replace(ruleset, hooked=frozenset((6,))), frozenset({A}))
    assert both.agree([replace(call(OUT, A), mark=BIT), call(OUT, A)]) == []


def test_a_sorting_outlives_its_index() -> None:
    """Whoever goes on judging by it has the rules that there were, also when the index was built again or is gone."""
    index, (ruleset, _) = Index(), db()
    assert index.build(ruleset, frozenset({A}), frozenset())
    pointed = [weakref.ref(found) for found in (*index._parts.values(), index._alive[1]) if isinstance(found, ffi.CData)]
    sorting = index.sorting(BIT)
    assert index.build(closed(GATE, (network(A, 24),)), frozenset({A, OUT}), frozenset())
    del index
    gc.collect()
    assert None not in [found() for found in pointed]
    packed = pack([call(OUT, A), call(C, A)])
    sorting.take(ffi.from_buffer("struct np_ct_flow[]", bytearray(packed)), 2)
    assert parts(sorting.mark) == parts(pack([call(OUT, A)]))


def test_what_is_taken_apart_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where only sets changed; of a pod that is isolated among 60 its class, and the chains of the tree on the way to it."""
    taken: list[str] = []

    def counted(name: str, made: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            taken.append(name)
            return made(*arguments)

        return call

    for name in ("_branch", "_allowed"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(Index, "_take_apart", counted("_take_apart", Index._take_apart))
    pods = [pod(f"db{n}", bytes((10, 0, 0, n)), label="lone" if n == 7 else "") for n in range(4, 64)]
    watched = Watched(*pods, policy("p", "db", peers(own("web"), ports=(NumberedPort(TCP, 80, 80),))), pod("web", C, node="there"))
    index, found = Index(), Replay(watched.wanted())
    watched.state.applied()

    def follow(*events: Object) -> list[str]:
        taken.clear()
        for event in events:
            watched.put(event)
        found.follow(diff(*watched.state.pending()))
        watched.state.applied()
        assert index.build(found.ruleset(), watched.state.judged, frozenset())
        return sorted(taken)

    assert follow().count("_branch") >= 20
    assert follow(pod("web2", bytes((10, 1, 0, 1)), node="there")) == []
    again = follow(policy("one", "lone"))
    assert (again.count("_allowed"), again.count("_take_apart")) == (1, 1)
    assert 1 <= again.count("_branch") <= 7
    assert follow() == []
    some, more = frozenset(pods[0].addresses), frozenset(pods[0].addresses + pods[1].addresses)
    watched.put(policy("two", "lone", peers(own("web"))))
    found.follow(diff(*watched.state.pending()))
    times = []
    for only in (some, more, some, None, some):
        taken.clear()
        assert index.build(found.ruleset(), watched.state.judged, frozenset(), only)
        times.append(taken.count("_take_apart"))
    # Whose ends were not among those of before are looked at, and all of them once.
    assert times == [1, 1, 0, 1, 0]


@pytest.mark.parametrize("other", [False, True])
def test_a_pod_that_is_not_in_the_set_in_front_is_not_judged(other: bool) -> None:
    """The set says who is looked up, and its change alone is seen; one that is asked otherwise, or is not there, is another form."""
    ruleset = Watched(*RULES, settings=Settings(front_from=1)).wanted()
    name, packets = front_name(4, "ingress"), [Entry(TCP, Tuple(C, A, 40000, 81), Tuple(A, C, 81, 40000), 0, 0, 0, HAS_PORTS)]
    index = Index()
    assert not Both(index, ruleset, frozenset((A, B))).agree(packets)
    assert index.sorting(BIT).mark == b""
    for members, denied in ((frozenset((A,)), True), (frozenset((B,)), False), (frozenset((A, B)), True)):
        sets = {**ruleset.sets, name: ruleset.sets[name].with_members(members)}
        both = Both(index, replace(ruleset, sets=sets), frozenset((A, B)))
        both.agree(packets)
        assert bool(both.slow.sort_out(pack(packets), BIT).mark) == denied
    if other:
        assert not index.build(replace(ruleset, sets={}), frozenset((A, B)), frozenset())
    else:
        new = ruleset.chains[4][NEW].rules
        inverted = tuple(replace(rule, matches=(SetMatch(name, ("dst",), invert=True),)) for rule in new)
        chains = {**ruleset.chains, 4: {**ruleset.chains[4], NEW: Chain(NEW, inverted)}}
        assert not index.build(replace(ruleset, chains=chains), frozenset((A, B)), frozenset())
