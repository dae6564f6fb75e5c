"""One heap for all threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import threading
from netpol.kernel.heap import one_heap
if {one}:
    assert one_heap()
ready = threading.Barrier(9)
def work():
    data = [bytearray(2000) for _ in range(100)]
    ready.wait()
    ready.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize:")))
ready.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives threads heaps of their own")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer brings a heap of its own")
def test_threads_share_a_heap() -> None:
    """Eight threads that allocate reserve no address space of their own for it, where they would otherwise."""

    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def reserved(one: bool) -> int:
        command = [sys.executable, "-c", PROGRAM.format(one=one)]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout)

    assert reserved(False) - reserved(True) > 100_000
