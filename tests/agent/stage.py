"""A small node for tests of the agent: two pods, a policy for one of them, and the real kernel of the test's own namespace."""

from __future__ import annotations

from netpol.agent.enforcer import Enforcer
from netpol.kernel.apply import Kernel
from netpol.model import (
    EVERYTHING,
    TCP,
    Namespace,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    parse_address,
)

WEB = Selector((Requirement("app", "In", ("web",)),))
OBJECTS: tuple[Object, ...] = (
    Namespace("x"),
    Pod("x", "a", (("app", "web"),), "n", (parse_address("10.0.0.1"), parse_address("fd00::1"))),
    Pod("x", "b", (), "n", (parse_address("10.0.0.2"), parse_address("fd00::2"))),
    Policy("x", "p", WEB, (PolicyRule((Query("x", EVERYTHING, EVERYTHING),), (NumberedPort(TCP, 80, 80),)),), None),
)


def enforced(kernel: Kernel, *more: Object) -> Enforcer:
    """An enforcer whose objects are in force."""
    made = Enforcer(kernel, "n")
    made.put(*OBJECTS, *more)
    made.enforce()
    return made


def the_set(enforcer: Enforcer) -> str:
    return next(name for name in sorted(enforcer.state.wanted().sets) if name.startswith("NETPOL4"))


def the_chain(enforcer: Enforcer) -> str:
    return next(name for name in enforcer.state.wanted().chains[4] if name.startswith("NETPOL-I-"))
