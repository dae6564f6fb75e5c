"""The case that matters most: a policy changes in a large cluster; we, from the event to the kernel, beside the same change by programs.

Ours is all that the agent does between the event and the last system call: index, compile, plan, apply. The programs get the plan for
nothing: they are told which sets and chains change, and only carry it out, in a namespace of their own that holds the same state.
Two ways: a call for each member and rule, as agents that call `ipset add` and `iptables -A` do, and two files for the two `restore`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from netpol.agent.enforcer import Enforcer
from netpol.bench import peers
from netpol.bench.changes import NODE, Sizes, matching, objects, policy_of
from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.model import EVERYTHING, FAMILIES, Family, Query
from netpol.rules.diff import diff
from netpol.rules.ruleset import Chain, Ruleset, TableName
from netpol.rules.sets import Set
from netpol.rules.text import chain_lines, member_text, set_lines

TABLE: TableName = "mangle"
CALLS, FILES = "exec, a call a member or rule", "exec, two files restored"


def policy_change(row: str, pods: int, policies: int, local: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """A policy of a pod here allows one more peer, a twentieth of all pods: a new set, and one chain that refers to it."""
    return Case(row, pairs, partial(_policy_change, Sizes(pods, policies, local)), goals)


@contextmanager
def _policy_change(sizes: Sizes, directory: Path) -> Iterator[Contest]:
    before = policy_of(sizes, 0, 80)
    rule = before.ingress[0] if before.ingress else None
    if rule is None:
        raise BenchError("the policy has no rule")
    more = replace(rule, peers=(*(rule.peers or ()), Query("", EVERYTHING, matching("app", "app-7"))))
    after = replace(before, ingress=(more,))
    with ExitStack() as stack:
        other = namespaces.create()
        stack.callback(os.close, other)
        kernel, reader = stack.enter_context(Kernel(TABLE)), stack.enter_context(Kernel(TABLE))
        with namespaces.entered(other):
            theirs = stack.enter_context(Kernel(TABLE))
        enforcer = Enforcer(kernel, NODE)
        enforcer.put(*objects(sizes))
        enforcer.enforce()
        start = reader.read()

        def reset() -> None:
            enforcer.put(before)
            enforcer.enforce()

        def ours() -> None:
            enforcer.put(after)
            enforcer.enforce()

        ours()
        end = reader.read()
        found = _Theirs(theirs, other, start, end, directory)
        yield Contest(Contender(reset, ours, lambda outcome: _expect(reader, end)), found.contenders(), lambda: kernel.calls)


class _Theirs:
    """The same state in a namespace of its own, changed by programs."""

    def __init__(self, kernel: Kernel, namespace: int, start: Ruleset, end: Ruleset, directory: Path) -> None:
        self._kernel, self._namespace, self._start, self._end = kernel, namespace, start, end
        self._sets, self._tables = directory / "sets", {family: directory / f"rules-{family}" for family in FAMILIES}

    def contenders(self) -> dict[str, Contender]:
        """Those whose programs are all installed."""
        if peers.find(peers.IPSET) is None or any(peers.find(name) is None for name in (*peers.IPTABLES.values(), *peers.RESTORE.values())):
            return {}
        calls = [*self._growing(), *(line for family in FAMILIES for line in self._rules(family)), *self._shrinking()]
        self._sets.write_text("".join(f"{shlex.join(line[1:])}\n" for line in self._growing()))
        for family in FAMILIES:
            changed = self._changed(family)
            lines = [f":{chain.name} - [0:0]" for chain in changed] + [line for chain in changed for line in chain_lines(chain, family)]
            self._tables[family].write_text("\n".join((f"*{TABLE}", *lines, "COMMIT", "")))

        def verify(outcome: object) -> None:
            with namespaces.entered(self._namespace):
                _expect(self._kernel, self._end)

        return {
            CALLS: Contender(self._reset, partial(self._all, calls), verify),
            FILES: Contender(self._reset, partial(self._all, [*self._restores(), *self._shrinking()]), verify),
        }

    def _reset(self) -> None:
        with namespaces.entered(self._namespace):
            self._kernel.apply(diff(self._start, self._kernel.read()))

    def _all(self, calls: list[list[str]]) -> None:
        with namespaces.entered(self._namespace):
            for call in calls:
                peers.execute(*call)

    def _growing(self) -> Iterator[list[str]]:
        ipset = str(peers.find(peers.IPSET))
        for name, found in sorted(self._end.sets.items()):
            old = self._start.sets.get(name)
            if old is None:
                yield from ([ipset, *line.split()] for line in set_lines(found))
            else:
                yield from ([ipset, "add", name, member_text(found, member)] for member in sorted(found.members - old.members))

    def _shrinking(self) -> Iterator[list[str]]:
        ipset = str(peers.find(peers.IPSET))
        for name, old in sorted(self._start.sets.items()):
            now: Set | None = self._end.sets.get(name)
            if now is None:
                yield [ipset, "destroy", name]
            else:
                yield from ([ipset, "del", name, member_text(old, member)] for member in sorted(old.members - now.members))

    def _changed(self, family: Family) -> list[Chain]:
        old = self._start.chains.get(family, {})
        new = self._end.chains.get(family, {})
        return [chain for name, chain in sorted(new.items()) if old.get(name) != chain]

    def _rules(self, family: Family) -> Iterator[list[str]]:
        iptables = [str(peers.find(peers.IPTABLES[family])), "-w", "-t", TABLE]
        old, new = self._start.chains.get(family, {}), self._end.chains.get(family, {})
        changed = self._changed(family)
        yield from ([*iptables, "-N", chain.name] for chain in changed if chain.name not in old)
        # Those that nobody jumps to yet come first.
        for chain in sorted(changed, key=lambda chain: chain.name in old):
            if chain.name in old:
                yield [*iptables, "-F", chain.name]
            yield from ([*iptables, *shlex.split(line)] for line in chain_lines(chain, family))
        yield from ([*iptables, what, name] for what in ("-F", "-X") for name in sorted(old) if name not in new)

    def _restores(self) -> Iterator[list[str]]:
        yield [str(peers.find(peers.IPSET)), "restore", "-file", str(self._sets)]
        for family in FAMILIES:
            if self._changed(family):
                yield [str(peers.find(peers.RESTORE[family])), "-w", "--noflush", str(self._tables[family])]


def _expect(kernel: Kernel, wanted: Ruleset) -> None:
    found = kernel.read()
    # A chain that nothing jumps to may stay behind a file; what packets meet is what counts.
    held = all(chains.items() <= found.chains.get(family, {}).items() for family, chains in wanted.chains.items())
    if found.sets != wanted.sets or not held:
        raise BenchError("the kernel does not hold the changed policy")
