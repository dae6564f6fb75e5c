"""What our sets should hold, followed through any steps, without a kernel."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.kernel import proofs
from netpol.kernel._native import ffi
from netpol.kernel.digests import Content, content
from netpol.kernel.ipset import Records
from netpol.kernel.ipset_values import _RECORD
from netpol.kernel.proofs import Look, SetProofs
from netpol.kernel.xtables import Entries
from netpol.model import Network
from netpol.rules.ruleset import CreateSet, DestroySet, GrowSet, SetStep, ShrinkSet
from netpol.rules.sets import Set, net_member

NAMES = ("NETPOL4-a", "NETPOL4-b", "NETPOL4-c")
NONE: frozenset[str] = frozenset()
MEMBERS = [bytes((10, 0, 0, i)) for i in range(1, 8)]


def records(sets: Mapping[str, frozenset[bytes]], maxelem: int = 64) -> Records:
    """What C would have written about these sets."""
    raw = b""
    for name, members in sets.items():
        found, number = content(b"".join(members), 4), (*NAMES, "NETPOL4-new").index(name)
        numbers = found.members, 0, 64, maxelem, number, 4, 0, bytes(4), bytes(4), found.members
        raw += _RECORD.pack(name.encode(), b"hash:ip", *numbers, *found.sums)
    return Records(raw)


changes = st.tuples(st.sampled_from(NAMES), st.sets(st.sampled_from(MEMBERS)))


@given(st.lists(changes, max_size=30), st.integers(1, 40))
def test_any_steps_are_followed(story: list[tuple[str, set[bytes]]], later: int) -> None:
    """Sets come, grow, shrink and go: with as many steps remembered as may be, what should be there is what is there, and nothing else."""
    known, sets = SetProofs(), dict[str, frozenset[bytes]]()
    limit, proofs._LATER = proofs._LATER, later
    try:
        for name, wanted in story:
            steps: list[SetStep] = []
            if name not in sets:
                steps.append(CreateSet(Set(name, "hash:ip", 4, frozenset(wanted))))
                sets[name] = frozenset(wanted)
            elif not wanted:
                steps.append(DestroySet(name))
                del sets[name]
            else:
                steps.append(GrowSet(name, "hash:ip", 4, frozenset(wanted) - sets[name]))
                steps.append(ShrinkSet(name, "hash:ip", 4, sets[name] - frozenset(wanted)))
                sets[name] = frozenset(wanted)
            known.follow(steps)
    finally:
        proofs._LATER = limit
    assert known.names == sets.keys()
    assert known.members == sum(map(len, sets.values()))
    assert known.agree(records(sets))
    assert known.differing(records(sets)) == (NONE, NONE)
    for name in sets:
        other = sets[name] ^ {MEMBERS[0]}
        assert known.differing(records({**sets, name: other})) == (frozenset((name,)), NONE)
        assert not known.agree(records({**sets, name: other}))
        assert known.differing(records({n: m for n, m in sets.items() if n != name})) == (frozenset((name,)), NONE)
    assert known.differing(records({**sets, "NETPOL4-new": frozenset()})) == (frozenset(("NETPOL4-new",)), NONE)


def test_what_is_gone_again_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small sets of a storm's writes are destroyed before anybody looks: no digest is made of one."""
    digested: list[bytes] = []

    def counted(packed: bytes, width: int) -> Content:
        digested.append(packed)
        return content(packed, width)

    monkeypatch.setattr(proofs, "content", counted)
    made, small = SetProofs(), Set(NAMES[1], "hash:ip", 4, frozenset(MEMBERS[:3]))
    made.follow([CreateSet(Set(NAMES[0], "hash:ip", 4)), CreateSet(small), GrowSet(NAMES[1], "hash:ip", 4, frozenset(MEMBERS[4:]))])
    made.follow([DestroySet(NAMES[1])])
    assert made.names == {NAMES[0]}
    assert digested == [b""]


def known() -> tuple[SetProofs, dict[str, frozenset[bytes]]]:
    made, sets = SetProofs(), {NAMES[0]: frozenset(MEMBERS[:2])}
    made.follow([CreateSet(Set(NAMES[0], "hash:ip", 4, sets[NAMES[0]]))])
    return made, sets


