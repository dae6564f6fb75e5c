"""Manifests: what files mean, and that whatever is wrong in them is said by file, object and field, all of it at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netpol.errors import InvalidManifests
from netpol.kube import manifests
from netpol.kube.manifests import assign_addresses, load, stamp
from netpol.model import (
    EVERYTHING,
    ContainerPort,
    Namespace,
    Node,
    NumberedPort,
    Object,
    Pod,
    Policy,
    PolicyRule,
    Query,
    Requirement,
    Selector,
    format_address,
    parse_address,
    parse_network,
)

Write = Callable[..., str]
NAME_LABEL = "kubernetes.io/metadata.name"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a file (default: m.yaml) and gives its path."""

    def put(content: str | bytes, name: str = "m.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return put


def complaints(*paths: str) -> list[str]:
    """What `load` says is wrong, without the folder of the files."""
    with pytest.raises(InvalidManifests) as caught:
        load(paths)
    for error in caught.value.errors:
        assert error.source
    return [str(error).replace(os.path.dirname(paths[0]) + "/", "") for error in caught.value.errors]


@contextmanager
def standard_input(data: bytes) -> Iterator[None]:
    """Descriptor 0 gives these bytes inside the block. (They fit into a pipe.)"""
    saved = os.dup(0)
    end, other = os.pipe()
    os.write(other, data)
    os.close(other)
    os.dup2(end, 0)
    os.close(end)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def pod(name: str = "p", **changes: object) -> Pod:
    values: dict[str, object] = {"namespace": "default", "name": name, **changes}
    return Pod(**values)  # type: ignore[arg-type]  # by name


def without_namespaces(objects: tuple[Object, ...]) -> list[Object]:
    return [item for item in objects if not isinstance(item, Namespace)]


POD = "{apiVersion: v1, kind: Pod, metadata: {name: %s}}"
POLICY = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: %s}"


def test_every_kind_becomes_its_value(write: Write) -> None:
    """One file with all four kinds, several documents, comments, an empty document and a kind that is skipped."""
    path = write("""\
# a comment alone
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: blue}}
---
---
apiVersion: v1
kind: Node
metadata: {name: n}
spec: {podCIDR: 10.0.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {nodeName: n, containers: [{ports: [{name: http, containerPort: 80}]}]}
status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: skipped}
data: {9000: default/x, on: "1"}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: np}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]
""")
    web = Selector((Requirement("app", "In", ("web",)),))
    assert load([path]) == (
        Namespace("shop", ((NAME_LABEL, "shop"), ("team", "blue"))),
        Node("n", (parse_address("192.0.2.1"),), (parse_network("10.0.0.0/24"),)),
        Pod("shop", "web", (("app", "web"),), "n", (parse_address("10.0.0.2"), parse_address("fd00::2")), (ContainerPort("http", 6, 80),)),
        Policy("shop", "np", web, (PolicyRule((Query("shop", EVERYTHING, EVERYTHING),), (NumberedPort(6, 80, 80),)),), None),
    )


def test_what_an_api_server_adds_to_a_policy_is_no_error(write: Write) -> None:
    """Every field of metadata that one has ever handed out, and a status; other kinds of the group are skipped."""
    given = (
        "generateName selfLink uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds"
        " labels annotations ownerReferences finalizers managedFields clusterName"
    )
    path = write(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: n, "
        + ", ".join(f"{field}: null" for field in given.split())
        + "}, spec: {podSelector: {}}, status: {}}\n---\n{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i}}"
    )
    assert without_namespaces(load([path])) == [Policy("n", "p", EVERYTHING, (), None)]


def test_directories_are_read_sorted_and_deep(write: Write, tmp_path: Path) -> None:
    """All .yaml, .yml and .json files below a directory, in one order; nothing hidden, and no other file."""
    write(POD % "c", "z.yaml")
    write(POD % "a", "a.yml")
    write('{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}', "b/deep/er.json")
    for name in ("notes.txt", ".hidden.yaml", ".git/x.yaml", "x.yaml~"):
        write("{{{", name)
    assert without_namespaces(load([str(tmp_path)])) == [pod("a"), pod("b"), pod("c")]


def test_a_mounted_config_map_is_read_once(write: Write, tmp_path: Path) -> None:
    """A volume of a ConfigMap has its files behind a hidden link: each is one file, not three."""
    write(POD % "a", "..2024/a.yaml")
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert without_namespaces(load([str(tmp_path)])) == [pod("a")]


