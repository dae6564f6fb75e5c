"""ipset over netlink, held against the real `ipset` and `iptables-legacy` in private namespaces."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from netpol.errors import KernelError
from netpol.kernel.ipset import Add, Command, Create, Delete, Destroy, Header, IpsetSocket, Swap, member_text, pack
from netpol.model import Family, parse_address, parse_network
from netpol.rules.sets import Set, SetKind, net_member, net_port_member, port_member
from tests.referees import require, run

TCP, UDP, SCTP = 6, 17, 132


def ip(text: str) -> bytes:
    return parse_address(text)


def net(text: str, nomatch: bool = False) -> bytes:
    return net_member(parse_network(text), nomatch)


def numbered(count: int, step: int = 1, base: int = 0x0A000000) -> bytes:
    """`count` IPv4 addresses from 10.0.0.0 on."""
    return b"".join((base + i * step).to_bytes(4, "big") for i in range(count))


# kind, family, what ipset calls each member -> its packed form
CASES: dict[str, tuple[SetKind, Family, dict[str, bytes]]] = {
    "ip4": ("hash:ip", 4, {f"10.0.0.{n}": ip(f"10.0.0.{n}") for n in (1, 2, 3, 9)} | {"255.255.255.255": ip("255.255.255.255")}),
    "ip6": ("hash:ip", 6, {"fd00::1": ip("fd00::1"), "fd00::2": ip("fd00::2")}),
    "net4": (
        "hash:net",
        4,
        {"10.0.0.0/8": net("10.0.0.0/8"), "10.1.0.0/16 nomatch": net("10.1.0.0/16", True), "1.2.3.4": net("1.2.3.4/32")},
    ),
    "net6": ("hash:net", 6, {"fd00::/8": net("fd00::/8"), "fd00::/64 nomatch": net("fd00::/64", True), "fe80::1": net("fe80::1/128")}),
    "ip4,port": (
        "hash:ip,port",
        4,
        {"10.0.0.1,tcp:80": port_member(ip("10.0.0.1"), TCP, 80), "10.0.0.2,udp:65535": port_member(ip("10.0.0.2"), UDP, 65535)},
    ),
    "ip6,port": ("hash:ip,port", 6, {"fd00::1,sctp:443": port_member(ip("fd00::1"), SCTP, 443)}),
    "net4,port": (
        "hash:net,port",
        4,
        {
            "10.0.0.0/8,tcp:80": net_port_member(parse_network("10.0.0.0/8"), TCP, 80),
            "10.1.0.0/16,udp:53 nomatch": net_port_member(parse_network("10.1.0.0/16"), UDP, 53, True),
        },
    ),
    "net6,port": ("hash:net,port", 6, {"fd00::/8,tcp:1": net_port_member(parse_network("fd00::/8"), TCP, 1)}),
}
EVERY_KIND = pytest.mark.parametrize(("kind", "family", "members"), CASES.values(), ids=CASES)


@pytest.fixture
def ipset(netns: int) -> Iterator[IpsetSocket]:
    with IpsetSocket() as opened:
        yield opened


def calls(ipset: IpsetSocket, *commands: Command) -> int:
    """Runs the commands; how many system calls that took."""
    before = ipset.calls
    ipset.run(commands)
    return ipset.calls - before


def saved(name: str) -> set[str]:
    """The members of a set as `ipset save` writes them."""
    lines = run("ipset", "save", name).splitlines()
    return {line.split(" ", 2)[2] for line in lines if line.startswith("add ")}


@EVERY_KIND
def test_ipset_shows_what_we_wrote(ipset: IpsetSocket, kind: SetKind, family: Family, members: dict[str, bytes]) -> None:
    """`ipset save` has the type, the family, the sizes that we chose, no extension, and exactly our members."""
    ipset.run([Create("s", kind, family, pack(members.values()))])
    create = run("ipset", "save", "s").splitlines()[0]
    assert create == f"create s {kind} family inet{'6' if family == 6 else ''} hashsize 64 maxelem 65536"
    assert saved("s") == set(members)


@EVERY_KIND
def test_we_read_what_ipset_wrote(ipset: IpsetSocket, kind: SetKind, family: Family, members: dict[str, bytes]) -> None:
    """Members that `ipset restore` added, of a set with the tool's own revision and extensions, come back packed and sorted."""
    inet = "inet6" if family == 6 else "inet"
    lines = [f"create s {kind} family {inet} counters comment skbinfo", *(f"add s {text} comment why" for text in members)]
    run("ipset", "restore", input="\n".join(lines).replace("nomatch comment why", "comment why nomatch") + "\n")
    assert ipset.members("s") == b"".join(sorted(members.values()))
    assert ipset.read("s") == Set("s", kind, family, frozenset(members.values()))


