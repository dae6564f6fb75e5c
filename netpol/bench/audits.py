"""The cases of looking after the kernel: an audit that finds nothing, one that repairs, and how long iptables' lock is held.

A state is a node's as the compiler makes it: half of the members and rules are IPv6. What is audited is measured as the agent does it,
decisions included. Drift is made by another process' hand, as far as the kernel can tell: other sockets.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from netpol.agent.agenda import Pace
from netpol.agent.audit import Drift
from netpol.agent.enforcer import Enforcer, Report
from netpol.agent.files import KINDS
from netpol.agent.loop import Loop
from netpol.bench import peers
from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.bench.tables import put_foreign
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.kernel.encode import encode_chain
from netpol.kernel.ipset import Create, Delete, Destroy, IpsetSocket, Swap, pack
from netpol.kernel.xtables import TableSocket
from netpol.kube.events import Synced
from netpol.model import (
    EVERYTHING,
    FAMILIES,
    TCP,
    Address,
    Namespace,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
)
from netpol.rules.ruleset import DENY, RETURN, ROOT, Chain, ReplaceTable, Rule, TableName, Tcp

NODE = "node"
TABLE: TableName = "mangle"
GROUPS = 10  # of peers, each of which is a set a family
RULES_A_POD = 10
CPU_GOAL = 0.006  # seconds of CPU that an audit may take
NOTICE_GOAL = 0.2  # seconds until a touched table is noticed
POLL = 0.0005  # between two looks of the bench's own
NOTICE = "0.2 s"
CPU, TOOLS = "6 ms of CPU", "ipset save, ip(6)tables-save"


def audit(row: str, members: int, rules: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """An audit of a state that nobody touched; beside the tools that only read it, and beside the CPU time that it may take."""
    return Case(row, pairs, partial(_audit, members, rules), goals)


def growth(row: str, members: int, rules: int, times: tuple[int, ...], pairs: int, goals: Mapping[str, float]) -> Case:
    """The same at several sizes, the largest of which is ours."""
    return Case(row, pairs, partial(_growth, members, rules, times), goals)


def repair(row: str, kind: str, members: int, rules: int, pairs: int) -> Case:
    """An audit that finds drift of a kind and repairs it; beside one that finds nothing."""
    return Case(row, pairs, partial(_repair, kind, members, rules))


def notice(row: str, members: int, rules: int, pairs: int, goals: Mapping[str, float]) -> Case:
    """Our part of a table is flushed: until the agent's loop has noticed by its cheap look, and repaired it."""
    return Case(row, pairs, partial(_notice, members, rules), goals)


def hold(row: str, foreign: int, pairs: int) -> Case:
    """One chain of ours changes in a table with so many rules of others: all the time that iptables' lock is held, and hardly more."""
    return Case(row, pairs, partial(_hold, foreign))


# -- states ------------------------------------------------------------------------------------------------------------


def _selector(key: str, value: str) -> Selector:
    return Selector((Requirement(key, "In", (value,)),))


def _addresses(number: int) -> tuple[Address, Address]:
    return (0x0A000002 + number).to_bytes(4, "big"), b"\xfd" + bytes(11) + (2 + number).to_bytes(4, "big")


def _port(number: int, i: int) -> int:
    """Of a rule: none has another one's, so that no chain has another one's content."""
    return 1 + number * RULES_A_POD + i


