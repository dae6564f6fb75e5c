"""Sets that another one takes the place of, while rules refer to them: one that has no room, and one that most members leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.ipset_values import Command, Create, Swap
from netpol.model import FAMILIES, TCP, Family
from netpol.rules.ruleset import (
    DROP,
    ROOT,
    Chain,
    CreateSet,
    GrowSet,
    ReplaceTable,
    Rule,
    SetDirection,
    SetMatch,
    ShrinkSet,
)
from netpol.rules.sets import Set, SetKind, port_member
from tests.referees import run

LENGTH: dict[Family, int] = {4: 31, 6: 127}
BOTH: tuple[SetDirection, ...] = ("src", "dst")
FULL: dict[str, tuple[SetKind, Callable[[Family, int], bytes]]] = {
    "hash:ip": ("hash:ip", lambda family, number: host(family, number)),
    "hash:net": ("hash:net", lambda family, number: host(family, number) + bytes((LENGTH[family], 0))),
    "hash:ip,port": ("hash:ip,port", lambda family, number: port_member(host(family, number), TCP, 80)),
    "hash:net,port": ("hash:net,port", lambda family, number: host(family, number) + bytes((LENGTH[family], 0, TCP)) + b"\0\x50"),
}


def host(family: Family, number: int) -> bytes:
    return bytes((10, *bytes(1 if family == 4 else 13), number, 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "member"), FULL.values(), ids=FULL)
def test_a_set_that_outgrows_its_room_is_exchanged(
    netns: int, kind: SetKind, member: Callable[[Family, int], bytes], family: Family
) -> None:
    """The rule that uses it goes on with the same number and sees the new members; the look finds all as written."""
    name = f"NETPOL{family}-full"
    old, new = frozenset(member(family, number) for number in range(4)), frozenset(member(family, number) for number in range(4, 9))
    chains = {ROOT: Chain(ROOT, (Rule(DROP, (SetMatch(name, BOTH if "port" in kind else BOTH[:1]),)),))}
    run("ipset", "create", name, kind, "family", "inet6" if family == 6 else "inet", "maxelem", "6")
    with Kernel() as kernel, IpsetSocket() as ipset:
        kernel.read()
        kernel.apply([GrowSet(name, kind, family, old), ReplaceTable(family, "mangle", chains, True)])
        before = ipset.headers()[name]
        kernel.apply([GrowSet(name, kind, family, new), ShrinkSet(name, kind, family, frozenset(list(old)[:1]))])
        after = ipset.headers()[name]
        assert (after.index, after.references, after.maxelem, after.entries) == (before.index, 1, 65536, 8)
        # What a set of networks holds after a deletion has to be read.
        assert bool(kernel.look()) == ("net" in kind)
        found = kernel.read()
        assert found.chains[family] == chains
        assert found.sets == {name: Set(name, kind, family, (old | new) - frozenset(list(old)[:1]))}


@pytest.mark.parametrize("kind", ["hash:net", "hash:net,port"])
def test_a_full_set_takes_flags_along(netns: int, kind: SetKind) -> None:
    """A network that turns into a `nomatch` one, while others find no room, is one in the larger set."""
    suffix = bytes((TCP,)) + b"\0\x50" if "port" in kind else b""
    nets = [host(4, number) + bytes((31, 0)) + suffix for number in range(6)]
    flipped = nets[0][:5] + b"\1" + nets[0][6:]
    run("ipset", "create", "NETPOL4-full", kind, "maxelem", "2")
    with Kernel() as kernel:
        kernel.apply([GrowSet("NETPOL4-full", kind, 4, frozenset(nets[:2]))])
        kernel.apply([GrowSet("NETPOL4-full", kind, 4, frozenset((*nets[2:], flipped)))])
        assert kernel.read().sets["NETPOL4-full"].members == frozenset((*nets[1:], flipped))
        assert not kernel.look()


def test_what_a_killed_exchange_left_is_no_obstacle(netns: int) -> None:
    """The larger set that a process made, and did not come to put in its place, is made again."""
    run("ipset", "create", "NETPOL4-full", "hash:ip", "maxelem", "1")
    run("ipset", "create", "NETPOL4xfull", "hash:net")
    with Kernel() as kernel:
        kernel.apply([GrowSet("NETPOL4-full", "hash:ip", 4, frozenset(host(4, number) for number in range(4)))])
        assert {name: len(found.members) for name, found in kernel.read().sets.items()} == {"NETPOL4-full": 4}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "member"), FULL.values(), ids=FULL)
@pytest.mark.parametrize("hindered", [False, True], ids=["exchanged", "deleted"])
def test_what_most_members_leave_is_exchanged(
    netns: int, kind: SetKind, member: Callable[[Family, int], bytes], family: Family, hindered: bool
) -> None:
    """The rule goes on with the same number and sees what is left in a set of its own size. Where another set is in the way they are
    deleted. What comes before in the batch is done before, and what comes after it after."""
    name = f"NETPOL{family}-many"
    small, new = (Set(f"NETPOL{family}-{which}", kind, family, frozenset((member(family, 1),))) for which in ("small", "new"))
    old, left = (frozenset(member(family, number) for number in range(count)) for count in (200, 10))
    chains = {ROOT: Chain(ROOT, (Rule(DROP, (SetMatch(name, BOTH if "port" in kind else BOTH[:1]),)),))}
    if hindered:
        run("ipset", "create", f"NETPOL{family}xmany", "hash:net")
        run("ipset", "create", "other", "list:set")
        run("ipset", "add", "other", f"NETPOL{family}xmany")
    with Kernel() as kernel, IpsetSocket() as ipset:
        kernel.read()
        kernel.apply([CreateSet(Set(name, kind, family, old)), CreateSet(small), ReplaceTable(family, "mangle", chains, True)])
        before = ipset.headers()[name]
        kernel.apply(
            [
                ShrinkSet(small.name, kind, family, small.members),
                ShrinkSet(name, kind, family, old - left, Set(name, kind, family, left)),
                CreateSet(new),
            ]
        )
        after = ipset.headers()[name]
        assert (after.index, after.references, after.entries) == (before.index, 1, 10)
        assert (before.hashsize, after.hashsize) == (256, 256 if hindered else 64)
        if not hindered:
            assert name not in kernel.look().sets
        assert set(ipset.names("NETPOL")) == {name, small.name, new.name, *([f"NETPOL{family}xmany"] if hindered else [])}
        assert len(run("ipset", "save", name).splitlines()) == 11
        found = kernel.read()
        assert found.chains[family] == chains
        assert [found.sets[one] for one in (name, small.name, new.name)] == [
            Set(name, kind, family, left),
            small.with_members(frozenset()),
            new,
        ]
        kernel.apply([GrowSet(name, kind, family, old)])
        assert ipset.read(name).members == old


@pytest.mark.parametrize("done", range(5), ids=["nothing", "made", "filled", "exchanged", "destroyed"])
def test_an_exchange_that_fails_leaves_nothing(netns: int, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """Whatever was done before: the members are right, and so is what is known of them; nothing stays aside."""
    real, failing = IpsetSocket.run, [True]

    def run_some(self: IpsetSocket, commands: Sequence[Command], numbered: bool = False) -> dict[str, int]:
        first, parts = commands[0], list[Sequence[Command]]()
        if failing and isinstance(first, Create) and first.name.startswith("NETPOL4x") and done < 3:
            parts = [[], [replace(first, members=b"")], [first]]
        elif failing and isinstance(first, Swap):
            parts = [[], [], [], [first], list(commands)]
        else:
            return real(self, commands, numbered)
        failing.clear()
        real(self, parts[done], numbered)
        raise KernelError(16, "ipset", first.name if isinstance(first, Create) else first.first, "Device or resource busy")

    monkeypatch.setattr(IpsetSocket, "run", run_some)
    name = "NETPOL4-many"
    old, left = (frozenset(host(4, number) for number in range(count)) for count in (200, 10))
    with Kernel() as kernel, IpsetSocket() as ipset:
        kernel.read()
        kernel.apply([CreateSet(Set(name, "hash:ip", 4, old))])
        assert not kernel.look()
        assert kernel.apply([ShrinkSet(name, "hash:ip", 4, old - left, Set(name, "hash:ip", 4, left))]) == ()
        assert failing == []
        assert ipset.names("NETPOL") == [name]
        assert ipset.read(name).members == left
        assert not kernel.look()
        # The next one goes well.
        kernel.apply([GrowSet(name, "hash:ip", 4, old - left)])
        assert kernel.apply([ShrinkSet(name, "hash:ip", 4, old - left, Set(name, "hash:ip", 4, left))]) == ()
        assert (ipset.headers()[name].hashsize, ipset.names("NETPOL")) == (64, [name])


def test_what_an_exchange_leaves_is_told(netns: int) -> None:
    """Where somebody uses it, so that it cannot be destroyed: his set has the name that it needs."""
    run("ipset", "create", "NETPOL4xmany", "hash:ip")
    run("ipset", "create", "other", "list:set")
    run("ipset", "add", "other", "NETPOL4xmany")
    old, left = (frozenset(host(4, number) for number in range(count)) for count in (200, 10))
    with Kernel() as kernel:
        kernel.apply([CreateSet(Set("NETPOL4-many", "hash:ip", 4, old))])
        steps = [ShrinkSet("NETPOL4-many", "hash:ip", 4, old - left, Set("NETPOL4-many", "hash:ip", 4, left))]
        assert kernel.apply(steps) == ("NETPOL4xmany",)
        assert kernel.apply([CreateSet(Set("NETPOL4-new", "hash:ip", 4, left))]) == ()
