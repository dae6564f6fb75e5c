"""A cluster and the state of one node that follows it, and short ways to say what is in it: for the tests of that state."""

from __future__ import annotations

from netpol.model import (
    EVERYTHING,
    TCP,
    Address,
    ContainerPort,
    Family,
    Namespace,
    NumberedPort,
    Object,
    Peer,
    Pod,
    Policy,
    PolicyPort,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    canonical,
    parse_address,
    parse_network,
)
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings, compiled
from netpol.rules.diff import diff
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import Ruleset, Step
from tests.rules.forms import well_formed

HERE, THERE = "here", "there"
A, B, C, D = (parse_address(f"10.0.0.{i}") for i in (1, 2, 3, 4))
OUT = parse_address("203.0.113.1")
PODS = parse_network("10.0.0.0/24")


def app(name: str) -> Selector:
    return Selector((Requirement("app", "In", (name,)),))


def pod(name: str, *addresses: Address, node: str = HERE, ports: tuple[ContainerPort, ...] = (), label: str = "") -> Pod:
    """A pod of "ns" whose label app is its name without digits, or `label`."""
    return Pod("ns", name, (("app", label or name.rstrip("0123456789")),), node, addresses, ports)


def peers(*found: Peer, ports: tuple[PolicyPort, ...] = ()) -> PolicyRule:
    return PolicyRule(canonical(found) or None, canonical(ports) or None)


def own(name: str) -> Query:
    return Query("ns", EVERYTHING, app(name))


def policy(name: str, target: str, *rules: PolicyRule, egress: tuple[PolicyRule, ...] | None = None) -> Policy:
    """A policy for ingress to the pods of an app; without rules it denies."""
    return Policy("ns", name, app(target), rules, egress)


def port(number: int) -> NumberedPort:
    return NumberedPort(TCP, number, number)


class Watched:
    """A cluster with the namespace "ns", and the state of the node HERE, which follows it."""

    def __init__(self, *objects: Object, settings: Settings | None = None) -> None:
        self.cluster = Cluster()
        self.settings = settings or Settings()
        self.state = NodeState(self.cluster, HERE, self.settings)
        self.put(Namespace("ns"), *objects)

    def put(self, *objects: Object) -> None:
        for item in objects:
            self.state.follow(self.cluster.put(item))

    def drop(self, kind: type[Object], *names: str) -> None:
        for name in names:
            self.state.follow(self.cluster.drop(kind, name, "ns"))

    def steps(self) -> tuple[Step, ...]:
        """What is to be done now; it is done then. The state is well formed and what a fresh start gives, each time."""
        assert self.state.wanted() == compiled(self.cluster, HERE, self.settings)
        well_formed(self.state.wanted())
        steps = diff(*self.state.pending())
        self.state.applied()
        assert diff(*self.state.pending()) == ()
        return steps

    def wanted(self) -> Ruleset:
        self.steps()
        return self.state.wanted()

    def passes(self, source: Address, destination: Address, number: int = 80) -> bool:
        return interpret(self.wanted(), Packet(source, destination, TCP, number, 40000)).passes

    def left_behind(self) -> bool:
        """Whether anything stays registered when all objects go and the state is closed."""
        for pods in list(self.cluster.pods.values()):
            self.drop(Pod, *pods)
        for _, name in list(self.cluster.policies):
            self.drop(Policy, name)
        self.drop(Namespace, "ns")
        self.steps()
        self.state.close()
        return not self.cluster.index.is_empty() or bool(self.state._classes)


def kinds(steps: tuple[Step, ...]) -> list[type[Step]]:
    return [type(step) for step in steps]


def class_chains(ruleset: Ruleset, family: Family = 4) -> list[str]:
    return sorted(name for name in ruleset.chains[family] if name.startswith(("NETPOL-I-", "NETPOL-E-")))
