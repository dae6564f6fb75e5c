"""The index of queries against a naive evaluation of all of them, after any events."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netpol.model import EVERYONE, EVERYTHING, Labels, Query, Requirement, Selector
from netpol.policy.index import NOTHING, QueryIndex
from netpol.policy.selectors import matches
from tests import clusters

NAMESPACES = ("red", "blue", "green")
namespaces = st.sampled_from(NAMESPACES)
names = st.sampled_from(("one", "two", "three"))
queries = (
    st.just(EVERYONE)
    | st.builds(Query, namespaces, st.just(EVERYTHING), clusters.selectors)
    | st.builds(Query, st.just(""), clusters.selectors, clusters.selectors)
)
Profiles = dict[tuple[str, Labels], frozenset[Query]]


class IndexAndNaive(RuleBasedStateMachine):
    """An index, and beside it what it should say, by looking at everything."""

    def __init__(self) -> None:
        super().__init__()
        self.index = QueryIndex()
        self.pods: dict[tuple[str, str], Labels] = {}
        self.namespaces: dict[str, Labels] = {}
        self.uses: Counter[Query] = Counter()

    def selects(self, query: Query, namespace: str, labels: Labels) -> bool:
        if namespace not in self.namespaces:
            return False
        if query.namespace:
            return namespace == query.namespace and matches(query.pods, labels)
        return matches(query.namespaces, self.namespaces[namespace]) and matches(query.pods, labels)

    def expected(self) -> Profiles:
        return {
            (namespace, labels): frozenset(query for query in self.uses if self.selects(query, namespace, labels))
            for (namespace, _), labels in self.pods.items()
        }

    @rule(namespace=namespaces, name=names, labels=clusters.labels)
    def put_pod(self, namespace: str, name: str, labels: Labels) -> None:
        """As a cluster does it: into the new profile first, then out of the old one."""
        before = self.pods.get((namespace, name))
        profile = self.index.join(namespace, labels, name)
        assert (profile.namespace, profile.labels) == (namespace, labels)
        if before is not None and before != labels:
            self.index.leave(self.index.profile(namespace, before), name)
        self.pods[namespace, name] = labels

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def drop_pod(self, data: st.DataObject) -> None:
        namespace, name = data.draw(st.sampled_from(sorted(self.pods)))
        self.index.leave(self.index.profile(namespace, self.pods.pop((namespace, name))), name)

    @rule(name=namespaces, labels=st.none() | clusters.labels)
    def label_namespace(self, name: str, labels: Labels | None) -> None:
        """It says exactly which profiles are selected by other queries now, and what they were selected by."""
        before = self.expected()
        if labels is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = labels
        after = self.expected()
        said = {(profile.namespace, profile.labels): was for profile, was in self.index.label_namespace(name, labels)}
        assert said == {key: was for key, was in before.items() if after[key] != was}

    @rule(query=queries)
    def register(self, query: Query) -> None:
        self.index.register(query)
        self.uses[query] += 1

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        query = data.draw(st.sampled_from(sorted(self.uses)))
        self.index.unregister(query)
        self.uses -= Counter([query])

    @invariant()
    def every_profile_has_its_queries(self) -> None:
        for (namespace, labels), selecting in self.expected().items():
            profile = self.index.profile(namespace, labels)
            assert profile.queries == selecting
            assert set(profile.names) == {name for (where, name), held in self.pods.items() if (where, held) == (namespace, labels)}

    @invariant()
    def every_query_has_its_profiles(self) -> None:
        expected = self.expected()
        for query in self.uses:
            selected = [(profile.namespace, profile.labels) for profile in self.index.selected(query)]
            assert sorted(selected) == sorted(key for key, selecting in expected.items() if query in selecting)

    def teardown(self) -> None:
        """When all is gone, nothing is left behind."""
        for (namespace, name), labels in self.pods.items():
            self.index.leave(self.index.profile(namespace, labels), name)
        for query in self.uses.elements():
            self.index.unregister(query)
        assert not any(space.selectors for space in self.index._spaces.values())
        for name in self.namespaces:
            self.index.label_namespace(name, None)
        assert self.index.is_empty()


TestIndex = IndexAndNaive.TestCase
TestIndex.settings = settings(stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def one_label(value: str) -> Query:
    return Query("", EVERYTHING, Selector((Requirement("app", "In", (value,)),)))


def test_combinations_of_the_past_are_forgotten() -> None:
    """A profile that was selected by thousands of combinations of queries, one after another, keeps but a bounded number of them."""
    index = QueryIndex()
    for name in ("red", "blue"):
        index.label_namespace(name, ())
    profile = index.join("red", (("app", "a"),), "one")
    everyone_in_red, everyone_in_blue = (Query(name, EVERYTHING, EVERYTHING) for name in ("red", "blue"))
    index.register(everyone_in_blue)
    steady = index.join("blue", (), "one")
    for i in range(3000):
        query = Query("red", EVERYTHING, Selector((Requirement("app", "In", ("a", str(i))),)))
        index.register(query)
        assert profile.queries == {query}
        index.unregister(query)
    index.register(everyone_in_red)
    assert profile.queries == {everyone_in_red}
    assert len(index._combinations) < 1100
    assert len(index._combinations) < index._keep_combinations  # there is room until the next time
    assert index.join("blue", (("app", "a"),), "two").queries is steady.queries


def test_profiles_share_their_combination() -> None:
    """What many profiles have in common is one object: it is what a cluster of 100,000 pods can be held with."""
    index = QueryIndex()
    for name in ("red", "blue"):
        index.label_namespace(name, ())
    index.register(EVERYONE)
    one, other = index.join("red", (("a", "1"),), "p"), index.join("blue", (("b", "2"),), "p")
    assert one.queries == {EVERYONE}
    assert one.queries is other.queries
    index.unregister(EVERYONE)
    assert one.queries is other.queries is NOTHING


def test_a_query_does_not_look_at_other_pods() -> None:
    """A query by a label pair finds its profiles without a walk over the others: it is registered before and after they come."""
    index = QueryIndex()
    index.label_namespace("red", ())
    index.register(one_label("before"))
    profiles = {value: index.join("red", (("app", value),), value) for value in ("before", "after", "other")}
    index.register(one_label("after"))
    assert [profiles[value].queries for value in profiles] == [{one_label("before")}, {one_label("after")}, NOTHING]
    assert list(index.selected(one_label("after"))) == [profiles["after"]]


def test_a_name_that_is_not_there_is_not_taken_away() -> None:
    """Of one name and of several: those that are there stay."""
    profile = QueryIndex().join("red", (), "one")
    profile.discard("other")
    assert set(profile.names) == {"one"}
    profile.add("two")
    profile.discard("other")
    assert set(profile.names) == {"one", "two"}


@pytest.mark.parametrize(
    ("query", "looked_at"),
    [
        pytest.param(one_label("rare"), 2, id="in any namespace, by a pair"),
        pytest.param(Query("red", EVERYTHING, one_label("rare").pods), 2, id="by a pair that few have"),
        pytest.param(Query("blue", EVERYTHING, one_label("common").pods), 1, id="by a namespace that has fewer"),
        pytest.param(one_label("nobody"), 0, id="a pair that nobody has"),
        pytest.param(Query("red", EVERYTHING, EVERYTHING), 11, id="all of a namespace"),
        pytest.param(Query("green", EVERYTHING, EVERYTHING), 0, id="a namespace that is not known"),
        pytest.param(EVERYONE, 12, id="all of the known ones"),
    ],
)
def test_at_how_many_profiles_a_query_looks(query: Query, looked_at: int) -> None:
    """At those with one of its label pairs, or at those of its namespaces, whichever are fewer."""
    index = QueryIndex()
    for name in ("red", "blue"):
        index.label_namespace(name, ())
    for number in range(10):
        index.join("red", (("app", "common"), ("number", str(number))), "pod")
    for namespace in ("red", "green"):
        index.join(namespace, (("app", "rare"),), "pod")
    index.join("blue", (), "pod")
    assert len(list(index._candidates(query))) == looked_at


def test_pods_that_differ_in_one_label_share_the_others() -> None:
    """Each pod of a StatefulSet has a label of its own, decoded from bytes of its own: the rest is kept once for all of them."""
    index = QueryIndex()
    profiles = [index.join("ns", decode_labels(app="db", number=number), f"db-{number}") for number in ("0", "1", "2")]
    assert len({id(profile) for profile in profiles}) == 3
    assert len({id(profile.labels[0]) for profile in profiles}) == 1
    index.leave(profiles[0], "db-0")
    assert index.join("ns", decode_labels(app="db", number="3"), "db-3").labels[0] is profiles[1].labels[0]


def decode_labels(**labels: str) -> Labels:
    """Pairs that are nobody else's objects, sorted."""
    return tuple(sorted((key, value) for key, value in labels.items()))
