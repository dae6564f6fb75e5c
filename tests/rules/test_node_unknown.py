"""Addresses of this node's pod ranges that belong to no known pod, under each setting (SEMANTICS 29)."""

from __future__ import annotations

from typing import Literal

import pytest
from msgspec import structs

from netpol.model import Node, Object, Pod, Policy, parse_address, parse_network
from netpol.rules.compile import Settings
from tests.rules.watched import HERE, OUT, PODS, THERE, A, B, Watched, pod, policy

UNKNOWN = parse_address("10.0.0.77")
BOUND = pod("db")  # bound to this node, without an address yet
Wish = Literal["auto", "deny", "allow"]


def unknown_passes(wish: Wish, *objects: Object, cidrs: bool = True) -> bool:
    state = Watched(*objects, settings=Settings(unknown_pods=wish, pod_cidrs=(PODS,) if cidrs else ()))
    passes = {state.passes(UNKNOWN, OUT), state.passes(OUT, UNKNOWN)}
    assert state.passes(OUT, parse_address("10.0.1.77"))
    assert len(passes) == 1
    return passes.pop()


@pytest.mark.parametrize(
    ("wish", "objects", "passes"),
    [
        pytest.param("auto", (policy("p", "db"), BOUND), False, id="auto, a bound pod that a policy selects has no address"),
        pytest.param("auto", (BOUND, policy("p", "db")), False, id="auto, the policy comes after the pod"),
        pytest.param("auto", (policy("p", "web"), BOUND), True, id="auto, no policy selects it"),
        pytest.param("auto", (policy("p", "db"), pod("db", A)), True, id="auto, all have their addresses"),
        pytest.param("auto", (policy("p", "db"), pod("db", node=THERE)), True, id="auto, it is bound elsewhere"),
        pytest.param("auto", (policy("p", "db"), structs.replace(BOUND, finished=True)), True, id="auto, it has finished"),
        pytest.param("auto", (policy("p", "db"), structs.replace(BOUND, host_network=True)), True, id="auto, it will never have one"),
        pytest.param("deny", (policy("p", "web"),), False, id="deny, any policy"),
        pytest.param("deny", (BOUND,), True, id="deny, no policy"),
        pytest.param("allow", (policy("p", "db"), BOUND), True, id="allow"),
    ],
)
def test_29_when_unknown_addresses_are_denied(wish: Wish, objects: tuple[Object, ...], passes: bool) -> None:
    """In both directions, in the pod ranges only; never without such ranges, and as well with those of the Node object."""
    assert unknown_passes(wish, *objects) == passes
    assert unknown_passes(wish, *objects, cidrs=False)
    node = Node(HERE, (), (PODS,))
    assert unknown_passes(wish, *objects, node, cidrs=False) == passes
    assert unknown_passes(wish, *objects, Node(THERE, (), (PODS,)), cidrs=False)


def test_29_auto_follows_the_pod() -> None:
    """Denied while the pod has no address, and no longer when it has one, or is gone; known pods are never concerned."""
    state = Watched(policy("p", "db"), pod("web", B), settings=Settings(pod_cidrs=(PODS, parse_network("fd00::/64"))))
    seen = [state.passes(UNKNOWN, OUT)]
    for change in (BOUND, pod("db", A), BOUND):
        state.put(change)
        seen.append(state.passes(UNKNOWN, OUT))
        assert state.passes(B, OUT)
        assert state.passes(OUT, B)
    state.drop(Pod, "db")
    seen.append(state.passes(UNKNOWN, OUT))
    assert seen == [True, False, True, False, True]


def test_29_deny_follows_the_first_and_the_last_policy() -> None:
    """Though they select nobody here; and the Node object's ranges as they come and change."""
    state = Watched(settings=Settings(unknown_pods="deny"))
    state.put(policy("p", "nobody"))
    assert state.passes(UNKNOWN, OUT)
    state.put(Node(HERE, (), (PODS,)))
    assert not state.passes(UNKNOWN, OUT)
    state.put(policy("q", "nobody"))
    state.drop(Policy, "p")
    assert not state.passes(UNKNOWN, OUT)
    state.drop(Policy, "q")
    assert state.passes(UNKNOWN, OUT)
    state.put(policy("q", "nobody"))
    assert not state.passes(UNKNOWN, OUT)
    state.put(Node(HERE, (), (parse_network("10.9.0.0/24"),)))
    assert state.passes(UNKNOWN, OUT)