def test_what_is_right_is_no_news() -> None:
    """The records that were found right last are known by their bytes, until something is written."""
    made, sets = known()
    assert made.is_news(records(sets))
    made.differing(records(sets))
    assert not made.is_news(records(sets))
    assert made.is_news(records(sets, maxelem=65))
    made.follow([DestroySet(NAMES[0])])
    assert made.is_news(records(sets))


def test_records_that_agreed_are_looked_at_again_once_something_was_done() -> None:
    """By their bytes they are known only as long as the sets should hold what they held."""
    grown = GrowSet(NAMES[0], "hash:ip", 4, frozenset(MEMBERS[4:5]))
    for change in ("follow", "doubt", "learn"):
        made, sets = known()
        assert made.agree(records(sets))
        if change == "follow":
            made.follow([grown])
        elif change == "doubt":
            made.doubt([CreateSet(Set(NAMES[1], "hash:ip", 4))])
        else:
            made.learn({NAMES[0]: Set(NAMES[0], "hash:ip", 4)}, NAMES[:1])
        assert not made.agree(records(sets)), change


def test_another_header_is_a_stranger() -> None:
    """Whatever is in it; and it is one until somebody has read it."""
    made, sets = known()
    made.differing(records(sets))
    for _ in range(2):
        assert made.differing(records(sets, maxelem=65)) == (NONE, frozenset(NAMES[:1]))
        assert not made.agree(records(sets, maxelem=65))
    made.learn({NAMES[0]: Set(NAMES[0], "hash:ip", 4, sets[NAMES[0]])}, [NAMES[0]])
    assert made.differing(records(sets, maxelem=65)) == (NONE, NONE)


def test_a_new_set_of_the_name_is_no_stranger() -> None:
    """One that we destroyed and made again is ours."""
    made, sets = known()
    made.differing(records(sets))
    made.follow([DestroySet(NAMES[0]), CreateSet(Set(NAMES[0], "hash:ip", 4, sets[NAMES[0]]))])
    assert made.differing(records(sets, maxelem=65)) == (NONE, NONE)


def test_what_is_in_doubt_differs_until_it_is_read() -> None:
    """After a command that failed on the way nobody knows: the whole look says so, the cheap one does not call that a touch."""
    made, sets = known()
    made.doubt([GrowSet(NAMES[0], "hash:ip", 4, frozenset(MEMBERS[3:4])), CreateSet(Set(NAMES[1], "hash:ip", 4))])
    assert made.differing(records(sets))[0] == {NAMES[0], NAMES[1]}
    assert made.agree(records({**sets, NAMES[1]: frozenset()}))
    assert made.members == 0
    made.learn({NAMES[0]: Set(NAMES[0], "hash:ip", 4, sets[NAMES[0]])}, NAMES[:2])
    assert made.names == {NAMES[0]}
    assert made.differing(records(sets)) == (NONE, NONE)


def test_a_flag_that_may_flip_is_in_doubt() -> None:
    """An add may turn a prefix that is there into its exception: sums cannot tell, so the set is read again."""
    made, member = SetProofs(), net_member(Network(b"\x0a\0\0\0", 8))
    made.follow([CreateSet(Set(NAMES[0], "hash:net", 4, frozenset((member,))))])
    assert made.members == 1
    made.follow([GrowSet(NAMES[0], "hash:net", 4, frozenset((member[:-1] + b"\1",)))])
    assert (made.members, made.names) == (0, frozenset(NAMES[:1]))


def test_a_look_is_true_where_something_differs() -> None:
    """Whatever it is."""
    assert not Look()
    assert all((Look(tables=frozenset((4,))), Look(sets=frozenset(("x",))), Look(strangers=frozenset(("x",)))))


def test_bytes_that_are_no_table_prove_nothing() -> None:
    """Neither cut off nor of another length than they say."""
    native = ffi.new("uint8_t[]", 200)
    for entries in (0, 1, 2):
        info = ffi.new("struct np_xt_info *", {"num_entries": entries, "size": 200})
        assert Entries(4, "mangle", info, native).proof() is None
