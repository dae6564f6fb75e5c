"""The sets that a node's chains refer to, and what events did to their members since they were applied.

Members are derived from the cluster's index, never stored twice: an event touches, in the sets that use one of the queries concerned, the
members of its addresses, and of those it is remembered whether they were in the set and whether they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from netpol.model import Direction, Family, Query, family_of
from netpol.policy.cluster import Cluster, Move
from netpol.rules.compile.classes import ClassChain
from netpol.rules.compile.selections import PortSelection, Selection, empty_set, members_at, queries_of, whole_set
from netpol.rules.ruleset import MANY_GO
from netpol.rules.sets import Set

Place = tuple[Family, Direction]
Distinct = Mapping[Place, Mapping[int, ClassChain]]  # the chains of a node, each once, by what tells it from others


class _LiveSet:
    """A set in use, and the members that events touched since it was last applied: whether each was in it then, and is now."""

    __slots__ = ("empty", "family", "name", "new", "now", "selection", "then")

    def __init__(self, selection: Selection, family: Family) -> None:
        self.selection, self.family = selection, family
        self.empty = empty_set(selection, family)
        self.name = self.empty.name
        self.new = True
        self.then: dict[bytes, bool] = {}
        self.now: dict[bytes, bool] = {}

    def some(self, members: Mapping[bytes, bool]) -> Set:
        """The set, of which these members are known, and whether they are in it."""
        return self.empty.with_members(frozenset([member for member, held in members.items() if held]))


class LiveSets:
    """See the module. The queries of its sets are registered with the cluster's index, until `close`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._sets: dict[str, _LiveSet] = {}
        self._leaving: dict[str, _LiveSet] = {}
        self._users: dict[Query, set[_LiveSet]] = {}
        self._port_users: dict[Query, set[_LiveSet]] = {}
        self._distinct: Distinct = {}
        self._uses: Counter[str] = Counter()  # set -> chains that need it

    def close(self) -> None:
        """Takes back the queries; nothing else is to be called afterwards."""
        self._release([*self._sets.values(), *self._leaving.values()])

    def touch(self, move: Move) -> None:
        """An address means something else now."""
        before = move.before.queries if move.before is not None else frozenset()
        after = move.after.queries if move.after is not None else frozenset()
        touched = {live for query in before ^ after for live in self._users.get(query, ())}
        if self._port_users and (move.before and move.before.pod.ports) != (move.after and move.after.pod.ports):
            touched |= {live for query in before | after for live in self._port_users.get(query, ())}
        family = family_of(move.address)
        for live in touched:
            if live.family == family and not live.new:
                had = members_at(live.selection, move.address, move.before)
                has = members_at(live.selection, move.address, move.after)
                for member in had | has:
                    live.then.setdefault(member, member in had)
                    live.now[member] = member in has

    def use(self, distinct: Distinct) -> None:
        """Begins with the sets that new chains need, and ends with those that no chain needs any more."""
        needed: dict[str, tuple[Selection, Family]] = {}
        going: list[str] = []
        for place, classes in distinct.items():
            before = self._distinct.get(place, {})
            for number in classes.keys() - before.keys():
                needed.update({name: (selection, place[0]) for name, selection in classes[number].selections.items()})
                self._uses.update(classes[number].selections.keys())
            for number in before.keys() - classes.keys():
                going += before[number].selections
        self._distinct = distinct
        self._uses.subtract(going)
        released: list[_LiveSet] = []
        for name in {name for name in going if not self._uses[name]}:
            del self._uses[name]
            live = self._sets.pop(name)
            if live.new:
                released.append(live)
            else:
                self._leaving[name] = live
        begun: list[_LiveSet] = []
        for name in needed.keys() - self._sets.keys():
            if name in self._leaving:
                self._sets[name] = self._leaving.pop(name)
            else:
                self._sets[name] = _LiveSet(*needed[name])
                begun.append(self._sets[name])
        # What stays in use is not searched for again.
        if begun:
            self._begin(begun)
        if released:
            self._release(released)

    def all(self) -> dict[str, Set]:
        """By name, with all their members now."""
        return {live.name: self._full(live) for live in self._sets.values()}

    def pending(self) -> tuple[dict[str, Set], dict[str, Set], frozenset[str]]:
        """(wanted, found, whole) by name since `applied`: sets that are new, those that leave, and of others the members that were touched;
        `whole` are those of which more go than stay, with all their members."""
        wanted: dict[str, Set] = {}
        found: dict[str, Set] = {}
        whole: set[str] = set()
        for live in self._sets.values():
            if live.new:
                wanted[live.name] = self._full(live)
            elif live.now:
                before, after = live.some(live.then), live.some(live.now)
                if self._is_less(live, before, after):
                    whole.add(live.name)
                    full = self._full(live)
                    before, after = full.minus(after.members).plus(before.members), full
                found[live.name], wanted[live.name] = before, after
        for live in self._leaving.values():
            found[live.name] = live.empty
        return wanted, found, frozenset(whole)

    def applied(self) -> None:
        """What was wanted last is in the kernel now."""
        for live in self._sets.values():
            live.new = False
            if live.now:
                live.then, live.now = {}, {}
        if self._leaving:
            self._release(self._leaving.values())
            self._leaving = {}

    def _begin(self, sets: Iterable[_LiveSet]) -> None:
        """Their queries are looked for together: one by one, thousands cost the square of that."""
        asked = [(query, live) for live in sets for query in queries_of(live.selection)]
        self._cluster.index.register(*[query for query, _ in asked])
        for query, live in asked:
            self._users.setdefault(query, set()).add(live)
            if isinstance(live.selection, PortSelection):
                self._port_users.setdefault(query, set()).add(live)

    def _release(self, sets: Iterable[_LiveSet]) -> None:
        asked = [(query, live) for live in sets for query in queries_of(live.selection)]
        self._cluster.index.unregister(*[query for query, _ in asked])
        for query, live in asked:
            for users in (self._users, self._port_users):
                found = users.get(query)
                if found is not None:
                    found.discard(live)
                    if not found:
                        del users[query]

    def _full(self, live: _LiveSet) -> Set:
        return whole_set(live.selection, live.family, self._cluster)

    def _is_less(self, live: _LiveSet, before: Set, after: Set) -> bool:
        """Whether many members of a set went, by those that were touched, and fewer than those are left."""
        if before.entries < MANY_GO:
            return False
        gone = len(before.members - after.members)
        return gone >= MANY_GO and sum(map(self._cluster.size, queries_of(live.selection))) < gone
