"""Draws docs/pictures/event.svg: the way of an event from the API server's bytes to the kernel, as a profiler saw it go.

`python -m docs.site.event` writes it. A real loop on a real kernel, in a network namespace made for it, is given two watch events, and each
call from one room into another is written down with the room that it came from; a test looks again and compares. What is left out is said
beside `LEFT_OUT`. Threads are the one thing that is not as in the agent: there the reflector has its own, and they meet in `Loop.hear`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from docs.site.paper import CHARACTER, sheet
from netpol.agent.enforcer import Enforcer
from netpol.agent.loop import Loop
from netpol.kernel import namespaces
from netpol.kernel.apply import Kernel
from netpol.kube.reflector import NAMESPACES, NODES, PODS, POLICIES, Reflector, Resource
from netpol.lab import become_private

PICTURE = Path(__file__).parents[1] / "pictures" / "event.svg"
LANES = ("kube", "agent", "policy", "rules", "kernel", "csrc")
LEFT_OUT = (
    *("netpol.model", "netpol.errors", "netpol.rules.ruleset", "netpol.rules.sets", "netpol.kube.events", "netpol.kernel.entries"),
    *("netpol.agent.tally", "netpol.agent.agenda", "netpol.kernel.encode", "netpol.kernel.proofs"),
)
"""Values, which everybody handles, and books that a room keeps; also properties, and what is called a second time."""
OPEN = ("kube", "agent", "kernel")
"""Rooms inside which calls of another module's object are shown too."""
COLOURS = {
    "kube": "#3f51b5",
    "agent": "#3f51b5",
    "policy": "#00796b",
    "rules": "#00796b",
    "kernel": "#3f51b5",
    "csrc": "#6a3d9a",
}
STYLE = ".call{fill:none;stroke-width:1.5}.lane{stroke:#c5cae9;stroke-width:1}.dim{fill:#667}.what{font-weight:bold;font-size:13px}"
LANE, ROW, MARGIN, HEAD, TITLE = 132, 22, 20, 30, 34
OTHER_POD = ("a pod of another node starts, and a policy's peers select it", PODS)
POLICY = ("a policy is created that isolates a pod of this node", POLICIES)


class Call(NamedTuple):
    """One call from a lane into another or into another module: caller's lane ("" for the outside), lane, module, function."""

    caller: str
    lane: str
    module: str
    function: str


def trace() -> dict[str, tuple[list[Call], int]]:
    """Title -> the calls of that event in their order, and how many system calls the kernel room made for it.

    In a network namespace that is made for it; as root, or after `become_private`.
    """
    space = namespaces.create()
    try:
        with namespaces.private_lock(), namespaces.entered(space), Kernel() as kernel:
            return _traced(kernel)
    finally:
        os.close(space)


def _traced(kernel: Kernel) -> dict[str, tuple[list[Call], int]]:
    now, found = [0.0], {}
    stage = _Stage(kernel, now)
    stage.say(NAMESPACES, _object("default"))
    stage.say(NODES, _object("here"))
    stage.say(PODS, _pod("db", "here", "10.244.0.10"), _pod("web", "there", "10.244.1.10"))
    stage.say(POLICIES, _policy("db", "db", "web"))
    stage.settle()
    for (title, resource), one in ((OTHER_POD, _pod("web-2", "there", "10.244.1.11")), (POLICY, _policy("db-out", "db", "dns", out=True))):
        before = kernel.calls
        calls: list[Call] = []
        with _profiled(calls):
            stage.heard(resource, _line("ADDED", resource, one))
            stage.settle()
        found[title] = (_shown(calls), kernel.calls - before)
    return found


class _Stage:
    """A loop, and a reflector a kind, on a clock that stands still until it is moved."""

    def __init__(self, kernel: Kernel, now: list[float]) -> None:
        self._now = now
        self._reflectors = {one: Reflector(one, clock=lambda: now[0], random=lambda: 1.0) for one in (NAMESPACES, NODES, PODS, POLICIES)}
        kinds = [one.kind for one in self._reflectors]
        self._loop = Loop(Enforcer(kernel, "here"), kinds, clock=lambda: now[0], jitter=lambda: 1.0)

    def say(self, resource: Resource, *objects: dict[str, Any]) -> None:
        """All objects of a kind, and that these are all."""
        self._reflectors[resource].next()
        self._reflectors[resource].granted()
        end = {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}}
        for line in (*(_line("ADDED", resource, one) for one in objects), _line("BOOKMARK", resource, end)):
            self.heard(resource, line)

    def heard(self, resource: Resource, line: bytes) -> None:
        """What a thread of the sources does with bytes that came."""
        self._loop.hear(*self._reflectors[resource].receive(line).events)

    def settle(self) -> None:
        for _ in range(5):
            while self._loop.step():
                pass
            self._now[0] += 0.1


def _line(kind: str, resource: Resource, one: dict[str, Any]) -> bytes:
    version = "networking.k8s.io/v1" if resource is POLICIES else "v1"
    name = {NAMESPACES: "Namespace", NODES: "Node", PODS: "Pod", POLICIES: "NetworkPolicy"}[resource]
    return json.dumps({"type": kind, "object": {"kind": name, "apiVersion": version, **one}}).encode() + b"\n"


