"""nfnetlink_log: the typed face of csrc/np_nflog. Packets that an NFLOG rule logged to a group, as what their headers say.

Packets stay packed in a batch as C read them, until somebody wants their values. Only those under our prefix come; the kernel numbers
all that it logs, so what it threw away, because nobody read for too long, is counted exactly.

Invariants
- What packets hold was chosen by whoever sent them: addresses, protocol and ports are all that is believed, and only where they are there.
- Nothing is ever waited for: whoever wants to wait polls `fileno`.

A group belongs to one socket of its network namespace; a socket belongs to the namespace in which it was opened, and to one thread at a
time (`netpol.kernel.turns`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from struct import Struct as Layout
from typing import Literal, NamedTuple

from netpol.errors import KernelError, MalformedKernelData, NotPermitted, Unsupported
from netpol.kernel._native import ffi, lib
from netpol.kernel.netlink import NetlinkSocket
from netpol.kernel.turns import CLOSED, exclusive
from netpol.model import Address

_NETLINK_NETFILTER = 12
_BUFFER = 1 << 17  # the kernel gathers at most 64 KiB
_PACKETS = 1024  # of one datagram there are at most 100
DELAY = 5  # hundredths of a second that the kernel may gather packets before it hands them over
COPY = 128  # bytes of each packet: headers, and those of IPv6 that may come before

PACKET = Layout("=16s16sQIIHHBBH")
SIZE = PACKET.size
PORTS, ICMP, FRAGMENT, CUT_OFF, ORIGINAL, REPLY = 1, 2, 4, 8, 16, 32

Cut = Literal["original", "reply"]

_GRANT = "run netpol as root, or with CAP_NET_ADMIN in the user namespace that owns this network namespace"
_NO_NFLOG = (
    "this kernel has no NFLOG: load the modules (modprobe nfnetlink_log xt_NFLOG), or use one built with CONFIG_NETFILTER_NETLINK_LOG"
)
_WORDS = {
    # The kernel says the same of a group that another socket has.
    errno.EPERM: f"another program reads this group (--log-group chooses another one), or this process may not: {_GRANT}",
    errno.EINVAL: _NO_NFLOG,
    errno.EPROTONOSUPPORT: _NO_NFLOG,
    errno.EBADF: CLOSED,
    errno.ENODATA: "the kernel did not answer",
    errno.EBADMSG: "the kernel's answer has no such form",
}
_KINDS: dict[int, type[KernelError]] = {errno.EPERM: NotPermitted, errno.EINVAL: Unsupported, errno.EPROTONOSUPPORT: Unsupported}


class Packet(NamedTuple):
    """What a logged packet's headers say. time -- microseconds since 1970, 0 where the kernel gave none; devices are indexes, 0 for none.

    ports -- of source and destination, None for protocols without them and where they are not there; icmp -- type and code likewise;
    fragment -- a later fragment, without those; cut_off -- they stand behind what was logged of the packet.
    cut -- its way in a flow that was cut; None for one of no flow that was known.
    """

    time: int
    source: Address
    destination: Address
    protocol: int
    ports: tuple[int, int] | None
    icmp: tuple[int, int] | None
    in_device: int
    out_device: int
    fragment: bool
    cut_off: bool
    cut: Cut | None = None


class Counts(NamedTuple):
    """Of all that was logged to the group so far: never read in time; under another prefix; without readable addresses."""

    lost: int
    strangers: int
    unreadable: int


class NflogSocket(NetlinkSocket):
    """A group's socket in the calling thread's network namespace; a context manager.

    NotPermitted where the group is somebody else's, or without CAP_NET_ADMIN; Unsupported without NFLOG.
    """

    def __init__(self, group: int, prefix: str, protocol: int = _NETLINK_NETFILTER) -> None:
        super().__init__()
        self.group = group
        self._buffer = ffi.new("uint8_t[]", _BUFFER)
        self._packets, self._prefix = ffi.new("struct np_nflog_packet[]", _PACKETS), ffi.new("char[]", prefix.encode())
        self._native = ffi.new("struct np_nflog *", {"buffer": self._buffer, "room": _BUFFER, "fd": -1})
        self._batch = ffi.new("struct np_nflog_batch *", {"packets": self._packets, "room": _PACKETS, "prefix": self._prefix})
        self.overruns = 0
        """Times that the kernel said it had no room."""
        code = int(lib.np_nflog_open(self._native, protocol, group, COPY, DELAY))
        if code < 0:
            self.close()
            raise self._error(-code, "open")

    @property
    def counts(self) -> Counts:
        return Counts(int(self._batch.lost), int(self._batch.strangers), int(self._batch.unreadable))

    @exclusive
    def receive(self) -> bytes | None:
        """The packets of one datagram, packed (which may be none); None when no datagram waits.

        MalformedKernelData for a datagram that cannot be one; the next one can be read all the same.
        """
        while True:
            code = int(lib.np_nflog_receive(self._native, self._batch))
            if code == -errno.ENODATA:
                return None
            if code == -errno.ENOBUFS:
                # Said once, before what did fit: the numbers of the packets tell how many did not.
                self.overruns += 1
                continue
            if code in (-errno.EBADMSG, -errno.EMSGSIZE, -errno.ENOSPC):
                raise MalformedKernelData(f"NFLOG group {self.group}: the kernel sent what has no such form")
            if code < 0:
                raise self._error(-code, "read")
            return bytes(ffi.buffer(self._packets, int(self._batch.count) * SIZE))

    def _error(self, code: int, verb: str) -> KernelError:
        kind = _KINDS.get(code, KernelError)
        return kind(code, f"NFLOG {verb}", f"group {self.group}", _WORDS.get(code) or os.strerror(code))


def unpack(packed: bytes) -> Iterator[Packet]:
    """The packets of a packed string of them; its length is a multiple of SIZE."""
    for source, destination, time, inside, outside, source_port, port, family, protocol, flags in PACKET.iter_unpack(packed):
        width = 4 if family == 4 else 16
        yield Packet(
            time,
            source[:width],
            destination[:width],
            protocol,
            (source_port, port) if flags & PORTS else None,
            (port >> 8, port & 255) if flags & ICMP else None,
            inside,
            outside,
            bool(flags & FRAGMENT),
            bool(flags & CUT_OFF),
            "original" if flags & ORIGINAL else "reply" if flags & REPLY else None,
        )
