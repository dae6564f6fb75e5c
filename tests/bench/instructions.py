"""Work for the hot C paths, in amounts that are known, to be counted by callgrind: `python -m tests.bench.instructions`.

In namespaces of its own, on a real kernel: 1,000 members into each of three sets (addresses anywhere, pods' addresses, networks), read and
proven; 1,000 rules into a table, one chain of them changed, all of it proven; 1,000 flows looked at and judged.
"""

from __future__ import annotations

import os

from netpol.agent.cutter import Cutter
from netpol.bench.changes import NODE, Sizes, objects
from netpol.bench.flows import create
from netpol.bench.members import networks, pod_addresses, scattered_addresses
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.model import TCP, Address, parse_address
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings
from netpol.rules.ruleset import RETURN, ROOT, Chain, CreateSet, Jump, Multiport, ReplaceTable, Rule, SetMatch, Tcp
from netpol.rules.sets import Set

COUNT, CHAIN = 1_000, 10


def sets_and_tables() -> None:
    """2,000 members of hash:ip, 1,000 of hash:net; 1,000 rules in chains of ten, and then one rule more."""
    ips, nets = Set(f"{ROOT}4-ips", "hash:ip", 4, scattered_addresses(COUNT)), Set(f"{ROOT}4-nets", "hash:net", 4, networks(COUNT))
    pods = Set(f"{ROOT}4-pods", "hash:ip", 4, pod_addresses(COUNT))
    with Kernel() as kernel:
        kernel.apply([CreateSet(ips), CreateSet(nets), CreateSet(pods)])
        chains = {chain.name: chain for chain in (_chain(number, ips.name) for number in range(COUNT // CHAIN))}
        root = Chain(ROOT, tuple(Rule(Jump(name)) for name in chains))
        kernel.apply([ReplaceTable(4, "mangle", {ROOT: root, **chains}, True)])
        changed = _chain(0, nets.name)
        kernel.apply([ReplaceTable(4, "mangle", {ROOT: root, **chains, changed.name: changed}, True)])
        assert kernel.read().sets == {one.name: one for one in (ips, nets, pods)}
        assert not kernel.look()


def _chain(number: int, of: str) -> Chain:
    ports = range(1 + number * CHAIN, 1 + (number + 1) * CHAIN)
    rules = [Rule(RETURN, (Tcp(), SetMatch(of, ("src",)), Multiport(((port, port), (30_001, 30_001)))), protocol=TCP) for port in ports]
    return Chain(f"{ROOT}-I-{number:05}", tuple(rules))


def flows() -> None:
    """1,000 connections, each with a pod of ours at one end."""
    cluster = Cluster()
    for item in objects(Sizes(200, 20, 20)):
        cluster.put(item)
    state = NodeState(cluster, NODE)
    wanted = state.wanted()
    ours = sorted(state.judged)
    create([(ours[number % len(ours)], _other(number), 40_000 + number, 80) for number in range(COUNT)])
    with Cutter(Settings().cut_bit) as cutter:
        assert cutter.sweep(wanted, state.judged).judged == COUNT


def _other(number: int) -> Address:
    return parse_address(f"192.0.{2 + number // 256}.{number % 256}")


def main() -> None:
    for work in (sets_and_tables, flows):
        namespace = namespaces.create()
        with namespaces.private_lock(), namespaces.entered(namespace):
            work()
        os.close(namespace)


if __name__ == "__main__":
    main()