def test_a_file_that_is_named_is_read_whatever_its_suffix(write: Write) -> None:
    """Only what is found in a directory is chosen by suffix."""
    assert without_namespaces(load([write(POD % "a", "pods.txt")])) == [pod("a")]


def test_standard_input() -> None:
    """ "-" is standard input; errors in it say so."""
    with standard_input((POD % "a").encode()):
        assert without_namespaces(load(["-"])) == [pod("a")]
    with standard_input(b"just text"):
        assert complaints("-") == ["standard input: document at line 1: is no object: a mapping with apiVersion and kind is needed"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param('{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}', "a", id="one object"),
        pytest.param(
            '{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}},'
            ' {"apiVersion": "apps/v1", "kind": "Deployment"}, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}]}',
            "ab",
            id="List",
        ),
        pytest.param(
            '{"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}',
            "ab",
            id="PodList whose items leave out their kind",
        ),
        pytest.param('{"kind": "PodList", "apiVersion": "v1", "items": null}', "", id="a list of null"),
        pytest.param(
            '{"kind": "List", "apiVersion": "v1", "items": [{"kind": "List", "apiVersion": "v1", "items": ['
            '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}]}]}',
            "a",
            id="a list in a list",
        ),
        pytest.param(
            '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}\n\n'
            '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}\n',
            "ab",
            id="a JSON object a line",
        ),
        pytest.param("apiVersion: v1\nkind: AccessList\n", "", id="a kind that only ends in List"),
        pytest.param("apiVersion: metrics.k8s.io/v1\nkind: Pod\nmetadata: {}\n", "", id="a Pod of another group is another kind"),
        pytest.param('{"kind": "List", "apiVersion": "v1", "items": []}', "", id="an empty list"),
        pytest.param("{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n# {\n", "a", id="YAML that begins like JSON"),
        pytest.param("\ufeff" + POD % "a", "a", id="a byte order mark"),
        pytest.param("a: &n {name: a}\napiVersion: v1\nkind: Pod\nmetadata: *n\n", "a", id="an alias"),
        pytest.param("base: &m {name: z, x: 1}\napiVersion: v1\nkind: Pod\nmetadata: {name: a, <<: *m}\n", "a", id="a merge key gives way"),
        pytest.param('apiVersion: v1\nkind: Pod\nmetadata: {name: a, "<<": 5}\n', "a", id="a quoted << is a key like others"),
        pytest.param(
            "m: [&x {name: a, labels: {}}, &y {name: z}]\napiVersion: v1\nkind: Pod\nmetadata: {<<: [*x, *y]}\n", "a", id="first merge wins"
        ),
    ],
)
def test_forms_of_a_file(write: Write, text: str, names: str) -> None:
    """Every form that a file can have gives the pods in it, in their order."""
    assert without_namespaces(load([write(text)])) == [pod(name) for name in names]


def test_scalars_are_what_kubectl_takes_them_for(write: Write) -> None:
    """Dates and numbers to the base of 60 are text; keys are text; real numbers and yes/no are not."""
    path = write("""\
apiVersion: v1
kind: Pod
metadata: {name: a, creationTimestamp: 2024-01-02T03:04:05Z, labels: {date: 2024-01-02, time: 12:30:45, 1: "8"}}
spec: {hostNetwork: yes, containers: [{ports: [{containerPort: 0x50}]}]}
status: {podIPs: [{ip: 1:2:3:4:5:6:7:8}]}
""")
    labels = (("1", "8"), ("date", "2024-01-02"), ("time", "12:30:45"))
    found = pod("a", labels=labels, host_network=True, ports=(ContainerPort("", 6, 80),), addresses=(parse_address("1:2:3:4:5:6:7:8"),))
    assert without_namespaces(load([path])) == [found]


def test_namespaces_are_completed(write: Write) -> None:
    """One that is only named exists with its name label; one that lacks the label gets it; the default is "default"."""
    first = write(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: ''}}\n---\n"
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: late}, spec: {podSelector: {}}}\n"
    )
    second = write("{apiVersion: v1, kind: Namespace, metadata: {name: late, labels: {x: y}}}", "second.yaml")
    objects = load([first, second])
    assert [item for item in objects if isinstance(item, Namespace)] == [
        Namespace("default", ((NAME_LABEL, "default"),)),
        Namespace("late", ((NAME_LABEL, "late"), ("x", "y"))),
    ]
    assert [str(item) for item in objects[2:]] == ["default/a", "default/b", "late/p"]


