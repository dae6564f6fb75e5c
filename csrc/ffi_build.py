"""Describes the native module to cffi.

The declarations are not written twice: they are the parts of csrc/*.h between `/* cdef: begin */` and `/* cdef: end */`, so that
what Python believes about a struct is what the compiler was told. `#define NAME value` becomes `#define NAME ...` (cffi asks the compiler).
NETPOL_WERROR=1 turns warnings of our own files into errors; NETPOL_SANITIZE=1 builds with ASan and UBSan; NETPOL_COVERAGE=1 counts lines;
NETPOL_MEMCHECK=1 leaves the code as it is written, for an optimiser gives a field that nobody set a value of its own, which nobody sees.
"""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADERS = sorted(path.name for path in HERE.glob("*.h"))
SOURCES = sorted(path.name for path in HERE.glob("*.c"))
REGION = re.compile(r"/\* cdef: begin \*/(.*?)/\* cdef: end \*/", re.DOTALL)
DEFINE = re.compile(r"^(#define \w+) .*$", re.MULTILINE)


def declarations() -> str:
    """The text of every cdef region of every header."""
    regions = [region for name in HEADERS for region in REGION.findall((HERE / name).read_text())]
    return DEFINE.sub(r"\1 ...", "\n".join(regions))


compile_args = [
    "-O3",
    "-g0",  # Python's own flags ask for debug information, which would be more than half of a wheel
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=3",
]
link_args = ["-Wl,-z,relro,-z,now"]
if os.environ.get("NETPOL_SANITIZE") == "1":
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args = [arg for arg in compile_args if "FORTIFY" not in arg] + [*sanitizers, "-g", "-O1"]
    link_args += sanitizers
if os.environ.get("NETPOL_COVERAGE") == "1":
    compile_args = [arg for arg in compile_args if "FORTIFY" not in arg] + ["--coverage", "-O0"]
    link_args.append("--coverage")
if os.environ.get("NETPOL_MEMCHECK") == "1":
    compile_args = [arg for arg in compile_args if "FORTIFY" not in arg] + ["-g", "-O0"]

# The generated wrapper is not our own file: its conversions are cffi's.
prologue = '#pragma GCC diagnostic ignored "-Wconversion"\n#pragma GCC diagnostic ignored "-Wsign-conversion"\n'
if os.environ.get("NETPOL_WERROR") == "1":
    compile_args.append("-Werror")

ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "netpol.kernel._native",
    prologue + "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=[f"csrc/{name}" for name in SOURCES],
    include_dirs=["csrc"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    py_limited_api=True,
)
