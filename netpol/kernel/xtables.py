"""x_tables (legacy iptables) over get- and setsockopt: read a table, replace it, give the counters back.

There is no netlink here: the ABI of legacy iptables is socket options of any AF_INET or AF_INET6 socket. A replace swaps the whole
table at once, so packets meet the old rules or the new ones and never a mixture.

Rules (each a trap that someone fell into)
- The lock file that iptables takes is held from reading to replacing: the kernel notices a concurrent writer only when the *number*
  of rules changed. It is held for no computation that could be done before.
- What the kernel notices (EAGAIN) means read again, `TRIES` times at most.
- A replace zeroes all counters; the old ones, as of the instant of the swap, are added to the new table's.
- What is already there is not written.

A socket belongs to the network namespace in which it was opened, and to one thread at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from netpol.errors import Contended, KernelError, MalformedKernelData, NotPermitted, Unsupported
from netpol.kernel import matches, targets
from netpol.kernel._native import ffi, lib
from netpol.kernel.entries import EncodedChain, decode_chain
from netpol.kernel.table import COUNTER, Layout, Snapshot, splice
from netpol.model import Family
from netpol.rules.ruleset import HOOK, ROOT, Chain, OpaqueTarget, Rule, TableName, is_ours

TRIES = 10
LOCK_WAIT_MS = 10_000

AF: dict[Family, int] = {4: 2, 6: 10}
LEVEL: dict[Family, int] = {4: 0, 6: 41}  # IPPROTO_IP, IPPROTO_IPV6
GET_INFO = SET_REPLACE = 64
GET_ENTRIES = SET_ADD_COUNTERS = 65
GET_REVISION: dict[Family, tuple[int, int]] = {4: (66, 67), 6: (68, 69)}  # match, target

_NO_XTABLES = (
    "this kernel has no legacy {tool}: load the modules (modprobe {tool}_tables {tool}table_{table}), "
    "or use a kernel built with CONFIG_{option}; nf_tables is not used"
)
_GRANT = "run netpol as root, or with CAP_NET_ADMIN in the user namespace that owns this network namespace"


def lock_path() -> str:
    """The lock file of iptables: $XTABLES_LOCKFILE, or /run/xtables.lock."""
    return os.environ.get("XTABLES_LOCKFILE") or "/run/xtables.lock"


class TableSocket:
    """A socket for the tables of one family in the calling thread's network namespace."""

    def __init__(self, family: Family) -> None:
        self.family: Family = family
        self._calls = ffi.new("uint64_t *")
        self._fd = int(lib.np_sys_inet_socket(AF[family], self._calls))
        if self._fd < 0:
            raise self._error(-self._fd, "open", "socket")

    def __enter__(self) -> TableSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

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

    def exists(self, table: TableName) -> bool:
        """Whether the table is there already: `read` would make the kernel create it."""
        name = "ip_tables_names" if self.family == 4 else "ip6_tables_names"
        try:
            return table in Path(f"/proc/thread-self/net/{name}").read_text().split()
        except OSError:
            return False

    def read(self, table: TableName) -> Snapshot:
        """The table as it is now; read again while somebody changes it, `TRIES` times at most."""
        for _ in range(TRIES):
            info = self._info(table)
            size = ffi.new("uint32_t *", 40 + info.size)
            request = bytearray(table.encode().ljust(32, b"\0") + int(info.size).to_bytes(4, "little") + bytes(4)) + bytearray(info.size)
            code = lib.np_sys_getsockopt(self._fd, LEVEL[self.family], GET_ENTRIES, ffi.from_buffer(request), size, self._calls)
            if code == 0:
                return Snapshot(self.family, table, info, request[40:])
            if code != -errno.EAGAIN:
                raise self._error(-code, "read", table)
        raise Contended(errno.EAGAIN, self._op("read"), table, f"somebody changed it {TRIES} times while it was being read")

    def _info(self, table: TableName) -> Any:
        info = ffi.new("struct np_xt_info *", {"name": table.encode()})
        size = ffi.new("uint32_t *", ffi.sizeof("struct np_xt_info"))
        code = lib.np_sys_getsockopt(self._fd, LEVEL[self.family], GET_INFO, info, size, self._calls)
        if code < 0:
            raise self._error(-code, "read", table)
        return info

    # -- writing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """iptables' lock is ours inside the block. Contended when someone keeps it for `LOCK_WAIT_MS` milliseconds."""
        path = lock_path()
        fd = int(lib.np_sys_lock(path.encode(), LOCK_WAIT_MS, self._calls))
        if fd == -errno.EAGAIN:
            raise Contended(errno.EAGAIN, self._op("lock"), path, f"another program has held it for {LOCK_WAIT_MS // 1000} s")
        if fd < 0:
            raise KernelError(-fd, self._op("lock"), path, f"{os.strerror(-fd)}: XTABLES_LOCKFILE can name another file")
        try:
            yield
        finally:
            lib.np_sys_close(fd, self._calls)

    def change(self, table: TableName, chains: Mapping[str, EncodedChain], hooked: bool, owns: Callable[[str], bool] = is_ours) -> bool:
        """Makes these the chains of ours in the table, in one replace, under the lock; whether anything had to be written.

        hooked -- FORWARD begins with `-j NETPOL`; owns -- which chains of the table are ours, by name. Everything else in the
        table stays as it is, with its counters. Contended, NotPermitted, Unsupported and KernelError leave the table as it was.
        """
        for _ in range(TRIES):
            with self.locked():
                old = self.read(table)
                new = splice(old, chains, hooked, owns)
                if new.blob == old.blob:
                    return False
                if self._replace(old, new, chains):
                    return True
        raise Contended(errno.EAGAIN, self._op("replace"), table, f"somebody without iptables' lock changed it {TRIES} times")

    def _replace(self, old: Snapshot, new: Layout, chains: Mapping[str, EncodedChain]) -> bool:
        """One replace; False when the table changed since it was read."""
        counters = ffi.new("uint8_t[]", old.entries * COUNTER)
        request = ffi.new("struct np_xt_replace *", {"name": old.table.encode(), "valid_hooks": old.valid_hooks})
        request.num_entries, request.size = new.native.entries, len(new.blob)
        request.hook_entry, request.underflow = list(new.native.hook_entry), list(new.native.underflow)
        request.num_counters, request.counters = old.entries, counters
        data = bytes(ffi.buffer(request)) + new.blob
        code = lib.np_sys_setsockopt(self._fd, LEVEL[self.family], SET_REPLACE, ffi.from_buffer(data), len(data), self._calls)
        if code == -errno.EAGAIN:
            return False
        if code == -errno.ENOENT:
            raise self._missing_extension(old.table, chains)
        if code < 0:
            raise self._error(-code, "replace", old.table)
        self._give_back(old, new, bytes(ffi.buffer(counters)))
        return True

    def _give_back(self, old: Snapshot, new: Layout, counters: bytes) -> None:
        """Adds what the old entries had counted, at the instant of the replace, to what the new ones count."""
        if counters.count(0) == len(counters):
            return
        head = old.table.encode().ljust(32, b"\0") + int(new.native.entries).to_bytes(4, "little") + bytes(4)
        data = head + new.move_counters(counters)
        code = lib.np_sys_setsockopt(self._fd, LEVEL[self.family], SET_ADD_COUNTERS, ffi.from_buffer(data), len(data), self._calls)
        if code < 0:
            raise self._error(-code, "give counters back to", old.table)

    # -- errors --------------------------------------------------------------------------------------------------------

    def has_revision(self, name: str, revision: int, is_target: bool = False) -> bool:
        """Whether the kernel has a match or target of that name in that revision (it may load a module for it)."""
        request = ffi.new("struct np_xt_revision *", {"name": name.encode(), "revision": revision})
        size = ffi.new("uint32_t *", ffi.sizeof("struct np_xt_revision"))
        option = GET_REVISION[self.family][is_target]
        code = int(lib.np_sys_getsockopt(self._fd, LEVEL[self.family], option, request, size, self._calls))
        if code in (-errno.EPERM, -errno.ENOPROTOOPT):
            raise self._error(-code, "ask for", name)
        return code == 0

    def missing_revisions(self) -> tuple[str, ...]:
        """What netpol may write and this kernel lacks, as "match set revision 4"."""
        other = "icmp" if self.family == 6 else "icmp6"
        wanted = [("match", name, revision) for name, revision in matches.REVISIONS if name != other]
        wanted += [("target", name, revision) for name, revision in targets.REVISIONS]
        return tuple(
            f"{kind} {name} revision {number}" for kind, name, number in wanted if not self.has_revision(name, number, kind == "target")
        )

    def _missing_extension(self, table: TableName, chains: Mapping[str, EncodedChain]) -> KernelError:
        missing = ", ".join(self.missing_revisions())
        if missing:
            return Unsupported(errno.ENOENT, self._op("replace"), table, f"this kernel lacks {missing}: load its module (modprobe xt_...)")
        return KernelError(errno.ENOENT, self._op("replace"), table, "a set, or a match of another program, that its rules use is gone")

    def _op(self, verb: str) -> str:
        return f"{'iptables' if self.family == 4 else 'ip6tables'} {verb}"

    def _error(self, code: int, verb: str, object: str) -> KernelError:
        op = self._op(verb)
        if code in (errno.EPERM, errno.EACCES):
            return NotPermitted(code, op, object, f"not permitted: {_GRANT}")
        if code in (errno.ENOPROTOOPT, errno.ENOENT, errno.EAFNOSUPPORT):
            tool, option = ("ip", "IP_NF_IPTABLES_LEGACY") if self.family == 4 else ("ip6", "IP6_NF_IPTABLES_LEGACY")
            return Unsupported(code, op, object, _NO_XTABLES.format(tool=tool, option=option, table=object))
        return KernelError(code, op, object, os.strerror(code))


