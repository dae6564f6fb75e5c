"""What probes are told of a loop that waits, works and hangs."""

from __future__ import annotations

import threading

from netpol.agent.enforcer import Enforcer
from netpol.agent.loop import Loop
from netpol.agent.standing import DEAD, Standing
from netpol.kernel.apply import Kernel
from netpol.kube.events import Event, Put, Synced
from netpol.model import Namespace, Node
from tests.agent.process import PATIENCE, until


def test_a_loop_that_does_not_move_is_dead(netns: int) -> None:
    """/healthz fails when it has shown no sign of life for too long, says for how long, and is well again when it goes on."""
    now = [100.0]
    held, let = threading.Event(), threading.Event()

    def hold(enforcer: Enforcer) -> bool:
        held.set()
        return let.wait(PATIENCE)

    with Kernel() as kernel:
        loop = Loop(Enforcer(kernel, "n"), (Namespace,), clock=lambda: now[0], jitter=lambda: 1.0)
        standing = Standing(loop, clock=lambda: now[0])
        threads = [threading.Thread(target=loop.run), threading.Thread(target=loop.ask, args=(hold, PATIENCE))]
        for thread in threads:
            thread.start()
        try:
            assert held.wait(PATIENCE)
            now[0] += DEAD
            assert standing.alive().status == 200
            now[0] += 1.0
            page = standing.alive()
            assert (page.status, page.body) == (503, f"the loop has not moved for {DEAD + 1:.0f} s\n".encode())
            let.set()
            until(lambda: standing.alive().status == 200)
        finally:
            let.set()
            loop.stop()
            for thread in threads:
                thread.join()


def test_what_it_waits_for_comes_before_what_is_in_the_way(netns: int) -> None:
    """/readyz says what is missing; then that the node has no such name; then what makes enforcement an illusion, as long as it does."""
    obstacles: list[str] = []
    with Kernel() as kernel:
        loop = Loop(Enforcer(kernel, "n"), (Namespace,), jitter=lambda: 1.0)
        standing = Standing(loop, lambda: obstacles)

        def after(event: Event) -> tuple[int, str]:
            loop.hear(event)
            until(lambda: not loop.step() and loop.in_force and not loop.waiting)
            page = standing.ready()
            return page.status, page.body.decode()

        obstacles.append("ipvs: IPVS is at work")
        assert standing.objections() == ["waits until the API server has said all of Namespace"]
        nowhere = standing.nowhere()
        assert after(Synced(Namespace)) == (503, f"{nowhere[0]}\nipvs: IPVS is at work\n")
        assert after(Put(Node("n"))) == (503, "ipvs: IPVS is at work\n")
        obstacles.clear()
        assert after(Put(Namespace("x"))) == (200, "ok\n")
