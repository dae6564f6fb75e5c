"""The index of queries against a naive evaluation of all of them, after any events."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netpol.model import EVERYONE, EVERYTHING, Labels, Query, Requirement, Selector
from netpol.policy.index import FEW, NOTHING, PAST, SPARE, QueryIndex
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
Key = tuple[str, str]


class IndexAndNaive(RuleBasedStateMachine):
    """An index, and beside it what it should say, by looking at everything."""

    past = PAST

    def __init__(self) -> None:
        super().__init__()
        self.pods: dict[Key, Labels] = {}
        self.index = QueryIndex(lambda namespace, name: self.pods[namespace, name], self.past)
        self.namespaces: dict[str, Labels] = {}
        self.uses: Counter[Query] = Counter()

    def selects(self, query: Query, namespace: str, labels: Labels) -> bool:
        if namespace not in self.namespaces:
            return False
        if query.namespace:
            return namespace == query.namespace and matches(query.pods, labels)
        return matches(query.namespaces, self.namespaces[namespace]) and matches(query.pods, labels)

    def expected(self) -> dict[Key, frozenset[Query]]:
        return {
            (namespace, name): frozenset(query for query in self.uses if self.selects(query, namespace, labels))
            for (namespace, name), labels in self.pods.items()
        }

    @rule(namespace=namespaces, name=names, labels=clusters.labels)
    def put_pod(self, namespace: str, name: str, labels: Labels) -> None:
        """As a cluster does it: into the new profile first, then out of the old one."""
        before = self.pods.get((namespace, name))
        joined = self.index.join(namespace, labels, name)
        if before is not None:
            left = self.index.profile(namespace, before)
            if left is not joined:
                self.index.leave(left, name)
        self.pods[namespace, name] = labels

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def drop_pod(self, data: st.DataObject) -> None:
        namespace, name = data.draw(st.sampled_from(sorted(self.pods)))
        self.index.leave(self.index.profile(namespace, self.pods.pop((namespace, name))), name)

    @rule(name=namespaces, labels=st.none() | clusters.labels)
    def label_namespace(self, name: str, labels: Labels | None) -> None:
        """It says exactly which pods are selected by other queries now, and what they were selected by."""
        before = self.expected()
        if labels is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = labels
        after = self.expected()
        changed = self.index.label_namespace(name, labels)
        said = {(profile.namespace, pod): was for profile, was in changed for pod in profile.names}
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
    def every_pod_has_its_queries(self) -> None:
        """Its profile is its own alone, and shared with those pods that agree in the labels that count."""
        profiles: dict[tuple[str, Labels], set[str]] = {}
        for (namespace, name), selecting in self.expected().items():
            profile = self.index.profile(namespace, self.pods[namespace, name])
            assert profile.queries == selecting
            profiles.setdefault((profile.namespace, profile.labels), set()).add(name)
        found = [profile for space in self.index._spaces.values() for profile in space.profiles.values()]
        assert {(profile.namespace, profile.labels): set(profile.names) for profile in found} == profiles

    @invariant()
    def the_keys_that_are_asked_for_count(self) -> None:
        """And of others no more than were asked for once, and as many as are allowed."""
        for name, space in self.index._spaces.items():
            asked = {r.key for query in self.uses if query.namespace in ("", name) for r in query.pods.requirements}
            assert asked <= space.keys <= set(clusters.KEYS)

    @invariant()
    def every_query_has_its_pods(self) -> None:
        expected = self.expected()
        for query in self.uses:
            selected = [(profile.namespace, name) for profile in self.index.selected(query) for name in profile.names]
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


class ForgetfulIndex(IndexAndNaive):
    """The same where no key counts that is not asked for, from the next new key on."""

    past = -len(clusters.KEYS)


TestForgetfulIndex = ForgetfulIndex.TestCase
TestForgetfulIndex.settings = TestIndex.settings


def no_other_labels(namespace: str, name: str) -> Labels:
    """For an index that is never asked for a new key after its pods have come."""
    raise AssertionError("no pod has to be looked at again")


def one_label(value: str) -> Query:
    return Query("", EVERYTHING, Selector((Requirement("app", "In", (value,)),)))


def test_combinations_of_the_past_are_forgotten() -> None:
    """A profile that was selected by thousands of combinations of queries, one after another, keeps but a bounded number of them."""
    index = QueryIndex(no_other_labels)
    for name in ("red", "blue"):
        index.label_namespace(name, ())
    index.register(Query("red", EVERYTHING, Selector((Requirement("app", "In", ("b",)),))))
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
    index = QueryIndex(no_other_labels)
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
    index = QueryIndex(no_other_labels)
    index.label_namespace("red", ())
    index.register(one_label("before"))
    profiles = {value: index.join("red", (("app", value),), value) for value in ("before", "after", "other")}
    index.register(one_label("after"))
    assert [profiles[value].queries for value in profiles] == [{one_label("before")}, {one_label("after")}, NOTHING]
    assert list(index.selected(one_label("after"))) == [profiles["after"]]


def test_a_name_that_is_not_there_is_not_taken_away() -> None:
    """Of one name and of several: those that are there stay."""
    profile = QueryIndex(no_other_labels).join("red", (), "one")
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
    index = QueryIndex(no_other_labels)
    for name in ("red", "blue"):
        index.label_namespace(name, ())
    index.register(Query("red", EVERYTHING, Selector((Requirement("app", "Exists"), Requirement("number", "Exists")))))
    index.register(one_label("anything"))
    for number in range(10):
        index.join("red", (("app", "common"), ("number", str(number))), "pod")
    for namespace in ("red", "green"):
        index.join(namespace, (("app", "rare"),), "pod")
    index.join("blue", (), "pod")
    assert len(list(index._candidates(query))) == looked_at


def test_pods_that_differ_in_labels_that_nobody_asks_for_are_one_profile() -> None:
    """A label that each pod has for itself costs no profile a pod, and selectors are evaluated once for all of them."""
    index = QueryIndex(no_other_labels)
    index.label_namespace("red", ())
    index.register(one_label("db"))
    profiles = [index.join("red", (("app", "db"), ("number", str(number))), f"db-{number}") for number in range(50)]
    assert all(profile is profiles[0] for profile in profiles)
    assert profiles[0].labels == (("app", "db"),)
    assert profiles[0].queries == {one_label("db")}
    assert len(profiles[0].names) == 50


def by_number(number: int, namespace: str = "") -> Query:
    return Query(namespace, EVERYTHING, Selector((Requirement("number", "In", (str(number),)),)))


def test_a_new_key_takes_pods_apart_where_it_is_asked_for() -> None:
    """In the namespace of the query, or in all; where no pod carries it, none is looked at; and a later query with it looks at none."""
    pods = {
        ("red", "one"): (("app", "db"), ("number", "1")),
        ("red", "two"): (("app", "db"), ("number", "2")),
        ("blue", "one"): (("app", "db"), ("number", "1")),
        ("green", "one"): (("app", "db"),),
    }
    looked_at: list[str] = []

    def labels_of(namespace: str, name: str) -> Labels:
        looked_at.append(f"{namespace}/{name}")
        return pods[namespace, name]

    index = QueryIndex(labels_of)
    for namespace in NAMESPACES:
        index.label_namespace(namespace, ())
    for (namespace, name), labels in pods.items():
        index.join(namespace, labels, name)

    def selected(query: Query) -> set[str]:
        return {f"{profile.namespace}/{name}" for profile in index.selected(query) for name in profile.names}

    index.register(by_number(1, "red"))
    assert looked_at == ["red/one", "red/two"]
    assert selected(by_number(1, "red")) == {"red/one"}
    looked_at.clear()
    index.register(by_number(1))
    assert looked_at == ["blue/one"]
    assert selected(by_number(1)) == {"red/one", "blue/one"}
    looked_at.clear()
    index.register(by_number(2))
    index.unregister(by_number(2))
    index.register(by_number(2))
    assert selected(by_number(2)) == {"red/two"}
    assert looked_at == []


def test_keys_of_the_past_are_forgotten() -> None:
    """Policies that come and go, each with a key of its own, leave a bounded number of keys and of profiles; a key may come again."""
    pods: dict[Key, Labels] = {("red", str(number)): ((f"key-{number}", "x"),) for number in range(100)}
    index = QueryIndex(lambda namespace, name: pods[namespace, name])
    index.label_namespace("red", ())
    for (namespace, name), labels in pods.items():
        index.join(namespace, labels, name)
    for number in (*range(100), 0, 1, 2):
        query = Query("red", EVERYTHING, Selector((Requirement(f"key-{number}", "Exists"),)))
        index.register(query)
        assert [set(profile.names) for profile in index.selected(query)] == [{str(number)}]
        index.unregister(query)
        assert len(index._spaces["red"].keys) <= PAST + 2
        assert len(index._spaces["red"].profiles) <= PAST + 3


def test_keys_of_pods_of_the_past_are_forgotten() -> None:
    """Pods that come and go, each with a key that no policy asks for: those of the pods that are there are known, and few others."""
    pods: dict[Key, Labels] = {}
    index = QueryIndex(lambda namespace, name: pods[namespace, name])
    index.label_namespace("red", ())
    steady = {"red": "one", "blue": "two"}
    for key, name in steady.items():
        pods["red", name] = ((key, "x"),)
        index.join("red", pods["red", name], name)
    for number in range(10 * SPARE):
        pods["red", str(number)] = ((f"key-{number}", "x"),)
        profile = index.join("red", pods["red", str(number)], str(number))
        if number >= 3:
            index.leave(profile, str(number - 3))
            del pods["red", str(number - 3)]
        assert len(index._spaces["red"].spare) <= SPARE + 10
    there = steady | {f"key-{number}": str(number) for number in range(10 * SPARE - 3, 10 * SPARE)}
    for key, name in there.items():
        query = Query("red", EVERYTHING, Selector((Requirement(key, "Exists"),)))
        index.register(query)
        assert [set(profile.names) for profile in index.selected(query)] == [{name}]


def test_keys_of_the_past_are_looked_for_now_and_then() -> None:
    """A pod that comes and goes with a key of its own has few others looked at, however few keys are left."""
    pods: dict[Key, Labels] = {("red", "steady"): ()}
    looks = 0

    def labels_of(namespace: str, name: str) -> Labels:
        nonlocal looks
        looks += 1
        return pods[namespace, name]

    index = QueryIndex(labels_of)
    index.label_namespace("red", ())
    index.join("red", (), "steady")
    for number in range(4 * SPARE):
        pods["red", "other"] = ((f"key-{number}", "x"),)
        index.leave(index.join("red", pods["red", "other"], "other"), "other")
    assert 1 <= looks <= 8


def test_few_names_and_many() -> None:
    """From one to more than a tuple holds and back: a profile has exactly the names that were put into it."""
    profile = QueryIndex(no_other_labels).join("red", (), "0")
    numbers = [str(number) for number in range(2 * FEW)]
    for number in range(1, len(numbers)):
        for _ in range(2):
            profile.add(numbers[number])
        assert sorted(profile.names) == sorted(numbers[: number + 1])
    while numbers:
        for _ in range(2):
            profile.discard(numbers[-1])
        numbers.pop()
        assert sorted(profile.names) == sorted(numbers)
