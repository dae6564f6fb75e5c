"""A scene and its report on a terminal: the policies in words, who reaches whom before and after, every flow, the kernel's objects.

Colours only repeat what the words say, so nothing is lost without them. At most `ROWS` flows, `CHAINS` chains of a family, and so on, are
shown unless all are asked for; what is left out is counted, and a flow that disagrees comes before all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from netpol.cli.counted import counted
from netpol.cli.demonstration.run import FREE, Report, Row, outcome
from netpol.cli.demonstration.scene import Connection, Scene
from netpol.cli.demonstration.trace import CLASS_CHAINS, short_names
from netpol.cli.demonstration.words import direction_words, peers_words, ports_words, query_words
from netpol.model import DIRECTIONS, PROTOCOL_NAMES, TCP, Direction, Family, Policy, family_of, format_address
from netpol.policy.verdict import isolating_policies
from netpol.rules.ruleset import DENY, HOOK, NEW, ROOT
from netpol.rules.sets import Set
from netpol.rules.text import member_text, rule_text

ROWS, POLICIES, CHAINS, SETS, HOSTS, NAMES = 80, 20, 20, 20, 12, 4
# Columns of the terminal. The policies behind a flow need LEAST to be shown, and FULL for the name of one that is alone anyway.
INSET, GAP, LEAST, FULL = 2, 2, 16, 50
COLUMNS = ("from, to", "before", "expected", "observed", "rule", "packets", "because of")
REACHED, DROPPED, PARTLY, WRONG, QUIET = "green", "red", "magenta", "bold yellow", "dim"


def some(items: Sequence[str], most: int) -> str:
    """The first few of them, and how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def _columns(*names: str, right: str = "", gives: str = "") -> Table:
    """A table without lines. `gives` is the column, the last one where none is said, that is cut short when the terminal is narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style=QUIET, expand=True)
    for name in names:
        justify: Literal["left", "right"] = "right" if name == right else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", ratio=1 if name == (gives or names[-1]) else None)
    return table


def _inset(content: RenderableType) -> RenderableType:
    return Padding(content, (0, 0, 0, INSET))


def _heading(text: str) -> RenderableType:
    return Text(f"\n{text}", style="bold")


def everything(title: str, scene: Scene, report: Report, every: bool, width: int, unicode: bool) -> Iterator[RenderableType]:
    """All there is to see, in order, for a terminal of that width; `unicode`: whether it can show more than ASCII."""
    yield Text(title, style="bold")
    yield from policies(scene, every)
    yield from matrix(scene, report, width, unicode)
    yield from flows(report, every, width)
    yield from kernel(report, every)
    yield from closing(report)


# -- policies in words -------------------------------------------------------------------------------------------------


def policies(scene: Scene, every: bool) -> Iterator[RenderableType]:
    """Each policy as a tree: whom it selects, and what it leaves them."""
    found = sorted(scene.cluster.policies.values(), key=str)
    shown = found if every else found[:POLICIES]
    yield _heading(counted(len(found), "policy", "policies"))
    selected: dict[str, dict[str, None]] = {str(policy): {} for policy in shown}
    for pod in sorted(scene.cluster.all_pods(), key=lambda pod: pod.key):
        for direction in DIRECTIONS:
            for policy in isolating_policies(scene.cluster, pod, direction):
                if str(policy) in selected:
                    selected[str(policy)][str(pod)] = None
    yield from (_inset(_policy(policy, tuple(selected[str(policy)]))) for policy in shown)
    if len(found) > len(shown):
        yield _inset(Text(f"and {len(found) - len(shown)} more (--all shows them)", style=QUIET))
    if scene.left_out:
        names = some(scene.left_out, NAMES)
        yield _inset(Text(f"Not tried, for they own no address (host network, or finished): {names}", style=QUIET))


def _policy(policy: Policy, pods: Sequence[str]) -> Tree:
    tree = Tree(Text.assemble((str(policy), "bold cyan"), f": {query_words(policy.subject)} ", (f"({some(pods, NAMES) or 'none'})", QUIET)))
    for direction in DIRECTIONS:
        branch = tree.add(Text(direction_words(policy, direction)))
        for index, rule in enumerate(policy.rules(direction) or ()):
            leaf = branch.add(Text.assemble((ports_words(rule), "bold"), (f"  {direction}[{index}]", QUIET)))
            for words in peers_words(rule, direction):
                leaf.add(Text(words))
    return tree


# -- who reaches whom --------------------------------------------------------------------------------------------------


def matrix(scene: Scene, report: Report, width: int, unicode: bool) -> Iterator[RenderableType]:
    """Hosts by hosts, before and after; in a few numbers a source where that is too wide."""
    before, after = len(report.rows), sum(row.reached for row in report.rows)
    yield _heading(f"Who reaches whom: {before} of {counted(before, 'flow')} before, {after} after")
    names = [host.name for host in scene.hosts]
    targets = [number for number, host in enumerate(scene.hosts) if host.listens]
    cells: dict[tuple[str, str], list[bool]] = {}
    for row in report.rows:
        cells.setdefault((row.connection.source, row.connection.destination), []).append(row.reached)
    size = len(str(len(names))) + 1
    label = max(map(len, names)) + size + 3
    if label + 2 * size * len(targets) + 6 > width:
        yield _inset(_numbers(report))
        return
    gap, marks = " " * 4, "●◐✗·" if unicode else "o%x."
    span = size * len(targets)
    yield _inset(Text(f"{'':{label}}{'before':{span}}{gap}after", style=QUIET))
    numbers = "".join(f"{number + 1:<{size}}" for number in targets)
    yield _inset(Text(f"{'':{label}}{numbers}{gap}{numbers}", style=QUIET))
    for i, name in enumerate(names):
        line = Text.assemble((f"{i + 1:>{size - 1}}  ", QUIET), f"{name:{label - size - 1}}")
        for is_after in (False, True):
            for j in targets:
                found = cells.get((name, names[j]), [])
                mark, style = _mark(found if is_after else [True] * len(found), marks)
                line.append(f"{mark:<{size}}", style)
            line.append("" if is_after else gap)
        yield _inset(line)
    words = f"{marks[0]} every port reached   {marks[1]} some   {marks[2]} none   {marks[3]} not tried"
    yield _inset(Text(words, style=QUIET))


def _mark(reached: Sequence[bool], marks: str) -> tuple[str, str]:
    if not reached:
        return marks[3], QUIET
    if all(reached):
        return marks[0], REACHED
    return (marks[1], PARTLY) if any(reached) else (marks[2], DROPPED)


def _numbers(report: Report) -> Table:
    table = _columns("from", "flows", "reached before", "reached after")
    for source, rows in groupby(report.rows, key=lambda row: row.connection.source):
        found = [row.reached for row in rows]
        style = REACHED if all(found) else PARTLY if any(found) else DROPPED
        table.add_row(source, str(len(found)), str(len(found)), Text(str(sum(found)), style))
    return table


# -- flows -------------------------------------------------------------------------------------------------------------


def chosen(rows: Sequence[Row], every: bool) -> list[Row]:
    """The rows to show: all, or those that a policy decides, or of very many only the dropped ones; and any that disagrees."""
    if every:
        return list(rows)
    shown = [row for row in rows if row.trace.deciders or not row.agrees]
    if len(shown) > ROWS:
        shown = [row for row in rows if not row.reached or not row.agrees]
    kept = {id(row) for row in sorted(shown, key=lambda row: row.agrees)[:ROWS]}
    return [row for row in shown if id(row) in kept]


def flows(report: Report, every: bool, width: int) -> Iterator[RenderableType]:
    """The table of flows, by source. Where the terminal is narrow the policies give way first, then the names of hosts."""
    shown = chosen(report.rows, every)
    short = short_names(decider.chain for row in report.rows for decider in row.trace.deciders)
    both = len({family_of(row.connection.flow.source) for row in report.rows}) > 1
    yield _heading(
        "Every flow" if len(shown) == len(report.rows) else "The flows that policies decide" if shown else "No policy decides a flow"
    )
    rows = [(row, tuple(_cells(row, report, short, both))) for row in shown]
    widths = [max((max(map(len, cells[i].plain.split("\n"))) for _, cells in rows), default=0) for i in range(len(COLUMNS) - 1)]
    room = width - INSET - sum(max(wide, len(name)) + GAP for wide, name in zip(widths, COLUMNS, strict=False))
    names = COLUMNS if room >= LEAST else COLUMNS[:-1]
    policies = {name for row in report.rows for decider in row.trace.deciders for name in decider.policies}
    brief = room < FULL and len(policies) == 1
    table = _columns(*names, right="packets", gives="" if room >= LEAST else COLUMNS[0])
    for source, found in groupby(rows, key=lambda one: one[0].connection.source):
        table.add_row(Text(source, style="bold"))
        for row, cells in found:
            table.add_row(*(*cells, _because(row, brief))[: len(names)])
    if shown:
        yield _inset(table)
        yield _inset(Text("rule: chain and place, as listed below; packets: what that rule has counted over all flows", style=QUIET))
    rest = len(report.rows) - len(shown)
    if rest:
        reached = sum(row.reached for row in report.rows) - sum(row.reached for row in shown)
        words = f"and {counted(rest, 'flow')} more, as specified: {reached} reached, {rest - reached} dropped (--all shows them)"
        yield _inset(Text(words, style=QUIET))


def _cells(row: Row, report: Report, short: Mapping[str, str], both: bool) -> Iterator[Text]:
    yield Text(f"  {target(row.connection, both)}")
    yield Text("reached", REACHED)
    yield Text(outcome(row.said.allowed), REACHED if row.said.allowed else DROPPED)
    yield Text(outcome(row.reached), WRONG if not row.agrees else REACHED if row.reached else DROPPED)
    deciders = row.trace.deciders
    yield Text("\n".join(f"{short[decider.chain]} {decider.number}" for decider in deciders))
    yield Text("\n".join(str(report.packets(decider)) for decider in deciders))


def _because(row: Row, brief: bool) -> Text:
    words = "\n".join(decider.brief if brief else decider.why for decider in row.trace.deciders)
    return Text(words or FREE, style="" if words else QUIET)


def target(connection: Connection, both: bool) -> str:
    """ "default/db:6379", "[fd00::1]:53/UDP"; with the family where flows of both are shown."""
    name, protocol = connection.destination, connection.flow.protocol
    port = f"{f'[{name}]' if ':' in name else name}:{connection.flow.port}"
    suffix = "" if protocol == TCP else f"/{PROTOCOL_NAMES[protocol]}"
    is_pod = "/" in name
    return f"{port}{suffix}{f' IPv{family_of(connection.flow.source)}' if both and is_pod else ''}"


# -- the kernel --------------------------------------------------------------------------------------------------------


def kernel(report: Report, every: bool) -> Iterator[RenderableType]:
    """Chains with their rules and packets, sets with their sizes, as they were read back."""
    rules, chains = sizes(report)
    where = f"table {report.held.table}, {counted(rules, 'rule')} in {counted(chains, 'chain')}"
    yield _heading(f"What the kernel holds: {where}, {counted(len(report.held.sets), 'set')}")
    for family in sorted(report.held.chains):
        yield from map(_inset, _family(report, family, every))
    if report.held.sets:
        table = _columns("set", "type", "size", "members", right="size")
        sets = sorted(report.held.sets.values(), key=lambda one: (one.family, one.kind, sorted(one.members)))
        for one in sets if every else sets[:SETS]:
            table.add_row(one.name, one.kind, str(one.entries), _members(one))
        yield _inset(Text())
        yield _inset(table)
        if not every and len(sets) > SETS:
            yield _inset(Text(f"and {counted(len(sets) - SETS, 'set')} more (--all shows them)", style=QUIET))


def sizes(report: Report) -> tuple[int, int]:
    """How many rules and chains of ours there are, in both families, and FORWARD's jump to them."""
    chains = [chain for found in report.held.chains.values() for chain in found.values()]
    return sum(len(chain.rules) for chain in chains) + len(report.held.hooked), len(chains)


