"""Rules, and how iptables writes them: every match and target that we encode, in every form that it has for us."""

from __future__ import annotations

from netpol.model import FAMILIES, ICMP, ICMPV6, SCTP, TCP, UDP, Family, Network, parse_network
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    RETURN,
    Addrtype,
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
    Reject,
    Rule,
    Sctp,
    SetMatch,
    Tcp,
    Udp,
)

# name -> type: the sets that the rules speak of, in both families
SETS = {
    "NETPOL-ip": "hash:ip",
    "NETPOL-other": "hash:net",
    "NETPOL-ip-port": "hash:ip,port",
    "NETPOL-ip-port-net": "hash:ip,port,net",
    "a-name-of-thirty-one-characters": "hash:ip",
}
# A chain that every case may jump to.
OTHER = "NETPOL-OTHER"

Case = tuple[Rule, str]


def net(text: str) -> Network:
    return parse_network(text)


def both(rule: Rule, text: str) -> dict[Family, Case]:
    return {4: (rule, text), 6: (rule, text)}


def match(*matches: Match, protocol: int = 0, text: str) -> dict[Family, Case]:
    return both(Rule(RETURN, matches, protocol=protocol), f"{text} -j RETURN")


def limit(family: Family, text: str, value: Hashlimit) -> dict[Family, Case]:
    return {family: (Rule(RETURN, (value,)), f"-m hashlimit {text} -j RETURN")}


_LONG = "abcdefghijklmno"

_ENTRIES: dict[str, dict[Family, Case]] = {
    "accept": both(Rule(ACCEPT), "-j ACCEPT"),
    "drop": both(Rule(DROP), "-j DROP"),
    "return": both(Rule(RETURN), "-j RETURN"),
    "none": both(Rule(Continue()), ""),
    "jump": both(Rule(Jump(OTHER)), f"-j {OTHER}"),
    "goto": both(Rule(Goto(OTHER)), f"-g {OTHER}"),
    "source": {
        4: (Rule(RETURN, source=net("10.1.2.0/23")), "-s 10.1.2.0/23 -j RETURN"),
        6: (Rule(RETURN, source=net("fd00:1::/33")), "-s fd00:1::/33 -j RETURN"),
    },
    "destination": {
        4: (Rule(DROP, destination=net("192.0.2.1/32")), "-d 192.0.2.1 -j DROP"),
        6: (Rule(DROP, destination=net("2001:db8::1/128")), "-d 2001:db8::1 -j DROP"),
    },
    "hairpin": {
        4: (
            Rule(Goto(OTHER), source=net("10.0.0.1/32"), destination=net("10.0.0.1/32"), not_destination=True),
            f"-s 10.0.0.1 ! -d 10.0.0.1 -g {OTHER}",
        ),
        6: (
            Rule(Goto(OTHER), source=net("fd00::1/128"), destination=net("fd00::1/128"), not_destination=True),
            f"-s fd00::1 ! -d fd00::1 -g {OTHER}",
        ),
    },
    "not source": {
        4: (Rule(DROP, source=net("128.0.0.0/1"), not_source=True), "! -s 128.0.0.0/1 -j DROP"),
        6: (Rule(DROP, source=net("fe80::/10"), not_source=True), "! -s fe80::/10 -j DROP"),
    },
    "interfaces": both(Rule(DROP, in_interface="eth0", out_interface=_LONG), f"-i eth0 -o {_LONG} -j DROP"),
    "interface prefixes": both(Rule(DROP, in_interface="veth+", out_interface="+", not_in_interface=True), "! -i veth+ -o + -j DROP"),
    "not out": both(Rule(DROP, out_interface="cni0", not_out_interface=True), "! -o cni0 -j DROP"),
    "protocol": both(Rule(DROP, protocol=47), "-p 47 -j DROP"),
    "not a protocol": both(Rule(DROP, protocol=TCP, not_protocol=True), "! -p tcp -j DROP"),
    "the last protocol": both(Rule(DROP, protocol=255), "-p 255 -j DROP"),
    "fragments": {4: (Rule(DROP, fragment=True), "-f -j DROP")},
    "no fragments": {4: (Rule(DROP, fragment=True, not_fragment=True), "! -f -j DROP")},
}

