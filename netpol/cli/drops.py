"""`netpol drops`: the agent's drop log, for people."""

from __future__ import annotations

from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import click

from netpol.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILE = "/var/log/netpol/drops.json"
LOOK = 0.2  # seconds between two looks at a file that is followed

_REASONS = {
    "cut": "the flow was cut",
    "unknown_pod": "no known pod has the address",
    "link_local": "between link-local addresses",
    "changed": "the policies have changed since",
    "unjudged": "the agent could not tell why",
}


def _pod(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """A pod's name with its namespace; a name alone would be found nowhere, and say nothing."""
    if name is not None and not all(name.partition("/")):
        raise click.BadParameter(f"{name!r} is not NAMESPACE/NAME")
    return name


@click.command()
@click.argument("file", envvar="NETPOL_DROP_LOG", default=FILE)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, also when the agent begins a new file, until it is interrupted.")
@click.option("-n", "--namespace", default=None, metavar="NAME", help="Only flows that begin or end in this namespace.")
@click.option("--pod", default=None, metavar="NAMESPACE/NAME", callback=_pod, help="Only flows that begin or end at this pod.")
def drops(file: str, follow: bool, namespace: str | None, pod: str | None) -> None:
    """Print the drop log FILE that `netpol agent --drop-log FILE` writes, a line for each denied flow. - is standard input.

    FILE is $NETPOL_DROP_LOG or /var/log/netpol/drops.json where it is not given. Lines of the agent's own log among them are passed over
    where they are JSON (--log-format json). docs/drops.md explains the lines.
    """
    import msgspec

    unreadable = 0
    with suppress(KeyboardInterrupt):
        for raw in _read(file, follow):
            try:
                line = msgspec.json.decode(raw, type=dict[str, Any])
                if "level" in line and "logger" in line:
                    continue  # the agent's own log, where one file has both
                words = describe(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
                unreadable += 1
                continue
            if _wanted(line, namespace, pod):
                click.echo(printable(words))  # nobody vouches for what a file or a pipe holds
    if unreadable:
        click.echo(f"{unreadable} lines are none of a drop log", err=True)


def describe(line: Mapping[str, Any]) -> str:
    """A line of the log in words. KeyError or TypeError where it is none."""
    if "left_out" in line:
        words = f"{line['left_out']} packets of others were left out"
        lost, unreadable = line.get("lost", 0), line.get("unreadable", 0)
        return f"{line['time']}  {words}" + (f", {lost} lost" if lost else "") + (f", {unreadable} unreadable" if unreadable else "")
    what = str(line["protocol"])
    if "port" in line:
        what += f" port {line['port']}"
    elif "icmp_type" in line:
        what += f" type {line['icmp_type']} code {line.get('icmp_code', 0)}"
    ends = " -> ".join(_end(line, end) for end in ("source", "destination"))
    return f"{line['time']}  {ends}  {what}  {_why(line)}" + (f"  ({line['packets']} packets)" if line.get("packets", 1) > 1 else "")


def _end(line: Mapping[str, Any], end: str) -> str:
    name, address = str(line[end]), str(line[f"{end}_address"])
    return name if name == address else f"{name} ({address})"


def _why(line: Mapping[str, Any]) -> str:
    by = f"{line['direction']} policies {', '.join(line['policies'])}" if line.get("policies") else ""
    reason = _REASONS.get(line["reason"])
    if reason is None:
        return f"denied by {by}"
    return f"denied: {reason}" + (f", {by}" if by else "") + (" (a reply)" if line.get("reply") else "")


def _wanted(line: Mapping[str, Any], namespace: str | None, pod: str | None) -> bool:
    ends = [str(line.get(end, "")) for end in ("source", "destination")]
    return ("left_out" in line and namespace is None and pod is None) or (
        "left_out" not in line
        and (namespace is None or any(end.startswith(f"{namespace}/") for end in ends))
        and (pod is None or pod in ends)
    )


def _read(file: str, follow: bool) -> Iterator[bytes]:
    """The lines; what cannot be read is said."""
    try:
        yield from _lines(file, follow)
    except OSError as error:
        hint = ": an agent writes it where it runs with --drop-log" if isinstance(error, FileNotFoundError) else ""
        raise click.ClickException(f"{file}: {error.strerror or error}{hint}") from None


def _lines(file: str, follow: bool) -> Iterator[bytes]:
    """Whole lines of a file; while it is followed, those that come, and those of the file that takes its place."""
    import os
    import sys
    import time

    if file == "-":
        yield from sys.stdin.buffer
        return
    while True:
        with open(file, "rb") as source:
            begin, moved = 0, False
            while True:
                found = source.readline()
                if found.endswith(b"\n"):
                    begin += len(found)
                    yield found
                    continue
                if moved or not follow:
                    break
                # Once it has moved, what came between reading and looking is read first.
                moved = _is_another(file, source)
                if not moved:
                    time.sleep(LOOK)
                if source.seekable():
                    # Of half a line nothing is kept: who wrote it may take it back, and all before it where he empties the file.
                    end = source.seek(0, os.SEEK_END)
                    begin = begin if begin <= end else 0
                    source.seek(begin)
        if not follow:
            return


def _is_another(file: str, source: IO[bytes]) -> bool:
    """Whether the name belongs to another file by now."""
    import os

    try:
        return os.stat(file).st_ino != os.fstat(source.fileno()).st_ino
    except FileNotFoundError:
        return False
