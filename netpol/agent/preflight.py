"""Whether enforcement on this node is real: what the kernel lacks, and what lets packets go by our rules or undoes our marks.

A check is a value: its name, ok, warn or fail, and words that say what to do. *fail* is what makes enforcement an illusion, or
impossible; the agent is not ready then. *warn* is what somebody should know. `preflight` looks at everything once, from files under
`root` and through sockets in the calling thread's network namespace; it writes nothing (asking for a table makes the kernel create it,
if it is the one that netpol programs anyway) and takes some milliseconds. What cannot be looked at fails with the reason.

What no check can see: macvlan, ipvlan and SR-IOV devices of pods, and eBPF programs that pass packets on before FORWARD.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from netpol.errors import Contended, KernelError, NetpolError, printable
from netpol.kernel.ipset import IpsetSocket
from netpol.kernel.nft import Nft, read_nft
from netpol.kernel.strangers import foreign_chains, looks_back, target_use, uses
from netpol.kernel.table import Snapshot
from netpol.kernel.xtables import TableSocket, families, lock_path
from netpol.model import FAMILIES, Family, Network, network
from netpol.rules.compile import Settings
from netpol.rules.ruleset import is_ours

Level = Literal["ok", "warn", "fail"]

LOCK_WAIT_MS = 1000
NEARLY_FULL = 0.9  # of the table of connections
NAMED = 5  # things that one sentence names
NET_ADMIN = 12
_OWN = 0x80100000  # flags of IPv6's routes to addresses of this node: local, anycast
TABLES = ("raw", "mangle", "nat", "filter", "security")
TOOL: dict[Family, str] = {4: "iptables", 6: "ip6tables"}
# Chains by which other policy engines are known. Cilium's programs pass packets on before any FORWARD; the others enforce beside us.
ENGINES = {
    "cali-": "Calico",
    "KUBE-ROUTER-": "kube-router",
    "KUBE-NWPLCY-": "kube-router",
    "KUBE-POD-FW-": "kube-router",
    "WEAVE-NPC": "Weave Net",
    "AZURE-NPM": "Azure NPM",
    "ANTREA-": "Antrea",
    "CILIUM_": "Cilium",
}
BYPASSING = frozenset({"Cilium"})


class Check(Struct, frozen=True):
    """See the module."""

    name: str
    level: Level
    words: str


class Finding(NamedTuple):
    """What a check found; without any, it is ok with the words of its row."""

    level: Level
    words: str


class Node:
    """What the checks look at. Files are read below `root`; tables once, the first time that somebody wants them."""

    def __init__(self, settings: Settings, ranges: Sequence[Network], root: Path, nft: Callable[[], Nft]) -> None:
        self.settings, self.ranges, self._read_nft = settings, tuple(ranges), nft
        self._root = str(root).rstrip("/")  # there are thousands of files to be read, and a Path takes longer than that
        self._tables: dict[Family, tuple[Snapshot, ...]] = {}
        self._nft: Nft | None = None

    def text(self, path: str) -> str | None:
        """A file's text without white space around it; None where there is none that can be read."""
        try:
            with open(f"{self._root}/{path}") as file:
                return file.read().strip()
        except (OSError, ValueError):
            return None

    def number(self, path: str) -> int | None:
        text = self.text(path)
        return int(text) if text is not None and text.isdecimal() else None

    def names(self, path: str) -> list[str]:
        """What a directory holds; nothing where there is none that can be read."""
        try:
            return os.listdir(f"{self._root}/{path}")
        except OSError:
            return []

    def devices(self) -> list[str]:
        return sorted(self.names("sys/class/net"))

    def nft(self) -> Nft:
        if self._nft is None:
            self._nft = self._read_nft()
        return self._nft

    def tables(self, family: Family) -> tuple[Snapshot, ...]:
        """The legacy tables that are there."""
        if family not in families():
            return ()
        if family not in self._tables:
            with TableSocket(family, LOCK_WAIT_MS) as socket:
                self._tables[family] = tuple(socket.read(name) for name in TABLES if socket.exists(name))
        return self._tables[family]


