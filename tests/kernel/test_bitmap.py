"""bitmap:ip, the set in front of a tree: beside the real `ipset`, with a range of its own, and made anew where it has another."""

from __future__ import annotations

import pytest

from netpol.errors import KernelError, Unsupported
from netpol.kernel.apply import Kernel
from netpol.kernel.digests import content
from netpol.kernel.ipset import Add, Create, Delete, IpsetSocket
from netpol.kernel.ipset_values import range_of
from netpol.model import Address, Family, Network, parse_address, parse_network
from netpol.rules.compile.front import Front, front
from netpol.rules.diff import diff
from netpol.rules.ruleset import DROP, RETURN, ROOT, Chain, Goto, Rule, Ruleset, front_match
from netpol.rules.sets import Set
from netpol.rules.text import ipset_save, iptables_save
from tests.referees import run

NET = parse_network("10.0.0.0/16")
A, B, C, LAST, OUTSIDE = (parse_address(f"10.{n}") for n in ("0.0.0", "0.0.1", "0.0.2", "0.255.255", "1.0.0"))
NAME = "NETPOL4-INGRESS"


def saved(name: str) -> tuple[str, set[str]]:
    """A set's `create` line, and its members, as `ipset save` writes them."""
    first, *rest = run("ipset", "save", name).splitlines()
    return first, {line.split(" ", 2)[2] for line in rest}


def test_ipset_shows_what_we_wrote(netns: int) -> None:
    """The type, the range and exactly our members, the ends of the range too; single ones and runs of them come and go."""
    every = b"".join((0x0A000000 + i).to_bytes(4, "big") for i in range(1 << 16))
    with IpsetSocket() as ipset:
        ipset.run([Create("s", "bitmap:ip", 4, A + C + LAST, net=NET), Create("t", "bitmap:ip", 4, net=parse_network("10.0.0.0/31"))])
        assert saved("s") == ("create s bitmap:ip range 10.0.0.0-10.0.255.255", {"10.0.0.0", "10.0.0.2", "10.0.255.255"})
        assert saved("t") == ("create t bitmap:ip range 10.0.0.0-10.0.0.1", set())
        ipset.run([Add("s", "bitmap:ip", 4, B + A), Delete("s", "bitmap:ip", 4, LAST)])
        assert saved("s")[1] == {"10.0.0.0", "10.0.0.1", "10.0.0.2"}
        ipset.run([Add("s", "bitmap:ip", 4, every)])
        assert ipset.members("s") == every
        assert ipset.headers()["s"].entries == 1 << 16
        ipset.run([Delete("s", "bitmap:ip", 4, every[4:])])
        assert saved("s")[1] == {"10.0.0.0"}


def test_we_read_what_ipset_wrote(netns: int) -> None:
    """With the tool's own revision and extensions: members, range, and the digest of an audit."""
    run("ipset", "create", "s", "bitmap:ip", "range", "10.0.0.0/16", "counters", "comment", "skbinfo")
    run("ipset", "add", "s", "10.0.0.1-10.0.0.2", "comment", "why")
    with IpsetSocket() as ipset:
        assert ipset.read("s") == Set("s", "bitmap:ip", 4, frozenset((B, C)), NET)
        (record,) = ipset.records(["s"]).decoded()
        assert record.content == content(B + C, 4)
        assert record.header == ipset.headers()["s"]
        assert record.header.net == NET


@pytest.mark.parametrize(
    ("first", "last", "net"),
    [
        pytest.param("10.0.0.0", "10.0.255.255", "10.0.0.0/16", id="a prefix"),
        pytest.param("10.0.0.4", "10.0.0.7", "10.0.0.4/30", id="a short one"),
        pytest.param("10.0.0.1", "10.0.0.1", "10.0.0.1/32", id="one address"),
        pytest.param("10.0.0.1", "10.0.0.6", None, id="none"),
        pytest.param("10.0.0.0", "10.0.0.6", None, id="short of one"),
        pytest.param("10.0.0.2", "10.0.0.5", None, id="as long as one"),
        pytest.param("0.0.0.0", "0.0.0.0", None, id="no range"),
    ],
)
def test_a_range_is_a_prefix_or_none(first: str, last: str, net: str | None) -> None:
    """What the kernel has as first and last address."""
    assert range_of(parse_address(first), parse_address(last)) == (parse_network(net) if net else None)


@pytest.mark.parametrize(
    ("kind", "family", "net"),
    [
        pytest.param("bitmap:ip", 4, None, id="no range"),
        pytest.param("bitmap:ip", 6, parse_network("fd00::/112"), id="IPv6"),
        pytest.param("bitmap:ip", 4, parse_network("10.0.0.0/15"), id="too large"),
        pytest.param("bitmap:ip", 4, parse_network("10.0.0.0/32"), id="one address"),
        pytest.param("hash:ip", 4, NET, id="a hash"),
    ],
)
def test_what_cannot_be_created(kind: str, family: Family, net: Network | None) -> None:
    """It is said where the command is made."""
    with pytest.raises(ValueError, match=r"a bitmap:ip, and nothing else, has a range: an IPv4 prefix of 16 to 31 bits"):
        Create("s", kind, family, net=net)  # type: ignore[arg-type]  # a kind