def test_29_known_free_pods_are_let_through_from_the_first_policy_on() -> None:
    """Under `deny` the first policy denies unknown addresses, though it selects nobody here: the pods that are known stay free."""
    state = Watched(pod("web", B), settings=Settings(unknown_pods="deny", pod_cidrs=(PODS,)))
    state.put(policy("p", "nobody"))
    assert [state.passes(address, OUT) for address in (UNKNOWN, B)] == [False, True]
    assert [state.passes(OUT, address) for address in (UNKNOWN, B)] == [False, True]
    state.drop(Policy, "p")
    assert [state.passes(address, OUT) for address in (UNKNOWN, B)] == [True, True]


def test_29_a_new_free_pod_is_let_through_when_it_is_known() -> None:
    """Under `deny` it pays its first second; an isolated one reaches itself."""
    state = Watched(policy("p", "db"), pod("db", A), settings=Settings(unknown_pods="deny", pod_cidrs=(PODS,)))
    assert not state.passes(UNKNOWN, OUT)
    state.put(pod("web", UNKNOWN))
    assert state.passes(UNKNOWN, OUT)
    assert state.passes(OUT, UNKNOWN)
    assert state.passes(A, A)
    assert state.passes(A, OUT)
    assert not state.passes(OUT, A)


def test_29_an_address_is_unknown_again_when_its_pod_is_gone() -> None:
    """Until then it is free, and is known to be, whichever node has the pod: not every network has a range for each node."""
    state = Watched(policy("p", "db"), pod("db", A), settings=Settings(unknown_pods="deny", pod_cidrs=(PODS,)))
    assert state.state.pending()[2] == state.state.judged == {A}
    for node in (HERE, THERE, HERE):
        state.put(pod("web", B, node=node))
        assert state.passes(OUT, B)
        assert state.passes(B, OUT)
        assert state.state.pending()[2] == {A}
        assert state.state.judged == {A, B}
        if node == THERE:
            continue
        state.drop(Pod, "web")
        assert not state.passes(OUT, B)
        assert state.state.judged == {A}


@pytest.mark.parametrize("wish", ["auto", "deny"])
def test_29_pods_of_other_nodes_are_known_from_the_first(wish: Wish) -> None:
    """Also where they came before anything was denied, and whatever the ranges are by then; one without an address of them is as ever."""
    elsewhere = parse_address("10.9.0.7")
    done = structs.replace(pod("done", parse_address("10.0.0.78"), node=THERE), finished=True)
    others = (pod("web", B, node=THERE), pod("far", elsewhere, node=THERE), done)
    state = Watched(policy("p", "db"), *others, Node(HERE, (), (PODS,)), settings=Settings(unknown_pods=wish))
    state.put(BOUND)
    for known in (B, elsewhere):
        assert state.passes(OUT, known)
    assert not state.passes(OUT, UNKNOWN)
    assert not state.passes(OUT, parse_address("10.0.0.78"))
    assert state.state.judged == {B}
    state.put(Node(HERE, (), (parse_network("10.9.0.0/24"),)))
    assert state.passes(OUT, elsewhere)
    assert not state.passes(OUT, parse_address("10.9.0.8"))
    assert state.state.judged == {elsewhere}
    # Somebody else of that node gets the address of one that is gone; and then nobody has it.
    state.drop(Pod, "far")
    state.put(pod("next", elsewhere, node=THERE))
    assert state.passes(OUT, elsewhere)
    state.drop(Pod, "next")
    assert not state.passes(OUT, elsewhere)


def test_29_a_free_pod_that_is_isolated_is_told_from_others() -> None:
    """By its labels, and by the policy that comes: it is known all the time."""
    state = Watched(policy("p", "db"), pod("db", A), pod("web", B), settings=Settings(unknown_pods="deny", pod_cidrs=(PODS,)))
    for label, isolated in (("web", {A}), ("db", {A, B}), ("web", {A})):
        state.put(pod("web", B, label=label))
        assert state.state.pending()[2] == isolated
        assert state.state.judged == {A, B}
