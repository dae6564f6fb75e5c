"""Manifests on disk -> the objects of `netpol.model`, and addresses for pods that have none yet.

A file holds any number of YAML or JSON documents; `List`, `PodList` and the like stand for their items. Each document becomes the
JSON that an API server would hand out and goes through `netpol.policy.decode`, the one reader of objects.

Invariants
- Nothing is dropped in silence where policy could change: a key that is given twice (YAML would keep the last one), a field of a
  policy, of its metadata or of its spec that does not exist, the same object twice, a policy of an API that netpol does not enforce,
  a kind that is nearly NetworkPolicy are all errors. Other kinds of objects are skipped.
- Files that hold nothing at all are an error, and so is each one that is empty: somebody may be writing it, or have failed to. Who wants
  no objects says so by an empty list.
- All errors of all files come together, as one `InvalidManifests`; then nothing of them is used. No input raises anything else.
- What the API server would have filled in is filled in: the namespace "default", and each namespace's own label
  kubernetes.io/metadata.name. A namespace that is only named by an object exists with that label alone.

What it does not do: schemas (only what policy needs is looked at), kustomize or Helm, and files behind links to directories.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from netpol.errors import InvalidManifests, InvalidObject
from netpol.kube.documents import Unreadable, documents
from netpol.model import DIRECTIONS, Address, Family, Namespace, Network, Node, Object, Pod, Policy, Query
from netpol.policy.decode import Decoded, decode_namespace, decode_node, decode_pod, decode_policy

SUFFIXES = (".yaml", ".yml", ".json")
STANDARD_INPUT = "-"
GROUP = "networking.k8s.io/"
NETWORKING = f"{GROUP}v1"
NAME_LABEL = "kubernetes.io/metadata.name"
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
TICK = 50_000_000  # nanoseconds: the clock of a file system is not coarser
COARSE = 2_000_000_000  # but where it has whole seconds alone, as some have
# By the path of what they are fields of. Those of metadata are ObjectMeta's, with what older API servers wrote.
POLICY_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec", "status"},
    "metadata": {"name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp"}
    | {"deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences", "finalizers", "managedFields"}
    | {"clusterName"},
    "spec": {"podSelector", "policyTypes", "ingress", "egress"},
}

DECODERS: dict[tuple[str, str], Callable[[bytes], Decoded[Any]]] = {
    ("v1", "Pod"): decode_pod,
    ("v1", "Namespace"): decode_namespace,
    ("v1", "Node"): decode_node,
    (NETWORKING, "NetworkPolicy"): decode_policy,
}
NAMESPACED = ("Pod", "NetworkPolicy")


class _Part(NamedTuple):
    """A document, or an item of a list in it: the file, the line where the document starts, the path of fields from there."""

    source: str
    line: int
    path: str
    value: Any

    @property
    def title(self) -> str:
        return f"document at line {self.line}"

    def error(self, object: str, field: str, reason: str) -> InvalidObject:
        return InvalidObject(object, f"{self.path}.{field}".strip("."), reason, self.source)


# -- objects -----------------------------------------------------------------------------------------------------------


def load(paths: Sequence[str]) -> tuple[Object, ...]:
    """The objects of files, of directories (all .yaml, .yml and .json files below, sorted) and, for "-", of standard input.

    Namespaces come first, then everything else in the order of the files. Raises InvalidManifests with an `InvalidObject` for each
    thing that is wrong; `source` is the file.
    """
    found = _Found()
    for path in paths:
        for source in _sources(path, found.errors):
            found.read(source)
    if not found.documents and not found.errors:
        found.errors.append(InvalidObject("manifests", "", "hold no document", ", ".join(paths)))
    if found.errors:
        raise InvalidManifests(tuple(found.errors))
    return found.completed()


class _Found:
    """What the files gave so far: objects by kind, namespace and name, each with its file; and what is wrong."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], tuple[Object, str]] = {}
        self.errors: list[InvalidObject] = []
        self.documents = 0

    def read(self, source: str) -> None:
        name = "standard input" if source == STANDARD_INPUT else source
        try:
            content = _content(source)
            if not content.strip():
                self.errors.append(InvalidObject("file", "", "is empty", name))
            for line, value in documents(content):
                self.documents += 1
                self.add(_Part(name, line, "", value))
        except OSError as error:
            self.errors.append(_unread(name, error))
        except Unreadable as error:
            where = "file" if error.line is None else f"line {error.line}"
            self.errors.append(InvalidObject(where, "", error.reason, name))
        except RecursionError:
            self.errors.append(InvalidObject("file", "", "is nested too deep", name))

    def add(self, part: _Part) -> None:
        """One object, the objects of a list, or nothing where policy does not look at that kind."""
        value = part.value
        if not isinstance(value, dict):
            self.errors.append(part.error(part.title, "", "is no object: a mapping with apiVersion and kind is needed"))
            return
        version, kind = value.get("apiVersion"), value.get("kind")
        if not isinstance(version, str) or not version:
            self.errors.append(part.error(part.title, "apiVersion", "is missing, or is no text"))
        elif not isinstance(kind, str) or not (kind.isascii() and kind.isalnum()):
            self.errors.append(part.error(part.title, "kind", "is missing, or is no kind"))
        elif kind.endswith("List"):
            self.add_items(part, version, kind.removesuffix("List"))
        elif (version, kind) in DECODERS:
            self.add_object(part, version, kind)
        elif kind.endswith("NetworkPolicy"):
            reason = f"{version!r} would not be enforced: netpol enforces NetworkPolicy of {NETWORKING}"
            self.errors.append(part.error(f"{kind} in the {part.title}", "apiVersion", reason))
        elif version.startswith(GROUP) and kind.lower().startswith("networkpolic"):
            self.errors.append(part.error(part.title, "kind", f"{kind!r} is no kind of {version}: is NetworkPolicy meant?"))

    def add_items(self, part: _Part, version: str, kind: str) -> None:
        """The items of a typed list may leave out what the list says: an API server's do. `kind` is "" for a plain List."""
        items = part.value.get("items")
        if items is not None and not isinstance(items, list):
            self.errors.append(part.error(part.title, "items", "is no list"))
            return
        for i, item in enumerate(items or ()):
            if kind and isinstance(item, dict):
                item = {"apiVersion": version, "kind": kind, **item}
            self.add(_Part(part.source, part.line, f"{part.path}.items[{i}]", item))

    def add_object(self, part: _Part, version: str, kind: str) -> None:
        metadata = part.value.get("metadata")
        names = dict(metadata) if isinstance(metadata, dict) else {}
        if kind in NAMESPACED:
            names["namespace"] = names.get("namespace") or "default"
        wrong = [
            part.error(f"{kind} in the {part.title}", f"metadata.{field}", reason)
            for field in ("name", "namespace")
            if (reason := _objection(names.get(field))) and (field in names or field == "name")
        ]
        self.errors += wrong
        if wrong:
            return
        key = (kind, names["namespace"] if kind in NAMESPACED else "", names["name"])
        title = f"{kind} {'/'.join(filter(None, key[1:]))}"
        self.errors += [InvalidObject(title, field, reason, part.source) for field, reason in _unknown_fields(part.value, kind)]
        try:
            decoded = DECODERS[version, kind](json.dumps({**part.value, "metadata": names}, allow_nan=False).encode())
        except ValueError as error:  # a number that JSON has no room for
            self.errors.append(InvalidObject(title, "", str(error), part.source))
            return
        self.errors += [InvalidObject(title, error.field, error.reason, part.source) for error in decoded.errors]
        if isinstance(decoded.value, Policy):
            self.errors += [InvalidObject(title, field, reason, part.source) for field, reason in _vain_values(decoded.value)]
        if key in self.objects:
            self.errors.append(InvalidObject(title, "", f"is already in {self.objects[key][1]}", part.source))
        elif decoded.value is not None:
            self.objects[key] = decoded.value, part.source

    def completed(self) -> tuple[Object, ...]:
        """The objects, with the namespaces that some of them name and their label; namespaces first."""
        objects = [item for item, _ in self.objects.values()]
        namespaces = {item.namespace: Namespace(item.namespace) for item in objects if isinstance(item, Pod | Policy)}
        namespaces |= {item.name: item for item in objects if isinstance(item, Namespace)}
        labelled = [Namespace(n.name, tuple(sorted({**dict(n.labels), NAME_LABEL: n.name}.items()))) for n in namespaces.values()]
        return (*labelled, *(item for item in objects if not isinstance(item, Namespace)))


