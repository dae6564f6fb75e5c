"""The first enforcement of a process: what a predecessor left in another form is moved, and a node that tracks nothing begins to.

Another table (`--table` changed). The chains in the old table are put into the new one as they are, over the same sets, and then go
from the old one: at no moment is neither in force. What differs from the wanted state is changed after that, as ever. Chains that
somebody edited cannot be put anywhere: there the old table goes when the new one is as wanted, before any set that it uses.

Another cut bit (`--cut-bit` changed). Flows that were cut get the new bit beside the old one, so that they stay cut whichever gate a
packet meets, and lose the old one when the new gate is in force. A predecessor that ended between the two leaves the old bit behind on
flows that it had cut: it means nothing any more.

A first install. Where nothing tracks connections, a packet of a running flow looks like a new flow's; one of a server would be denied
although its client may call. So the gate goes in alone, which makes the kernel track, and what is to be denied follows after a grace.
A node counts as one that tracks nothing while the connection tracking table has no entry of a family: either nothing tracks it, or
nothing runs that could be lost. It is asked for each family, only where nothing of ours was in force and something is to be denied; a
family of which nothing but link-local addresses are, on a node whose pods have IPv4 only, is not waited for alone. A try that fails on
its way has put a gate there: what it found holds for the next ones.
TCP flows that rest during the grace are met in their middle when they wake up, and judged by whoever speaks first then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from msgspec import Struct
from msgspec.structs import replace

from netpol.errors import Unsupported
from netpol.kernel.apply import Kernel
from netpol.kernel.conntrack import ConntrackSocket
from netpol.model import FAMILIES, Family
from netpol.rules.compile import Settings
from netpol.rules.compile.skeleton import gate, skeleton
from netpol.rules.diff import diff
from netpol.rules.flows import pack, unpack
from netpol.rules.ruleset import DENY, Connmark, Goto, OpaqueTarget, ReplaceTable, Ruleset, Step, TableName, last_destroyed

OTHER: Mapping[TableName, TableName] = {"mangle": "filter", "filter": "mangle"}


class Taken(Struct, frozen=True):
    """What was done: the steps, of both tables; what is in force now; system calls besides those of the kernel that was given.

    learning -- families whose gate stands alone: the rest is to follow; leftover -- sets that somebody else uses.
    """

    steps: tuple[Step, ...]
    ruleset: Ruleset
    calls: int
    learning: frozenset[Family] = frozenset()
    leftover: tuple[str, ...] = ()


def take_over(
    kernel: Kernel, wanted: Ruleset, settings: Settings, learning: set[Family] | None, open: Callable[[TableName], Kernel] = Kernel
) -> Taken:
    """Makes the kernel hold what is wanted, whatever it held; but only the gate, of families for which the node tracks nothing yet.

    learning -- those families, as tries found that failed since; this one adds what it finds. None: there is no grace.

    KernelError names what failed; the steps before it are in force, and the next call goes on from there.
    """
    found = kernel.read()
    with open(OTHER[kernel.table]) as other:
        left = _left(other)
        bits = (gate_bits(found) | gate_bits(left)) & ~settings.cut_bit
        calls = 0
        if learning is not None:
            untracked, calls = _untracked(wanted, settings, found, left)
            learning |= untracked
        learners = frozenset(learning or ())
        wanted = _gates(wanted, settings, learners)
        with _both_bits(bits, settings.cut_bit):
            moved = _move(kernel, other, wanted, found, left)
            if moved:
                found, left = kernel.read(), _left(other)
            steps = diff(wanted, found)
            # The old table, where it could not be moved, goes before the sets that it uses.
            last = last_destroyed(steps)
            first = steps[: len(steps) - len(last)]
            kernel.apply(first)
            gone = tuple(ReplaceTable(family, other.table, {}, False) for family in sorted(left.chains))
            other.apply(gone)
            leftover = kernel.apply(last)
        return Taken((*moved, *first, *gone, *last), wanted, other.calls + calls, learners, leftover)


# -- another table -----------------------------------------------------------------------------------------------------


def _left(other: Kernel) -> Ruleset:
    """What of ours stands in the other table; nothing where the kernel has no such table."""
    try:
        return replace(other.read(), sets={})
    except Unsupported:
        return Ruleset({}, {}, frozenset(), other.table)


def _move(kernel: Kernel, other: Kernel, wanted: Ruleset, found: Ruleset, left: Ruleset) -> tuple[Step, ...]:
    done: list[Step] = []
    for family, chains in sorted(left.chains.items()):
        if any(isinstance(rule.target, OpaqueTarget) for chain in chains.values() for rule in chain.rules):
            continue
        if family in left.hooked and family not in found.hooked:
            # How it denies is the one thing that depends on the table.
            copied = ReplaceTable(family, kernel.table, {**chains, DENY: wanted.chains[family][DENY]}, True)
            kernel.apply((copied,))
            done.append(copied)
        gone = ReplaceTable(family, other.table, {}, False)
        other.apply((gone,))
        done.append(gone)
    return tuple(done)


# -- another cut bit ---------------------------------------------------------------------------------------------------


def gate_bits(found: Ruleset) -> int:
    """The bits of connmarks that our gates look at."""
    bits = 0
    for chains in found.chains.values():
        # Every version denies them by one bit, in whatever chain. What somebody else put there may be about any mark.
        gates = [rule for chain in chains.values() for rule in chain.rules if rule.target == Goto(DENY)]
        for match in (match for rule in gates for match in rule.matches if isinstance(match, Connmark) and not match.invert):
            bits |= match.mask if match.mark == match.mask and match.mask.bit_count() == 1 else 0
    return bits


def forget_marks(bits: int) -> None:
    """Takes the bits of flows that were cut away: nothing is in force any more that would look at them."""
    if bits:
        with suppress(Unsupported), ConntrackSocket() as socket:
            socket.unmark(socket.marked(bits), bits)


@contextmanager
def _both_bits(old: int, new: int) -> Iterator[None]:
    """Inside the block exactly the flows with one of the old bits have the new one; behind it they have none of the old ones."""
    if not old:
        yield
        return
    try:
        socket = ConntrackSocket()
    except Unsupported:
        # Nobody can have marked a flow.
        yield
        return
    with socket:
        marked = socket.marked(old)
        socket.mark(marked, new)
        stale = [entry for entry in unpack(socket.marked(new)) if not entry.mark & old]
        socket.unmark(pack(stale), new)
        yield
        socket.unmark(marked, old)


# -- a first install ---------------------------------------------------------------------------------------------------


def _untracked(wanted: Ruleset, settings: Settings, found: Ruleset, left: Ruleset) -> tuple[frozenset[Family], int]:
    """The families in which running flows might be lost, and the system calls it took to know."""
    first = [
        family
        for family in FAMILIES
        if not found.chains.get(family) and not left.chains.get(family) and wanted.chains[family] != gate(family, settings)
    ]
    if not first:
        return frozenset(), 0
    try:
        with ConntrackSocket() as socket:
            none = socket.count() == 0
            learners = frozenset(family for family in first if none or not socket.count(family))
            calls = socket.calls
    except Unsupported:
        return frozenset(), 0
    waits = any(wanted.chains[family] != skeleton(family, settings, isolated=True) for family in learners)
    return (learners if waits else frozenset()), calls


def _gates(wanted: Ruleset, settings: Settings, learning: frozenset[Family]) -> Ruleset:
    """What is wanted, with the gate alone for these families."""
    chains = {family: gate(family, settings) if family in learning else found for family, found in wanted.chains.items()}
    sets = {name: found for name, found in wanted.sets.items() if found.family not in learning}
    return replace(wanted, chains=chains, sets=sets) if learning else wanted
