"""`netpol apply`, `status` and `cleanup` on a kernel of the test's own, once and following files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner, Result

from netpol.cli.main import main
from tests.referees import run

pytestmark = pytest.mark.usefixtures("netns")

EXAMPLE = Path(__file__).parents[2] / "examples" / "kubernetes-docs.yaml"
PODS = """
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}, spec: {nodeName: n}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {app: b}}, spec: {nodeName: n}, status: {podIP: 10.0.0.2}}
"""
POLICY = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {app: %s}}}}"


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a namespace of a test nothing runs that a first install could lose."""
    monkeypatch.setenv("NETPOL_GRACE", "0")


def netpol(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def rules() -> str:
    return run("iptables-legacy-save", "-t", "mangle")


def test_the_host_s_kernel_is_programmed_shown_and_cleaned() -> None:
    """apply writes, a second apply has nothing to do, status shows what is there as data and in words, cleanup leaves nothing."""
    assert "steps" in netpol("apply", "-f", str(EXAMPLE)).output
    assert "nothing to change" in netpol("apply", "-f", str(EXAMPLE)).output
    data = json.loads(netpol("status", "--json").output)
    assert data["hooked"] == [4, 6]
    assert {found["type"] for found in data["sets"]} == {"hash:ip", "hash:net"}
    assert {found["chain"] for found in data["chains"]} >= {"NETPOL", "NETPOL-EGRESS", "NETPOL-INGRESS", "NETPOL-DENY"}
    assert "FORWARD begins with netpol for IPv4, IPv6" in netpol("status").output
    assert "3 sets" in netpol("cleanup").output
    assert "NETPOL" not in rules() + run("ipset", "list", "-n")
    assert "Nothing of netpol's" in netpol("status").output
    assert netpol("cleanup").output == "nothing of netpol's is here\n"


def test_bad_manifests_change_nothing(tmp_path: Path) -> None:
    """Exit 2, and the kernel stays as it was."""
    netpol("apply", "-f", str(EXAMPLE))
    before = run("ipset", "save")
    (tmp_path / "bad.yaml").write_text(POLICY % "x" + "\n---\n" + PODS.replace("10.0.0.1", "10.0.0.300"))
    result = netpol("apply", "-f", str(tmp_path))
    assert result.exit_code == 2
    assert "Pod default/a: status.podIP" in result.stderr
    assert sorted(run("ipset", "save").splitlines()) == sorted(before.splitlines())


@pytest.mark.parametrize(
    ("text", "node", "words"),
    [
        pytest.param(PODS, "n", "node n: 0 of 2 pods isolated, 0 policies in all", id="no policy"),
        pytest.param(f"{PODS}---\n{POLICY % 'a'}", "n", "node n: 1 of 2 pods isolated, 1 policy in all", id="one of two"),
        pytest.param(POLICY % "a", "n", "netpol: nothing is isolated on node n: the manifests hold no pod", id="no pod"),
        pytest.param(
            f"{PODS}---\n{POLICY % 'a'}",
            "m",
            "netpol: nothing is isolated on node m: 2 pods of the manifests are on node n (spec.nodeName)",
            id="another node",
        ),
        pytest.param(
            f"{PODS}---\n{POLICY % 'c'}",
            "n",
            "netpol: nothing is isolated on node n: of its 2 pods none is selected by a policy",
            id="other labels",
        ),
        pytest.param(
            f"{PODS.replace('10.0.0.1', '')}---\n{POLICY % 'a'}",
            "n",
            "netpol: nothing is isolated on node n: 1 of its 2 pods without an address (status.podIP), and no policy selects another",
            id="no address",
        ),
    ],
)
def test_whom_it_isolates_is_said(tmp_path: Path, text: str, node: str, words: str) -> None:
    """How many pods; or that it is none, which is easily a mistake in the manifests, with what is missing."""
    (tmp_path / "all.yaml").write_text(text)
    result = netpol("apply", "-f", str(tmp_path), "--node", node)
    assert result.exit_code == 0
    assert words in (result.stderr if words.startswith("netpol:") else result.stdout).splitlines()


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_files_are_followed_until_a_signal(tmp_path: Path, stop: signal.Signals) -> None:
    """A policy that appears, changes, is broken, mended, in a new directory, and goes; then the process ends and the rules stay."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "pods.yaml").write_text(PODS)
    command = [sys.executable, "-m", "netpol.cli.main", "apply", "-f", str(folder), "--node", "n", "--watch"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONUNBUFFERED="1")
    )
    try:
        assert eventually(lambda: "-A FORWARD -j NETPOL" in rules())
        assert "-d 10.0.0.1/32" not in rules()
        (folder / "policy.yaml").write_text(POLICY % "a")
        assert eventually(lambda: "-d 10.0.0.1/32" in rules())
        (folder / "new.yaml").write_text(POLICY % "b")
        os.replace(folder / "new.yaml", folder / "policy.yaml")
        assert eventually(lambda: "-d 10.0.0.2/32" in rules() and "-d 10.0.0.1/32" not in rules())
        (folder / "policy.yaml").write_text("kind: NetworkPolicy\n")
        assert process.stderr is not None
        assert "policy.yaml" in process.stderr.readline()
        assert "-d 10.0.0.2/32" in rules()
        (folder / "policy.yaml").unlink()
        assert eventually(lambda: "-d 10.0.0.2/32" not in rules())
        (folder / "below").mkdir()
        assert process.stdout is not None
        (folder / "below" / "policy.yaml").write_text(POLICY % "a")
        assert eventually(lambda: "-d 10.0.0.1/32" in rules())
        process.send_signal(stop)
        assert process.wait(10) == 0
        assert "-d 10.0.0.1/32" in rules()
    finally:
        process.kill()
        process.communicate()


def test_standard_input_cannot_be_followed() -> None:
    """Read a second time it holds nothing, and all policies would go; once is right."""
    text = f"{PODS}---\n{POLICY % 'a'}"
    command = [sys.executable, "-m", "netpol.cli.main", "apply", "-f", "-", "--node", "n"]
    refused = subprocess.run([*command, "--watch"], input=text, capture_output=True, text=True, timeout=20)
    assert (refused.returncode, "standard input is none" in refused.stderr) == (2, True)
    assert "NETPOL" not in rules()
    subprocess.run(command, input=text, text=True, check=True, timeout=20)
    assert "-d 10.0.0.1/32" in rules()


@contextmanager
def following(folder: Path, stdout: int | IO[bytes], stderr: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`netpol apply --watch` of a file in the folder, which writes there; it holds pods and, later, a policy."""
    (folder / "all.yaml").write_text(PODS)
    command = [sys.executable, "-m", "netpol.cli.main", "apply", "-f", str(folder / "all.yaml"), "--node", "n", "--watch"]
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
        assert eventually(lambda: "-A FORWARD -j NETPOL" in rules())
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["full pipe", "closed pipe", "full disk"])
def test_nobody_reads_what_it_says(tmp_path: Path, kind: str) -> None:
    """A pipe that is full, or has no reader any more, or a full disk: enforcement goes on, and a signal ends the process."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while kind == "full pipe":
            os.write(writer, bytes(1 << 16))
    os.set_blocking(writer, True)
    output = os.open("/dev/full", os.O_WRONLY) if kind == "full disk" else writer
    with following(tmp_path, output, output) as process:
        if kind == "closed pipe":
            os.close(reader)
        for app, address in (("a", "10.0.0.1"), ("b", "10.0.0.2")):
            (tmp_path / "all.yaml").write_text(f"{PODS}---\n{POLICY % app}")
            assert eventually(lambda address=address: f"-d {address}/32" in rules())  # type: ignore[misc]
            (tmp_path / "all.yaml").write_text("kind: NetworkPolicy\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    for descriptor in {reader, writer, output} - ({reader} if kind == "closed pipe" else set()):
        os.close(descriptor)


def test_a_file_that_is_written_slowly_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """The same policies, written anew in place with a rest in their middle: what denies them stays, and so it does while it is empty."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    with following(folder, subprocess.DEVNULL, subprocess.DEVNULL):
        (folder / "all.yaml").write_text(f"{PODS}---\n{POLICY % 'a'}")
        assert eventually(lambda: "-d 10.0.0.1/32" in rules())
        with (folder / "all.yaml").open("w") as file:
            for text in ("", PODS, "---\n"):
                file.write(text)
                file.flush()
                # Long enough for whoever would read it now.
                time.sleep(0.5)
                assert "-d 10.0.0.1/32" in rules()
            file.write(POLICY % "b")
        assert eventually(lambda: "-d 10.0.0.2/32" in rules() and "-d 10.0.0.1/32" not in rules())


