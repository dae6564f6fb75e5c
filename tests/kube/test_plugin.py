"""Exec plugins: what they are told, and an end to those that have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from netpol.errors import ApiError
from netpol.kube import plugin as module
from netpol.kube.client import Client, configured
from netpol.kube.reflector import NAMESPACES, PODS, Trouble
from netpol.kube.sources import Selection, Sources
from netpol.model import Object
from tests.kube.fake import FakeServer, added, bookmark, page, pod, watch
from tests.kube.test_client import ask, gives, plugin
from tests.kube.test_sources import TIMING, Heard, wait_for

TOKEN = gives("{'token': 'secret'}")
# Hangs with a child of its own, and says who both are.
HANGS = """
import subprocess, time
child = subprocess.Popen(['sleep', '100'], start_new_session={apart})
with open('pids.new', 'w') as file: file.write(f'{{os.getpid()}} {{child.pid}}')
os.rename('pids.new', 'pids')
"""
TOGETHER, APART = HANGS.format(apart=False), HANGS.format(apart=True)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers as the test says."""
    with FakeServer() as fake:
        yield fake


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    """Ends what a test's plugin left running."""
    yield
    with suppress(FileNotFoundError):
        for pid in pids(tmp_path):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


def pids(folder: Path) -> list[int]:
    """The plugin's, and its child's."""
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def lives(pid: int) -> bool:
    """Whether the process runs: one that nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def client_of(server: FakeServer, folder: Path, body: str, **more: Any) -> Client:
    user = plugin(folder, body)
    user["exec"].update(more)
    return Client(configured(server.kubeconfig(folder, user)))


def test_a_plugin_that_hangs_is_killed_with_its_children(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it and its time; nothing is asked without what it should have given."""
    monkeypatch.setattr(module, "DEADLINE", 3.0)
    client = client_of(server, tmp_path, TOGETHER + "time.sleep(100)")
    with pytest.raises(ApiError, match=rf"configuration: exec: {tmp_path}/plugin did not end within 3 seconds"):
        ask(client)
    wait_for(lambda: not any(map(lives, pids(tmp_path))))
    assert server.asked == []


def test_who_holds_the_output_of_a_killed_plugin_is_not_waited_for(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that went into a session of its own is out of reach, and keeps nobody."""
    monkeypatch.setattr(module, "DEADLINE", 3.0)
    with pytest.raises(ApiError, match="did not end within 3 seconds"):
        ask(client_of(server, tmp_path, APART + "time.sleep(100)"))
    program, child = pids(tmp_path)
    assert (lives(program), lives(child)) == (False, True)


@pytest.mark.parametrize("body", [TOGETHER, APART], ids=["in its group", "in a session of its own"])
def test_who_holds_the_output_of_a_plugin_that_ended_is_not_waited_for(server: FakeServer, tmp_path: Path, body: str) -> None:
    """What it said counts, and what it left running stays: it may keep credentials for the next time."""
    server.answer("/api/v1/pods", page("1"))
    assert ask(client_of(server, tmp_path, body + TOKEN)) == 200
    assert server.asked[0].headers["authorization"] == "Bearer secret"
    assert lives(pids(tmp_path)[1])


def test_a_long_answer_is_read_whole(server: FakeServer, tmp_path: Path) -> None:
    """Longer than a pipe holds; what it complains of meanwhile does not keep it."""
    server.answer("/api/v1/pods", page("1"))
    body = "sys.stderr.write('x' * 200_000)\n" + gives("{'token': 'secret', 'more': 'x' * 500_000}")
    assert ask(client_of(server, tmp_path, body)) == 200


def test_what_a_plugin_is_told(server: FakeServer, tmp_path: Path) -> None:
    """The kubeconfig's arguments and variables beside ours, the cluster where it is asked for, and that nobody is there to answer."""
    server.answer("/api/v1/pods", page("1"))
    body = "json.dump([sys.argv[1:], os.environ['PATH'], os.environ['MORE'], os.environ['KUBERNETES_EXEC_INFO']], open('told', 'w'))\n"
    user = plugin(tmp_path, body + TOKEN)
    user["exec"].update(args=["get", "token"], env=[{"name": "MORE", "value": "more"}], provideClusterInfo=True)
    path = Path(server.kubeconfig(tmp_path, user))
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["extensions"] = [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}]
    path.write_text(json.dumps(config))
    assert ask(Client(configured(str(path)))) == 200
    arguments, inherited, variable, told = json.loads((tmp_path / "told").read_text())
    assert (arguments, inherited, variable) == (["get", "token"], os.environ["PATH"], "more")
    info = json.loads(told)
    assert (info["kind"], info["apiVersion"]) == ("ExecCredential", "client.authentication.k8s.io/v1")
    assert info["spec"]["interactive"] is False
    assert (info["spec"]["cluster"]["server"], info["spec"]["cluster"]["config"]) == (server.url, {"audience": "x"})


