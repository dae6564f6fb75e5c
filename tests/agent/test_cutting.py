"""When flows are looked at, and whose: by a clock that the test turns. Packets are in tests/test_cutting_packets.py."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpol.agent import cutter
from netpol.agent.cutter import Cutter
from netpol.agent.cutting import BURST, CHEAP, Cutting, Ration, Sweeper, Touched
from netpol.agent.enforcer import Report
from netpol.agent.notify import Notifier
from netpol.agent.tally import Tally
from netpol.agent.voice import Voice
from netpol.errors import KernelError
from netpol.rules.compile import Settings
from netpol.rules.ruleset import GrowSet, Ruleset
from tests.agent.process import until

A, B, C = (frozenset({bytes((10, 0, 0, i))}) for i in (1, 2, 3))
BIT = Settings().cut_bit
NOTHING: Touched = frozenset()
EMPTY = Ruleset({}, {})


def test_a_change_is_looked_at_at_once_and_once_more() -> None:
    """The first after quiet is due at once, again a second later, and then nothing is."""
    ration = Ration()
    assert ration.due() is None
    ration.tell(A)
    due = ration.due()
    assert due is not None
    assert due <= 100
    assert (ration.take(100.0), ration.due()) == (A, 101.0)
    assert (ration.take(101.5), ration.due()) == (A, None)


def test_changes_are_gathered() -> None:
    """What changes while a sweep rests waits for the end of its second; then it is looked at together with what was seen once."""
    ration = Ration()
    ration.tell(A)
    ration.take(100.0)
    ration.tell(B)
    ration.tell(C)
    assert ration.due() == 101.0
    assert ration.take(101.0) == A | B | C
    assert ration.take(102.0) == B | C
    assert ration.due() is None


def test_cheap_sweeps_follow_one_another() -> None:
    """Three in a row, then one a second; what was looked at once is looked at again a second after the last of them."""
    ration = Ration()
    for touched, now in ((A, 100.0), (B, 100.1), (C, 100.2)):
        ration.tell(touched)
        due = ration.due()
        assert due is not None
        assert due <= now
        assert ration.take(now) == touched
        ration.succeeded(CHEAP)
    assert ration.due() == 101.2
    ration.tell(A)
    assert ration.due() == 101.2
    assert ration.take(101.2) == A | B | C
    ration.succeeded(CHEAP)
    assert ration.due() == 102.2


def test_dear_sweeps_do_not() -> None:
    """One that took long is followed after its second, however few there were."""
    ration = Ration()
    ration.tell(A)
    ration.take(100.0)
    ration.succeeded(2 * CHEAP)
    ration.tell(B)
    assert ration.due() == 101.0


def test_everything_is_more_than_anybody() -> None:
    """One change that nobody can tell the extent of makes it all, both times."""
    ration = Ration()
    ration.tell(A)
    ration.tell(None)
    ration.tell(B)
    assert (ration.take(1.0), ration.take(2.0), ration.due()) == (None, None, None)


def test_failures_are_tried_again_less_and_less_often() -> None:
    """After 1, 2, 4 ... seconds and at most every minute; a success makes it quick again. Nothing of what was touched is lost."""
    ration = Ration()
    ration.tell(A)
    waits = []
    now = 0.0
    for _ in range(8):
        touched = ration.take(now)
        ration.failed(touched, now)
        due = ration.due()
        assert due is not None
        waits.append(due - now)
        now = due
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert ration.take(now) == A
    ration.succeeded(1.0)
    assert ration.due() == now + 1
    ration.tell(B)
    assert ration.take(now + 1) == A | B
    ration.failed(A | B, now + 1)
    assert ration.due() == now + 2


def test_what_waited_for_all_packets_is_looked_at_once() -> None:
    """A sweep that missed nothing needs no second one, and is the second one of what was looked at before, however soon it comes."""
    ration = Ration()
    ration.tell(A)
    assert (ration.take(100.0, settled=True), ration.due()) == (A, None)
    ration.succeeded(CHEAP)
    ration.tell(B)
    assert ration.take(100.1) == B
    ration.succeeded(CHEAP)
    ration.tell(C)
    assert (ration.take(100.2, settled=True), ration.due()) == (B | C, None)
    ration.tell(A)
    assert ration.take(105.0) == A
    assert (ration.take(106.0, settled=True), ration.due()) == (A, None)


def test_a_failure_before_anything_was_taken_waits_too() -> None:
    """The connection tracking table could not be opened after a cheap sweep: what is touched is kept, and no try follows at once."""
    ration = Ration()
    ration.tell(A)
    ration.take(100.0, settled=True)
    ration.succeeded(CHEAP)
    ration.tell(B)
    ration.failed(NOTHING, 100.5)
    assert ration.due() == 101.5
    assert ration.take(101.5, settled=True) == B


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12).map(lambda quarters: quarters / 4), st.sampled_from([A, B, C, None, NOTHING]), st.booleans(), st.booleans()
        ),
        max_size=40,
    ),
    st.sampled_from([CHEAP, 2 * CHEAP]),
)
def test_whatever_is_told(story: list[tuple[float, Touched, bool, bool]], seconds: float) -> None:
    """No two sweeps are nearer than a second, but for `BURST` cheap ones at most; each change is looked at twice by sweeps that succeed,
    or once by one that missed nothing."""
    ration = Ration()
    now = 0.0
    times: list[float] = []
    owed: dict[bytes, int] = {}

    def turn(works: bool, settled: bool) -> None:
        due = ration.due()
        if due is None or due > now:
            return
        times.append(now)
        burst = BURST if seconds <= CHEAP else 1
        assert all(times[i + burst] - times[i] >= 1 for i in range(len(times) - burst))
        assert all(len([at for at in times if since <= at <= now]) <= now - since + burst for since in times)
        touched = ration.take(now, settled)
        if not works:
            ration.failed(touched, now)
            return
        ration.succeeded(seconds)
        for address in list(owed) if touched is None else touched:
            owed[address] = owed.get(address, 0) - 1 - settled
            if owed[address] <= 0:
                del owed[address]

    for pause, touched, works, settled in story:
        now += pause
        ration.tell(touched)
        owed |= dict.fromkeys(A | B | C if touched is None else touched, 2)
        turn(works, settled)
    for _ in range(100):
        now += 1
        turn(True, False)
    assert (owed, ration.due()) == ({}, None)


class Unsettled(Cutter):
    """Where nobody can wait for packets under way."""

    def settle(self) -> bool:
        return False


class Bench:
    """A sweeper of the test's namespace, what it was told, and a clock."""

    def __init__(self, stack: ExitStack, cut: bool = True, broken: int = 0, opened: type[Cutter] = Unsettled) -> None:
        self.opened = opened
        self.now = 50.0
        self.reports: list[cutter.Report] = []
        self.errors: list[str] = []
        self.broken = broken
        self.sweeper = stack.enter_context(
            Sweeper(self.open, lambda: self.now, lambda report, _: self.reports.append(report), lambda e: self.errors.append(str(e)), cut)
        )

    def open(self) -> Cutter:
        if self.broken:
            self.broken -= 1
            raise KernelError(errno.ENOMEM, "conntrack open", "netlink socket", "the kernel is out of memory")
        return self.opened(BIT)

    def turn(self, seconds: float = 0.0) -> float | None:
        self.now += seconds
        return self.sweeper.turn()