def _objection(name: object) -> str:
    """Why an API server would not take a name; "" if it would. What we print of names that pass is unambiguous, and only letters."""
    if name is None:
        return "is missing"
    if isinstance(name, str) and NAME.fullmatch(name):
        return ""
    return f"{name!r} is not a name: lower-case letters, digits, '-' and '.'"


def _unknown_fields(value: dict[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """Fields of a policy that do not exist, as (path of what has them, reason): "egres" would isolate nothing, "namespce" elsewhere."""
    if kind != "NetworkPolicy":
        return
    for path, fields in POLICY_FIELDS.items():
        found = value.get(path) if path else value
        if isinstance(found, dict):
            yield from ((path, f"a NetworkPolicy has no field {field!r} there") for field in sorted(found.keys() - fields))


def _vain_values(policy: Policy) -> Iterator[tuple[str, str]]:
    """Values that a policy's selectors ask for and that no label can have, as (path, reason). An API server may have kept such a policy,
    and it selects nothing by them; whoever writes one means something else."""
    asked = [("spec.podSelector", policy.subject.pods)]
    for direction in DIRECTIONS:
        for i, rule in enumerate(policy.rules(direction) or ()):
            for query in (peer for peer in rule.peers or () if isinstance(peer, Query)):
                asked += [(f"spec.{direction}[{i}]", selector) for selector in (query.pods, query.namespaces)]
    for path, selector in asked:
        for value in (value for requirement in selector.requirements for value in requirement.values):
            if not LABEL_VALUE.fullmatch(value):
                yield path, f"a selector asks for {value!r}, a value that no label can have"


# -- files -------------------------------------------------------------------------------------------------------------


def _sources(path: str, errors: list[InvalidObject]) -> list[str]:
    """The files of a path. Hidden ones in a directory are left out: editors and mounted ConfigMaps keep second copies there."""
    if path == STANDARD_INPUT or not os.path.isdir(path):
        return [path]
    files: list[str] = []
    failed: list[OSError] = []
    for folder, folders, names in os.walk(path, onerror=failed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(folder, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    errors += [_unread(str(error.filename), error) for error in failed]
    if not files and not failed:
        errors.append(InvalidObject("directory", "", f"holds no file that ends in {', '.join(SUFFIXES)}", path))
    return sorted(files)


class Stamp(NamedTuple):
    """Of two of the same paths: equal only where a `load` after the first would read the same as one after the second."""

    files: tuple[str, ...]
    times: tuple[tuple[int, ...], ...]
    errors: tuple[str, ...]
    fresh: object

    def torn(self, later: Stamp) -> list[str]:
        """The files that were written in their place meanwhile, so that half of one may have been read. One that was replaced by another
        of its name, as by a rename, was whole before and is whole now."""
        before = dict(zip(self.files, self.times, strict=True))
        before.pop(STANDARD_INPUT, None)  # a pipe has another time whenever it is read
        pairs = [(file, before[file], now) for file, now in zip(later.files, later.times, strict=True) if file in before]
        return [file for file, then, now in pairs if then[:2] == now[:2] and then[:4] != now[:4]]

    def looks_like(self, other: Stamp) -> bool:
        """Whether no change is to be seen; there may have been one without another time."""
        return self[:3] == other[:3]


def stamp(paths: Sequence[str]) -> Stamp:
    """The stamp of what is there now."""
    errors: list[InvalidObject] = []
    files = [source for path in paths for source in _sources(path, errors)]
    times = tuple(map(_times, files))
    # What was written as lately as this may be written once more without another time.
    now = time.time_ns()
    is_fresh = any(changed > now - (TICK if changed % 1_000_000_000 else COARSE) for *_, changed in times)
    return Stamp(tuple(files), times, tuple(map(str, errors)), object() if is_fresh else None)


def _times(source: str) -> tuple[int, ...]:
    """What of a file changes when it is written or replaced; the time of its last change comes last."""
    try:
        found = os.stat(0 if source == STANDARD_INPUT else source)
    except OSError as error:
        return error.errno or 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _unread(source: str, error: OSError) -> InvalidObject:
    return InvalidObject("file", "", f"cannot be read: {error.strerror or error}", source)


def _content(source: str) -> bytes:
    with open(0 if source == STANDARD_INPUT else source, "rb", closefd=source != STANDARD_INPUT) as file:
        return file.read()


# -- addresses ---------------------------------------------------------------------------------------------------------


def assign_addresses(objects: Sequence[Object], cidrs: Sequence[Network]) -> tuple[Object, ...]:
    """The objects, their pods without an address now with one of each family that `cidrs` has ranges of.

    Pods get them in the order of the objects, ranges are used up in their order, and the first and the last address of a range stay
    free, and so do those that any object has. Host-network and finished pods own no address and get none. Raises InvalidManifests
    when the ranges of a family are full.
    """
    taken = {address for item in objects if isinstance(item, Pod | Node) for address in item.addresses}
    ranges: dict[Family, list[Network]] = {}
    for net in cidrs:
        ranges.setdefault(net.family, []).append(net)
    free = {family: _hosts(nets, taken) for family, nets in sorted(ranges.items())}
    return tuple(_with_addresses(item, free, ranges) if isinstance(item, Pod) else item for item in objects)


def _with_addresses(pod: Pod, free: dict[Family, Iterator[Address]], ranges: dict[Family, list[Network]]) -> Pod:
    if pod.addresses or pod.host_network or pod.finished:
        return pod
    addresses = []
    for family, hosts in free.items():
        address = next(hosts, None)
        if address is None:
            reason = f"no address is left for it in {', '.join(map(str, ranges[family]))}"
            raise InvalidManifests((InvalidObject(f"Pod {pod}", "status.podIPs", reason),))
        addresses.append(address)
    return Pod(pod.namespace, pod.name, pod.labels, pod.node, tuple(addresses), pod.ports)


def _hosts(nets: Iterable[Network], taken: set[Address]) -> Iterator[Address]:
    """The addresses of ranges that nobody has, without each range's first and last; each is given once, overlaps or not."""
    for net in nets:
        width = len(net.address)
        first = int.from_bytes(net.address, "big")
        for value in range(first + 1, first + (1 << (width * 8 - net.length)) - 1):
            address = value.to_bytes(width, "big")
            if address not in taken:
                taken.add(address)
                yield address
