"""What ipset's error numbers mean, in the words of someone who has to do something about them.

The kernel answers with an errno or with one of ipset's private codes (4096 and up); one number means different things for different
commands. One table holds the words; `translate` makes the exception. Nothing here talks to the kernel.
"""

from __future__ import annotations

import errno
import os

from netpol.errors import KernelError, NotPermitted, Unsupported
from netpol.kernel.turns import CLOSED

# enum ipset_errno of linux/netfilter/ipset/ip_set.h, and the hash types' own of ip_set_hash.h.
PROTOCOL, FIND_TYPE, MAX_SETS, BUSY, EXIST_SETNAME2, TYPE_MISMATCH, EXIST = range(4097, 4104)
INVALID_CIDR, INVALID_NETMASK, INVALID_FAMILY = range(4104, 4107)
REFERENCED, IPADDR_IPV4, IPADDR_IPV6 = range(4108, 4111)
HASH_FULL, HASH_ELEM, INVALID_PROTO, MISSING_PROTO, HASH_RANGE_UNSUPPORTED, HASH_RANGE = range(4352, 4358)

_GRANT = "run netpol as root, or with CAP_NET_ADMIN in the user namespace that owns this network namespace"
_NO_IP_SET = "this kernel has no ip_set: load the module (modprobe ip_set), or use a kernel built with CONFIG_IP_SET"
_IN_USE = "in use by a kernel component: an iptables rule or another set refers to it; take that away first"
_NO_SET = "there is no set of this name"

# (code, command) -> words; an empty command holds for all that have no words of their own.
_WORDS: dict[tuple[int, str], str] = {
    (errno.EPERM, ""): f"not permitted: {_GRANT}",
    (errno.EACCES, ""): f"not permitted: {_GRANT}",
    (errno.EPROTONOSUPPORT, "open"): f"this kernel has no netfilter netlink (CONFIG_NETFILTER_NETLINK); {_NO_IP_SET}",
    (errno.EINVAL, "open"): _NO_IP_SET,
    (errno.EBADF, ""): CLOSED,
    (errno.ENOENT, ""): _NO_SET,
    (errno.ENOENT, "swap"): "there is no set of the first name",
    (errno.EEXIST, "create"): "a set of this name exists already; if its type and family are the same, it has the new members now",
    (errno.EBUSY, "swap"): "one of the two is being listed by someone just now: try again",
    (errno.EBUSY, "list"): "the socket is in the middle of another listing: open a new one",
    (errno.ENOMEM, ""): "the kernel is out of memory",
    (errno.ENOBUFS, ""): "so many commands failed that the kernel threw their errors away: read the sets back",
    (errno.ENODATA, ""): "the kernel did not answer all of it: read the sets back",
    (errno.EMSGSIZE, ""): "the kernel takes no message of this size: raise net.core.wmem_max",
    (PROTOCOL, ""): "the kernel does not understand the message",
    (FIND_TYPE, "create"): "this kernel lacks the set type",
    (MAX_SETS, "create"): "the kernel has no room for another set: destroy some",
    (BUSY, "destroy"): f"{_IN_USE} (or someone is listing it just now)",
    (BUSY, "create"): "sets are being created by someone else just now: try again",
    (REFERENCED, "destroy"): _IN_USE,
    (EXIST_SETNAME2, "swap"): "there is no set of the second name",
    (TYPE_MISMATCH, "swap"): "the two sets differ in type or family",
    (TYPE_MISMATCH, ""): "the set is of another type",
    (EXIST, "add"): "the member is there already",
    (EXIST, "del"): "the member is not there",
    (INVALID_CIDR, ""): "the prefix length is not one that a set can hold (1 to 32 for IPv4, 1 to 128 for IPv6; there is no /0)",
    (INVALID_NETMASK, ""): "the netmask is invalid",
    (INVALID_FAMILY, ""): "the set type has no such address family",
    (IPADDR_IPV4, ""): "an IPv4 address is needed",
    (IPADDR_IPV6, ""): "an IPv6 address is needed",
    (
        HASH_FULL,
        "",
    ): "the set is full: raise its maxelem (a new set, filled and swapped in)",
    (HASH_ELEM, ""): "the null address cannot be a member",
    (INVALID_PROTO, ""): "the protocol cannot be a member's",
    (MISSING_PROTO, ""): "the set's members have a protocol and a port, this one has none",
    (HASH_RANGE_UNSUPPORTED, ""): "the set type takes no ranges",
    (HASH_RANGE, ""): "the range is too large, or ends before it begins",
}


def translate(code: int, command: str, object: str, member: str | None = None, note: str = "") -> KernelError:
    """The exception for an error of the kernel.

    code -- an errno or ipset's private code, positive; command -- ipset's own word (create, add, del, swap, destroy, list), or open;
    object -- the set or sets; member -- its text where one is known; note -- more to say, put behind the reason.
    """
    words = _WORDS.get((code, command)) or _WORDS.get((code, ""))
    if words is None:
        words = f"ipset error {code}" if code >= 4096 else os.strerror(code)
    kind: type[KernelError] = KernelError
    if code in (errno.EPERM, errno.EACCES):
        kind = NotPermitted
    elif code == FIND_TYPE or (command == "open" and code in (errno.EINVAL, errno.EPROTONOSUPPORT)):
        kind = Unsupported
    return kind(code, f"ipset {command}", object, words + note, member)


def missing_type(kind: str) -> str:
    """What to do about a kernel that lacks a set type such as hash:net,port; continues the words of FIND_TYPE."""
    module = "ip_set_" + kind.replace(":", "_").replace(",", "")
    return f" {kind}: load its module (modprobe {module}), or use a kernel built with CONFIG_{module.upper()}"
