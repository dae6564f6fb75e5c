"""x_tables (legacy iptables) over get- and setsockopt: read a table, replace it, give the counters back.

There is no netlink here: the ABI of legacy iptables is socket options of any AF_INET or AF_INET6 socket. A replace swaps the whole
table at once, so packets meet the old rules or the new ones and never a mixture.

Rules (each a trap that someone fell into)
- The lock file that iptables takes is held from reading to replacing: the kernel notices a concurrent writer only when the *number*
  of rules changed. It is held for no computation that could be done before.
- What the kernel notices (EAGAIN) means read again, `TRIES` times at most.
- A replace zeroes all counters; the old ones, as of the instant of the swap, are added to the new table's. Where that fails the replace
  has been done all the same: it is counted, and no error.
- What is already there is not written.

A socket belongs to the network namespace in which it was opened, and to one thread at a time (`netpol.kernel.turns`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct as Packing
from types import MappingProxyType
from typing import Any, NamedTuple

from netpol.errors import Contended, KernelError, MalformedKernelData, NotPermitted, Unsupported
from netpol.kernel import matches, targets
from netpol.kernel._native import ffi, lib
from netpol.kernel.blocks import EncodedChain, SetNumbers, gathered, without_verdicts
from netpol.kernel.digests import Digest, digest
from netpol.kernel.entries import Known, decode_chain, extensions, used_sets
from netpol.kernel.kept import Kept, kept
from netpol.kernel.table import COUNTER, NOBODY, Layout, Shape, Snapshot, Span, Table, shape_of, splice
from netpol.kernel.turns import CLOSED, Closing, alone, exclusive, last
from netpol.model import FAMILIES, Family
from netpol.rules.ruleset import Chain, OpaqueTarget, Rule, TableName, is_ours

Counts = tuple[tuple[int, int], ...]
Proof = tuple[Shape, Digest]

TRIES = 10
LOCK_WAIT_MS = 10_000
SLICE_MS = 100  # of that wait, between two looks at whether a signal came

_NET = Path("/proc/thread-self/net")
_COUNTS = Packing("=QQ")
HEADER = Packing("=32sI4x")  # struct ipt_get_entries, and struct xt_counters_info
AF: dict[Family, int] = {4: 2, 6: 10}
LEVEL: dict[Family, int] = {4: 0, 6: 41}  # IPPROTO_IP, IPPROTO_IPV6
GET_INFO = SET_REPLACE = 64
GET_ENTRIES = SET_ADD_COUNTERS = 65
GET_REVISION: dict[Family, tuple[int, int]] = {4: (66, 67), 6: (68, 69)}  # match, target

_NO_XTABLES = (
    "this kernel has no legacy {tool}tables: load the modules (modprobe {tool}_tables {tool}table_{table}), "
    "or use a kernel built with CONFIG_{option}; nf_tables is not used"
)
_GRANT = "run netpol as root, or with CAP_NET_ADMIN in the user namespace that owns this network namespace"


_allocate = ffi.new_allocator(should_clear_after_alloc=False)
_WORDS = {
    (errno.EBADF, ""): CLOSED,
    (errno.EINVAL, "replace"): "the kernel refuses a rule, and says in its log (dmesg) which; REJECT is legal in the filter table only",
    (errno.ELOOP, "replace"): "its chains jump in a circle",
}


def lock_path() -> str:
    """The lock file of iptables: $XTABLES_LOCKFILE, or /run/xtables.lock."""
    return os.environ.get("XTABLES_LOCKFILE") or "/run/xtables.lock"


def families() -> tuple[Family, ...]:
    """Those that this kernel has sockets, and so tables, for: IPv6 is not there where it was booted with ipv6.disable=1."""
    calls = ffi.new("uint64_t *")
    fd = int(lib.np_sys_inet_socket(AF[6], calls))
    if fd >= 0:
        lib.np_sys_close(fd, calls)
    return (4,) if fd == -errno.EAFNOSUPPORT else FAMILIES


class TableSocket(Closing):
    """A socket for the tables of one family in the calling thread's network namespace.

    wait_ms -- how long at most it waits for iptables' lock.
    """

    def __init__(self, family: Family, wait_ms: int = LOCK_WAIT_MS) -> None:
        super().__init__()
        self.family, self._wait_ms = family, wait_ms
        self._calls = ffi.new("uint64_t *")
        self.longest_hold = 0.0
        """Seconds: the longest that this socket has held iptables' lock."""
        self.lost_counters = 0
        """Times that a table was written, and what its rules had counted could not be given back: those of everybody begin at 0."""
        self.left: dict[TableName, Shape] = {}
        """The shapes that `change` left tables in, or found that it need not change."""
        self._kept: dict[str, Kept] = {}  # tables as this socket wrote them
        self._said: dict[str, tuple[bytes, Shape]] = {}
        self._fd = int(lib.np_sys_inet_socket(AF[family], self._calls))
        if self._fd < 0:
            raise self._error(-self._fd, "open", "socket")

    @last
    def close(self) -> None:
        """Closes the socket; a second time does nothing."""
        if self._fd >= 0:
            lib.np_sys_close(self._fd, self._calls)
            self._fd = -1

    @property
    def calls(self) -> int:
        """System calls so far, those of opening, locking and closing included."""
        return int(self._calls[0])

    # -- reading -------------------------------------------------------------------------------------------------------

    def exists(self, table: str) -> bool:
        """Whether the table is there already, or may be: `read` would make the kernel create it."""
        try:
            return table in (_NET / ("ip_tables_names" if self.family == 4 else "ip6_tables_names")).read_text().split()
        except FileNotFoundError:
            # Without /proc nobody can tell, and rules of ours may be in force.
            return not _NET.is_dir()
        except OSError:
            # In a user namespace that was made together with its network namespace, the file is nobody's.
            return True

    @exclusive
    def read(self, table: str) -> Snapshot:
        """The table as it is now; read again while somebody changes it, `TRIES` times at most.

        MalformedKernelData where what the kernel hands out is no table each time: once, it may be another one's entries than were
        announced, of a writer without the lock whose table is as large.
        """
        for _ in range(TRIES - 1):
            with suppress(MalformedKernelData):
                return self.entries(table).snapshot()
        return self.entries(table).snapshot()

    def _found(self, table: str, last: Kept | None) -> Table:
        """The table as it is now, which is the one that was left where that is what it is."""
        if last is None:
            return self.read(table)
        found = self.entries(table)
        if found.is_left(last):
            return last.as_table()
        with suppress(MalformedKernelData):
            return found.snapshot()
        return self.read(table)

    @exclusive
    def entries(self, table: str) -> Entries:
        """The same, not taken apart yet."""
        for _ in range(TRIES):
            info = self._info(table)
            room = HEADER.size + int(info.size)
            # Cleared: behind the name of a match or target the kernel leaves what was there.
            request, size = ffi.new("uint8_t[]", room), ffi.new("uint32_t *", room)
            ffi.memmove(request, HEADER.pack(table.encode(), info.size), HEADER.size)
            code = lib.np_sys_getsockopt(self._fd, LEVEL[self.family], GET_ENTRIES, request, size, self._calls)
            if code == 0:
                return Entries(self.family, table, info, request, HEADER.size)
            if code != -errno.EAGAIN:
                raise self._error(-code, "read", table)
        raise Contended(errno.EAGAIN, self._op("read"), table, f"somebody changed it {TRIES} times while it was being read")

    @exclusive
    def shape(self, table: str) -> Shape:
        """What the kernel says about a table at once, in one system call: the very same value where it says the same as last time."""
        info = self._info(table)
        said, (known, shape) = bytes(ffi.buffer(info)), self._said.get(table, (b"", ()))
        if said != known:
            shape = shape_of(info)
            self._said[table] = said, shape
        return shape

    @exclusive
    def watched(self, table: str) -> dict[str, Any]:
        """What `shape` was told last about a table, and how it is asked for again: the fields of a struct of C."""
        said = ffi.from_buffer("struct np_xt_info *", self._said[table][0])
        return {"said": said[0], "calls": self._calls, "fd": self._fd, "level": LEVEL[self.family], "name": GET_INFO}

    def _info(self, table: str) -> Any:
        info = ffi.new("struct np_xt_info *", {"name": table.encode()})
        size = ffi.new("uint32_t *", ffi.sizeof("struct np_xt_info"))
        code = lib.np_sys_getsockopt(self._fd, LEVEL[self.family], GET_INFO, info, size, self._calls)
        if code < 0:
            raise self._error(-code, "read", table)
        return info

    # -- writing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """iptables' lock is ours inside the block. Contended when someone keeps it for as long as this socket waits."""
        with alone(self, "locked"):
            yield from self._locked()

    def _locked(self) -> Iterator[None]:
        path, left = lock_path(), self._wait_ms
        fd = int(lib.np_sys_lock(os.fsencode(path), min(left, SLICE_MS), self._calls))
        # Between two of these waits Python does what a signal asks for.
        while fd == -errno.EAGAIN and (left := left - SLICE_MS) > 0:
            fd = int(lib.np_sys_lock(os.fsencode(path), min(left, SLICE_MS), self._calls))
        if fd == -errno.EAGAIN:
            raise Contended(errno.EAGAIN, self._op("lock"), path, f"another program has held it for {self._wait_ms / 1000:g} s")
        if fd < 0:
            raise KernelError(-fd, self._op("lock"), path, f"{os.strerror(-fd)}: XTABLES_LOCKFILE can name another file")
        since = time.monotonic()
        try:
            yield
        finally:
            lib.np_sys_close(fd, self._calls)
            self.longest_hold = max(self.longest_hold, time.monotonic() - since)

    @exclusive
    def change(
        self,
        table: TableName,
        chains: Mapping[str, EncodedChain],
        hooked: bool,
        owns: Callable[[str], bool] = is_ours,
        stands_for: Mapping[int, int | None] = NOBODY,
    ) -> bool:
        """As `write`; whether anything had to be written."""
        return self.write(table, chains, hooked, owns, stands_for).is_new

    @exclusive
    def write(
        self,
        table: TableName,
        chains: Mapping[str, EncodedChain],
        hooked: bool,
        owns: Callable[[str], bool] = is_ours,
        stands_for: Mapping[int, int | None] = NOBODY,
    ) -> Layout:
        """Makes these the chains of ours in the table, in one replace, under the lock, if something has to be written; the new table.

        hooked -- FORWARD begins with `-j NETPOL`; owns -- which chains of the table are ours, by name; stands_for -- numbers of sets that
        are beside others for the length of a change, see `Layout.carry`. Everything else in the table stays as it is, with its counters.
        Contended, NotPermitted, Unsupported and KernelError leave the table as it was.
        """
        last = self._kept.pop(table, None)
        ready = last.with_chains(chains, hooked) if last is not None and owns is is_ours else None
        for _ in range(TRIES):
            with self.locked():
                old = self._found(table, last)
                new = ready if ready is not None and not isinstance(old, Snapshot) else splice(old, chains, hooked, owns)
                is_done = not new.is_new or self._replace(old, new, chains, stands_for)
            if is_done:
                self.left[table] = new.shape
                if owns is is_ours and (now := kept(table, new, chains, hooked)) is not None:
                    self._kept[table] = now
                return new
        raise Contended(errno.EAGAIN, self._op("replace"), table, f"somebody without iptables' lock changed it {TRIES} times")

    def _replace(self, old: Table, new: Layout, chains: Mapping[str, EncodedChain], stands_for: Mapping[int, int | None] = NOBODY) -> bool:
        """One replace; False when the table changed since it was read."""
        counters = _allocate("uint8_t[]", old.entries * COUNTER)
        request = ffi.cast("struct np_xt_replace *", new.request)
        ffi.memmove(request, bytes(ffi.sizeof("struct np_xt_replace")), ffi.sizeof("struct np_xt_replace"))
        request.name, request.valid_hooks, request.num_entries = old.table.encode(), old.valid_hooks, new.table.entries
        request.size = new.block.size
        request.hook_entry, request.underflow = new.table.hook_entry, new.table.underflow
        request.num_counters, request.counters = old.entries, counters
        code = lib.np_sys_setsockopt(self._fd, LEVEL[self.family], SET_REPLACE, new.request, new.length, self._calls)
        if code == -errno.EAGAIN:
            return False
        if code in (-errno.ENOENT, -errno.EPROTOTYPE):
            raise self._missing(old.table, chains)
        if code < 0:
            raise self._error(-code, "replace", old.table)
        self._give_back(old, new, counters, stands_for)
        return True

    def _give_back(self, old: Table, new: Layout, counters: Any, stands_for: Mapping[int, int | None]) -> None:
        """Adds what the old entries had counted, at the instant of the replace, to what the new ones count."""
        counted = bytes(ffi.buffer(counters))
        if counted == bytes(len(counted)):
            return
        data = ffi.new("uint8_t[]", HEADER.size + new.table.entries * COUNTER)
        ffi.memmove(data, HEADER.pack(old.table.encode(), new.table.entries), HEADER.size)
        new.carry(counters, data + HEADER.size, stands_for)
        # The new table is in force, whatever comes of its counters: too little memory, or somebody without the lock has written it since.
        if lib.np_sys_setsockopt(self._fd, LEVEL[self.family], SET_ADD_COUNTERS, data, len(data), self._calls) < 0:
            self.lost_counters += 1

    # -- errors --------------------------------------------------------------------------------------------------------

    @exclusive
    def has_revision(self, name: str, revision: int, is_target: bool = False) -> bool:
        """Whether the kernel has a match or target of that name in that revision (it may load a module for it)."""
        request = ffi.new("struct np_xt_revision *", {"name": name.encode(), "revision": revision})
        size = ffi.new("uint32_t *", ffi.sizeof("struct np_xt_revision"))
        option = GET_REVISION[self.family][is_target]
        code = int(lib.np_sys_getsockopt(self._fd, LEVEL[self.family], option, request, size, self._calls))
        if code in (-errno.EPERM, -errno.ENOPROTOOPT, -errno.EBADF):
            raise self._error(-code, "ask for", name)
        return code == 0

    @exclusive
    def missing_revisions(self) -> tuple[str, ...]:
        """What netpol may write and this kernel lacks, as "match set revision 4"."""
        other = "icmp" if self.family == 6 else "icmp6"
        wanted = [("match", name, revision) for name, revision in matches.REVISIONS if name != other]
        wanted += [("target", name, revision) for name, revision in targets.REVISIONS]
        return tuple(
            f"{kind} {name} revision {number}" for kind, name, number in wanted if not self.has_revision(name, number, kind == "target")
        )

    def _missing(self, table: str, chains: Mapping[str, EncodedChain]) -> KernelError:
        """Why the kernel found something missing: extensions that it lacks, or else a set that was destroyed since it was looked up."""
        used = sorted({extension for chain in chains.values() for extension in extensions(chain.data, self.family)})
        lacking = [
            f"{kind} {name} revision {number}" for kind, name, number in used if not self.has_revision(name, number, kind == "target")
        ]
        if lacking:
            words = f"this kernel lacks {', '.join(lacking)}: load its module (modprobe xt_...)"
            return Unsupported(errno.ENOENT, self._op("replace"), table, words)
        sets = ", ".join(sorted({name for chain in chains.values() for name in used_sets(chain)}))
        return KernelError(errno.ENOENT, self._op("replace"), table, f"a set that its rules use is gone: one of {sets}")

    def _op(self, verb: str) -> str:
        return f"{'iptables' if self.family == 4 else 'ip6tables'} {verb}"

    def _error(self, code: int, verb: str, object: str) -> KernelError:
        op = self._op(verb)
        if code in (errno.EPERM, errno.EACCES):
            return NotPermitted(code, op, object, f"not permitted: {_GRANT}")
        if code == errno.EAFNOSUPPORT:
            return Unsupported(code, op, object, f"this kernel has no IPv{self.family}")
        if code in (errno.ENOPROTOOPT, errno.ENOENT):
            tool, option = ("ip", "IP_NF_IPTABLES_LEGACY") if self.family == 4 else ("ip6", "IP6_NF_IPTABLES_LEGACY")
            return Unsupported(code, op, object, _NO_XTABLES.format(tool=tool, option=option, table=object))
        return KernelError(code, op, object, _WORDS.get((code, verb)) or _WORDS.get((code, "")) or os.strerror(code))