def test_a_file_behind_a_link_is_followed(tmp_path: Path) -> None:
    """The kernel tells of nothing in the folder that is watched."""
    (tmp_path / "watched").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "watched" / "all.yaml").symlink_to(tmp_path / "elsewhere" / "real.yaml")
    with following(tmp_path / "watched", subprocess.DEVNULL, subprocess.DEVNULL):
        (tmp_path / "elsewhere" / "real.yaml").write_text(f"{PODS}---\n{POLICY % 'a'}")
        assert eventually(lambda: "-d 10.0.0.1/32" in rules())


@pytest.mark.parametrize("text", ["", "# nothing\n---\n"], ids=["empty", "comments"])
def test_no_manifests_at_all_change_nothing(tmp_path: Path, text: str) -> None:
    """A command that failed and wrote nothing into a pipe does not open the host; who wants no objects has an empty list."""
    command = [sys.executable, "-m", "netpol.cli.main", "apply", "-f", "-", "--node", "n"]
    subprocess.run(command, input=f"{PODS}---\n{POLICY % 'a'}", text=True, check=True, timeout=20)
    assert "-d 10.0.0.1/32" in rules()
    refused = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20)
    assert refused.returncode == 2
    assert ("standard input: file: is empty" if not text else "-: manifests: hold no document") in refused.stderr
    assert "-d 10.0.0.1/32" in rules()
    subprocess.run(command, input="{apiVersion: v1, kind: List, items: []}", text=True, check=True, timeout=20)
    assert "-d 10.0.0.1/32" not in rules()


