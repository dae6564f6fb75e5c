"""Manifests on disk as a source of events: what changed in the files is said as an API server would say it.

The first time everything is said, with the end of every kind; then, whenever the files change, what differs, in one call: a policy that
got another name never leaves a moment without either. Files that cannot be understood change nothing, and are reported. Nothing is read
while somebody writes one of the files, and what changed while it was read is read again: half a file is another cluster.

The kernel tells of changes in the folders that were named. What it does not tell of (behind symbolic links, on a file system of another
host) is found by a look every `GLANCE` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from netpol.agent.enforcer import identity
from netpol.agent.lasting import lasting
from netpol.errors import InvalidManifests, InvalidObject, KernelError
from netpol.kernel.inotify import Watcher
from netpol.kernel.leases import is_being_written
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.kube.manifests import Stamp, load, stamp
from netpol.model import Namespace, Node, Object, Pod, Policy

KINDS: tuple[type[Object], ...] = (Namespace, Node, Pod, Policy)
GLANCE = 2.0  # seconds
AGAIN = 0.1  # the same, while somebody writes
SETTLED = 5.0  # seconds after which nothing that looks the same may have been written in the same tick of a clock
SLOW = 30.0  # seconds: who writes a file for longer is named
_Key = tuple[type[Object], str, str]


class FileSource:
    """See the module. `hear` is the loop's; `complain` is told what is wrong with the files, by the thread that reads them."""

    def __init__(self, paths: Sequence[str], hear: Callable[..., None], complain: Callable[[InvalidManifests | KernelError], None]) -> None:
        self._paths, self._hear, self._complain = tuple(paths), hear, complain
        self._said: dict[_Key, Object] = {}
        self._seen: Stamp | None = None  # of what was read last
        self._changed = float("-inf")  # when the files were seen to look otherwise
        self._since: float | None = None  # from when on somebody has been writing
        self._named = False  # whether that was told
        self._told = ""

    def say(self, objects: Sequence[Object], seen: Stamp) -> None:
        """These are all the objects that there are, read when the files had this stamp."""
        self._seen, self._told = seen, ""
        self._changed = time.monotonic()
        now = _by_key(objects)
        events: list[Event] = [Gone(kind, name, namespace) for kind, namespace, name in self._said.keys() - now.keys()]
        events += [Put(item) for key, item in now.items() if self._said.get(key) != item]
        events += [Synced(kind) for kind in KINDS]
        self._said = now
        self._hear(*events)

    def start(self) -> None:
        """Begins to follow the files in a thread that ends with the process. KernelError where they cannot be watched."""
        watcher = Watcher(self._paths)
        lasting("files", lambda: self._follow(watcher)).start()

    def _follow(self, watcher: Watcher) -> None:
        refused = ""
        while True:
            done = True
            try:
                watcher.refresh()
                refused = ""
                done = self.look()
            except KernelError as error:
                if str(error) != refused:
                    refused = str(error)
                    self._complain(error)
            watcher.wait(GLANCE if done else AGAIN)

    def look(self) -> bool:
        """Reads what changed, if something did; False where somebody is writing, so that it is to be done again soon. For one thread."""
        # What else is written in a folder, a log of ours perhaps, is no change.
        seen, before = stamp(self._paths), self._seen
        if before is None or not seen.looks_like(before):
            self._changed = time.monotonic()
        elif seen != before and time.monotonic() - self._changed > SETTLED:
            self._seen = before = seen  # a file from the future, of a clock that was set back, would look just written for as long
        if seen == before:
            self._since, self._named = None, False
            return True
        if self._is_kept_from(_open(seen)):
            return False
        try:
            objects, mistake = load(self._paths), None
        except InvalidManifests as error:
            objects, mistake = (), error
        if self._is_kept_from(_open(seen) or seen.torn(stamp(self._paths))):
            return False
        self._seen, self._since, self._named = seen, None, False
        if mistake is not None:
            if str(mistake) != self._told:
                self._told = str(mistake)
                self._complain(mistake)
        elif before is None or not seen.looks_like(before) or self._said != _by_key(objects):
            self.say(objects, seen)
        return True

    def _is_kept_from(self, writing: Sequence[str]) -> bool:
        """Whether these files are being written, so that nothing can be read; for long, and they are named, once."""
        if not writing:
            return False
        if self._since is None:
            self._since = time.monotonic()
        if time.monotonic() - self._since >= SLOW and not self._named:
            self._named = True
            self._complain(_restless(writing, "what changed is read when that ends"))
        return True


def read(paths: Sequence[str]) -> tuple[tuple[Object, ...], Stamp]:
    """All that the files hold, and their stamp, when nobody writes them; who does is waited for, `SLOW` seconds, and then named.

    Raises InvalidManifests for that, and as `load`.
    """
    end = time.monotonic() + SLOW
    while True:
        seen = stamp(paths)
        if not (writing := _open(seen)):
            try:
                objects, mistake = load(paths), None
            except InvalidManifests as error:
                objects, mistake = (), error
            if not (writing := _open(seen) or seen.torn(stamp(paths))):
                if mistake is not None:
                    raise mistake
                return objects, seen
        if time.monotonic() >= end:
            raise _restless(writing, "what it holds may not be all")
        time.sleep(AGAIN)


def _open(seen: Stamp) -> list[str]:
    """The files that somebody has open for writing."""
    return [file for file in seen.files if is_being_written(file)]


def _restless(writing: Sequence[str], words: str) -> InvalidManifests:
    reason = f"has been written to for {SLOW:g} s on end: {words}"
    return InvalidManifests(tuple(InvalidObject("file", "", reason, file) for file in writing))


def _by_key(objects: Sequence[Object]) -> dict[_Key, Object]:
    return {identity(item): item for item in objects}
