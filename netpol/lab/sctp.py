"""As much SCTP (RFC 9260) as a probe needs: INIT, the INIT ACK or ABORT that answers it, and CRC32c. Pure.

Few kernels have SCTP sockets, so the lab speaks it over raw ones. The answering host's name travels where the protocol has room for an
opaque value: in the state cookie of an INIT ACK, and in the reason of a user-initiated ABORT. An ABORT without a name is
not ours (a kernel that does know SCTP sends one for the same INIT) and is no answer.
"""

from __future__ import annotations

import struct

from msgspec import Struct

INIT, INIT_ACK, ABORT = 1, 2, 6
STATE_COOKIE, USER_INITIATED = 7, 12
HEADER = 12
# 10 inbound and outbound streams and a window of 64 KiB: nobody ever uses them.
WINDOW, STREAMS = 65536, 10


def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


_CRC = _table()


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, reflected, as RFC 9260 appendix A has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


class Reply(Struct, frozen=True):
    """An answer to an INIT: from port `source` to port `destination` (the prober's), by the host of that name."""

    accepted: bool
    source: int
    destination: int
    name: str


def _packet(source: int, destination: int, tag: int, kind: int, body: bytes) -> bytes:
    chunk = struct.pack("!BBH", kind, 0, 4 + len(body)) + body
    chunk += bytes(-len(chunk) % 4)
    bare = struct.pack("!HHII", source, destination, tag, 0) + chunk
    # The one field of the protocol that is little-endian.
    return bare[:8] + struct.pack("<I", crc32c(bare)) + bare[HEADER:]


def _chunk(packet: bytes) -> tuple[int, int, int, int, bytes] | None:
    """Source port, destination port, verification tag, and the first chunk's type and body, if the packet holds them whole."""
    if len(packet) < HEADER + 4:
        return None
    source, destination, tag, _ = struct.unpack_from("!HHII", packet)
    kind, _, length = struct.unpack_from("!BBH", packet, HEADER)
    if length < 4 or HEADER + length > len(packet):
        return None
    return source, destination, tag, kind, packet[HEADER + 4 : HEADER + length]


def request(source: int, destination: int, tag: int) -> bytes:
    """The INIT of a new association. `tag` is the prober's initiate tag, not 0."""
    return _packet(source, destination, 0, INIT, struct.pack("!IIHHI", tag, WINDOW, STREAMS, STREAMS, tag))


def respond(packet: bytes, ports: frozenset[int], name: bytes) -> bytes | None:
    """What a host of that name, with these open ports, says to a packet: INIT ACK or ABORT to an INIT, nothing to all else."""
    found = _chunk(packet)
    if found is None or found[3] != INIT or len(found[4]) < 16:
        return None
    source, destination, _, _, body = found
    tag = struct.unpack_from("!I", body)[0]
    if destination in ports:
        cookie = struct.pack("!HH", STATE_COOKIE, 4 + len(name)) + name
        return _packet(destination, source, tag, INIT_ACK, struct.pack("!IIHHI", tag, WINDOW, STREAMS, STREAMS, tag) + cookie)
    return _packet(destination, source, tag, ABORT, struct.pack("!HH", USER_INITIATED, 4 + len(name)) + name)


def read(packet: bytes) -> Reply | None:
    """The answer in a packet, if it is an INIT ACK or ABORT with a name."""
    found = _chunk(packet)
    if found is None or found[3] not in (INIT_ACK, ABORT):
        return None
    source, destination, _, kind, body = found
    parameter = body[16:] if kind == INIT_ACK else body
    wanted = STATE_COOKIE if kind == INIT_ACK else USER_INITIATED
    if len(parameter) < 4:
        return None
    code, length = struct.unpack_from("!HH", parameter)
    if code != wanted or not 4 < length <= len(parameter):
        return None
    return Reply(kind == INIT_ACK, source, destination, parameter[4:length].decode("utf-8", "replace"))