def _object(name: str, namespace: str | None = None, **fields: Any) -> dict[str, Any]:
    where = {"namespace": namespace} if namespace else {}
    return {"metadata": {"name": name, "resourceVersion": "5", "labels": fields.pop("labels", {}), **where}, **fields}


def _pod(name: str, node: str, address: str) -> dict[str, Any]:
    spec = {"nodeName": node, "containers": [{"name": "c"}]}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    return _object(name, "default", labels={"app": name.partition("-")[0]}, spec=spec, status=status)


def _policy(name: str, subject: str, peer: str, out: bool = False) -> dict[str, Any]:
    peers = [{"podSelector": {"matchLabels": {"app": peer}}}]
    rules = {"egress": [{"to": peers}], "policyTypes": ["Egress"]} if out else {"ingress": [{"from": peers}], "policyTypes": ["Ingress"]}
    return _object(name, "default", spec={"podSelector": {"matchLabels": {"app": subject}}, **rules})


@contextmanager
def _profiled(calls: list[Call]) -> Iterator[None]:
    """Writes down every call between modules of netpol, and of C functions of ours."""

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and _counts(frame):
            before = frame.f_back
            while before is not None and not _counts(before):
                before = before.f_back
            module, caller = _module(frame), _module(before) if before is not None else ""
            if module != caller:
                calls.append(Call(_lane(caller), _lane(module), module, _name(frame)))
        elif event == "c_call" and type(getattr(argument, "__self__", None)).__name__ == "Lib":
            calls.append(Call(_lane(_module(frame)), "csrc", argument.__name__, argument.__name__))

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def _counts(frame: FrameType) -> bool:
    """Whether a frame is a function of netpol's with a name, and none that is left out."""
    module, name = _module(frame), frame.f_code.co_name
    return module.startswith("netpol.") and module not in LEFT_OUT and not name.startswith(("<", "__"))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _lane(module: str) -> str:
    return module.split(".")[1] if module.startswith("netpol.") else ""


def _name(frame: FrameType) -> str:
    """ "Loop.hear": co_qualname is there from Python 3.11 on only."""
    owner = frame.f_locals.get("self")
    name = frame.f_code.co_name
    if owner is None:
        return name
    if isinstance(getattr(type(owner), name, None), property):
        return ""
    return f"{type(owner).__name__}.{name}"


def _shown(calls: list[Call]) -> list[Call]:
    """Each callee once, where it is called first."""
    seen: dict[tuple[str, str], Call] = {}
    for one in calls:
        inside = one.caller == one.lane and (one.lane not in OPEN or "." not in one.function)
        if one.function and "._" not in one.function and not inside:
            seen.setdefault((one.module, one.function), one)
    return list(seen.values())


# -- the picture -------------------------------------------------------------------------------------------------------


def picture(found: dict[str, tuple[list[Call], int]]) -> str:
    """The events one below the other, each with its calls in rows and the rooms as lanes."""
    parts, y = [], float(MARGIN)
    for title, (calls, system_calls) in found.items():
        parts.append(f'<text class="what" x="{MARGIN}" y="{y + 14:.0f}">{title}: {system_calls} system calls</text>\n')
        y += TITLE
        bottom = y + HEAD + ROW * (len(calls) + 1)
        for lane in LANES:
            x, width = _x(lane), len(lane) * CHARACTER + 20
            parts.append(
                f'<path class="lane" d="M{x:.0f} {y:.0f} V{bottom:.0f}"/>\n'
                f'<rect x="{x - 10:.0f}" y="{y:.0f}" width="{width:.0f}" height="22" rx="6" fill="{COLOURS[lane]}"/>\n'
                f'<text class="name" x="{x:.0f}" y="{y + 15:.0f}">{lane}</text>\n'
            )
        y += HEAD
        for one in calls:
            y += ROW
            parts.append(_row(one, y))
        y = bottom + MARGIN
    width = 2 * MARGIN + LANE * len(LANES)
    return sheet("The way of an event, from the API server's bytes to the kernel", width, y, COLOURS, STYLE, "".join(parts))


def _x(lane: str) -> float:
    return MARGIN + 26 + LANE * LANES.index(lane)


def _row(one: Call, y: float) -> str:
    x, colour = _x(one.lane), COLOURS[one.lane]
    start = _x(one.caller) if one.caller else x - 26
    side = 1 if start > x else -1
    mark = f'<path class="call" d="M{start:.0f} {y:.0f} H{x + 2 * side:.0f}" stroke="{colour}" marker-end="url(#{one.lane})"/>\n'
    if one.caller == one.lane:
        mark = f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="{colour}"/>\n'
    # On the far side of the arrow, where nothing else is drawn.
    anchor = ' text-anchor="end"' if side > 0 else ""
    halo = 'stroke="#f6f7fb" stroke-width="4" paint-order="stroke"'
    return f'{mark}<text x="{x - 7 * side:.0f}" y="{y + 4:.0f}"{anchor} {halo}>{one.function}</text>\n'


if __name__ == "__main__":
    become_private()
    PICTURE.write_text(picture(trace()))