def _objects(members: int, rules: int) -> Iterator[Object]:
    """About so many members and rules, both families together: a policy a pod, `RULES_A_POD` rules a policy, a set a group."""
    yield Namespace("x")
    pods = max(1, rules // (2 * (RULES_A_POD + 3)))
    for number in range(pods):
        yield Pod("x", f"pod-{number}", (("app", str(number)),), NODE, _addresses(number))
        rule_peers = [Query("x", EVERYTHING, _selector("group", str((number + i) % GROUPS))) for i in range(RULES_A_POD)]
        made = [PolicyRule((peer,), (NumberedPort(TCP, _port(number, i), _port(number, i)),)) for i, peer in enumerate(rule_peers)]
        yield Policy("x", f"policy-{number}", _selector("app", str(number)), tuple(made), None)
    for number in range(members // 2):
        yield Pod("x", f"peer-{number}", (("group", str(number % GROUPS)),), "elsewhere", _addresses(pods + number))


class _State:
    """A state in force, in a network namespace of its own."""

    def __init__(self, members: int, rules: int, stack: ExitStack) -> None:
        self.namespace = namespaces.create()
        stack.callback(os.close, self.namespace)
        with namespaces.entered(self.namespace):
            self.kernel = stack.enter_context(Kernel(TABLE))
            self.other = stack.enter_context(Kernel(TABLE))
            self.ipset = stack.enter_context(IpsetSocket())
            self.enforcer = Enforcer(self.kernel, NODE)
            self.enforcer.put(*_objects(members, rules))
            self.enforcer.enforce()

    def audit(self) -> tuple[Drift, Report]:
        """In its namespace, for there the tools and /proc are looked at."""
        with namespaces.entered(self.namespace):
            return self.enforcer.audit()

    def untouched(self) -> Contender:
        """The audit of it as it is."""
        return Contender(_nothing, self.enforcer.audit, _expect_no_drift)


def _nothing() -> None:
    """Looking leaves nothing to prepare."""


def _expect_no_drift(outcome: object) -> None:
    if not isinstance(outcome, tuple) or outcome[0] or not outcome[1].system_calls:
        raise BenchError("nothing was audited, or something had changed")


# -- nothing changed ---------------------------------------------------------------------------------------------------


@contextmanager
def _audit(members: int, rules: int, directory: Path) -> Iterator[Contest]:
    with ExitStack() as stack:
        state = _State(members, rules, stack)
        others = {CPU: Contender(_nothing, _spin, _expect_spent)}
        programs = [(peers.IPSET, "save"), *((peers.SAVE[family], "-t", TABLE) for family in FAMILIES)]
        found = [peers.find(program) for program, *_ in programs]
        if all(found):

            def tools() -> str:
                with namespaces.entered(state.namespace):
                    return "".join(peers.output(str(path), *rest) for path, (_, *rest) in zip(found, programs, strict=True))

            def verify(outcome: object) -> None:
                wanted = state.enforcer.state.wanted()
                expected = sum(len(found.members) for found in wanted.sets.values())
                if str(outcome).count("\nadd NETPOL") != expected:
                    raise BenchError(f"the tools did not print the {expected} members")

            others[TOOLS] = Contender(_nothing, tools, verify)
        yield Contest(state.untouched(), others, lambda: state.kernel.calls)


def _spin() -> float:
    """Takes the CPU time that an audit may take; how much that was."""
    start = time.thread_time()
    while (spent := time.thread_time() - start) < CPU_GOAL:
        pass
    return spent


def _expect_spent(outcome: object) -> None:
    if not isinstance(outcome, float) or outcome < CPU_GOAL:
        raise BenchError("no time was spent")


@contextmanager
def _growth(members: int, rules: int, times: tuple[int, ...], directory: Path) -> Iterator[Contest]:
    with ExitStack() as stack:
        states = {f"at {members * n} members": _State(members * n, rules * n, stack) for n in times}
        contenders = {name: state.untouched() for name, state in states.items()}
        *_, last = states.values()
        yield Contest(contenders.pop(list(contenders)[-1]), contenders, lambda: last.kernel.calls)


# -- drift -------------------------------------------------------------------------------------------------------------


def _replace(state: _State, change: Callable[[dict[str, Chain]], Mapping[str, Chain]], hooked: bool) -> None:
    chains = change(dict(state.other.read().chains[4]))
    state.other.apply([ReplaceTable(4, TABLE, chains, hooked)])


def _edited(chains: dict[str, Chain]) -> Mapping[str, Chain]:
    return {**chains, DENY: Chain(DENY, (Rule(RETURN), *chains[DENY].rules))}


def _a_set(state: _State) -> tuple[str, frozenset[bytes]]:
    return next((name, found.members) for name, found in sorted(state.enforcer.state.wanted().sets.items()) if found.family == 4)


def _remove_member(state: _State) -> None:
    name, members = _a_set(state)
    state.ipset.run([Delete(name, "hash:ip", 4, min(members))])


def _swap_set(state: _State) -> None:
    name, _ = _a_set(state)
    state.ipset.run([Create("other", "hash:ip", 4, pack([b"\xc0\0\2\1"])), Swap(name, "other"), Destroy("other")])


DRIFTS: dict[str, Callable[[_State], None]] = {
    "jump deleted": lambda state: _replace(state, lambda chains: chains, hooked=False),
    "chain edited": lambda state: _replace(state, _edited, hooked=True),
    "member removed": _remove_member,
    "set exchanged": _swap_set,
    "table flushed": lambda state: _replace(state, lambda chains: {}, hooked=False),
}


@contextmanager
def _repair(kind: str, members: int, rules: int, directory: Path) -> Iterator[Contest]:
    with ExitStack() as stack:
        state = _State(members, rules, stack)

        def settle() -> None:
            state.audit()

        def prepare() -> None:
            settle()
            with namespaces.entered(state.namespace):
                DRIFTS[kind](state)

        def verify(outcome: object) -> None:
            if not isinstance(outcome, tuple) or not outcome[0]:
                raise BenchError("no drift was found")
            _expect_no_drift(state.audit())

        ours = Contender(prepare, state.enforcer.audit, verify)
        others = {"nothing changed": Contender(settle, state.enforcer.audit, _expect_no_drift)}
        yield Contest(ours, others, lambda: state.kernel.calls)


@contextmanager
def _notice(members: int, rules: int, directory: Path) -> Iterator[Contest]:
    with ExitStack() as stack:
        state = _State(members, rules, stack)
        with namespaces.entered(state.namespace):
            socket = stack.enter_context(TableSocket(4))
        loop = Loop(state.enforcer, KINDS, pace=Pace(audit=0.0), look=state.kernel.touched, rest=state.kernel.rest, jitter=lambda: 0.5)
        loop.hear(*(Synced(kind) for kind in KINDS))
        thread = threading.Thread(target=loop.run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(loop.stop)
        whole = socket.shape(TABLE)

        def ours() -> bool:
            told = loop.tally.drift["table_flushed"]
            with namespaces.entered(state.namespace):
                DRIFTS["table flushed"](state)
            while loop.tally.drift["table_flushed"] == told:
                time.sleep(POLL)
            return True

        def verify(outcome: object) -> None:
            if outcome is not True or socket.shape(TABLE) != whole:
                raise BenchError("the table was not flushed, or not repaired")

        yield Contest(Contender(_nothing, ours, verify), {NOTICE: Contender(_nothing, _wait, _expect_waited)}, lambda: state.kernel.calls)


def _wait() -> float:
    time.sleep(NOTICE_GOAL)
    return NOTICE_GOAL


def _expect_waited(outcome: object) -> None:
    if outcome != NOTICE_GOAL:
        raise BenchError("nobody waited")


# -- the lock ----------------------------------------------------------------------------------------------------------


@contextmanager
def _hold(foreign: int, directory: Path) -> Iterator[Contest]:
    with Kernel(TABLE) as kernel, TableSocket(4) as socket:
        put_foreign(foreign)
        versions = [Chain(ROOT, (Rule(RETURN, (Tcp(destination=(port, port)),), protocol=TCP),)) for port in (1, 2)]
        encoded = [{ROOT: encode_chain(chain, 4)} for chain in versions]
        file = directory / "rules"
        turn = 0

        def prepare() -> None:
            nonlocal turn
            turn += 1
            port = 1 + turn % 2
            file.write_text(f"*{TABLE}\n:{ROOT} - [0:0]\n-A {ROOT} -p tcp -m tcp --dport {port} -j RETURN\nCOMMIT\n")

        def ours() -> None:
            socket.change(TABLE, encoded[turn % 2], True)

        def verify(outcome: object) -> None:
            if kernel.read().chains.get(4) != {ROOT: versions[turn % 2]}:
                raise BenchError("the chain is another one")

        others = {}
        if restore := peers.find(peers.RESTORE[4]):
            run = partial(peers.execute, restore, "--noflush", str(file))
            others[f"{peers.RESTORE[4]} --noflush"] = Contender(prepare, run, verify)
        yield Contest(Contender(prepare, ours, verify), others, lambda: socket.calls)
