"""The state of the cluster, indexed: pods, namespaces, policies, nodes, and who holds which address.

Events come in any order as whole objects (`put`) or as deletions (`drop`); each returns a `Change` that says what of it can matter
to rules: addresses whose meaning moved, pods and policies before and after. An event that changes nothing gives an empty change.

Invariants
- An address belongs to the live pod that claimed it last (SEMANTICS 19); when that one ends, to the latest claimant that still lives.
  Host-network pods and finished pods claim none (SEMANTICS 17, 18). Terminating pods claim theirs to the end, but against each other pod
  that claims it they lose: after a restart claims come in the order of a list, and there the one that goes may stand behind the one
  that has its address already.
- `queries(pod)` are the registered queries that select a pod: none for a host-network pod or a finished one.
- The state after a sequence of events is that of the objects that are left, whatever the order was, but for who claimed last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from msgspec import Struct, structs

from netpol.model import Address, Labels, Namespace, Node, Object, Pod, Policy, Query
from netpol.policy.index import NOTHING, Profile, QueryIndex

# Pods of one profile whose labels a new one is compared with. Where they differ they are those of the few ReplicaSets of a roll-out.
LOOK_AT = 3
KEEP = 1024  # values that pods shared and that may be of none any more, besides as many as are


class Standing(Struct, frozen=True, gc=False):
    """What an address means at one time: the pod that holds it, and the registered queries that select that pod."""

    pod: Pod
    queries: frozenset[Query]


class Move(Struct, frozen=True, gc=False):
    """An address whose standing changed. None: nobody holds it."""

    address: Address
    before: Standing | None
    after: Standing | None


class Change(Struct, frozen=True):
    """What an event changed. Pairs are (before, after), with None for what did not exist or does not any more."""

    moves: tuple[Move, ...] = ()
    pods: tuple[tuple[Pod | None, Pod | None], ...] = ()
    policies: tuple[tuple[Policy | None, Policy | None], ...] = ()
    nodes: tuple[tuple[Node | None, Node | None], ...] = ()
    regrouped: tuple[Pod, ...] = ()  # pods that other queries select now, though they are the same


NO_CHANGE = Change()


class Cluster:
    """See the module. The mappings are read-only views for callers; only `put` and `drop` change them."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.policies: dict[tuple[str, str], Policy] = {}
        self.nodes: dict[str, Node] = {}
        self._pods: dict[str, dict[str, Pod]] = {}
        self.index = QueryIndex(lambda namespace, name: self._pods[namespace][name].labels)
        self._holders: dict[Address, Pod] = {}
        # Addresses that more than one live pod claims, oldest claim first; `_elect` says who holds it. Rare and short-lived.
        self._contested: dict[Address, list[tuple[str, str]]] = {}
        self._shared: dict[object, object] = {}
        self._keep_shared = KEEP

    # -- reading -------------------------------------------------------------------------------------------------------

    @property
    def pods(self) -> Mapping[str, Mapping[str, Pod]]:
        """namespace -> name -> pod."""
        return self._pods

    def all_pods(self) -> Iterator[Pod]:
        return (pod for pods in self._pods.values() for pod in pods.values())

    def pod(self, namespace: str, name: str) -> Pod | None:
        return self._pods.get(namespace, {}).get(name)

    def holder(self, address: Address) -> Pod | None:
        """The pod that holds an address now."""
        return self._holders.get(address)

    def queries(self, pod: Pod) -> frozenset[Query]:
        """The registered queries that select this pod."""
        return self.index.profile(pod.namespace, pod.labels).queries if _is_subject(pod) else NOTHING

    def members(self, query: Query) -> Iterator[tuple[Address, Pod]]:
        """The addresses that a registered query selects now, with their pods."""
        for profile in self.index.selected(query):
            pods = self._pods[profile.namespace]
            for name in profile.names:
                pod = pods[name]
                for address in pod.addresses:
                    if self._holders.get(address) is pod:
                        yield address, pod

    def size(self, query: Query) -> int:
        """How many pods a registered query selects; some may hold no address."""
        return sum(len(profile.names) for profile in self.index.selected(query))

    def addresses(self, query: Query, width: int) -> list[Address]:
        """The same without the pods: addresses of so many bytes."""
        found: list[Address] = []
        # Nobody else holds an address that one pod claims.
        contested, holders = self._contested, self._holders
        for profile in self.index.selected(query):
            pods = self._pods[profile.namespace]
            found += [
                address
                for pod in map(pods.__getitem__, profile.names)
                for address in pod.addresses
                if len(address) == width and (address not in contested or holders[address] is pod)
            ]
        return found

    # -- events --------------------------------------------------------------------------------------------------------

    def put(self, object: Object) -> Change:
        """An object is there, or is different now."""
        if isinstance(object, Pod):
            return self._replace_pod(object.namespace, object.name, object)
        if isinstance(object, Policy):
            return self._replace_policy(object.namespace, object.name, object)
        if isinstance(object, Namespace):
            return self._replace_namespace(object.name, object)
        return self._replace_node(object.name, object)

    def drop(self, kind: type[Object], name: str, namespace: str = "") -> Change:
        """An object is gone. Dropping what is not there changes nothing."""
        if kind is Pod:
            return self._replace_pod(namespace, name, None)
        if kind is Policy:
            return self._replace_policy(namespace, name, None)
        if kind is Namespace:
            return self._replace_namespace(name, None)
        return self._replace_node(name, None)

    def _replace_policy(self, namespace: str, name: str, policy: Policy | None) -> Change:
        before = self.policies.get((namespace, name))
        if before == policy:
            return NO_CHANGE
        if policy is None:
            del self.policies[namespace, name]
        else:
            self.policies[namespace, name] = policy
        return Change(policies=((before, policy),))

    def _replace_node(self, name: str, node: Node | None) -> Change:
        before = self.nodes.get(name)
        if before == node:
            return NO_CHANGE
        if node is None:
            del self.nodes[name]
        else:
            self.nodes[name] = node
        return Change(nodes=((before, node),))

    def _replace_namespace(self, name: str, namespace: Namespace | None) -> Change:
        if self.namespaces.get(name) == namespace:
            return NO_CHANGE
        if namespace is None:
            del self.namespaces[name]
        else:
            self.namespaces[name] = namespace
        moves: list[Move] = []
        regrouped: list[Pod] = []
        for profile, before in self.index.label_namespace(name, None if namespace is None else namespace.labels):
            pods = self._pods[name]
            for pod_name in profile.names:
                pod = pods[pod_name]
                regrouped.append(pod)
                old, new = Standing(pod, before), Standing(pod, profile.queries)
                moves += [Move(address, old, new) for address in pod.addresses if self._holders.get(address) is pod]
        return Change(moves=tuple(moves), regrouped=tuple(regrouped))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def _replace_pod(self, namespace: str, name: str, pod: Pod | None) -> Change:
        pods = self._pods.get(namespace)
        before = pods.get(name) if pods is not None else None
        if before == pod:
            return NO_CHANGE
        touched = dict.fromkeys((before.addresses if before else ()) + (pod.addresses if pod else ()))
        left = self.index.profile(namespace, before.labels) if before is not None and _is_subject(before) else None
        queries = left.queries if left is not None else NOTHING
        standings = {address: self._standing(address, before, queries) for address in touched}
        pod, joined = self._enter(left, pod, namespace, name)
        self._claim((namespace, name), before, pod, touched)
        queries = joined.queries if joined is not None else NOTHING
        moves = []
        for address, old in standings.items():
            new = self._standing(address, pod, queries)
            if old != new:
                moves.append(Move(address, old, new))
        return Change(moves=tuple(moves), pods=((before, pod),))

    def _standing(self, address: Address, known: Pod | None, queries: frozenset[Query]) -> Standing | None:
        """What an address means now, where the queries of one pod are known: nearly always it is that pod's."""
        pod = self._holders.get(address)
        return Standing(pod, queries if pod is known else self.queries(pod)) if pod is not None else None

    def _enter(self, left: Profile | None, pod: Pod | None, namespace: str, name: str) -> tuple[Pod | None, Profile | None]:
        """Puts the pod into the mappings, and out of the profile that it had into its own; returns it, with its parts shared with those of
        its like, and that profile."""
        joined = None
        if pod is not None:
            pods = self._pods.setdefault(namespace, {})
            if _is_subject(pod):
                joined = self.index.join(namespace, pod.labels, name)
                pod = structs.replace(
                    pod,
                    namespace=joined.namespace,
                    labels=_known_labels(joined, pods, pod.labels),
                    node=self._share(pod.node),
                    ports=self._share(pod.ports),
                )
            pods[name] = pod
        else:
            del self._pods[namespace][name]
            if not self._pods[namespace]:
                del self._pods[namespace]
        if left is not None and left is not joined:
            self.index.leave(left, name)
        return pod, joined

    def _claim(self, key: tuple[str, str], before: Pod | None, pod: Pod | None, touched: Mapping[Address, None]) -> None:
        had = before.addresses if before is not None and _is_subject(before) else ()
        has = pod.addresses if pod is not None and _is_subject(pod) else ()
        for address in touched:
            if address in has and address not in had:
                self._gain(address, key)
            elif address in had and address not in has:
                self._lose(address, key)
            elif address in has:
                self._elect(address, key)

    def _gain(self, address: Address, key: tuple[str, str]) -> None:
        holder = self._holders.get(address)
        if holder is not None:
            self._contested.setdefault(address, [holder.key]).append(key)
        self._elect(address, key)

    def _lose(self, address: Address, key: tuple[str, str]) -> None:
        claims = self._contested.get(address)
        if claims is None:
            del self._holders[address]
            return
        claims.remove(key)
        self._elect(address, claims[-1])
        if len(claims) == 1:
            del self._contested[address]

    def _elect(self, address: Address, alone: tuple[str, str]) -> None:
        """Who holds an address: the last claimant that is not terminating, else the last one; `alone` where nobody else claims it."""
        claims = self._contested.get(address)
        namespace, name = alone
        if claims is not None:
            namespace, name = next((key for key in reversed(claims) if not self._pods[key[0]][key[1]].terminating), claims[-1])
        self._holders[address] = self._pods[namespace][name]

    def _share(self, value: str | tuple[object, ...]) -> object:
        if len(self._shared) >= self._keep_shared:
            self._shared = {one: one for pod in self.all_pods() for one in (pod.node, pod.ports)}
            self._keep_shared = 2 * len(self._shared) + KEEP
        return self._shared.setdefault(value, value)


def _is_subject(pod: Pod) -> bool:
    """Whether policies can select this pod and its addresses are its own (SEMANTICS 17, 18)."""
    return not pod.host_network and not pod.finished


def _known_labels(profile: Profile, pods: Mapping[str, Pod], labels: Labels) -> Labels:
    """The same labels, as the profile or one of its pods has them already: those of one workload come from bytes of their own each."""
    if profile.labels == labels:
        return profile.labels
    for name in islice(profile.names, LOOK_AT):
        alike = pods.get(name)
        if alike is not None and alike.labels == labels:
            return alike.labels
    return labels
