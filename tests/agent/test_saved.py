"""The saved state: the same again, refused when damaged, put back at boot."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpol.agent.saved import FORMAT, SavedStateError, load, save
from netpol.cli.main import main
from netpol.kernel import ipset
from netpol.kernel.apply import Kernel
from netpol.model import Object, parse_address
from netpol.rules.compile import Settings, compiled
from netpol.rules.interpret import Packet, interpret
from netpol.rules.ruleset import Ruleset, is_front
from netpol.rules.text import ipset_save, iptables_save
from tests import clusters
from tests.agent.stage import OBJECTS
from tests.referees import run

STATES = Path(__file__).parent / "states"
EXAMPLE = str(Path(__file__).parents[2] / "examples" / "kubernetes-docs.yaml")
several = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def netpol(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@several
@given(clusters.clusters())
def test_what_was_saved_is_loaded(tmp_path: Path, items: tuple[Object, ...]) -> None:
    """Any ruleset comes back equal; saving it again gives the same bytes, and no other file stays behind."""
    ruleset = compiled(clusters.build(items), clusters.NODE)
    path = tmp_path / "state"
    save(path, ruleset)
    first = path.read_bytes()
    found = load(path)
    assert found == ruleset
    save(path, ruleset)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@several
@given(st.data())
def test_a_file_with_any_byte_wrong_is_refused_by_name(tmp_path: Path, data: st.DataObject) -> None:
    """One bit flipped, or cut off anywhere: an error that names the file, never another ruleset."""
    path = tmp_path / "state"
    save(path, compiled(clusters.build(()), clusters.NODE))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    for bad in (flipped, good[:at]):
        path.write_bytes(bad)
        with pytest.raises(SavedStateError, match=str(path)):
            load(path)


def test_no_file_is_no_state_and_another_version_is_refused(tmp_path: Path) -> None:
    """Absent is None; a file of a later format says that it is not this version's; a directory in its place is an error too."""
    assert load(tmp_path / "state") is None
    (tmp_path / "state").write_bytes(FORMAT.replace(b"2", b"3") + bytes(64))
    with pytest.raises(SavedStateError, match="not a state that this version"):
        load(tmp_path / "state")
    with pytest.raises(SavedStateError, match="directory"):
        load(tmp_path)


def test_what_is_there_and_no_file_is_left_alone(tmp_path: Path) -> None:
    """Not written over, and not read to no end. Behind a link is the file, and the link stays."""
    ruleset = compiled(clusters.build(()), clusters.NODE)
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "socket"))
    for path, words in ((tmp_path / "socket", "this is no file"), (tmp_path, "this is a directory"), (Path(), "this is a directory")):
        for use in (load, lambda path: save(path, ruleset)):
            with pytest.raises(SavedStateError, match=words):
                use(path)
    assert (tmp_path / "socket").is_socket()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to("elsewhere/state")
    save(tmp_path / "state", ruleset)
    assert (tmp_path / "state").is_symlink()
    assert load(tmp_path / "elsewhere" / "state") == ruleset
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["state"]


def test_a_state_that_an_earlier_netpol_wrote() -> None:
    """Kept in tests/agent/states, by the number of its format, with what it means. Where it comes to mean something else, or nothing, the
    form of rules or sets has changed: then FORMAT gets the next number, and a state of that form goes beside this one.
    """
    number = FORMAT.split()[-1].decode()
    found = load(STATES / number)
    assert found is not None
    assert ipset_save(found) + iptables_save(found, 4) + iptables_save(found, 6) == (STATES / f"{number}.txt").read_text()
    assert found.hooked == {4, 6}


@pytest.mark.usefixtures("netns")
def test_32_a_boot_brings_back_what_was_written(tmp_path: Path) -> None:
    """apply saves, the kernel forgets all, restore brings the same rules and sets back; then there is nothing left for apply to do."""
    path = str(tmp_path / "state")
    assert netpol("apply", "-f", EXAMPLE, "--state", path).exit_code == 0
    before = run("iptables-legacy-save", "-t", "mangle"), run("ipset", "save")
    assert netpol("cleanup").exit_code == 0
    assert "NETPOL" not in run("iptables-legacy-save", "-t", "mangle")
    assert netpol("restore", "--state", path).exit_code == 0
    after = run("iptables-legacy-save", "-t", "mangle"), run("ipset", "save")
    for old, new in zip(before, after, strict=True):
        assert sorted(line for line in old.splitlines() if line[:1] != "#") == sorted(line for line in new.splitlines() if line[:1] != "#")
    assert "nothing to change" in netpol("apply", "-f", EXAMPLE).output


