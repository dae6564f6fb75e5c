"""ctnetlink: the typed face of csrc/np_ct. Connection tracking entries are read, and one bit of their marks is set or cleared.

Entries stay packed (`netpol.rules.flows`): C parses each message of a dump once and hands over only entries that can matter, those
with an end among the addresses asked for or with a bit of their mark set. So a sweep over a table of 100,000 costs little more than
the kernel's own work.

Invariants
- An end is the source of the original tuple or of the reply tuple: where packets really come from, on either side of NAT.
- Of a mark only the bits that were asked for change, also while other programs change theirs; nothing else of an entry changes.
- An entry is addressed by its reply tuple and its zone. One that is gone by then is no error.
- Nothing is ever waited for: netlink answers within the call.
- A dump of a table that never rests is no snapshot: an entry that is made meanwhile may be missing.

A socket belongs to the network namespace in which it was opened, and to one thread at a time (`netpol.kernel.turns`). Entries that no
packet has confirmed yet (their first one is still on its way) appear in no dump. Nothing here creates or deletes entries.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable
from typing import Any

from netpol.errors import KernelError, MalformedKernelData, NotPermitted, Unsupported
from netpol.kernel import listing
from netpol.kernel._native import ffi, lib
from netpol.kernel.judging import Judging
from netpol.kernel.netlink import NetlinkSocket
from netpol.kernel.release import is_from
from netpol.kernel.turns import CLOSED, exclusive
from netpol.model import FAMILIES, Address, Family, family_of, format_address
from netpol.rules.flows import SIZE, unpack

_NETLINK_NETFILTER = 12
_FILTERS = 5, 16  # the first Linux whose every filter finds what it should: from 5.8 on one by the reply's source may find nothing
_BUFFER = 1 << 16  # the kernel sends at most 32 KiB of a dump at once
_AT_ONCE = 1024  # entries in a buffer at most: a message of one has more than 64 bytes
_FLOWS = 2 * _AT_ONCE

_GRANT = "run netpol as root, or with CAP_NET_ADMIN in the user namespace that owns this network namespace"
_NO_CTNETLINK = "this kernel has no ctnetlink: load the module (modprobe nf_conntrack_netlink), or use one built with CONFIG_NF_CT_NETLINK"

# (errno, operation) -> words; an empty operation holds for all that have no words of their own.
_WORDS: dict[tuple[int, str], str] = {
    (errno.EPERM, ""): f"not permitted: {_GRANT}",
    (errno.EACCES, ""): f"not permitted: {_GRANT}",
    (errno.EINVAL, "open"): _NO_CTNETLINK,
    (errno.EPROTONOSUPPORT, "open"): f"this kernel has no netfilter netlink (CONFIG_NETFILTER_NETLINK); {_NO_CTNETLINK}",
    (errno.EOPNOTSUPP, "mark"): "this kernel keeps no marks: use one built with CONFIG_NF_CONNTRACK_MARK",
    (errno.EOPNOTSUPP, "unmark"): "this kernel keeps no marks: use one built with CONFIG_NF_CONNTRACK_MARK",
    (errno.EBADF, ""): CLOSED,
    (errno.ENOMEM, ""): "the kernel is out of memory",
    (errno.ENOBUFS, ""): "so many updates failed that the kernel threw their errors away: sweep again",
    (errno.ENODATA, ""): "the kernel did not answer all of it: sweep again",
}
_QUEUES = "/proc/thread-self/net/netfilter/nfnetlink_queue"
_allocate = ffi.new_allocator(should_clear_after_alloc=False)


def translate(code: int, op: str, object: str, note: str = "") -> KernelError:
    """The exception for an errno of the kernel; op -- open, list, mark or unmark; object -- what of; note -- put behind the reason."""
    words = _WORDS.get((code, op)) or _WORDS.get((code, "")) or os.strerror(code)
    kind: type[KernelError] = KernelError
    if code in (errno.EPERM, errno.EACCES):
        kind = NotPermitted
    elif op == "open" and code in (errno.EINVAL, errno.EPROTONOSUPPORT):
        kind = Unsupported
    return kind(code, f"conntrack {op}", object, words + note)


def filtered_dumps(addresses: Collection[Address]) -> int:
    """How many dumps `flows_at` takes for them."""
    six = sum(family_of(address) == 6 for address in addresses)
    return 2 * (len(addresses) - six) + (six > 0)


def _queues() -> bool:
    """Whether anybody listens on a queue of packets in the calling thread's network namespace."""
    try:
        with open(_QUEUES, "rb") as file:
            return bool(file.read())
    except FileNotFoundError:
        return False
    except OSError:
        return True


