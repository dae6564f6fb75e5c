"""Builds the one native module, netpol.kernel._native, as an abi3 extension, and takes examples/ along. The rest is in pyproject.toml."""

import os
import sys
import sysconfig
from glob import glob

if not sys.platform.startswith("linux"):
    sys.exit("netpol builds on Linux only: it programs the Linux kernel's ipset and x_tables.")

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# A free-threaded Python has no limited API: it gets a wheel of its own version.
OPTIONS = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp310"}}


class BuildNative(build_ext):
    """Rebuilds when a header or the build script changed, not only when a .c file did."""

    def build_extension(self, ext):
        ext.depends = sorted([*ext.depends, *glob("csrc/*.h"), "csrc/ffi_build.py"])
        super().build_extension(ext)


class BuildPackage(build_py):
    """Copies examples/ to netpol/examples in what is built: the repository keeps one copy, where readers look for it.

    Not a symbolic link, which archives and copies of a tree lose. An editable install reads the repository's own.
    """

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = os.path.join(self.build_lib, "netpol", "examples")
            self.mkpath(folder)
            for file in sorted(glob("examples/*.yaml")):
                self.copy_file(file, folder)


setup(cffi_modules=["csrc/ffi_build.py:ffi"], options=OPTIONS, cmdclass={"build_ext": BuildNative, "build_py": BuildPackage})
