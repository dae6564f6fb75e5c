"""What other people have in legacy iptables' tables that matters to us: chains and matches by name, and rules on a bit of connmarks.

Their rules never become values elsewhere. Here only the heads of extensions are walked, and the payloads of CONNMARK, MARK and connmark
read, as linux/netfilter/xt_connmark.h and xt_mark.h have them; chains in which none of these names stands are not walked at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct as Layout
from typing import NamedTuple

from netpol.errors import MalformedKernelData
from netpol.kernel.entries import ENTRY, HEAD, OFFSETS, entry_end
from netpol.kernel.matches import HEADER, c_string
from netpol.kernel.table import Snapshot, Span
from netpol.rules.ruleset import is_ours

_ALL = 0xFFFFFFFF
_SET, _SAVE = 0, 1
_RIGHT = 1
_TARGET = Layout("=IIIB")  # connmark value and mask, packet mark's mask, mode
_SHIFTED = Layout("=IIIBBB")  # the same with the direction and width of a shift before the mode
_MARK = Layout("=II")
_MATCH = Layout("=II")
_LOOSE = 1  # by any device, linux/netfilter/xt_rpfilter.h
_NAMES = re.compile(rb"(?:CONNMARK|MARK|connmark)\0")


class Use(NamedTuple):
    """A rule of somebody else that has to do with the bit. writes -- it can change the bit in a connection's mark."""

    chain: str
    words: str
    writes: bool


def foreign_chains(snapshot: Snapshot) -> tuple[str, ...]:
    """The names of the user chains that are not ours."""
    return tuple(span.name for span in snapshot.spans if span.hook < 0 and not is_ours(span.name))


def extensions_of(snapshot: Snapshot, span: Span) -> Iterator[tuple[str, bool, int, bytes]]:
    """(name, whether it is a target, revision, payload) of all that a chain's rules use. MalformedKernelData where a length cannot be."""
    data, family = snapshot.data(span), snapshot.family
    offset = 0
    while offset < len(data):
        end = entry_end(data, offset, family)
        target = offset + OFFSETS.unpack_from(data, offset + HEAD[family].size)[0]
        place = offset + ENTRY[family]
        while place < end:
            size, name, revision = HEADER.unpack_from(data, place) if place + HEADER.size <= end else (0, b"", 0)
            if size < HEADER.size or place + size > end:
                raise MalformedKernelData(f"the chain {span.name} has an extension whose length does not fit its rule")
            yield c_string(name), place >= target, revision, data[place + HEADER.size : place + size]
            place += size
        offset = end


def looks_back(snapshot: Snapshot) -> bool:
    """Whether a rule of somebody else asks for the way back to a packet's source, and that it leads over the device that it came by."""
    if b"rpfilter\0" not in bytes(snapshot.blob):
        return False
    found = (extension for span in snapshot.spans if not is_ours(span.name) for extension in extensions_of(snapshot, span))
    return any(name == "rpfilter" and not is_target and data and not data[0] & _LOOSE for name, is_target, _, data in found)


def uses(snapshot: Snapshot, bit: int) -> Iterator[Use]:
    """What other people's rules do with this bit of connmarks, or say of it."""
    blob = bytes(snapshot.blob)
    places = [found.start() for found in _NAMES.finditer(blob)]
    for span in snapshot.spans:
        if is_ours(span.name) or not any(span.offset <= place < span.offset + span.size for place in places):
            continue
        for name, is_target, revision, data in extensions_of(snapshot, span):
            use = target_use(name, revision, data, bit) if is_target else _match(name, data, bit)
            if use is not None:
                yield Use(span.name, *use)


def target_use(name: str, revision: int, data: bytes, bit: int) -> tuple[str, bool] | None:
    """What a target does with this bit, in words, and whether it can change it in a connection's mark; None where it leaves it alone."""
    if name == "CONNMARK" and len(data) >= _SHIFTED.size:
        mark, mask, packet, mode = _TARGET.unpack_from(data)
        direction = width = 0
        if revision >= 2:
            mark, mask, packet, direction, width, mode = _SHIFTED.unpack_from(data)
        shifted = f", shifted by {width}" if width else ""
        # What is set is shifted with all of the connection's mark, what is saved before it gets there.
        if mode == _SET and (width or (mark | mask) & bit):
            return f"CONNMARK sets 0x{mark:x}/0x{mask:x}{shifted}", True
        saved = packet >> width if direction == _RIGHT else packet << width
        if mode == _SAVE and (mask | saved) & bit:
            return f"CONNMARK saves the packet's mark under 0x{mask:x}{shifted}", True
    if name == "MARK" and revision >= 2 and len(data) >= _MARK.size:
        mark, mask = _MARK.unpack_from(data)
        if mark & bit or (mask & bit and mask != _ALL):
            return f"MARK sets 0x{mark:x}/0x{mask:x}", False
    return None


def _match(name: str, data: bytes, bit: int) -> tuple[str, bool] | None:
    if name != "connmark" or len(data) < _MATCH.size:
        return None
    mark, mask = _MATCH.unpack_from(data)
    # A comparison of all bits with a number that lacks ours only says something of flows that are not cut.
    if mask & bit and (mark & bit or mask != _ALL):
        return f"connmark looks for 0x{mark:x}/0x{mask:x}", False
    return None
