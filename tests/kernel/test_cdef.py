"""Every struct that crosses into C is what the compiler says it is: cffi checks a struct only when its fields are asked for."""

from __future__ import annotations

import pytest

from netpol.kernel._native import ffi

STRUCTS: list[str] = [str(name) for name in ffi.list_types()[1]]


def test_there_are_structs() -> None:
    """The list that the next test goes through is not empty."""
    assert "np_ipset" in STRUCTS


@pytest.mark.parametrize("name", STRUCTS)
def test_the_fields_of_a_struct_are_those_of_the_compiler(name: str) -> None:
    """Sizes, offsets and types of the cdef agree with the built module, field by field, and leave no field out at the end."""
    struct = ffi.typeof(f"struct {name}")
    end = max(field.offset + ffi.sizeof(field.type) for _, field in struct.fields)
    alignment = ffi.alignof(struct)
    assert -(-end // alignment) * alignment == ffi.sizeof(struct)
