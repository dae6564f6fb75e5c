"""Network namespaces without a program: made, entered and left by this process.

A namespace is a file descriptor here and has no name: when the last descriptor, device and thread of it are gone, so is it,
however the process ended. Only the calling thread moves; the others stay where they are.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from netpol.errors import KernelError, NotPermitted
from netpol.kernel._native import lib

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def _check(code: int, op: str, object: str, user: int | None = None) -> None:
    """KernelError for what the kernel refused. user -- who asked for it, where that is not who we are by now."""
    if code == 0:
        return
    reason = os.strerror(-code)
    if code in (-errno.EPERM, -errno.EACCES):
        is_root = (os.geteuid() if user is None else user) == 0
        advice = (
            "CAP_SYS_ADMIN is missing (in a container: --privileged)" if is_root else "run as root, or let this user make user namespaces"
        )
        raise NotPermitted(-code, op, object, f"{reason}: {advice}")
    raise KernelError(-code, op, object, reason)


def current() -> int:
    """A descriptor of the calling thread's network namespace. The caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def create() -> int:
    """A new network namespace with nothing in it but a loopback device that is down; its descriptor. The caller closes it."""
    made: list[int] = []
    failed: list[BaseException] = []

    def make() -> None:
        try:
            _check(lib.np_sys_unshare(CLONE_NEWNET), "unshare", "network namespace")
            made.append(current())
        except BaseException as error:
            failed.append(error)

    # A thread of its own takes the new namespace with it when it ends; ours never leaves its place.
    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """The calling thread is in that namespace inside the block, and back where it was behind it."""
    home = current()
    try:
        _check(lib.np_sys_setns(namespace, CLONE_NEWNET), "setns", "network namespace")
        try:
            yield
        finally:
            _check(lib.np_sys_setns(home, CLONE_NEWNET), "setns", "network namespace")
    finally:
        os.close(home)


@contextmanager
def private_lock() -> Iterator[Path]:
    """iptables' lock is a file of this process's own inside the block, for us and for tools that it starts; its path.

    For namespaces that nobody else programs: the host's lock is not held up by them, and it need not be writable.
    """
    before = os.environ.get("XTABLES_LOCKFILE")
    with TemporaryDirectory(prefix="netpol-lock-") as folder:
        path = Path(folder) / "xtables.lock"
        os.environ["XTABLES_LOCKFILE"] = str(path)
        try:
            yield path
        finally:
            del os.environ["XTABLES_LOCKFILE"]
            if before is not None:
                os.environ["XTABLES_LOCKFILE"] = before


def enter_private_world() -> None:
    """Moves this process, which must have one thread only, into a user namespace of its own, as root there, and a network namespace in it.

    The user namespace comes first, with its maps, and only then the network namespace: made at once, the files
    of /proc/net belong to nobody and cannot be read.
    """
    uid, gid = os.getuid(), os.getgid()
    _check(lib.np_sys_unshare(CLONE_NEWUSER), "unshare", "user namespace", uid)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            # Some systems let everyone make a user namespace and then nobody use it.
            _check(-(error.errno or errno.EPERM), "write", f"{name} of the user namespace", uid)
    _check(lib.np_sys_unshare(CLONE_NEWNET), "unshare", "network namespace", uid)