def test_whom_it_isolates_is_said_while_it_follows(tmp_path: Path) -> None:
    """When it is other than what was said last; that it is nobody is easily a mistake."""
    log = tmp_path / "netpol.log"
    with log.open("wb") as file, following(tmp_path, file, file):
        assert eventually(lambda: "node n: 0 of 2 pods isolated, 0 policies in all" in log.read_text())
        (tmp_path / "all.yaml").write_text(f"{PODS}---\n{POLICY % 'none'}")
        words = "netpol: nothing is isolated on node n: of its 2 pods none is selected by a policy"
        assert eventually(lambda: words in log.read_text())
        (tmp_path / "all.yaml").write_text(f"{PODS}---\n{POLICY % 'a'}")
        assert eventually(lambda: "node n: 1 of 2 pods isolated, 1 policy in all" in log.read_text())
        (tmp_path / "all.yaml").write_text(f"{PODS}---\n{POLICY % 'b'}")
        assert eventually(lambda: "-d 10.0.0.2/32" in rules())
    assert log.read_text().count("isolated") == 3


def test_a_log_beside_the_manifests_is_no_change(tmp_path: Path) -> None:
    """What it says is written to the folder that it watches: each change, and each mistake, is told once."""
    log = tmp_path / "netpol.log"
    with log.open("wb") as file, following(tmp_path, file, file):
        assert eventually(lambda: "step" in log.read_text())
        (tmp_path / "all.yaml").write_text("kind: NetworkPolicy\n")
        assert eventually(lambda: "all.yaml" in log.read_text())
        (tmp_path / "all.yaml").write_text(f"{PODS}---\n{POLICY % 'a'}")
        assert eventually(lambda: "-d 10.0.0.1/32" in rules())
        (tmp_path / "other.log").write_text("x")
        (tmp_path / "all.yaml").rename(tmp_path / "old")
        assert eventually(lambda: "No such file" in log.read_text())
        # Half a second is ten times what it takes to look again.
        time.sleep(0.5)
        (tmp_path / "old").rename(tmp_path / "all.yaml")
        assert eventually(lambda: "nothing to change" in log.read_text().splitlines()[-1])
        time.sleep(0.5)
    lines = log.read_text().splitlines()
    assert len([line for line in lines if "all.yaml: document" in line]) == 1
    assert len([line for line in lines if "No such file" in line]) == 1
    assert len([line for line in lines if "step" in line]) == 2
    assert len([line for line in lines if "nothing to change" in line]) == 1