@pytest.mark.usefixtures("netns")
def test_without_a_saved_state_boot_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open programs nothing; closed denies the pod ranges in both directions, and needs to know them."""
    missing = str(tmp_path / "state")
    assert netpol("restore", "--state", missing).exit_code == 0
    assert "NETPOL" not in run("iptables-legacy-save")
    assert netpol("restore", "--state", missing, "--boot", "closed").exit_code == 2
    assert netpol("restore", "--state", missing, "--boot", "closed", "--pod-cidr", "10.244.0.0/24").exit_code == 0
    monkeypatch.setenv("NETPOL_POD_CIDR", "10.244.0.0/24")
    assert netpol("restore", "--state", missing, "--boot", "closed").exit_code == 0
    saved = run("iptables-legacy-save", "-t", "mangle")
    assert "-A NETPOL-EGRESS -s 10.244.0.0/24 -g NETPOL-DENY" in saved
    assert "-A NETPOL-INGRESS -d 10.244.0.0/24 -g NETPOL-DENY" in saved


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("NETPOL_POD_CIDR", "10.244.0.0/24,10.244.1.0/24", id="ranges"),
        pytest.param("NETPOL_TABLE", "nat", id="table"),
        pytest.param("NETPOL_CUT_BIT", "0x3", id="bit"),
    ],
)
def test_a_setting_that_cannot_be_keeps_no_state_from_coming_back(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent refuses it, and the next boot would open the node: it is told, by the variable's name. An argument is refused."""
    path = str(tmp_path / "state")
    assert netpol("apply", "-f", EXAMPLE, "--state", path).exit_code == 0
    assert netpol("cleanup").exit_code == 0
    monkeypatch.setenv(name, value)
    back = netpol("restore", "--state", path)
    assert (back.exit_code, "NETPOL-DENY" in run("iptables-legacy-save", "-t", "mangle")) == (0, True)
    assert f"(env var: '{name}')" in back.stderr
    assert back.stderr.endswith("it does not count\n")
    monkeypatch.undo()
    assert netpol("cleanup").exit_code == 0
    option = "--" + name.removeprefix("NETPOL_").lower().replace("_", "-")
    assert netpol("restore", "--state", path, option, value).exit_code == 2
    assert "NETPOL" not in run("iptables-legacy-save", "-t", "mangle")


