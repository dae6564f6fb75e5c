"""The cases of ipset: filling, changing, swapping, destroying and reading a set, beside `ipset` and pyroute2.

Ours starts from a set as a value, whose members lie packed in one piece in any order, and a socket that is open, which is what the
agent has; a program starts from a file of
its own format, or from its arguments; pyroute2 from texts and an open socket. `ipset restore` is measured twice, as most people
write the file (no hashsize, so that the kernel doubles the hash again and again) and with the hash right-sized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from netpol.bench import peers
from netpol.bench.measure import BenchError, Case, Contender, Contest
from netpol.bench.members import Make, scattered_addresses
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset import Create, Delete, Destroy, IpsetSocket, Swap, member_text, pack
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, ShrinkSet
from netpol.rules.sets import Set, SetKind

NAME, OTHER = "NETPOL-BENCH", "NETPOL-BENCH-2"
# Odd, so that swapping so often is not the same as never. Of changes that take microseconds a run is several, so that one of them is warm.
REPEAT = 9

RESTORE, RIGHT_SIZED, ADD = "ipset restore", "ipset restore, right-sized", "ipset add"
PYROUTE2 = "pyroute2"


def fill(row: str, kind: SetKind, make: Make, count: int, pairs: int, goals: Mapping[str, float], pyroute2: bool = False) -> Case:
    """A new set with `count` members; pyroute2 only where asked for, for it takes a call a member."""
    return Case(row, pairs, partial(_fill, kind, make, count, pyroute2), goals)


def add_one(row: str, count: int, pairs: int) -> Case:
    """One more member for a set of `count`, `REPEAT` times in a row."""
    return Case(row, pairs, partial(_add_one, count))


def grow(row: str, count: int, more: int, pairs: int) -> Case:
    """So many more members for a live set of `count`, in one step; `ipset restore` has a file of them."""
    return Case(row, pairs, partial(_grow, count, more))


def make_many(row: str, count: int, pairs: int) -> Case:
    """So many sets of ten members each, from none: the kernel looks for a name in all of them."""
    return Case(row, pairs, partial(_make_many, count))


def swap(row: str, count: int, pairs: int) -> Case:
    """Two sets, one of `count` members, change places, `REPEAT` times in a row."""
    return Case(row, pairs, partial(_swap, count))


def leave(row: str, count: int, share: int, pairs: int) -> Case:
    """Of `count` members `share` percent leave a live set; beside a set of those that stay, made and swapped into its place, and beside
    deleting each."""
    return Case(row, pairs, partial(_leave, count, share))


def destroy(row: str, count: int, pairs: int) -> Case:
    """A set of `count` members goes away."""
    return Case(row, pairs, partial(_destroy, count))


def read(row: str, make: Make, count: int, pairs: int) -> Case:
    """All members of a set: ours as a value, sorted and hashed, `ipset save` as text."""
    return Case(row, pairs, partial(_read, make, count))


@contextmanager
def _fill(kind: SetKind, make: Make, count: int, pyroute2: bool, directory: Path) -> Iterator[Contest]:
    wanted = Set(NAME, kind, 4, make(count))
    texts = [member_text(kind, 4, member) for member in sorted(wanted.members)]
    with Kernel() as kernel, IpsetSocket() as ipset, peers.pyroute2_ipset() if pyroute2 else nullcontext() as library:

        def clean() -> None:
            if NAME in ipset.headers():
                ipset.run([Destroy(NAME)])

        def verify(outcome: object) -> None:
            _expect(NAME in ipset.headers() and ipset.read(NAME) == wanted, f"the set does not hold its {count} members")

        def call_by_call(library: peers.SetLibrary) -> None:
            library.create(NAME, stype=kind)
            for text in texts:
                library.add(NAME, text)

        def contender(run: Callable[[], object]) -> Contender:
            return Contender(clean, run, verify)

        others: dict[str, Contender] = {}
        if program := peers.find(peers.IPSET):
            size = 1 << (count - 1).bit_length()
            default = "" if count <= 65536 else f" maxelem {2 * size}"  # more than that it refuses
            for peer, options in ((RESTORE, default), (RIGHT_SIZED, f" hashsize {size} maxelem {max(65536, 2 * size)}")):
                file = directory / f"{len(others)}.ipset"
                file.write_text("".join((f"create {NAME} {kind}{options}\n", *(f"add {NAME} {text}\n" for text in texts))))
                others[peer] = contender(partial(peers.execute, program, "restore", "-file", str(file)))
        if library is not None:
            others[PYROUTE2] = contender(partial(call_by_call, library))
        yield Contest(contender(partial(kernel.apply, [CreateSet(wanted)])), others, lambda: kernel.calls)


@contextmanager
def _add_one(count: int, directory: Path) -> Iterator[Contest]:
    *members, last = sorted(scattered_addresses(count + REPEAT))
    new, old = [*members[: REPEAT - 1], last], members[REPEAT - 1 :]
    texts = [member_text("hash:ip", 4, member) for member in new]
    steps = [[GrowSet(NAME, "hash:ip", 4, frozenset((member,)))] for member in new]
    with Kernel() as kernel, IpsetSocket() as ipset, peers.pyroute2_ipset() as library:
        ipset.run([Create(NAME, "hash:ip", 4, pack(old))])

        def prepare() -> None:
            ipset.run([Delete(NAME, "hash:ip", 4, pack(new))])

        def verify(outcome: object) -> None:
            _expect(ipset.members(NAME) == pack(sorted([*old, *new])), "the set does not hold its new members")

        def ours() -> None:
            for step in steps:
                kernel.apply(step)

        def executed(program: str) -> None:
            for text in texts:
                peers.execute(program, "add", NAME, text)

        def called(library: peers.SetLibrary) -> None:
            for text in texts:
                library.add(NAME, text)

        program = peers.find(peers.IPSET)
        others = {ADD: Contender(prepare, partial(executed, program), verify)} if program else {}
        if library is not None:
            others[PYROUTE2] = Contender(prepare, partial(called, library), verify)
        yield Contest(Contender(prepare, ours, verify), others, lambda: kernel.calls, REPEAT)


@contextmanager
def _grow(count: int, more: int, directory: Path) -> Iterator[Contest]:
    members = sorted(scattered_addresses(count + more))
    new, old = members[:more], members[more:]
    step = GrowSet(NAME, "hash:ip", 4, frozenset(new))
    file = directory / "members"
    file.write_text("".join(f"add {NAME} {member_text('hash:ip', 4, member)}\n" for member in new))
    with Kernel() as kernel, IpsetSocket() as ipset:

        def prepare() -> None:
            if NAME in ipset.headers():
                ipset.run([Destroy(NAME)])
            ipset.run([Create(NAME, "hash:ip", 4, pack(old))])

        def verify(outcome: object) -> None:
            _expect(ipset.members(NAME) == pack(members), "the set does not hold its new members")

        program = peers.find(peers.IPSET)
        run = partial(peers.execute, str(program), "restore", "-file", str(file))
        others = {RESTORE: Contender(prepare, run, verify)} if program else {}
        yield Contest(Contender(prepare, partial(kernel.apply, [step]), verify), others, lambda: kernel.calls)


@contextmanager
def _make_many(count: int, directory: Path) -> Iterator[Contest]:
    members = frozenset(scattered_addresses(10))
    wanted = [Set(f"{NAME}-{number}", "hash:ip", 4, members) for number in range(count)]
    lines = [f"add {{}} {member_text('hash:ip', 4, member)}\n" for member in sorted(members)]
    file = directory / "sets"
    file.write_text("".join(f"create {one.name} hash:ip hashsize 64\n" + "".join(lines).format(*[one.name] * len(lines)) for one in wanted))
    with Kernel() as kernel, IpsetSocket() as ipset:

        def prepare() -> None:
            if there := ipset.headers():
                ipset.run([Destroy(name) for name in reversed(there)])

        def verify(outcome: object) -> None:
            there = ipset.headers()
            _expect(len(there) == count and ipset.read(wanted[-1].name) == wanted[-1], f"there are not {count} sets")

        program = peers.find(peers.IPSET)
        run = partial(peers.execute, str(program), "restore", "-file", str(file))
        others = {RIGHT_SIZED: Contender(prepare, run, verify)} if program else {}
        ours = partial(kernel.apply, [CreateSet(one) for one in wanted])
        yield Contest(Contender(prepare, ours, verify), others, lambda: kernel.calls)


@contextmanager
def _swap(count: int, directory: Path) -> Iterator[Contest]:
    members = pack(scattered_addresses(count))
    with IpsetSocket() as ipset:
        ipset.run([Create(NAME, "hash:ip", 4, members), Create(OTHER, "hash:ip", 4)])

        def prepare() -> None:
            if not ipset.members(NAME):
                ipset.run([Swap(NAME, OTHER)])

        def verify(outcome: object) -> None:
            _expect(not ipset.members(NAME) and len(ipset.members(OTHER)) == len(members), "the sets did not change places")

        def ours() -> None:
            for _ in range(REPEAT):
                ipset.run([Swap(NAME, OTHER)])

        def executed(program: str) -> None:
            for _ in range(REPEAT):
                peers.execute(program, "swap", NAME, OTHER)

        program = peers.find(peers.IPSET)
        others = {"ipset swap": Contender(prepare, partial(executed, program), verify)} if program else {}
        yield Contest(Contender(prepare, ours, verify), others, lambda: ipset.calls, REPEAT)


@contextmanager
def _leave(count: int, share: int, directory: Path) -> Iterator[Contest]:
    members = sorted(scattered_addresses(count))
    gone, stay = members[: count * share // 100], members[count * share // 100 :]
    left = Set(NAME, "hash:ip", 4, frozenset(stay))
    deletion = ShrinkSet(NAME, "hash:ip", 4, frozenset(gone))
    step = replace(deletion, left=left) if len(stay) < len(gone) else deletion
    with Kernel() as kernel, IpsetSocket() as ipset:

        def prepare() -> None:
            if NAME in ipset.headers():
                ipset.run([Destroy(NAME)])
            ipset.run([Create(NAME, "hash:ip", 4, pack(members))])

        def verify(outcome: object) -> None:
            _expect(ipset.members(NAME) == pack(stay), "the set does not hold those that stay")

        def swapped() -> None:
            ipset.run([Create(OTHER, "hash:ip", 4, pack(stay))])
            ipset.run([Swap(OTHER, NAME), Destroy(OTHER)])

        others = {
            "a set swapped in": Contender(prepare, swapped, verify),
            "each deleted": Contender(prepare, partial(kernel.apply, [deletion]), verify),
        }
        yield Contest(Contender(prepare, partial(kernel.apply, [step]), verify), others, lambda: kernel.calls)


@contextmanager
def _destroy(count: int, directory: Path) -> Iterator[Contest]:
    members = pack(scattered_addresses(count))
    with Kernel() as kernel, IpsetSocket() as ipset:

        def prepare() -> None:
            if NAME not in ipset.headers():
                ipset.run([Create(NAME, "hash:ip", 4, members)])

        def verify(outcome: object) -> None:
            _expect(NAME not in ipset.headers(), "the set is still there")

        program = peers.find(peers.IPSET)
        others = {"ipset destroy": Contender(prepare, partial(peers.execute, program, "destroy", NAME), verify)} if program else {}
        yield Contest(Contender(prepare, partial(kernel.apply, [DestroySet(NAME)]), verify), others, lambda: kernel.calls)


@contextmanager
def _read(make: Make, count: int, directory: Path) -> Iterator[Contest]:
    wanted = Set(NAME, "hash:ip", 4, make(count))
    texts = {f"add {NAME} {member_text('hash:ip', 4, member)}" for member in wanted.members}
    with IpsetSocket() as ipset:
        ipset.run([Create(NAME, "hash:ip", 4, pack(wanted))])

        def verify_value(outcome: object) -> None:
            _expect(outcome == wanted, "what was read is not what the set holds")

        def verify_text(outcome: object) -> None:
            lines = str(outcome).splitlines()
            _expect(texts == set(lines[1:]), "what was printed is not what the set holds")

        program = peers.find(peers.IPSET)
        save = Contender(_nothing, partial(peers.output, program, "save", NAME), verify_text) if program else None
        ours = Contender(_nothing, partial(ipset.read, NAME), verify_value)
        yield Contest(ours, {"ipset save": save} if save else {}, lambda: ipset.calls)


def _nothing() -> None:
    """Reading leaves nothing to prepare."""


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise BenchError(sentence)
