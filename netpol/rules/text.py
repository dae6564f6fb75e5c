"""Rules and sets as the text that `iptables-save` and `ipset save` print, and that the real tools load again.

For people, for `netpol render`, and for tests that hold it against the tools' own output. Opaque matches and targets have no text:
they are shown by name and cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from netpol.model import ICMP, ICMPV6, SCTP, TCP, UDP, Family, Network, format_address
from netpol.rules.ruleset import (
    HOOK,
    ROOT,
    Addrtype,
    Chain,
    Connmark,
    Conntrack,
    Continue,
    Goto,
    Hashlimit,
    Icmp,
    Jump,
    Match,
    Multiport,
    Nflog,
    Opaque,
    PortRange,
    Reject,
    Rule,
    Ruleset,
    Sctp,
    SetMatch,
    Target,
    Tcp,
    Udp,
    Verdict,
)
from netpol.rules.sets import Set, is_flagged

PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "ipv6-icmp", SCTP: "sctp"}
BUILT_IN = {"mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT")}
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
# linux/rtnetlink.h, RTN_*: the bit of each type of address.
ADDRESS_TYPES = (
    *("UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST"),
    *("BLACKHOLE", "UNREACHABLE", "PROHIBIT", "THROW", "NAT", "XRESOLVE"),
)


def iptables_save(ruleset: Ruleset, family: Family) -> str:
    """Our chains of one family as `iptables-save` prints them, with FORWARD's jump to NETPOL."""
    chains = ruleset.chains.get(family, {})
    lines = [f"*{ruleset.table}", *(f":{name} ACCEPT [0:0]" for name in BUILT_IN[ruleset.table])]
    lines += [f":{name} - [0:0]" for name in sorted(chains)]
    if family in ruleset.hooked:
        lines.append(f"-A {HOOK} -j {ROOT}")
    for name in sorted(chains):
        lines += chain_lines(chains[name], family)
    return "\n".join((*lines, "COMMIT", ""))


def chain_lines(chain: Chain, family: Family) -> Iterator[str]:
    """The rules of a chain, each as `-A chain ...`."""
    return (f"-A {chain.name} {rule_text(rule, family)}".rstrip() for rule in chain.rules)


def ipset_save(ruleset: Ruleset) -> str:
    """Our sets as `ipset save` prints them: each one's `create`, sized for its members, and then its `add` lines."""
    return "".join(f"{line}\n" for name in sorted(ruleset.sets) for line in set_lines(ruleset.sets[name]))


def set_lines(found: Set) -> Iterator[str]:
    """One set as lines for `ipset restore`."""
    if found.net is not None:
        last = (int.from_bytes(found.net.address, "big") | (1 << 32 - found.net.length) - 1).to_bytes(4, "big")
        yield f"create {found.name} {found.kind} range {format_address(found.net.address)}-{format_address(last)}"
    else:
        size = 1 << max(6, (found.entries - 1).bit_length())
        family = "inet" if found.family == 4 else "inet6"
        yield f"create {found.name} {found.kind} family {family} hashsize {size} maxelem {max(65536, 2 * size)}"
    yield from (f"add {found.name} {member_text(found, member)}" for member in sorted(found.members))


def member_text(found: Set, member: bytes) -> str:
    """A packed member as ipset prints it."""
    width = 4 if found.family == 4 else 16
    text, rest, flag = format_address(member[:width]), member[width:], ""
    if is_flagged(found.kind):
        text = text if rest[0] == width * 8 else f"{text}/{rest[0]}"
        flag = " nomatch" if rest[1] else ""
        rest = rest[2:]
    if rest:
        text = f"{text},{PROTOCOLS.get(rest[0], rest[0])}:{int.from_bytes(rest[1:], 'big')}"
    return text + flag


def rule_text(rule: Rule, family: Family) -> str:
    """A rule as it stands behind `-A chain` in iptables-save."""
    parts = [
        _option("-s", _network(rule.source), rule.not_source),
        _option("-d", _network(rule.destination), rule.not_destination),
        _option("-i", rule.in_interface, rule.not_in_interface),
        _option("-o", rule.out_interface, rule.not_out_interface),
        _option("-p", str(PROTOCOLS.get(rule.protocol, rule.protocol)) if rule.protocol else "", rule.not_protocol),
        f"{'! ' if rule.not_fragment else ''}-f" if rule.fragment else "",
        *(_match(match, family) for match in rule.matches),
        _target(rule.target),
    ]
    return " ".join(part for part in parts if part)


def _option(name: str, value: str, invert: bool = False) -> str:
    return f"{'! ' if invert else ''}{name} {value}" if value else ""


def _network(net: Network | None) -> str:
    return str(net) if net is not None else ""


def _ports(ports: PortRange) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}:{ports[1]}"


