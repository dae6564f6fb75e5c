"""The native module. What it holds is declared once, in csrc/*.h; nothing of it escapes netpol.kernel."""

from typing import Any

ffi: Any
lib: Any