def _family(report: Report, family: Family, every: bool) -> Iterator[RenderableType]:
    chains = report.held.chains[family]
    if not every and not any(_direction(name) for name in chains):
        frame = ", ".join(f"{name} {len(chains[name].rules)}" for name in sorted(chains, key=_place))
        yield Text(f"IPv{family}: no isolated pod has an address of it; the frame alone: {frame}", style=QUIET)
        return
    table = _columns("packets", f"IPv{family}: -A {HOOK} -j {ROOT}", right="packets")
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    owners = {decider.chain: decider.policies for row in report.rows for decider in row.trace.deciders}
    names = sorted(chains, key=_place)
    for name in names if every else names[:CHAINS]:
        direction = _direction(name)
        note = f"  {direction} of {', '.join(owners[name])}" if direction and name in owners else ""
        table.add_row("", Text.assemble((name, "bold"), (note, QUIET)))
        for number, rule in enumerate(chains[name].rules, 1):
            packets = report.counted[family, name, rule]
            style = QUIET if not packets else DROPPED if name == DENY else ""
            table.add_row(str(packets), Text(f"{number:>3}  {rule_text(rule, family)}", style=style))
    yield table
    if not every and len(names) > CHAINS:
        yield Text(f"and {counted(len(names) - CHAINS, 'chain')} more (--all shows them)", style=QUIET)


