"""What is in force, told from the steps; and whose flows may be judged otherwise after a batch."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.model import Address, Family, Node, Object, Pod, network
from netpol.rules.compile import NodeState, Settings
from netpol.rules.cut import Judge
from netpol.rules.diff import diff
from netpol.rules.flows import Entry, Tuple
from netpol.rules.interpret import Packet
from netpol.rules.replay import LATER, Replay, opens, touched
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, ReplaceTable, Ruleset, ShrinkSet, Step, front_name
from netpol.rules.sets import Set, SetKind, net_member
from tests import clusters
from tests.rules.test_laws import packets, play, slow
from tests.rules.watched import Watched, own, peers, pod, policy

A, B, C = (bytes((10, 0, 0, i)) for i in (1, 2, 3))


@slow
@given(clusters.clusters(), st.sampled_from(("auto", "deny", "allow")), st.data())
def test_steps_replayed_and_flows_judged_otherwise(items: tuple[Object, ...], unknown: str, data: st.DataObject) -> None:
    """After any batches the replayed ruleset is the wanted one, and every flow whose verdict changed has an end that was touched; steps
    that open deny nothing that was let through."""
    cluster = clusters.build(items)
    state = NodeState(cluster, clusters.NODE, Settings(unknown_pods=unknown))  # type: ignore[arg-type]  # drawn from its three values
    found = Replay(state.wanted())
    state.applied()
    for _ in range(3):
        before = Judge(found.ruleset(), state.judged)
        asked = packets(cluster)
        for event in data.draw(st.lists(clusters.alterations(cluster), min_size=1, max_size=4)):
            state.follow(play(cluster, event))  # type: ignore[arg-type]  # a Change
        steps = diff(*state.pending())
        found.follow(steps)
        moved, members = state.moved(), touched(steps)
        state.applied()
        assert found.ruleset() == state.wanted()
        if moved is not None and members is not None:
            after = Judge(found.ruleset(), state.judged)
            for packet in {*asked, *packets(cluster)}:
                if denied(before, packet) != denied(after, packet):
                    assert denied(before, packet) or not opens(steps), packet
                    assert not (moved | members).isdisjoint((packet.source, packet.destination)), packet


def denied(judge: Judge, packet: Packet) -> bool:
    port = packet.destination_port or 0
    sides = Tuple(packet.source, packet.destination, 40000, port), Tuple(packet.destination, packet.source, port, 40000)
    return judge.denied(Entry(packet.protocol, *sides))


def nets(*members: bytes) -> Set:
    return Set("s", "hash:net", 4, frozenset(members))


def grow(*members: bytes, kind: SetKind = "hash:net", family: Family = 4) -> GrowSet:
    return GrowSet("s", kind, family, frozenset(members))


def shrink(*members: bytes) -> ShrinkSet:
    return ShrinkSet("s", "hash:net", 4, frozenset(members))


IN, OUT, OTHER = net_member(network(A, 32)), net_member(network(A, 32), nomatch=True), net_member(network(B, 24))


@pytest.mark.parametrize(
    ("steps", "members"),
    [
        pytest.param((grow(OTHER),), {IN, OTHER}, id="grown"),
        pytest.param((grow(OUT),), {OUT}, id="a flag changes in place"),
        pytest.param((grow(OUT), shrink(IN)), {OUT}, id="what is not there is not taken away"),
        pytest.param((shrink(IN), grow(OTHER)), {OTHER}, id="shrunk and grown"),
        pytest.param((grow(OTHER), shrink(OTHER), grow(OTHER)), {IN, OTHER}, id="the order counts"),
        pytest.param((grow(OTHER), DestroySet("s"), CreateSet(nets(OUT))), {OUT}, id="destroyed and made anew"),
        pytest.param((grow(OTHER), DestroySet("s")), None, id="destroyed"),
    ],
)
def test_what_becomes_of_a_set(steps: tuple[Step, ...], members: set[bytes] | None) -> None:
    """Beside the laws: each kind of step by itself, over a set of one member."""
    found = Replay(Ruleset({}, {"s": nets(IN)}))
    found.follow(steps)
    expected = {} if members is None else {"s": nets(*members)}
    assert found.ruleset() == Ruleset({}, expected)


def test_a_set_that_grows_for_long_is_put_together_before_anybody_asks() -> None:
    """As many steps as there are wait in no list, and those that only grow are one copy of the set."""
    copies: list[int] = []
    plus = Set.plus

    def counted(self: Set, members: AbstractSet[bytes]) -> Set:
        copies.append(len(members))
        return plus(self, members)

    ips = [bytes((10, 1, i >> 8, i & 255)) for i in range(3 * LATER)]
    found = Replay(Ruleset({}, {"s": Set("s", "hash:ip", 4, frozenset())}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Set, "plus", counted)
        for ip in ips:
            found.follow((grow(ip, kind="hash:ip"),))
        assert copies == [LATER + 1, LATER + 1]
        assert found.ruleset().sets["s"].members == frozenset(ips)
        assert copies == [LATER + 1, LATER + 1, LATER - 2]


def test_what_did_not_change_is_the_same_value() -> None:
    """No steps: the very ruleset; a step for one set: the very other set; a table's chains and hook are those of the last replace."""
    start = Ruleset({}, {"s": nets(IN), "t": nets(IN)._replace(name="t")}, frozenset(), "filter")
    found = Replay(start)
    found.follow(())
    assert found.ruleset() is start
    found.follow((grow(OTHER),))
    assert found.ruleset() is not start
    assert found.ruleset() is found.ruleset()
    assert found.ruleset().sets["t"] is start.sets["t"]
    found.follow((ReplaceTable(6, "filter", {}, True),))
    assert (found.ruleset().hooked, found.ruleset().table) == (frozenset({6}), "filter")
    found.follow((ReplaceTable(6, "filter", {}, False),))
    assert found.ruleset().hooked == frozenset()
    assert start.sets["s"] == nets(IN)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param((), False, id="nothing"),
        pytest.param((grow(A, kind="hash:ip"), grow(A + b"\x06\x00\x50", kind="hash:ip,port")), True, id="peers come"),
        pytest.param((grow(A, kind="hash:ip"), ShrinkSet("s", "hash:ip", 4, frozenset((B,)))), False, id="and one goes"),
        pytest.param((grow(OUT),), False, id="a range that may be left out"),
        pytest.param((GrowSet(front_name(4, "ingress"), "hash:ip", 4, frozenset((A,))),), False, id="a pod is isolated"),
        pytest.param((CreateSet(nets(IN)),), False, id="a set"),
        pytest.param((ReplaceTable(4, "mangle", {}, True),), False, id="a table"),
    ],
)
def test_what_can_only_open(steps: tuple[Step, ...], expected: bool) -> None:
    """Beside the law: each kind of step."""
    assert opens(steps) is expected


