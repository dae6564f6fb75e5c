"""The cases of x_tables: loading a table, changing a chain of a large one, reading it, beside `iptables-legacy`.

A table of R rules is R/10 chains of ten rules `-p tcp -m tcp -m set -m multiport -j RETURN`, none of which equals another, without
comments; NETPOL has a jump to each chain, and FORWARD one to NETPOL. Both sides write the same rules: each is verified by reading
them back as values. Ours starts from such values: loading and reading with nothing encoded or kept, as after a start, changing a
chain with what the agent keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from netpol.bench import peers
from netpol.bench.measure import BenchError, Case, Contender, Contest, forget
from netpol.kernel.apply import Kernel
from netpol.kernel.encode import encode_chains
from netpol.kernel.ipset import Create, IpsetSocket
from netpol.kernel.xtables import TableSocket
from netpol.model import TCP, Family
from netpol.rules.ruleset import HOOK, RETURN, ROOT, Chain, Jump, Multiport, ReplaceTable, Rule, Ruleset, SetMatch, TableName, Tcp

TABLE: TableName = "mangle"
SETS = 10
CHAIN_LENGTH = 10
FOREIGN = "KUBE"
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def load(row: str, rules: int, family: Family, pairs: int, goal: float | None = None) -> Case:
    """A table of so many rules, into one that is empty."""
    return Case(row, pairs, partial(_load, rules, family), {} if goal is None else {peers.RESTORE[family]: goal})


def load_beside(row: str, rules: int, foreign: int, pairs: int) -> Case:
    """So many rules into a table in which others have `foreign`, which stay; the program's file does not flush."""
    return Case(row, pairs, partial(_load_beside, rules, foreign))


def change(row: str, rules: int, pairs: int, foreign: int = 0) -> Case:
    """One chain of a table of so many rules gets other rules; all other rules of ours have counted packets, and go on from there.

    foreign -- rules of others beside them."""
    return Case(row, pairs, partial(_change, rules, foreign))


def append(row: str, rules: int, pairs: int) -> Case:
    """One rule more at the end of a chain in a table of so many rules, as `iptables -A` does."""
    return Case(row, pairs, partial(_append, rules))


def read(row: str, rules: int, pairs: int) -> Case:
    """The whole table: ours as values, with the sets and the other family's table looked for; `iptables-legacy-save` as text."""
    return Case(row, pairs, partial(_read, rules))


def places(number: int, version: int = 0) -> list[tuple[int, int, int]]:
    """(set, port, port) of each rule of the chain of this number: no other rule has these two ports, nor has another version of it."""
    first = number * CHAIN_LENGTH
    return [((first + i) % SETS, 1 + (first + i) % 30_000, 30_001 + version % 30_000) for i in range(CHAIN_LENGTH)]


def _chain(number: int, version: int = 0) -> Chain:
    return Chain(
        chain_name(number),
        tuple(
            Rule(RETURN, (Tcp(), SetMatch(set_name(s), ("src",)), Multiport(((a, a), (b, b)))), protocol=TCP)
            for s, a, b in places(number, version)
        ),
    )


def _lines(number: int, version: int = 0) -> list[str]:
    """The same chain as iptables-save would print it."""
    return [
        f"-A {chain_name(number)} -p tcp -m tcp -m set --match-set {set_name(s)} src -m multiport --dports {a},{b} -j RETURN\n"
        for s, a, b in places(number, version)
    ]


def chain_name(number: int) -> str:
    """Of the chain of this number."""
    return f"{ROOT}-I-{number:05}"


def set_name(number: int) -> str:
    """Of the set of this number."""
    return f"{ROOT}-BENCH-{number}"


