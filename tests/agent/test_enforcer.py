"""One node's enforcement on a real kernel: adoption, failure and retry, cleaning up. Drift is `test_audit`'s."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Any

import pytest

from netpol.agent.audit import NO_DRIFT
from netpol.agent.enforcer import Enforcer, clean
from netpol.errors import KernelError
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset import Create, Destroy, IpsetSocket
from netpol.kernel.xtables import TableSocket
from netpol.model import EVERYTHING, FAMILIES, Address, Namespace, Pod, Policy, PolicyRule, Query, parse_address
from netpol.policy.decode import decode_pod, decode_policy
from netpol.rules.compile import Settings
from netpol.rules.diff import diff
from netpol.rules.ruleset import BESIDE, DestroySet, ReplaceTable, beside
from tests.agent.stage import OBJECTS, WEB, enforced, the_set
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")


@pytest.fixture
def kernel(netns: int) -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def enforcer(kernel: Kernel) -> Enforcer:
    return enforced(kernel)


def test_what_is_there_is_adopted_without_a_write(enforcer: Enforcer) -> None:
    """A second process with the same cluster finds nothing to do, and the kernel is as it was."""
    before = run("iptables-legacy-save", "-t", "mangle"), run("ipset", "save")
    with Kernel() as second:
        other = Enforcer(second, "n")
        other.put(*OBJECTS)
        assert other.enforce().steps == ()
    after = run("iptables-legacy-save", "-t", "mangle"), run("ipset", "save")
    assert [[line for line in text.splitlines() if not line.startswith("#")] for text in after] == [
        [line for line in text.splitlines() if not line.startswith("#")] for text in before
    ]


def test_only_what_differs_is_changed_at_a_start(enforcer: Enforcer) -> None:
    """A process that starts with one pod more adds one member and one leaf, and creates no set anew."""
    with Kernel() as second:
        other = Enforcer(second, "n")
        other.put(*OBJECTS, Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
        assert [type(step).__name__ for step in other.enforce().steps] == ["GrowSet"]


def test_events_that_change_nothing_take_no_system_call(enforcer: Enforcer) -> None:
    """The same objects again: no steps and no calls."""
    enforcer.put(*OBJECTS)
    report = enforcer.enforce()
    assert (report.steps, report.system_calls) == ((), 0)


def test_after_a_failure_the_next_try_starts_from_what_is_there(enforcer: Enforcer, kernel: Kernel) -> None:
    """A set was destroyed under us (the rules that held it flushed): the delta fails by name, and the next enforcement mends everything."""
    name = the_set(enforcer)
    run("iptables-legacy", "-w", "-t", "mangle", "-F")
    run("ipset", "destroy", name)
    enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
    with pytest.raises(KernelError, match=name):
        enforcer.enforce()
    assert enforcer.enforce().steps
    assert diff(enforcer.state.wanted(), kernel.read()) == ()
    assert enforcer.enforce().steps == ()


def test_a_kernel_as_written_has_no_drift(enforcer: Enforcer) -> None:
    """An audit of an untouched kernel finds and changes nothing."""
    drift, report = enforcer.audit()
    assert (drift, report.steps) == (NO_DRIFT, ())


def test_cleaning_removes_ours_and_nothing_else(enforcer: Enforcer, kernel: Kernel) -> None:
    """From both tables, also chains without a hook and sets that no rule uses; what is foreign stays, with its counters."""
    with Kernel("filter") as filtered:
        second = Enforcer(filtered, "n", Settings(table="filter"))
        run("iptables-legacy-restore", "-c", "-w", "-n", "-T", "mangle", input="*mangle\n:MINE - [0:0]\n[3:4] -A FORWARD -j MINE\nCOMMIT\n")
        run("ipset", "create", "mine", "hash:ip")
        run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-j", "NETPOL")
        with IpsetSocket() as ipset:
            ipset.run([Create("NETPOL4-left", "hash:ip", 4)])
        second.put(*OBJECTS)
        filtered.apply([ReplaceTable(family, "filter", chains, True) for family, chains in second.state.wanted().chains.items()])
        assert kernel.read().chains.keys() == filtered.read().chains.keys() == {4, 6}
        clean(kernel, filtered)
        assert kernel.read().chains == filtered.read().chains == {}
        assert clean(kernel, filtered) == ()
    assert run("ipset", "list", "-n").split() == ["mine"]
    saved = run("iptables-legacy-save", "-c", "-t", "mangle")
    assert "[3:4] -A FORWARD -j MINE" in saved
    assert "NETPOL" not in saved + run("iptables-legacy-save") + run("ip6tables-legacy-save")


def test_cleaning_names_the_chains_that_somebody_elses_rules_keep(enforcer: Enforcer, kernel: Kernel) -> None:
    """In the table and family where they are, each time, also when nothing else is left; everything else goes."""
    run("iptables-legacy", "-w", "-t", "mangle", "-A", "FORWARD", "-p", "icmp", "-j", "NETPOL-DENY")
    for _ in range(2):
        with pytest.raises(KernelError, match=r"^iptables delete NETPOL-DENY of IPv4 mangle: somebody else's rule jumps there"):
            clean(kernel)
    assert list(kernel.read().chains[4]) == ["NETPOL-DENY"]
    assert run("ipset", "list", "-n") == ""
    run("iptables-legacy", "-w", "-t", "mangle", "-D", "FORWARD", "-p", "icmp", "-j", "NETPOL-DENY")
    assert clean(kernel)
    assert kernel.read().chains == {}


def test_the_kernel_takes_every_address_and_network_that_is_read(kernel: Kernel) -> None:
    """At the edges of both families, in sets of addresses, ports and networks: one member that a set refuses would stop all others."""
    addresses = [
        "0.0.0.0",
        "0.0.0.1",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:0.0.0.0",
        "::ffff:10.0.0.9",
        "fe80::1",
        "ff02::1",
        "ffff:ffff::ffff",
    ]
    blocks = ["0.0.0.0/32", "0.0.0.0/1", "255.255.255.255/32", "224.0.0.0/4", "::/128", "::1/128", "ff00::/8", "8000::/1"]
    networks = [{"ipBlock": {"cidr": block}} for block in blocks]
    excepting = {"0.0.0.0/0": ["0.0.0.0/32", "128.0.0.0/1"], "::/0": ["::/128", "8000::/1"]}
    most = [{"ipBlock": {"cidr": cidr, "except": left_out}} for cidr, left_out in excepting.items()]
    every = [{"ipBlock": {"cidr": cidr}} for cidr in excepting]
    peers = [[{"podSelector": {}}], networks, most, every]
    cases = [(peer, ports) for peer in peers for ports in ([], [{"port": "web"}], [{"port": 80}])]
    enforcer = Enforcer(kernel, "n")
    kept: set[Address] = set()
    for number, address in enumerate(addresses):
        ports = [{"name": "web", "containerPort": 1 + 5461 * number}]
        meta = {"name": f"p{number}", "namespace": "x"}
        pod = {"metadata": meta, "spec": {"nodeName": "n", "containers": [{"ports": ports}]}, "status": {"podIP": address}}
        decoded = decode_pod(json.dumps(pod).encode()).value
        assert decoded is not None
        kept.update(decoded.addresses)
        enforcer.put(decoded)
    for number, (peer, asked) in enumerate(cases):
        local = parse_address(f"10.1.0.{number}"), parse_address(f"fd00::{number}")
        kept.update(local)
        enforcer.put(Pod("x", f"local{number}", ((f"q{number}", ""),), "n", local))
        rules = [{direction: peer, "ports": asked} for direction in ("from", "to")]
        spec = {"podSelector": {"matchLabels": {f"q{number}": ""}}, "ingress": rules[:1], "egress": rules[1:]}
        policy = decode_policy(json.dumps({"metadata": {"name": f"q{number}", "namespace": "x"}, "spec": spec}).encode())
        assert policy.value is not None
        assert policy.errors == ()
        enforcer.put(policy.value)
    enforcer.put(Namespace("x", ()))
    assert enforcer.enforce().steps
    found = kernel.read()
    assert diff(enforcer.state.wanted(), found) == ()
    members = {(one.kind, one.family): one.members for one in found.sets.values()}
    assert members["hash:ip", 4] | members["hash:ip", 6] == kept
    assert members.keys() >= {(kind, family) for kind in ("hash:ip", "hash:ip,port", "hash:net") for family in FAMILIES}


def test_a_family_that_refuses_does_not_keep_the_other_from_narrowing(
    enforcer: Enforcer, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv6's table cannot be written at any try: what IPv4 is to lose goes all the same, and what it is to get comes; the error is told."""
    name = the_set(enforcer)
    write = TableSocket.write

    def refusing(self: TableSocket, *arguments: Any, **options: Any) -> Any:
        if self.family == 6:
            raise KernelError(errno.ENOPROTOOPT, "ip6tables", "mangle", "no such table")
        return write(self, *arguments, **options)

    monkeypatch.setattr(TableSocket, "write", refusing)
    enforcer.put(Policy("x", "six", WEB, (), ()))
    enforcer.drop(Pod, "b", "x")
    for there in (True, False):
        if there:
            enforcer.put(Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
        else:
            enforcer.drop(Pod, "c", "x")
        with pytest.raises(KernelError, match="ip6tables mangle: no such table"):
            enforcer.enforce()
        members = [line.split()[2] for line in run("ipset", "save", name).splitlines() if line.startswith("add")]
        assert ("10.0.0.2" in members, "10.0.0.3" in members) == (False, there)
        found, wanted = kernel.read(), enforcer.state.wanted()
        assert found.chains[4] == wanted.chains[4]
        assert found.chains[6] != wanted.chains[6]
    monkeypatch.setattr(TableSocket, "write", write)
    enforcer.enforce()
    assert diff(enforcer.state.wanted(), kernel.read()) == ()


USES: dict[str, tuple[list[str], list[str]]] = {
    "a rule": (
        ["iptables-legacy", "-w", "-A", "FORWARD", "-m", "set", "--match-set", "{set}", "src", "-j", "ACCEPT"],
        ["iptables-legacy", "-w", "-F", "FORWARD"],
    ),
    "a set": (["ipset", "add", "theirs", "{set}"], ["ipset", "flush", "theirs"]),
}


@pytest.fixture(params=USES.values(), ids=list(USES))
def in_use(enforcer: Enforcer, request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """The set that nothing of ours needs any more and that somebody else uses, and what he does to let it go."""
    name, (use, let_go) = the_set(enforcer), request.param
    run("ipset", "create", "theirs", "list:set")
    run(*(word.format(set=name) for word in use))
    enforcer.drop(Policy, "p", "x")
    return name, let_go


def test_a_set_that_somebody_else_uses_is_told_and_not_fatal(enforcer: Enforcer, kernel: Kernel, in_use: tuple[str, list[str]]) -> None:
    """All else of the change is in force; the set goes at the first audit after it is free, and is no drift meanwhile."""
    name, let_go = in_use
    assert enforcer.enforce().leftover == (name,)
    assert set(run("ipset", "list", "-n").split()) == {"theirs", name}
    assert diff(enforcer.state.wanted(), kernel.read()) == (DestroySet(name),)
    drift, report = enforcer.audit()
    assert (drift, report.steps, report.leftover) == (NO_DRIFT, (), (name,))
    assert (enforcer.enforce().steps, enforcer.enforce().leftover) == ((), (name,))
    run(*let_go)
    drift, report = enforcer.audit()
    assert (drift, report.steps, report.leftover) == (NO_DRIFT, (DestroySet(name),), ())
    assert run("ipset", "list", "-n").split() == ["theirs"]
    assert enforcer.audit() == (NO_DRIFT, enforcer.audit()[1])


def test_a_set_that_was_left_over_goes_with_the_next_change(enforcer: Enforcer, in_use: tuple[str, list[str]]) -> None:
    """Each change tries again, whatever it is about."""
    name, let_go = in_use
    assert enforcer.enforce().leftover == (name,)
    enforcer.put(Policy("x", "other", WEB, (), None))
    assert enforcer.enforce().leftover == (name,)
    run(*let_go)
    enforcer.drop(Policy, "other", "x")
    assert enforcer.enforce().leftover == ()
    assert run("ipset", "list", "-n").split() == ["theirs"]


@pytest.mark.parametrize("change", [False, True], ids=["an audit", "a change"])
def test_a_set_that_was_left_over_is_destroyed_by_who_used_it(enforcer: Enforcer, in_use: tuple[str, list[str]], change: bool) -> None:
    """It is gone as it should be: the next audit finds nothing amiss, and so the one after the next change."""
    name, let_go = in_use
    assert enforcer.enforce().leftover == (name,)
    run(*let_go)
    run("ipset", "destroy", name)
    if change:
        enforcer.put(Policy("x", "other", WEB, (), None))
        report = enforcer.enforce()
        assert (report.leftover, len(report.steps) > 1) == ((), True)
    for _ in range(2):
        assert (enforcer.audit()[0], enforcer.audit()[1].leftover) == (NO_DRIFT, ())


def test_nothing_is_left_over_once_all_was_read_and_is_as_wanted(enforcer: Enforcer, in_use: tuple[str, list[str]]) -> None:
    """A reading that finds it gone forgets it."""
    name, let_go = in_use
    assert enforcer.enforce().leftover == (name,)
    run(*let_go)
    run("ipset", "destroy", name)
    report = enforcer.adopt()
    assert (report.steps, report.leftover) == ((), ())


def test_a_set_that_was_left_over_is_wanted_again(enforcer: Enforcer, kernel: Kernel, in_use: tuple[str, list[str]]) -> None:
    """It is taken as it stands and gets the members of now, in one step with no error; who follows the steps is told all, not these."""
    name, _ = in_use
    assert enforcer.enforce().leftover == (name,)
    enforcer.put(OBJECTS[3], Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)))
    enforcer.drop(Pod, "b", "x")
    report = enforcer.enforce()
    assert report.leftover == ()
    assert (report.whole, report.touched) == (enforcer.state.wanted(), None)
    assert kernel.read() == enforcer.state.wanted()
    assert enforcer.audit()[0] == NO_DRIFT


