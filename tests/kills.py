"""`python -m tests.kills SEED KILLS`: processes that enforce a stream of changes, each killed with SIGKILL at a random moment, in turn.

Each is a fork of this one, which has everything imported: so that thousands of moments take minutes. It begins as every agent does, with
sockets of its own and the whole cluster, adopts what it finds, and enforces the changes that come through a pipe. Who draws them is here,
and knows what the cluster is. Half of the processes are held when they have adopted, and what the kernel holds is compared with what
they should have made of it. Prints one line of JSON at the end.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from struct import Struct as Packing
from typing import BinaryIO

import msgspec

from netpol.agent.enforcer import Enforcer, identity
from netpol.kernel.apply import Kernel
from netpol.model import Namespace, Object
from netpol.policy.cluster import Cluster
from netpol.rules.compile import Settings, compiled
from netpol.rules.ruleset import beside_what
from tests.test_hitless_packets import ADDRESSES, Random, stay

WISH = Settings(unknown_pods="allow", front_from=4)  # so few that sets in front of trees come, change and go
LIFE = 0.04  # seconds that a process lives at most, when it has begun to enforce
_LENGTH = Packing("=I")

Gone = tuple[type[Object], str, str]  # kind, name, namespace
Batch = list[Object | Gone]


class Tally(msgspec.Struct):
    """What happened: processes killed, how many of them while they adopted; adoptions that were compared, and those that found a change
    broken off, with small sets; sets or chains that were not as they should be."""

    kills: int = 0
    adopting: int = 0
    compared: int = 0
    broken: int = 0
    changes: int = 0
    wrong: list[str] = []


class Truth:
    """The cluster as it is, whoever lives; and what has happened to it since `batch` was called."""

    def __init__(self) -> None:
        self.objects: dict[tuple[type[Object], str, str], Object] = {}
        self._batch: Batch = []

    def put(self, *objects: Object) -> None:
        self.objects.update((identity(item), item) for item in objects)
        self._batch += objects

    def drop(self, kind: type[Object], name: str, namespace: str = "") -> None:
        self.objects.pop((kind, namespace, name), None)
        self._batch.append((kind, name, namespace))

    def batch(self) -> Batch:
        done, self._batch = self._batch, []
        return done


def live(objects: list[Object], batches: BinaryIO, adopted: int) -> None:
    """What a process does: adopts, says so, and enforces batch after batch until it is killed."""
    with Kernel() as kernel:
        enforcer = Enforcer(kernel, "n", WISH)
        enforcer.put(*objects)
        enforcer.enforce()
        os.write(adopted, b"x")
        for batch in received(batches):
            for event in batch:
                if isinstance(event, tuple):
                    enforcer.drop(*event)
                else:
                    enforcer.put(event)
            enforcer.enforce()
    # The stream does not end before the process does.
    os._exit(1)


def received(batches: BinaryIO) -> Iterator[Batch]:
    while head := batches.read(_LENGTH.size):
        yield pickle.loads(batches.read(*_LENGTH.unpack(head)))


def born(truth: Truth) -> tuple[int, int, int]:
    """A new process: its id, where batches go, and where it says that it has adopted."""
    read, write = os.pipe()
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(write)
            with os.fdopen(read, "rb") as batches:
                live(list(truth.objects.values()), batches, say)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(2)
    os.close(read)
    os.close(say)
    os.set_blocking(write, False)
    return child, write, said


def life(truth: Truth, drawn: Random, chance: random.Random, tally: Tally, observer: Kernel) -> None:
    """One process from its birth to its end."""
    is_held = chance.random() < 0.5
    tally.broken += any(map(beside_what, observer.read().sets))
    child, batches, said = born(truth)
    try:
        os.set_blocking(said, is_held)
        if is_held:
            if os.read(said, 1) != b"x":
                tally.wrong.append("a process ended while it adopted")
            compare(truth, tally, observer)
            tally.compared += 1
        end = time.monotonic() + chance.uniform(0, LIFE)
        while time.monotonic() < end:
            drawn.change(truth)
            data = pickle.dumps(truth.batch())
            try:
                # Less than PIPE_BUF: all of it, or nothing.
                os.write(batches, _LENGTH.pack(len(data)) + data)
            except BlockingIOError:
                time.sleep(0.001)
            except BrokenPipeError:  # it has ended, which is told below
                break
            tally.changes += 1
        if not is_held:
            try:
                tally.adopting += os.read(said, 1) != b"x"
            except BlockingIOError:
                tally.adopting += 1
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(batches)
        os.close(said)
    if not os.WIFSIGNALED(status):
        tally.wrong.append(f"a process ended by itself, with {os.waitstatus_to_exitcode(status)}")
    tally.kills += 1


def compare(truth: Truth, tally: Tally, observer: Kernel) -> None:
    cluster = Cluster()
    for item in truth.objects.values():
        cluster.put(item)
    wanted, found = compiled(cluster, "n", WISH), observer.read()
    for what in ("chains", "sets", "hooked"):
        if getattr(wanted, what) != getattr(found, what):
            tally.wrong.append(f"{what}: {getattr(wanted, what)} is wanted, {getattr(found, what)} is there")


def main(seed: int, kills: int) -> int:
    truth, drawn, chance, tally = Truth(), Random(seed), random.Random(seed), Tally()
    truth.put(Namespace("x"), *stay(), *map(drawn.pod, sorted(ADDRESSES)))
    truth.batch()
    with Kernel() as observer:
        while tally.kills < kills and len(tally.wrong) < 5:
            life(truth, drawn, chance, tally, observer)
        # The last one lives.
        with Kernel() as kernel:
            enforcer = Enforcer(kernel, "n", WISH)
            enforcer.put(*truth.objects.values())
            enforcer.enforce()
        compare(truth, tally, observer)
    print(msgspec.json.encode(tally).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
