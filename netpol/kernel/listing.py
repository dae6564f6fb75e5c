"""Which connection tracking entries to ask for by name, from the list that the kernel writes for people: /proc/net/nf_conntrack.

A dump by ctnetlink takes a lock for each bucket of the kernel's table, 5 ms for the 262,144 of a machine with more than 4 GiB, however
few entries there are. The list is walked without locks, in a twentieth of that; but each of its lines takes longer than an entry of a
dump, and it says less of it. So where entries are few, the list says which of them can matter, and those are asked for one by one.

The list may leave an entry out: whoever reads it goes on, after each entry, by how many he has seen of its bucket, and another one of
that bucket may be removed just then. So it is read twice. What is left out both times had two such neighbours, in a table that is
nearly empty, each removed within the microsecond. Before Linux 6.17 the kernel counted over the whole table, where this would happen
often: there the list is not read. Nor is it believed when the table got another size meanwhile.

It asks the kernel for no entry and judges none; where it cannot say, it says so, and a dump tells.
"""

from __future__ import annotations

import os
import re
from typing import Any

from msgspec import Struct

from netpol.kernel._native import ffi, lib
from netpol.rules.flows import SIZE

LIST = "/proc/thread-self/net/nf_conntrack"
BUCKETS = "/proc/sys/net/netfilter/nf_conntrack_buckets"
RELEASE = os.uname().release

_BY_BUCKET = 6, 17  # the first Linux that walks the list as the module says
_SHARE = 128  # buckets an entry at least: with more entries a dump costs less
_WANTED = 256  # entries that are asked for one by one at most
_PART = 1 << 16


class Found(Struct, frozen=True):
    """Entries that can matter: packed, of which only the reply's tuple and the zone are meant, and the system calls that it took."""

    keys: bytes
    calls: int


def find(entries: int, dump: Any) -> Found | None:
    """The entries, of the calling thread's network namespace, that a struct np_ct_dump, which has no flows yet, asks for.

    entries -- how many the namespace has. None where only a dump can tell, or costs less.
    """
    if not walks_by_bucket(RELEASE):
        return None
    try:
        buckets = _read(BUCKETS)
        if entries * _SHARE > int(buckets[0]):
            return None
        parts = _read(LIST), _read(LIST)
        if _read(BUCKETS) != buckets:
            return None
    except (OSError, ValueError, IndexError):
        return None
    keys: set[bytes] = set()
    for text in map(b"".join, parts):
        code = int(lib.np_ct_parse_list(text, len(text), dump))
        named = bytes(ffi.buffer(dump.flows, dump.count * SIZE))
        keys.update([named[at : at + SIZE] for at in range(0, len(named), SIZE)])
        dump.count = dump.seen = 0
        if code < 0 or len(keys) > _WANTED:
            return None
    return Found(b"".join(keys), sum(map(_calls, (buckets, *parts, buckets))))


def walks_by_bucket(release: str) -> bool:
    """Whether a kernel of this release counts within a bucket."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= _BY_BUCKET


def _read(path: str) -> list[bytes]:
    """What it holds, as the kernel hands it over: a page at a time."""
    parts = []
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while part := os.read(file, _PART):
            parts.append(part)
    finally:
        os.close(file)
    return parts


def _calls(parts: list[bytes]) -> int:
    """How many system calls it took to read them."""
    return len(parts) + 3
