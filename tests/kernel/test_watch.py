"""Sleeping with an open eye, on a real kernel: what ends the sleep, what a look costs, and what is never looked at."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netpol.kernel import namespaces
from netpol.kernel._native import ffi, lib
from netpol.kernel.apply import Kernel
from netpol.kernel.held_sets import GLANCE_SETS
from netpol.kernel.ipset import Add, IpsetSocket
from netpol.kernel.watch import Bell
from netpol.rules.diff import diff
from netpol.rules.ruleset import DROP, ROOT, Chain, CreateSet, DestroySet, Rule, Ruleset, SetMatch
from netpol.rules.sets import Set
from tests.referees import run

SET, OTHER = "NETPOL4-a", "NETPOL4-b"
MEMBER = b"\x0a\0\0\1"
RULES = Chain(ROOT, (Rule(DROP, (SetMatch(SET, ("src",)),)),))
STATE = Ruleset({4: {ROOT: RULES}, 6: {}}, {name: Set(name, "hash:ip", 4, frozenset((MEMBER,))) for name in (SET, OTHER)}, frozenset((4,)))
FOREVER = 20.0


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    """The state is in force; a look of Python's found nothing wrong."""
    with Kernel() as kernel:
        kernel.apply(diff(STATE, kernel.read()))
        assert not kernel.touched()
        yield kernel


def meddling(netns: int, act: Callable[[], object]) -> threading.Thread:
    """Another process, as it were, some time later."""

    def meddle() -> None:
        with namespaces.entered(netns):
            time.sleep(0.05)
            act()

    thread = threading.Thread(target=meddle)
    thread.start()
    return thread


MEDDLERS: dict[str, Callable[[], object]] = {
    "a rule of ours goes": lambda: run("iptables-legacy", "-w", "-t", "mangle", "-F", ROOT),
    "a rule of his": lambda: run("iptables-legacy", "-w", "-t", "mangle", "-A", "OUTPUT", "-j", "ACCEPT"),
    "a member of the first set": lambda: run("ipset", "add", SET, "10.0.0.9"),
    "a member of the last set": lambda: run("ipset", "add", OTHER, "10.0.0.9"),
    "the last set is gone": lambda: run("ipset", "destroy", OTHER),
}


@pytest.mark.parametrize("who", MEDDLERS)
def test_somebodys_hand_ends_the_sleep(kernel: Kernel, netns: int, who: str) -> None:
    """Long before time is over, and without anybody ringing; Python's look sees it too."""
    thread = meddling(netns, MEDDLERS[who])
    now = time.monotonic()
    assert kernel.rest(Bell(), now, 0.005, now + FOREVER) == 0
    thread.join()
    assert kernel.touched()


def test_a_look_costs_a_call_a_table_and_two_a_set(kernel: Kernel) -> None:
    """As many looks as fit, each of the same calls; the next one is due when the last one and its pause are over."""
    before, now = kernel.calls, time.monotonic()
    due = kernel.rest(Bell(), now, 0.001, now + 0.05)
    looks, rest = divmod(kernel.calls - before, 1 + 2 * len(STATE.sets))
    assert rest == 0
    assert 1 < looks <= 51
    assert now + 0.05 <= due <= time.monotonic() + 0.001
    assert not kernel.touched()


def test_no_look_comes_before_its_time(kernel: Kernel) -> None:
    """Whoever sleeps for less than that looks at nothing, and is told the same time again."""
    run("ipset", "add", SET, "10.0.0.9")
    before, now = kernel.calls, time.monotonic()
    assert kernel.rest(Bell(), now + 60.0, 0.001, now + 0.002) == pytest.approx(now + 60.0)
    assert time.monotonic() >= now + 0.002
    assert kernel.calls == before


def test_a_bell_ends_the_sleep_also_where_it_rang_before(kernel: Kernel) -> None:
    """Three rings are one; after it the bell is silent, and a sleep lasts."""
    bell, now = Bell(), time.monotonic()
    for _ in range(3):
        bell.ring()
    kernel.rest(bell, now + FOREVER, 1.0, now + FOREVER)
    begin = time.monotonic()
    kernel.rest(bell, begin + FOREVER, 1.0, begin + 0.02)
    assert time.monotonic() >= begin + 0.02
    bell.ring()
    bell.wait(FOREVER)
    bell.wait(0.001)