def _match(match: Match, family: Family) -> str:
    if isinstance(match, Conntrack):
        options = _option("--ctstate", ",".join(match.states), match.invert), _option("--ctdir", match.direction)
        return " ".join(["-m conntrack", *filter(None, options)])
    if isinstance(match, Connmark):
        mask = "" if match.mask == 0xFFFFFFFF else f"/{match.mask:#x}"
        return "-m connmark " + _option("--mark", f"{match.mark:#x}{mask}", match.invert)
    if isinstance(match, Tcp | Udp | Sctp):
        return _transport(match)
    if isinstance(match, Multiport):
        return "-m multiport " + _option(f"--{match.which}", ",".join(map(_ports, match.ports)), match.invert)
    if isinstance(match, SetMatch):
        return "-m set " + _option("--match-set", f"{match.name} {','.join(match.directions)}", match.invert)
    if isinstance(match, Icmp):
        codes = "" if match.codes == (0, 255) else f"/{match.codes[0]}"
        kind = "any" if match.type == 255 and family == 4 else f"{match.type}{codes}"
        return ("-m icmp " if family == 4 else "-m icmp6 ") + _option("--icmp-type" if family == 4 else "--icmpv6-type", kind, match.invert)
    if isinstance(match, Addrtype):
        return _addrtype(match)
    if isinstance(match, Hashlimit):
        return _hashlimit(match, 32 if family == 4 else 128)
    assert isinstance(match, Opaque)
    return f"-m {match.name}"


def _transport(match: Tcp | Udp | Sctp) -> str:
    parts = [f"-m {type(match).__name__.lower()}"]
    for option, ports, invert in (("--sport", match.source, match.not_source), ("--dport", match.destination, match.not_destination)):
        if ports is not None and (ports != (0, 65535) or invert or isinstance(match, Sctp)):
            parts.append(_option(option, _ports(ports), invert))
    if isinstance(match, Tcp):
        if match.option:
            parts.append(_option("--tcp-option", str(match.option), match.not_option))
        if match.flags_mask:
            parts.append(_option("--tcp-flags", f"{_tcp_flags(match.flags_mask)} {_tcp_flags(match.flags_set)}", match.not_flags))
    return " ".join(parts)


def _tcp_flags(flags: int) -> str:
    return ",".join(name for bit, name in enumerate(TCP_FLAGS) if flags >> bit & 1) or "NONE"


def _addrtype(match: Addrtype) -> str:
    parts = ["-m addrtype"]
    for option, bits, invert in (("--src-type", match.source, match.not_source), ("--dst-type", match.destination, match.not_destination)):
        if bits:
            parts.append(_option(option, ",".join(name for bit, name in enumerate(ADDRESS_TYPES) if bits >> bit & 1), invert))
    parts += ["--limit-iface-in"] * match.limit_in + ["--limit-iface-out"] * match.limit_out
    return " ".join(parts)


def _hashlimit(match: Hashlimit, width: int) -> str:
    unit, seconds = next((u, s) for u, s in (("sec", 1), ("min", 60), ("hour", 3600), ("day", 86400)) if match.average <= s * 1_000_000)
    parts = [
        "-m hashlimit",
        f"--hashlimit-{'above' if match.above else 'upto'} {seconds * 1_000_000 // match.average}/{unit}",
        f"--hashlimit-burst {match.burst}",
        _option("--hashlimit-mode", ",".join(name for name in ("srcip", "srcport", "dstip", "dstport") if name in match.mode)),
        f"--hashlimit-name {match.name}",
        _option("--hashlimit-htable-size", str(match.size) if match.size else ""),
        _option("--hashlimit-htable-max", str(match.maximum) if match.maximum else ""),
        _option("--hashlimit-htable-gcinterval", str(match.gc_interval) if match.gc_interval != 1000 else ""),
        # Unasked, iptables lets an entry live for one unit of the rate.
        _option("--hashlimit-htable-expire", str(match.expire) if match.expire != seconds * 1000 else ""),
        _option("--hashlimit-srcmask", str(match.source_length) if match.source_length != width else ""),
        _option("--hashlimit-dstmask", str(match.destination_length) if match.destination_length != width else ""),
    ]
    return " ".join(part for part in parts if part)


def _target(target: Target) -> str:
    if isinstance(target, Verdict):
        return f"-j {target.name}"
    if isinstance(target, Jump):
        return f"-j {target.chain}"
    if isinstance(target, Goto):
        return f"-g {target.chain}"
    if isinstance(target, Continue):
        return ""
    if isinstance(target, Reject):
        return f"-j REJECT --reject-with {target.answer}"
    if isinstance(target, Nflog):
        parts = [_option("--nflog-prefix", target.prefix), f"--nflog-group {target.group}" if target.group else ""]
        parts += [f"--nflog-size {target.size}" if target.size else "", f"--nflog-threshold {target.threshold}" if target.threshold else ""]
        return " ".join(part for part in ("-j NFLOG", *parts) if part)
    return f"-j {target.name}"
