"""What cannot be done is said in words that name table, chain, rule or set, and what to do; and nothing has changed then."""

from __future__ import annotations

import errno
import os
import socket as sockets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from netpol.errors import KernelError, NotPermitted, Unsupported
from netpol.kernel import xtables
from netpol.kernel.blocks import EncodedChain, SetNumbers
from netpol.kernel.encode import encode_chain, encode_chains
from netpol.kernel.ipset import Create, Destroy, IpsetSocket
from netpol.kernel.xtables import TableSocket
from netpol.model import FAMILIES, TCP, Family, Network, parse_address, parse_network
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    RETURN,
    ROOT,
    Addrtype,
    Chain,
    Connmark,
    Conntrack,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Match,
    Multiport,
    Nflog,
    Opaque,
    OpaqueTarget,
    Reject,
    Rule,
    SetMatch,
    TableName,
    Tcp,
    Verdict,
)
from tests.kernel.iptables import restore, saved
from tests.kernel.unprivileged import refusal
from tests.referees import run

SETS = SetNumbers({"here": 1})
GOOD = Rule(RETURN)


def matching(*matches: Match) -> Rule:
    return Rule(RETURN, matches)


# The third rule of the second chain is one of these: family, rule, the field that is named.
UNFIT: dict[str, tuple[Family, Rule, str]] = {
    "interface": (4, Rule(RETURN, in_interface="x" * 16), "in_interface"),
    "interface with a zero": (4, Rule(RETURN, out_interface="a\0b"), "out_interface"),
    "protocol": (4, Rule(RETURN, protocol=256), "protocol"),
    "protocol below zero": (4, Rule(RETURN, protocol=-1), "protocol"),
    "IPv6 in IPv4": (4, Rule(RETURN, source=parse_network("fd00::/8")), "address"),
    "IPv4 in IPv6": (6, Rule(RETURN, destination=parse_network("10.0.0.0/8")), "address"),
    "prefix": (4, Rule(RETURN, source=Network(parse_address("10.0.0.0"), 33)), "length"),
    "fragments of IPv6": (6, Rule(RETURN, fragment=True), "fragment"),
    "no fragments of IPv6": (6, Rule(RETURN, not_fragment=True), "not_fragment"),
    "port": (4, matching(Tcp(destination=(1, 65536))), "destination"),
    "port below zero": (4, matching(Tcp(source=(-1, 1))), "source"),
    "flags": (4, matching(Tcp(flags_mask=256)), "flags_mask"),
    "sixteen ports": (4, matching(Multiport(tuple((n, n) for n in range(1, 17)))), "ports"),
    "sixteen places": (4, matching(Multiport(tuple((n, n + 1) for n in range(1, 9)))), "ports"),
    "no ports": (4, matching(Multiport(())), "ports"),
    "mark": (4, matching(Connmark(1 << 32)), "mark"),
    "mask": (4, matching(Connmark(1, -1)), "mask"),
    "state": (4, matching(Conntrack(("MAYBE",))), "states"),
    "set name": (4, matching(SetMatch("x" * 32, ("src",))), "name"),
    "no directions": (4, matching(SetMatch("here", ())), "directions"),
    "seven directions": (4, matching(SetMatch("here", ("src",) * 7)), "directions"),
    "address types": (4, matching(Addrtype(1 << 16)), "source"),
    "long hashlimit": (4, matching(Hashlimit("x" * 255, 1, 1)), "name"),
    "hashlimit mask": (4, matching(Hashlimit("x", 1, 1, source_length=33)), "source_length"),
    "hashlimit mask of IPv6": (6, matching(Hashlimit("x", 1, 1, destination_length=129)), "destination_length"),
    "huge average": (4, matching(Hashlimit("x", 1 << 63, 1)), "average"),
    "icmp": (4, matching(Icmp(256)), "type"),
    "icmp codes": (4, matching(Icmp(1, (0, 256))), "codes"),
    "opaque name": (4, matching(Opaque("x" * 29, 0, b"")), "name"),
    "opaque revision": (4, matching(Opaque("x", 256, b"")), "revision"),
    "opaque data": (4, matching(Opaque("x", 0, bytes(65536))), "data"),
    "verdict": (4, Rule(Verdict("QUEUE")), "name"),  # type: ignore[arg-type]  # that is the point
    "jump to a long name": (4, Rule(Jump("x" * 29)), "chain"),
    "goto nowhere": (4, Rule(Goto("")), "chain"),
    "answer": (4, Rule(Reject("icmp6-no-route")), "answer"),
    "answer of IPv6": (6, Rule(Reject("icmp-net-unreachable")), "answer"),
    "long prefix": (4, Rule(Nflog(1, "x" * 64)), "prefix"),
    "group": (4, Rule(Nflog(65536)), "group"),
    "threshold": (4, Rule(Nflog(1, threshold=65536)), "threshold"),
    "opaque target": (4, Rule(OpaqueTarget("x" * 29, 0, b"")), "name"),
}


