"""Options that several commands share, each said once: its name, its default, its words, and its environment variable.

A command takes them as decorators. What the values mean is `netpol.rules.compile.Settings`' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from netpol.model import Network

F = TypeVar("F", bound=Callable[..., Any])


def _option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option that --help shows with its default, and with its variable where it has one."""
    return click.option(*names, **{"show_default": True, "show_envvar": True, **attributes})


def table(command: F) -> F:
    return _option(
        "--table", type=click.Choice(["mangle", "filter"]), default="mangle", envvar="NETPOL_TABLE", help="The table to program."
    )(command)


def unknown_pods(command: F) -> F:
    return _option(
        "--unknown-pods",
        type=click.Choice(["auto", "deny", "allow"]),
        default="auto",
        envvar="NETPOL_UNKNOWN_PODS",
        help="What happens to unknown addresses of the node's pod CIDRs: denied while a pod that will be isolated starts, always denied"
        " while there is any policy (which costs each new pod its first second), or allowed.",
    )(command)


def _networks(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[Network, ...]:
    from netpol.cli.files import parse_ranges

    return tuple(parse_ranges(value))


def pod_cidrs(command: F) -> F:
    return _option(
        "--pod-cidr",
        "pod_cidrs",
        callback=_networks,
        multiple=True,
        envvar="NETPOL_POD_CIDR",
        metavar="CIDR",
        help="Ranges of the node's pods (repeatable).  [default: what the Node object says]",
    )(command)


def state(command: F) -> F:
    return _option(
        "--state",
        default=None,
        metavar="FILE",
        envvar="NETPOL_STATE",
        help="Save what was written there, for `netpol restore`.  [default: not saved]",
    )(command)