@EVERY_KIND
def test_delete_and_add_again(ipset: IpsetSocket, kind: SetKind, family: Family, members: dict[str, bytes]) -> None:
    """All members go one by one and come back; what is there or not there already is no error."""
    ipset.run([Create("s", kind, family, pack(members.values()))])
    for text, member in members.items():
        ipset.run([Delete("s", kind, family, member), Delete("s", kind, family, member)])
        assert saved("s") == set(members) - {text}
        ipset.run([Add("s", kind, family, member), Add("s", kind, family, member)])
    assert saved("s") == set(members)


@EVERY_KIND
def test_the_text_of_a_member_is_that_of_ipset(kind: SetKind, family: Family, members: dict[str, bytes]) -> None:
    """An error names a member as the tool does, but for the length of a host's network, which is always said."""
    full = 32 if family == 4 else 128
    assert [member_text(kind, family, member).replace(f"/{full}", "") for member in members.values()] == list(members)


def test_adding_a_network_again_turns_its_nomatch(ipset: IpsetSocket) -> None:
    """The flag of a network that is there is set and taken away in place, and a delete does not look at it."""
    ipset.run([Create("s", "hash:net", 4, net("10.0.0.0/8"))])
    for nomatch in (True, False, True):
        ipset.run([Add("s", "hash:net", 4, net("10.0.0.0/8", nomatch))])
        assert ipset.members("s") == net("10.0.0.0/8", nomatch)
    ipset.run([Delete("s", "hash:net", 4, net("10.0.0.0/8", False))])
    assert ipset.members("s") == b""


RUNS = {
    "one": numbered(1, base=0x0A000001),
    "two runs": numbered(3) + numbered(2, base=0x0A000010),
    "with holes": numbered(100, step=2) + numbered(10, base=0x0B000000),
    "twice the same": numbered(3) + numbered(3) + numbered(1, base=0x0C000000) * 2,
    "up to the last address": numbered(4, base=0xFFFFFFFC),
    "longer than a run may be": numbered(70000),
}


@pytest.mark.parametrize("members", RUNS.values(), ids=RUNS)
def test_contiguous_addresses_are_exactly_themselves(ipset: IpsetSocket, members: bytes) -> None:
    """However addresses are merged into ranges, the set holds each of them and no other; a delete of the same takes all away."""
    single = sorted({members[i : i + 4] for i in range(0, len(members), 4)})
    ipset.run([Create("s", "hash:ip", 4, pack(reversed(single)) + members)])
    assert ipset.members("s") == b"".join(single)
    ipset.run([Delete("s", "hash:ip", 4, members)])
    assert ipset.headers()["s"].entries == 0


BULK: dict[str, tuple[SetKind, Family, frozenset[bytes], int]] = {
    "contiguous": ("hash:ip", 4, frozenset((0x0A000000 + i).to_bytes(4, "big") for i in range(60000)), 2),
    "scattered": ("hash:ip", 4, frozenset((0x0A000000 + 3 * i).to_bytes(4, "big") for i in range(60000)), 3),
    "IPv6": ("hash:ip", 6, frozenset(ip("fd00::")[:12] + i.to_bytes(4, "big") for i in range(60000)), 4),
    "networks": ("hash:net", 4, frozenset((i * 256 + (10 << 24)).to_bytes(4, "big") + bytes((24, i % 10 == 0)) for i in range(60000)), 3),
}


