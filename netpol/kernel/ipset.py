"""ipset over netlink: the typed face of csrc/np_ipset.

Commands are values. `IpsetSocket.run` streams any number of them to the kernel in sends of up to 1 MiB, with one acknowledgement at
the end: one member added is two system calls, 60,000 are as few as their bytes need. New sets may be asked for their numbers in the same
send. What the kernel says is received many datagrams at a time: a listing has one for each set. Members cross as packed bytes (the
layout is at the end of `netpol.rules.sets`), as a set's value holds them; splitting, sorting and the merging of contiguous addresses
happen in C. Many scattered members of a new set come in the order of the buckets that the kernel puts them into (csrc/np_buckets.h).

Invariants
- Adding what is there and deleting what is not there is no error. Creating what is there is one.
- Commands take effect in their order. One that fails does not stop the later ones, and keeps what it did before it failed.
- A dump that the kernel calls interrupted is read again, `DUMP_TRIES` times at most.
- Nothing is ever waited for: netlink answers within the call.

Members are numbered in the messages themselves, so that an error says which one failed. It costs 8 bytes a member and 2 to 4 % of a
bulk add. Numbering only when the failed message is sent again would cost nothing, but could undo what later commands of the run did.

A socket belongs to the network namespace in which it was opened, and to one thread at a time (`netpol.kernel.turns`). Set types,
counters, time-outs and comments that netpol does not use are not written; sets of other types appear in `headers` only.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, cast

from netpol.errors import Contended, KernelError, MalformedKernelData, Unsupported
from netpol.kernel._native import ffi, lib
from netpol.kernel.digests import key
from netpol.kernel.ipset_errors import FIND_TYPE, HASH_FULL, missing_type, translate
from netpol.kernel.ipset_values import (
    Add,
    Command,
    Create,
    Delete,
    Destroy,
    Header,
    Number,
    Record,
    Records,
    Swap,
    check_name,
    member_text,
    pack,
    range_of,
)
from netpol.kernel.netlink import NetlinkSocket
from netpol.kernel.release import is_from
from netpol.kernel.turns import exclusive, in_use
from netpol.model import Family, format_address
from netpol.rules.sets import Set, SetKind, member_size, unpack

__all__ = [
    "Add",
    "Command",
    "Create",
    "Delete",
    "Destroy",
    "Header",
    "IpsetSocket",
    "Number",
    "Record",
    "Records",
    "Swap",
    "member_text",
    "pack",
    "unpack",
]

DUMP_TRIES = 8
_CHANGED = f"the sets changed while they were read, {DUMP_TRIES} times in a row"

_NETLINK_NETFILTER = 12
_PROTOCOL = 7  # what a kernel of 4.20 or later speaks; before it, a listing lacks the sets' indexes
_BUFFER = 1 << 20
_SCRATCH = 4096  # bytes of members that are put in order without room of their own
# So many members of a new set, of these types, come in the order of its buckets where they are scattered; fewer are in the caches anyway.
_KEYED = 5, 11  # the first Linux that takes a key; from 5.5 on those before it refuse a set that has one
_MANY, _ORDERED = 2048, frozenset({"hash:ip", "hash:net", "hash:ip,port"})
_RECORDS = 1024  # sets that a socket's first listing has room for
_MEMBERS = _BUFFER  # packed they are shorter than as the kernel sends them
_NAMED = 3  # sets in the words of an error that is about all of a run

_KINDS: dict[SetKind, int] = {
    kind: int(lib.np_ipset_kind(kind.encode())) for kind in ("hash:ip", "hash:net", "hash:ip,port", "hash:net,port", "bitmap:ip")
}
# The first revision of each type that can do what we use (nomatch, SCTP): every kernel has it, whatever later ones it has as well.
_REVISIONS: dict[SetKind, int] = {"hash:ip": 0, "hash:net": 2, "hash:ip,port": 1, "hash:net,port": 3, "bitmap:ip": 0}

_MERGED = ("hash:ip", "bitmap:ip")  # contiguous members of IPv4 go as ranges

_ANYONE = ffi.new("char[]", b"")  # the prefix of every name
_allocate = ffi.new_allocator(should_clear_after_alloc=False)


_VERBS: dict[type[Command], str] = {Create: "create", Add: "add", Delete: "del", Swap: "swap", Destroy: "destroy", Number: "number"}


def _power(count: int) -> int:
    """The least power of two that is not less than `count`, and at least 64, which is the kernel's least hash."""
    return 1 << max(6, (count - 1).bit_length())