@pytest.mark.parametrize(("family", "rule", "field"), UNFIT.values(), ids=UNFIT)
def test_a_value_that_does_not_fit_is_named(family: Family, rule: Rule, field: str) -> None:
    """The chain, the number of the rule, the field and the rule itself are in the words."""
    chains = [Chain("NETPOL-A", (GOOD,) * 5), Chain("NETPOL-B", (GOOD, GOOD, rule, GOOD))]
    with pytest.raises(ValueError, match="NETPOL-B, rule 3: ") as caught:
        encode_chains(chains, family, SETS)
    # A verdict that there is not is no value of ours any more when it is packed.
    words = "{'target': {'kind': 'Verdict', 'name': 'QUEUE'}}" if rule.target == Verdict("QUEUE") else str(rule)  # type: ignore[arg-type]  # as above
    assert f"its '{field}': {words}" in str(caught.value)


def test_a_rule_that_is_too_long_is_named() -> None:
    """Matches that fit one by one, but not together."""
    with pytest.raises(ValueError, match=r"NETPOL-A, rule 1: it takes more than the 65,535 bytes that a rule may have: Rule\(.*Opaque"):
        encode_chain(Chain("NETPOL-A", (matching(*[Opaque("x", 0, bytes(32000))] * 3),)), 4)


@pytest.mark.parametrize("rule", [Rule(RETURN, (Connmark(1 << 64),)), Rule(RETURN, (Connmark(-(1 << 64)),)), Rule(Jump("\ud800"))])
def test_a_value_that_nothing_holds_is_named(rule: Rule) -> None:
    """Numbers of more than 64 bits and halves of characters are found before they reach C."""
    with pytest.raises(ValueError, match=r"NETPOL-A, rule 2: ") as caught:
        encode_chain(Chain("NETPOL-A", (GOOD, rule)), 4)
    assert str(rule) in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 29, "a\0b", "ä" * 15, "\ud800"], ids=["empty", "long", "zero", "long in bytes", "half"])
def test_a_bad_name_of_a_chain_is_named(name: str) -> None:
    """A name that iptables would not take, also behind chains that are fine."""
    with pytest.raises(ValueError, match="is no name for a chain"):
        encode_chains([Chain("NETPOL-A", (GOOD,)), Chain(name, (GOOD,))], 4)
    with pytest.raises(ValueError, match="is no name for a chain"):
        encode_chains([Chain(name, ())], 4)


@pytest.mark.parametrize("name", ["gone", "x" * 31, ""])
def test_a_set_without_a_number_is_named(name: str) -> None:
    """A set that the kernel does not have is named with chain and rule."""
    with pytest.raises(KernelError, match=r"iptables rule NETPOL-A, rule 2: there is no set") as caught:
        encode_chain(Chain("NETPOL-A", (matching(SetMatch("here", ("src",))), matching(SetMatch(name, ("src",))))), 4, SETS)
    assert caught.value.code == errno.ENOENT
    assert str(caught.value).endswith(f"there is no set {name}")


def encoded(*chains: Chain) -> dict[str, EncodedChain]:
    return {chain.name: encode_chain(chain, 4) for chain in chains}


def rule_of(*rules: Rule) -> dict[str, EncodedChain]:
    return encoded(Chain(ROOT, rules))


