"""Events of one batch, without those that a later one of the same object makes superfluous, where leaving them out makes no difference.

What a cluster is after some events does not depend on their order, but for who claimed an address last (`netpol.policy.cluster`). So
of two puts of one object the first may be left out, unless it is a pod whose addresses, or whose right to them, differ between the
two: then each claim counts, in its place. A deletion between two puts keeps both apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from netpol.agent.enforcer import identity
from netpol.kube.events import Gone, Put
from netpol.model import Object, Pod


def coalesced(events: Iterable[Put | Gone]) -> list[Put | Gone]:
    """The events that count, in their order: of several puts the last one, in the place of the first."""
    kept: list[Put | Gone] = []
    places: dict[tuple[type[Object], str, str], int] = {}
    for event in events:
        if isinstance(event, Gone):
            places.pop((event.kind, event.namespace, event.name), None)
            kept.append(event)
            continue
        key = identity(event.object)
        place = places.get(key)
        before = kept[place] if place is not None else None
        if place is not None and isinstance(before, Put) and _claims_alike(before.object, event.object):
            kept[place] = event
        else:
            places[key] = len(kept)
            kept.append(event)
    return kept


def _claims_alike(one: Object, other: Object) -> bool:
    if not isinstance(one, Pod) or not isinstance(other, Pod):
        return True
    return (one.addresses, one.host_network, one.finished) == (other.addresses, other.host_network, other.finished)