_MATCHES: dict[str, dict[Family, Case]] = {
    "conntrack gate": match(
        Conntrack(("RELATED", "ESTABLISHED")),
        Connmark(0x10000000, 0x10000000, True),
        text="-m conntrack --ctstate RELATED,ESTABLISHED -m connmark ! --mark 0x10000000/0x10000000",
    ),
    "conntrack every state": match(
        Conntrack(("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")),
        text="-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED,SNAT,DNAT",
    ),
    "conntrack not": match(Conntrack(("NEW",), True), text="-m conntrack ! --ctstate NEW"),
    "conntrack there": match(Conntrack(("NEW",), direction="ORIGINAL"), text="-m conntrack --ctstate NEW --ctdir ORIGINAL"),
    "conntrack back": match(Conntrack(("NEW",), True, "REPLY"), text="-m conntrack ! --ctstate NEW --ctdir REPLY"),
    "connmark": match(Connmark(7), text="-m connmark --mark 7"),
    "connmark zero": match(Connmark(0, 0x80000000), text="-m connmark --mark 0/0x80000000"),
    "tcp": match(Tcp(), protocol=TCP, text="-p tcp -m tcp"),
    "tcp ports": match(Tcp(source=(1024, 65535), destination=(80, 80)), protocol=TCP, text="-p tcp -m tcp --sport 1024:65535 --dport 80"),
    "tcp not": match(
        Tcp(source=(0, 0), destination=(1, 2), not_source=True, not_destination=True),
        protocol=TCP,
        text="-p tcp -m tcp ! --sport 0 ! --dport 1:2",
    ),
    "tcp flags": match(Tcp(flags_mask=0x17, flags_set=2), protocol=TCP, text="-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"),
    "tcp not flags": match(
        Tcp(flags_mask=63, flags_set=41, not_flags=True), protocol=TCP, text="-p tcp -m tcp ! --tcp-flags ALL FIN,PSH,URG"
    ),
    "tcp option": match(Tcp(option=2, not_option=True), protocol=TCP, text="-p tcp -m tcp ! --tcp-option 2"),
    "udp": match(Udp(), protocol=UDP, text="-p udp -m udp"),
    "udp ports": match(
        Udp(source=(53, 53), destination=(0, 1023), not_source=True), protocol=UDP, text="-p udp -m udp ! --sport 53 --dport :1023"
    ),
    "udp not": match(Udp(destination=(5353, 5353), not_destination=True), protocol=UDP, text="-p udp -m udp ! --dport 5353"),
    "sctp": match(Sctp(), protocol=SCTP, text="-p sctp -m sctp"),
    "sctp source": match(Sctp(source=(1, 5)), protocol=SCTP, text="-p sctp -m sctp --sport 1:5"),
    "sctp destination": match(Sctp(destination=(7777, 7777)), protocol=SCTP, text="-p sctp -m sctp --dport 7777"),
    "sctp both, not": match(Sctp((0, 65535), (9, 9), True, True), protocol=SCTP, text="-p sctp -m sctp ! --sport 0:65535 ! --dport 9"),
    "multiport": match(Multiport(((80, 80),)), protocol=TCP, text="-p tcp -m multiport --dports 80"),
    "multiport ranges": match(
        Multiport(((80, 80), (443, 445), (0, 65535))), protocol=UDP, text="-p udp -m multiport --dports 80,443:445,0:65535"
    ),
    "multiport fifteen": match(
        Multiport(tuple((n, n) for n in range(1, 16)), "sports", True),
        protocol=SCTP,
        text="-p sctp -m multiport ! --sports " + ",".join(map(str, range(1, 16))),
    ),
    "multiport ranges to the end": match(
        Multiport((*((n, n + 1) for n in range(10, 24, 2)), (65535, 65535)), "ports"),
        protocol=TCP,
        text="-p tcp -m multiport --ports 10:11,12:13,14:15,16:17,18:19,20:21,22:23,65535",
    ),
    "set": match(SetMatch("NETPOL-ip", ("src",)), text="-m set --match-set NETPOL-ip src"),
    "set not": match(SetMatch("NETPOL-other", ("dst",), True), text="-m set ! --match-set NETPOL-other dst"),
    "set of two": match(SetMatch("NETPOL-ip-port", ("dst", "dst")), text="-m set --match-set NETPOL-ip-port dst,dst"),
    "set of three": match(SetMatch("NETPOL-ip-port-net", ("src", "dst", "src")), text="-m set --match-set NETPOL-ip-port-net src,dst,src"),
    "set of six": match(
        SetMatch("NETPOL-ip", ("dst", "src", "dst", "src", "dst", "src")), text="-m set --match-set NETPOL-ip dst,src,dst,src,dst,src"
    ),
    "sets": match(
        SetMatch("NETPOL-ip", ("src",)),
        SetMatch("a-name-of-thirty-one-characters", ("src",)),
        SetMatch("NETPOL-ip", ("dst",)),
        text="-m set --match-set NETPOL-ip src -m set --match-set a-name-of-thirty-one-characters src -m set --match-set NETPOL-ip dst",
    ),
    "addrtype": match(Addrtype(destination=1 << 2), text="-m addrtype --dst-type LOCAL"),
    "addrtype both": match(
        Addrtype(1 << 5 | 1 << 2, 1 << 1, True, True), text="-m addrtype ! --src-type MULTICAST,LOCAL ! --dst-type UNICAST"
    ),
    "addrtype in": match(Addrtype(source=1 << 1, limit_in=True), text="-m addrtype --src-type UNICAST --limit-iface-in"),
    "addrtype out": match(Addrtype(destination=1 << 1, limit_out=True), text="-m addrtype --dst-type UNICAST --limit-iface-out"),
    "icmp": {
        4: (Rule(DROP, (Icmp(8),), protocol=ICMP), "-p icmp -m icmp --icmp-type 8 -j DROP"),
        6: (Rule(DROP, (Icmp(135),), protocol=ICMPV6), "-p icmpv6 -m icmp6 --icmpv6-type 135 -j DROP"),
    },
    "icmp code": {
        4: (Rule(DROP, (Icmp(3, (4, 4), True),), protocol=ICMP), "-p icmp -m icmp ! --icmp-type 3/4 -j DROP"),
        6: (Rule(DROP, (Icmp(1, (4, 4), True),), protocol=ICMPV6), "-p icmpv6 -m icmp6 ! --icmpv6-type 1/4 -j DROP"),
    },
    "icmp any": {4: (Rule(DROP, (Icmp(255),), protocol=ICMP), "-p icmp -m icmp --icmp-type any -j DROP")},
    "several": {
        4: (
            Rule(
                RETURN,
                (Tcp(destination=(1, 2)), SetMatch("NETPOL-ip", ("src",)), Multiport(((80, 90),)), Conntrack(("NEW",))),
                net("10.0.0.0/8"),
                net("10.1.0.0/16"),
                TCP,
                "eth0",
                "eth1",
            ),
            "-s 10.0.0.0/8 -d 10.1.0.0/16 -i eth0 -o eth1 -p tcp -m tcp --dport 1:2 -m set --match-set NETPOL-ip src "
            "-m multiport --dports 80:90 -m conntrack --ctstate NEW -j RETURN",
        )
    },
}

