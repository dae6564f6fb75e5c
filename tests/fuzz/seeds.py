"""The seed corpora of the fuzz targets, made by the real code each time: rules of every form as they are packed, tables that a kernel
handed out, a dump of sets that a kernel sent, and the messages that the hostile tests start from.

The first byte of a seed chooses what a target does with the rest (see each target).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec

from netpol.kernel import namespaces
from netpol.kernel.encode import encode_chains, pack_chains
from netpol.kernel.ipset import Create, IpsetSocket
from netpol.kernel.xtables import TableSocket
from netpol.model import FAMILIES, parse_network
from netpol.rules.ruleset import DROP, ROOT, Chain, Goto, Jump, Rule
from tests.kernel import test_conntrack_hostile as conntrack
from tests.kernel import test_ipset_hostile as ipset
from tests.kernel import test_listing as listing
from tests.kernel import test_nflog_hostile as nflog
from tests.kernel.rule_cases import CASES, EVERY
from tests.kernel.test_nflog import PORTS, extension, ipv4, ipv6
from tests.kube import protobuf, test_protobuf

_LINKED = (Chain(ROOT, (Rule(Jump("NETPOL-A")), Rule(Goto("NETPOL-A")))), Chain("NETPOL-A", (Rule(DROP), Rule(DROP))))


def write(folder: Path, lock: Path) -> None:
    """Makes a folder of seeds for each target; needs CAP_NET_ADMIN and a lock file of iptables that is nobody's."""
    made = {"rules": _rules(), "conntrack": _conntrack(), "nflog": _nflog(), "protobuf": _protobuf()}
    namespace = namespaces.create()
    before = os.environ.get("XTABLES_LOCKFILE")
    os.environ["XTABLES_LOCKFILE"] = str(lock)
    try:
        with namespaces.entered(namespace):
            made |= {"table": _tables(), "ipset": _ipset()}
    finally:
        os.close(namespace)
        del os.environ["XTABLES_LOCKFILE"]
        if before is not None:
            os.environ["XTABLES_LOCKFILE"] = before
    for target, seeds in made.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (folder / target / f"{number:03}").write_bytes(seed)


def _protobuf() -> list[bytes]:
    watch = protobuf.added(test_protobuf.POD) + protobuf.bookmark("9", True) + protobuf.error(410, "Expired", "too old", 3)
    frames = [watch, protobuf.deleted(test_protobuf.POD), *test_protobuf.MALFORMED.values()]
    return [b"\0\x10" + data for data in frames] + [b"\1\x10" + protobuf.status(429, "Too", 'many "\n', 3)]


def _rules() -> list[bytes]:
    seeds = [bytes([family == 6]) + pack_chains((Chain("NETPOL-x", (CASES[name][family][0],)),)) for family, name in EVERY]
    rules = [CASES[name][family][0] for family, name in EVERY]
    encoder = msgspec.msgpack.Encoder()
    seeds += [b"\2" + encoder.encode(match) for rule in rules[::5] for match in rule.matches]
    return seeds + [b"\4" + encoder.encode(rule.target) for rule in rules[::5]] + [b"\0" + pack_chains(_LINKED)]


def _tables() -> list[bytes]:
    seeds = []
    for family in FAMILIES:
        with TableSocket(family) as socket:
            for chains in ((), _LINKED):
                encoded = {chain.name: chain for chain in encode_chains(chains, family)}
                socket.change("mangle", encoded, bool(chains))
                info, read = socket._info("mangle"), socket.read("mangle")
                numbers = struct.pack("=12I", info.valid_hooks, *info.hook_entry, *info.underflow, info.num_entries)
                seeds.append(bytes([family == 6]) + numbers + bytes(read.blob))
    return seeds


def _ipset() -> list[bytes]:
    with IpsetSocket() as socket:
        socket.run([Create("NETPOL-a", "hash:ip", 4, ipset.MANY), Create("NETPOL-b", "hash:net,port", 6, ipset.NETS)])
        socket.run([Create("NETPOL-c", "bitmap:ip", 4, ipset.MANY, net=parse_network("10.0.0.0/16"))])
        dumps = [ipset.listing(socket, name) for name in (b"NETPOL-a", b"NETPOL-b", b"NETPOL-c")]
        names = ipset.listing(socket, None)
    refused = ipset.message(2, 0, struct.pack("=i", -4103) + bytes(16), ipset.SEQ)
    version = ipset.message(0x601, 0, b"\2\0\0\0" + ipset.attribute(1, b"\7"))
    number = ipset.message(0x60E, 0, b"\2\0\0\0" + ipset.attribute(11, b"\0\7"))
    written = [bytes([4, kind, family, 1]) + b"NETPOL-a".ljust(16, b"\0") + ipset.NETS for kind in range(4) for family in range(2)]
    return [bytes([kind]) + dump for kind in (0, 1) for dump in dumps] + [
        b"\2" + names,
        b"\3" + refused,
        b"\3" + version,
        b"\3" + number,
        *written,
    ]


def _conntrack() -> list[bytes]:
    four, six = (
        conntrack.message(conntrack.NEW, family + b"\0\0\0" + conntrack.tuple_of(1, a, b) + conntrack.tuple_of(2, b, a))
        for family, a, b in ((b"\2", conntrack.A, conntrack.B), (b"\12", conntrack.A6, conntrack.B6))
    )
    done = conntrack.message(conntrack.DONE, bytes(4))
    count = conntrack.message(conntrack.STATS, bytes(4) + conntrack.attribute(1, b"\0\0\0\7"))
    gone = conntrack.message(conntrack.ERROR, struct.pack("=i", -2) + bytes(16))
    judged = [bytes([2, net, port, width, width + 2 * net + 3 * port, 2, 8, 2, 2, 2, 1, 2, 0x50, 8]) + bytes(900)
              for net in (0, 1) for port in (0, 1) for width in (4, 16)]  # fmt: skip
    lists = [b"\4" + line for line in (listing.NEW, listing.MARKED, listing.KEYED, listing.PINGED, listing.ZONED)]
    return [b"\0\1" + four + six + done, b"\1" + count, b"\1" + gone, *judged, *lists]


def _nflog() -> list[bytes]:
    packets = [ipv4(17, PORTS), ipv6(17, PORTS), ipv6(0, extension(44, 8) + PORTS)]
    return (
        [b"\0" + nflog.logged(packet) for packet in packets]
        + [b"\1" + packet for packet in packets]
        + [b"\2" + nflog.message(2, bytes(20), 1)]
    )
