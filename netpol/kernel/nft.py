"""What nf_tables has, by name: tables, chains, flow tables. netpol writes no nft rule; it looks whether somebody else works there.

Three dumps of nfnetlink, no more than `MOST` names of each. Bytes of the kernel are hostile: nothing is read outside a message, and a
length that cannot be ends the reading with MalformedKernelData. A kernel without nf_tables has nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from struct import Struct as Layout
from typing import NamedTuple

from netpol.errors import KernelError, MalformedKernelData, NotPermitted
from netpol.kernel._native import ffi, lib

MOST = 20_000  # names of one kind
ROOM = 1 << 16

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
# linux/netfilter/nf_tables.h: kind -> (NFT_MSG_GET..., the attribute of its table's name, that of its own name).
_KINDS = {"tables": (1, 1, 1), "chains": (4, 1, 3), "flow tables": (23, 1, 2)}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

_MESSAGE = Layout("=IHHII")
_GENERIC = Layout("=BBH")
_ATTRIBUTE = Layout("=HH")


class Named(NamedTuple):
    """Something of nf_tables: its family as nft calls it, its table, its own name."""

    family: str
    table: str
    name: str


class Nft(NamedTuple):
    """See the module."""

    tables: tuple[Named, ...] = ()
    chains: tuple[Named, ...] = ()
    flow_tables: tuple[Named, ...] = ()


def read_nft() -> Nft:
    """What there is in the calling thread's network namespace."""
    calls = ffi.new("uint64_t *")
    fd = int(lib.np_sys_netlink_open(_NETLINK_NETFILTER, calls))
    if fd < 0:
        raise KernelError(-fd, "nft open", "netlink socket", os.strerror(-fd))
    try:
        return Nft(*(tuple(_dump(fd, kind, calls)) for kind in _KINDS))
    finally:
        lib.np_sys_close(fd, calls)


def _dump(fd: int, kind: str, calls: object) -> list[Named]:
    sequence = _KINDS[kind][0]
    request = _MESSAGE.pack(_MESSAGE.size + _GENERIC.size, _SUBSYSTEM | sequence, _REQUEST_DUMP, sequence, 0) + bytes(_GENERIC.size)
    buffer, found = ffi.new("uint8_t[]", ROOM), list[Named]()
    code, ended = int(lib.np_sys_send(fd, request, len(request), calls)), False
    while code >= 0 and not ended:
        code = int(lib.np_sys_recv(fd, buffer, ROOM, 0, calls))
        if code >= 0:
            names, ended, code = parse(bytes(ffi.buffer(buffer, code)), kind)
            found += names[: MOST - len(found)]
    if code in (-errno.EINVAL, -errno.EOPNOTSUPP, -errno.EAGAIN):
        return found
    if code == -errno.EPERM:
        raise NotPermitted(-code, "nft list", kind, "not permitted: CAP_NET_ADMIN is needed")
    if code < 0:
        raise KernelError(-code, "nft list", kind, os.strerror(-code))
    return found


def parse(data: bytes, kind: str) -> tuple[list[Named], bool, int]:
    """What one datagram of a dump holds: names, whether it was the last, and 0 or -errno."""
    sequence, of_table, of_itself = _KINDS[kind]
    found: list[Named] = []
    place = 0
    while place < len(data):
        if place + _MESSAGE.size > len(data):
            raise _malformed(kind)
        size, type_, _, number, _ = _MESSAGE.unpack_from(data, place)
        if size < _MESSAGE.size or place + size > len(data):
            raise _malformed(kind)
        body = data[place + _MESSAGE.size : place + size]
        place += size + 3 & ~3
        if number != sequence:
            continue
        if type_ in (_ERROR, _DONE):
            return found, True, min(0, int.from_bytes(body[:4], sys.byteorder, signed=True))
        if len(body) < _GENERIC.size:
            raise _malformed(kind)
        named = dict(_attributes(body[_GENERIC.size :], kind))
        if of_table in named and of_itself in named:
            family = _FAMILIES.get(body[0], str(body[0]))
            found.append(Named(family, _text(named[of_table]), _text(named[of_itself])))
    return found, False, 0


def _attributes(data: bytes, kind: str) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(data):
        size, type_ = _ATTRIBUTE.unpack_from(data, place) if place + _ATTRIBUTE.size <= len(data) else (0, 0)
        if size < _ATTRIBUTE.size or place + size > len(data):
            raise _malformed(kind)
        yield type_ & 0x3FFF, data[place + _ATTRIBUTE.size : place + size]
        place += size + 3 & ~3


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _malformed(kind: str) -> MalformedKernelData:
    return MalformedKernelData(f"nft list {kind}: the kernel's answer has no such form")
