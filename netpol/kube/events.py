"""What a source of objects says, whether it is an API server or files on disk: the one language between a source and the loop.

A source says `Put` and `Gone` for single objects in the order in which they happened, and `Synced` once for each kind when every object
of that kind that exists has been said, the first time and after each full resync. What a resync did not find again is said as `Gone`
before its `Synced`.
"""

from __future__ import annotations

from msgspec import Struct

from netpol.errors import InvalidObject
from netpol.model import Object


class Put(Struct, frozen=True, gc=False):
    """An object is there, or is different now. `errors` is what of it could not be understood: it counts as far as it is safe."""

    object: Object
    errors: tuple[InvalidObject, ...] = ()


class Gone(Struct, frozen=True, gc=False):
    """An object is not there any more. `namespace` is "" for kinds that have none."""

    kind: type[Object]
    name: str
    namespace: str = ""


class Synced(Struct, frozen=True, gc=False):
    """All objects of this kind have been said."""

    kind: type[Object]


Event = Put | Gone | Synced