def _chains(rules: int) -> dict[str, Chain]:
    chains = [_chain(number) for number in range(rules // CHAIN_LENGTH)]
    root = Chain(ROOT, tuple(Rule(Jump(chain.name)) for chain in chains))
    return {chain.name: chain for chain in (root, *chains)}


def put_foreign(rules: int) -> None:
    """So many rules of others in the IPv4 table, in chains of ten."""
    ten = tuple(Rule(RETURN, (Tcp(), Multiport(((80, 80), (443, 443)))), protocol=TCP) for _ in range(10))
    chains = [Chain(f"{FOREIGN}-{number:05}", ten) for number in range(max(1, rules // 10))] if rules else []
    with TableSocket(4) as socket:
        theirs = {chain.name: encoded for chain, encoded in zip(chains, encode_chains(chains, 4), strict=True)}
        socket.change(TABLE, theirs, False, lambda name: name.startswith(FOREIGN))


def _expect_foreign(rules: int) -> None:
    with TableSocket(4) as socket:
        found = sum(span.entries - 2 for span in socket.read(TABLE).spans if span.name.startswith(FOREIGN))
    if found != rules:
        raise BenchError(f"the others' {rules} rules are {found}")


def _text(rules: int, counted: bool = False) -> str:
    """The whole table for `iptables-restore`; `counted` as if each rule of it had seen packets, for its option --counters."""
    names = [chain_name(number) for number in range(rules // CHAIN_LENGTH)]
    body = [f"-A {HOOK} -j {ROOT}\n", *(f"-A {ROOT} -j {name}\n" for name in names)]
    body += [line for number in range(len(names)) for line in _lines(number)]
    if counted:
        body = [f"[{number}:{60 * number}] {line}" for number, line in enumerate(body, 1)]
    built_in = [f":{name} ACCEPT [0:0]\n" for name in BUILT_IN]
    return "".join((f"*{TABLE}\n", *built_in, *(f":{name} - [0:0]\n" for name in (ROOT, *names)), *body, "COMMIT\n"))


def _step(family: Family, chains: Mapping[str, Chain], hooked: bool = True) -> ReplaceTable:
    return ReplaceTable(family, TABLE, chains, hooked)


@contextmanager
def _sets(family: Family) -> Iterator[None]:
    """The sets that the rules refer to."""
    with IpsetSocket() as ipset:
        ipset.run([Create(set_name(number), "hash:ip", family) for number in range(SETS)])
    yield


@contextmanager
def _load(rules: int, family: Family, directory: Path) -> Iterator[Contest]:
    chains = _chains(rules)
    file = directory / "rules"
    file.write_text(_text(rules))
    with _sets(family), Kernel(TABLE) as janitor, _Fresh() as fresh:

        def empty() -> None:
            janitor.apply([_step(family, {}, hooked=False)])

        def prepare() -> None:
            empty()
            forget()
            fresh.renew()

        def ours() -> None:
            fresh.kernel.apply([_step(family, chains)])

        def verify(outcome: object) -> None:
            _expect(janitor.read(), family, chains)

        program = peers.find(peers.RESTORE[family])
        others = {peers.RESTORE[family]: Contender(empty, partial(peers.execute, program, str(file)), verify)} if program else {}
        yield Contest(Contender(prepare, ours, verify), others, lambda: fresh.kernel.calls)


@contextmanager
def _load_beside(rules: int, foreign: int, directory: Path) -> Iterator[Contest]:
    chains = _chains(rules)
    file = directory / "rules"
    file.write_text("".join(line for line in _text(rules).splitlines(True) if not line.startswith(tuple(f":{name} " for name in BUILT_IN))))
    with _sets(4), Kernel(TABLE) as janitor, _Fresh() as fresh:
        put_foreign(foreign)

        def empty() -> None:
            janitor.apply([_step(4, {}, hooked=False)])

        def prepare() -> None:
            empty()
            forget()
            fresh.renew()

        def ours() -> None:
            fresh.kernel.apply([_step(4, chains)])

        def verify(outcome: object) -> None:
            _expect(janitor.read(), 4, chains)
            _expect_foreign(foreign)

        program = peers.find(peers.RESTORE[4])
        run = partial(peers.execute, str(program), "--noflush", str(file))
        others = {f"{peers.RESTORE[4]} --noflush": Contender(empty, run, verify)} if program else {}
        yield Contest(Contender(prepare, ours, verify), others, lambda: fresh.kernel.calls)


class _Fresh:
    """A `Kernel` that has kept nothing, one after another; a context manager that closes the last one."""

    def __init__(self) -> None:
        self.kernel = Kernel(TABLE)

    def renew(self) -> None:
        self.kernel.close()
        self.kernel = Kernel(TABLE)

    def __enter__(self) -> _Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.close()


@contextmanager
def _change(rules: int, foreign: int, directory: Path) -> Iterator[Contest]:
    file = directory / "rules"
    with _sets(4), Kernel(TABLE) as kernel:
        contest = _Changing(rules, kernel, file)
        restore = peers.find(peers.RESTORE[4])
        if restore:
            file.write_text(_text(rules, counted=True))
            peers.execute(restore, "--counters", str(file))
        if foreign:
            put_foreign(foreign)
        contest.prepare()
        contest.ours()
        others = {}
        if restore:
            run = partial(peers.execute, restore, "--noflush", str(file))
            others[f"{peers.RESTORE[4]} --noflush"] = Contender(contest.prepare, run, contest.verify)
        yield Contest(Contender(contest.prepare, contest.ours, contest.verify), others, lambda: kernel.calls)


class _Changing:
    """One chain in the middle of a table that is loaded; each `prepare` wants another version of it."""

    def __init__(self, rules: int, kernel: Kernel, file: Path) -> None:
        self._kernel, self._file = kernel, file
        self._chains = _chains(rules)
        self._number = rules // CHAIN_LENGTH // 2
        self._version = 0

    def prepare(self) -> None:
        self._version += 1
        self._chains = {**self._chains, chain_name(self._number): _chain(self._number, self._version)}
        lines = _lines(self._number, self._version)
        self._file.write_text("".join((f"*{TABLE}\n:{chain_name(self._number)} - [0:0]\n", *lines, "COMMIT\n")))

    def ours(self) -> None:
        self._kernel.apply([_step(4, self._chains)])

    def verify(self, outcome: object) -> None:
        with Kernel(TABLE) as reader:
            _expect(reader.read(), 4, self._chains)


@contextmanager
def _append(rules: int, directory: Path) -> Iterator[Contest]:
    name = chain_name(rules // CHAIN_LENGTH // 2)
    with _sets(4), Kernel(TABLE) as kernel, Kernel(TABLE) as reader:
        chains = _chains(rules)
        kernel.apply([_step(4, chains)])
        turn = 0

        def prepare() -> None:
            nonlocal chains, turn
            turn += 1
            rule = Rule(RETURN, (Tcp(destination=(turn, turn)),), protocol=TCP)
            chains = {**chains, name: Chain(name, (*chains[name].rules, rule))}

        def ours() -> None:
            kernel.apply([_step(4, chains)])

        def verify(outcome: object) -> None:
            _expect(reader.read(), 4, chains)

        def executed(program: str) -> None:
            peers.execute(program, "-t", TABLE, "-A", name, "-p", "tcp", "-m", "tcp", "--dport", str(turn), "-j", "RETURN")

        program = peers.find(peers.IPTABLES[4])
        others = {f"{peers.IPTABLES[4]} -A": Contender(prepare, partial(executed, program), verify)} if program else {}
        yield Contest(Contender(prepare, ours, verify), others, lambda: kernel.calls)


@contextmanager
def _read(rules: int, directory: Path) -> Iterator[Contest]:
    chains = _chains(rules)
    lines = _text(rules).splitlines()
    with _sets(4), Kernel(TABLE) as kernel:
        kernel.apply([_step(4, chains)])

        def verify_values(outcome: object) -> None:
            if not isinstance(outcome, Ruleset):
                raise BenchError("nothing was read")
            _expect(outcome, 4, chains)

        def verify_text(outcome: object) -> None:
            printed = [line for line in str(outcome).splitlines() if line.startswith("-A ")]
            if printed != [line for line in lines if line.startswith("-A ")]:
                raise BenchError("what was printed is not what the table holds")

        program = peers.find(peers.SAVE[4])
        others = {}
        if program:
            others[peers.SAVE[4]] = Contender(forget, partial(peers.output, program, "-t", TABLE), verify_text)
        yield Contest(Contender(forget, kernel.read, verify_values), others, lambda: kernel.calls)


def _expect(found: Ruleset, family: Family, chains: Mapping[str, Chain]) -> None:
    if found.chains.get(family, {}) != chains or family not in found.hooked:
        raise BenchError(f"the {TABLE} table does not hold its {len(chains)} chains")