HERE = "m.yaml: document at line 1: "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("just text", HERE + "is no object: a mapping with apiVersion and kind is needed", id="text"),
        pytest.param("[1]", HERE + "is no object: a mapping with apiVersion and kind is needed", id="a list"),
        pytest.param("kind: Pod", HERE + "apiVersion: is missing, or is no text", id="no apiVersion"),
        pytest.param("apiVersion: 1\nkind: Pod", HERE + "apiVersion: is missing, or is no text", id="apiVersion a number"),
        pytest.param("apiVersion: v1", HERE + "kind: is missing, or is no kind", id="no kind"),
        pytest.param("apiVersion: v1\nkind: [Pod]", HERE + "kind: is missing, or is no kind", id="kind a list"),
        pytest.param("apiVersion: v1\nkind: Pod", "m.yaml: Pod in the document at line 1: metadata.name: is missing", id="no metadata"),
        pytest.param(
            "\n\napiVersion: v1\nkind: Pod\nmetadata: {namespace: x}",
            "m.yaml: Pod in the document at line 3: metadata.name: is missing",
            id="no name",
        ),
        pytest.param(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: 5}",
            "m.yaml: Pod in the document at line 1: metadata.name: 5 is not a name: lower-case letters, digits, '-' and '.'",
            id="a name that is a number",
        ),
        pytest.param(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a/b}",
            "m.yaml: Pod in the document at line 1: metadata.namespace: 'a/b' is not a name: lower-case letters, digits, '-' and '.'",
            id="a namespace with a slash",
        ),
        pytest.param(
            '{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a"}}, {"metadata": {}}]}',
            "m.yaml: Pod in the document at line 1: items[1].metadata.name: is missing",
            id="an item without a name",
        ),
        pytest.param('{"apiVersion": "v1", "kind": "List", "items": {}}', HERE + "items: is no list", id="items no list"),
        pytest.param(
            '{"apiVersion": "v1", "kind": "List", "items": [3]}',
            HERE + "items[0]: is no object: a mapping with apiVersion and kind is needed",
            id="an item that is no object",
        ),
        pytest.param(
            POLICY % "{podSelector: {}, ingress: [{ports: [{port: 0}]}]}",
            "m.yaml: NetworkPolicy default/p: spec.ingress[0].ports[0].port: 0 is not a port: 1 to 65535",
            id="the reader's own errors",
        ),
        pytest.param(
            POLICY % "{podSelector: {}, egres: [], ingress: []}",
            "m.yaml: NetworkPolicy default/p: spec: a NetworkPolicy has no field 'egres' there",
            id="a field of the spec that does not exist",
        ),
        pytest.param(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespce: x}\nspec: {podSelector: {}}",
            "m.yaml: NetworkPolicy default/p: metadata: a NetworkPolicy has no field 'namespce' there",
            id="a field of the metadata that does not exist",
        ),
        pytest.param(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nSpec: {podSelector: {}}",
            "m.yaml: NetworkPolicy default/p: a NetworkPolicy has no field 'Spec' there",
            id="a field of the policy that does not exist",
        ),
        *(
            pytest.param(
                f"apiVersion: networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: p}}",
                HERE + f"kind: {kind!r} is no kind of networking.k8s.io/v1: is NetworkPolicy meant?",
                id=f"the kind {kind}",
            )
            for kind in ("Networkpolicy", "NetworkPolicies", "networkpolicy", "NetworkPolicyy")
        ),
        pytest.param(
            POLICY % "{podSelector: {}, ingress: [{ports: [{port: .inf}]}]}",
            "m.yaml: NetworkPolicy default/p: Out of range float values are not JSON compliant",
            id="infinity is not null",
        ),
        pytest.param(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {on: yes}}",
            "m.yaml: Pod default/a: metadata.labels[on]: Expected `str`, got `bool`",
            id="a label that is no text",
        ),
        pytest.param(
            "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: p}",
            "m.yaml: NetworkPolicy in the document at line 1: apiVersion: 'crd.projectcalico.org/v1' would not be enforced:"
            " netpol enforces NetworkPolicy of networking.k8s.io/v1",
            id="a NetworkPolicy of another group",
        ),
        *(
            pytest.param(
                f"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: {kind}\nmetadata: {{name: p}}",
                f"m.yaml: {kind} in the document at line 1: apiVersion: 'policy.networking.k8s.io/v1alpha1' would not be enforced:"
                " netpol enforces NetworkPolicy of networking.k8s.io/v1",
                id=kind,
            )
            for kind in ("ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy")
        ),
        *(
            pytest.param(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
                f"spec: {{podSelector: {{matchLabels: {{b: '', a: {subject}}}}}, policyTypes: [Ingress],\n"
                f"  ingress: [{{}}, {{from: [{{{peer}}}]}}]}}",
                f"m.yaml: NetworkPolicy default/p: {path}: a selector asks for {value!r}, a value that no label can have",
                id=f"the value {value[:8]!r}",
            )
            for subject, peer, path, value in (
                ("'db '", "podSelector: {}", "spec.podSelector", "db "),
                ("a.b-C_1", "podSelector: {matchLabels: {a: -b}}", "spec.ingress[1]", "-b"),
                ("a", f"podSelector: {{matchLabels: {{a: {'a' * 64}}}}}", "spec.ingress[1]", "a" * 64),
                (
                    "a",
                    "podSelector: {}, namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: ['', b/c]}]}",
                    "spec.ingress[1]",
                    "b/c",
                ),
            )
        ),
        pytest.param("a: b\nc: {d", "m.yaml: line 3: did not find expected ',' or '}'", id="broken YAML"),
        pytest.param("a: 1\nb: 2\na: 3", "m.yaml: line 3: the key 'a' is given twice in one mapping", id="a key twice"),
        pytest.param('a: 1\n"a": 3', "m.yaml: line 2: the key 'a' is given twice in one mapping", id="a key twice, once quoted"),
        pytest.param("x: &x {}\n<<: *x\n<<: *x", "m.yaml: line 3: the key '<<' is given twice in one mapping", id="a merge key twice"),
        pytest.param('{"a": [{"b": 1, "b": 2}]}', "m.yaml: file: the key 'b' is given twice in one mapping", id="a key twice in JSON"),
        pytest.param(
            '\n{"apiVersion": "v1"}', "m.yaml: document at line 2: kind: is missing, or is no kind", id="JSON behind a blank line"
        ),
        pytest.param(
            '{"apiVersion": "v1",\n"kind": "X"}\n{"apiVersion": "v1"}',
            "m.yaml: document at line 3: kind: is missing, or is no kind",
            id="a second JSON object",
        ),
        pytest.param('{"a": NaN}', "m.yaml: file: NaN is no value of JSON", id="NaN"),
        pytest.param('{"a": 1e999}', HERE + "apiVersion: is missing, or is no text", id="a number that overflows"),
        pytest.param("a: 0x" + "f" * 9000, f"m.yaml: line 1: '0x{'f' * 38}' is no int", id="a number that no text can be made of"),
        pytest.param("[a]: 1", "m.yaml: line 1: a key that is no text", id="a key that is a list"),
        pytest.param("<<: 5", "m.yaml: line 1: only mappings can be merged with <<", id="merging a number"),
        pytest.param("a: *b", "m.yaml: line 1: the alias 'b' has no anchor before it", id="an alias of nothing"),
        pytest.param("a: &b [*b]", "m.yaml: line 1: the alias 'b' has no anchor before it", id="an alias of itself"),
        pytest.param(
            "{apiVersion: v1, kind: X, a: &x 1}\n---\nb: *x",
            "m.yaml: line 3: the alias 'x' has no anchor before it",
            id="an alias of another document",
        ),
        pytest.param("a: !ours 5", "m.yaml: line 1: the tag '!ours' is not known", id="a tag on a value"),
        pytest.param("a: !ours {}", "m.yaml: line 1: the tag '!ours' is not known", id="a tag on a mapping"),
        pytest.param("a: !!int five", "m.yaml: line 1: 'five' is no int", id="a number that is none"),
        pytest.param("a: !!int ''", "m.yaml: line 1: '' is no int", id="a number without digits"),
        pytest.param("a: !!bool 5", "m.yaml: line 1: '5' is no bool", id="a truth value that is none"),
        pytest.param(b"a: \xff\xfe\xff", "m.yaml: file: is no text: invalid leading UTF-8 octet (at 3)", id="not UTF-8"),
        pytest.param(b"a: \0", "m.yaml: file: is no text: control characters are not allowed (at 3)", id="a zero byte"),
        pytest.param("[" * 200000, "m.yaml: line 1: is nested deeper than 100 levels", id="bottomless YAML"),
        pytest.param('{"a":' * 200000, "m.yaml: file: is nested too deep", id="bottomless JSON"),
        pytest.param(
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{name}: &{name} [{', '.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefghi"),
            "m.yaml: line 4: its aliases stand for too much text",
            id="a billion laughs",
        ),
    ],
)
def test_what_is_wrong_is_said(write: Write, text: str | bytes, expected: str) -> None:
    """One broken file: one error, which names file, object and field, or the line."""
    assert complaints(write(text)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"x":{'
            + "".join(f'"{i}":1,' for i in range(100_000))
            + '"q":1,"q":2}}',
            ["m.yaml: file: the key 'q' is given twice in one mapping"],
            id="a key twice behind many",
        ),
        pytest.param(
            "{" + "".join(f"a{i}: 1, " for i in range(50_000)) + "<<: [" + ", ".join(["{}"] * 50_000) + "]}",
            [HERE + "apiVersion: is missing, or is no text"],
            id="many merges into a large mapping",
        ),
    ],
)
def test_large_files_cost_what_they_are_long(write: Write, text: str, expected: list[str]) -> None:
    """A reader whose work grew with the square of these would take minutes for each."""
    assert complaints(write(text)) == expected


