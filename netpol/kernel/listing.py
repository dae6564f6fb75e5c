"""Which connection tracking entries to ask for by name, from the list that the kernel writes for people: /proc/net/nf_conntrack.

A dump by ctnetlink takes a lock for each bucket of the kernel's table, 5 ms for the 262,144 of a machine with more than 4 GiB, however
few entries there are. The list is walked without locks, in a twentieth of that; but each of its lines takes longer than an entry of a
dump, and it says less of it. So where entries are few, the list says which of them can matter, and those are asked for one by one.

The list may leave an entry out: whoever reads it goes on, after each entry, by how many he has seen of its bucket, and another one of
that bucket may be removed just then. So it is read twice. What is left out both times had two such neighbours, in a table that is
nearly empty, each removed while the reading stood between the two. Before Linux 6.17 the kernel counted over the whole table, where this
would happen often, and 6.17 itself leaves out the one behind an entry that has expired: there the list is not read. Nor is it believed
when the table got another size meanwhile.

It asks the kernel for no entry and judges none; where it cannot say, it says so, and a dump tells.
"""

from __future__ import annotations

import os
from typing import Any

from msgspec import Struct

from netpol.kernel._native import ffi, lib
from netpol.kernel.release import RELEASE, is_from
from netpol.rules.flows import SIZE

LIST = "/proc/thread-self/net/nf_conntrack"
BUCKETS = "/proc/sys/net/netfilter/nf_conntrack_buckets"

_COUNTS = 6, 18  # the first Linux that walks the list as the module says
_SHARE = 128  # buckets an entry at least: with more entries a dump costs less
_WANTED = 256  # entries that are asked for one by one at most
_PART = 1 << 16


class Found(Struct, frozen=True):
    """Entries that can matter, packed, of which only the reply's tuple and the zone are meant: None where only a dump can tell, or costs
    less. And the system calls that it took to know."""

    keys: bytes | None
    calls: int


def find(entries: int, dump: Any) -> Found:
    """The entries, of the calling thread's network namespace, that a struct np_ct_dump, which has no flows yet, asks for.

    entries -- how many the namespace has.
    """
    if not walks_well(RELEASE):
        return Found(None, 0)
    reading = _Reading()
    try:
        keys = _find(entries, dump, reading)
    except (OSError, ValueError):
        keys = None
    return Found(keys, reading.calls)


def _find(entries: int, dump: Any, reading: _Reading) -> bytes | None:
    buckets = int(reading.whole(BUCKETS))
    if entries * _SHARE > buckets:
        return None
    keys: set[bytes] = set()
    for _ in range(2):
        text = reading.whole(LIST)
        code = int(lib.np_ct_parse_list(text, len(text), dump))
        named = bytes(ffi.buffer(dump.flows, dump.count * SIZE))
        keys.update([named[at : at + SIZE] for at in range(0, len(named), SIZE)])
        dump.count = dump.seen = 0
        if code < 0 or len(keys) > _WANTED:
            return None
    return b"".join(keys) if int(reading.whole(BUCKETS)) == buckets else None


class _Reading:
    """Files that are read as the kernel hands them over, a page at a time; `calls` counts the system calls that it took."""

    def __init__(self) -> None:
        self.calls = 0

    def whole(self, path: str) -> bytes:
        parts = []
        self.calls += 2
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(file, _PART):
                parts.append(part)
        finally:
            self.calls += len(parts) + 1
            os.close(file)
        return b"".join(parts)


def walks_well(release: str) -> bool:
    """Whether a kernel of this release counts within a bucket, and counts right."""
    return is_from(*_COUNTS, release)
