"""The payloads of x_tables targets: bytes -> value. The other way is `netpol.kernel.encode`; the rules of `matches` hold here too.

Standard targets (ACCEPT, DROP, RETURN, jump, goto, none) have an empty name and a verdict; which chain a jump goes to is known to
whoever knows the offsets: see `netpol.kernel.entries`.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct as Layout

from netpol.errors import MalformedKernelData
from netpol.kernel.encode import encode_target
from netpol.kernel.matches import ALIGN, HEADER, c_string
from netpol.model import Family
from netpol.rules.ruleset import ACCEPT, DROP, RETURN, Nflog, OpaqueTarget, Reject, Target

NFLOG = Layout("=IHHHH64s")
REJECT = Layout("=I")
STANDARD = Layout("=i4x")

# linux/netfilter.h: an absolute verdict is -(verdict) - 1; RETURN is XT_RETURN.
_VERDICTS: dict[int, Target] = {-2: ACCEPT, -1: DROP, -5: RETURN}

# linux/netfilter_ipv4/ipt_REJECT.h and linux/netfilter_ipv6/ip6t_REJECT.h, by iptables' names.
ANSWERS: dict[Family, dict[int, str]] = {
    4: {
        0: "icmp-net-unreachable",
        1: "icmp-host-unreachable",
        2: "icmp-proto-unreachable",
        3: "icmp-port-unreachable",
        5: "icmp-net-prohibited",
        6: "icmp-host-prohibited",
        7: "tcp-reset",
        8: "icmp-admin-prohibited",
    },
    6: {
        0: "icmp6-no-route",
        1: "icmp6-adm-prohibited",
        3: "icmp6-addr-unreachable",
        4: "icmp6-port-unreachable",
        6: "tcp-reset",
        7: "icmp6-policy-fail",
        8: "icmp6-reject-route",
    },
}

# (name, revision) of all that we write besides the standard target.
REVISIONS: tuple[tuple[str, int], ...] = (("NFLOG", 0), ("REJECT", 0))


@lru_cache(maxsize=1 << 12)
def decode_target(raw: bytes, family: Family) -> Target:
    """The target that stands in an entry as these bytes, header included; a jump is an `OpaqueTarget` here: the caller knows better.

    MalformedKernelData when the header itself has no such form.
    """
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] != len(raw) or len(raw) % ALIGN:
        raise MalformedKernelData("a target's length does not fit its entry")
    _, raw_name, revision = HEADER.unpack_from(raw)
    name, data = c_string(raw_name), raw[HEADER.size :]
    found: Target | None = None
    if name == "" and len(data) == STANDARD.size:
        found = _VERDICTS.get(STANDARD.unpack(data)[0])
    elif name == "REJECT" and len(data) >= REJECT.size:
        answer = ANSWERS[family].get(REJECT.unpack_from(data)[0])
        found = Reject(answer) if answer is not None else None
    elif name == "NFLOG" and len(data) >= NFLOG.size:
        size, group, threshold, _, _, prefix = NFLOG.unpack_from(data)
        found = Nflog(group, c_string(prefix), size, threshold)
    return found if found is not None and _is_same(found, raw, family) else OpaqueTarget(name, revision, data)


def _is_same(target: Target, raw: bytes, family: Family) -> bool:
    try:
        return encode_target(target, family) == raw
    except ValueError:
        return False