@pytest.fixture
def stack(netns: int) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def whole(touched: Touched = None) -> Report:
    return Report((), 0, EMPTY, frozenset(), touched)


def test_nothing_is_known_before_the_first_whole_state(stack: ExitStack) -> None:
    """Steps alone say nothing; the whole state is swept at once and again, then only what is touched; no change, no sweep."""
    bench = Bench(stack)
    bench.sweeper.follow(Report((), 0, None, frozenset(), A))
    assert (bench.turn(), bench.reports) == (None, [])
    bench.sweeper.follow(whole())
    assert (bench.turn(), bench.turn(0.5), bench.turn(0.5), len(bench.reports)) == (51.0, 51.0, None, 2)
    bench.sweeper.follow(Report((), 0, None, frozenset(), NOTHING))
    assert (bench.turn(9), len(bench.reports)) == (None, 2)
    bench.sweeper.follow(Report((), 0, None, frozenset(), A))
    assert (bench.turn(), bench.turn(1), len(bench.reports)) == (61.0, None, 4)
    # Everything, or one address: how many entries there are, and no filter where they are few.
    assert bench.reports[2].calls == bench.reports[0].calls


def test_with_packets_waited_for_each_change_is_swept_once(stack: ExitStack) -> None:
    """All packets that were under way have their entries, or never will: nothing is looked at again."""
    bench = Bench(stack, opened=Cutter)
    bench.sweeper.follow(whole())
    assert (bench.turn(), len(bench.reports)) == (None, 1)
    bench.sweeper.follow(Report((), 0, None, frozenset(), A))
    assert (bench.turn(), bench.turn(5), len(bench.reports)) == (None, None, 2)


