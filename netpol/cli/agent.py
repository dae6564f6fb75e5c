"""`netpol agent`: follows an API server and enforces its policies on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netpol.cli import options

if TYPE_CHECKING:
    from netpol.rules.compile import Settings

LISTEN = "127.0.0.1:9479"
OFF = "off"


def _address(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, int] | None:
    """HOST:PORT, [IPV6]:PORT or :PORT for every address; "off" is none."""
    if value == OFF:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and host[:1] + host[-1:] != "[]"):
        raise click.BadParameter(f"{value!r} is not HOST:PORT, [ADDRESS]:PORT, :PORT or {OFF}")
    return host.strip("[]"), int(port)


@click.command(context_settings={"show_default": True})
@click.option(
    "--node", show_envvar=True, envvar=["NETPOL_NODE", "NODE_NAME"], default=None, help="This node's name.  [default: the host's name]"
)
@click.option(
    "--kubeconfig",
    show_envvar=True,
    envvar="NETPOL_KUBECONFIG",
    default=None,
    metavar="PATH",
    help="How to reach the API server.  [default: $KUBECONFIG, else the pod's service account, else ~/.kube/config]",
)
@click.option(
    "--context",
    show_envvar=True,
    envvar="NETPOL_CONTEXT",
    default=None,
    metavar="NAME",
    help="Which context of it.  [default: its current one]",
)
@options.settings
@options.cut_flows
@options.grace
@click.option(
    "--audit-interval",
    show_envvar=True,
    envvar="NETPOL_AUDIT_INTERVAL",
    type=options.Seconds(),
    default=10.0,
    metavar="SECONDS",
    help="How often everything in the kernel is read back and compared; 0 is never.",
)
@click.option(
    "--drop-log",
    show_envvar=True,
    envvar="NETPOL_DROP_LOG",
    default=None,
    metavar="FILE",
    help="A JSON line there for each denied flow, - is standard output; --log-group is 9479 then, unless it is given.  [default: no log]",
)
@options.state
@click.option(
    "--events/--no-events",
    show_envvar=True,
    envvar="NETPOL_EVENTS",
    default=False,
    help="Write a Kubernetes Event on a NetworkPolicy that cannot be understood (needs the right to create Events).",
)
@click.option(
    "--listen",
    show_envvar=True,
    envvar="NETPOL_LISTEN",
    callback=_address,
    default=LISTEN,
    metavar="HOST:PORT",
    help=f"Where /healthz, /readyz and /metrics are; {OFF}: nowhere.",
)
@click.option(
    "--log-format",
    show_envvar=True,
    envvar="NETPOL_LOG_FORMAT",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How the log is written.",
)
@click.option(
    "--log-level",
    show_envvar=True,
    envvar="NETPOL_LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="From which level on.",
)
def agent(
    node: str | None,
    kubeconfig: str | None,
    context: str | None,
    settings: Settings,
    cut_flows: bool,
    grace: float,
    audit_interval: float,
    drop_log: str | None,
    state: str | None,
    events: bool,
    listen: tuple[str, int] | None,
    log_format: str,
    log_level: str,
) -> None:
    """Follow an API server, and enforce its NetworkPolicies on this node, until TERM or INT comes.

    Nothing is written before all objects are known; what a predecessor left in the kernel is adopted. When the API server is away the
    last rules stay, and they stay when the agent ends: `netpol cleanup` takes them away. Settings change by a restart, which costs no
    packet.
    """
    from netpol.agent.service import heed_signals

    ends = heed_signals()  # before the rest is imported, which takes a while
    import os
    import sys
    from pathlib import Path

    from netpol.kernel.heap import one_heap

    one_heap()  # before whatever else is imported starts a thread
    from msgspec.structs import replace

    from netpol.agent.daemon import Options, run
    from netpol.agent.drops import GROUP
    from netpol.agent.logs import configure
    from netpol.errors import NetpolError, exit_status

    # Who closed it hears nothing.
    output = sys.stderr.fileno() if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    log = configure(log_format, log_level, output)  # type: ignore[arg-type]  # one of the choices
    if drop_log is not None and settings.log_group is None:
        settings = replace(settings, log_group=GROUP)
    chosen = Options(
        # As a kubelet calls its node.
        node=node or os.uname().nodename.strip().lower(),
        kubeconfig=kubeconfig,
        context=context,
        settings=settings,
        audit_interval=audit_interval,
        state=Path(state) if state is not None else None,
        events=events,
        listen=listen,
        cut=cut_flows,
        grace=grace,
        drop_log=drop_log,
    )
    try:
        run(chosen, ends)
    except NetpolError as error:
        if log_format == "text":
            raise
        # Whoever reads the log as JSON reads why it ends there, too.
        log.error("%s", error)
        sys.exit(exit_status(error))
