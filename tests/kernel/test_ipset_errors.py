"""What the kernel refuses comes back with the command, the set, the member and words that say what to do."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from netpol.errors import Contended, KernelError, MalformedKernelData, NotPermitted, Unsupported
from netpol.kernel import ipset as module
from netpol.kernel.ipset import Add, Command, Create, Delete, Destroy, IpsetSocket, Swap
from netpol.kernel.ipset_errors import BUSY, HASH_FULL, translate
from netpol.model import parse_network
from netpol.rules.sets import net_member, net_port_member, port_member
from tests.kernel.unprivileged import refusal
from tests.referees import require, run

NULL4 = bytes(4)
HOSTS = b"".join((0x0A000001 + 2 * i).to_bytes(4, "big") for i in range(60000))


@pytest.fixture
def ipset(netns: int) -> Iterator[IpsetSocket]:
    with IpsetSocket() as opened:
        opened.run(
            [Create("ips", "hash:ip", 4), Create("other", "hash:ip", 4), Create("nets", "hash:net", 4), Create("six", "hash:net", 6)]
        )
        opened.run(
            [Create("full", "hash:ip", 4, HOSTS[:8], maxelem=2), Create("ports", "hash:ip,port", 4), Create("np", "hash:net,port", 6)]
        )
        yield opened


NETS = b"".join(net_member(parse_network(f"10.{i >> 8}.{i & 255}.0/24")) for i in range(2000))
REFUSED: dict[str, tuple[Command, str]] = {
    "no set to add to": (Add("none", "hash:ip", 4, HOSTS[:4]), "ipset add none: there is no set of this name"),
    "no set to delete from": (Delete("none", "hash:ip", 4, HOSTS[:4]), "ipset del none: there is no set of this name"),
    "no set to destroy": (Destroy("none"), "ipset destroy none: there is no set of this name"),
    "no first set": (Swap("none", "ips"), "ipset swap none with ips: there is no set of the first name"),
    "no second set": (Swap("ips", "none"), "ipset swap ips with none: there is no set of the second name"),
    "types differ": (Swap("ips", "nets"), "ipset swap ips with nets: the two sets differ in type or family"),
    "set exists": (Create("ips", "hash:ip", 4), "ipset create ips: a set of this name exists already"),
    "null address": (Add("ips", "hash:ip", 4, NULL4), "ipset add ips, member 0.0.0.0: the null address"),
    "null address in a range": (
        Add("ips", "hash:ip", 4, NULL4 + HOSTS[:8] + b"\0\0\0\1"),
        "ipset add ips, member 0.0.0.0-0.0.0.1: the null",
    ),
    "null address in the longest range": (
        Add("ips", "hash:ip", 4, b"".join(i.to_bytes(4, "big") for i in range(70000))),
        "ipset add ips, member 0.0.0.0-0.0.255.255: the null address",
    ),
    "full": (Add("full", "hash:ip", 4, HOSTS[8:12]), "ipset add full, member 10.0.0.5: the set is full: raise its maxelem"),
    "full by a later member": (Add("full", "hash:ip", 4, HOSTS[8:12] + HOSTS[:8]), "ipset add full, member 10.0.0.5: the set is full"),
    "full at once": (Create("new", "hash:ip", 4, HOSTS[:12], maxelem=2), "ipset create new, member 10.0.0.5: the set is full"),
    "no /0": (Add("nets", "hash:net", 4, bytes(6)), "ipset add nets, member 0.0.0.0/0: the prefix length"),
    "no /0 of IPv6": (Add("six", "hash:net", 6, bytes(17) + b"\1"), "ipset add six, member ::/0 nomatch: the prefix length"),
    "in a later message": (
        Add("nets", "hash:net", 4, NETS[:9000] + bytes(6) + NETS[9000:]),
        "ipset add nets, member 0.0.0.0/0: the prefix",
    ),
    "protocol": (Add("ports", "hash:ip,port", 4, port_member(HOSTS[:4], 0, 80)), "ipset add ports, member 10.0.0.1,0:80: the protocol"),
    "network and port": (
        Add("np", "hash:net,port", 6, net_port_member(parse_network("fd00::/9"), 6, 1) + bytes(18) + bytes((6, 0, 80))),
        "ipset add np, member ::/0,tcp:80: the prefix length",
    ),
}


@pytest.mark.parametrize(("command", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_command_set_and_member(ipset: IpsetSocket, command: Command, words: str) -> None:
    """One command that the kernel refuses raises these words, alone or among others, of which none is hindered."""
    with pytest.raises(KernelError) as alone:
        ipset.run([command])
    assert str(alone.value).startswith(words)
    assert "command" not in str(alone.value)
    with pytest.raises(KernelError) as among:
        ipset.run([Destroy("missing"), command, Create("after", "hash:ip", 4, HOSTS)])
    assert str(among.value).endswith("ipset destroy missing: there is no set of this name (and 1 other of 3 commands failed)")
    assert ipset.headers()["after"].entries == 60000


def test_earlier_members_stay(ipset: IpsetSocket) -> None:
    """A member that fails leaves those before it in its message added, and later messages of the command are tried too."""
    with pytest.raises(KernelError, match=r"member 0\.0\.0\.0/0"):
        ipset.run([Add("nets", "hash:net", 4, NETS[:6000] + bytes(6) + NETS[6000:])])
    members = ipset.members("nets")
    assert len(members) > 6000
    assert members.startswith(NETS[:6000])


def test_a_failure_of_every_message_is_one_failed_command(ipset: IpsetSocket) -> None:
    """4,000 members into a set of two: many errors of one command, whose first is told."""
    with pytest.raises(KernelError, match=r"member 10\.0\.0\.5: the set is full[^(]*\([^(]*\)$") as caught:
        ipset.run([Add("full", "hash:ip", 4, HOSTS[:16000])])
    assert (caught.value.code, caught.value.op, caught.value.object, caught.value.member) == (HASH_FULL, "ipset add", "full", "10.0.0.5")


def test_errors_in_a_stream_of_many_sets(ipset: IpsetSocket) -> None:
    """Of 500 new sets in one buffer one has a member that cannot be, and one is there already: the first is told to the member, and all
    others are as they should be."""
    commands: list[Command] = [
        Create(f"s{i:03}", "hash:net", 6) if i % 7 == 0 else Create(f"s{i:03}", "hash:ip", 4, HOSTS[:40]) for i in range(500)
    ]
    commands[250], commands[400] = Create("s250", "hash:net", 4, NETS[:12] + bytes(6) + NETS[12:]), commands[10]
    with pytest.raises(KernelError) as caught:
        ipset.run(commands, numbered=True)
    assert (caught.value.op, caught.value.object, caught.value.member) == ("ipset create", "s250", "0.0.0.0/0")
    assert str(caught.value).endswith("(and 1 other of 500 commands failed)")
    found = ipset.headers()
    assert {f"s{i:03}" for i in range(500)} - found.keys() == {"s400"}
    assert all(found[f"s{i:03}"].entries == (10 if i % 7 else 0) for i in range(500) if i not in (250, 400))
    with pytest.raises(KernelError, match=r"ipset create s499.*: a set of this name exists already[^(]*$"):
        ipset.run([commands[499], Create("new", "hash:ip", 4, HOSTS[:4])], numbered=True)


def test_errors_that_the_kernel_threw_away(ipset: IpsetSocket) -> None:
    """Where more errors come than the socket holds, the first is told and that there may be more; the next run is fine."""
    with socket.socket(fileno=os.dup(ipset.fileno())) as alias:
        alias.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40000)
    with pytest.raises(KernelError, match=r"member 10\.0\.0\.5: the set is full.*and at least 0 others of 1 commands failed"):
        ipset.run([Add("full", "hash:ip", 4, HOSTS)])
    ipset.run([Add("ips", "hash:ip", 4, HOSTS[:4])])


def test_a_set_that_a_rule_uses_is_not_destroyed(ipset: IpsetSocket) -> None:
    """The words say who holds it; without the rule it goes."""
    require("iptables-legacy")
    run("iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "ips", "src")
    with pytest.raises(KernelError, match=r"ipset destroy ips: in use by a kernel component: an iptables rule .* refers to it") as caught:
        ipset.run([Destroy("ips"), Destroy("nets")])
    assert caught.value.code == BUSY
    assert "nets" not in ipset.headers()
    run("iptables-legacy", "-F")
    ipset.run([Destroy("ips")])


def test_a_set_type_that_the_kernel_lacks(ipset: IpsetSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision that no kernel has: Unsupported, and which module is missing."""
    monkeypatch.setitem(module._REVISIONS, "hash:net,port", 250)
    with pytest.raises(Unsupported, match=r"lacks the set type hash:net,port: .*modprobe ip_set_hash_netport.*CONFIG_IP_SET_HASH_NETPORT"):
        ipset.run([Create("new", "hash:net,port", 4, bytes(9))])