# What the kernel, or we before it, refuse about chains that are well formed: the chains, hooked, table, kind, words.
REFUSED: dict[str, tuple[dict[str, EncodedChain], bool, TableName, type[KernelError], str]] = {
    "REJECT in mangle": (
        rule_of(Rule(Reject("icmp-port-unreachable"))),
        True,
        "mangle",
        KernelError,
        "iptables replace mangle: the kernel refuses a rule.*REJECT is legal in the filter table only",
    ),
    "a circle": (
        encoded(Chain(ROOT, (Rule(Jump("NETPOL-A")),)), Chain("NETPOL-A", (Rule(Jump(ROOT)),))),
        True,
        "mangle",
        KernelError,
        "iptables replace mangle: its chains jump in a circle",
    ),
    "no such chain": (
        rule_of(Rule(Jump("NETPOL-A"))),
        True,
        "mangle",
        KernelError,
        "the chain NETPOL jumps to NETPOL-A, which is not there",
    ),
    "a built-in chain": (rule_of(Rule(Jump("INPUT"))), True, "mangle", KernelError, "the chain NETPOL jumps to INPUT, which is not there"),
    "no chain to hook": (encoded(Chain("NETPOL-A", ())), True, "mangle", KernelError, "there is no chain NETPOL"),
    "no such match": (
        rule_of(matching(Opaque("nonesuch", 0, bytes(8)))),
        False,
        "mangle",
        Unsupported,
        r"iptables replace mangle: this kernel lacks match nonesuch revision 0: load its module \(modprobe xt_",
    ),
    "no such revision": (
        rule_of(Rule(RETURN, (Tcp(), Opaque("tcp", 99, bytes(16))), protocol=TCP)),
        False,
        "filter",
        Unsupported,
        "iptables replace filter: this kernel lacks match tcp revision 99: load",
    ),
    "no such revision for any family": (
        rule_of(matching(Opaque("mark", 99, bytes(16)))),
        False,
        "filter",
        Unsupported,
        "iptables replace filter: this kernel lacks match mark revision 99: load",
    ),
    "no such targets": (
        rule_of(Rule(OpaqueTarget("NONESUCH", 3, bytes(8))), Rule(OpaqueTarget("NFLOG", 77, bytes(80)))),
        False,
        "filter",
        Unsupported,
        "this kernel lacks target NFLOG revision 77, target NONESUCH revision 3: load",
    ),
    "wrong size": (rule_of(matching(Opaque("mark", 1, bytes(24)))), False, "mangle", KernelError, "the kernel refuses a rule"),
}


