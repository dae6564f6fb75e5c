"""The last written state on disk, so that a node that boots is closed before its first pod starts.

A file is a line that names the format and its version, the SHA-256 of what follows, and the ruleset. It is written beside the old
one and renamed over it, so that there is always a whole one; behind symbolic links, which stay. What is there and no file (a device, a
directory) is left alone. A file that is damaged, cut off or of another version is refused by name.
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from netpol.errors import NetpolError
from netpol.model import Family, Network
from netpol.rules.ruleset import Chain, Ruleset, TableName
from netpol.rules.sets import Set, SetKind

FORMAT = b"netpol state 2\n"
_DIGEST = 32


class SavedStateError(NetpolError):
    """A state that cannot be saved, or a saved one that cannot be used; says which file, and why."""


class _Set(Struct, frozen=True, array_like=True):
    kind: SetKind
    family: Family
    members: list[bytes]
    net: Network | None = None


class _Content(Struct, frozen=True):
    table: TableName
    hooked: list[Family]
    chains: dict[Family, dict[str, bytes]]  # rules as `Chain` has them packed
    sets: dict[str, _Set]


def save(path: Path, ruleset: Ruleset) -> None:
    """Writes the ruleset to a file, atomically and durably; one that holds it already is left as it is. SavedStateError where it cannot.

    The same ruleset gives the same bytes.
    """
    content = _Content(
        ruleset.table,
        sorted(ruleset.hooked),
        {family: {name: chain.packed for name, chain in sorted(chains.items())} for family, chains in sorted(ruleset.chains.items())},
        {name: _Set(found.kind, found.family, sorted(found.each()), found.net) for name, found in sorted(ruleset.sets.items())},
    )
    payload = msgspec.msgpack.encode(content)
    whole = FORMAT + sha256(payload).digest() + payload
    try:
        if not _holds(path, whole):
            _write(path.resolve(), whole)
    except (OSError, ValueError) as error:  # ValueError: the path is no file's
        reason = error.strerror if isinstance(error, OSError) else error
        raise SavedStateError(f"the state could not be saved: {path}: {reason}") from error


def _write(path: Path, whole: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(whole)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _holds(path: Path, data: bytes) -> bool:
    """ValueError where something is there that is no file."""
    return _size(path) == len(data) and path.read_bytes() == data


def _size(path: Path) -> int | None:
    """Of the file; None where there is none, ValueError where something else is there: not to be written over, nor read to no end."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("this is a directory" if stat.S_ISDIR(found.st_mode) else "this is no file, but a device, a pipe or a socket")
    return found.st_size


def load(path: Path) -> Ruleset | None:
    """The ruleset of a file; None where there is no file. SavedStateError names the file and what is wrong with it."""
    try:
        if _size(path) is None:
            return None
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SavedStateError(f"{path}: {reason}") from error
    if not data.startswith(FORMAT):
        raise SavedStateError(f"{path}: not a state that this version of netpol wrote")
    digest, payload = data[len(FORMAT) : len(FORMAT) + _DIGEST], data[len(FORMAT) + _DIGEST :]
    if sha256(payload).digest() != digest:
        raise SavedStateError(f"{path}: damaged: its checksum does not fit")
    try:
        content = msgspec.msgpack.decode(payload, type=_Content)
    except msgspec.DecodeError as error:
        raise SavedStateError(f"{path}: {error}") from error
    chains = {family: {name: Chain.of_packed(name, packed) for name, packed in found.items()} for family, found in content.chains.items()}
    sets = {name: Set(name, found.kind, found.family, frozenset(found.members), found.net) for name, found in content.sets.items()}
    return Ruleset(chains, sets, frozenset(content.hooked), content.table)
