"""What a set holds, said by what it selects: its name is a hash of that, so it stays while members come and go, over restarts too.

Sets are shared by whatever selects the same, over all policies and both directions; so a selection knows nothing of who uses it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from hashlib import sha256

import msgspec
from msgspec import Struct

from netpol.model import EVERYONE, Address, Family, Pod, Query, family_of, network
from netpol.policy.cluster import Cluster, Standing
from netpol.rules.compile.prefixes import Prefixes
from netpol.rules.sets import Set, SetKind, net_member, port_member


class PodSelection(Struct, frozen=True, tag=True):
    """The addresses of the pods that any of the queries selects."""

    queries: tuple[Query, ...]


class BlockSelection(Struct, frozen=True, tag=True):
    """The addresses that these prefixes cover, by longest prefix."""

    prefixes: Prefixes


class PortSelection(Struct, frozen=True, tag=True):
    """The named port of those pods that a query selects or whose address the prefixes cover, as address and number."""

    protocol: int
    name: str
    queries: tuple[Query, ...]
    prefixes: Prefixes


Selection = PodSelection | BlockSelection | PortSelection

KINDS: dict[type[Selection], SetKind] = {PodSelection: "hash:ip", BlockSelection: "hash:net", PortSelection: "hash:ip,port"}


def content_hash(value: object, characters: int) -> str:
    """A name for a value: the same value gives the same name on every node and in every run."""
    return sha256(msgspec.msgpack.encode(value)).hexdigest()[:characters]


def set_name(selection: Selection, family: Family) -> str:
    """NETPOL4-... or NETPOL6-...: 31 characters."""
    return f"NETPOL{family}-{content_hash(selection, 23)}"


def queries_of(selection: Selection) -> tuple[Query, ...]:
    """The queries that must be registered for `members_at` and `whole_set` to be right."""
    if isinstance(selection, BlockSelection):
        return ()
    if isinstance(selection, PortSelection) and selection.prefixes:
        return (*selection.queries, EVERYONE)
    return selection.queries


def members_at(selection: Selection, address: Address, standing: Standing | None) -> frozenset[bytes]:
    """The members that an address accounts for, as it stands. None for a selection that pods do not change."""
    if standing is None or isinstance(selection, BlockSelection):
        return frozenset()
    selected = not standing.queries.isdisjoint(selection.queries)
    if isinstance(selection, PodSelection):
        return frozenset((address,)) if selected else frozenset()
    # Few pods declare a port of that name; only for those is it looked for among the prefixes, which may be many.
    members = [port_member(address, protocol, port) for protocol, port in _declared(selection, standing.pod)]
    if not members or not (selected or (EVERYONE in standing.queries and covers(selection.prefixes, address))):
        return frozenset()
    return frozenset(members)


def empty_set(selection: Selection, family: Family) -> Set:
    """The set of a selection, without its members."""
    return Set(set_name(selection, family), KINDS[type(selection)], family)


def whole_set(selection: Selection, family: Family, cluster: Cluster) -> Set:
    """The set of a selection with all its members now. The selection's queries are registered with the cluster's index."""
    return empty_set(selection, family)._replace(packed=b"".join(_members(selection, family, cluster)))


def _members(selection: Selection, family: Family, cluster: Cluster) -> Iterable[bytes]:
    """Each once."""
    if isinstance(selection, BlockSelection):
        return {net_member(net, nomatch) for net, nomatch in selection.prefixes}
    if isinstance(selection, PodSelection):
        width = 4 if family == 4 else 16
        found = [cluster.addresses(query, width) for query in selection.queries]
        # One query selects an address once; several may select the same.
        return found[0] if len(found) == 1 else set().union(*found)
    return {
        member
        for address, pod in _addresses(cluster, queries_of(selection), family)
        if _declared(selection, pod)  # before anything is made for those that do not
        for member in members_at(selection, address, Standing(pod, cluster.queries(pod)))
    }


def _declared(selection: PortSelection, pod: Pod) -> list[tuple[int, int]]:
    """What a pod declares under that name: protocols and numbers."""
    return [(port.protocol, port.port) for port in pod.ports if port.name == selection.name and port.protocol == selection.protocol]


def covers(prefixes: Prefixes, address: Address) -> bool:
    """Whether the longest of the prefixes that cover an address, all of its family, matches it.

    One lies in another or beside it, and they are sorted: the last that begins at the address or before is the longest, or it ends before
    the address, and what covers that is no longer than what the two have in common.
    """
    width, number = 8 * len(address), int.from_bytes(address, "big")
    length = width
    while True:
        at = bisect_right(prefixes, (network(address, length), True)) - 1
        if at < 0:
            return False
        net, nomatch = prefixes[at]
        if address in net:
            return not nomatch
        length = width - (number ^ int.from_bytes(net.address, "big")).bit_length()


def _addresses(cluster: Cluster, queries: Iterable[Query], family: Family) -> Iterator[tuple[Address, Pod]]:
    return ((address, pod) for query in queries for address, pod in cluster.members(query) if family_of(address) == family)
