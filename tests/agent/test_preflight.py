"""Preflight against real namespaces: each check meets what it is there for, made by the real tools; fixture files where this kernel
has no such thing (IPVS, flow tables, a full table of connections)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netpol.agent.enforcer import Enforcer
from netpol.agent.preflight import Check, obstacles, preflight
from netpol.cli.preflight import _show
from netpol.kernel import matches, targets
from netpol.kernel.apply import Kernel
from netpol.kernel.ipset_errors import translate
from netpol.kernel.nft import Named, Nft, read_nft
from netpol.model import network, parse_address
from netpol.rules.compile import Settings
from tests.agent.process import ROOT
from tests.agent.stage import OBJECTS, enforced
from tests.referees import require, require_bridges, run

Found = dict[str, list[tuple[str, str]]]


def look(settings: Settings | None = None, root: Path = Path("/"), nft: Nft | None = None) -> Found:
    """What is not ok, by the name of the check."""
    found: Found = {}
    for check in preflight(settings or Settings(), root=root, nft=read_nft if nft is None else lambda: nft):
        if check.level != "ok":
            found.setdefault(check.name, []).append((check.level, check.words))
    return found


@pytest.fixture
def node(netns: int) -> int:
    """A namespace that forwards packets, as a node does."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    return netns


def test_nothing_stands_in_the_way(node: int) -> None:
    """On a node with netpol's own rules and sets, its bit among them, every check is ok, one line each."""
    with Kernel() as kernel:
        enforced(kernel)
        checks = preflight(Settings())
    assert [check for check in checks if check.level != "ok"] == []
    assert len({check.name for check in checks}) == len(checks) == 14


BIT = 0x10000000
RULES = {
    "set": ("CONNMARK --set-mark 0x1", "fail", "PREROUTING: CONNMARK sets 0x1/0xffffffff"),
    "set the bit": ("CONNMARK --set-xmark 0x10000000/0x0", "fail", "PREROUTING: CONNMARK sets 0x10000000/0x0"),
    "save": ("CONNMARK --save-mark", "fail", "PREROUTING: CONNMARK saves the packet's mark under 0xffffffff"),
    "set and shift": (
        "CONNMARK --set-xmark 0x0/0x0 --left-shift-mark 4",
        "fail",
        "PREROUTING: CONNMARK sets 0x0/0x0, shifted by 4",
    ),
    "save what is shifted": (
        "CONNMARK --save-mark --nfmask 0x1 --ctmask 0x1 --left-shift-mark 28",
        "fail",
        "PREROUTING: CONNMARK saves the packet's mark under 0x1, shifted by 28",
    ),
    "save what is shifted down": (
        "CONNMARK --save-mark --nfmask 0x20000000 --ctmask 0x1 --right-shift-mark 1",
        "fail",
        "PREROUTING: CONNMARK saves the packet's mark under 0x1, shifted by 1",
    ),
    "mark": ("MARK --set-xmark 0x10000000/0x10000000", "warn", "PREROUTING: MARK sets 0x10000000/0x10000000"),
}
HARMLESS = {
    "set under a mask": "CONNMARK --set-xmark 0x80/0x80",
    "save under a mask": "CONNMARK --save-mark --nfmask 0x80 --ctmask 0x80",
    "save what is shifted away": "CONNMARK --save-mark --nfmask 0x10000000 --ctmask 0x1 --left-shift-mark 1",
    "restore": "CONNMARK --restore-mark",
    "restore what is shifted": "CONNMARK --restore-mark --left-shift-mark 4",
    "a whole mark": "MARK --set-mark 0x1",
    "masquerading": "MARK --or-mark 0x4000",
}


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
@pytest.mark.parametrize(("target", "level", "words"), RULES.values(), ids=RULES)
def test_somebody_who_writes_the_bit(node: int, tool: str, target: str, level: str, words: str) -> None:
    """The rule is found, in either family, with its table and chain, once; another bit that nothing touches is fine."""
    run(tool, "-t", "mangle", "-A", "PREROUTING", "-j", *target.split())
    run(tool, "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j", *target.split())
    ((found, said),) = look()["cut bit"]
    assert found == level
    assert said.startswith(f"{tool.removesuffix('-legacy')} -t mangle, {words}")


