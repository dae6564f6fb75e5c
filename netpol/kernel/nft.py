"""What nf_tables has, by name: tables, chains, flow tables; and the rules that set connection marks. netpol writes no nft rule; it looks
whether somebody else works there.

Four dumps of nfnetlink, no more than `MOST` things of each. Of rules only those are looked into whose bytes could be such a one. Bytes of
the kernel are hostile: nothing is read outside a message, and a length that cannot be ends the reading with MalformedKernelData. A kernel
without nf_tables has nothing.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from struct import Struct as Layout
from typing import NamedTuple, TypeVar

from netpol.errors import KernelError, MalformedKernelData, NotPermitted
from netpol.kernel._native import ffi, lib

MOST = 20_000  # names of one kind
ROOM = 1 << 16
TRIES = 8  # of a reading that others disturb

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_DUMP_INTR = 0x10
# linux/netfilter/nf_tables.h: kind -> (NFT_MSG_GET..., the attribute of its table's name, that of its own name).
_KINDS = {"tables": (1, 1, 1), "chains": (4, 1, 3), "flow tables": (23, 1, 2), "rules": (7, 1, 2)}
# The same: of a rule, of an expression in its list, of `ct` and of an extension of x_tables.
_EXPRESSIONS, _NAME, _DATA = 4, 1, 2
_CT_KEY, _CT_SOURCE, _CT_MARK = 2, 4, 3
_TARGET_REVISION, _TARGET_INFO = 2, 3
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

_MESSAGE = Layout("=IHHII")
_GENERIC = Layout("=BBH")
_ATTRIBUTE = Layout("=HH")

# Of `ct` the mark for a key beside a register that it is set from, in either order; or a target's name.
_KEY, _SOURCE = (re.escape(_ATTRIBUTE.pack(_ATTRIBUTE.size + 4, kind)) for kind in (_CT_KEY, _CT_SOURCE))
_MARK = re.escape(_CT_MARK.to_bytes(4, "big"))
_SETS_A_MARK = re.compile(b"CONNMARK\0|" + _KEY + _MARK + _SOURCE + b"|" + _SOURCE + b"...." + _KEY + _MARK, re.DOTALL)


class Named(NamedTuple):
    """Something of nf_tables: its family as nft calls it, its table, its own name."""

    family: str
    table: str
    name: str


class Marking(NamedTuple):
    """A rule that sets connection marks, and where it is. connmark -- revision and payload of the target CONNMARK, where iptables-nft made
    it; None for nft's own `ct mark set`, of which nobody can tell by itself which bits it changes."""

    family: str
    table: str
    chain: str
    connmark: tuple[int, bytes] | None


class Nft(NamedTuple):
    """See the module."""

    tables: tuple[Named, ...] = ()
    chains: tuple[Named, ...] = ()
    flow_tables: tuple[Named, ...] = ()
    markings: tuple[Marking, ...] = ()


T = TypeVar("T")
Parsed = tuple[list[T], bool, int]
"""What one datagram of a dump holds: things, whether it was the last, and 0 or -errno: -EINTR where somebody changed them meanwhile."""


def read_nft() -> Nft:
    """What there is in the calling thread's network namespace."""
    calls = ffi.new("uint64_t *")
    fd = int(lib.np_sys_netlink_open(_NETLINK_NETFILTER, calls))
    if fd < 0:
        raise KernelError(-fd, "nft open", "netlink socket", os.strerror(-fd))
    try:
        kinds = ("tables", "chains", "flow tables")
        tables, chains, flow_tables = (tuple(_dump(fd, kind, partial(parse, kind=kind), calls)) for kind in kinds)
        return Nft(tables, chains, flow_tables, tuple(_dump(fd, "rules", parse_rules, calls)))
    finally:
        lib.np_sys_close(fd, calls)


def _dump(fd: int, kind: str, parse: Callable[[bytes], Parsed[T]], calls: object) -> list[T]:
    """All of a kind, read again where somebody changed them meanwhile: the kernel goes on by number, and passes over what moved."""
    for _ in range(TRIES):
        found, code = _dump_once(fd, kind, parse, calls)
        if code != -errno.EINTR:
            break
    if code in (-errno.EINVAL, -errno.EOPNOTSUPP, -errno.EAGAIN):
        return found
    if code == -errno.EPERM:
        raise NotPermitted(-code, "nft list", kind, "not permitted: CAP_NET_ADMIN is needed")
    if code == -errno.EINTR:
        raise KernelError(-code, "nft list", kind, f"somebody changed them each time, {TRIES} times")
    if code < 0:
        raise KernelError(-code, "nft list", kind, os.strerror(-code))
    return found


