"""How the agent does, for those who probe it: whether its loop lives, and whether what is wanted is enforced."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from netpol.agent.health import Page
from netpol.agent.loop import Loop
from netpol.agent.tally import kind_name
from netpol.errors import printable

# A loop that has shown no sign of life for so long hangs. The longest that it is silent on purpose is a wait for the xtables lock.
DEAD = 30.0  # seconds


class Standing:
    """See the module. For any thread.

    obstacles -- why enforcement would be an illusion on this node, however complete it is, a sentence each: what preflight says.
    """

    def __init__(self, loop: Loop, obstacles: Callable[[], Sequence[str]] = tuple, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop, self._obstacles, self._clock = loop, obstacles, clock
        self.waits_for: str | None = None  # a grace; or what the kernel said, where it refused last

    def objections(self) -> list[str]:
        """Why it is not ready, a sentence each; none where it is."""
        missing = sorted(kind_name(kind) for kind in self._loop.agenda.missing.copy())
        if missing:
            return [f"waits until the API server has said all of {', '.join(missing)}"]
        if not self._loop.in_force:
            return [f"not in force: {self.waits_for or 'the kernel is being written'}"]
        return [*self.nowhere(), *self._obstacles()]

    def nowhere(self) -> list[str]:
        """That the node's name is most likely a wrong one, in a sentence: then all would be complete, in force, and empty."""
        state = self._loop.enforcer.state
        if state.node in state.cluster.nodes or not state.is_bare:
            return []
        return [f"the cluster has no node {state.node}, and no pod is bound to one of that name: --node has to be its name in the cluster"]

    def alive(self) -> Page:
        """/healthz."""
        idle = self._clock() - self._loop.last_pulse
        if idle > DEAD:
            return Page(503, f"the loop has not moved for {idle:.0f} s\n".encode())
        return Page(200, b"ok\n")

    def ready(self) -> Page:
        """/readyz: everything is complete, in force, and no illusion."""
        found = self.objections()
        return Page(503, "".join(f"{printable(one)}\n" for one in found).encode()) if found else Page(200, b"ok\n")
