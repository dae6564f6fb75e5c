"""Which Linux runs: for what a kernel gets wrong, or refuses, without saying that it cannot do it."""

from __future__ import annotations

import os
import re

RELEASE = os.uname().release


def is_from(major: int, minor: int, release: str | None = None) -> bool:
    """Whether this kernel, or one of that release, is of that version or a later one; False where a release begins with no version."""
    found = re.match(r"(\d+)\.(\d+)", RELEASE if release is None else release)
    return found is not None and (int(found[1]), int(found[2])) >= (major, minor)