_HASHLIMITS: dict[str, dict[Family, Case]] = {
    "hashlimit": limit(
        4, "--hashlimit-upto 10/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name n", Hashlimit("n", 100000, 5, ("srcip",))
    ),
    "hashlimit for all": limit(
        4, "--hashlimit-upto 1/min --hashlimit-burst 1 --hashlimit-name all", Hashlimit("all", 60000000, 1, expire=60000)
    ),
    "hashlimit above": limit(
        4,
        "--hashlimit-above 3/hour --hashlimit-burst 7 --hashlimit-mode srcip,srcport,dstip,dstport --hashlimit-name " + "n" * 15,
        Hashlimit("n" * 15, 1200000000, 7, ("dstip", "dstport", "srcip", "srcport"), True, expire=3600000),
    ),
    "hashlimit sizes": limit(
        4,
        "--hashlimit-upto 5/sec --hashlimit-burst 9 --hashlimit-mode dstip --hashlimit-dstmask 24 --hashlimit-name s "
        "--hashlimit-htable-size 77 --hashlimit-htable-max 999 --hashlimit-htable-gcinterval 50 --hashlimit-htable-expire 2222",
        Hashlimit("s", 200000, 9, ("dstip",), False, 77, 999, 50, 2222, 32, 24),
    ),
    "hashlimit 6": limit(
        6,
        "--hashlimit-upto 10/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-srcmask 64 --hashlimit-name six",
        Hashlimit("six", 100000, 5, ("srcip",), source_length=64, destination_length=128),
    ),
}

_ANSWERS: dict[Family, tuple[str, ...]] = {
    4: (
        *("icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable"),
        *("icmp-net-prohibited", "icmp-host-prohibited", "icmp-admin-prohibited"),
    ),
    6: ("icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-port-unreachable"),
}

_TARGETS: dict[str, dict[Family, Case]] = {
    **{
        f"reject {answer}": {family: (Rule(Reject(answer)), f"-j REJECT --reject-with {answer}")}
        for family in FAMILIES
        for answer in _ANSWERS[family]
    },
    "reject tcp-reset": both(Rule(Reject("tcp-reset"), protocol=TCP), "-p tcp -j REJECT --reject-with tcp-reset"),
    "reject policy-fail": {6: (Rule(Reject("icmp6-policy-fail")), "-j REJECT --reject-with icmp6-policy-fail")},
    "reject reject-route": {6: (Rule(Reject("icmp6-reject-route")), "-j REJECT --reject-with icmp6-reject-route")},
    "nflog": both(Rule(Nflog(0)), "-j NFLOG"),
    "nflog group": both(
        Rule(Nflog(65535, "netpol: denied ", 128, 10)),
        '-j NFLOG --nflog-group 65535 --nflog-prefix "netpol: denied " --nflog-size 128 --nflog-threshold 10',
    ),
    "nflog long prefix": both(Rule(Nflog(3, "p" * 63)), f"-j NFLOG --nflog-group 3 --nflog-prefix {'p' * 63}"),
}

CASES: dict[str, dict[Family, Case]] = _ENTRIES | _MATCHES | _HASHLIMITS | _TARGETS
EVERY = [(family, name) for name, forms in CASES.items() for family in forms]


def chain_name(name: str) -> str:
    """The chain in which a case stands, alone."""
    return f"NETPOL-{list(CASES).index(name):03}"