@pytest.mark.parametrize(("kind", "family", "members", "expected"), BULK.values(), ids=BULK)
def test_sixty_thousand_members_in_and_out(
    ipset: IpsetSocket, kind: SetKind, family: Family, members: frozenset[bytes], expected: int
) -> None:
    """They take as few system calls as their bytes need, no resize, and come back the same; `ipset` counts as many."""
    taken = calls(ipset, Create("s", kind, family, pack(Set("s", kind, family, members))))
    with socket.socket(fileno=os.dup(ipset.fileno())) as alias:
        whole = alias.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 1 << 20
    assert taken == expected or (taken > expected and not whole)
    header = ipset.headers()["s"]
    assert (header.entries, header.hashsize, header.maxelem) == (60000, 65536, 131072)
    assert ipset.read("s").members == members
    assert f"Number of entries: {len(members)}" in run("ipset", "list", "-t", "s")


def test_a_small_send_buffer_makes_more_sends(ipset: IpsetSocket) -> None:
    """Where the kernel refuses a send for its size, the same messages go in smaller ones, and later runs know the limit. As many messages
    and bytes are counted as go in one send."""
    members = numbered(60000, step=2)
    with IpsetSocket() as other:
        empty = other.sent
        other.run([Create("o", "hash:ip", 4, members)])
        whole = tuple(now - then for now, then in zip(other.sent, empty, strict=True))
    with socket.socket(fileno=os.dup(ipset.fileno())) as alias:
        alias.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
    before = ipset.sent
    first = calls(ipset, Create("s", "hash:ip", 4, members))
    assert first > 10
    assert tuple(now - then for now, then in zip(ipset.sent, before, strict=True)) == whole
    assert ipset.members("s") == members
    assert calls(ipset, Create("t", "hash:ip", 4, members)) < first
    assert ipset.members("t") == members


def test_a_run_of_little_work_is_two_system_calls(ipset: IpsetSocket) -> None:
    """One send and one receive, be it one member or many commands on many sets; none for no commands.

    Opening takes seven; two more where the process may not force the sizes of its buffers.
    """
    assert ipset.calls in (7, 9)
    assert calls(ipset, *(Create(f"s{i}", "hash:ip", 4, numbered(5, base=0x0A000001)) for i in range(50))) == 2
    assert calls(ipset, Add("s7", "hash:ip", 4, ip("10.9.9.9"))) == 2
    assert calls(ipset, Delete("s7", "hash:ip", 4, ip("10.9.9.9")), Swap("s1", "s2"), Destroy("s1")) == 2
    assert calls(ipset) == 0
    assert len(ipset.headers()) == 49