class ConntrackSocket(NetlinkSocket):
    """A netlink socket for connection tracking in the calling thread's network namespace.

    Opening it asks for the number of entries once: Unsupported without ctnetlink, NotPermitted without CAP_NET_ADMIN.
    """

    def __init__(self, protocol: int = _NETLINK_NETFILTER) -> None:
        super().__init__()
        self._buffer = _allocate("uint8_t[]", _BUFFER)
        self._area = _allocate("struct np_ct_flow[]", _FLOWS)
        self._native = ffi.new("struct np_ct *", {"buffer": self._buffer, "room": _BUFFER, "fd": -1})
        self._seq = 1
        self._dirty = False  # whether there may be answers to a request that was given up
        self._filters = is_from(*_FILTERS)
        self.looked_at = 0
        """Entries that the kernel has sent so far, wanted or not."""
        self.wanted = 0
        """Those of them that were asked for."""
        self.counted = 0
        """Entries, wanted or not, that had one of the bits in their mark that were to be counted."""
        code = int(lib.np_ct_open(self._native, protocol))
        if code < 0:
            raise translate(-code, "open", "netlink socket")
        try:
            self._count("open")
        except BaseException:
            self.close()
            raise

    @exclusive
    def count(self, family: Family | None = None) -> int:
        """How many entries the namespace has; those of one family are counted one by one."""
        if family is None:
            return self._count("count")
        before = self.looked_at
        self._dump(lib.NP_CT_ALL, (), 0, family)
        return self.looked_at - before

    def _count(self, op: str) -> int:
        entries = ffi.new("uint32_t *")
        code = int(lib.np_ct_entries(self._native, self._next(1), entries))
        self._dirty = code < 0
        if code == -errno.EBADMSG:
            raise MalformedKernelData(f"conntrack {op}: the kernel's count of its entries has no such form")
        if code < 0:
            raise translate(-code, op, "netlink socket" if op == "open" else "entries")
        return int(entries[0])

    def _next(self, count: int) -> int:
        """The first of `count` sequence numbers that no message of this socket had lately; nothing waits to be received then."""
        if self._dirty:
            self._drain()
        first = self._seq
        self._seq = first + count if first + count < 1 << 31 else 1
        return first

    def _drain(self) -> None:
        """Throws away what the kernel still has to say, so that the next request is answered by its own answers; and a listing that is not
        read to its end keeps the socket from another one."""
        while True:
            code = int(lib.np_sys_recv(self._native.fd, self._buffer, _BUFFER, 0, ffi.addressof(self._native, "calls")))
            if code < 0 and code not in (-errno.ENOBUFS, -errno.EMSGSIZE):
                self._dirty = code != -errno.EAGAIN
                return

    @exclusive
    def settle(self) -> bool:
        """Waits, some milliseconds, until no packet is under way that met the rules of before and has no entry yet.

        False where that cannot be known: the kernel does not say, or somebody has packets wait in a queue (NFQUEUE) for his word.
        """
        return lib.np_sys_grace_period(ffi.addressof(self._native, "calls")) == 0 and not _queues()

    # -- reading --

    @exclusive
    def flows(
        self,
        ends: Iterable[Address],
        bits: int = 0,
        judging: Judging | None = None,
        counted: int = 0,
        entries: int | None = None,
        link_local: bool = False,
    ) -> bytes:
        """Packed entries of both families with an end among these addresses, or with one of `bits` in their mark, in one dump of all.

        All that have one of the bits `counted` are counted, too. entries -- how many there are, for who knows it and is in
        the socket's namespace: where they are few, those that can matter are found without a dump (`netpol.kernel.listing`).
        link_local -- IPv6 link-local addresses are ends, too.
        With `judging` they are judged as they come, and what it keeps of them is all that becomes of them.
        """
        ends = frozenset(ends)
        flags = lib.NP_CT_LINK_LOCAL if link_local else 0
        if entries is not None and (found := self._get(entries, ends, bits, judging, counted, flags)) is not None:
            return found
        return self._dump(lib.NP_CT_ALL, ends, bits, judging=judging, counted=counted, flags=flags)

    @exclusive
    def flows_at(self, addresses: Collection[Address], judging: Judging | None = None) -> bytes:
        """Packed entries with an end among these addresses, of which there are few: the kernel filters. An entry may come twice.

        Two dumps an IPv4 address, about a sixth each of what a dump of all costs. A kernel that does not know the filter, or may get it
        wrong, is asked for all. IPv6 takes one dump of all its entries: there the kernel's filter leaves out what it should send.
        """
        sides = lib.NP_CT_ORIGINAL_SOURCE, lib.NP_CT_REPLY_SOURCE
        four, six = ([address for address in addresses if family_of(address) == family] for family in FAMILIES)
        found = b"".join(self._filtered(side, address, judging) for address in four for side in sides if self._filters)
        if not self._filters:
            return self.flows(addresses, judging=judging)
        return found + (self._dump(lib.NP_CT_ALL, six, 0, 6, judging=judging) if six else b"")

    @exclusive
    def marked(self, bits: int) -> bytes:
        """Packed entries of both families with one of `bits` in their mark; the kernel filters where `bits` is one bit."""
        single = bits.bit_count() == 1
        return self._dump(lib.NP_CT_MARKED if single else lib.NP_CT_ALL, (), bits)

    def _filtered(self, which: int, address: Address, judging: Judging | None) -> bytes:
        before, wanted = self.looked_at, self.wanted
        try:
            found = self._dump(which, (address,), 0, 4, address, judging)
        except KernelError as error:
            if error.code not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self._filters = False
            return b""
        # Whoever knows the filter sends nothing that C would have to leave out.
        if self.looked_at - before != self.wanted - wanted:
            self._filters = False
        return found

    def _dump(
        self,
        which: int,
        ends: Iterable[Address],
        bits: int,
        family: int = 0,
        address: Address | None = None,
        judging: Judging | None = None,
        counted: int = 0,
        flags: int = 0,
    ) -> bytes:
        dump, _ends = self._new_dump(ends, bits, counted, flags)
        found = bytearray()
        what = "entries" if address is None else f"entries of {format_address(address)}"
        try:
            code = int(lib.np_ct_list(self._native, dump.seq, family, which, ffi.NULL if address is None else address, bits))
            while code == 0 and not dump.flags & lib.NP_CT_DONE:
                code = int(lib.np_ct_receive(self._native, dump))
                if dump.count <= _FLOWS - _AT_ONCE and code == 0 and not dump.flags & lib.NP_CT_DONE:
                    continue
                found += self._taken(dump, judging)
        except BaseException:
            self._dirty = True
            raise
        self._add(dump)
        if code == 0:
            return bytes(found)
        self._dirty = True
        if code in (-errno.EBADMSG, -errno.ENOSPC):
            raise MalformedKernelData(f"conntrack list {what}: what the kernel sent has no such form")
        raise translate(-code, "list", what)

    def _get(self, entries: int, ends: frozenset[Address], bits: int, judging: Judging | None, counted: int, flags: int) -> bytes | None:
        """What a dump of everything would find; None where only a dump can tell."""
        dump, _ends = self._new_dump(ends, bits, counted, flags)
        listed = listing.find(entries, dump)
        self._native.calls += listed.calls
        if listed.keys is None:
            return None
        dump.flags |= lib.NP_CT_EACH
        keys = ffi.from_buffer("struct np_ct_flow[]", listed.keys)
        try:
            code = int(lib.np_ct_get(self._native, keys, len(keys), dump))
            if code < 0:
                # Nothing was judged yet, and the dump that follows meets the same kernel: it tells what is wrong.
                self._dirty = True
                return None
            self._add(dump)
            return self._taken(dump, judging, all_of_few=True)
        except BaseException:
            self._dirty = True
            raise

    def _new_dump(self, ends: Iterable[Address], bits: int, counted: int, flags: int) -> tuple[Any, object]:
        """What C reads entries into, and what has to live as long."""
        wanted = frozenset(ends)
        by_family = {family: sorted(end for end in wanted if family_of(end) == family) for family in FAMILIES}
        ends4, ends6 = (ffi.from_buffer("uint8_t[]", b"".join(by_family[family])) for family in FAMILIES)
        dump = ffi.new(
            "struct np_ct_dump *", {"flows": self._area, "room": _FLOWS, "ends4": ends4, "ends6": ends6, "bits": bits, "seq": self._next(1)}
        )
        dump.count4, dump.count6, dump.counted, dump.flags = len(by_family[4]), len(by_family[6]), counted, flags
        return dump, (ends4, ends6)

    def _taken(self, dump: Any, judging: Judging | None, all_of_few: bool = False) -> bytes:
        """Empties the area: what judges has it, else who called."""
        count, dump.count = int(dump.count), 0
        self.wanted += count
        if judging is None or not count:
            return bytes(ffi.buffer(self._area, count * SIZE))
        judging.take(self._area, count, all_of_few)
        return b""

    def _add(self, dump: Any) -> None:
        self.looked_at += int(dump.seen)
        self.counted += int(dump.marked)

    # -- writing --

    @exclusive
    def mark(self, flows: bytes, bit: int) -> int:
        """Sets a bit, or several, in the marks of packed entries; how many of them were still there.

        KernelError names the first that the kernel refused and says how many others were; the rest have it.
        """
        return self._update("mark", flows, bit, bit)

    @exclusive
    def unmark(self, flows: bytes, bit: int) -> int:
        """Clears a bit, or several, in the marks of packed entries; how many of them were still there. Errors as `mark`."""
        return self._update("unmark", flows, 0, bit)

    def _update(self, op: str, flows: bytes, mark: int, mask: int) -> int:
        count, rest = divmod(len(flows), SIZE)
        if rest or not 0 < mask < 1 << 32:
            raise ValueError("whole packed entries and a mask of 32 bits are needed")
        if not count:
            return 0
        array = ffi.from_buffer("struct np_ct_flow[]", flows)
        outcome = ffi.new("struct np_ct_outcome *", {"first": self._next(count + 1), "count": count})
        try:
            code = int(lib.np_ct_update(self._native, array, mark, mask, outcome))
        except BaseException:
            self._dirty = True
            raise
        if code == -errno.EBADMSG:
            self._dirty = True
            raise MalformedKernelData(f"conntrack {op} {count} entries: an answer of the kernel has no such form")
        if code < 0:
            self._dirty = True
            raise translate(-code, op, f"{count} entries")
        if outcome.failures:
            failed = next(unpack(flows[outcome.failed * SIZE : (outcome.failed + 1) * SIZE]))
            others = int(outcome.failures) - 1
            raise translate(int(outcome.code), op, str(failed), f" (and {others} others of {count} entries)" if others else "")
        if outcome.flags & lib.NP_CT_LOST:
            raise translate(errno.ENOBUFS, op, f"{count} entries")
        return count - int(outcome.gone)