class Entries(NamedTuple):
    """A table as bytes, as the kernel handed it out: `info` is a struct np_xt_info, `native` an array, of which the first bytes are none.

    Not a view of the rest: `ffi.from_buffer` of a memoryview ends the process when the garbage collector finds both in a circle, and the
    traceback of any error may be one.
    """

    family: Family
    table: str
    info: Any
    native: Any
    start: int = 0

    def is_left(self, last: Kept) -> bool:
        """Whether the table is as it was left."""
        return last.is_as(self.native + self.start, len(self.native) - self.start, shape_of(self.info))

    def snapshot(self) -> Snapshot:
        """Taken apart into chains; the bytes are the snapshot's from then on."""
        return Snapshot(self.family, self.table, self.info, self.native, self.start)

    def proof(self) -> Proof | None:
        """What two tables with the same rules have in common, and no other; clears the counters. None for bytes that are no table."""
        entries, size = self.native + self.start, len(self.native) - self.start
        if lib.np_xt_normalise(entries, size, self.family, ffi.NULL, self.info.num_entries) != self.info.num_entries:
            return None
        return shape_of(self.info), digest(entries, size)


class Ours(NamedTuple):
    """Our part of a table.

    chains -- by name; counters -- the (packets, bytes) of their rules; is_hooked -- whether FORWARD begins with the jump to NETPOL, and
    has no other; is_moved -- it has that jump, but elsewhere, or more than once; known -- those of the chains that netpol could have
    written, with their bytes.
    """

    chains: dict[str, Chain]
    counters: dict[str, Counts]
    is_hooked: bool
    known: dict[str, Known]
    is_moved: bool = False


