"""A pod starts while others speak to it (SEMANTICS 29): from its binding on, not one packet that its policies deny ever arrives.

The agent hears of a pod three times: when it is bound to the node, when it has its address, and when it is gone. Senders run from
before the first: every packet is a flow of its own. What single connections meet is in tests/test_semantics_packets.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from netpol.agent.enforcer import Enforcer
from netpol.kernel.apply import Kernel
from netpol.lab import Host, Lab
from netpol.model import UDP, IPBlock, Namespace, Network, Node, NumberedPort, Pod, Policy, PolicyRule, network
from netpol.rules.compile import Settings
from tests.flows import wait_for
from tests.test_hitless_packets import ADDRESSES, ALWAYS, NEVER, OUTSIDE, PAIR, Traffic, running, selector

P, Q = ADDRESSES["p"], ADDRESSES["q"]
FREE = Pod("x", "p", (), "n", (P,))
STARTING = Pod("x", "q", (("app", "q"),), "n")
GUARD = Policy("x", "q", selector(app="q"), (PolicyRule((IPBlock(Network(OUTSIDE, 32)),), (NumberedPort(UDP, ALWAYS, ALWAYS),)),), None)
BASE = (Namespace("x"), Node("n", pod_cidrs=(network(P, 24),)), FREE, GUARD)


class Scene:
    """A node with a free pod that is known, a host that will be a pod, and who speaks to them."""

    def __init__(self, stack: ExitStack, wish: Settings) -> None:
        hosts = (Host("outside", (OUTSIDE,)), Host("p", (P,)), Host("q", (Q,)))
        self.lab = stack.enter_context(Lab(hosts))
        with self.lab.entered():
            self.enforcer = Enforcer(stack.enter_context(Kernel()), "n", wish)
        ends = {"free": ("outside", OUTSIDE, "p", ALWAYS), "allowed": ("outside", OUTSIDE, "q", ALWAYS)}
        ends |= {"denied": ("outside", OUTSIDE, "q", NEVER), "neighbour": ("p", P, "q", PAIR)}
        self.traffic = {name: Traffic(self.lab, *end) for name, end in ends.items()}
        for one in self.traffic.values():
            stack.callback(one.close)
        self.put(*BASE)

    def put(self, *items: Pod | Policy | Node | Namespace) -> None:
        self.enforcer.put(*items)
        with self.lab.entered():
            self.enforcer.enforce()

    def go_on(self) -> None:
        """Until each sender has sent some more."""
        before = {name: one.sent for name, one in self.traffic.items()}
        wait_for(lambda: all(one.sent > before[name] + 20 for name, one in self.traffic.items()))

    def arrived(self, name: str) -> int:
        return self.traffic[name].received


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("wish", [Settings(), Settings(unknown_pods="deny")], ids=["auto", "deny"])
def test_an_isolated_pod_starts(stack: ExitStack, wish: Settings) -> None:
    """While its address is unknown nothing arrives; then what its policy allows and nothing else. The free pod loses nothing."""
    scene = Scene(stack, wish)
    scene.put(STARTING)
    with running(list(scene.traffic.values())):
        scene.go_on()
        assert scene.arrived("allowed") == 0
        scene.put(replace(STARTING, addresses=(Q,)))
        scene.go_on()
        wait_for(lambda: scene.arrived("allowed") > 0)
        # Another pod of the policy starts and gets its address: all others are as they were.
        scene.put(replace(STARTING, name="r"))
        scene.go_on()
        scene.put(replace(STARTING, name="r", addresses=(ADDRESSES["r"],)))
        scene.go_on()
    lost = {name: one.sent - one.count() for name, one in scene.traffic.items()}
    assert lost["free"] == 0
    assert [scene.arrived(name) for name in ("denied", "neighbour")] == [0, 0]


def test_a_free_pod_starts_beside_an_isolated_one(stack: ExitStack) -> None:
    """Its address is unknown while the other has none: it is denied, opens as soon as it is known to be free, and stays open."""
    scene = Scene(stack, Settings())
    scene.put(STARTING)
    with running(list(scene.traffic.values())):
        scene.go_on()
        assert [scene.arrived(name) for name in ("allowed", "denied", "neighbour")] == [0, 0, 0]
        scene.put(Pod("x", "free", (), "n", (Q,)))
        for name in ("allowed", "denied", "neighbour"):
            wait_for(lambda name=name: scene.arrived(name) > 0)  # type: ignore[misc]  # bound at once
    assert scene.traffic["free"].sent == scene.traffic["free"].count()


def test_auto_disturbs_nobody_while_no_isolated_pod_starts(stack: ExitStack) -> None:
    """Free pods come, with and without an address, and isolated ones that have theirs: the unknown address loses not one packet."""
    scene = Scene(stack, Settings())
    with running(list(scene.traffic.values())):
        scene.go_on()
        for pod in (Pod("x", "a", (), "n"), Pod("x", "a", (), "n", (ADDRESSES["s"],)), replace(STARTING, addresses=(ADDRESSES["t"],))):
            scene.put(pod)
            scene.go_on()
    assert [one.sent - one.count() for one in scene.traffic.values()] == [0, 0, 0, 0]