def test_all_errors_of_all_files_come_together(write: Write) -> None:
    """A file that is missing, one that is broken behind a good document, one with two errors, an empty directory."""
    paths = [
        write(
            (POD % "a") + "\n---\n" + (POLICY % "{podSelector: {a: b}, ingress: [{ports: [{port: 80, endPort: 79}]}]}") + "\n---\n{",
            "a.yaml",
        ),
        write("apiVersion: v1", "b.yaml"),
    ]
    folder = os.path.dirname(paths[0])
    os.mkdir(f"{folder}/empty")
    assert complaints(*paths, f"{folder}/none.yaml", f"{folder}/empty") == [
        "a.yaml: NetworkPolicy default/p: spec.podSelector: Object contains unknown field `a`",
        "a.yaml: NetworkPolicy default/p: spec.ingress[0].ports[0].endPort: 79 is below the port 80",
        "a.yaml: line 6: did not find expected node content",
        "b.yaml: document at line 1: kind: is missing, or is no kind",
        "none.yaml: file: cannot be read: No such file or directory",
        "empty: directory: holds no file that ends in .yaml, .yml, .json",
    ]


def test_the_same_object_twice_names_both_files(write: Write) -> None:
    """The same name in another namespace, or of another kind, is another object."""
    first = write((POD % "a") + "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a, namespace: x}}", "a.yaml")
    others = write(
        "{apiVersion: v1, kind: Node, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: b}}", "b.yaml"
    )
    twice = write((POD % "a") + "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}", "c.yaml")
    assert len(load([first, others])) == 6
    where = os.path.dirname(first)
    assert complaints(first, others, twice) == [
        f"c.yaml: Pod default/a: is already in {first}".replace(where + "/", ""),
        "c.yaml: Namespace a: is already in a.yaml",
    ]