def test_many_new_sets_take_as_many_calls_as_their_bytes_need(ipset: IpsetSocket) -> None:
    """1,500 new sets of ten are 0.6 MiB of messages: one send and one receive. A few of them tell their numbers along the way, and a
    listing of all is received many sets at a time."""
    commands = [Create(f"s{i}", "hash:ip", 4, numbered(10, base=0x0A000001, step=2)) for i in range(1500)]
    assert calls(ipset, *commands[:1450]) == 2
    before = ipset.calls
    told = ipset.run(commands[1450:], numbered=True)
    assert ipset.calls - before == 3
    before = ipset.calls
    numbers = ipset.numbers()
    assert ipset.calls - before <= 2 * (3 + 1500 // 128)
    before = ipset.calls
    assert ipset.numbers() == numbers
    assert ipset.calls - before == 1 + -(-1501 // 128)
    assert told == {name: number for name, number in numbers.items() if name in told}
    assert len(told) == 50
    assert len(set(numbers.values())) == len(numbers) == 1500
    assert numbers == {name: header.index for name, header in ipset.headers().items()}


def test_an_add_of_nothing_is_answered(ipset: IpsetSocket) -> None:
    """An empty set, and a command without members, are fine."""
    ipset.run([Create("s", "hash:net", 6), Add("s", "hash:net", 6, b"")])
    assert ipset.members("s") == b""


def test_headers_of_everybodys_sets(ipset: IpsetSocket) -> None:
    """One dump has name, type, family, index, entries, references and sizes of all sets, those of other types too."""
    require("iptables-legacy")
    run("ipset", "create", "foreign", "bitmap:port", "range", "0-1023")
    run("ipset", "create", "list", "list:set")
    run("ipset", "add", "list", "foreign")
    ipset.run([Create("mine", "hash:ip,port", 6, port_member(ip("fd00::1"), TCP, 80), maxelem=1000, hashsize=256)])
    run("iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "foreign", "dst")
    assert ipset.headers() == {
        "foreign": Header("foreign", "bitmap:port", 0, 0, 0, 2, 0, 0),
        "list": Header("list", "list:set", 0, 1, 1, 0, 0, 0),
        "mine": Header("mine", "hash:ip,port", 6, 2, 1, 0, 256, 1000),
    }


def test_more_headers_than_one_datagram_holds(ipset: IpsetSocket) -> None:
    """The headers of a thousand sets with long names are all there."""
    names = [f"NETPOL-{i:024}" for i in range(1000)]
    ipset.run([Create(name, "hash:ip", 4) for name in names])
    headers = ipset.headers()
    assert sorted(headers) == names
    assert sorted(header.index for header in headers.values()) == list(range(1000))


def test_swap_and_destroy(ipset: IpsetSocket) -> None:
    """Contents change places, also under a rule, which then keeps its set's name from going away."""
    require("iptables-legacy")
    ipset.run([Create("a", "hash:ip", 4, ip("10.0.0.1")), Create("b", "hash:ip", 4, ip("10.0.0.2"))])
    run("iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "a", "src")
    ipset.run([Swap("a", "b")])
    assert (saved("a"), saved("b")) == ({"10.0.0.2"}, {"10.0.0.1"})
    assert "--match-set a src" in run("iptables-legacy", "-S")
    ipset.run([Destroy("b")])
    assert list(ipset.headers()) == ["a"]


def test_sizes_come_from_the_content(ipset: IpsetSocket) -> None:
    """Buckets are the power of two that is not less than the members, and a set may grow to twice that, or to what was said."""
    ipset.run(
        [
            Create("a", "hash:ip", 4, numbered(65, base=0x0A000001)),
            Create("b", "hash:ip", 4, numbered(64, base=0x0A000001), maxelem=64, hashsize=1024),
            Create("c", "hash:ip", 4, numbered(100000, base=0x0A000001)),
            Create("d", "hash:ip", 4, numbered(128, base=0x0A000001)),
        ]
    )
    headers = ipset.headers()
    assert [(headers[name].hashsize, headers[name].maxelem) for name in "abcd"] == [
        (128, 65536),
        (1024, 64),
        (131072, 262144),
        (128, 65536),
    ]


def test_a_name_of_any_bytes(ipset: IpsetSocket) -> None:
    """A name that is no UTF-8 is a name: it comes back as it went."""
    name = os.fsdecode(b"\xffset")
    ipset.run([Create(name, "hash:ip", 4, ip("10.0.0.1"))])
    assert list(ipset.headers()) == [name]
    assert ipset.members(name) == ip("10.0.0.1")


def test_closing_twice() -> None:
    """A closed socket has no descriptor, and closing it again does nothing."""
    with IpsetSocket() as ipset:
        descriptor = ipset.fileno()
    ipset.close()
    assert ipset.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_set_s_number_is_the_one_that_a_listing_shows(netns: int) -> None:
    """Asked for by name, in two calls; of a set that is not there it is an error that names it."""
    with IpsetSocket() as ipset:
        ipset.run([Create(f"NETPOL4-{i}", "hash:ip", 4) for i in range(5)])
        headers = ipset.headers()
        before = ipset.calls
        assert {name: ipset.number(name) for name in headers} == {name: header.index for name, header in headers.items()}
        assert ipset.calls - before == 2 * len(headers)
        with pytest.raises(KernelError, match="ipset number NETPOL4-9: there is no set of this name"):
            ipset.number("NETPOL4-9")
