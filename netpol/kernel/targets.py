"""The payloads of x_tables targets: value -> bytes as `iptables-restore` writes them, and back. The rules of `matches` hold here too.

Standard targets (ACCEPT, DROP, RETURN, jump, goto, none) are 40 bytes whose verdict is filled in by whoever knows the offsets; see
`netpol.kernel.entries`.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct as Layout

from netpol.errors import MalformedKernelData
from netpol.kernel.matches import ALIGN, HEADER, c_string, pack
from netpol.model import Family
from netpol.rules.ruleset import Continue, Goto, Jump, Nflog, OpaqueTarget, Reject, Target, Verdict

STANDARD = Layout("=H29sBi4x")
ERROR = Layout("=H29sB30s2x")
NFLOG = Layout("=IHHHH64s")
REJECT = Layout("=I")

# linux/netfilter.h: an absolute verdict is -(verdict) - 1; RETURN is XT_RETURN.
VERDICTS = {"ACCEPT": -2, "DROP": -1, "RETURN": -5}
_VERDICT_NAMES = {number: name for name, number in VERDICTS.items()}

# linux/netfilter_ipv4/ipt_REJECT.h and linux/netfilter_ipv6/ip6t_REJECT.h, by iptables' names.
ANSWERS: dict[Family, dict[str, int]] = {
    4: {
        "icmp-net-unreachable": 0,
        "icmp-host-unreachable": 1,
        "icmp-proto-unreachable": 2,
        "icmp-port-unreachable": 3,
        "icmp-net-prohibited": 5,
        "icmp-host-prohibited": 6,
        "tcp-reset": 7,
        "icmp-admin-prohibited": 8,
    },
    6: {
        "icmp6-no-route": 0,
        "icmp6-adm-prohibited": 1,
        "icmp6-addr-unreachable": 3,
        "icmp6-port-unreachable": 4,
        "tcp-reset": 6,
        "icmp6-policy-fail": 7,
        "icmp6-reject-route": 8,
    },
}

# (name, revision) of all that we write besides the standard target.
REVISIONS: tuple[tuple[str, int], ...] = (("NFLOG", 0), ("REJECT", 0))


def standard(verdict: int) -> bytes:
    """A standard target with this verdict, which is a place in the table when it is not negative."""
    return STANDARD.pack(STANDARD.size, b"", 0, verdict)


def error_target(name: str) -> bytes:
    """The target of the entry that begins a user chain, or ends the table."""
    return ERROR.pack(ERROR.size, b"ERROR", 0, name.encode())


@lru_cache(maxsize=4096)
def encode_target(target: Target, family: Family) -> bytes:
    """A target as it stands in an entry; jumps and rules without a target with a verdict of 0, to be filled in.

    ValueError for a value that the kernel's form cannot hold.
    """
    if isinstance(target, Verdict):
        return standard(VERDICTS[target.name])
    if isinstance(target, Jump | Goto | Continue):
        return standard(0)
    if isinstance(target, Reject):
        if target.answer not in ANSWERS[family]:
            raise ValueError(f"IPv{family} has no REJECT with {target.answer}")
        return pack("REJECT", 0, REJECT.pack(ANSWERS[family][target.answer]))
    if isinstance(target, Nflog):
        prefix = target.prefix.encode()
        if len(prefix) > 63:
            raise ValueError(f"an NFLOG prefix has at most 63 bytes, not {len(prefix)}")
        return pack("NFLOG", 0, NFLOG.pack(target.size, target.group, target.threshold, 1 if target.size else 0, 0, prefix))
    return pack(target.name, target.revision, target.data)


def decode_target(raw: bytes, family: Family) -> Target:
    """The target that stands in an entry as these bytes, header included; a jump is an `OpaqueTarget` here: the caller knows better.

    MalformedKernelData when the header itself has no such form.
    """
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] > len(raw) or len(raw) % ALIGN:
        raise MalformedKernelData("a target's length does not fit its entry")
    _, raw_name, revision = HEADER.unpack_from(raw)
    name, data = c_string(raw_name), raw[HEADER.size :]
    found: Target | None = None
    if name == "" and len(raw) == STANDARD.size:
        verdict = _VERDICT_NAMES.get(STANDARD.unpack(raw)[3])
        found = Verdict(verdict) if verdict is not None else None  # type: ignore[arg-type]  # one of three
    elif name == "REJECT" and len(data) >= REJECT.size:
        answers = {number: answer for answer, number in ANSWERS[family].items()}
        number = REJECT.unpack_from(data)[0]
        found = Reject(answers[number]) if number in answers else None
    elif name == "NFLOG" and len(data) >= NFLOG.size:
        size, group, threshold, _, _, prefix = NFLOG.unpack_from(data)
        text = prefix.partition(b"\0")[0]
        found = Nflog(group, text.decode(), size, threshold) if text.isascii() and len(text) < 64 else None
    return found if found is not None and encode_target(found, family) == raw else OpaqueTarget(name, revision, data)