def room(count: int) -> int:
    """The most members that a new set with so many may ever have."""
    return max(65536, 2 * _power(count))


class IpsetSocket(NetlinkSocket):
    """A netlink socket for ipset in the calling thread's network namespace.

    Opening it asks for the protocol once: Unsupported without ip_set, NotPermitted without CAP_NET_ADMIN.
    """

    def __init__(self, protocol: int = _NETLINK_NETFILTER) -> None:
        super().__init__()
        self._buffer = _allocate("uint8_t[]", _BUFFER)
        self._native = ffi.new("struct np_ipset *", {"buffer": self._buffer, "room": _BUFFER, "fd": -1})
        self._scratch = _allocate("uint8_t[]", 2 * _SCRATCH)
        self._room = _RECORDS
        self._seq = 1
        self._dirty = False  # whether there may be answers to a request that was given up
        self._watched: tuple[Any, ...] = ()  # what C's pointers point to
        code = int(lib.np_ipset_open(self._native, protocol))
        if code < 0:
            raise translate(-code, "open", "netlink socket")
        version = int(lib.np_ipset_protocol(self._native, self._next(1)))
        if version >= _PROTOCOL:
            return
        self.close()
        if version == -errno.EBADMSG:
            raise MalformedKernelData("ipset open: the kernel's answer about its protocol has no such form")
        if version < 0:
            raise translate(-version, "open", "netlink socket")
        reason = f"the kernel speaks version {version} of ipset's protocol, netpol needs {_PROTOCOL}: use Linux 4.20 or later"
        raise Unsupported(errno.EPROTONOSUPPORT, "ipset open", "netlink socket", reason)

    @property
    def sent(self) -> tuple[int, int]:
        """(netlink messages, their bytes) so far."""
        return int(self._native.messages), int(self._native.bytes)

    def _next(self, count: int) -> int:
        """The first of `count` sequence numbers that no message of this socket had lately; nothing waits to be received then."""
        if self._dirty:
            self._drain()
        first = self._seq
        # Short of wrapping: numbers of one run are contiguous in C's unsigned arithmetic and in ours.
        self._seq = first + count if first + count < 1 << 31 else 1
        return first

    # -- commands --

    def run(self, commands: Sequence[Command], numbered: bool = False) -> dict[str, int]:
        """Carries out all commands, in their order, with one acknowledgement; the numbers of sets, by name, that were asked for.

        numbered -- each set that is created is asked for its number; the answers wait in the kernel, which has room for some hundreds.

        KernelError (Unsupported, NotPermitted) names the first that failed and says how many others did, when all were answered. An error
        of the socket itself is raised at once; what was sent before it holds.
        """
        turn = self._turn
        if not turn.acquire(False):
            raise in_use(self, "run")
        try:
            return self._run(commands, numbered)
        finally:
            turn.release()

    def _run(self, commands: Sequence[Command], numbered: bool) -> dict[str, int]:
        if not commands:
            return {}
        first = self._next(len(commands) + 1)
        asking = [i for i, command in enumerate(commands) if isinstance(command, Number) or (numbered and isinstance(command, Create))]
        numbers = ffi.new("uint32_t[]", len(commands)) if asking else ffi.NULL
        try:
            for seq, command in enumerate(commands, first):
                code = self._put(seq, command, numbered)
                if code < 0:
                    raise translate(-code, _VERBS[type(command)], _object(command))
            outcome = ffi.new("struct np_ipset_outcome *", {"numbers": numbers, "first": first, "commands": len(commands)})
            code = int(lib.np_ipset_finish(self._native, outcome))
        except BaseException:
            self._native.used = 0
            self._dirty = True
            raise
        if code == 0 and outcome.failures == 0 and outcome.flags == lib.NP_IPSET_DONE:
            found = {_object(commands[i]): int(numbers[i]) - 1 for i in asking}
            if -1 in found.values():
                raise MalformedKernelData(f"ipset run {_objects(commands)}: the kernel left out the number of a set")
            return found
        if code == -errno.EBADMSG:
            self._dirty = True
            raise MalformedKernelData(f"ipset run {_objects(commands)}: an answer of the kernel has no such form")
        if code < 0 or outcome.failures == 0:
            self._dirty = True
            raise translate(-code or errno.ENOBUFS, "run", _objects(commands))
        raise _failure(commands, outcome)

    def _put(self, seq: int, command: Command, numbered: bool = False) -> int:
        """Gives one command to C, which sends when its buffer is full. 0 or -errno."""
        native = self._native
        if isinstance(command, Create):
            name, kind, family = _raw(command.name), command.kind, command.family
            revision = _REVISIONS[kind]
            count = len(command.members) // member_size(kind, family)
            buckets = ffi.NULL
            if command.net is not None:
                code = int(lib.np_ipset_create_bitmap(native, seq, name, revision, command.net.address, command.net.length))
            else:
                hashsize, maxelem = command.hashsize or _power(count), command.maxelem or room(count)
                if not command.hashsize and count >= _MANY and kind in _ORDERED and is_from(*_KEYED):
                    # A key that nobody can guess, as the kernel draws it itself: members are chosen by others.
                    numbers = _allocate("uint32_t[]", hashsize + count)
                    buckets = ffi.new("struct np_buckets *", (numbers, hashsize, 1 + secrets.randbelow((1 << 32) - 1)))
                initval = buckets.initval if buckets else 0
                code = int(lib.np_ipset_create(native, seq, name, kind.encode(), revision, family, hashsize, maxelem, initval))
            if code >= 0 and count:
                code = self._put_members(seq, command, name, buckets)
            return int(lib.np_ipset_ask_number(native, seq, name)) if code >= 0 and numbered else code
        if isinstance(command, Add | Delete):
            return self._put_members(seq, command, _raw(command.name))
        if isinstance(command, Swap):
            return int(lib.np_ipset_swap(native, seq, _raw(command.first), _raw(command.second)))
        put = lib.np_ipset_destroy if isinstance(command, Destroy) else lib.np_ipset_ask_number
        return int(put(native, seq, _raw(command.name)))

    def _put_members(self, seq: int, command: Create | Add | Delete, name: bytes, buckets: Any = ffi.NULL) -> int:
        kind, family, members = command.kind, command.family, command.members
        size, scratch = len(members), ffi.NULL
        if kind in _MERGED and family == 4 and size > 4:
            scratch = self._scratch if size <= _SCRATCH else _allocate("uint8_t[]", 2 * size)
        verb = lib.NP_IPSET_DELETE if isinstance(command, Delete) else lib.NP_IPSET_ADD
        return int(lib.np_ipset_members(self._native, seq, verb, name, _KINDS[kind], family, members, size, scratch, buckets))

    def _drain(self) -> None:
        """Throws away what the kernel still has to say, so that the next request is answered by its own answers; and a listing that is not
        read to its end keeps the socket from another one."""
        calls, sizes = ffi.addressof(self._native, "calls"), ffi.new("uint32_t[]", lib.NP_DATAGRAMS)
        each = _BUFFER // lib.NP_DATAGRAMS
        while True:
            code = int(lib.np_sys_recv_many(self._native.fd, self._buffer, each, lib.NP_DATAGRAMS, sizes, calls))
            if code < 0 and code not in (-errno.ENOBUFS, -errno.EMSGSIZE):
                self._dirty = code != -errno.EAGAIN
                return

    # -- dumps --

    @exclusive
    def headers(self) -> dict[str, Header]:
        """All sets of the namespace, anyone's, by name, in one dump."""
        return {record.header.name: record.header for record in self._records([None], "", lib.NP_IPSET_HEADERS).decoded()}

    @exclusive
    def numbers(self) -> dict[str, int]:
        """The numbers by which rules refer to sets: of all of the namespace, anyone's, by name, in one dump."""
        return self._records([None], "", lib.NP_IPSET_HEADERS).numbers()

    @exclusive
    def number(self, name: str) -> int:
        """The number by which rules refer to a set. A listing of all sets walks every bucket of each; this does not."""
        return self.run([Number(name)])[name]

    @exclusive
    def members(self, name: str) -> bytes:
        """The packed members of a set, sorted. Unsupported where netpol does not read its type."""
        return self._members(name)[1]

    @exclusive
    def read(self, name: str) -> Set:
        """A set as a value."""
        header, members = self._members(name)
        kind, family = cast(SetKind, header.kind), cast(Family, header.family)
        if kind == "bitmap:ip" and header.net is None:
            raise Unsupported(errno.EOPNOTSUPP, "ipset list", name, "netpol does not read a bitmap:ip set whose range is no prefix")
        net = header.net if kind == "bitmap:ip" else None
        return Set.of_packed(name, kind, family, members, net)

    @exclusive
    def names(self, prefix: str) -> list[str]:
        """The names that begin with the prefix. No set is looked into, anyone's: that would keep its owner, for the moment, from swapping
        or destroying it."""
        return [record.header.name for record in self._records([None], prefix, lib.NP_IPSET_NAMES).decoded()]

    @exclusive
    def records(self, names: Iterable[str], headers_only: bool = False) -> Records:
        """Headers of sets and the digests of their members, set by set; one that is not there has no record.

        headers_only -- no digests, and no count but the header's.
        """
        return self._records(list(names), "", lib.NP_IPSET_HEADERS if headers_only else 0)

    @exclusive
    def watched(self, records: Records) -> dict[str, Any]:
        """What headers were read last, and how they are asked for again: fields of a struct of C, until the next call."""
        count = len(records.raw) // ffi.sizeof("struct np_ipset_record")
        there, room = ffi.from_buffer("struct np_ipset_record[]", records.raw), ffi.new("struct np_ipset_record[]", count)
        fields = {"records": room, "record_room": count, "prefix": _ANYONE, "key": key(), "only": lib.NP_IPSET_HEADERS}
        dump = ffi.new("struct np_ipset_dump *", fields)
        self._watched = there, room, dump
        return {"ipset": self._native, "dump": dump, "records": there, "record_count": count, "seq": self._next(count)}

    def _records(self, names: Sequence[str | None], prefix: str, only: int) -> Records:
        start = ffi.new("char[]", _raw(prefix))
        while True:
            room = max(self._room, len(names))
            records = _allocate("struct np_ipset_record[]", room)
            dump = ffi.new("struct np_ipset_dump *", {"records": records, "record_room": room, "prefix": start, "key": key(), "only": only})
            if all(self._record(dump, name) for name in names):
                return Records(bytes(ffi.buffer(records, dump.record_count * ffi.sizeof("struct np_ipset_record"))))
            self._room *= 4

    def _record(self, dump: Any, name: str | None) -> bool:
        """One dump into the records, which are as before where it fails; False where there is no room for all of it."""
        before = dump.record_count
        for _ in range(DUMP_TRIES):
            dump.seq, dump.flags, dump.record_count = self._next(1), 0, before
            code = int(lib.np_ipset_record(self._native, dump, ffi.NULL if name is None else _raw(name)))
            if code < 0:
                dump.record_count = before
                self._dirty = True
            if code == -errno.ENOSPC or (code == -errno.ENOENT and name is not None):
                return code == -errno.ENOENT
            if code == -errno.EBADMSG:
                raise MalformedKernelData(f"ipset list {name or 'all sets'}: what the kernel sent has no such form")
            if code < 0:
                raise translate(-code, "list", name or "all sets")
            if not dump.flags & lib.NP_IPSET_INTERRUPTED:
                return True
        raise Contended(errno.EINTR, "ipset list", name or "all sets", _CHANGED)

    def _members(self, name: str) -> tuple[Header, bytes]:
        check_name(name)
        headers, members = self._dump(name)
        if len(headers) != 1 or headers[0].name != name:
            raise MalformedKernelData(f"ipset list {name}: the kernel listed {[header.name for header in headers]}")
        header = headers[0]
        if header.kind not in _KINDS:
            raise _unread(header)
        width = int(lib.np_ipset_width(_KINDS[header.kind], header.family))
        if width < 0:
            raise MalformedKernelData(f"ipset list {name}: a {header.kind} set of no address family")
        scratch = _allocate("uint8_t[]", len(members))
        lib.np_sort(ffi.from_buffer("uint8_t[]", members), scratch, len(members) // width, width)
        return header, bytes(members)

    def _dump(self, name: str) -> tuple[list[Header], bytearray]:
        """One consistent dump of a set's header and members."""
        for _ in range(DUMP_TRIES):
            try:
                headers, members, flags = self._dump_once(name)
            except BaseException:
                self._dirty = True
                raise
            if not flags & lib.NP_IPSET_INTERRUPTED:
                return headers, members
        raise Contended(errno.EINTR, "ipset list", name, _CHANGED)

    def _dump_once(self, name: str) -> tuple[list[Header], bytearray, int]:
        places, area = _allocate("struct np_ipset_header[]", 2), _allocate("uint8_t[]", _MEMBERS)
        room = {"headers": places, "header_room": 2, "members": area, "member_room": _MEMBERS}
        dump = ffi.new("struct np_ipset_dump *", {**room, "seq": self._next(1)})
        headers: list[Header] = []
        members = bytearray()
        code = int(lib.np_ipset_list(self._native, dump.seq, _raw(name), 0))
        while code == 0 and not dump.flags & lib.NP_IPSET_DONE:
            code = int(lib.np_ipset_receive(self._native, dump))
            headers += [_header(places[i]) for i in range(dump.header_count)]
            members += ffi.buffer(area, dump.member_size) if dump.member_size else b""
            dump.header_count = dump.member_size = 0
        if code == -errno.EOPNOTSUPP and headers:
            raise _unread(headers[-1])
        if code in (-errno.EBADMSG, -errno.ENOSPC):
            raise MalformedKernelData(f"ipset list {name}: what the kernel sent has no such form")
        if code < 0:
            raise translate(-code, "list", name)
        return headers, members, int(dump.flags)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _object(command: Command) -> str:
    return f"{command.first} with {command.second}" if isinstance(command, Swap) else command.name


def _objects(commands: Sequence[Command]) -> str:
    """What a run was about, in words: few of its sets by name."""
    names = list(dict.fromkeys(map(_object, commands)))
    more = f" and {len(names) - _NAMED} other sets" if len(names) > _NAMED else ""
    return f"{len(commands)} commands on {', '.join(names[:_NAMED])}{more}"


def _header(native: Any) -> Header:
    name, kind = (ffi.string(raw).decode("utf-8", "surrogateescape") for raw in (native.name, native.type))
    numbers = native.entries, native.references, native.hashsize, native.maxelem
    net = range_of(bytes(native.first), bytes(native.last))
    return Header(name, kind, native.family, native.index, *numbers, net)


def _unread(header: Header) -> Unsupported:
    return Unsupported(errno.EOPNOTSUPP, "ipset list", header.name, f"netpol does not read the members of a {header.kind} set")


def _failure(commands: Sequence[Command], outcome: Any) -> KernelError:
    """The exception for a run of which some commands failed."""
    command, code = commands[outcome.command], int(outcome.code)
    member = note = None
    if outcome.member and isinstance(command, Create | Add | Delete):
        member = _failed_member(command, int(outcome.member))
    if code == FIND_TYPE and isinstance(command, Create):
        note = missing_type(command.kind)
    if code == HASH_FULL and isinstance(command, Create | Add | Delete) and command.kind == "bitmap:ip":
        note = "; of a bitmap: the address is outside of its range"  # one number has two meanings
    others, all_known = int(outcome.failures) - 1, outcome.flags == lib.NP_IPSET_DONE
    if others or not all_known:
        least = "" if all_known else "at least "
        note = (note or "") + f" (and {least}{others} other{'' if others == 1 else 's'} of {len(commands)} commands failed)"
    return translate(code, _VERBS[type(command)], _object(command), member, note or "")


def _failed_member(command: Create | Add | Delete, number: int) -> str:
    """The text of the member, or of the range of them, that has this number (from 1 on) in C's order."""
    members = list(unpack(command.members, member_size(command.kind, command.family)))
    first = number - 1
    if not 0 <= first < len(members):
        return f"number {number}"
    if command.kind not in _MERGED or command.family != 4:
        return member_text(command.kind, command.family, members[first])
    members.sort()
    last = first
    while last + 1 < min(len(members), first + int(lib.NP_IPSET_RUN)):
        if int.from_bytes(members[last + 1], "big") - int.from_bytes(members[last], "big") > 1:
            break
        last += 1
    text = format_address(members[first])
    return text if members[first] == members[last] else f"{text}-{format_address(members[last])}"
