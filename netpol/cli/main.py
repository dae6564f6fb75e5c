"""The `netpol` command: a table of commands, each loaded only when it runs.

Why a table: `netpol --help` must list every command without importing one of them, for some import much (the lab, tables of text,
a client of the API server). A row is name -> (module, one line of help); the module holds a click command of the same name.

Invariants: this module imports click and `netpol.errors` and nothing else of netpol; an error that netpol raises on purpose
ends as words on standard error, never as a traceback: exit code 2 for input that cannot be valid, 1 for everything else. So does a
disk that is full where the output goes. A reader who went away ends a command without a word.
What a command does, and its options, are its own module's business.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from contextlib import suppress
from typing import Any

import click

from netpol import __version__
from netpol.errors import NetpolError, exit_status, said

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what writing to a file may come to

COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("netpol.cli.agent", "Follow an API server, and enforce its policies on this node."),
    "apply": ("netpol.cli.apply", "Program this host's kernel from manifests on disk."),
    "bench": ("netpol.cli.bench", "Measure this node's kernel calls beside ipset and iptables, in private namespaces."),
    "cleanup": ("netpol.cli.cleanup", "Take everything of netpol's out of this host's kernel."),
    "demo": ("netpol.cli.demo", "Enforce policies on real packets in a private world, and show what happens."),
    "drops": ("netpol.cli.drops", "Print the agent's log of denied flows."),
    "matrix": ("netpol.cli.matrix", "Show which pods reach which: by the specification, the rules, or real packets."),
    "preflight": ("netpol.cli.preflight", "Look whether enforcement on this node would be real."),
    "render": ("netpol.cli.render", "Print the sets and rules that a node's kernel should hold."),
    "restore": ("netpol.cli.restore", "Put the last written state back at boot, before any pod starts."),
    "status": ("netpol.cli.status", "Show what netpol has programmed in this host's kernel."),
}


class Commands(click.Group):
    """A group whose commands are the rows of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None where there is no such row."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands of `--help`, from the table: click's own way would import each of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    # click types the value of a command as Any; it passes through untouched.
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NetpolError as error:
            click.echo(said(error), err=True)
            ctx.exit(exit_status(error))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # A reader who went away never comes here: click ends without a word.
            if error.errno not in FULL or error.filename is not None:
                raise
            with suppress(OSError):  # that may be full, too
                click.echo(f"netpol: the output cannot be written: {error.strerror}", err=True)
            _forget_output()
            sys.exit(1)


def _forget_output() -> None:
    """What is still to be written goes nowhere: the interpreter would try it again at its end."""
    with suppress(OSError, AttributeError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="netpol")
def main() -> None:
    """Kubernetes NetworkPolicy on a node, with ipset and legacy iptables, straight to the kernel."""


if __name__ == "__main__":
    main(prog_name="netpol")
