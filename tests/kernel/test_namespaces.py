"""Network namespaces: made, entered, left."""

import os
import socket

import pytest

from netpol.errors import KernelError
from netpol.kernel import namespaces


def devices() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def test_a_new_namespace_has_only_a_loopback_and_the_thread_comes_back() -> None:
    """Inside the block there is one device; behind it the thread sees what it saw before, also after an error."""
    before, home = devices(), os.readlink("/proc/thread-self/ns/net")
    namespace = namespaces.create()
    try:
        with namespaces.entered(namespace):
            assert devices() == ["lo"]
            assert os.readlink("/proc/thread-self/ns/net") != home
        with pytest.raises(ZeroDivisionError), namespaces.entered(namespace):
            raise ZeroDivisionError
    finally:
        os.close(namespace)
    assert devices() == before
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_entering_what_is_no_namespace_is_an_error_with_a_name() -> None:
    """A descriptor of something else is refused and leaves the thread where it was."""
    home = os.readlink("/proc/thread-self/ns/net")
    with open(os.devnull) as file, pytest.raises(KernelError, match="setns network namespace"), namespaces.entered(file.fileno()):
        pass
    assert os.readlink("/proc/thread-self/ns/net") == home
