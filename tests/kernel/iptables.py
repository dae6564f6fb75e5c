"""The real iptables: what it hands to the kernel, what it shows, and how it is called for a family."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

from netpol.model import Family
from tests.referees import require, run

TOOL: dict[Family, str] = {4: "iptables-legacy", 6: "ip6tables-legacy"}
HOOKS = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "raw": ("PREROUTING", "OUTPUT"),
}
_HEADER = struct.Struct("=32s3I5I5IIQ")


class Replace(NamedTuple):
    """A SET_REPLACE as it was made: the fields of struct ipt_replace, and the entries behind it."""

    table: str
    valid_hooks: int
    entries: int
    hook_entry: tuple[int, ...]
    underflow: tuple[int, ...]
    counters: int
    blob: bytes


def parse_replace(raw: bytes) -> Replace:
    name, valid_hooks, entries, size, *offsets, counters, _ = _HEADER.unpack_from(raw)
    assert size == len(raw) - _HEADER.size
    return Replace(name.rstrip(b"\0").decode(), valid_hooks, entries, tuple(offsets[:5]), tuple(offsets[5:]), counters, raw[_HEADER.size :])


def restore(family: Family, text: str, *flags: str) -> None:
    run(f"{TOOL[family]}-restore", *flags, input=text)


def captured(family: Family, text: str, log: Path) -> Replace:
    """Lets `iptables-legacy-restore` load a text; the SET_REPLACE it made."""
    require("strace", f"{TOOL[family]}-restore")
    run("strace", "-xx", "-s", "40000000", "-e", "trace=setsockopt", "-o", str(log), f"{TOOL[family]}-restore", input=text)
    found = re.search(r'SO_SET_REPLACE, "((?:\\x[0-9a-f]{2})+)"', log.read_text())
    assert found, log.read_text()[:1000]
    return parse_replace(bytes.fromhex(found[1].replace("\\x", "")))


def table_text(table: str, chains: dict[str, list[str]], policies: dict[str, str] | None = None) -> str:
    """The text of a table for `restore`: user chains, and the rules (without their `-A chain`) of all chains."""
    head = [f":{name} {(policies or {}).get(name, 'ACCEPT')} [0:0]" for name in HOOKS[table]]
    user = [f":{name} - [0:0]" for name in chains if name not in HOOKS[table]]
    rules = [f"-A {name} {rule}".rstrip() for name, lines in chains.items() for rule in lines]
    return "\n".join([f"*{table}", *head, *user, *rules, "COMMIT"]) + "\n"


def saved(family: Family, table: str = "mangle", counters: bool = False) -> list[str]:
    """The lines of `iptables-save` for a table, comments left out; without counters those of chains are left out as well."""
    lines = [line for line in run(f"{TOOL[family]}-save", *(["-c"] if counters else []), "-t", table).splitlines() if line[0] != "#"]
    return lines if counters else [re.sub(r" \[\d+:\d+\]$", "", line) if line[0] == ":" else line for line in lines]