def preflight(
    settings: Settings, ranges: Sequence[Network] = (), root: Path = Path("/"), nft: Callable[[], Nft] = read_nft
) -> tuple[Check, ...]:
    """All checks. ranges -- of the node's pods, where they are known."""
    node = Node(settings, ranges, root, nft)
    found: list[Check] = []
    for name, fine, check in CHECKS:
        try:
            findings = list(check(node))
        except (NetpolError, OSError, ValueError, IndexError) as error:
            findings = [Finding("fail", f"this cannot be looked at: {error}")]
        # Names of chains and devices are whoever's.
        found += [Check(name, finding.level, printable(finding.words)) for finding in findings or [Finding("ok", fine)]]
    return tuple(found)


# -- what enforcement needs --------------------------------------------------------------------------------------------


def _capabilities(node: Node) -> Iterator[Finding]:
    lines = dict(line.split(":\t", 1) for line in (node.text("proc/thread-self/status") or "").splitlines() if ":\t" in line)
    if not int(lines.get("CapEff", "0"), 16) >> NET_ADMIN & 1:
        yield Finding("fail", "CAP_NET_ADMIN is missing: run netpol as root, or add NET_ADMIN to the container's capabilities")


def _x_tables(node: Node) -> Iterator[Finding]:
    for family in families():
        try:
            with TableSocket(family, LOCK_WAIT_MS) as socket:
                socket.shape(node.settings.table)
                missing = socket.missing_revisions()
        except KernelError as error:
            yield Finding("fail", f"IPv{family}: {error.reason}")
            continue
        if missing:
            yield Finding("fail", f"IPv{family}: this kernel lacks {', '.join(missing)}: load the modules (modprobe xt_...)")


def _ip_set(node: Node) -> Iterator[Finding]:
    try:
        IpsetSocket().close()
    except KernelError as error:
        yield Finding("fail", error.reason)


def _lock(node: Node) -> Iterator[Finding]:
    with TableSocket(4, LOCK_WAIT_MS) as socket:
        try:
            with socket.locked():
                pass
        except Contended:
            words = (
                f"another program has held {lock_path()} for {LOCK_WAIT_MS / 1000:g} s, and changes wait for it: find it with fuser or lsof"
            )
            yield Finding("warn", words)
        except KernelError as error:
            words = f"{lock_path()} cannot be locked ({error.reason}); mount the host's file into the container"
            yield Finding("fail", words)


# -- what lets packets go by ------------------------------------------------------------------------------------------


def _forwarding(node: Node) -> Iterator[Finding]:
    paths = {4: "proc/sys/net/ipv4/ip_forward", 6: "proc/sys/net/ipv6/conf/all/forwarding"}
    found = {family: node.number(path) for family, path in paths.items()}
    if not any(found.values()):
        words = "the kernel forwards no packets, so that pods' packets never cross FORWARD: sysctl -w net.ipv4.ip_forward=1"
        yield Finding("fail", words + " (and net.ipv6.conf.all.forwarding=1), unless the network plug-in is still to do it")


def _bridge(node: Node) -> Iterator[Finding]:
    bridges = [device for device in node.devices() if node.names(f"sys/class/net/{device}/brif")]
    for family in families():
        name = TOOL[family]
        if node.number(f"proc/sys/net/bridge/bridge-nf-call-{name}"):
            continue
        bare = [device for device in bridges if not node.number(f"sys/class/net/{device}/bridge/nf_call_{name}")]
        with_pods = [device for device in bare if _has_pods(node, device)]
        if with_pods:
            words = f"between pods on one bridge ({_some(with_pods)}) IPv{family} packets meet no rules: modprobe br_netfilter, "
            yield Finding("fail", words + f"and sysctl -w net.bridge.bridge-nf-call-{name}=1")


def _has_pods(node: Node, device: str) -> bool:
    """Whether pods may sit on that bridge: not where the node's ranges are known, and it has routes, none of them to such a range.

    Of whatever family: pods of IPv4 have link-local addresses of IPv6, too.
    """
    nets = [net for family in FAMILIES for name, net in _routes(node, family) if name == device]
    return not nets or any(_may_be_pods(node, net) for net in nets)


def _may_be_pods(node: Node, net: Network) -> bool:
    """Whether pods may have addresses of that: any, where no ranges are known."""
    return not node.ranges or any(_overlap(net, known) for known in node.ranges)


def _overlap(one: Network, other: Network) -> bool:
    length = min(one.length, other.length)
    return one.family == other.family and network(one.address, length) == network(other.address, length)