@settings(
    max_examples=3 * settings().max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.binary(max_size=60)
    | st.text(alphabet="{}[]\"':,&*!|>-?%@<~ \n\tab1.\\\ud800", max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
@example(b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"\\ud800"}}')
@example(b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"\\ud800"}}}')
@example(b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"x":' + b"9" * 5000 + b"}")
@example(b"{apiVersion: v1, kind: Pod, metadata: {name: a}, x: 0x" + b"f" * 9000 + b"}")
@example(b'{"apiVersion":"v1","kind":"List","items":[' * 400 + b"]}" * 400)
def test_no_bytes_are_a_traceback(tmp_path: Path, data: bytes) -> None:
    """Whatever a file holds, it is read or its errors are said, in words that can be printed."""
    path = tmp_path / "m.yaml"
    path.write_bytes(data)
    try:
        said = str(load([str(path)]))
    except InvalidManifests as error:
        said = str(error)
    assert said.encode()


# -- addresses ---------------------------------------------------------------------------------------------------------


def given_out(objects: tuple[Object, ...]) -> dict[str, list[str]]:
    return {item.name: [format_address(a) for a in item.addresses] for item in objects if isinstance(item, Pod)}


def test_addresses_of_both_families() -> None:
    """In the order of the objects, without those in use (a node's too) and the ends of the range; others keep what they have."""
    taken = pod("taken", addresses=(parse_address("10.0.0.2"), parse_address("fd00::1")))
    node = Node("n", (parse_address("10.0.0.1"),))
    objects = (pod("b"), taken, Namespace("default"), node, pod("host", host_network=True), pod("done", finished=True), pod("a", node="n"))
    found = assign_addresses(objects, [parse_network("fd00::/120"), parse_network("10.0.0.0/29")])
    assert given_out(found) == {
        "b": ["10.0.0.3", "fd00::2"],
        "taken": ["10.0.0.2", "fd00::1"],
        "host": [],
        "done": [],
        "a": ["10.0.0.4", "fd00::3"],
    }
    assert [item for item in found if not isinstance(item, Pod)] == [Namespace("default"), node]
    assert found[-1] == pod("a", node="n", addresses=(parse_address("10.0.0.4"), parse_address("fd00::3")))
    assert found == assign_addresses(objects, [parse_network("fd00::/120"), parse_network("10.0.0.0/29")])


def test_ranges_are_used_up_in_their_order() -> None:
    """A second range of a family begins where the first one ends, and overlapping ones give no address twice."""
    pods = tuple(pod(f"p{i}") for i in range(5))
    found = assign_addresses(pods, [parse_network("10.0.9.0/30"), parse_network("10.0.0.0/30"), parse_network("10.0.0.0/29")])
    assert [a for (a,) in given_out(found).values()] == ["10.0.9.1", "10.0.9.2", "10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_labels_and_ports_stay() -> None:
    """A pod that gets an address is otherwise the same."""
    before = pod("a", labels=(("x", "y"),), node="n", ports=(ContainerPort("w", 6, 80),))
    (after,) = assign_addresses((before,), [parse_network("10.0.0.0/24")])
    assert after == pod("a", labels=(("x", "y"),), node="n", ports=(ContainerPort("w", 6, 80),), addresses=(parse_address("10.0.0.1"),))


def test_without_ranges_nothing_changes() -> None:
    """No range, no address."""
    assert assign_addresses((pod("a"),), ()) == (pod("a"),)


def test_a_full_range_is_an_error() -> None:
    """It names the first pod that gets none, and the ranges."""
    pods = tuple(pod(f"p{i}") for i in range(3))
    with pytest.raises(InvalidManifests) as caught:
        assign_addresses(pods, [parse_network("10.0.0.0/30"), parse_network("fd00::/64")])
    assert str(caught.value) == "Pod default/p2: status.podIPs: no address is left for it in 10.0.0.0/30"


def test_a_stamp_tells_what_changed(tmp_path: Path) -> None:
    """A file that is written, replaced, new or gone is another stamp, also behind a link; what is none of the manifests is not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "real").write_text("a: 1")
    (folder / "link.yaml").symlink_to(tmp_path / "real")
    (folder / "a.yaml").write_text("a: 1")
    named = tmp_path / "named"
    named.write_text("a: 1")
    paths = [str(folder), str(named), str(tmp_path / "absent")]

    def rested() -> object:
        time.sleep(2 * manifests.TICK / 1e9)
        return stamp(paths)

    changes: tuple[Callable[[str], object], ...] = (
        (folder / "a.yaml").write_text,
        named.write_text,
        (tmp_path / "real").write_text,
        (tmp_path / "absent").write_text,
        (folder / "new.yml").write_text,
        lambda text: os.replace(folder / "new.yml", folder / "a.yaml"),
        lambda text: named.unlink(),
    )
    for number, change in enumerate(changes):
        before = rested()
        assert before == rested()
        (folder / "log").write_text(str(number))
        (folder / ".hidden.yaml").write_text(str(number))
        assert before == rested()
        change(f"a: {number}")
        assert before != rested()


@pytest.mark.parametrize(
    ("changed", "later", "equal"),
    [
        pytest.param(5_000_000_001, 40_000_000, False, id="just written"),
        pytest.param(5_000_000_001, 60_000_000, True, id="a while ago"),
        pytest.param(5_000_000_000, 1_900_000_000, False, id="just written, in whole seconds"),
        pytest.param(5_000_000_000, 2_100_000_000, True, id="a while ago, in whole seconds"),
        pytest.param(5_000_000_001, -9_000_000_000, False, id="in the future"),
    ],
)
def test_what_was_just_written_has_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: int, later: int, equal: bool) -> None:
    """It may be written once more within the same tick of the file system's clock, which another size would not tell either."""
    (tmp_path / "a.yaml").write_text("a: 1")
    monkeypatch.setattr(manifests, "_times", lambda source: (1, 2, 4, changed, changed))
    monkeypatch.setattr(time, "time_ns", lambda: changed + later)
    assert (stamp([str(tmp_path)]) == stamp([str(tmp_path)])) is equal