def test_reading_a_type_that_is_not_ours(ipset: IpsetSocket) -> None:
    """Unsupported with the type's name, be there members or none; what is not there at all is another error; the socket goes on."""
    run("ipset", "create", "foreign", "bitmap:port", "range", "0-65535")
    for _ in range(2):
        with pytest.raises(Unsupported, match="ipset list foreign: netpol does not read the members of a bitmap:port set"):
            ipset.members("foreign")
        run("ipset", "add", "foreign", "0-65535", "-exist")
    with pytest.raises(KernelError, match="ipset list none: there is no set of this name"):
        ipset.read("none")
    assert ipset.members("ips") == b""


def test_without_the_capability(netns: int) -> None:
    """A thread that gave up CAP_NET_ADMIN is told so, and what to do; nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    error = refusal(IpsetSocket)
    assert isinstance(error, NotPermitted)
    assert "ipset open netlink socket: not permitted: run netpol as root, or with CAP_NET_ADMIN" in str(error)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kernel_without_netfilter_netlink(netns: int) -> None:
    """A netlink protocol that the kernel does not have is refused as one that lacks ip_set would be."""
    with pytest.raises(Unsupported, match=r"no netfilter netlink.*modprobe ip_set"):
        IpsetSocket(protocol=30)


WORDS: dict[str, tuple[int, str, type[KernelError], str]] = {
    "no ip_set": (errno.EINVAL, "open", Unsupported, "this kernel has no ip_set: load the module (modprobe ip_set)"),
    "EINVAL elsewhere": (errno.EINVAL, "add", KernelError, "Invalid argument"),
    "private and unknown": (4999, "add", KernelError, "ipset error 4999"),
    "permission": (errno.EPERM, "swap", NotPermitted, "not permitted: run netpol as root"),
    "busy swap": (errno.EBUSY, "swap", KernelError, "one of the two is being listed"),
}


@pytest.mark.parametrize(("code", "command", "kind", "words"), WORDS.values(), ids=WORDS)
def test_words(code: int, command: str, kind: type[KernelError], words: str) -> None:
    """The same number means different things for different commands."""
    error = translate(code, command, "s")
    assert type(error) is kind
    assert error.reason.startswith(words)


@pytest.mark.parametrize("name", ["", "x" * 32, "a\0b", "ä" * 16], ids=["empty", "long", "zero", "long in bytes"])
def test_a_bad_name_cannot_become_a_command(name: str) -> None:
    """No command can be made with a name that C would cut off or the kernel refuse."""
    for make in (lambda: Create(name, "hash:ip", 4), lambda: Add(name, "hash:ip", 4, b""), lambda: Destroy(name), lambda: Swap("a", name)):
        with pytest.raises(ValueError, match="is not a set name"):
            make()


def test_half_a_member_cannot_become_a_command() -> None:
    """Lengths that are no whole number of members, and sizes that do not fit, are refused where the command is made."""
    for make in (
        lambda: Create("s", "hash:ip", 4, b"abc"),
        lambda: Add("s", "hash:net", 6, bytes(17)),
        lambda: Delete("s", "hash:ip,port", 4, bytes(8)),
    ):
        with pytest.raises(ValueError, match="are no whole number of hash:"):
            make()
    with pytest.raises(ValueError, match="32 bits"):
        Create("s", "hash:ip", 4, maxelem=1 << 32)


# -- a kernel that is played: bytes of our own in the place of its answers ---------------------------------------------

DONE, INTERRUPTED, LIST = 3, 0x10, 6 << 8 | 7


def message(type: int, flags: int, seq: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), type, 2 | flags, seq, 0) + body


def attribute(type: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type) + value + bytes(-len(value) % 4)


def listing(seq: int, name: bytes, interrupted: bool) -> bytes:
    """The dump of one empty hash:ip set."""
    body = bytes(4) + attribute(2, name + b"\0") + attribute(3, b"hash:ip\0") + attribute(5, b"\2")
    return message(LIST, 0, seq, body) + message(DONE, INTERRUPTED if interrupted else 0, seq, bytes(4))


@pytest.fixture
def played(ipset: IpsetSocket) -> Iterator[tuple[IpsetSocket, socket.socket, int]]:
    """A socket whose other end is ours, that end, and the sequence number of its next dump."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        os.dup2(theirs.fileno(), ipset.fileno(), inheritable=False)
        yield ipset, ours, ipset._seq