def read_ours(snapshot: Snapshot, set_names: Mapping[int, str]) -> tuple[dict[str, Chain], dict[str, tuple[tuple[int, int], ...]], bool]:
    """Our chains in a table as values, the (packets, bytes) of their rules, and whether FORWARD begins with the jump to NETPOL.

    A chain that holds what netpol does not write (someone edited it) is one opaque rule here, and so equal to none that is wanted.
    """
    chains: dict[str, Chain] = {}
    counters: dict[str, tuple[tuple[int, int], ...]] = {}
    hooked = False
    for span in snapshot.spans:
        if span.hook < 0 and is_ours(span.name):
            places = {at - span.offset: destination for at, _, _, destination in snapshot.jumps(span)}
            try:
                chains[span.name] = decode_chain(span.name, span.data, snapshot.family, places, set_names)
            except MalformedKernelData:
                chains[span.name] = Chain(span.name, (Rule(OpaqueTarget("", 0, span.data)),))
            counters[span.name] = rule_counters(snapshot, span.name)
        elif span.hook >= 0 and span.name == HOOK:
            hooked = any(where == span.offset and destination == ROOT for _, where, _, destination in snapshot.jumps(span))
    return chains, counters, hooked


def rule_counters(snapshot: Snapshot, chain: str) -> tuple[tuple[int, int], ...]:
    """(packets, bytes) of each rule of a chain, its head and tail left out."""
    span = next(span for span in snapshot.spans if span.name == chain)
    first, last = (span.first + 1, span.first + span.entries - 1) if span.hook < 0 else (span.first, span.first + span.entries - 1)
    numbers = memoryview(snapshot.counters).cast("Q")
    return tuple((numbers[2 * i], numbers[2 * i + 1]) for i in range(first, last))
