"""ipBlocks -> the addresses of no pod that show what the blocks say.

For each block: one address inside, one in each of its excepts, one just behind it. Where there is no block, one address stands for
everybody else. An address that could not be a host's, or that is somebody's already, is never chosen; a block in which no address
can be chosen gives none.

Pure. It does not know what policies are; which blocks count is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from netpol.errors import LabError
from netpol.lab.values import check_address
from netpol.model import Address, Family, IPBlock, Network, parse_address

# Networks for documentation (RFC 5737, RFC 3849): nobody's, and well inside the widest blocks.
ELSEWHERE: dict[Family, tuple[Address, ...]] = {
    4: tuple(map(parse_address, ("203.0.113.10", "198.51.100.10", "192.0.2.10"))),
    6: tuple(map(parse_address, ("2001:db8::10", "2001:db8:1::10", "2001:db8:2::10"))),
}
# Where in a network a host is looked for, in this order: what people would have chosen themselves comes first.
INSIDE = (10, 1, 0)
BEHIND = (1, 0)


def around(block: IPBlock, taken: Set[Address]) -> tuple[Address, ...]:
    """The addresses for one block, the one inside first."""
    inside = (
        *(address for address in ELSEWHERE[block.cidr.family] if block.cidr.length < 8),
        *_offsets(_first(block.cidr), block.cidr, INSIDE),
        *(address for net in block.excepts for address in _offsets(_behind(net), block.cidr, INSIDE)),
    )
    found = [_choose((a for a in inside if a in block.cidr and not any(a in net for net in block.excepts)), taken)]
    found += [_choose((a for a in _offsets(_first(net), net, INSIDE) if a in net), taken) for net in block.excepts]
    found.append(_choose(_offsets(_behind(block.cidr), block.cidr, BEHIND), taken))
    return tuple(dict.fromkeys(address for address in found if address is not None))


def elsewhere(family: Family, taken: Set[Address]) -> tuple[Address, ...]:
    """One address that stands for everybody outside, or none where all candidates are taken."""
    chosen = _choose(ELSEWHERE[family], taken)
    return () if chosen is None else (chosen,)


def _choose(candidates: Iterable[Address], taken: Set[Address]) -> Address | None:
    return next((address for address in candidates if address not in taken and _is_possible(address)), None)


def _is_possible(address: Address) -> bool:
    """Whether a host can have it. IPv6 addresses that begin with 80 zeros stand for IPv4 ones, and no kernel routes them."""
    try:
        check_address("", address)
    except LabError:
        return False
    return address[:10] != bytes(10)


def _first(net: Network) -> int:
    return int.from_bytes(net.address, "big")


def _behind(net: Network) -> int:
    """The first number behind a network."""
    return _first(net) + (1 << (len(net.address) * 8 - net.length))


def _offsets(start: int, like: Network, offsets: Iterable[int]) -> Iterable[Address]:
    """The addresses at these distances from a number; `like` says of which family. None lies behind the last address of all."""
    width = len(like.address)
    return ((start + offset).to_bytes(width, "big") for offset in offsets if start + offset < 1 << (width * 8))
