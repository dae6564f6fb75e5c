"""Decoding pods, namespaces and nodes; and what holds of all decoders, whatever the bytes are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netpol.model import TCP, UDP, ContainerPort, Namespace, Node, Pod, parse_address, parse_network
from netpol.policy.decode import Decoded, decode_namespace, decode_node, decode_pod, decode_policy

DECODERS: dict[str, Callable[[bytes], Decoded[Any]]] = {
    "NetworkPolicy": decode_policy,
    "Pod": decode_pod,
    "Namespace": decode_namespace,
    "Node": decode_node,
}

# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", ": Input data was truncated", id="nothing"),
        pytest.param(b"[]", ": Expected `object`, got `array`", id="a list"),
        pytest.param(b"{}", ": Object missing required field `metadata`", id="no metadata"),
        pytest.param(b'{"metadata": {"namespace": "ns"}}', ": metadata: Object missing required field `name`", id="no name"),
        pytest.param(b'{"metadata": {"name": 5}}', ": metadata.name: Expected `str`, got `int`", id="a name that is a number"),
        pytest.param(
            b'{"metadata": {"name": "\xff"}}', ": 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte", id="no UTF-8"
        ),
        pytest.param(
            b'{"metadata": {"name": "p"}, "x": ' + b"[" * 100000,
            ": maximum recursion depth exceeded while deserializing an object",
            id="deep",
        ),
    ],
)
def test_an_object_without_a_name(data: bytes, expected: str) -> None:
    """There is no value then; the error says as much as is known, of every kind."""
    for kind, decode in DECODERS.items():
        decoded = decode(data)
        assert decoded.value is None
        assert [str(error) for error in decoded.errors] == [kind + expected]


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        pytest.param(b'{"a": "x", "b/c.d": 1, "e": 2}', "[b/c.d]", id="the first that is no text"),
        pytest.param(b'{"x]: spec[0": 1}', "[*]", id="no label's key"),
        pytest.param(b'{"a": 1, "a": "x"}', "[*]", id="hidden by a second of its name"),
        pytest.param(b'{"a": 1}, "matchLabels": 5', "[*]", id="in a mapping that is hidden"),
        pytest.param(b'{"a": 1, "b": "\xff"}', "[*]", id="beside what cannot be read"),
    ],
)
def test_the_key_of_a_value_that_is_no_text(labels: bytes, field: str) -> None:
    """It is named where it can be told."""
    data = b'{"metadata": {"name": "p"}, "spec": {"podSelector": {"matchLabels": %s}}}' % labels
    errors = [str(error) for error in decode_policy(data).errors]
    assert errors == [f"NetworkPolicy p: spec.podSelector.matchLabels{field}: Expected `str`, got `int`"]


def test_what_an_error_says_can_be_printed_and_is_short() -> None:
    """No name or value moves a terminal's cursor, begins a line of a log, or fills it; a field's name does not pass for its path."""
    odd = {"\x1b[2J - at `$.spec": 1}
    peers = [{"ipBlock": {"cidr": "x" * 10**6}}], [{"podSelector": {"matchExpressions": [odd]}}]
    spec = {"ingress": [odd, *({"from": peer} for peer in peers)]}
    first, second, third = decode_policy(json.dumps({"metadata": {"name": "p\nforged"}, "spec": spec}).encode()).errors
    assert str(first) == r"NetworkPolicy p\nforged: spec.ingress[0]: Object contains unknown field `\x1b[2J - at `$.spec`"
    assert str(second).startswith(r"NetworkPolicy p\nforged: spec.ingress[1].from[0].ipBlock.cidr: 'xxx")
    assert len(str(second)) < 1000
    where = r"NetworkPolicy p\nforged: spec.ingress[2].from[0].podSelector.matchExpressions[0]"
    assert str(third) == rf"{where}: Object contains unknown field `\x1b[2J - at `$.spec`"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(
    st.binary(max_size=80) | json_values.map(lambda value: json.dumps({"metadata": {"name": "x"}, "spec": value, "status": value}).encode())
)
@example(b'{"metadata": {"name": "x"}, "spec": "\xff"}')
@example(b'{"metadata": {"name": "x"}, "spec": ' + b'{"a":' * 50000)
def test_no_bytes_make_a_decoder_raise(data: bytes) -> None:
    """A value, or an error, or both; never an exception, and never neither."""
    for decode in DECODERS.values():
        decoded = decode(data)
        assert decoded.value is not None or decoded.errors


# -- pods, namespaces, nodes -------------------------------------------------------------------------------------------


def pod(**parts: object) -> tuple[Pod | None, list[str]]:
    decoded = decode_pod(json.dumps({"metadata": {"namespace": "ns", "name": "p"}, **parts}).encode())
    return decoded.value, [str(error).removeprefix("Pod ns/p: ") for error in decoded.errors]


V4, V6 = parse_address("10.0.0.1"), parse_address("fd00::1")


@pytest.mark.parametrize(
    ("status", "addresses", "errors"),
    [
        pytest.param({}, (), [], id="none yet"),
        pytest.param(None, (), [], id="no status"),
        pytest.param({"podIP": "10.0.0.1"}, (V4,), [], id="podIP"),
        pytest.param({"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}, (V4, V6), [], id="podIPs say it all"),
        pytest.param({"podIP": "10.0.0.1", "podIPs": []}, (V4,), [], id="an empty podIPs"),
        pytest.param({"podIP": "10.0.0.1", "podIPs": None}, (V4,), [], id="a null podIPs"),
        pytest.param({"podIP": "", "podIPs": [{"ip": ""}, {}, {"ip": None}]}, (), [], id="empty ones are none"),
        pytest.param({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]}, (V4,), [], id="twice is once"),
        pytest.param(
            {"podIPs": [{"ip": "10.0.0.256"}, {"ip": "fd00::1"}]},
            (V6,),
            ["status.podIPs[0].ip: '10.0.0.256' is not an IP address"],
            id="a bad one is left out",
        ),
        pytest.param({"podIPs": [{"ip": "::ffff:10.0.0.1"}, {"ip": "fd00::1"}]}, (V4, V6), [], id="an IPv4-mapped one is IPv4"),
        pytest.param(
            {"podIPs": [{"ip": "0.0.0.0"}, {"ip": "fd00::1"}]},
            (V6,),
            ["status.podIPs[0].ip: '0.0.0.0' is the unspecified address, which nobody has"],
            id="0.0.0.0",
        ),
        pytest.param({"podIP": "::"}, (), ["status.podIP: '::' is the unspecified address, which nobody has"], id="::"),
        pytest.param(
            {"podIP": "::ffff:0.0.0.0"}, (), ["status.podIP: '::ffff:0.0.0.0' is the unspecified address, which nobody has"], id="mapped"
        ),
        pytest.param({"podIP": "10.0.0.1/32"}, (), ["status.podIP: '10.0.0.1/32' is not an IP address"], id="a bad podIP"),
    ],
)
def test_pod_addresses(status: object, addresses: tuple[bytes, ...], errors: list[str]) -> None:
    """All of status.podIPs, status.podIP where there are none; the pod stays when one is bad."""
    assert pod(status=status) == (Pod("ns", "p", addresses=addresses), errors)


@pytest.mark.parametrize(
    ("spec", "ports", "errors"),
    [
        pytest.param({"containers": None, "initContainers": None}, (), [], id="none"),
        pytest.param(
            {
                "containers": [
                    {"ports": [{"containerPort": 80, "name": "web"}]},
                    {"ports": None},
                    {"ports": [{"containerPort": 53, "protocol": "UDP"}]},
                ]
            },
            (ContainerPort("", UDP, 53), ContainerPort("web", TCP, 80)),
            [],
            id="of all containers, sorted",
        ),
        pytest.param(
            {
                "containers": [],
                "initContainers": [{}, {"restartPolicy": "Always", "ports": [{"containerPort": 1, "name": "side"}]}],
            },
            (ContainerPort("side", TCP, 1),),
            [],
            id="a native sidecar's count",
        ),
        pytest.param({"initContainers": [{"ports": [{"containerPort": 1}]}]}, (), [], id="those of an init container do not"),
        pytest.param({"initContainers": [{"restartPolicy": "Never", "ports": [{"containerPort": 1}]}]}, (), [], id="nor of one that ends"),
        pytest.param(
            {"containers": [{"restartPolicy": "Never", "ports": [{"containerPort": 1}]}]},
            (ContainerPort("", TCP, 1),),
            [],
            id="a container's",
        ),
        pytest.param(
            {"containers": [{"ports": [{"containerPort": 0}, {"containerPort": 80, "protocol": "ICMP"}, {"containerPort": 8}]}]},
            (ContainerPort("", TCP, 8),),
            [
                "spec.containers[0].ports[0].containerPort: 0 is not a port: 1 to 65535",
                "spec.containers[0].ports[1].protocol: 'ICMP' is none of TCP, UDP, SCTP",
            ],
            id="bad ones are left out",
        ),
    ],
)
def test_pod_ports(spec: object, ports: tuple[ContainerPort, ...], errors: list[str]) -> None:
    """Declared ports; SEMANTICS 24."""
    assert pod(spec=spec) == (Pod("ns", "p", ports=ports), errors)


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        pytest.param({}, Pod("ns", "p"), id="a name alone"),
        pytest.param(
            {"metadata": {"namespace": "ns", "name": "p", "labels": {"b": "2", "a": "1"}}},
            Pod("ns", "p", (("a", "1"), ("b", "2"))),
            id="labels",
        ),
        pytest.param({"metadata": {"namespace": "ns", "name": "p", "labels": None}}, Pod("ns", "p"), id="null labels"),
        pytest.param({"spec": {"nodeName": "n"}}, Pod("ns", "p", node="n"), id="bound"),
        pytest.param({"spec": {"nodeName": None, "hostNetwork": None}}, Pod("ns", "p"), id="null fields"),
        pytest.param({"spec": {"hostNetwork": True}}, Pod("ns", "p", host_network=True), id="host network"),
        pytest.param({"status": {"phase": "Succeeded"}}, Pod("ns", "p", finished=True), id="succeeded"),
        pytest.param({"status": {"phase": "Failed"}}, Pod("ns", "p", finished=True), id="failed"),
        pytest.param({"status": {"phase": "Running"}}, Pod("ns", "p"), id="running"),
        pytest.param({"status": {"phase": "Unknown"}}, Pod("ns", "p"), id="unknown is live"),
        pytest.param(
            {"metadata": {"namespace": "ns", "name": "p", "deletionTimestamp": "2024-01-01T00:00:00Z"}},
            Pod("ns", "p", terminating=True),
            id="terminating",
        ),
    ],
)
def test_pods(parts: dict[str, object], value: Pod) -> None:
    """What else policy needs of a pod."""
    assert pod(**parts) == (value, [])


def test_a_pod_that_cannot_be_read_is_named() -> None:
    """There is no value, but the error says whose it is."""
    assert pod(metadata={"namespace": "ns", "name": "p", "labels": {"a": 1}}) == (None, ["metadata.labels[a]: Expected `str`, got `int`"])
    assert pod(spec={"containers": [{"ports": [{}]}]}) == (
        None,
        ["spec.containers[0].ports[0]: Object missing required field `containerPort`"],
    )


def test_namespaces() -> None:
    """Name and labels."""
    decoded = decode_namespace(b'{"metadata": {"name": "n", "labels": {"b": "2", "a": "1"}}}')
    assert (decoded.value, decoded.errors) == (Namespace("n", (("a", "1"), ("b", "2"))), ())


def test_nodes() -> None:
    """Internal and external addresses, and all pod CIDRs; what is bad is reported by its path and left out."""
    decoded = decode_node(
        json.dumps(
            {
                "metadata": {"name": "n"},
                "spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["fd00::/64", "10.0.0.0/33", "10.0.0.0/24"]},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": "192.0.2.1"},
                        {"type": "Hostname", "address": "n"},
                        {"type": "ExternalIP", "address": "2001:db8::1"},
                        {"type": "InternalIP", "address": "n"},
                        {"type": "InternalDNS", "address": "192.0.2.9"},
                        {"type": "ExternalIP", "address": "::"},
                    ]
                },
            }
        ).encode()
    )
    addresses = (parse_address("2001:db8::1"), parse_address("192.0.2.1"))
    assert decoded.value == Node("n", tuple(sorted(addresses)), (parse_network("10.0.0.0/24"), parse_network("fd00::/64")))
    assert [str(error) for error in decoded.errors] == [
        "Node n: status.addresses[3].address: 'n' is not an IP address",
        "Node n: status.addresses[5].address: '::' is the unspecified address, which nobody has",
        "Node n: spec.podCIDRs[1]: '10.0.0.0/33' is not a CIDR",
    ]


@pytest.mark.parametrize(
    ("spec", "cidrs", "errors"),
    [
        pytest.param({"podCIDR": "10.0.0.0/24"}, ("10.0.0.0/24",), [], id="podCIDR alone"),
        pytest.param({"podCIDR": "", "podCIDRs": None}, (), [], id="empty"),
        pytest.param(
            {"podCIDRs": ["::ffff:10.0.0.77/120", "::ffff:10.0.0.0/96", "::ffff:0:0/95"]},
            ("0.0.0.0/0", "::fffe:0:0/95", "10.0.0.0/24"),
            [],
            id="IPv4-mapped ranges",
        ),
        pytest.param({"podCIDR": "10.0.0.0"}, (), ["Node n: spec.podCIDR: '10.0.0.0' is not a CIDR"], id="a bad podCIDR"),
        pytest.param(None, (), [], id="no spec"),
    ],
)
def test_pod_cidrs_of_a_node(spec: object, cidrs: tuple[str, ...], errors: list[str]) -> None:
    """spec.podCIDR counts where podCIDRs are missing."""
    decoded = decode_node(json.dumps({"metadata": {"name": "n"}, "spec": spec}).encode())
    assert decoded.value == Node("n", (), tuple(map(parse_network, cidrs)))
    assert [str(error) for error in decoded.errors] == errors
