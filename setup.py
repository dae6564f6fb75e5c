"""Builds the one native module, netpol.kernel._native, as an abi3 extension. Everything else is in pyproject.toml."""

import sys
import sysconfig
from glob import glob

if not sys.platform.startswith("linux"):
    sys.exit("netpol builds on Linux only: it programs the Linux kernel's ipset and x_tables.")

from setuptools import setup
from setuptools.command.build_ext import build_ext

# A free-threaded Python has no limited API: it gets a wheel of its own version.
OPTIONS = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp310"}}


class BuildNative(build_ext):
    """Rebuilds when a header or the build script changed, not only when a .c file did."""

    def build_extension(self, ext):
        ext.depends = sorted([*ext.depends, *glob("csrc/*.h"), "csrc/ffi_build.py"])
        super().build_extension(ext)


setup(cffi_modules=["csrc/ffi_build.py:ffi"], options=OPTIONS, cmdclass={"build_ext": BuildNative})