def test_at_a_terminal_somebody_may_log_in(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin asks there, is answered there, and has more time for it."""
    monkeypatch.setattr(module, "DEADLINE", 0.0)
    server.answer("/api/v1/pods", page("1"))
    body = (
        "sys.stderr.write('password: ')\nsys.stderr.flush()\nassert json.loads(os.environ['KUBERNETES_EXEC_INFO'])['spec']['interactive']\n"
    )
    master, slave = os.openpty()
    with open(slave, closefd=True) as stdin, open(os.dup(slave), "w") as stdout, open(os.dup(slave), "w") as stderr:
        for name, file in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            monkeypatch.setattr(sys, name, file)
        os.write(master, b"secret\n")
        assert ask(client_of(server, tmp_path, body + gives("{'token': input()}"))) == 200
        monkeypatch.undo()
        said = os.read(master, 1000)
    os.close(master)
    assert b"password: " in said
    assert server.asked[0].headers["authorization"] == "Bearer secret"


def test_at_a_terminal_the_plugin_stays_in_our_session(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may ask on /dev/tty, which another session does not have; when its time is over it is killed alone."""
    monkeypatch.setattr(module, "LOGIN", 3.0)
    master, slave = os.openpty()
    with open(os.dup(slave), "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(ApiError, match="did not end within 3 seconds"):
            ask(client_of(server, tmp_path, TOGETHER + "open('session', 'w').write(str(os.getsid(0)))\ntime.sleep(100)"))
        monkeypatch.undo()
    os.close(slave)
    os.close(master)
    assert (tmp_path / "session").read_text() == str(os.getsid(0))
    program, child = pids(tmp_path)
    assert (lives(program), lives(child)) == (False, True)


def test_an_answer_that_was_not_read_in_time_is_read_all_the_same(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our thread is held up whenever it would read: the program has ended, and what it said still waits."""
    selector: Any = subprocess._PopenSelector  # type: ignore[attr-defined]  # what `communicate` waits with
    select, slow = selector.select, iter(range(20))

    def late(self: Any, timeout: float | None = None) -> Any:
        found = select(self, timeout)
        if next(slow, None) is not None:
            time.sleep(2 * module.GLANCE)
        return found

    monkeypatch.setattr(selector, "select", late)
    server.answer("/api/v1/pods", page("1"))
    assert ask(client_of(server, tmp_path, TOKEN)) == 200
    assert server.asked[0].headers["authorization"] == "Bearer secret"
    assert next(slow, None) is None


def test_close_ends_a_plugin(server: FakeServer, tmp_path: Path) -> None:
    """Who waits for it is told, and neither it nor its child outlives the client."""
    client = client_of(server, tmp_path, TOGETHER + "time.sleep(100)")
    words: list[str] = []

    def wait() -> None:
        with pytest.raises(ApiError) as caught:
            ask(client)
        words.append(str(caught.value))

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for((tmp_path / "pids").exists)
    client.close()
    thread.join(30)
    assert words == ["the client is closed"]
    wait_for(lambda: not any(map(lives, pids(tmp_path))))


class ByKind(Heard):
    """What is told of each kind's trouble."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, list[str]] = {}

    def troubled(self, kind: type[Object], trouble: Trouble | None) -> None:
        self.told.setdefault(kind.__name__, []).append(trouble.message if trouble is not None else "")


def test_a_plugin_that_hangs_is_trouble_for_every_kind(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to all when its time is over, and not to one after the other; following goes on when it answers again."""
    monkeypatch.setattr(module, "DEADLINE", 3.0)
    # Good once, and run out at once; then it hangs as long as the test says.
    body = f"""
import time
with open('runs', 'a') as file: file.write('.')
while os.path.getsize('runs') > 1 and os.path.exists('hang'): time.sleep(0.05)
{gives("{'token': 'secret', 'expirationTimestamp': '2020-01-01T00:00:00Z' if os.path.getsize('runs') == 1 else None}")}
"""
    (tmp_path / "hang").touch()
    client = client_of(server, tmp_path, body)
    server.answer("/api/v1/version", page("1"))
    assert client.ask("GET", "/api/v1/version").code == 200
    for one in (PODS, NAMESPACES):
        server.answer(one.path, watch(added(pod("a", 5)) if one is PODS else b"", bookmark("10", True), threading.Event()))
    listener = ByKind()
    words = f"configuration: exec: {tmp_path}/plugin did not end within 3 seconds, and was killed"
    with Sources(client, [Selection(PODS), Selection(NAMESPACES)], listener, listener, timing=TIMING):
        wait_for(lambda: listener.told == {"Pod": [words], "Namespace": [words]})
        # One run for both, and at most one more that has begun since: not one for each.
        assert (tmp_path / "runs").stat().st_size <= 3
        (tmp_path / "hang").unlink()
        listener.until(lambda: listener.said.count("synced") == 2)
        wait_for(lambda: all(told[-1] == "" for told in listener.told.values()))
