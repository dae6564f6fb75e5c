"""Random rules, of all that the kernel's form of our values can hold and nothing else."""

from __future__ import annotations

from hypothesis import strategies as st

from netpol.model import Family, Network, network
from netpol.rules.ruleset import (
    ACCEPT,
    DROP,
    RETURN,
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
    OpaqueTarget,
    PortRange,
    Reject,
    Rule,
    Sctp,
    SetMatch,
    Target,
    Tcp,
    Udp,
)

STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
MODES = ("dstip", "dstport", "srcip", "srcport")
SETS = {"NETPOL-a": 0, "NETPOL-b": 7, "somebody's": 65534}
ANSWERS: dict[Family, tuple[str, ...]] = {
    4: (
        *("icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable"),
        *("icmp-net-prohibited", "icmp-host-prohibited", "tcp-reset", "icmp-admin-prohibited"),
    ),
    6: (
        *("icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-port-unreachable"),
        *("tcp-reset", "icmp6-policy-fail", "icmp6-reject-route"),
    ),
}
CHAINS = ("NETPOL", "NETPOL-A", "NETPOL-" + "x" * 21, "NETPOL-é")

bytes_ = st.integers(0, 255)
numbers = st.integers(0, 65535)
words = st.integers(0, 2**32 - 1)
yes = st.booleans()
ranges = st.tuples(numbers, numbers)


def texts(most: int, least: int = 0) -> st.SearchStrategy[str]:
    """Texts of so many bytes, without a NUL."""
    letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    return st.text(letters, max_size=most).filter(lambda text: least <= len(text.encode()) <= most)


def subset(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sets(st.sampled_from(names)).map(lambda chosen: tuple(name for name in names if name in chosen))


@st.composite
def port_lists(draw: st.DrawFn) -> tuple[PortRange, ...]:
    """Up to 15 places, of which a range takes two."""
    found: list[PortRange] = []
    places = draw(st.integers(1, 15))
    while places > 0:
        port = draw(numbers)
        other = draw(numbers) if places > 1 and draw(yes) else port
        found.append((port, other))
        places -= 1 if other == port else 2
    return tuple(found)


# Payloads of extensions that are not ours, in the alignment that the kernel has them in.
payloads = st.integers(0, 6).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n))
ascii_names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=28)


def matches(family: Family) -> st.SearchStrategy[Match]:
    lengths = st.integers(0, 32 if family == 4 else 128)
    directions = st.lists(st.sampled_from(("src", "dst")), min_size=1, max_size=6).map(tuple)
    wide = st.integers(0, 2**63 - 1)
    ours = {"conntrack", "connmark", "tcp", "udp", "sctp", "multiport", "set", "addrtype", "hashlimit", "icmp", "icmp6"}
    return st.one_of(
        st.builds(Conntrack, subset(STATES), yes, st.sampled_from(("", "ORIGINAL", "REPLY"))),
        st.builds(Connmark, words, words, yes),
        st.builds(Tcp, ranges, ranges, yes, yes, bytes_, bytes_, yes, bytes_, yes),
        st.builds(Udp, ranges, ranges, yes, yes),
        st.builds(Sctp, st.none() | ranges, st.none() | ranges, yes, yes),
        st.builds(Multiport, port_lists(), st.sampled_from(("sports", "dports", "ports")), yes),
        st.builds(SetMatch, st.sampled_from(tuple(SETS)), directions, yes),
        st.builds(Addrtype, numbers, numbers, yes, yes, yes, yes),
        st.builds(Hashlimit, texts(254), wide, wide, subset(MODES), yes, words, words, words, words, lengths, lengths),
        st.builds(Icmp, bytes_, st.tuples(bytes_, bytes_), yes),
        st.builds(Opaque, ascii_names.filter(lambda name: name not in ours), bytes_, payloads),
        st.builds(Opaque, st.sampled_from(sorted(ours)), st.integers(5, 255), payloads),
    )


def targets(family: Family) -> st.SearchStrategy[Target]:
    chains = st.sampled_from(CHAINS)
    return st.one_of(
        st.sampled_from((ACCEPT, DROP, RETURN, Continue())),
        st.builds(Jump, chains),
        st.builds(Goto, chains),
        st.builds(Reject, st.sampled_from(ANSWERS[family])),
        st.builds(Nflog, numbers, texts(63), words, numbers),
        st.builds(OpaqueTarget, ascii_names.filter(lambda name: name not in ("ERROR", "REJECT", "NFLOG")), bytes_, payloads),
        st.builds(OpaqueTarget, st.sampled_from(("REJECT", "NFLOG")), st.integers(1, 255), payloads),
    )


def networks(family: Family) -> st.SearchStrategy[Network | None]:
    width = 4 if family == 4 else 16
    return st.none() | st.builds(network, st.binary(min_size=width, max_size=width), st.integers(1, width * 8))


def rules(family: Family) -> st.SearchStrategy[Rule]:
    interfaces = st.just("") | texts(15)
    fragments = yes if family == 4 else st.just(False)
    flags = dict.fromkeys(("not_source", "not_destination", "not_protocol", "not_in_interface", "not_out_interface"), yes)
    return st.builds(
        Rule,
        targets(family),
        st.lists(matches(family), max_size=3).map(tuple),
        source=networks(family),
        destination=networks(family),
        protocol=bytes_,
        in_interface=interfaces,
        out_interface=interfaces,
        fragment=fragments,
        not_fragment=fragments,
        **flags,
    )


@st.composite
def chains(draw: st.DrawFn, family: Family) -> dict[str, Chain]:
    """All of the chains that the rules jump to, which may jump in circles."""
    return {name: Chain(name, tuple(draw(st.lists(rules(family), max_size=2)))) for name in CHAINS}