def _routes(node: Node, family: Family) -> Iterator[tuple[str, Network]]:
    """(device, destination) of routes to somewhere else; default routes and link-local ones are left out."""
    if family == 4:
        for line in (node.text("proc/thread-self/net/route") or "").splitlines()[1:]:
            fields = line.split()
            length = int(fields[7], 16).bit_count()
            if length:
                yield fields[0], Network(int(fields[1], 16).to_bytes(4, "little"), length)
        return
    for line in (node.text("proc/thread-self/net/ipv6_route") or "").splitlines():
        fields = line.split()
        net = Network(bytes.fromhex(fields[0]), int(fields[1], 16))
        if net.length and not int(fields[8], 16) & _OWN and net.address[:2] != b"\xfe\x80" and net.address[0] != 0xFF:
            yield fields[9], net


def _sources(node: Node) -> Iterator[Finding]:
    is_pair = cache(partial(_is_pair, node))
    for family in families():
        if any(looks_back(table) for table in node.tables(family)):
            continue
        singles = {name for name, net in _routes(node, family) if net.length == 8 * len(net.address) and _may_be_pods(node, net)}
        loose = sorted(name for name in singles if (family == 6 or not _is_strict(node, name)) and is_pair(name))
        if loose:
            words = f"pods on {_some(loose)} can send IPv{family} packets in other pods' names, and so open those to themselves"
            stop = f"{TOOL[family]} -t raw -A PREROUTING -i DEVICE -m rpfilter --invert -j DROP"
            yield Finding("warn", f"{words}: {stop}{' (or rp_filter=1)' if family == 4 else ''}, or drop NET_RAW from containers")
    conf = "proc/sys/net/ipv4/conf"
    if node.number(f"{conf}/all/accept_source_route"):
        words = "IPv4 packets with source routes to this node go on behind the rules: sysctl -w net.ipv4.conf.all.accept_source_route=0"
        yield Finding("warn", words)


def _is_pair(node: Node, device: str) -> bool:
    """Whether a device is half of a pair, as those of pods are, and neither hardware nor what lies over it."""
    own, other = (node.number(f"sys/class/net/{device}/{name}") for name in ("ifindex", "iflink"))
    return bool(other) and own != other and not any(name.startswith("lower_") for name in node.names(f"sys/class/net/{device}"))


def _is_strict(node: Node, device: str) -> bool:
    """Whether a packet is taken only where its source is reached by the same device: the larger of two numbers counts, and 2 is less."""
    return max(node.number(f"proc/sys/net/ipv4/conf/{name}/rp_filter") or 0 for name in ("all", device)) == 1


def _ipvs(node: Node) -> Iterator[Finding]:
    services = len(
        [line for line in (node.text("proc/thread-self/net/ip_vs") or "").splitlines() if line.startswith(("TCP", "UDP", "SCTP"))]
    )
    device = "kube-ipvs0" in node.devices()
    if device or services:
        what = f"{services} virtual services" if services else "the device kube-ipvs0"
        words = f"IPVS is at work ({what}): packets to Services never cross FORWARD. Run kube-proxy in its iptables or nftables mode"
        yield Finding("fail", words)


def _off_load(node: Node) -> Iterator[Finding]:
    flow_tables = [f"{one.family} {one.table} {one.name}" for one in node.nft().flow_tables]
    if flow_tables:
        words = f"nf_tables off-loads flows ({_some(flow_tables)}): they meet no rules then and cannot be cut. Remove the flow tables"
        yield Finding("fail", words)


# -- who else is here --------------------------------------------------------------------------------------------------


def _cut_bit(node: Node) -> Iterator[Finding]:
    bit = node.settings.cut_bit
    for family in FAMILIES:
        for table in node.tables(family):
            for use in sorted(set(uses(table, bit))):
                yield _about_the_bit(f"{TOOL[family]} -t {table.table}, {use.chain}: {use.words}", use.writes, bit)
    unclear: set[str] = set()
    for rule in dict.fromkeys(node.nft().markings):
        where = f"nft {rule.family} {rule.table}, {rule.chain}"
        if rule.connmark is None:
            unclear.add(where)
        elif found := target_use("CONNMARK", *rule.connmark, bit):
            yield _about_the_bit(f"{where}: {found[0]}", found[1], bit)
    if unclear:
        words = f"rules of nf_tables set connection marks ({_some(sorted(unclear))}), and netpol cannot tell which bits of them"
        yield Finding("warn", f"{words}: see that they leave 0x{bit:x} alone, or take another bit (--cut-bit)")


