"""Which pods a query selects, kept up to date by events: work follows what changed, not what exists.

Pods of one namespace that agree in every label that some query asks for are selected alike, so they share one `Profile`, and selectors
are evaluated once a profile: a pod that joins a known profile evaluates nothing. A profile that is new finds the queries that may select
it by its label pairs; a query that is new finds the profiles it may select the same way round.

Most labels are asked for by nobody, and some of those (pod-template-hash, the name of a StatefulSet's pod) are different in nearly every
pod: with them there would be about a profile a pod. So each namespace has the keys that count in it. The first query that asks for
another key has the pods there looked at once, if any of them carries it; a key stays when its last query goes, until such keys are most.

Invariants: a profile has pods; `profile.labels` are those of its pods whose keys count in its namespace, and every key that a registered
query asks for there does; `profile.queries` is exactly the registered queries that select it; a namespace that is not known
(SEMANTICS 11) has profiles but none of them is selected by anything.

Many containers here hold one item nearly always, or few: they are that item itself until a second one comes, and then a tuple, which
takes a fourth of the room of a set (`_with`, `_without`, `_each`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from netpol.model import EVERYTHING, Labels, Query, Selector
from netpol.policy.selectors import lookup_keys, matches

NOTHING: frozenset[Query] = frozenset()
# Where a query looks: in one namespace by its name, or in those that a selector selects.
Scope = str | Selector
LabelPair = tuple[str, str]
Filing = tuple[Scope, str, str | None]
Held = Any  # None, one item (which is no tuple), a tuple of 2 to FEW, or a set of more
FEW = 16
PAST = 16  # keys
SPARE = 256  # keys


def _with(held: Held, item: object) -> Held:
    if held is None:
        return item
    if type(held) is set:
        held.add(item)
        return held
    if type(held) is tuple:
        if item in held:
            return held
        return (*held, item) if len(held) < FEW else {*held, item}
    return held if held == item else (held, item)


def _without(held: Held, item: object) -> Held:
    if type(held) is set:
        held.discard(item)
        return held if len(held) > FEW // 2 else tuple(held)
    if type(held) is tuple:
        held = tuple([one for one in held if one != item])
        return held if len(held) > 1 else held[0]
    return None if held == item else held


def _each(held: Held) -> Collection[Any]:
    if held is None:
        return ()
    return held if type(held) in (set, tuple) else (held,)


class Profile:
    """The pods of one namespace with the same labels, as far as those count, by name, and the queries that select them."""

    __slots__ = ("_names", "labels", "namespace", "queries")

    def __init__(self, namespace: str, labels: Labels) -> None:
        self.namespace, self.labels = namespace, labels
        self.queries = NOTHING
        self._names: Held = None

    @property
    def names(self) -> Collection[str]:
        return _each(self._names)

    def add(self, name: str) -> None:
        self._names = _with(self._names, name)

    def discard(self, name: str) -> None:
        self._names = _without(self._names, name)


class _Space:
    """A namespace: its labels (None while it is not known), its profiles, the registered namespace selectors that select it.

    keys -- the label keys that count here; spare -- others that its pods had when they came, and perhaps some more; keep -- so many of
    these, and they are looked for anew.
    """

    __slots__ = ("keep", "keys", "labels", "name", "profiles", "selectors", "spare")

    def __init__(self, name: str, keys: set[str]) -> None:
        self.name, self.keys = name, keys
        self.spare: set[str] = set()
        self.keep = SPARE
        self.labels: Labels | None = None
        self.profiles: dict[Labels, Profile] = {}
        self.selectors: set[Selector] = set()

    def counting(self, labels: Labels) -> Labels:
        """Those of the labels whose keys count."""
        keys = self.keys
        return tuple([pair for pair in labels if pair[0] in keys])


class QueryIndex:
    """Profiles and queries, filed so that each finds the other. See the module.

    labels_of -- all labels of a pod that has joined, by its namespace and name; past -- so many keys may count in a namespace though
    no query asks for them any more, besides as many as are asked for.
    """

    def __init__(self, labels_of: Callable[[str, str], Labels], past: int = PAST) -> None:
        self._labels_of, self._past = labels_of, past
        self._spaces: dict[str, _Space] = {}
        self._pairs: dict[LabelPair, Held] = {}  # label pair -> profiles
        self._uses: dict[Query, int] = {}
        self._filed: dict[Filing, Held] = {}  # scope and label pair -> queries
        self._selectors: dict[Selector, int] = {}  # namespace selectors -> queries with it
        self._asked: dict[str, dict[str, int]] = {}  # namespace, "" for queries that look in several -> key -> queries that ask for it
        self._combinations: dict[frozenset[Query], frozenset[Query]] = {NOTHING: NOTHING}
        self._keep_combinations = 1024

    def is_empty(self) -> bool:
        """Whether no pod, no known namespace and no query is left in any of the tables."""
        return not any((self._spaces, self._pairs, self._uses, self._filed, self._selectors, self._asked))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def join(self, namespace: str, labels: Labels, name: str) -> Profile:
        """The profile for these labels, which now has a pod of that name."""
        space = self._space(namespace)
        if len(space.spare) >= space.keep:
            self._forget_spare(space)
        keys, spare = space.keys, space.spare
        counting = []  # as `_Space.counting`, and the others on the way
        for pair in labels:
            if pair[0] in keys:
                counting.append(pair)
            else:
                spare.add(pair[0])
        profile = self._profile(space, tuple(counting))
        profile.add(name)
        return profile

    def profile(self, namespace: str, labels: Labels) -> Profile:
        """The profile of a pod that has joined with these labels."""
        space = self._spaces[namespace]
        return space.profiles[space.counting(labels)]

    def leave(self, profile: Profile, name: str) -> None:
        """That pod has gone; so has the profile when it was its last."""
        profile.discard(name)
        if not profile.names:
            space = self._spaces[profile.namespace]
            self._remove(space, profile)
            self._forget_empty(space)

    def _forget_spare(self, space: _Space) -> None:
        """Keys that only pods of the past had are none that one of its pods has."""
        names = [name for profile in space.profiles.values() for name in profile.names]
        space.spare = {key for name in names for key, _ in self._labels_of(space.name, name)} - space.keys
        space.keep = 2 * len(space.spare) + SPARE

    def _space(self, name: str) -> _Space:
        space = self._spaces.get(name)
        if space is None:
            space = self._spaces[name] = _Space(name, self._asked_in(name))
        return space

    def _profile(self, space: _Space, counting: Labels, queries: frozenset[Query] | None = None) -> Profile:
        """The profile of these labels; `queries` are those that select it, where that is known."""
        profile = space.profiles.get(counting)
        if profile is None:
            profile = space.profiles[counting] = Profile(space.name, counting)
            for pair in counting:
                self._pairs[pair] = _with(self._pairs.get(pair), profile)
            if queries is None:
                self._evaluate(space, profile)
            else:
                profile.queries = queries
        return profile

    def _remove(self, space: _Space, profile: Profile) -> None:
        del space.profiles[profile.labels]
        for pair in profile.labels:
            self._unfile(self._pairs, pair, profile)

    # -- keys that count -----------------------------------------------------------------------------------------------

    def _asked_in(self, namespace: str) -> set[str]:
        return {*self._asked.get("", ()), *self._asked.get(namespace, ())}

    def _ask_for(self, queries: Iterable[Query]) -> None:
        """The keys of queries that are new count from now on wherever these look, or may come to look."""
        new: dict[str, list[str]] = {}
        for query in queries:
            asked = self._asked.setdefault(query.namespace, {})
            for key in _keys(query):
                if key not in asked:
                    new.setdefault(query.namespace, []).append(key)
                asked[key] = asked.get(key, 0) + 1
            if not asked:
                del self._asked[query.namespace]
        for namespace, keys in new.items():
            spaces = self._spaces.values() if not namespace else [self._spaces.get(namespace)]
            for space in spaces:
                if space is not None:
                    self._count(space, keys)

    def _ask_no_more(self, query: Query) -> None:
        for key in _keys(query):
            asked = self._asked[query.namespace]
            asked[key] -= 1
            if not asked[key]:
                del asked[key]
                if not asked:
                    del self._asked[query.namespace]

    def _count(self, space: _Space, keys: Iterable[str]) -> None:
        """These keys count in a namespace."""
        new = space.keys.union(keys)
        if new == space.keys:
            return
        asked = self._asked_in(space.name)
        if len(new) > 2 * len(asked) + self._past:
            space.spare |= new - asked
            space.keys, again = asked, True
        else:
            again = not space.spare.isdisjoint(new)
            space.keys = new
        space.spare -= space.keys
        if again:
            for profile in list(space.profiles.values()):
                self._take_apart(space, profile)

    def _take_apart(self, space: _Space, profile: Profile) -> None:
        """The pods of a profile go to those of the labels that count now."""
        groups: dict[Labels, list[str]] = {}
        for name in profile.names:
            groups.setdefault(space.counting(self._labels_of(space.name, name)), []).append(name)
        groups.pop(profile.labels, None)
        for counting, names in groups.items():
            # No query that is registered so far asks for the labels that make the difference.
            other = self._profile(space, counting, profile.queries)
            for name in names:
                other.add(name)
                profile.discard(name)
        if not profile.names:
            self._remove(space, profile)

    # -- namespaces ----------------------------------------------------------------------------------------------------

    def label_namespace(self, name: str, labels: Labels | None) -> list[tuple[Profile, frozenset[Query]]]:
        """A namespace has these labels now (None: it is gone). Returns the profiles whose queries changed, with what they were."""
        space = self._space(name)
        space.labels = labels
        space.selectors = set() if labels is None else {selector for selector in self._selectors if matches(selector, labels)}
        changed = []
        for profile in space.profiles.values():
            before = profile.queries
            self._evaluate(space, profile)
            if profile.queries is not before:
                changed.append((profile, before))
        self._forget_empty(space)
        return changed

    def _forget_empty(self, space: _Space) -> None:
        if space.labels is None and not space.profiles:
            del self._spaces[space.name]

    # -- queries -------------------------------------------------------------------------------------------------------

    def register(self, *queries: Query) -> None:
        """Someone uses these queries from now on; each use is to be ended by `unregister`."""
        new = []
        for query in queries:
            uses = self._uses.get(query, 0)
            self._uses[query] = uses + 1
            if uses:
                continue
            new.append(query)
        self._ask_for(new)
        for query in new:
            for filing in self._filings(query):
                self._filed[filing] = _with(self._filed.get(filing), query)
            if not query.namespace:
                self._register_selector(query.namespaces)
        self._change(new, self._search, frozenset.union)

    def unregister(self, *queries: Query) -> None:
        """One use of each of these queries has ended."""
        gone = []
        for query in queries:
            self._uses[query] -= 1
            if not self._uses[query]:
                del self._uses[query]
                gone.append(query)
        self._change(gone, self.selected, frozenset.difference)
        for query in gone:
            for filing in self._filings(query):
                self._unfile(self._filed, filing, query)
            if not query.namespace:
                self._unregister_selector(query.namespaces)
            self._ask_no_more(query)

    def _change(
        self,
        queries: Sequence[Query],
        select: Callable[[Query], Iterable[Profile]],
        put_together: Callable[[frozenset[Query], Sequence[Query]], frozenset[Query]],
    ) -> None:
        """The queries of the profiles that these select. Many profiles, few combinations: each is put together once, however many
        queries come or go."""
        those: dict[Profile, list[Query]] = {}
        for query in queries:
            for profile in select(query):
                those.setdefault(profile, []).append(query)
        made: dict[tuple[frozenset[Query], tuple[Query, ...]], frozenset[Query]] = {}
        for profile, found in those.items():
            key = profile.queries, tuple(found)
            if key not in made:
                made[key] = put_together(*key)
            self._assign(profile, made[key])

    def selected(self, query: Query) -> Iterator[Profile]:
        """The profiles that a registered query selects."""
        return (profile for profile in self._candidates(query) if query in profile.queries)

    def _register_selector(self, selector: Selector) -> None:
        uses = self._selectors.get(selector, 0)
        self._selectors[selector] = uses + 1
        if not uses:
            for space in self._spaces.values():
                if space.labels is not None and matches(selector, space.labels):
                    space.selectors.add(selector)

    def _unregister_selector(self, selector: Selector) -> None:
        self._selectors[selector] -= 1
        if not self._selectors[selector]:
            del self._selectors[selector]
            for space in self._spaces.values():
                space.selectors.discard(selector)

    def _filings(self, query: Query) -> tuple[Filing, ...]:
        scope: Scope = query.namespace or query.namespaces
        return tuple((scope, key, value) for key, value in lookup_keys(query.pods)) or ((scope, "", None),)

    def _evaluate(self, space: _Space, profile: Profile) -> None:
        """Sets the queries of a profile from those that are filed where it could be selected."""
        if space.labels is None:
            self._assign(profile, NOTHING)
            return
        candidates: set[Query] = set()
        scopes: tuple[Scope, ...] = (profile.namespace, *space.selectors)
        for scope in scopes:
            candidates.update(_each(self._filed.get((scope, "", None))))
            for key, value in profile.labels:
                candidates.update(_each(self._filed.get((scope, key, value))))
                candidates.update(_each(self._filed.get((scope, key, None))))
        self._assign(profile, frozenset(query for query in candidates if matches(query.pods, profile.labels)))

    def _assign(self, profile: Profile, queries: frozenset[Query]) -> None:
        # Few combinations exist beside many profiles: they share one object each. Those of the past go when they are most.
        if len(self._combinations) > self._keep_combinations:
            live = (p.queries for space in self._spaces.values() for p in space.profiles.values())
            self._combinations = {combination: combination for combination in (NOTHING, *live)}
            self._keep_combinations = 2 * len(self._combinations) + 1024
        profile.queries = self._combinations.setdefault(queries, queries)

    def _candidates(self, query: Query) -> Iterable[Profile]:
        """Profiles among which all that the query selects are: by a label pair where one helps, else by namespace."""
        by_pair = [self._pairs.get((key, value)) for key, value in lookup_keys(query.pods) if value is not None]
        spaces = self._scope_spaces(query)
        if by_pair:
            found = sum(len(_each(held)) for held in by_pair)
            if query.namespace == "" or found <= sum(len(space.profiles) for space in spaces):
                return (profile for held in by_pair for profile in _each(held))
        return (profile for space in spaces for profile in space.profiles.values())

    def _scope_spaces(self, query: Query) -> list[_Space]:
        if query.namespace:
            space = self._spaces.get(query.namespace)
            return [space] if space is not None and space.labels is not None else []
        if query.namespaces == EVERYTHING:
            return [space for space in self._spaces.values() if space.labels is not None]
        return [space for space in self._spaces.values() if query.namespaces in space.selectors]

    def _search(self, query: Query) -> list[Profile]:
        spaces = self._spaces

        def in_scope(profile: Profile) -> bool:
            space = spaces[profile.namespace]
            if space.labels is None:
                return False
            return profile.namespace == query.namespace if query.namespace else query.namespaces in space.selectors

        return [p for p in self._candidates(query) if in_scope(p) and matches(query.pods, p.labels)]

    @staticmethod
    def _unfile(filed: dict[Any, Held], key: object, item: object) -> None:
        held = _without(filed[key], item)
        if held is None:
            del filed[key]
        else:
            filed[key] = held


def _keys(query: Query) -> set[str]:
    """The label keys of pods that a query asks for."""
    return {requirement.key for requirement in query.pods.requirements}
