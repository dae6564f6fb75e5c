"""Keys and certificates that stand in a kubeconfig itself, or that an exec plugin gave: to be read by name, and on no disk.

TLS here takes files. The `kubernetes` package writes temporary ones, which stay where the process is killed, and one more each time that
a plugin gives another key. A file that is only memory (memfd_create(2)) has a name as long as this process has it open.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from netpol.errors import ApiError


def in_memory(values: dict[str, Any], *names: str) -> list[int]:
    """Puts "NAME": a path for each "NAME-data": base64 of a kubeconfig; the descriptors by which the paths live, each to be closed once.

    What is empty counts as not there. Where the system has no such files, or does not let us have one, the data stays, for the package's
    way. ApiError for what is no base64.
    """
    found: list[int] = []
    if not hasattr(os, "memfd_create"):
        return found
    try:
        for name in names:
            data = values.pop(f"{name}-data", None)
            if not data:
                continue
            content = _decoded(name, data)
            try:
                found.append(os.memfd_create(f"netpol-{name}"))
            except OSError:
                values[f"{name}-data"] = data
                continue
            with open(found[-1], "wb", closefd=False) as file:
                file.write(content)
            values[name] = f"/proc/self/fd/{found[-1]}"
    except BaseException:
        close_all(found)
        raise
    return found


def _decoded(name: str, data: Any) -> bytes:
    try:
        return base64.standard_b64decode(data)
    except (TypeError, ValueError):  # its words would show the key
        raise ApiError(f"configuration: {name}-data is no base64") from None


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