def read_ours(snapshot: Snapshot, sets: SetNumbers, known: Mapping[str, Known] = MappingProxyType({})) -> Ours:
    """Our chains in a table as values. Those of the `known` ones that stand there byte for byte are not decoded again.

    A chain that holds what netpol does not write (someone edited it) is one opaque rule here, and so equal to none that is wanted.
    """
    hooked = snapshot.is_hooked
    chains: dict[str, Chain] = {}
    counters: dict[str, Counts] = {}
    recognised: dict[str, int] = {}
    for number, (span, places) in enumerate(zip(snapshot.spans, snapshot.places(), strict=True)):
        if span.hook >= 0 or not is_ours(span.name):
            continue
        counters[span.name] = rule_counters(snapshot, span)
        data = snapshot.data(span)
        try:
            found = _recognised(known.get(span.name), data, places, sets) or decode_chain(span.name, data, snapshot.family, places, sets)
        except MalformedKernelData:
            chains[span.name] = Chain(span.name, (Rule(OpaqueTarget("", 0, data)),))
        else:
            chains[span.name] = found.chain
            if found.is_sure:
                recognised[span.name] = number
    encoded = gathered(snapshot.block, recognised, sets)
    known_now = {name: Known(chains[name], chain) for name, chain in encoded.items()}
    return Ours(chains, counters, hooked, known_now, not hooked and bool(snapshot.hooks()))


def _recognised(known: Known | None, data: bytes, places: Mapping[int, str], sets: SetNumbers) -> Known | None:
    if known is None or known.encoded.jumps != tuple(places.items()) or not known.is_of(sets):
        return None
    return known if known.encoded.data == without_verdicts(data, places) else None


def holds(snapshot: Snapshot, chains: Mapping[str, Known], hooked: bool, sets: SetNumbers) -> bool:
    """Whether our part of a table is these chains, byte for byte, and FORWARD begins with the jump to them or has none."""
    if snapshot.is_hooked != hooked or (not hooked and snapshot.hooks()):
        return False
    ours = [(span, places) for span, places in zip(snapshot.spans, snapshot.places(), strict=True) if span.hook < 0 and is_ours(span.name)]
    return len(ours) == len(chains) and all(
        _recognised(chains.get(span.name), snapshot.data(span), places, sets) is not None for span, places in ours
    )


def rule_counters(snapshot: Snapshot, span: Span) -> Counts:
    """(packets, bytes) of each rule of a chain, its head and tail left out."""
    first, last = span.first + (span.hook < 0), span.first + span.entries - 1
    return tuple(_COUNTS.iter_unpack(memoryview(snapshot.counters)[first * COUNTER : last * COUNTER]))
