"""The chains that are always there, whatever the policies: NETPOL, NETPOL-NEW, and NETPOL-DENY; and the settings that shape them.

NETPOL is what a packet of a known connection pays: two matches, and no other chain. The first packet of a flow pays for the first of them
and goes on to NETPOL-NEW, where there are no more rules than there are sides on which a pod of this node is isolated: each a prefix and,
where those pods are many, a set of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from msgspec import Struct

from netpol.model import DIRECTIONS, FAMILIES, ICMPV6, TCP, Direction, Family, Network
from netpol.rules.compile.tree import scope, tree
from netpol.rules.ruleset import (
    DENY,
    DROP,
    EGRESS,
    INGRESS,
    LINK_LOCAL,
    NEW,
    RETURN,
    ROOT,
    ROUTER_ADVERTISEMENT,
    Chain,
    Connmark,
    Conntrack,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Nflog,
    Reject,
    Rule,
    Ruleset,
    SetMatch,
    TableName,
    front_match,
    link_local_rules,
)

# Multicast listener discovery (130-132, 143) and neighbour discovery with redirects (133-137): IPv6 does not work without them.
ALWAYS_ALLOWED_ICMPV6 = (*range(130, 138), 143)

# A look into a set costs as much as the tree of so many pods, for a packet that goes to another one (docs/decisions/0011).
FRONT_FROM = 64

# Prefixes of packets that are logged.
LOG, LOG_CUT, LOG_CUT_REPLY = "netpol", "netpol-cut", "netpol-cut-reply"


class Settings(Struct, frozen=True):
    """What the user may choose of the rules.

    cut_bit -- the connmark bit of flows that were cut; deny -- "reject" answers what is denied, in the filter table only;
    unknown_pods -- what happens to addresses of this node's pod CIDRs that belong to no known pod (SEMANTICS 29); pod_cidrs -- those
    ranges, where the Node object does not say them; log_group -- the NFLOG group for denied packets, None for no log; front_from -- how
    many isolated pods of one side are worth a set in front of their tree, 0 for none.
    """

    table: TableName = "mangle"
    cut_bit: int = 0x10000000
    unknown_pods: Literal["auto", "deny", "allow"] = "auto"
    pod_cidrs: tuple[Network, ...] = ()
    log_group: int | None = None
    deny: Literal["drop", "reject"] = "drop"
    front_from: int = FRONT_FROM

    def __post_init__(self) -> None:
        if self.deny == "reject" and self.table != "filter":
            raise ValueError("the kernel takes REJECT in the filter table only")


def skeleton(
    family: Family,
    settings: Settings,
    isolated: bool,
    egress: Network | None = None,
    ingress: Network | None = None,
    fronts: Collection[Direction] = (),
) -> dict[str, Chain]:
    """NETPOL, NETPOL-NEW and NETPOL-DENY of a family.

    isolated -- whether any pod of this node is, in whatever family, or any range is denied; egress, ingress -- a prefix of all sources, and
    of all destinations, that matter; None where none does, and there is no tree of them; fronts -- the directions whose tree has a set in
    front.
    """
    # A flow that nobody has answered yet is judged as a new one, marked or not: when it is allowed again it need not wait until its mark is
    # taken away, and what it is denied it is denied anyway.
    root = (
        Rule(Goto(NEW), (Conntrack(("RELATED", "ESTABLISHED"), invert=True),)),
        Rule(Goto(DENY), (Connmark(settings.cut_bit, settings.cut_bit),)),
    )
    new: list[Rule] = []
    if family == 6 and isolated:
        # Between pods on one bridge these addresses would be a way around, also for pods of IPv4, and where only one end has one.
        new += link_local_rules()
    # A packet from elsewhere does not pay for the tree of sources, nor one to elsewhere for that of destinations. From the first a packet
    # has to come back, for the second; after that nothing is left to do here.
    if egress is not None:
        new.append(Rule(Jump(EGRESS), _in_front(family, "egress", fronts), source=_tested(egress)))
    if ingress is not None:
        new.append(Rule(Goto(INGRESS), _in_front(family, "ingress", fronts), destination=_tested(ingress)))
    deny = (*_exceptions(family), *_log(settings, family), *_ends(settings, family))
    return {chain.name: chain for chain in (Chain(ROOT, root), Chain(NEW, tuple(new)), Chain(DENY, deny))}


def gate(family: Family, settings: Settings) -> dict[str, Chain]:
    """What is there with no policy at all: the kernel tracks connections, and everything passes but flows that were cut."""
    return skeleton(family, settings, isolated=False)


def closed(settings: Settings, ranges: tuple[Network, ...]) -> Ruleset:
    """Everything from and to these ranges denied: a node whose state is not known yet. Established flows and neighbour discovery pass."""
    chains: dict[Family, dict[str, Chain]] = {}
    for family in FAMILIES:
        own = [net for net in ranges if net.family == family]
        within = scope((), tuple(own))
        chains[family] = skeleton(family, settings, bool(ranges), within, within)
        for direction in DIRECTIONS:
            chains[family] |= tree(direction, {}, tuple(own))
    return Ruleset(chains, {}, frozenset(FAMILIES), settings.table)


def _in_front(family: Family, direction: Direction, fronts: Collection[Direction]) -> tuple[SetMatch, ...]:
    return (front_match(family, direction),) if direction in fronts else ()


def _tested(net: Network) -> Network | None:
    """What a rule asks for that is to have only addresses of this network; nothing, where that is all of them."""
    return net if net.length else None


def _exceptions(family: Family) -> tuple[Rule, ...]:
    if family == 4:
        return ()
    # No host heeds a router's advertisement from another source than a link-local one: those are denied (`link_local_rules`).
    source = {ROUTER_ADVERTISEMENT: LINK_LOCAL}
    return tuple(
        Rule(RETURN, (Icmp(number),), source=source.get(number), not_source=number in source, protocol=ICMPV6)
        for number in ALWAYS_ALLOWED_ICMPV6
    )


def _ends(settings: Settings, family: Family) -> tuple[Rule, ...]:
    """The last rules of NETPOL-DENY; none of them lets a packet go on."""
    if settings.deny == "drop":
        return (Rule(DROP),)
    answer = "icmp-admin-prohibited" if family == 4 else "icmp6-adm-prohibited"
    # A packet that connection tracking does not know may be a stray one of a connection that is allowed: an answer would end that.
    unknown = Rule(DROP, (Conntrack(("INVALID",)),))
    return unknown, Rule(Reject("tcp-reset"), protocol=TCP), Rule(Reject(answer))


def _log(settings: Settings, family: Family) -> tuple[Rule, ...]:
    """At most 10 packets a second for each pair of addresses, so that a flood does not bury the rest. A prefix says what a packet is to its
    connection: one of a known one is here because that was cut."""
    if settings.log_group is None:
        return ()
    width = 32 if family == 4 else 128
    name = f"netpol-deny{family}"
    limit = Hashlimit(name, average=100_000, burst=20, mode=("dstip", "srcip"), source_length=width, destination_length=width)
    known = "RELATED", "ESTABLISHED"
    prefixes = {
        LOG_CUT: Conntrack(known, direction="ORIGINAL"),
        LOG_CUT_REPLY: Conntrack(known, direction="REPLY"),
        LOG: Conntrack(known, invert=True),
    }
    return tuple(Rule(Nflog(settings.log_group, prefix, size=128), (match, limit)) for prefix, match in prefixes.items())
