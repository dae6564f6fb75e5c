"""Keyed digests: what the kernel holds is proven to be what was written, without a Python object for each member or rule.

A set's is a sum over its members, so that their order in the kernel's hash is no matter, and what a change adds or takes away can be
added and taken away. SipHash with 128 bits, under a key that this process drew: see csrc/np_digest.h for why that suffices. Equal
digests are a proof; different ones only mean that somebody has to look.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from netpol.kernel._native import ffi, lib

_KEY = ffi.new("uint8_t[]", os.urandom(lib.NP_DIGEST_KEY))
_WRAP = 1 << 64

Digest = tuple[int, int]


class Content(NamedTuple):
    """The members of a set: how many there are, and the two sums of their digests."""

    members: int
    sums: Digest

    def plus(self, other: Content) -> Content:
        """With the members of another one, none of which it has."""
        first, second = ((mine + theirs) % _WRAP for mine, theirs in zip(self.sums, other.sums, strict=True))
        return Content(self.members + other.members, (first, second))

    def minus(self, other: Content) -> Content:
        """Without the members of another one, all of which it has."""
        first, second = ((mine - theirs) % _WRAP for mine, theirs in zip(self.sums, other.sums, strict=True))
        return Content(self.members - other.members, (first, second))


def key() -> Any:
    """The key, for C."""
    return _KEY


def content(packed: bytes, width: int) -> Content:
    """The content of members of `width` bytes, packed one after another."""
    sums = ffi.new("uint64_t[2]")
    if lib.np_digest_members(_KEY, packed, len(packed), width, sums) < 0:
        raise ValueError(f"{len(packed)} bytes are no whole number of members of {width}")
    return Content(len(packed) // width, (int(sums[0]), int(sums[1])))


def digest(native: Any, size: int) -> Digest:
    """The digest of an array of bytes."""
    found = ffi.new("uint64_t[2]")
    lib.np_digest(_KEY, native, size, found)
    return int(found[0]), int(found[1])
