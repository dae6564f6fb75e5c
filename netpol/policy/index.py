"""Which pods a query selects, kept up to date by events: work follows what changed, not what exists.

Pods of one namespace with the same labels select alike, so they share one `Profile`, and selectors are evaluated once a profile: a
pod that joins a known profile evaluates nothing. A profile that is new finds the queries that may select it by its label pairs; a
query that is new finds the profiles it may select the same way round.

Invariants: a profile has pods; `profile.queries` is exactly the registered queries that select it; a namespace that is not known
(SEMANTICS 11) has profiles but none of them is selected by anything.

Many containers here hold one item nearly always: they are that item itself until a second one comes (`_with`, `_without`, `_each`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from netpol.model import EVERYTHING, Labels, Query, Selector
from netpol.policy.selectors import lookup_keys, matches

NOTHING: frozenset[Query] = frozenset()
# Where a query looks: in one namespace by its name, or in those that a selector selects.
Scope = str | Selector
LabelPair = tuple[str, str]
Filing = tuple[Scope, str, str | None]
Held = Any  # None, one item, or a set of at least two


def _with(held: Held, item: object) -> Held:
    if held is None:
        return item
    if type(held) is set:
        held.add(item)
        return held
    return held if held == item else {held, item}


def _without(held: Held, item: object) -> Held:
    if type(held) is not set:
        return None if held == item else held
    held.discard(item)
    return held if len(held) > 1 else held.pop()


def _each(held: Held) -> Collection[Any]:
    if held is None:
        return ()
    return held if type(held) is set else (held,)


class Profile:
    """The pods of one namespace that carry the same labels, by name, and the queries that select them."""

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
    """A namespace: its labels (None while it is not known), its profiles, the registered namespace selectors that select it."""

    __slots__ = ("labels", "profiles", "selectors")

    def __init__(self) -> None:
        self.labels: Labels | None = None
        self.profiles: dict[Labels, Profile] = {}
        self.selectors: set[Selector] = set()


class QueryIndex:
    """Profiles and queries, filed so that each finds the other. See the module."""

    def __init__(self) -> None:
        self._spaces: dict[str, _Space] = {}
        self._pairs: dict[LabelPair, Held] = {}  # label pair -> profiles
        self._uses: dict[Query, int] = {}
        self._filed: dict[Filing, Held] = {}  # scope and label pair -> queries
        self._selectors: dict[Selector, int] = {}  # namespace selectors -> queries with it
        self._combinations: dict[frozenset[Query], frozenset[Query]] = {NOTHING: NOTHING}
        self._keep_combinations = 1024

    def is_empty(self) -> bool:
        """Whether no pod, no known namespace and no query is left in any of the tables."""
        return not any((self._spaces, self._pairs, self._uses, self._filed, self._selectors))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def join(self, namespace: str, labels: Labels, name: str) -> Profile:
        """The profile for these labels, which now has a pod of that name."""
        space = self._spaces.setdefault(namespace, _Space())
        profile = space.profiles.get(labels)
        if profile is None:
            labels = tuple([self._known(pair) for pair in labels])
            profile = space.profiles[labels] = Profile(namespace, labels)
            for pair in labels:
                self._pairs[pair] = _with(self._pairs.get(pair), profile)
            self._evaluate(space, profile)
        profile.add(name)
        return profile

    def _known(self, pair: LabelPair) -> LabelPair:
        """The pair as another profile has it already: many pods differ in one label of theirs, and each keeps only that one for itself."""
        for profile in _each(self._pairs.get(pair)):
            found: Profile = profile
            return next(known for known in found.labels if known == pair)
        return pair

    def profile(self, namespace: str, labels: Labels) -> Profile:
        """The profile of a pod that has joined."""
        return self._spaces[namespace].profiles[labels]

    def leave(self, profile: Profile, name: str) -> None:
        """That pod has gone; so has the profile when it was its last."""
        profile.discard(name)
        if profile.names:
            return
        space = self._spaces[profile.namespace]
        del space.profiles[profile.labels]
        for pair in profile.labels:
            self._unfile(self._pairs, pair, profile)
        self._forget_empty(profile.namespace, space)

    # -- namespaces ----------------------------------------------------------------------------------------------------

    def label_namespace(self, name: str, labels: Labels | None) -> list[tuple[Profile, frozenset[Query]]]:
        """A namespace has these labels now (None: it is gone). Returns the profiles whose queries changed, with what they were."""
        space = self._spaces.setdefault(name, _Space())
        space.labels = labels
        space.selectors = set() if labels is None else {selector for selector in self._selectors if matches(selector, labels)}
        changed = []
        for profile in space.profiles.values():
            before = profile.queries
            self._evaluate(space, profile)
            if profile.queries is not before:
                changed.append((profile, before))
        self._forget_empty(name, space)
        return changed

    def _forget_empty(self, name: str, space: _Space) -> None:
        if space.labels is None and not space.profiles:
            del self._spaces[name]

    # -- queries -------------------------------------------------------------------------------------------------------

    def register(self, query: Query) -> None:
        """Someone uses this query from now on; each use is to be ended by `unregister`."""
        uses = self._uses.get(query, 0)
        self._uses[query] = uses + 1
        if uses:
            return
        for filing in self._filings(query):
            self._filed[filing] = _with(self._filed.get(filing), query)
        if not query.namespace:
            self._register_selector(query.namespaces)
        for profile in self._search(query):
            self._assign(profile, profile.queries | {query})

    def unregister(self, query: Query) -> None:
        """One use of this query has ended."""
        self._uses[query] -= 1
        if self._uses[query]:
            return
        del self._uses[query]
        for profile in list(self.selected(query)):
            self._assign(profile, profile.queries - {query})
        for filing in self._filings(query):
            self._unfile(self._filed, filing, query)
        if not query.namespace:
            self._unregister_selector(query.namespaces)

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
