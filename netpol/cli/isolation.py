"""Whom policies isolate on a node, in words. That it is nobody is easily a mistake in the manifests, and without a word it looks well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netpol.cli.counted import counted

if TYPE_CHECKING:
    from netpol.model import Pod
    from netpol.policy.cluster import Cluster
    from netpol.rules.compile import NodeState

MOST = 3
"""Nodes that are named."""


def tell(state: NodeState) -> None:
    """Says how many of the node's pods are isolated; on standard error, and why, where there are policies and it is none."""
    text, is_mistake = words(state)
    click.echo(text, err=is_mistake)


def words(state: NodeState) -> tuple[str, bool]:
    """What `tell` says, and whether it is most likely a mistake."""
    from netpol.model import DIRECTIONS

    here = _here(state.cluster, state.node)
    count = sum(bool(pod.addresses) and any(state.isolating(pod, direction) for direction in DIRECTIONS) for pod in here)
    policies = counted(len(state.cluster.policies), "policy", "policies")
    if not count and state.cluster.policies:
        return _warning(state.cluster, state.node), True
    return f"{_named(state.node)}: {count} of {counted(len(here), 'pod')} isolated, {policies} in all", False


def warn(cluster: Cluster, node: str) -> None:
    """Says that nothing is isolated on the node, and why."""
    click.echo(_warning(cluster, node), err=True)


def _warning(cluster: Cluster, node: str) -> str:
    return f"netpol: nothing is isolated on {_named(node)}: {_why(cluster, node)}"


def _why(cluster: Cluster, node: str) -> str:
    pods, here = list(cluster.all_pods()), _here(cluster, node)
    if not pods:
        return "the manifests hold no pod"
    if not here:
        names = sorted({pod.node for pod in pods})
        places = ", ".join(map(_named, names[:MOST])) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
        return f"{counted(len(pods), 'pod of the manifests is', 'pods of the manifests are')} on {places} (spec.nodeName)"
    if bare := sum(not pod.addresses for pod in here):
        return f"{bare} of its {counted(len(here), 'pod')} without an address (status.podIP), and no policy selects another"
    return f"of its {counted(len(here), 'pod')} none is selected by a policy"


def _here(cluster: Cluster, node: str) -> list[Pod]:
    """The pods of a node that can be isolated."""
    return [pod for pod in cluster.all_pods() if pod.node == node and not pod.host_network and not pod.finished]


def _named(node: str) -> str:
    return f"node {node}" if node else "the node without a name"