@pytest.mark.parametrize(("chains", "hooked", "table", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_kernel_refuses(
    netns: int, chains: dict[str, EncodedChain], hooked: bool, table: TableName, kind: type[KernelError], words: str
) -> None:
    """The error has its kind and words, the table is as it was, and the socket goes on working."""
    restore(4, f"*{table}\n:INPUT DROP [1:2]\n:THEIRS - [0:0]\n[3:4] -A FORWARD -j THEIRS\nCOMMIT\n", "-c")
    before = saved(4, table, counters=True)
    with TableSocket(4) as socket:
        with pytest.raises(KernelError, match=words) as caught:
            socket.change(table, chains, hooked)
        assert type(caught.value) is kind
        assert saved(4, table, counters=True) == before
        assert socket.change(table, rule_of(Rule(DROP)), True)


def test_a_set_that_is_gone(netns: int) -> None:
    """A set that was destroyed after its number was looked up: the sets that were used are named."""
    with IpsetSocket() as ipset, TableSocket(4) as socket:
        ipset.run([Create("NETPOL-s", "hash:ip", 4), Create("NETPOL-t", "hash:ip", 4)])
        sets = SetNumbers({name: header.index for name, header in ipset.headers().items()})
        rules = [matching(SetMatch(name, ("src",))) for name in ("NETPOL-s", "NETPOL-t")]
        chain = encode_chain(Chain(ROOT, tuple(rules)), 4, sets)
        ipset.run([Destroy("NETPOL-s")])
        with pytest.raises(
            KernelError, match="iptables replace mangle: a set that its rules use is gone: one of NETPOL-s, NETPOL-t"
        ) as caught:
            socket.change("mangle", {ROOT: chain}, True)
        assert type(caught.value) is KernelError
        assert not any("NETPOL" in line for line in saved(4))


def test_a_chain_of_somebody_else(netns: int) -> None:
    """A chain whose name is taken by one that we do not own is not put beside it."""
    restore(4, "*mangle\n:THEIRS - [0:0]\nCOMMIT\n")
    with TableSocket(4) as socket, pytest.raises(KernelError, match="the chain THEIRS is there already, and is not ours"):
        socket.change("mangle", encoded(Chain("THEIRS", (GOOD,))), False)
    assert saved(4)[-2:] == [":THEIRS -", "COMMIT"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_table(netns: int, family: Family) -> None:
    """What is missing, which modules would bring it, and what a kernel must be built with."""
    with TableSocket(family) as socket:
        assert not socket.exists(cast(TableName, "nonesuch"))
        with pytest.raises(Unsupported) as caught:
            socket.read(cast(TableName, "nonesuch"))
    tool = "ip" if family == 4 else "ip6"
    assert str(caught.value) == (
        f"{tool}tables read nonesuch: this kernel has no legacy {tool}tables: "
        f"load the modules (modprobe {tool}_tables {tool}table_nonesuch), "
        f"or use a kernel built with CONFIG_{tool.upper()}_NF_IPTABLES_LEGACY; nf_tables is not used"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kernel_without_x_tables(netns: int, family: Family) -> None:
    """A kernel that knows no such socket options (another kind of socket answers as it would) says so by the same words."""
    with TableSocket(family) as socket, sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, 0) as other:
        os.dup2(other.fileno(), socket._fd)
        for ask in (lambda: socket.read("mangle"), lambda: socket.change("mangle", {}, False), lambda: socket.has_revision("tcp", 0)):
            with pytest.raises(Unsupported, match=r"this kernel has no legacy ip6?tables: load the modules"):
                ask()


def test_looking_creates_no_table(netns: int) -> None:
    """In a fresh namespace no table is there, and asking whether one is does not make it; reading does."""
    with TableSocket(4) as socket:
        assert not socket.exists("mangle")
        assert Path("/proc/thread-self/net/ip_tables_names").read_text() == ""
        socket.read("mangle")
        assert socket.exists("mangle")
        assert not socket.exists("filter")


def test_without_proc_a_table_may_be_there(netns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who takes rules away, or shows them, may pass them over; where only the names are not there, no table is."""
    with TableSocket(4) as socket:
        for place, there in ((tmp_path / "gone", True), (tmp_path, False)):
            monkeypatch.setattr(xtables, "_NET", place)
            assert socket.exists("mangle") is there
        (tmp_path / "ip_tables_names").mkdir()
        assert socket.exists("mangle")


@pytest.mark.parametrize("family", FAMILIES)
def test_revisions(netns: int, family: Family) -> None:
    """This kernel has all that we may write, and lacks what nobody has."""
    with TableSocket(family) as socket:
        assert socket.missing_revisions() == ()
        assert not socket.has_revision("tcp", 99)
        assert not socket.has_revision("nonesuch", 0, is_target=True)
        assert socket.has_revision("REJECT", 0, is_target=True)
        assert not socket.has_revision("REJECT", 0)


def test_without_the_capability(netns: int) -> None:
    """A thread that gave up CAP_NET_ADMIN is told so, and what to do; nothing has changed and nothing stays locked."""
    with TableSocket(4) as socket:
        acts: tuple[Callable[[], object], ...] = (
            lambda: socket.read("mangle"),
            lambda: socket.change("mangle", rule_of(Rule(ACCEPT)), True),
            lambda: socket.has_revision("tcp", 0),
        )
        refusals = [refusal(act) for act in acts]
    assert [type(error) for error in refusals] == [NotPermitted] * 3
    words = "iptables read mangle: not permitted: run netpol as root, or with CAP_NET_ADMIN in the user namespace that owns this network"
    assert str(refusals[1]).startswith(words)
    with TableSocket(4, wait_ms=0) as socket:
        assert socket.change("mangle", rule_of(Rule(ACCEPT)), True)


def test_closing_twice() -> None:
    """A closed socket has no descriptor, and closing it again does nothing; asking it is an error."""
    with TableSocket(4) as socket:
        descriptor = socket._fd
    socket.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(KernelError, match="it is closed"):
        socket.read("mangle")


CIRCLE = """
import gc
from netpol.kernel.xtables import TableSocket

with TableSocket(4) as socket:
    for found in (socket.entries("mangle"), socket.read("mangle")):
        circle = [found]
        circle.append(circle)
        del found, circle
        gc.collect()
"""


def test_a_table_in_a_circle_is_collected(netns: int) -> None:
    """What was read of a table may be garbage in a circle, as the traceback of an error makes: it is freed, and that is all."""
    run(sys.executable, "-c", CIRCLE)


def test_the_bytes_of_a_table_outlive_it(netns: int) -> None:
    """Who keeps no more of a table than its bytes has them as they were: nothing else is written there."""
    with TableSocket(4) as socket:
        before = bytes(socket.read("mangle").blob)
        blob = socket.read("mangle").blob
        # Blocks of the same size: were its own given back, one of these would be it.
        filled = [bytearray(b"\xff" * len(blob)) for _ in range(64)]
        assert bytes(blob) == before
        assert len(filled) == 64
