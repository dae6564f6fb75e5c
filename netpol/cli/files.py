"""Manifests named on a command line -> a cluster, with the errors of bad input left to the command's caller."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from netpol.model import Network, Object, Pod, parse_network

if TYPE_CHECKING:
    from netpol.policy.cluster import Cluster


def read_cluster(paths: Sequence[str], cidrs: Sequence[str]) -> Cluster:
    """The cluster that the manifests describe; pods without an address get one out of `cidrs`."""
    from netpol.kube.manifests import assign_addresses, load
    from netpol.policy.cluster import Cluster

    cluster = Cluster()
    for item in assign_addresses(load(paths), parse_ranges(cidrs)):
        cluster.put(item)
    return cluster


def parse_ranges(cidrs: Sequence[str]) -> list[Network]:
    """The values of --pod-cidr."""
    try:
        return [parse_network(text) for text in cidrs]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--pod-cidr") from None


def node_name(objects: Iterable[Object], asked: str | None) -> str:
    """The node that was asked for, or the one that all pods are on; pods that name none are on one implicit node, called ""."""
    names = sorted({item.node for item in objects if isinstance(item, Pod)})
    if asked is None and len(names) > 1:
        raise click.UsageError(f"the pods are on several nodes: say which with --node ({', '.join(repr(name) for name in names)})")
    return asked if asked is not None else names[0] if names else ""