def _direction(chain: str) -> Direction | None:
    """The direction of a chain of policies; None for a chain of the frame or of the tree."""
    return next((direction for direction, prefix in CLASS_CHAINS.items() if chain.startswith(prefix)), None)


def _place(chain: str) -> tuple[int, str]:
    """Chains in the order in which a packet meets them: the tree of a direction, then the policies', and NETPOL-DENY last."""
    order = (ROOT, NEW, f"{ROOT}-E", f"{ROOT}-TE-", f"{ROOT}-E-", f"{ROOT}-I", f"{ROOT}-TI-", f"{ROOT}-I-")
    return (len(order) if chain == DENY else max(index for index, prefix in enumerate(order) if chain.startswith(prefix))), chain


def _members(one: Set) -> str:
    return some([member_text(one, member) for member in sorted(one.members)], NAMES)


# -- the end -----------------------------------------------------------------------------------------------------------


def closing(report: Report) -> Iterator[RenderableType]:
    """One line that says it all; before it what did not agree."""
    wrong = [row for row in report.rows if not row.agrees]
    yield Text()
    for row in wrong[:ROWS]:
        words = f"expected {outcome(row.said.allowed)}, observed {outcome(row.reached)}"
        yield Text(f"{row.connection.source} to {target(row.connection, True)}: {words}", style=WRONG)
    for words in report.objections:
        yield Text(words, style=WRONG)
    rules, _ = sizes(report)
    spent = report.milliseconds
    agreement = f"{counted(len(report.rows), 'flow')}, {len(report.rows) - len(wrong)} as specified."
    made = f"{counted(rules, 'rule')} and {counted(len(report.held.sets), 'set')}"
    how = f"Programmed {made} in {spent['program']:.1f} ms with {report.system_calls} system calls; nothing was executed."
    yield Text.assemble((agreement, "bold green" if report.agree else WRONG), f" {how}")


# -- the shell ---------------------------------------------------------------------------------------------------------


def hints(scene: Scene, places: Mapping[str, str]) -> Iterator[RenderableType]:
    """What to try in the shell of --keep. `places` are the namespaces of the hosts, as files."""
    yield _heading("A shell on the node: leave it and all this is gone")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_row("iptables-legacy -t mangle -vnL", Text("the rules, with their counters", style=QUIET))
    table.add_row("ipset list", Text("the sets", style=QUIET))
    for host in scene.hosts[:HOSTS]:
        addresses = ", ".join(map(format_address, host.addresses))
        words = f"a shell in {host.name}" if addresses == host.name else f"a shell in {host.name}, {addresses}"
        table.add_row(f"nsenter --net={places[host.name]} bash", Text(words, style=QUIET))
    listening = next(host for host in scene.hosts if any(protocol == TCP for protocol, _ in host.listens))
    port = next(port for protocol, port in listening.listens if protocol == TCP)
    address = format_address(listening.addresses[0])
    table.add_row(
        f"cat < /dev/tcp/{address}/{port}",
        Text(f"in one of those: who answers there ({listening.name}, unless it is dropped)", style=QUIET),
    )
    yield _inset(table)
