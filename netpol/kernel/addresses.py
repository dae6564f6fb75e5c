"""The addresses that the node itself has, asked of the kernel over rtnetlink.

They tell the node's own traffic, which never passes FORWARD, from what the node forwards: the addresses that the API server knows
are not all of them (a bridge of the pods has one too). One dump; what is read is not kept, for addresses come and go.
It looks at no routes: an address that is local by a route alone is not among them.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator

from netpol.errors import KernelError, MalformedKernelData
from netpol.kernel._native import ffi, lib
from netpol.model import Address

_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE, _RTM_NEWADDR, _RTM_GETADDR = 2, 3, 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 1, 0x10, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_BODY = 8  # struct ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 16
_TRIES = 8


def local_addresses() -> frozenset[Address]:
    """Every address of every interface of the calling thread's network namespace, of both families."""
    calls = ffi.new("uint64_t *")
    fd = int(lib.np_sys_netlink_open(_NETLINK_ROUTE, calls))
    if fd < 0:
        raise _failure(-fd)
    try:
        for seq in range(1, _TRIES + 1):
            found, interrupted = _dump(fd, seq, calls)
            if not interrupted:
                break
    finally:
        lib.np_sys_close(fd, calls)
    # One that is interrupted again and again still has all addresses but those that come and go just now.
    return frozenset(found)


def _dump(fd: int, seq: int, calls: object) -> tuple[set[Address], bool]:
    """The addresses, and whether they changed meanwhile."""
    request = _HEADER.pack(_HEADER.size + _BODY, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, seq, 0) + bytes(_BODY)
    _checked(int(lib.np_sys_send(fd, request, len(request), calls)))
    buffer = ffi.new("uint8_t[]", _BUFFER)
    found: set[Address] = set()
    interrupted = False
    while True:
        size = _checked(int(lib.np_sys_recv(fd, buffer, _BUFFER, 0, calls)))
        for kind, flags, number, body in messages(bytes(ffi.buffer(buffer, size))):
            if number != seq:
                continue
            interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                return found, interrupted
            if kind == _NLMSG_ERROR:
                raise _failure(-int.from_bytes(body[:4], sys.byteorder, signed=True) if len(body) >= 4 else errno.EBADMSG)
            if kind == _RTM_NEWADDR:
                found |= addresses(body)


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and body of each netlink message; MalformedKernelData for a length that cannot be."""
    at = 0
    while at < len(data):
        length, kind, flags, seq, _ = _HEADER.unpack_from(data, at) if len(data) - at >= _HEADER.size else (0, 0, 0, 0, 0)
        if not _HEADER.size <= length <= len(data) - at:
            raise MalformedKernelData("address list: a message of the kernel has no such form")
        yield kind, flags, seq, data[at + _HEADER.size : at + length]
        at += length + -length % 4


def addresses(body: bytes) -> set[Address]:
    """The node's end of the one address that an RTM_NEWADDR message is about; empty for a family other than IPv4 and IPv6."""
    ends: dict[int, Address] = {}
    at = _BODY
    while at < len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at) if len(body) - at >= _ATTRIBUTE.size else (0, 0)
        if not _ATTRIBUTE.size <= length <= len(body) - at:
            raise MalformedKernelData("address list: an attribute of the kernel has no such form")
        ends[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
    # On a point-to-point link the address is the other end's.
    address = ends.get(_IFA_LOCAL, ends.get(_IFA_ADDRESS, b""))
    return {address} if len(address) in (4, 16) else set()


def _checked(result: int) -> int:
    if result < 0:
        raise _failure(-result)
    return result


def _failure(code: int) -> KernelError:
    reason = "the kernel did not answer all of it" if code == errno.EAGAIN else os.strerror(code)
    return KernelError(code, "address list", "of this network namespace", reason)
