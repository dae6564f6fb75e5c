"""`netpol restore`: puts the last written state back at boot, before any pod starts."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from netpol.cli import options
from netpol.cli.counted import counted

if TYPE_CHECKING:
    from netpol.rules.compile import Settings
    from netpol.rules.ruleset import Ruleset


class _AtBoot(click.Command):
    """A variable that cannot be, most likely in the agent's file of settings, keeps no saved state from being put back: it is told, and
    does not count. An argument that cannot be is refused."""

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        while True:
            try:
                return super().make_context(info_name, list(args), parent, **extra)
            except click.BadParameter as error:
                variable = _variable(error)
                if variable is None:
                    raise
                click.echo(f"netpol: {error.format_message()}; it does not count", err=True)
                del os.environ[variable]


def _variable(error: click.BadParameter) -> str | None:
    """That which said what cannot be; None where it was an argument."""
    if error.ctx is None or error.param is None or error.param.name is None:
        return None
    is_said = error.ctx.get_parameter_source(error.param.name) is ParameterSource.ENVIRONMENT
    return error.param.envvar if is_said and isinstance(error.param.envvar, str) else None


@click.command(cls=_AtBoot)
@options.saved_state("Where the last written state was saved.")
@click.option(
    "--boot", type=click.Choice(["open", "closed"]), default="open", show_default=True, help="What to do where no state was saved."
)
@options.pod_cidrs("none, and --boot=closed needs them")
@partial(options.form, must_fit=False)
def restore(state: str, boot: str, settings: Settings) -> None:
    """Load the saved state into this host's kernel, without a cluster; the agent adopts it when it comes.

    With no saved state, `--boot=open` programs nothing, and `--boot=closed` denies what is forwarded from and to the pod ranges, as the
    options for rules say; a saved state brings its own. One that is damaged, or of another version, is refused by name, and so is one that
    the kernel does not take: then `--boot=open` exits with 1, and `--boot=closed` closes. A variable that cannot be is told, and does not
    count.
    """
    from pathlib import Path

    from netpol.agent.saved import SavedStateError, load
    from netpol.errors import KernelError, MalformedKernelData
    from netpol.rules.compile.skeleton import closed

    try:
        wanted = load(Path(state))
        if wanted is not None:
            _put_back(wanted)
            return
    except (SavedStateError, KernelError, MalformedKernelData) as error:
        if boot == "open":
            raise
        click.echo(f"netpol: {error}; closed instead", err=True)
    if boot == "open":
        click.echo(f"{state}: no state was saved; nothing to do")
        return
    if not settings.pod_cidrs:
        raise click.UsageError("--boot=closed needs the ranges to deny: --pod-cidr")
    _put_back(closed(settings, settings.pod_cidrs))


def _put_back(wanted: Ruleset) -> None:
    """Makes the kernel hold it, and tells."""
    from netpol.errors import KernelError
    from netpol.kernel.ipset_errors import FIND_TYPE
    from netpol.rules.compile.front import without_fronts
    from netpol.rules.ruleset import is_front

    try:
        steps = _apply(wanted)
    except KernelError as error:
        if error.code != FIND_TYPE or not is_front(error.object):
            raise
        # The kernel lacks a set type that only saves time.
        wanted = without_fronts(wanted)
        steps = _apply(wanted)
    chains = counted(sum(map(len, wanted.chains.values())), "chain")
    click.echo(f"restored {chains} and {counted(len(wanted.sets), 'set')} in {counted(steps, 'step')}")


def _apply(wanted: Ruleset) -> int:
    """How many steps it took."""
    from netpol.kernel.apply import Kernel
    from netpol.rules.diff import diff

    with Kernel(wanted.table) as kernel:
        steps = diff(wanted, kernel.read())
        kernel.apply(steps)
    return len(steps)
