"""One node, without threads or clocks: the cluster it follows, the kernel it writes, and what became of the two.

`enforce` brings pending changes into the kernel. After a step has failed nobody knows exactly what the kernel holds: the next
`enforce` then reads everything back and plans from there, as `adopt` does at a start. What is in force stays so meanwhile.
The first enforcement also takes over what a predecessor left in another form (`netpol.agent.takeover`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from netpol.agent.audit import NO_DRIFT, Drift, compare, written
from netpol.agent.takeover import forget_marks, gate_bits, take_over
from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset_errors import FIND_TYPE
from netpol.model import Address, Family, Object, Pod, Policy
from netpol.policy.cluster import Cluster
from netpol.rules.compile import NodeState, Settings
from netpol.rules.diff import diff
from netpol.rules.replay import touched as touched_members
from netpol.rules.ruleset import CreateSet, DestroySet, Ruleset, Step, is_front


class Report(Struct, frozen=True):
    """What an enforcement did: the steps, and how many system calls they took.

    What the followers of the rules in force need (`netpol.agent.cutting`), and gets by without building it where it was not there:
    whole -- all that is in force, where the steps were planned from a reading of all; None: what was in force before, and the steps;
    pods -- the addresses of this node's pods that some rule is about; touched -- those of them, and of their peers, whose flows may be
    judged otherwise than before; None: any.
    grace -- not zero at a first install: only the gate is in force yet. So many seconds later, and not before, `enforce` is to be
    called again.
    leftover -- sets that nothing of ours needs, and that cannot be destroyed while somebody else's rule or set refers to them. Each audit,
    and each enforcement that has something to do, tries again.
    """

    steps: tuple[Step, ...]
    system_calls: int
    whole: Ruleset | None = None
    pods: frozenset[Address] = frozenset()
    touched: frozenset[Address] | None = frozenset()
    grace: float = 0.0
    leftover: tuple[str, ...] = ()


class Enforcer:
    """See the module. For one thread at a time.

    grace -- seconds that a node which tracks no connections yet is given to learn of those that run, before anything is denied.
    """

    def __init__(self, kernel: Kernel, node: str, settings: Settings | None = None, grace: float = 0.0) -> None:
        self.kernel = kernel
        self.cluster = Cluster()
        self.state = NodeState(self.cluster, node, settings)
        self.drift = NO_DRIFT
        """What the last audit found."""
        self._sure = self._taken_over = False
        self._grace = grace
        self._learning: set[Family] = set()  # families that were found to need it, by tries of which none succeeded
        self._leftover: tuple[str, ...] = ()

    def put(self, *objects: Object) -> None:
        """Objects are there, or are different now."""
        for item in objects:
            self.state.follow(self.cluster.put(item))

    def drop(self, kind: type[Object], name: str, namespace: str = "") -> None:
        """An object is gone."""
        self.state.follow(self.cluster.drop(kind, name, namespace))

    def replace(self, objects: Iterable[Object]) -> None:
        """These are all the objects that there are: what is not among them is gone."""
        wanted = {identity(item): item for item in objects}
        cluster = self.cluster
        there: list[Object] = [*cluster.namespaces.values(), *cluster.nodes.values(), *cluster.all_pods(), *cluster.policies.values()]
        for kind, namespace, name in {identity(item) for item in there} - wanted.keys():
            self.drop(kind, name, namespace)
        self.put(*wanted.values())

    def enforce(self) -> Report:
        """Makes the kernel hold what it should.

        KernelError names what failed: the steps before it are in force, as the law of `netpol.rules.diff` has it, and the next call
        tries again from what is there.
        """
        try:
            return self._try()
        except KernelError as error:
            if error.code != FIND_TYPE or not is_front(error.object):
                raise
        # The kernel lacks a set type that only saves time.
        self.state.forgo_fronts()
        return self._try()

    def _try(self) -> Report:
        if not self._taken_over:
            return self._take_over()
        return self._enforce(None if self._sure else self.state.wanted(), None)

    def _enforce(self, whole: Ruleset | None, found: Ruleset | None) -> Report:
        """whole -- all that is wanted, or None where what is pending will do; found -- all that the kernel holds, where that was read."""
        before = self.kernel.calls
        try:
            steps = self._planned() if whole is None else None
            if steps is None:
                whole = whole or self.state.wanted()
                steps = diff(whole, found or self.kernel.read())
            self._sure = False
            leftover = self.kernel.apply(steps)
            # Where all was read, and nothing is to be done, nothing is left over.
            self._leftover = leftover if steps or whole is not None else self._leftover
        except (KernelError, MalformedKernelData):
            self._sure = False
            raise
        touched = None if whole is not None else _touched(self.state.moved(), touched_members(steps))
        self.state.applied()
        self._sure = True
        return Report(steps, self.kernel.calls - before, whole, self.state.judged, touched, leftover=self._leftover)

    def _planned(self) -> tuple[Step, ...] | None:
        """What brings pending changes into force, and what was left over out of the way; None where only a reading of all can tell."""
        steps = diff(*self.state.pending())
        if not steps or not self._leftover:
            return steps
        if any(isinstance(step, CreateSet) and step.name in self._leftover for step in steps):
            # It is wanted again, and nobody knows what it holds.
            return None
        return (*steps, *(DestroySet(name) for name in self._leftover))

    def _take_over(self) -> Report:
        before, wanted = self.kernel.calls, self.state.wanted()
        taken = take_over(self.kernel, wanted, self.state.settings, self._learning if self._grace else None)
        # What was reported is done: the next time is after the grace.
        self._learning = set()
        calls = self.kernel.calls - before + taken.calls
        if taken.learning:
            return Report(taken.steps, calls, taken.ruleset, touched=None, grace=self._grace, leftover=taken.leftover)
        self.state.applied()
        self._sure = self._taken_over = True
        self._leftover = taken.leftover
        return Report(taken.steps, calls, wanted, self.state.judged, None, leftover=taken.leftover)

    def adopt(self) -> Report:
        """Takes over whatever the kernel holds: reads all of it and changes only what differs."""
        self._sure = False
        return self.enforce()

    def audit(self) -> tuple[Drift, Report]:
        """Compares all that the kernel holds with what was written, and repairs it; changes that are pending go along with a repair.

        Nothing is looked at or written before the first `enforce`, nor after one that failed, until another one succeeded: it reads
        everything anyway. KernelError as `enforce`; `drift` says what was found even then.
        """
        self.drift = NO_DRIFT
        if not self._sure:
            return NO_DRIFT, Report((), 0)
        before = self.kernel.calls
        try:
            freed = self._free()
            look = self.kernel.look()
        except (KernelError, MalformedKernelData):
            self._sure = False
            raise
        if look:
            whole, (ahead, behind, _) = self.state.wanted(), self.state.pending()
            should = written(whole, ahead, behind)
            try:
                found = self.kernel.reread(should, look)
            except (KernelError, MalformedKernelData):
                self._sure = False
                raise
            known = replace(found, sets={name: one for name, one in found.sets.items() if name not in self._leftover})
            self.drift = compare(should, known, self.kernel.moved, look.strangers)
        if not self.drift:
            return NO_DRIFT, Report(freed, self.kernel.calls - before, leftover=self._leftover)
        report = self._enforce(whole, found)
        return self.drift, replace(report, system_calls=self.kernel.calls - before)

    def _free(self) -> tuple[Step, ...]:
        """Destroys what was left over and is not in use any more."""
        if not self._leftover:
            return ()
        names, self._leftover = self._leftover, self.kernel.apply([DestroySet(name) for name in self._leftover])
        return tuple(DestroySet(name) for name in names if name not in self._leftover)


def _touched(*parts: frozenset[Address] | None) -> frozenset[Address] | None:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None


def identity(item: Object) -> tuple[type[Object], str, str]:
    """What makes an object the same one: kind, namespace ("" where it has none) and name."""
    return type(item), item.namespace if isinstance(item, Pod | Policy) else "", item.name


def clean(*kernels: Kernel) -> tuple[Step, ...]:
    """Removes everything of ours from the kernels' tables, and nothing else; works on half of a state too. The steps that it took.

    All tables go before any set: a set cannot be destroyed while a rule of another table refers to it. Flows that were cut lose their
    mark at last, where a gate is there to tell the bit: whoever installs netpol again would cut them anew.

    KernelError, when all else is done, names what stays because somebody else uses it: chains to which his rules jump, as they were, or
    else sets.
    """
    steps: list[Step] = []
    kept: list[str] = []
    bits = 0
    for kernel in kernels:
        found = kernel.read()
        bits |= gate_bits(found)
        replaced = diff(Ruleset({}, {}, frozenset(), kernel.table), replace(found, sets={}))
        kernel.apply(replaced)
        steps += replaced
        if replaced:
            left = kernel.read().chains
            kept += [f"{chain} of IPv{family} {kernel.table}" for family, chains in sorted(left.items()) for chain in sorted(chains)]
    destroyed = [DestroySet(name) for name in sorted(kernels[0].read().sets)]
    in_use = kernels[0].apply(destroyed)
    forget_marks(bits)
    if kept:
        raise KernelError(errno.EBUSY, "iptables delete", ", ".join(kept), "somebody else's rule jumps there: take that away first")
    if in_use:
        raise KernelError(errno.EBUSY, "ipset destroy", ", ".join(in_use), "in use by somebody else's rule or set: take that away first")
    return (*steps, *destroyed)