def test_a_new_process_tells_what_is_in_use(enforcer: Enforcer, in_use: tuple[str, list[str]]) -> None:
    """What it finds and cannot destroy is no reason not to begin; and cleaning up says which set is in the way of the last of it."""
    name, let_go = in_use
    with Kernel() as second, Kernel("filter") as filtered:
        other = Enforcer(second, "n")
        other.put(*OBJECTS[:3])
        assert other.enforce().leftover == (name,)
        with pytest.raises(KernelError, match=f"ipset destroy {name}: in use by somebody else"):
            clean(second, filtered)
        assert second.read().chains == {}
        run(*let_go)
        assert clean(second, filtered) == (DestroySet(name),)


def test_a_set_of_our_name_and_another_type_that_somebody_uses(enforcer: Enforcer, kernel: Kernel) -> None:
    """It cannot be made anew: the error names it, the last rules stay, and when it is free the next try succeeds."""
    before = kernel.read().chains
    later = Policy(
        "y",
        "q",
        WEB,
        (
            PolicyRule(
                (Query("x", EVERYTHING, EVERYTHING), Query("y", EVERYTHING, WEB)),
            ),
        ),
        None,
    )
    objects = (Namespace("y"), Pod("y", "a", (("app", "web"),), "n", (parse_address("10.0.0.9"),)), later)
    with Kernel() as second:
        planned = Enforcer(second, "n")
        planned.put(*OBJECTS, *objects)
        name = next(name for name in sorted(planned.state.wanted().sets.keys() - enforcer.state.wanted().sets.keys()))
    run("ipset", "create", name, "hash:net")
    run("ipset", "create", "theirs", "list:set")
    run("ipset", "add", "theirs", name)
    enforcer.put(*objects)
    for _ in range(2):
        with pytest.raises(KernelError, match=f"{name}: (a set of this name exists|in use by a kernel component)"):
            enforcer.enforce()
        assert kernel.read().chains == before
    run("ipset", "flush", "theirs")
    enforcer.enforce()
    assert kernel.read() == enforcer.state.wanted()


def test_changes_that_broke_off_under_all_names(enforcer: Enforcer, kernel: Kernel) -> None:
    """Small sets that nobody uses have every name that a change could give its own: some are destroyed first, and made anew."""
    for letter in "".join(map("".join, BESIDE)):
        run("ipset", "create", beside(the_set(enforcer), letter), "hash:ip")
    more = Pod("x", "c", (), "elsewhere", (parse_address("10.0.0.3"),)), Policy("x", "q", WEB, None, ())
    with Kernel() as second:
        other = Enforcer(second, "n")
        other.put(*OBJECTS, *more)
        steps = other.enforce().steps
        assert isinstance(steps[0], DestroySet)
        assert second.read() == other.state.wanted()


def test_destroying_a_set_needs_no_wanted_state(kernel: Kernel) -> None:
    """The step alone, as cleaning up uses it."""
    with IpsetSocket() as ipset:
        ipset.run([Create("NETPOL4-x", "hash:ip", 4)])
        ipset.run([Destroy("NETPOL4-x")])
    assert kernel.read().sets == {}
