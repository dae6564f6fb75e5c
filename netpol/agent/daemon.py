"""The agent of a node: an API server followed, its policies enforced, and how that goes told to whoever wants to know.

Put together here, decided elsewhere. `loop` owns the kernel; cutting, saving, probes and the sources of objects have threads of their
own. What can fail without harm to enforcement, from a port that is taken to a full disk, is said and tried again.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from netpol import __version__
from netpol.agent.agenda import Pace
from netpol.agent.announcer import Announcer
from netpol.agent.census import Census, CensusTaker
from netpol.agent.cutting import Cutting
from netpol.agent.drops import DropLog, Sink
from netpol.agent.enforcer import Enforcer
from netpol.agent.health import Health, Page
from netpol.agent.lookout import Lookout
from netpol.agent.loop import Loop
from netpol.agent.metrics import Exposition
from netpol.agent.notify import Notifier
from netpol.agent.preflight import Check, preflight
from netpol.agent.saver import Saver
from netpol.agent.service import Ends, leave, run_until_signal
from netpol.agent.standing import Standing
from netpol.agent.tally import Tally
from netpol.agent.voice import Voice
from netpol.errors import NetpolError
from netpol.kernel.apply import Kernel
from netpol.kube.client import Client, configured
from netpol.kube.sources import Sources, for_node
from netpol.model import Namespace, Node, Object, Pod, Policy
from netpol.rules.compile import Settings

KINDS: tuple[type[Object], ...] = (Namespace, Node, Pod, Policy)
# What a page may wait for an answer of the loop.
QUESTION = 2.0  # seconds
# What saving, and the threads of the sources, may take to end.
ENDING = 0.3  # seconds
# How long a thread that computes keeps the others waiting: reading a storm of events must not hold up the first of them.
TURN = 0.001  # seconds

log = logging.getLogger("netpol")


class Options(Struct, frozen=True):
    """What the user may choose: `netpol agent --help` says what each means."""

    node: str
    kubeconfig: str | None = None
    context: str | None = None
    settings: Settings = Settings()
    audit_interval: float = 10.0
    state: Path | None = None
    listen: tuple[str, int] | None = None
    cut: bool = True
    events: bool = False
    grace: float = 0.0
    drop_log: str | None = None


def run(options: Options, ends: Ends) -> None:
    """Until TERM or INT comes: `ends` is of `heed_signals`. KernelError where this kernel cannot be programmed at all."""
    sys.setswitchinterval(TURN)
    # What was imported stays: looking through it for garbage would hold up an event, several times as long as looking through the rest.
    gc.freeze()
    log.info("netpol %s on node %s, table %s", __version__, options.node, options.settings.table)
    with ExitStack() as stack:
        kernel = stack.enter_context(Kernel(options.settings.table))
        enforcer = Enforcer(kernel, options.node, options.settings, options.grace)
        notifier = Notifier(os.environ, os.getpid(), time.monotonic)
        stack.callback(notifier.close)
        tally = Tally()
        voice = Voice(
            notifier,
            tally,
            changed=lambda report: cutting.changed(report),
            doubted=lambda: cutting.doubted(),
            keep=lambda: saver.give(enforcer.state.wanted()) if saver is not None else None,
            announce=lambda put: announcer.tell(put) if announcer is not None else None,
        )
        saver = Saver(options.state, voice.not_saved) if options.state is not None else None
        if saver is not None:
            stack.callback(saver.close, ENDING)
        cutting = stack.enter_context(Cutting(options.settings.cut_bit, cut=options.cut, swept=voice.swept, failed=voice.not_swept))
        pace, look, rest = Pace(audit=options.audit_interval), kernel.touched, kernel.rest
        loop = Loop(enforcer, KINDS, voice, pace=pace, look=look, rest=rest, tally=tally, jitter=random.random)
        lookout = Lookout(lambda: _preflight(options.settings, loop), voice.checked)
        standing = voice.standing = Standing(loop, lookout.obstacles)
        client = Client(configured(options.kubeconfig, options.context))
        announcer = Announcer(client, voice.trouble) if options.events else None
        if announcer is not None:
            stack.callback(announcer.close, ENDING)
        sources = Sources(client, for_node(options.node), loop.hear, voice)
        stack.callback(sources.stop, ENDING)
        if options.listen is not None:
            health = Health(*options.listen, _pages(loop, standing, sources), voice.trouble)
            health.start()
            stack.callback(health.stop)
        if options.drop_log is not None and options.settings.log_group is not None:
            sink = Sink(Path(options.drop_log) if options.drop_log != "-" else None)
            drops = DropLog(options.settings.log_group, loop, sink, voice.trouble)
            drops.start()
            stack.callback(drops.stop)
        lookout.start()
        stack.callback(lookout.stop)
        try:
            ended = run_until_signal(ends, loop, sources.start, notifier.stopping)
        except Exception:
            log.exception("a thread ended by a mistake of its own; the rules stay in force")
            sys.exit(1)
        log.info("stopped; the rules stay in force")
        if not ended:
            # An exec plugin that hangs is not to outlive us.
            sources.stop(ENDING)
            leave()


def _preflight(settings: Settings, loop: Loop) -> tuple[Check, ...]:
    """All checks, with the ranges of the node's pods as far as they are known by now."""
    enforcer = loop.enforcer
    node = enforcer.cluster.nodes.get(enforcer.state.node)
    return preflight(settings, settings.pod_cidrs or (node.pod_cidrs if node is not None else ()))


def _pages(loop: Loop, standing: Standing, sources: Sources) -> dict[str, Callable[[], Page]]:
    taker = CensusTaker()

    def census() -> Census | None:
        try:
            return loop.ask(taker.look, QUESTION)
        except NetpolError as error:
            log.warning("the kernel could not be asked for its numbers: %s", error)
            return None

    exposition = Exposition(loop, census, sources.reflectors)
    return {"/healthz": standing.alive, "/readyz": standing.ready, "/metrics": lambda: Page(200, *exposition.text())}