@pytest.fixture
def answer(played: tuple[IpsetSocket, socket.socket, int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the played kernel datagrams for one request more: they are there when that request is sent, and not before."""
    ipset, kernel, _ = played
    answers: list[tuple[bytes, ...]] = []
    number = ipset._next

    def numbered(count: int) -> int:
        first = number(count)
        for datagram in answers.pop(0) if answers else ():
            kernel.send(datagram)
        return first

    monkeypatch.setattr(ipset, "_next", numbered)
    return lambda *datagrams: answers.append(datagrams)


def test_an_interrupted_dump_is_read_again(played: tuple[IpsetSocket, socket.socket, int], answer: Callable[..., None]) -> None:
    """Only the dump that nothing interrupted counts; left-overs of an older one are passed over."""
    ipset, _, seq = played
    answer(listing(seq - 1, b"older", False), listing(seq, b"first", True))
    answer(listing(seq + 1, b"second", True) + listing(seq + 1, b"more", False))
    answer(listing(seq + 2, b"third", False))
    assert list(ipset.headers()) == ["third"]


def test_a_dump_that_is_always_interrupted(played: tuple[IpsetSocket, socket.socket, int], answer: Callable[..., None]) -> None:
    """After a bounded number of tries it is somebody else's fault, and said so."""
    ipset, _, seq = played
    for i in range(module.DUMP_TRIES):
        answer(listing(seq + i, b"s", True))
    with pytest.raises(Contended, match=r"ipset list s: the sets changed while they were read, 8 times in a row"):
        ipset.members("s")


BROKEN = {
    "cut off": lambda seq: listing(seq, b"s", False)[:-30],
    "another message": lambda seq: message(LIST + 1, 0, seq, bytes(4)),
    "another set": lambda seq: listing(seq, b"t", False),
    "two sets": lambda seq: listing(seq, b"s", False)[:-20] + listing(seq, b"s", False),
    "more of another set": lambda seq: listing(seq, b"s", False)[:-20] + message(LIST, 0, seq, bytes(4) + attribute(2, b"t\0")),
    "no name": lambda seq: message(LIST, 0, seq, bytes(4)),
    "no family": lambda seq: listing(seq, b"s", False).replace(attribute(5, b"\2"), attribute(5, b"\0")),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_dump_of_nonsense(played: tuple[IpsetSocket, socket.socket, int], make: object) -> None:
    """What has not the form of a dump is said to have none."""
    ipset, kernel, seq = played
    assert callable(make)
    kernel.send(make(seq))
    with pytest.raises(MalformedKernelData, match="ipset list s: "):
        ipset.members("s")


def test_answers_to_an_older_run_are_passed_over(played: tuple[IpsetSocket, socket.socket, int]) -> None:
    """Errors that an earlier run left unread are not this one's; its own acknowledgement ends it."""
    ipset, kernel, seq = played
    for number, error in ((seq - 1, -errno.EBUSY), (seq + 5, -errno.EBUSY), (seq + 1, 0)):
        kernel.send(message(2, 0, number, struct.pack("=i", error) + bytes(16)))
    ipset.run([Destroy("ips")])


def number(seq: int, value: int) -> bytes:
    """The answer about a set's number."""
    return message(6 << 8 | 14, 0, seq, bytes(4) + attribute(11 | 1 << 14, struct.pack(">H", value)))


def acknowledged(seq: int, error: int = 0) -> bytes:
    return message(2, 0, seq, struct.pack("=i", error) + bytes(16))


def test_a_number_is_the_answer_to_its_own_question(played: tuple[IpsetSocket, socket.socket, int], answer: Callable[..., None]) -> None:
    """Answers to what was given up before are passed over here, too: one of them would shift all later ones by one."""
    ipset, _, seq = played
    answer(acknowledged(seq - 1, -errno.EBUSY), number(seq - 1, 6), number(seq, 7), acknowledged(seq + 1))
    answer(number(seq, 7), number(seq + 2, 8), acknowledged(seq + 3))
    assert [ipset.number("ips"), ipset.number("nets")] == [7, 8]


def test_new_sets_tell_their_own_numbers(played: tuple[IpsetSocket, socket.socket, int], answer: Callable[..., None]) -> None:
    """In whatever order they come; one that does not come, or that nobody asked for, is no answer."""
    ipset, _, seq = played
    commands: list[Command] = [Create("a", "hash:ip", 4, bytes(4)), Destroy("b"), Create("c", "hash:ip", 4)]
    answer(number(seq + 2, 9), number(seq, 65535), acknowledged(seq + 3))
    assert ipset.run(commands, numbered=True) == {"a": 65535, "c": 9}
    answer(number(seq + 4, 7), acknowledged(seq + 7))
    with pytest.raises(MalformedKernelData, match="on a, b, c: the kernel left out the number of a set"):
        ipset.run(commands, numbered=True)
    answer(number(seq + 8, 7), acknowledged(seq + 11))
    with pytest.raises(MalformedKernelData, match="an answer of the kernel has no such form"):
        ipset.run(commands)


def test_answers_of_nonsense_or_none(played: tuple[IpsetSocket, socket.socket, int]) -> None:
    """A run whose acknowledgement does not come, or is none, is an error, and not waited for."""
    ipset, kernel, _ = played
    with pytest.raises(KernelError, match="ipset run 1 commands on ips: the kernel did not answer all of it"):
        ipset.run([Destroy("ips")])
    ipset._drain()  # before the next request it would throw away what this kernel says too early
    kernel.send(bytes(3))
    with pytest.raises(MalformedKernelData, match="an answer of the kernel"):
        ipset.run([Destroy("ips")])
    with pytest.raises(KernelError, match="ipset list all sets: the kernel did not answer"):
        ipset.headers()
