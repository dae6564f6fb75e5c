"""Bytes of a connection that have come and wait to be read, and what can be told of them without waiting for more.

The standard library's buffered reader does not say what it holds. Whoever wants all chunks of an answer that have come, and not to wait
for the next one, has to know.
"""

from __future__ import annotations

import io
import re
from contextlib import suppress
from typing import cast

_HEAD = re.compile(rb"\r\n([0-9A-Fa-f]{1,8})\r\n")


class Buffer(io.BufferedIOBase):
    """A buffered reader of a raw one, whose `readinto` gives at least a byte, or none at the end; `size` bytes at once at most."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        self._raw = raw
        self._bytes = bytearray(size)
        self._view = memoryview(self._bytes)
        self._start = self._end = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def gather(self) -> None:
        """Reads on, behind what waits, until nothing has come or there is no room; whatever goes wrong is the next read's."""
        left = self._end - self._start
        self._bytes[:left] = self._bytes[self._start : self._end]
        self._start, self._end = 0, left
        with suppress(OSError):
            while self._end < len(self._bytes) and (size := self._raw.readinto(self._view[self._end :])):
                self._end += cast(int, size)

    def chunks(self, left: int, most: int) -> tuple[list[bytes], int]:
        """Takes what waits of a chunk of which `left` bytes are to come, and of the chunks behind it, so many bytes of them all at most, in
        parts; and how many bytes of the last one are to come. It ends before the last chunk of all, before a head that is not there whole,
        and before one that says more than a size."""
        data, view, at, end = self._bytes, self._view, self._start, self._end
        parts = []
        while most:
            if not left:
                head = _HEAD.match(data, at, end)
                if head is None or not (left := int(head[1], 16)):
                    break
                at = head.end()
            size = min(left, end - at, most)
            if not size:
                break
            parts.append(bytes(view[at : at + size]))
            at, left, most = at + size, left - size, most - size
        self._start = at
        return parts, left

    def read1(self, size: int = -1, /) -> bytes:
        """What waits, or else what comes first."""
        if not self._fill():
            return b""
        return self._take(self._end if size < 0 else min(self._end, self._start + size))

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, fewer at the end only; all of them without a size."""
        left, parts = -1 if size is None else size, []
        while left and (part := self.read1(left)):
            parts.append(part)
            left -= len(part) if left > 0 else 0
        return b"".join(parts)

    def readline(self, size: int | None = -1, /) -> bytes:
        """A line with its end, or so many bytes of it."""
        left, parts = -1 if size is None else size, []
        while left and self._fill():
            end = self._bytes.find(b"\n", self._start, self._end) + 1 or self._end
            parts.append(self._take(end if left < 0 else min(end, self._start + left)))
            if parts[-1].endswith(b"\n"):
                break
            left -= len(parts[-1]) if left > 0 else 0
        return b"".join(parts)

    def _fill(self) -> bool:
        """Waits for bytes, if there are none; whether there are some."""
        if self._start == self._end:
            self._start, self._end = 0, cast(int, self._raw.readinto(self._view))
        return self._start < self._end

    def _take(self, end: int) -> bytes:
        start, self._start = self._start, end
        return bytes(self._view[start:end])
