"""The native module. What it holds is declared once, in csrc/*.h; nothing of it escapes netpol.kernel, but for netpol.kube.protobuf."""

from typing import Any

ffi: Any
lib: Any
