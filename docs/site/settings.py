"""Writes docs/settings.md: every command's options with their variables and defaults, as click knows them.

`python -m docs.site.settings` writes the page; a test compares it with what this gives now, so that no option is ever missing in it,
and none is in it that is gone. What only the environment says is written here by hand (`ENVIRONMENT`).
"""

from __future__ import annotations

from pathlib import Path

import click

from netpol.cli.main import COMMANDS, main

PAGE = Path(__file__).parents[1] / "settings.md"
INTRODUCTION = """# Settings

Made by `make settings` from the commands themselves. An option goes before its variable, a variable before the default. A switch's variable
is `true` or `false`; several values in one variable are separated by blanks. Settings change by a restart, which costs no packet.
"""
ENVIRONMENT = """
## Environment

What has no option:

| variable | read by | what it is |
|---|---|---|
| `KUBECONFIG` | `agent` | where `--kubeconfig` is not given: files, separated by colons |
| `KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT` | `agent` | in a pod: the API server, with the pod's service account |
| `HTTPS_PROXY`, `NO_PROXY` | `agent` | the proxy through which it reaches the API server; addresses that it reaches without one |
| `XTABLES_LOCKFILE` | what changes tables | iptables' lock, where it is not `/run/xtables.lock` |
| `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID` | `agent` | set by systemd: where it says that it is ready and alive |
| `NO_COLOR`, `COLUMNS` | what prints tables | no colours; the width |
| `SHELL` | `demo --keep` | the shell that it opens |
| `PATH` | `bench` | where ipset and iptables are, besides the system's own folders |
"""
ARGUMENTS = {("drops", "file"): "The log to read."}
"""Words for what is no option: click has none."""


def page() -> str:
    """The whole page."""
    context = click.Context(main)
    parts = [INTRODUCTION]
    for name in sorted(COMMANDS):
        command = main.get_command(context, name)
        assert command is not None
        rows = "".join(_row(command, one) for one in command.params)
        table = f"| option | variable | default | what it does |\n|---|---|---|---|\n{rows}" if rows else "It has no options.\n"
        parts.append(f"\n## netpol {name}\n\n{COMMANDS[name][1]}\n\n{table}")
    return "".join(parts) + ENVIRONMENT


def _row(command: click.Command, one: click.Parameter) -> str:
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts)) if isinstance(one, click.Option) else ""
    kind = "" if getattr(one, "is_flag", False) else f" {_code(one.make_metavar(click.Context(command)))}"
    variables = [one.envvar] if isinstance(one.envvar, str) else one.envvar or ()
    words, _, said = str(getattr(one, "help", None) or ARGUMENTS[command.name or "", one.name or ""]).partition("  [default: ")
    value = one.to_info_dict()["default"]
    default = said.removesuffix("]") or ("" if value in (None, (), False) or "UNSET" in repr(value) else _code(_text(value)))
    if isinstance(one, click.Option) and one.secondary_opts:
        default = _code((one.opts if value else one.secondary_opts)[0])
    return f"| {f'{names}{kind}'.strip()} | {', '.join(map(_code, variables))} | {default} | {words.replace('|', chr(92) + '|')} |\n"


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    PAGE.write_text(page())
