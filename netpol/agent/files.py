"""Manifests on disk as a source of events: what changed in the files is said as an API server would say it.

The first time everything is said, with the end of every kind; then, whenever the files change, what differs, in one call: a policy that
got another name never leaves a moment without either. Files that cannot be understood change nothing, and are reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from netpol.agent.enforcer import identity
from netpol.errors import InvalidManifests, KernelError
from netpol.kernel.inotify import Watcher
from netpol.kube.events import Event, Gone, Put, Synced
from netpol.kube.manifests import load, stamp
from netpol.model import Namespace, Node, Object, Pod, Policy

KINDS: tuple[type[Object], ...] = (Namespace, Node, Pod, Policy)
_Key = tuple[type[Object], str, str]


class FileSource:
    """See the module. `hear` is the loop's; `complain` is told what is wrong with the files, by the thread that reads them."""

    def __init__(self, paths: Sequence[str], hear: Callable[..., None], complain: Callable[[InvalidManifests | KernelError], None]) -> None:
        self._paths, self._hear, self._complain = tuple(paths), hear, complain
        self._said: dict[_Key, Object] = {}
        self._seen: object = None  # the stamp of what was read last

    def say(self, objects: Sequence[Object], seen: object) -> None:
        """These are all the objects that there are, read when the files had this stamp."""
        self._seen = seen
        now = {identity(item): item for item in objects}
        events: list[Event] = [Gone(kind, name, namespace) for kind, namespace, name in self._said.keys() - now.keys()]
        events += [Put(item) for key, item in now.items() if self._said.get(key) != item]
        events += [Synced(kind) for kind in KINDS]
        self._said = now
        self._hear(*events)

    def start(self) -> None:
        """Begins to follow the files in a thread that ends with the process. KernelError where they cannot be watched."""
        watcher = Watcher(self._paths)
        threading.Thread(target=self._follow, args=(watcher,), name="files", daemon=True).start()

    def _follow(self, watcher: Watcher) -> None:
        while True:
            try:
                watcher.refresh()
                # What else is written in a folder, a log of ours perhaps, is no change. What changes while it is read is one.
                before, self._seen = self._seen, stamp(self._paths)
                if self._seen != before:
                    self.say(load(self._paths), self._seen)
            except (InvalidManifests, KernelError) as error:
                self._complain(error)
            watcher.wait()
