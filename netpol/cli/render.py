"""`netpol render`: what the kernel of a node should hold for the given manifests, as text or JSON. Nothing is programmed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from netpol.cli import options

if TYPE_CHECKING:
    from netpol.rules.compile import Settings
    from netpol.rules.ruleset import Ruleset

PARTS = ("sets", "ipv4", "ipv6")


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="PATH", help="Manifests: a file, a directory, or - (repeatable)."
)
@click.option("--node", default=None, help="The node to render for.  [default: the only one that the pods name]")
@click.option(
    "--pod-cidr",
    "cidrs",
    multiple=True,
    default=("10.244.0.0/16",),
    show_default=True,
    metavar="CIDR",
    help="Ranges of the node's pods where they are given; pods without an address get one of them (repeatable).",
)
@options.unknown_pods
@options.form
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For the real tools, or for programs."
)
@click.option("--part", type=click.Choice(["all", *PARTS]), default="all", show_default=True, help="Which part of the text.")
def render(files: tuple[str, ...], node: str | None, cidrs: tuple[str, ...], settings: Settings, form: str, part: str) -> None:
    """Print the sets and rules that a node's kernel should hold.

    Each part of the text can be loaded by a real tool: sets by `ipset restore`, ipv4 by `iptables-legacy-restore`, ipv6 by
    `ip6tables-legacy-restore`. Load the sets first.
    """
    import msgspec
    from msgspec.structs import replace

    from netpol.cli import isolation
    from netpol.cli.files import node_name, parse_ranges, read_cluster
    from netpol.rules.compile import compiled
    from netpol.rules.ruleset import EGRESS, INGRESS

    cluster = read_cluster(files, cidrs)
    name = node_name(cluster.all_pods(), node)
    if click.get_current_context().get_parameter_source("cidrs") is not ParameterSource.DEFAULT:
        settings = replace(settings, pod_cidrs=tuple(parse_ranges(cidrs)))
    ruleset = compiled(cluster, name, settings)
    if cluster.policies and not any(root in chains for chains in ruleset.chains.values() for root in (EGRESS, INGRESS)):
        isolation.warn(cluster, name)
    if form == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(as_data(ruleset, name))).decode())
        return
    texts = as_texts(ruleset)
    if part != "all":
        click.echo(texts[part], nl=False)
        return
    tools = {"sets": "ipset restore", "ipv4": "iptables-legacy-restore", "ipv6": "ip6tables-legacy-restore"}
    click.echo("\n".join(f"# {tools[key]}\n{texts[key]}" for key in PARTS), nl=False)


def as_texts(ruleset: Ruleset) -> dict[str, str]:
    """The three parts as the real tools read them."""
    from netpol.rules.text import ipset_save, iptables_save

    return {"sets": ipset_save(ruleset), "ipv4": iptables_save(ruleset, 4), "ipv6": iptables_save(ruleset, 6)}


def as_data(ruleset: Ruleset, node: str) -> dict[str, object]:
    """The same as plain data: sets with their members, chains with their rules as text."""
    from netpol.rules.text import member_text, rule_text

    sets = [
        {"name": found.name, "type": found.kind, "family": found.family, "members": [member_text(found, m) for m in sorted(found.members)]}
        for _, found in sorted(ruleset.sets.items())
    ]
    chains = {
        f"ipv{family}": {name: [rule_text(rule, family) for rule in chain.rules] for name, chain in sorted(chains.items())}
        for family, chains in ruleset.chains.items()
    }
    return {"node": node, "table": ruleset.table, "sets": sets, "chains": chains}
