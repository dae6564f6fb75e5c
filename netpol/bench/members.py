"""Members for sets, the same ones every time: addresses as a cluster's pods have them, addresses anywhere, networks with exceptions.

Pure: packed members (layout in `netpol.rules.sets`) in a frozenset, as the rest of the program has them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from netpol.model import network
from netpol.rules.sets import net_member

SEED = 1
POD_CIDRS = 0x0A000000  # 10.0.0.0
IN_USE = 0.95  # share of a node's addresses that a pod has, which leaves runs of about 20
NOMATCH = 10  # one network in so many is an exception

Make = Callable[[int], frozenset[bytes]]


def pod_addresses(count: int) -> frozenset[bytes]:
    """IPv4 addresses of pods: node after node, a /24 each, nearly all of it in use."""
    random = Random(SEED)
    found: list[bytes] = []
    value = POD_CIDRS
    while len(found) < count:
        value += 1
        if 2 <= value & 0xFF <= 254 and random.random() < IN_USE:
            found.append(value.to_bytes(4, "big"))
    return frozenset(found)


def scattered_addresses(count: int) -> frozenset[bytes]:
    """IPv4 addresses anywhere in 10.0.0.0/8."""
    return frozenset(value.to_bytes(4, "big") for value in Random(SEED).sample(range(POD_CIDRS, POD_CIDRS + (1 << 24)), count))


def networks(count: int) -> frozenset[bytes]:
    """IPv4 networks of four lengths in 10.0.0.0/8, one in `NOMATCH` of them `nomatch`."""
    random = Random(SEED)
    found: dict[tuple[bytes, int], bytes] = {}
    while len(found) < count:
        net = network(random.randrange(POD_CIDRS, POD_CIDRS + (1 << 24)).to_bytes(4, "big"), random.choice((24, 26, 28, 32)))
        # One prefix cannot be a member both with the flag and without.
        found.setdefault((net.address, net.length), net_member(net, nomatch=len(found) % NOMATCH == 0))
    return frozenset(found.values())