def test_somebody_who_writes_the_bit_in_many_places(node: int) -> None:
    """Each chain of each table is named, in their order, among others that leave it alone."""
    for table, chain in (("mangle", "OUTPUT"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("raw", "OUTPUT")):
        run("iptables-legacy", "-t", table, "-A", chain, "-j", "MARK", "--or-mark", "0x4000")
        if chain != "INPUT":
            run("iptables-legacy", "-t", table, "-A", chain, "-j", "CONNMARK", "--set-mark", "1")
    places = [words.split(":")[0] for _, words in look()["cut bit"]]
    assert places == ["iptables -t raw, OUTPUT", "iptables -t mangle, OUTPUT", "iptables -t mangle, PREROUTING"]


@pytest.mark.parametrize("target", HARMLESS.values(), ids=HARMLESS)
def test_somebody_who_leaves_the_bit_alone(node: int, target: str) -> None:
    """Marks of others under their masks are theirs."""
    run("iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-j", *target.split())
    assert look() == {}


@pytest.mark.parametrize("tool", ["iptables-nft", "ip6tables-nft"])
def test_somebody_who_writes_the_bit_by_nf_tables(node: int, tool: str) -> None:
    """The same target in a table of iptables-nft, in either family; under its own mask it is fine."""
    run(tool, "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j", "CONNMARK", "--set-xmark", "0x80/0x80")
    assert "cut bit" not in look()
    run(tool, "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j", "CONNMARK", "--set-mark", "1")
    ((level, words),) = look()["cut bit"]
    assert level == "fail"
    assert words.startswith(f"nft {tool.removesuffix('tables-nft')[:3]} mangle, PREROUTING: CONNMARK sets 0x1/0xffffffff, and so the bit")


def test_somebody_who_sets_marks_by_nft(node: int) -> None:
    """`ct mark set` warns, once for all places, for it does not say which bits; who asks for a mark or sets a packet's does not."""
    require("nft")
    for rule in ("table inet t", "chain inet t c { type filter hook prerouting priority 0; }", "chain inet t d"):
        run("nft", "add", *rule.split())
    for rule in ("ct mark 1 accept", "ct mark & 0x10000000 == 0 accept", "meta mark set 1", "meta mark set ct mark", "ct state new accept"):
        run("nft", "add", "rule", "inet", "t", "c", *rule.split())
    assert look() == {}
    for chain in ("c", "c", "d"):
        run("nft", "add", "rule", "inet", "t", chain, "meta", "l4proto", "tcp", "ct", "mark", "set", "ct", "mark", "or", "0x10")
    ((level, words),) = look()["cut bit"]
    assert level == "warn"
    assert words.startswith("rules of nf_tables set connection marks (nft inet t, c, nft inet t, d)")


@pytest.mark.parametrize(
    ("mark", "fine"),
    [
        pytest.param("0x10000000/0x10000000", False, id="the bit"),
        pytest.param("0/0x30000000", False, id="the bit among others"),
        pytest.param("0x1", True, id="a whole mark"),
        pytest.param("0x1/0x1", True, id="another bit"),
    ],
)
def test_somebody_who_reads_the_bit(node: int, mark: str, fine: bool) -> None:
    """A warning, in whichever table, and none where only other bits matter."""
    run("iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-m", "connmark", "--mark", mark, "-j", "ACCEPT")
    found = look()
    assert found == {} if fine else [level for level, _ in found["cut bit"]] == ["warn"]
    assert look(Settings(cut_bit=0x40000000)) == {}


@pytest.mark.parametrize(
    ("tool", "chain", "level", "words"),
    [
        pytest.param("iptables-legacy", "cali-FORWARD", "warn", "Calico has chains here (iptables -t filter)", id="Calico"),
        pytest.param(
            "ip6tables-legacy", "KUBE-NWPLCY-DEFAULT", "warn", "kube-router has chains here (ip6tables -t filter)", id="kube-router"
        ),
        pytest.param("iptables-legacy", "WEAVE-NPC-EGRESS", "warn", "Weave Net has chains here", id="Weave"),
        pytest.param("iptables-legacy", "CILIUM_FORWARD", "fail", "Cilium is at work (iptables -t filter)", id="Cilium"),
        pytest.param("iptables-nft", "cali-FORWARD", "warn", "Calico has chains here (nft ip filter)", id="Calico by nft"),
    ],
)
def test_other_engines(node: int, tool: str, chain: str, level: str, words: str) -> None:
    """Known by their chains, in legacy tables of both families and in nf_tables."""
    run(tool, "-N", chain)
    ((found, said),) = look()["engines"]
    assert (found, said[: len(words)]) == (level, words)


def test_our_own_chains_in_another_table(node: int) -> None:
    """Those that a start would move, and those that somebody's rule keeps; whose table it is says who is asked."""
    with Kernel("filter") as kernel:
        enforcer = Enforcer(kernel, "n", Settings(table="filter"))
        enforcer.put(*OBJECTS)
        enforcer.enforce()
    found = look()["tables"]
    assert [level for level, _ in found] == ["warn"]
    assert found[0][1].startswith("chains of netpol's stand beside those in mangle (iptables -t filter, ip6tables -t filter), and what")
    assert look(Settings(table="filter")) == {}
    run("iptables-legacy", "-A", "FORWARD", "-m", "comment", "--comment", "mine", "-j", "NETPOL")
    with Kernel() as kernel:
        enforced(kernel)
    assert "(iptables -t filter), and what they deny is denied" in look()["tables"][0][1]


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
def test_names_that_are_no_text(node: int, tool: str) -> None:
    """A chain's name is any bytes: what is said of it can be printed, written as JSON, and sent to a service manager."""
    name = b"x\xff\x1b[2J"
    subprocess.run([tool, "-t", "mangle", "-N", name], check=True)
    subprocess.run([tool, "-t", "mangle", "-A", name, "-j", "CONNMARK", "--set-mark", "0x10000000"], check=True)
    ((_, words),) = look()["cut bit"]
    assert words.startswith(f"{tool.removesuffix('-legacy')} -t mangle, x\\udcff\\x1b[2J: CONNMARK sets")
    assert words.isprintable()
    assert command("--json")[1]["cut bit"] == [("fail", words)]


def test_nf_tables_are_read_once(node: int) -> None:
    """However many checks want to know what is there."""
    looks = iter([Nft()])
    assert [check.name for check in preflight(Settings(), nft=lambda: next(looks)) if check.level != "ok"] == []


def test_kube_proxy_is_no_engine(node: int) -> None:
    """Its chains are on every node."""
    for chain in ("KUBE-FORWARD", "KUBE-SERVICES", "KUBE-FIREWALL"):
        run("iptables-legacy", "-N", chain)
    assert look() == {}


def test_iptables_of_both_kinds(node: int) -> None:
    """A table of iptables-nft is a warning that names it; nothing stands in the way."""
    run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT")
    run("ip6tables-nft", "-A", "FORWARD", "-j", "ACCEPT")
    ((level, words),) = look()["nft"]
    assert level == "warn"
    assert "ip nat" in words
    assert "ip6 filter" in words


def test_a_node_that_forwards_nothing(node: int) -> None:
    """Both families off is an obstacle; one on is a node of that family."""
    four, six = Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")
    for first, second, expected in (("0", "0", ["forwarding"]), ("0", "1", []), ("1", "0", []), ("1", "1", [])):
        four.write_text(first)
        six.write_text(second)
        assert list(look()) == expected, (first, second)


def test_a_lock_that_somebody_keeps(node: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning that names the file while it is held; a file that cannot be there is an obstacle."""
    with open(os.environ["XTABLES_LOCKFILE"], "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ((level, words),) = look()["lock"]
        assert (level, str(tmp_path / "xtables.lock") in words) == ("warn", True)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "none" / "lock"))
    assert [level for level, _ in look()["lock"]] == ["fail"]


def test_the_table_of_filters_is_looked_at_where_it_is_ours(node: int) -> None:
    """The table that will be programmed, and no other, is made by asking."""
    look(Settings(table="filter"))
    assert Path("/proc/thread-self/net/ip_tables_names").read_text().split() == ["filter"]


# -- a real bridge, seen by the command in the same namespace with a sysfs of it ---------------------------------------------


def command(*arguments: str, before: tuple[str, ...] = ()) -> tuple[int, dict[str, list[tuple[str, str]]], str]:
    """`netpol preflight --json` there: exit status, what is not ok, and all of its output."""
    require("unshare", "mount", *before[:1])
    script = 'mount -t sysfs sysfs /sys && exec "$@"'
    program = (sys.executable, "-m", "netpol.cli.main", "preflight", *arguments)
    done = subprocess.run(
        ("unshare", "-m", "sh", "-c", script, "sh", *before, *program), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (0, 1), done.stderr
    found: Found = {}
    for check in json.loads(done.stdout) if "--json" in arguments else []:
        if check["level"] != "ok":
            found.setdefault(check["name"], []).append((check["level"], check["words"]))
    return done.returncode, found, done.stdout


def calls(family: str, value: int) -> None:
    Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}").write_text(str(value))


@pytest.fixture
def bridge(node: int) -> None:
    """A bridge with the node's address of its pods' ranges."""
    require_bridges()
    run("ip", "link", "add", "pods0", "up", "type", "bridge")
    run("ip", "address", "add", "10.9.0.1/24", "dev", "pods0")
    run("ip", "address", "add", "fd09::1/64", "dev", "pods0", "nodad")


def test_pods_on_a_bridge(bridge: None) -> None:
    """Without the hooks' help each family is an obstacle, as soon as the bridge has a port, and only where pods may be on it."""
    for family in ("iptables", "ip6tables"):
        calls(family, 0)
    assert command("--json")[:2] == (0, {})
    run("ip", "link", "add", "port0", "up", "master", "pods0", "type", "veth", "peer", "pod0")
    status, found, _ = command("--json")
    assert status == 1
    assert [level for level, _ in found["bridge"]] == ["fail", "fail"]
    assert "(pods0) IPv4 packets meet no rules" in found["bridge"][0][1]
    assert command("--json", "--pod-cidr", "10.8.0.0/16", "--pod-cidr", "fd08::/48")[1] == {}
    # Pods of one family have link-local addresses of the other.
    for ranges in (("10.9.0.0/16", "fd08::/48"), ("10.9.0.0/16",), ("fd09::/48",)):
        assert len(command("--json", *(word for net in ranges for word in ("--pod-cidr", net)))[1]["bridge"]) == 2
    calls("iptables", 1)
    assert ["IPv6" in words for _, words in command("--json")[1]["bridge"]] == [True]
    run("ip", "link", "set", "pods0", "type", "bridge", "nf_call_ip6tables", "1")
    assert command("--json")[:2] == (0, {})


@pytest.mark.parametrize("ranges", [("10.8.0.0/16",), ("fd08::/48",)])
def test_somebody_elses_bridge_of_one_family(node: int, ranges: tuple[str, ...]) -> None:
    """A bridge of virtual machines that has addresses of one family only is no obstacle, whichever family's ranges are known."""
    for family in ("iptables", "ip6tables"):
        calls(family, 0)
    run("ip", "link", "add", "virbr0", "up", "type", "bridge")
    run("ip", "address", "add", "192.168.122.1/24", "dev", "virbr0")
    run("ip", "link", "add", "port0", "up", "master", "virbr0", "type", "veth", "peer", "vm0")
    assert len(command("--json")[1]["bridge"]) == 2
    assert command("--json", *(word for net in ranges for word in ("--pod-cidr", net)))[:2] == (0, {})


def conf(name: str, device: str, value: int) -> None:
    Path(f"/proc/sys/net/ipv4/conf/{device}/{name}").write_text(str(value))


@pytest.fixture
def pods(node: int) -> None:
    """Two pods with devices and routes of their own, of both families, and devices that lead to somebody else."""
    require_bridges()
    for number in (1, 2):
        run("ip", "link", "add", f"cali{number}", "up", "type", "veth", "peer", f"pod{number}")
        run("ip", "route", "add", f"10.9.0.{number}", "dev", f"cali{number}")
        run("ip", "route", "add", f"fd09::{number}", "dev", f"cali{number}")
        conf("rp_filter", f"cali{number}", 0)
    conf("rp_filter", "all", 0)
    run("ip", "link", "add", "uplink", "up", "type", "bridge")
    run("ip", "address", "add", "fd01::2/64", "dev", "uplink", "nodad")
    for gateway in ("10.1.0.1", "fd01::1"):
        run("ip", "route", "add", gateway, "dev", "uplink")
    run("ip", "link", "add", "over", "up", "link", "uplink", "type", "macvlan")
    run("ip", "route", "add", "10.9.0.3", "dev", "over")
    conf("rp_filter", "over", 0)
    # A pair that leads to a network, in which the node has an address.
    run("ip", "link", "add", "wide", "up", "type", "veth", "peer", "network")
    run("ip", "address", "add", "10.9.1.1/24", "dev", "wide")
    run("ip", "address", "add", "fd09:0:0:1::1/64", "dev", "wide", "nodad")
    conf("rp_filter", "wide", 0)


def test_pods_in_other_pods_names(pods: None) -> None:
    """A warning of each family that names the devices, until its packets are held to the way back to their sources."""
    found = command("--json")[1]["sources"]
    assert [level for level, _ in found] == ["warn", "warn"]
    for family, (_, words) in zip((4, 6), found, strict=True):
        assert words.startswith(f"pods on cali1, cali2 can send IPv{family} packets in other pods' names")
    conf("rp_filter", "cali1", 1)
    assert "pods on cali2 can send IPv4" in command("--json")[1]["sources"][0][1]
    # The larger of the two counts, and 2 asks for a way back by any device.
    conf("rp_filter", "all", 2)
    assert "pods on cali1, cali2 can send IPv4" in command("--json")[1]["sources"][0][1]
    conf("rp_filter", "all", 1)
    ((_, words),) = command("--json")[1]["sources"]
    assert "IPv6" in words
    run("ip6tables-legacy", "-t", "raw", "-A", "PREROUTING", "-m", "rpfilter", "--loose", "--invert", "-j", "DROP")
    assert "IPv6" in command("--json")[1]["sources"][0][1]
    run("ip6tables-legacy", "-t", "raw", "-A", "PREROUTING", "-m", "rpfilter", "--invert", "-j", "DROP")
    assert command("--json")[:2] == (0, {})
    conf("rp_filter", "all", 0)
    assert "IPv4" in command("--json")[1]["sources"][0][1]
    run("iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-m", "rpfilter", "--invert", "-j", "DROP")
    assert command("--json")[:2] == (0, {})


def test_pairs_of_devices_that_are_no_pods(pods: None) -> None:
    """Where the pods' ranges are known, what leads elsewhere is somebody else's."""
    assert command("--json", "--pod-cidr", "10.8.0.0/16", "--pod-cidr", "fd08::/48")[:2] == (0, {})
    ((_, words),) = command("--json", "--pod-cidr", "10.9.0.0/16")[1]["sources"]
    assert "IPv4" in words


def test_packets_that_choose_their_way(node: int) -> None:
    """Source routes lead packets on behind the rules."""
    conf("accept_source_route", "all", 1)
    ((level, words),) = look()["sources"]
    assert (level, words.rpartition(" ")[2]) == ("warn", "net.ipv4.conf.all.accept_source_route=0")


def test_without_the_capability(node: int) -> None:
    """Each thing that needs it says so, and the command ends with 1."""
    status, found, _ = command("--json", before=("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"))
    assert status == 1
    assert {"capabilities", "x_tables", "ip_set"} <= found.keys()
    assert found["capabilities"][0][0] == "fail"
    assert "NET_ADMIN" in found["capabilities"][0][1]


def test_for_people(node: int) -> None:
    """A table of a line or more for each check; the settings' bit is the one looked for."""
    run("iptables-legacy", "-t", "mangle", "-A", "FORWARD", "-j", "CONNMARK", "--set-xmark", "0x20000000/0x20000000")
    assert command()[0] == 0
    status, _, output = command("--cut-bit", "0x20000000")
    assert status == 1
    assert [line.split()[0] for line in output.splitlines() if line[0] != " "].count("fail") == 1
    assert output.count("ok ") >= 11


def test_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every letter of what is to be typed is there, on as many lines as it takes."""
    monkeypatch.setenv("COLUMNS", "40")
    words = "run `sysctl -w net.bridge.bridge-nf-call-iptables=1`"
    _show([Check("capabilities", "fail", words)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    shown = "".join("".join(lines).split())
    assert shown.removeprefix("failcapabilities") == words.replace(" ", "")


# -- fixture files -----------------------------------------------------------------------------------------------------


def tree(root: Path, **files: str) -> Path:
    """Files below a root, by paths with __ for /; those that every look needs are there."""
    status = Path("/proc/thread-self/status").read_text()
    for name, text in {"proc__thread-self__status": status, "proc__sys__net__ipv4__ip_forward": "1\n", **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_kernel_without_sets(netns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to load is said, and once."""

    def refused() -> None:
        raise translate(errno.EPROTONOSUPPORT, "open", "netlink socket")

    monkeypatch.setattr("netpol.agent.preflight.IpsetSocket", refused)
    ((level, words),) = look()["ip_set"]
    assert level == "fail"
    assert words.count("load the module") == 1


def test_a_kernel_without_a_match_or_target(node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A match and a target that no kernel has, as an older one has not what netpol writes: both are named, for each family."""
    monkeypatch.setattr(matches, "REVISIONS", (*matches.REVISIONS, ("set", 99)))
    monkeypatch.setattr(targets, "REVISIONS", (*targets.REVISIONS, ("NFLOG", 98)))
    lacking = "this kernel lacks match set revision 99, target NFLOG revision 98: load the modules (modprobe xt_...)"
    assert look() == {"x_tables": [("fail", f"IPv{family}: {lacking}") for family in (4, 6)]}


def test_ipvs(netns: int, tmp_path: Path) -> None:
    """Virtual services, or kube-proxy's device, are an obstacle; the module alone is none."""
    header = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward ...\n"
    root = tree(tmp_path, **{"proc__thread-self__net__ip_vs": header})
    assert look(root=root) == {}
    tree(
        tmp_path,
        **{"proc__thread-self__net__ip_vs": header + "TCP  0A600001:01BB rr\n  -> 0A000001:192B      Masq    1      1          0\n"},
    )
    assert "1 virtual services" in look(root=root)["ipvs"][0][1]
    tree(tmp_path, **{"proc__thread-self__net__ip_vs": header, "sys__class__net__kube-ipvs0__flags": "0x1"})
    assert [(level, "kube-ipvs0" in words) for level, words in look(root=root)["ipvs"]] == [("fail", True)]


@pytest.mark.parametrize(("count", "expected"), [(89, []), (90, ["warn"]), (100, ["warn"])])
def test_a_table_of_connections_that_is_nearly_full(netns: int, tmp_path: Path, count: int, expected: list[str]) -> None:
    """A warning from nine tenths on."""
    numbers = {f"proc__sys__net__netfilter__nf_conntrack_{name}": f"{number}\n" for name, number in (("count", count), ("max", 100))}
    root = tree(tmp_path, **numbers)
    assert [level for level, _ in look(root=root).get("conntrack", [])] == expected


def test_flow_tables(netns: int, tmp_path: Path) -> None:
    """Each is named; nothing is done with those that are not there."""
    found = look(root=tree(tmp_path), nft=Nft(flow_tables=(Named("inet", "fw", "fast"), Named("ip", "a", "b"))))
    assert [(level, words[:55]) for level, words in found["off-load"]] == [
        ("fail", "nf_tables off-loads flows (inet fw fast, ip a b): they ")
    ]


BRIDGE = {
    "sys__class__net__br0__bridge__x": "",
    "sys__class__net__br0__brif__p__x": "",
    "proc__sys__net__bridge__bridge-nf-call-ip6tables": "1",
}


def test_files_of_another_form(netns: int, tmp_path: Path) -> None:
    """What cannot be read is said, and the other checks are done."""
    found = look(root=tree(tmp_path, **BRIDGE, **{"proc__thread-self__net__route": "Iface\nbr0 zz\n"}))
    assert [level for level, _ in found["bridge"]] == ["fail"]
    assert found["bridge"][0][1].startswith("this cannot be looked at: ")


def test_ranges_are_compared_by_overlap(netns: int, tmp_path: Path) -> None:
    """A route that holds a range, or lies in one, is a way to pods."""
    route = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\nbr0 0000090A 00000000 0001 0 0 0 0000FFFF 0 0 0\n"
    root = tree(tmp_path, **BRIDGE, **{"proc__thread-self__net__route": route})
    for address, length, expected in (("10.9.3.0", 24, True), ("10.0.0.0", 8, True), ("10.10.0.0", 16, False)):
        checks = preflight(Settings(), [network(parse_address(address), length)], root, Nft)
        assert ("bridge" in " ".join(obstacles(checks))) is expected, address