def test_a_bell_wakes_a_sleeper(kernel: Kernel, netns: int) -> None:
    bell = Bell()
    thread = meddling(netns, bell.ring)
    now = time.monotonic()
    due = kernel.rest(bell, now, 60.0, now + FOREVER)
    thread.join()
    assert now + 60.0 <= due <= time.monotonic() + 60.0


def test_after_a_write_there_is_nothing_to_compare_with(kernel: Kernel) -> None:
    """The sleep ends when a look is due, which is Python's; no system call is made until then."""
    kernel.apply((CreateSet(Set("NETPOL4-c", "hash:ip", 4, frozenset())),))
    before, now = kernel.calls, time.monotonic()
    assert kernel.rest(Bell(), now + 0.01, 0.001, now + FOREVER) == now + 0.01
    assert time.monotonic() >= now + 0.01
    assert kernel.calls == before


def test_many_sets_are_left_out(kernel: Kernel) -> None:
    """Where Python's look leaves them out: only the table is asked about, however the sets changed."""
    kernel.apply(tuple(CreateSet(Set(f"NETPOL4-{i}", "hash:ip", 4, frozenset())) for i in range(GLANCE_SETS)))
    assert not kernel.touched()
    run("ipset", "add", SET, "10.0.0.9")
    before, now = kernel.calls, time.monotonic()
    assert kernel.rest(Bell(), now, 60.0, now + 0.01) != 0
    assert kernel.calls == before + 1


def test_sets_can_be_asked_after_a_look_that_was_broken_off(kernel: Kernel) -> None:
    """What was said to the look, and that nobody heard, is no answer to who asks next."""
    kernel._watch._native.dump.record_room = 0
    now = time.monotonic()
    assert kernel.rest(Bell(), now, 60.0, now + 0.01) == 0
    assert not kernel.touched()
    kernel.apply((DestroySet(OTHER), CreateSet(STATE.sets[OTHER])))
    assert kernel.rest(Bell(), now, 60.0, now) == now


def test_the_same_set_made_anew_is_another_one(kernel: Kernel) -> None:
    """Its members and its size are the same, its number is not."""
    with IpsetSocket() as stranger:
        run("ipset", "create", "NETPOL4-in-between", "hash:ip")
        run("ipset", "destroy", OTHER)
        run("ipset", "create", "other", "hash:ip")
        run("ipset", "create", OTHER, "hash:ip")
        stranger.run([Add(OTHER, "hash:ip", 4, MEMBER)])
    now = time.monotonic()
    assert kernel.rest(Bell(), now, 60.0, now + 0.01) == 0


def test_a_bell_is_closed_when_it_is_gone() -> None:
    """Its descriptor is inherited by no program, and is no more when nobody holds the bell."""
    bell = Bell()
    descriptor = bell.descriptor
    assert not os.get_inheritable(descriptor)
    del bell
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_cannot_be_waited_for() -> None:
    """A descriptor that is closed is an error and no reason to sleep; time that is over is over."""
    calls, now = ffi.new("uint64_t *"), time.monotonic_ns()
    assert lib.np_sys_await(-1, now - 1, calls) == 0
    descriptor = os.eventfd(1)
    os.close(descriptor)
    assert lib.np_sys_await(descriptor, now + 3600 * 10**9, calls) == -9
    assert calls[0] == 3
    assert abs(lib.np_sys_now() - time.monotonic_ns()) < 10**9


def test_a_bell_that_is_none(kernel: Kernel) -> None:
    """Nobody sleeps by it, and who tries is told: a loop would never rest."""
    bell = Bell()
    bell.descriptor = 1 << 20
    now = time.monotonic()
    with pytest.raises(OSError, match="Bad file descriptor"):
        bell.wait(FOREVER)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.rest(bell, now + FOREVER, 1.0, now + FOREVER)
