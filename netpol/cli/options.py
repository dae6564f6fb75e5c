"""Options that several commands share, each said once: its name, its default, its words, and its environment variable.

A command takes them as decorators. `settings` is all of those that shape the rules; it hands them over as one checked value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from netpol.model import Network

F = TypeVar("F", bound=Callable[..., Any])

LONGEST = 1e9
"""Seconds; nobody can wait for much longer."""

STATE = "/var/lib/netpol/state"
"""Where the unit of the agent has it saved."""

KUBERNETES_BITS = 0xC000
"""Bits that kube-proxy marks packets with, and that are copied into connmarks."""


def _option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option that --help shows with its default, and with its variable where it has one."""
    return click.option(*names, **{"show_default": True, "show_envvar": True, **attributes})


def table(command: F) -> F:
    return _option(
        "--table", type=click.Choice(["mangle", "filter"]), default="mangle", envvar="NETPOL_TABLE", help="The table that netpol is in."
    )(command)


def deny(command: F) -> F:
    return _option(
        "--deny",
        type=click.Choice(["drop", "reject"]),
        default="drop",
        envvar="NETPOL_DENY",
        help="What denied packets meet: silence, or an answer (TCP reset, ICMP administratively prohibited), which needs --table=filter.",
    )(command)


def log_group(command: F) -> F:
    return _option(
        "--log-group",
        type=click.IntRange(0, 65535),
        default=None,
        envvar="NETPOL_LOG_GROUP",
        metavar="N",
        help="Log denied packets to this NFLOG group, at most 10 a second for each pair of addresses.  [default: no log]",
    )(command)


def _bit(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        bit = int(value, 0)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number", ctx, param) from None
    if not 0 < bit < 1 << 32 or bit.bit_count() != 1:
        raise click.BadParameter(f"{value} is not one bit of 32", ctx, param)
    if bit & KUBERNETES_BITS:
        raise click.BadParameter(f"{value} is kube-proxy's: 0x4000 and 0x8000 mark its packets", ctx, param)
    return bit


def cut_bit(command: F) -> F:
    return _option(
        "--cut-bit",
        default="0x10000000",
        callback=_bit,
        envvar="NETPOL_CUT_BIT",
        metavar="BIT",
        help="The connmark bit of flows that were cut; no other program may use it.",
    )(command)


def cut_flows(command: F) -> F:
    return _option(
        "--cut-flows/--no-cut-flows",
        "cut_flows",
        default=True,
        envvar="NETPOL_CUT_FLOWS",
        help="Cut running flows that a change denies, in both directions; or let them live until they end.",
    )(command)


class Seconds(click.FloatRange):
    """A number of seconds, at least 0."""

    def __init__(self) -> None:
        super().__init__(0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not found <= LONGEST:  # nor is what is no number
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return found


def grace(command: F) -> F:
    return _option(
        "--grace",
        type=Seconds(),
        default=0.5,
        envvar="NETPOL_GRACE",
        metavar="SECONDS",
        help="At a first install on a node that tracked no connections: how long it learns what is running before it denies anything.",
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

    try:
        return tuple(parse_ranges(value))
    except click.BadParameter as error:
        # With these it names the variable, where that is where the value came from.
        raise click.BadParameter(error.message, ctx, param) from None


def pod_cidrs(default: str = "what the Node object says") -> Callable[[F], F]:
    """`default` says what holds without it."""
    return _option(
        "--pod-cidr",
        "pod_cidrs",
        callback=_networks,
        multiple=True,
        envvar="NETPOL_POD_CIDR",
        metavar="CIDR",
        help=f"Ranges of the node's pods (repeatable).  [default: {default}]",
    )


def state(command: F) -> F:
    return _option(
        "--state",
        default=None,
        metavar="FILE",
        envvar="NETPOL_STATE",
        help="Save what was written there, for `netpol restore`.  [default: not saved]",
    )(command)


def saved_state(words: str) -> Callable[[F], F]:
    """The same file for a command that reads it; `words` say what for."""
    return _option("--state", default=STATE, metavar="FILE", envvar="NETPOL_STATE", help=words)


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of the rules; the command gets them as one `settings`."""
    return form(unknown_pods(pod_cidrs()(command)))


def form(command: Callable[..., Any], must_fit: bool = True) -> Callable[..., Any]:
    """Those that say what rules look like, and not whom they are about; the command gets them, and the others it has, as one `settings`.

    must_fit -- what does not go together is refused; else it is told, and packets that are denied are dropped.
    """

    @functools.wraps(command)
    def gathered(*, table: str, deny: str, log_group: int | None, cut_bit: int, **others: Any) -> Any:
        from netpol.rules.compile import Settings

        if deny == "reject" and table != "filter":
            words = "--deny=reject needs --table=filter: the kernel takes REJECT in no other table"
            if must_fit:
                raise click.UsageError(words)
            click.echo(f"netpol: {words}; they are dropped", err=True)
            deny = "drop"
        about = {name: others.pop(name) for name in ("unknown_pods", "pod_cidrs") if name in others}
        given = Settings(table=table, deny=deny, log_group=log_group, cut_bit=cut_bit, **about)  # type: ignore[arg-type]  # of the choices
        return command(settings=given, **others)

    return table(deny(log_group(cut_bit(gathered))))