def test_an_address_outside_of_the_range(netns: int) -> None:
    """The kernel has one number for a full hash and for this; the words are both."""
    with IpsetSocket() as ipset:
        with pytest.raises(KernelError, match=r"ipset create s, member 10\.1\.0\.0: .*the address is outside of its range"):
            ipset.run([Create("s", "bitmap:ip", 4, A + OUTSIDE, net=NET)])
        with pytest.raises(KernelError, match=r"ipset add s, member 10\.1\.0\.0-10\.1\.0\.1: .*the address is outside of its range"):
            ipset.run([Add("s", "bitmap:ip", 4, OUTSIDE + OUTSIDE[:3] + b"\1")])
        ipset.run([Create("full", "hash:ip", 4, B, maxelem=1)])
        with pytest.raises(KernelError, match=r"the set is full[^;]*$"):
            ipset.run([Add("full", "hash:ip", 4, C)])


def rules(*members: Address) -> Ruleset:
    """A set in front of a chain that denies."""
    chain = Chain(ROOT, (Rule(Goto("NETPOL-T"), (front_match(4, "ingress"),), destination=NET), Rule(RETURN)))
    chains = {chain.name: chain for chain in (chain, Chain("NETPOL-T", (Rule(DROP),)))}
    return Ruleset({4: chains}, {NAME: front("ingress", 4, Front(frozenset(members), NET))}, frozenset((4,)))


def test_the_tools_load_what_we_print_and_print_it_again(netns: int) -> None:
    """Set and rules, line for line."""
    wanted = rules(A, C)
    run("ipset", "restore", input=ipset_save(wanted))
    run("iptables-legacy-restore", input=iptables_save(wanted, 4))
    assert run("ipset", "save") == ipset_save(wanted)
    assert [line for line in run("iptables-legacy-save", "-t", "mangle").splitlines() if line[0] != "#"] == iptables_save(
        wanted, 4
    ).splitlines()
    with Kernel() as kernel:
        assert kernel.read() == wanted


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("bitmap:ip", "range", "10.0.0.0-10.0.0.100"), id="a range that is no prefix"),
        pytest.param(("bitmap:ip", "range", "10.1.0.0/16"), id="another range"),
        pytest.param(("bitmap:ip", "range", "10.0.0.0/16", "timeout", "600"), id="whose members do not stay"),
        pytest.param(("bitmap:ip", "range", "10.0.0.0/16", "netmask", "24"), id="of networks"),
        pytest.param(("bitmap:port", "range", "0-9"), id="another bitmap"),
        pytest.param(("bitmap:ip,mac", "range", "10.0.0.0/16"), id="with MAC addresses"),
        pytest.param(("hash:ip",), id="a hash"),
        pytest.param(("list:set",), id="a list"),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_a_set_of_this_name_that_is_another_one_is_made_anew(netns: int, words: tuple[str, ...], used: bool) -> None:
    """Whoever made it, and also where our rules refer to it."""
    run("ipset", "create", NAME, *words)
    with Kernel() as kernel:
        if used:
            text = iptables_save(rules(A), 4)
            if words[0] in ("bitmap:port", "bitmap:ip,mac", "list:set"):
                text = text.replace(" dst ", " dst,dst ") if words[0] == "bitmap:ip,mac" else text
            run("iptables-legacy-restore", input=text)
        kernel.apply(diff(rules(A, B), kernel.read()))
        assert kernel.read() == rules(A, B)
        assert not kernel.look()


def test_one_whose_range_is_no_prefix_is_not_read(netns: int) -> None:
    """It is told as a type is that netpol does not read."""
    run("ipset", "create", "s", "bitmap:ip", "range", "10.0.0.0-10.0.0.100")
    with IpsetSocket() as ipset, pytest.raises(Unsupported, match=r"^ipset list s: netpol does not read a bitmap:ip set whose range is no"):
        ipset.read("s")


def test_an_audit_sees_its_members(netns: int) -> None:
    """One too many, one missing, and then none."""
    with Kernel() as kernel:
        wanted = rules(A, B)
        kernel.apply(diff(wanted, kernel.read()))
        assert not kernel.look()
        run("ipset", "add", NAME, "10.0.0.9")
        look = kernel.look()
        assert look.sets == {NAME}
        kernel.apply(diff(wanted, kernel.reread(wanted, look)))
        assert not kernel.look()
        run("ipset", "flush", NAME)
        assert kernel.touched()
        kernel.apply(diff(wanted, kernel.reread(wanted, kernel.look())))
        assert kernel.read() == wanted