def _dump_once(fd: int, kind: str, parse: Callable[[bytes], Parsed[T]], calls: object) -> tuple[list[T], int]:
    sequence = _KINDS[kind][0]
    request = _MESSAGE.pack(_MESSAGE.size + _GENERIC.size, _SUBSYSTEM | sequence, _REQUEST_DUMP, sequence, 0) + bytes(_GENERIC.size)
    buffer, found = ffi.new("uint8_t[]", ROOM), list[T]()
    code, ended, interrupted = int(lib.np_sys_send(fd, request, len(request), calls)), False, False
    while code >= 0 and not ended:
        code = int(lib.np_sys_recv(fd, buffer, ROOM, 0, calls))
        if code >= 0:
            things, ended, code = parse(bytes(ffi.buffer(buffer, code)))
            found += things[: MOST - len(found)]
            if code == -errno.EINTR:
                code, interrupted = 0, True
    return found, -errno.EINTR if interrupted and code >= 0 else code


def parse(data: bytes, kind: str) -> Parsed[Named]:
    """A datagram of tables, chains or flow tables."""
    _, of_table, of_itself = _KINDS[kind]
    bodies, ended, code = _bodies(data, kind)
    found: list[Named] = []
    for body in bodies:
        named = dict(_attributes(body[_GENERIC.size :], kind))
        if of_table in named and of_itself in named:
            found.append(Named(_family(body), _text(named[of_table]), _text(named[of_itself])))
    return found, ended, code


def parse_rules(data: bytes) -> Parsed[Marking]:
    """A datagram of rules: those that set connection marks."""
    _, of_table, of_chain = _KINDS["rules"]
    bodies, ended, code = _bodies(data, "rules")
    found: list[Marking] = []
    for body in bodies:
        if not _SETS_A_MARK.search(body):
            continue
        named = dict(_attributes(body[_GENERIC.size :], "rules"))
        if of_table in named and of_chain in named:
            where = _family(body), _text(named[of_table]), _text(named[of_chain])
            found += [Marking(*where, connmark) for connmark in _markings(named.get(_EXPRESSIONS, b""))]
    return found, ended, code


def _markings(expressions: bytes) -> Iterator[tuple[int, bytes] | None]:
    """`Marking.connmark` of each expression of a rule that sets a mark."""
    for _, raw in _attributes(expressions, "rules"):
        expression = dict(_attributes(raw, "rules"))
        name, data = _text(expression.get(_NAME, b"")), dict(_attributes(expression.get(_DATA, b""), "rules"))
        if name == "ct" and _CT_SOURCE in data and data.get(_CT_KEY) == _CT_MARK.to_bytes(4, "big"):
            yield None
        if name == "target" and _text(data.get(_NAME, b"")) == "CONNMARK":
            yield int.from_bytes(data.get(_TARGET_REVISION, b""), "big"), data.get(_TARGET_INFO, b"")


def _bodies(data: bytes, kind: str) -> Parsed[bytes]:
    """What one datagram says of things of a kind: for each its nfgenmsg and its attributes."""
    sequence = _KINDS[kind][0]
    found: list[bytes] = []
    place = interrupted = 0
    while place < len(data):
        if place + _MESSAGE.size > len(data):
            raise _malformed(kind)
        size, type_, flags, number, _ = _MESSAGE.unpack_from(data, place)
        if size < _MESSAGE.size or place + size > len(data):
            raise _malformed(kind)
        body = data[place + _MESSAGE.size : place + size]
        place += size + 3 & ~3
        if number != sequence:
            continue
        if flags & _DUMP_INTR:
            interrupted = -errno.EINTR
        if type_ in (_ERROR, _DONE):
            return found, True, min(0, int.from_bytes(body[:4], sys.byteorder, signed=True)) or interrupted
        if len(body) < _GENERIC.size:
            raise _malformed(kind)
        found.append(body)
    return found, False, interrupted


def _family(body: bytes) -> str:
    return _FAMILIES.get(body[0], str(body[0]))


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