def test_an_error_is_told_once_and_tried_again(stack: ExitStack) -> None:
    """The third try succeeds; an error of later is told anew."""
    bench = Bench(stack, broken=2)
    bench.sweeper.follow(whole())
    assert (bench.turn(), bench.turn(1), bench.turn(1), bench.turn(1)) == (51.0, 53.0, 53.0, 54.0)
    assert (len(bench.errors), len(bench.reports)) == (1, 1)
    assert "out of memory" in bench.errors[0]


def test_switched_off_marks_are_forgotten_and_that_is_all(stack: ExitStack) -> None:
    """Twice, a second apart, and never again whatever changes."""
    bench = Bench(stack, cut=False)
    bench.sweeper.follow(whole())
    assert (bench.turn(), bench.turn(1)) == (51.0, None)
    bench.sweeper.follow(Report((GrowSet("s", "hash:ip", 4, A),), 0, None, frozenset(), None))
    assert (bench.turn(5), len(bench.reports)) == (None, 2)
    # Nobody asks for the state, and what becomes of it is not kept. Of a set that is not there nothing could be.
    assert bench.sweeper._replay is not None
    assert bench.sweeper._replay.ruleset() is EMPTY


def test_the_thread_ends(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for a change, and while a second sweep is due; a second close does nothing. Its sleeping is the test's."""
    monkeypatch.setattr(Cutter, "settle", lambda self: False)
    waits: list[float | None] = []
    waiting = threading.Event()

    def wait(condition: threading.Condition, seconds: float | None) -> object:
        waits.append(seconds)
        if seconds is not None:
            waiting.set()
        return condition.wait(None)

    with Cutting(BIT, clock=lambda: 7.0, wait=wait) as cutting:
        pass
    cutting.close()
    with Cutting(BIT, clock=lambda: 7.0, wait=wait) as cutting:
        cutting.changed(whole())
        assert waiting.wait(20)
    assert waits[-1] == 1.0


def test_in_doubt_nothing_is_swept(stack: ExitStack) -> None:
    """Neither what is due already nor what is told of one step; the next report of all is followed by a sweep of everything."""
    bench = Bench(stack)
    bench.sweeper.follow(whole())
    assert (bench.turn(), len(bench.reports)) == (51.0, 1)
    bench.sweeper.doubt()
    bench.sweeper.follow(Report((), 0, None, frozenset(), A))
    assert (bench.turn(5), len(bench.reports)) == (None, 1)
    bench.sweeper.follow(whole())
    assert (bench.turn(), len(bench.reports)) == (56.0, 2)


def test_switched_off_no_doubt_has_marks_forgotten_again(stack: ExitStack) -> None:
    """What nobody marks needs no other look."""
    bench = Bench(stack, cut=False)
    bench.sweeper.follow(whole())
    assert (bench.turn(), bench.turn(1)) == (51.0, None)
    bench.sweeper.doubt()
    bench.sweeper.follow(whole())
    assert (bench.turn(), len(bench.reports)) == (None, 2)


def test_the_thread_is_told_of_a_doubt(netns: int) -> None:
    """What it hears between a doubt and a report of all brings no sweep; it waits for more."""
    swept: list[cutter.Report] = []
    waits: list[float | None] = []

    def wait(condition: threading.Condition, seconds: float | None) -> object:
        waits.append(seconds)
        return condition.wait(seconds)

    with Cutting(BIT, swept=lambda report, seconds: swept.append(report), wait=wait) as cutting:
        cutting.changed(whole())
        until(lambda: len(swept) == 1 and waits[-1:] == [None])
        before = len(waits)
        cutting.doubted()
        until(lambda: len(waits) == before + 1)
        cutting.changed(Report((), 0, None, frozenset(), A))
        until(lambda: len(waits) == before + 2)
        assert (len(swept), waits[-1]) == (1, None)
        cutting.changed(whole())
        until(lambda: len(swept) == 2)


def test_a_refusal_is_a_doubt() -> None:
    """Whoever is told by the loop that the kernel refused tells who cuts, each time."""
    told: list[str] = []
    voice = Voice(
        Notifier({}, 1, lambda: 0.0),
        Tally(),
        changed=lambda report: told.append("changed"),
        doubted=lambda: told.append("doubted"),
        keep=lambda: None,
        announce=lambda put: None,
    )
    for report in (whole(), whole()):
        voice.applied(report)
        voice.refused(KernelError(errno.ENOMEM, "iptables replace", "mangle", "no memory"))
    assert told == ["changed", "doubted"] * 2