def _about_the_bit(use: str, writes: bool, bit: int) -> Finding:
    if writes:
        return Finding(
            "fail", f"{use}, and so the bit 0x{bit:x} that marks flows that were cut: take another (--cut-bit), or give it a mask"
        )
    return Finding("warn", f"{use}, which is netpol's bit 0x{bit:x}: take another (--cut-bit)")


def _engines(node: Node) -> Iterator[Finding]:
    places: dict[str, set[str]] = {}
    for family in FAMILIES:
        for table in node.tables(family):
            for chain in foreign_chains(table):
                _enter(places, chain, f"{TOOL[family]} -t {table.table}")
    for named in (*node.nft().chains, *(one._replace(name=one.table) for one in node.nft().tables)):
        _enter(places, named.name, f"nft {named.family} {named.table}")
    for engine, where in sorted(places.items()):
        if engine in BYPASSING:
            words = (
                f"{engine} is at work ({_some(sorted(where))}): its eBPF programs pass packets on before any FORWARD. Run one or the other"
            )
            yield Finding("fail", words)
        else:
            words = f"{engine} has chains here ({_some(sorted(where))}): what either denies is denied. Remove what it left, if it is gone"
            yield Finding("warn", words)


def _enter(places: dict[str, set[str]], chain: str, where: str) -> None:
    for prefix, engine in ENGINES.items():
        if chain.startswith(prefix):
            places.setdefault(engine, set()).add(where)


def _two_tables(node: Node) -> Iterator[Finding]:
    ours = node.settings.table
    where = [
        f"{TOOL[family]} -t {table.table}"
        for family in FAMILIES
        for table in node.tables(family)
        if table.table != ours and any(span.hook < 0 and is_ours(span.name) for span in table.spans)
    ]
    if where:
        words = f"chains of netpol's stand beside those in {ours} ({_some(where)}), and what they deny is denied"
        yield Finding("warn", f"{words}: a start takes them away (or --table is another), unless somebody else's rule jumps there")


def _mix(node: Node) -> Iterator[Finding]:
    names = [f"{one.family} {one.name}" for one in node.nft().tables if one.family in ("ip", "ip6") and one.name in TABLES]
    if names:
        words = f"iptables-nft has tables here too ({_some(names)}); packets meet both. Look at netpol's rules with iptables-legacy"
        yield Finding("warn", words)


def _conntrack(node: Node) -> Iterator[Finding]:
    count, most = (node.number(f"proc/sys/net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count is not None and most and count >= NEARLY_FULL * most:
        yield Finding(
            "warn", f"{count} connections of at most {most} are tracked, and new ones will be dropped: raise net.netfilter.nf_conntrack_max"
        )


def _some(things: Sequence[str]) -> str:
    more = len(things) - NAMED
    return ", ".join(things[:NAMED]) + (f" and {more} more" if more > 0 else "")


CHECKS: tuple[tuple[str, str, Callable[[Node], Iterator[Finding]]], ...] = (
    ("capabilities", "CAP_NET_ADMIN is there", _capabilities),
    ("x_tables", "legacy tables and all that netpol's rules use are there, for both families", _x_tables),
    ("ip_set", "the kernel has ip_set", _ip_set),
    ("lock", "iptables' lock can be taken", _lock),
    ("forwarding", "the kernel forwards packets", _forwarding),
    ("bridge", "no pods talk behind the rules' back", _bridge),
    ("sources", "pods with devices of their own send in no other's name", _sources),
    ("ipvs", "no Service by IPVS", _ipvs),
    ("off-load", "no flow tables are to be seen", _off_load),
    ("cut bit", "nobody else uses the bit of flows that were cut", _cut_bit),
    ("engines", "no other policy engine's chains", _engines),
    ("tables", "no rules of netpol's in another table", _two_tables),
    ("nft", "no tables of iptables-nft", _mix),
    ("conntrack", "there is room for connections", _conntrack),
)


def obstacles(checks: Sequence[Check]) -> list[str]:
    """What keeps a node from being ready, a sentence each."""
    return [f"{check.name}: {check.words}" for check in checks if check.level == "fail"]