@pytest.mark.usefixtures("netns")
def test_settings_that_do_not_fit_keep_no_node_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejecting in a table that cannot: a saved state needs it not, and a node that is to be closed is closed otherwise."""
    path, missing = str(tmp_path / "state"), str(tmp_path / "none")
    assert netpol("apply", "-f", EXAMPLE, "--state", path).exit_code == 0
    monkeypatch.setenv("NETPOL_DENY", "reject")
    assert netpol("restore", "--state", path).exit_code == 0
    assert netpol("cleanup").exit_code == 0
    done = netpol("restore", "--state", missing, "--boot", "closed", "--pod-cidr", "10.244.0.0/24")
    assert (done.exit_code, "they are dropped" in done.stderr) == (0, True)
    assert "-A NETPOL-DENY -j DROP" in run("iptables-legacy-save", "-t", "mangle")


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"nonsense", id="nonsense"),
        pytest.param(b"", id="empty"),
        pytest.param(FORMAT.replace(b"2", b"1") + bytes(64), id="older"),
        pytest.param(FORMAT + bytes(64), id="damaged"),
    ],
)
def test_a_state_that_cannot_be_used(tmp_path: Path, content: bytes) -> None:
    """Damaged, or of an older version: named; open programs nothing and exits 1, closed closes, and is no failure."""
    path = tmp_path / "state"
    path.write_bytes(content)
    result = netpol("restore", "--state", str(path))
    assert (result.exit_code, str(path) in result.stderr) == (1, True)
    assert "NETPOL" not in run("iptables-legacy-save", "-t", "mangle")
    result = netpol("restore", "--state", str(path), "--boot", "closed", "--pod-cidr", "10.0.0.0/8")
    assert (result.exit_code, str(path) in result.stderr) == (0, True)
    assert "-A NETPOL-INGRESS -d 10.0.0.0/8 -g NETPOL-DENY" in run("iptables-legacy-save", "-t", "mangle")


@pytest.mark.usefixtures("netns")
def test_a_state_that_the_kernel_refuses(tmp_path: Path) -> None:
    """A set of another type that somebody uses is in the way: named; open exits 1, closed closes, in its own table, and is no failure."""
    path = str(tmp_path / "state")
    assert netpol("apply", "-f", EXAMPLE, "--state", path, "--table", "filter").exit_code == 0
    name = next(line.split()[1] for line in run("ipset", "save").splitlines() if line.startswith("create NETPOL4"))
    assert netpol("cleanup").exit_code == 0
    run("ipset", "create", name, "list:set")
    run("iptables-legacy", "-w", "-A", "INPUT", "-m", "set", "--match-set", name, "src", "-j", "ACCEPT")
    result = netpol("restore", "--state", path)
    assert (result.exit_code, name in result.stderr) == (1, True)
    assert "NETPOL-DENY" not in run("iptables-legacy-save")
    result = netpol("restore", "--state", path, "--boot", "closed", "--pod-cidr", "10.0.0.0/8")
    assert (result.exit_code, name in result.stderr) == (0, True)
    assert "-A NETPOL-INGRESS -d 10.0.0.0/8 -g NETPOL-DENY" in run("iptables-legacy-save", "-t", "mangle")


@pytest.mark.usefixtures("netns")
def test_a_state_with_a_bitmap_on_a_kernel_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set that only saves time is left out, and all else is put back: each packet of the tree's pods is judged as it was."""
    cluster = clusters.build(OBJECTS)
    wanted = compiled(cluster, "n", Settings(front_from=1))
    assert any(is_front(name) for name in wanted.sets)
    save(tmp_path / "state", wanted)
    monkeypatch.setitem(ipset._REVISIONS, "bitmap:ip", 99)
    result = netpol("restore", "--state", str(tmp_path / "state"))
    assert (result.exit_code, result.stderr) == (0, "")
    with Kernel() as kernel:
        assert kernel.read() == compiled(cluster, "n", Settings(front_from=0))


@pytest.mark.usefixtures("netns")
def test_a_saved_state_that_was_lost_is_saved_again(tmp_path: Path) -> None:
    """Also where nothing is to be changed; one that is right already is not written again."""
    path = tmp_path / "state"
    assert netpol("apply", "-f", EXAMPLE, "--state", str(path)).exit_code == 0
    good, first = path.read_bytes(), path.stat()
    for lose in (path.unlink, lambda: path.write_bytes(b"netpol state 1\n")):
        lose()
        assert "nothing to change" in netpol("apply", "-f", EXAMPLE, "--state", str(path)).output
        assert path.read_bytes() == good
    again = path.stat()
    assert netpol("apply", "-f", EXAMPLE, "--state", str(path)).exit_code == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (again.st_ino, again.st_mtime_ns) != (first.st_ino, first.st_mtime_ns)


def test_closed_is_closed_for_both_families_and_new_flows_only() -> None:
    """From and to the ranges nothing new passes; what is established does, and so does neighbour discovery."""
    from netpol.model import ICMPV6, TCP, parse_network
    from netpol.rules.compile import Settings
    from netpol.rules.compile.skeleton import closed

    ruleset: Ruleset = closed(Settings(), (parse_network("10.244.0.0/24"), parse_network("fd00::/64")))
    for pod, other in (("10.244.0.9", "192.0.2.1"), ("fd00::9", "2001:db8::1")):
        there, back = parse_address(pod), parse_address(other)
        assert not interpret(ruleset, Packet(there, back, TCP, 80, 1)).passes
        assert not interpret(ruleset, Packet(back, there, TCP, 80, 1)).passes
        assert interpret(ruleset, Packet(back, there, TCP, 80, 1, state="ESTABLISHED")).passes
        assert interpret(ruleset, Packet(back, back, TCP, 80, 1)).passes
    assert interpret(ruleset, Packet(there, back, ICMPV6, icmp_type=135)).passes
