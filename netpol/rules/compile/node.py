"""One node's wanted state, kept up to date by events: what the kernel of that node should hold.

`NodeState` follows the changes of a `Cluster`; the members of sets are followed by `netpol.rules.compile.live`. Chains are computed once a
class, and which of them an address has only where an event concerned it. `pending()` gives what was touched since `applied()`, as a pair
(wanted, found) for `diff`; `wanted()` gives all.

Only what concerns this node's isolated pods is in it: a policy that selects no pod of this node costs an entry in a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from netpol.model import DIRECTIONS, FAMILIES, Address, Direction, Family, Network, Pod, Policy, Query, family_of
from netpol.policy.cluster import Change, Cluster, Move
from netpol.rules.compile.classes import ClassChain, class_chain, named_ports
from netpol.rules.compile.front import Front, changed, front, front_net
from netpol.rules.compile.live import Distinct, LiveSets, Place
from netpol.rules.compile.skeleton import Settings, skeleton
from netpol.rules.compile.tree import Tree, scope
from netpol.rules.ruleset import Chain, Ruleset
from netpol.rules.sets import Set

UNUSED = 4  # classes and isolations a pod (it has three at most): of more those are looked for that no pod has

Key = tuple[str, str]
_Resolution = tuple[tuple[tuple[int, str], tuple[int, ...]], ...]  # named ports, and their numbers
_Targets = tuple[dict[Address, str | None], tuple[Network, ...]]  # the chain of each address, and the ranges of unknown ones
_Trees = dict[Place, tuple[_Targets, dict[str, Chain]]]
_Found = dict[Address, ClassChain | None]
_Leaves = dict[Place, _Found]


class _ClassKey(Struct, frozen=True):
    """Pods of one class share a chain: the policies that isolate them, and the numbers behind the names those use."""

    direction: Direction
    policies: frozenset[Key]
    resolution: _Resolution


class _Isolation(Struct, frozen=True):
    """What isolates pods that the same queries select: policies by direction, and the named ports that those of ingress use."""

    policies: Mapping[Direction, frozenset[Key]]
    names: tuple[tuple[int, str], ...]


class _Ways(NamedTuple):
    """The chains of a pod by the directions in which it is isolated, and what they follow from."""

    queries: frozenset[Query]
    isolation: _Isolation
    chains: tuple[tuple[Direction, dict[Family, ClassChain]], ...]


class NodeState:
    """See the module. Every change of the cluster since this was made is to be given to `follow`, in order and at once."""

    def __init__(self, cluster: Cluster, node: str, settings: Settings | None = None) -> None:
        self.cluster, self.node, self.settings = cluster, node, settings or Settings()
        self._locals: dict[Key, Pod] = {}
        self._without_address: dict[Key, Pod] = {}  # of them
        self._subjects: dict[Query, set[Key]] = {}
        self._classes: dict[_ClassKey, dict[Family, ClassChain]] = {}
        self._ways: dict[Key, _Ways] = {}
        self._isolations: dict[frozenset[Query], _Isolation] = {}
        self._trees: _Trees = {}
        self._applied_trees: _Trees = {}
        self._dispatch: dict[Place, Tree] = {(family, direction): Tree(direction) for family in FAMILIES for direction in DIRECTIONS}
        self._sets = LiveSets(cluster)
        self.judged: frozenset[Address] = frozenset()
        """Addresses that some rule is about: of this node's pods, and while unknown ones are denied, of others' in the same ranges."""
        self._applied: Mapping[Family, Mapping[str, Chain]] = {}
        self._stale = True
        self._cidrs = self._ranges()
        self._remote = self._all_remote()  # addresses in these that pods of other nodes hold
        self._denied: tuple[Network, ...] | None = None  # the ranges of unknown addresses, as the leaves have them; None: no leaves yet
        self._pods_again: set[Key] = set()  # of which the ways are to be found again
        self._addresses_again: set[Address] = set()  # that a pod of this node held or holds, and somebody else may have got or lost
        # What `_settle` finds, the first time before anything looks at it.
        self._leaves: _Leaves  # of which the trees are
        self._chains: dict[Family, dict[str, Chain]]
        self._isolated: frozenset[Address]
        for policy in cluster.policies.values():
            self._add_subject(policy)
        for pod in cluster.all_pods():
            if self._is_local(pod):
                self._add_local(pod)

    def close(self) -> None:
        """Takes back the queries that this registered; nothing else is to be called afterwards."""
        self._sets.close()
        for policy in self.cluster.policies.values():
            self.cluster.index.unregister(policy.subject)

    def isolating(self, pod: Pod, direction: Direction) -> tuple[Policy, ...]:
        """The policies that isolate a pod of this node in a direction, by name; none for a pod of another node."""
        if not self._is_local(pod):
            return ()
        keys = {key for query in self.cluster.queries(pod) for key in self._subjects.get(query, ())}
        found = [policy for key in keys if (policy := self.cluster.policies[key]).rules(direction) is not None]
        return tuple(sorted(found, key=str))

    def forgo_fronts(self) -> None:
        """From now on no tree has a set in front: the kernel has no such sets. None was applied."""
        self.settings = replace(self.settings, front_from=0)
        self._stale = True

    @property
    def unknown(self) -> tuple[Network, ...]:
        """The ranges whose addresses are denied where no known pod has them, as was worked out last."""
        return self._denied or ()

    @property
    def is_bare(self) -> bool:
        """Whether no pod that a policy could select is bound to this node."""
        return not self._locals

    # -- events --------------------------------------------------------------------------------------------------------

    def follow(self, change: Change) -> None:
        """Takes over what an event changed."""
        for move in change.moves:
            self._sets.touch(move)
            # Another pod, of any node, may take or give back the address of one of ours.
            for standing in (move.before, move.after):
                if standing is not None and self._is_local(standing.pod):
                    self._stale = True
                    self._addresses_again.add(move.address)
            if any(move.address in net for net in self._cidrs):
                self._follow_remote(move)
        for before, after in change.pods:
            if (before is not None and self._is_local(before)) or (after is not None and self._is_local(after)):
                self._replace_local(before, after)
        regrouped = {pod.key for pod in change.regrouped if self._is_local(pod)}
        if regrouped:
            self._find_again(regrouped)
        for old, new in change.policies:
            self._replace_policy(old, new)
        if any(self.node == node.name for pair in change.nodes for node in pair if node is not None):
            self._stale = True
            if self._cidrs != (ranges := self._ranges()):
                self._cidrs = ranges
                self._remote = self._all_remote()

    def _follow_remote(self, move: Move) -> None:
        was, is_remote = move.address in self._remote, move.after is not None and not self._is_local(move.after.pod)
        if was != is_remote:
            (self._remote.add if is_remote else self._remote.discard)(move.address)
            if self._denied:
                self._stale = True
                self._addresses_again.add(move.address)

    def _all_remote(self) -> set[Address]:
        pods = [pod for pod in self.cluster.all_pods() if not self._is_local(pod)] if self._cidrs else ()
        found = [(a, pod) for pod in pods for a in pod.addresses if any(a in net for net in self._cidrs)]
        return {a for a, pod in found if self.cluster.holder(a) is pod}

    def _ranges(self) -> tuple[Network, ...]:
        """Of this node's pods."""
        node = self.cluster.nodes.get(self.node)
        return self.settings.pod_cidrs or (node.pod_cidrs if node is not None else ())

    def _replace_local(self, before: Pod | None, after: Pod | None) -> None:
        for pod in (before, after):
            if pod is not None:
                self._locals.pop(pod.key, None)
                self._without_address.pop(pod.key, None)
        if after is not None and self._is_local(after):
            self._add_local(after)
        self._find_again({pod.key for pod in (before, after) if pod is not None})

    def _find_again(self, keys: AbstractSet[Key]) -> None:
        """The ways of these pods of this node, which may have come or gone."""
        self._stale = True
        self._pods_again |= keys

    def _add_local(self, pod: Pod) -> None:
        self._locals[pod.key] = pod
        if not pod.addresses:
            self._without_address[pod.key] = pod

    def _replace_policy(self, before: Policy | None, after: Policy | None) -> None:
        """Registers the new subject before the old one goes, so that one that stays is not searched for again."""
        concerned = self._concerned(before) if before is not None else set()
        if before is not None:
            self._forget_isolations(before.subject)
            for key in [key for key in self._classes if before.key in key.policies]:
                del self._classes[key]
        if after is not None:
            self._add_subject(after)
            self._forget_isolations(after.subject)
            if before is None or before.subject != after.subject:
                concerned |= self._concerned(after)
        if before is not None:
            self._drop_subject(before, keep=after is not None and after.subject == before.subject)
        first_or_last = (before is None or after is None) and len(self.cluster.policies) <= 1
        if concerned or first_or_last:
            self._find_again(concerned)

    def _forget_isolations(self, subject: Query) -> None:
        for queries in [queries for queries in self._isolations if subject in queries]:
            del self._isolations[queries]

    def _add_subject(self, policy: Policy) -> None:
        self.cluster.index.register(policy.subject)
        self._subjects.setdefault(policy.subject, set()).add(policy.key)

    def _drop_subject(self, policy: Policy, keep: bool) -> None:
        self.cluster.index.unregister(policy.subject)
        if not keep:
            keys = self._subjects[policy.subject]
            keys.discard(policy.key)
            if not keys:
                del self._subjects[policy.subject]

    def _concerned(self, policy: Policy) -> set[Key]:
        """The pods of this node that a policy selects."""
        subject, queries = policy.subject, self.cluster.queries
        return {key for key, pod in self._locals.items() if key[0] == subject.namespace and subject in queries(pod)}

    def _is_local(self, pod: Pod) -> bool:
        return pod.node == self.node and not pod.host_network and not pod.finished

    # -- results -------------------------------------------------------------------------------------------------------

    def wanted(self) -> Ruleset:
        """All that the kernel should hold now."""
        self._settle()
        sets = self._sets.all()
        sets |= _front_sets({place: self._front(place, self._trees) for place in self._trees})
        return Ruleset(self._chains, sets, frozenset(FAMILIES), self.settings.table)

    def pending(self) -> tuple[Ruleset, Ruleset, frozenset[Address]]:
        """What `diff` takes: (wanted, found) as far as they can differ since `applied`, and the addresses of isolated pods here.

        Of the two rulesets: all chains, new and leaving sets, and the members that were touched; all members of a set of which
        more go than stay.
        """
        self._settle()
        wanted, found, whole = self._sets.pending()
        places = [place for place, kept in self._trees.items() if kept is not self._applied_trees.get(place)]
        fronts = {place: changed(self._front(place, self._trees), self._front(place, self._applied_trees)) for place in places}
        wanted |= _front_sets({place: now for place, (now, _) in fronts.items()})
        found |= _front_sets({place: then for place, (_, then) in fronts.items()})
        return (
            Ruleset(self._chains, wanted, frozenset(FAMILIES), self.settings.table, whole),
            Ruleset(self._applied, found, frozenset(self._applied), self.settings.table),
            self._isolated,
        )

    def applied(self) -> None:
        """What `pending` or `wanted` said last is in the kernel now."""
        self._applied = self._chains
        self._applied_trees = dict(self._trees)
        self._sets.applied()

    def moved(self) -> frozenset[Address] | None:
        """Addresses of this node's pods with other rules in `pending` than in `applied`; None: unknown ones are judged otherwise."""
        found: set[Address] = set()
        for place, (kept, _) in self._trees.items():
            before = self._applied_trees[place][0] if place in self._applied_trees else ({}, ())
            if kept is before:
                continue
            (targets, ranges), (targets_before, ranges_before) = kept, before
            if ranges != ranges_before:
                return None
            found.update([address for address, chain in targets.items() if targets_before.get(address, "") != chain])
            found.update(targets_before.keys() - targets.keys())
        return frozenset(found)

    def _front(self, place: Place, trees: _Trees) -> Front | None:
        """What stands in front of one of these trees."""
        (leaves, ranges), _ = trees.get(place, (({}, ()), None))
        net = front_net(place[0], leaves.keys(), ranges, self.settings.front_from)
        return Front(leaves.keys(), net) if net is not None else None

    # -- structure -----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Computes classes, chains and the sets they need again, after something that can change them."""
        if not self._stale:
            return
        unknown = self._unknown()
        is_whole = unknown != self._denied
        if is_whole:
            leaves: _Leaves = {(family, direction): {} for family in FAMILIES for direction in DIRECTIONS}
            ways: dict[Key, _Ways] = {}
            keys, addresses = set(self._locals), self._remote.copy()
        else:
            leaves = {place: found.copy() for place, found in self._leaves.items()}
            ways = self._ways.copy()
            keys, addresses = self._pods_again, self._addresses_again
        for key in keys:
            pod = self._locals.get(key)
            if pod is not None:
                ways[key] = self._way(pod)
                addresses.update(pod.addresses)
            else:
                ways.pop(key, None)
        shifted = is_whole
        for address in addresses:
            shifted = self._file(address, ways, leaves, unknown) or shifted
        self._ways = ways
        # What few changes leave unused may stay for a while.
        if is_whole or len(self._classes) + len(self._isolations) > UNUSED * len(ways):
            self._forget_unused()
        distinct = {place: {id(chain): chain for chain in found.values() if chain is not None} for place, found in leaves.items()}
        self._chains = {family: self._family_chains(family, leaves, distinct, unknown) for family in FAMILIES}
        self._leaves, self._denied = leaves, unknown
        if shifted:
            self._isolated = frozenset([a for found in leaves.values() for a, chain in found.items() if chain is not None])
            self.judged = frozenset().union(*leaves.values())
        self._sets.use(distinct)
        self._stale, self._pods_again, self._addresses_again = False, set(), set()

    def _file(self, address: Address, ways: Mapping[Key, _Ways], leaves: _Leaves, unknown: tuple[Network, ...]) -> bool:
        """Gives an address the leaves that its holder has now, if that is a pod of this node: None where it is free and `unknown` addresses
        are denied, as where another node's pod has one of those.

        The value: whether it is isolated in a direction where it was not, or has a leaf where it had none, or the reverse.
        """
        holder, family = self.cluster.holder(address), family_of(address)
        found = ways.get(holder.key) if holder is not None else None
        chains = dict(found.chains) if found is not None else {}
        shifted = False
        for direction in DIRECTIONS:
            there = leaves[family, direction]
            had, was = address in there, there.get(address)
            leaf = chains[direction][family] if direction in chains else None
            has = leaf is not None or (bool(unknown) and (found is not None or address in self._remote))
            if has:
                there[address] = leaf
            elif had:
                del there[address]
            shifted = shifted or had != has or (was is None) != (leaf is None)
        return shifted

    def _forget_unused(self) -> None:
        """The isolations and classes of which no pod is."""
        ways = self._ways.values()
        self._isolations = {found.queries: found.isolation for found in ways}
        used = {id(chains) for found in ways for _, chains in found.chains}
        for unused in [key for key, chains in self._classes.items() if id(chains) not in used]:
            del self._classes[unused]

    def _unknown(self) -> tuple[Network, ...]:
        """The ranges whose unknown addresses are denied now (SEMANTICS 29)."""
        if self.settings.unknown_pods == "deny":
            return self._cidrs if self.cluster.policies else ()
        if self.settings.unknown_pods == "auto" and any(
            not self._subjects.keys().isdisjoint(self.cluster.queries(pod)) for pod in self._without_address.values()
        ):
            return self._cidrs
        return ()

    def _isolation(self, queries: frozenset[Query]) -> _Isolation:
        keys = [key for query in queries for key in self._subjects.get(query, ())]
        policies = self.cluster.policies
        found = {d: frozenset(key for key in keys if policies[key].rules(d) is not None) for d in DIRECTIONS}
        return _Isolation(found, named_ports(policies[key] for key in found["ingress"]))

    def _way(self, pod: Pod) -> _Ways:
        queries = self.cluster.queries(pod)
        isolation = self._isolations.get(queries)
        if isolation is None:
            isolation = self._isolations[queries] = self._isolation(queries)
        resolution = tuple([(name, _numbers(pod, name)) for name in isolation.names])
        chains: list[tuple[Direction, dict[Family, ClassChain]]] = []
        for direction in DIRECTIONS:
            if isolation.policies[direction]:
                numbers = resolution if direction == "ingress" else ()
                chains.append((direction, self._class(_ClassKey(direction, isolation.policies[direction], numbers))))
        return _Ways(queries, isolation, tuple(chains))

    def _class(self, key: _ClassKey) -> dict[Family, ClassChain]:
        found = self._classes.get(key)
        if found is None:
            policies = [self.cluster.policies[k] for k in sorted(key.policies)]
            found = self._classes[key] = {f: class_chain(key.direction, f, policies, dict(key.resolution)) for f in FAMILIES}
        return found

    def _family_chains(self, family: Family, leaves: _Leaves, distinct: Distinct, unknown: tuple[Network, ...]) -> dict[str, Chain]:
        classes = [found for direction in DIRECTIONS for found in distinct[family, direction].values()]
        ranges = tuple(net for net in unknown if net.family == family)
        within = {direction: scope(leaves[family, direction].keys(), ranges) for direction in DIRECTIONS}
        least = self.settings.front_from
        fronts = [direction for direction in DIRECTIONS if front_net(family, leaves[family, direction].keys(), ranges, least) is not None]
        isolated = bool(unknown) or any(distinct.values())
        chains = skeleton(family, self.settings, isolated, within["egress"], within["ingress"], fronts)
        chains |= {found.chain.name: found.chain for found in classes}
        for direction in DIRECTIONS:
            place = family, direction
            kept, branches = self._trees.get(place, (None, {}))
            if kept is None or kept[1] != ranges or self._leaves[place] != leaves[place]:
                targets = {address: found.chain.name if found is not None else None for address, found in leaves[place].items()}
                branches = self._dispatch[place].chains(targets, ranges)
                self._trees[place] = ((targets, ranges), branches)
            chains |= branches
        return chains


def _front_sets(fronts: Mapping[Place, Front | None]) -> dict[str, Set]:
    sets = [front(direction, family, found) for (family, direction), found in fronts.items() if found is not None]
    return {found.name: found for found in sets}


def _numbers(pod: Pod, name: tuple[int, str]) -> tuple[int, ...]:
    """The numbers that a pod declares under a protocol and name, sorted."""
    return tuple(sorted({port.port for port in pod.ports if (port.protocol, port.name) == name}))


def compiled(cluster: Cluster, node: str, settings: Settings | None = None) -> Ruleset:
    """The wanted state of one node, from scratch."""
    state = NodeState(cluster, node, settings)
    try:
        return state.wanted()
    finally:
        state.close()
