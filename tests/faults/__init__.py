"""Faults put into the system calls of the native module, under the typed face: `shim.c` is preloaded, `python -m tests.faults NAME` runs
one of `stories` under it, and `tests/test_faults.py` asks for each.

Why a preloaded shim, and not another build of the module: what is run is the module that users run, byte for byte, and nothing of this is
in it. The shim knows the module's calls by who makes them, so that Python's own are let be.
"""
