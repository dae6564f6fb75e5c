"""The one exception tree of netpol.

Everything that netpol raises on purpose is a `NetpolError`. Pure code raises `InvalidObject`; the kernel
boundary translates each failure once, into a `KernelError` whose words name the operation and the object.
"""

from __future__ import annotations

LONGEST = 500  # characters of a text that others wrote, in one of our messages


def printable(text: str, longest: int | None = None) -> str:
    """A text that others wrote as it may stand in a log or on a terminal: what is not printable is escaped, what is long is cut.

    Line ends are escaped too, and what turns the direction of writing; surrogates, so that the result can be encoded.
    """
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}..."
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class NetpolError(Exception):
    """Base of every error that netpol raises on purpose."""


def said(error: Exception) -> str:
    """An error as the command says it: the program's name before each of its lines."""
    return "\n".join(f"netpol: {printable(line)}" for line in str(error).split("\n"))


def exit_status(error: NetpolError) -> int:
    """What the command ends with: 2 for input that cannot be valid, 1 for everything else."""
    return 2 if isinstance(error, InvalidObject | InvalidManifests) else 1


class InvalidObject(NetpolError):
    """A value in an API object that cannot be valid.

    object -- "NetworkPolicy default/web" and the like; field -- a path such as "spec.ingress[0].ports[1].port";
    reason -- what is wrong with it; source -- the file it came from, where there is one. All are printable, and none is long.
    """

    def __init__(self, object: str, field: str, reason: str, source: str | None = None) -> None:
        self.object, self.field, self.reason = (printable(text, LONGEST) for text in (object, field, reason))
        self.source = printable(source) if source is not None else None
        super().__init__(": ".join(text for text in (self.source, self.object, self.field, self.reason) if text))


class InvalidManifests(NetpolError):
    """One or more `InvalidObject` in a set of manifests; nothing of them was used."""

    def __init__(self, errors: tuple[InvalidObject, ...]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))


class KernelError(NetpolError):
    """The kernel refused an operation.

    code -- errno, or one of ipset's private codes (4096 and up); op -- what was tried, such as "ipset add";
    object -- the set, table or chain; member -- the set member or rule that failed, where one is known. As text it is printable.
    """

    def __init__(self, code: int, op: str, object: str, reason: str, member: str | None = None) -> None:
        self.code, self.op, self.object, self.reason, self.member = code, op, object, reason, member
        subject = f"{object}, member {member}" if member is not None else object
        super().__init__(printable(f"{op} {subject}: {reason}"))


class Unsupported(KernelError):
    """This kernel lacks something netpol needs (legacy x_tables, ip_set, a set type, a match revision)."""


class NotPermitted(KernelError):
    """The process lacks CAP_NET_ADMIN in the user namespace that owns this network namespace."""


class Contended(KernelError):
    """Somebody else kept changing a table or holding its lock; the bounded number of tries ran out."""


class InUse(NetpolError):
    """Another thread is in the middle of a call of the same handle; this call did nothing.

    handle -- the class, such as "IpsetSocket"; method -- what was refused.
    """

    def __init__(self, handle: str, method: str) -> None:
        self.handle, self.method = handle, method
        super().__init__(f"{handle}.{method}: another thread is using this {handle}: each needs its own, or a lock")


class MalformedKernelData(NetpolError):
    """Bytes read from the kernel do not have the form its ABI promises; nothing was changed on their account. As text it is printable."""

    def __init__(self, words: str) -> None:
        super().__init__(printable(words))


class LabError(NetpolError):
    """The private world of namespaces could not be built or used; says what is missing and what to do."""


class ApiError(NetpolError):
    """The API server could not be asked: configuration, credentials, or no connection to it. Its own refusals are answers, not this."""


class Cut(ApiError):
    """An answer of the API server broke off before its end."""


class Silence(ApiError):
    """The API server said nothing for longer than it may."""


class MalformedAnswer(NetpolError):
    """Bytes that no API server sends where a watch, a list or a page of it was asked for."""