@pytest.mark.parametrize(
    ("steps", "addresses"),
    [
        pytest.param((), set(), id="nothing"),
        pytest.param((grow(A, kind="hash:ip"), shrink(OUT)), {A}, id="one address twice"),
        pytest.param((grow(A + b"\x06\x00\x50", B + b"\x06\x00\x50", kind="hash:ip,port"),), {A, B}, id="addresses and ports"),
        pytest.param((grow(bytes(16) + b"\x80\x00", family=6),), {bytes(16)}, id="v6"),
        pytest.param((grow(OTHER),), None, id="a range"),
        pytest.param((CreateSet(nets(IN)), DestroySet("s"), ReplaceTable(4, "mangle", {}, True)), set(), id="what the chains tell"),
    ],
)
def test_whose_membership_changed(steps: tuple[Step, ...], addresses: set[Address] | None) -> None:
    """The addresses of the members that live sets got and lost."""
    found = touched(steps)
    assert (found if found is None else set(found)) == addresses


def test_whose_rules_changed() -> None:
    """Only the pod that came, went or is selected otherwise; a peer touches nobody's rules; unknown addresses make it anybody's."""
    node = Node("here", pod_cidrs=(network(A, 24),))
    state = Watched(node, pod("db1", A), pod("web", B), policy("p", "db", peers(own("web"))))
    told = state.state
    assert told.moved() == frozenset()
    told.pending()
    assert told.moved() == frozenset({A})
    state.steps()
    changes: tuple[tuple[Callable[[], None], set[Address] | None], ...] = (
        (lambda: state.put(pod("web2", C)), set()),
        (lambda: state.put(policy("q", "web")), {B, C}),
        (lambda: state.put(policy("p", "db")), {A}),
        (lambda: state.put(pod("db1", A, label="free")), {A}),
        (lambda: state.put(pod("db2")), None),
        (lambda: state.drop(Pod, "db2"), None),
        (lambda: state.drop(Pod, "web"), {B}),
    )
    for change, expected in changes:
        change()
        told.pending()
        assert told.moved() == (expected if expected is None else frozenset(expected))
        state.steps()
    assert told.judged == frozenset({C})


def test_touched_looks_at_every_step() -> None:
    """A step that is no live set's does not end the look."""
    steps: list[Step] = [
        DestroySet("x"),
        GrowSet("y", "hash:ip", 4, frozenset((A,))),
        DestroySet("z"),
        ShrinkSet("y", "hash:ip", 4, frozenset((B,))),
    ]
    assert touched(steps) == frozenset((A, B))