@pytest.mark.parametrize("place", ["nowhere/state", ".", ""])
def test_a_state_that_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The rules are in force and told of; then the file is named, and the exit status is 1."""
    monkeypatch.chdir(tmp_path)
    result = netpol("apply", "-f", str(EXAMPLE), "--state", place)
    assert "steps" in result.stdout
    assert result.stderr.startswith(f"netpol: the state could not be saved: {place or '.'}: ")
    assert result.exit_code == 1
    assert "-A FORWARD -j NETPOL" in rules()


@pytest.mark.parametrize("where", ["/dev/full", "a closed pipe"])
def test_a_state_is_saved_though_nobody_reads(tmp_path: Path, where: str) -> None:
    """What is in force is what a boot is to bring back; the words are lost."""
    path = tmp_path / "state"
    reader, writer = os.pipe()
    os.close(reader)
    output = os.open(where, os.O_WRONLY) if where == "/dev/full" else os.dup(writer)
    command = [sys.executable, "-m", "netpol.cli.main", "apply", "-f", str(EXAMPLE), "--state", str(path)]
    assert subprocess.run(command, stdout=output, stderr=subprocess.DEVNULL, timeout=60).returncode == 1
    os.close(output)
    os.close(writer)
    assert "nothing to change" in netpol("apply", "-f", str(EXAMPLE)).output
    before = path.read_bytes()
    assert netpol("apply", "-f", str(EXAMPLE), "--state", str(path)).exit_code == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("by", ["option", "environment"])
def test_options_have_variables(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range of pods that is none is refused by the option's name, wherever it came from; good ones are programmed."""
    good, bad = "10.0.0.0/16", "10.0.0.0/160"
    if by == "environment":
        monkeypatch.setenv("NETPOL_POD_CIDR", f"{good} {bad}")
        assert "'--pod-cidr' (env var: 'NETPOL_POD_CIDR'): '10.0.0.0/160' is not a CIDR" in netpol("apply", "-f", str(EXAMPLE)).stderr
        monkeypatch.setenv("NETPOL_POD_CIDR", f"{good} fd00::/64")
        monkeypatch.setenv("NETPOL_UNKNOWN_PODS", "deny")
        netpol("apply", "-f", str(EXAMPLE))
    else:
        assert "is not a CIDR" in netpol("apply", "-f", str(EXAMPLE), "--pod-cidr", good, "--pod-cidr", bad).stderr
        netpol("apply", "-f", str(EXAMPLE), "--pod-cidr", good, "--unknown-pods", "deny")
    assert "-s 10.0.0.0/16 -g NETPOL-DENY" in rules()


def test_a_first_install_says_that_it_waits(tmp_path: Path) -> None:
    """A node that tracks nothing is given its grace, with a warning, and then all is in force; the second time there is none."""
    (tmp_path / "all.yaml").write_text(PODS + "---\n" + POLICY % "a")
    first, second = (netpol("apply", "-f", str(tmp_path), "--grace", "0.05") for _ in range(2))
    assert "this node tracked no connections" in first.stderr
    assert "0.05 s" in first.stderr
    assert "-d 10.0.0.1/32" in rules()
    assert (second.stderr, "nothing to change" in second.output) == ("", True)


def test_running_flows_are_cut_and_given_back(tmp_path: Path) -> None:
    """One that the policy denies gets the mark, at once or at the end of the grace; without cutting it loses it."""
    (tmp_path / "all.yaml").write_text(PODS + "---\n" + POLICY % "a")
    ends = ["-s", "192.0.2.1", "-d", "10.0.0.1", "-p", "tcp", "--sport", "40000", "--dport", "80"]
    run("conntrack", "-I", *ends, "--state", "ESTABLISHED", "-u", "SEEN_REPLY,ASSURED", "-t", "99")
    assert "1 running flow cut, 0 given back" in netpol("apply", "-f", str(tmp_path), "--cut-bit", "0x20000000").output
    assert f"mark={0x20000000}" in run("conntrack", "-L")
    assert "0 running flows cut, 1 given back" in netpol("apply", "-f", str(tmp_path), "--cut-bit", "0x20000000", "--no-cut-flows").output
    assert "mark=0 " in run("conntrack", "-L")
