"""Draws docs/pictures/chains.svg: the chains and sets of the example policy, as the compiler makes them, and the ways between them.

`python -m docs.site.chains` writes it; a test compares the file with what this gives now. Chains stand in columns by how far they are from
FORWARD; an arrow goes from a rule to the chain that it leads to: a jump is a full line, a goto a broken one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from docs.site.paper import CHARACTER, HEAD, LINE, PADDING, box, sheet
from netpol.cli.files import node_name, read_cluster
from netpol.rules.compile import Settings, compiled
from netpol.rules.ruleset import HOOK, ROOT, Chain, Goto, Jump, Rule, Ruleset, SetMatch
from netpol.rules.text import member_text, rule_text

PICTURE = Path(__file__).parents[1] / "pictures" / "chains.svg"
EXAMPLE = Path(__file__).parents[2] / "examples" / "kubernetes-docs.yaml"

GAP_ACROSS, GAP_DOWN, MARGIN = 90, 26, 28
COLOURS = {"gate": "#3f51b5", "egress": "#00796b", "ingress": "#ad5a00", "deny": "#b3261e", "set": "#6a3d9a"}
WORDS = (
    # What a reader needs of iptables' words; the rest is in `netpol render`.
    (re.compile(r"-m (conntrack|connmark|tcp|udp|set|multiport) "), ""),
    (re.compile(r"! --ctstate RELATED,ESTABLISHED"), "new"),
    (re.compile(r"--mark (0x\w+)/\1"), "cut"),
    (re.compile(r"--match-set (\S+)"), r"in set \1"),
    (re.compile(r"/32\b"), ""),
    (re.compile(r" ?-[jg] (NETPOL\S*)"), ""),
    (re.compile(r" ?-j (RETURN|DROP)"), r"  \1"),
)
STEPS = ".jump,.goto,.set{fill:none;stroke-width:1.5}.goto{stroke-dasharray:6 3}.set{stroke-dasharray:2 3}"
HASH = re.compile(r"\b(NETPOL[46]-|NETPOL-[EI]-)([0-9a-f]{6})[0-9a-f]+")


class Box:
    """A chain or a set where it stands: `rows` are texts, each with the chain that it leads to and by which kind of step."""

    def __init__(self, name: str, kind: str, rows: list[tuple[str, str, str]]) -> None:
        self.name, self.kind, self.rows = name, kind, rows
        self.width = max(len(_short(text)) for text in (name, *(row[0] for row in rows))) * CHARACTER + 2 * PADDING
        self.height = HEAD + LINE * len(rows) + 10
        self.x = self.y = 0.0


def picture() -> str:
    """The whole picture."""
    cluster = read_cluster((str(EXAMPLE),), ("10.244.0.0/16",))
    ruleset = compiled(cluster, node_name(cluster.all_pods(), None), Settings())
    chains = ruleset.chains[4]
    boxes = {HOOK: Box(HOOK, "gate", [("every packet that is forwarded", ROOT, "jump")])}
    boxes |= {name: Box(name, _kind(name), [_row(rule) for rule in chain.rules]) for name, chain in _ordered(chains)}
    boxes |= {name: _set(ruleset, name) for name in _used(chains)}
    columns = _columns(boxes)
    width, height = _place(columns)
    body = "".join((*(_arrow(boxes, box, at) for box in boxes.values() for at in range(len(box.rows))), *map(_drawn, boxes.values())))
    return sheet("The chains and sets of the example policy", width, height, COLOURS, STEPS, body)


def _ordered(chains: Mapping[str, Chain]) -> list[tuple[str, Chain]]:
    """Egress above ingress, as a packet meets them."""
    order = {"gate": 0, "egress": 1, "ingress": 2, "deny": 3}
    return sorted(chains.items(), key=lambda item: (order[_kind(item[0])], item[0]))


def _used(chains: Mapping[str, Chain]) -> list[str]:
    """The sets, in the order in which rules ask for them."""
    matches = (match for _, chain in _ordered(chains) for rule in chain.rules for match in rule.matches)
    return list(dict.fromkeys(match.name for match in matches if isinstance(match, SetMatch)))


def _kind(name: str) -> str:
    if name.startswith("NETPOL-E"):
        return "egress"
    if name.startswith("NETPOL-I"):
        return "ingress"
    return "deny" if name == "NETPOL-DENY" else "gate"


def _row(rule: Rule) -> tuple[str, str, str]:
    text = rule_text(rule, 4)
    for pattern, words in WORDS:
        text = pattern.sub(words, text)
    target = rule.target
    if isinstance(target, Jump | Goto):
        return text.strip() or "everything else", target.chain, "jump" if isinstance(target, Jump) else "goto"
    used = [match.name for match in rule.matches if isinstance(match, SetMatch)]
    return text.strip(), used[0] if used else "", "set" if used else ""


def _set(ruleset: Ruleset, name: str) -> Box:
    found = ruleset.sets[name]
    return Box(name, "set", [(member_text(found, member), "", "") for member in sorted(found.members)])


def _columns(boxes: dict[str, Box]) -> list[list[Box]]:
    """Columns by the longest way from FORWARD."""
    depth = dict.fromkeys(boxes, 0)
    for _ in boxes:
        for one in boxes.values():
            for _, target, _ in one.rows:
                if target:
                    depth[target] = max(depth[target], depth[one.name] + 1)
    return [[one for one in boxes.values() if depth[one.name] == at] for at in range(max(depth.values()) + 1)]


def _place(columns: list[list[Box]]) -> tuple[float, float]:
    heights = [sum(box.height for box in column) + GAP_DOWN * (len(column) - 1) for column in columns]
    x = float(MARGIN)
    for column, height in zip(columns, heights, strict=True):
        y = MARGIN + (max(heights) - height) / 2
        for one in column:
            one.x, one.y = x, y
            y += one.height + GAP_DOWN
        x += max(box.width for box in column) + GAP_ACROSS
    return x - GAP_ACROSS + MARGIN, max(heights) + 2 * MARGIN


def _arrow(boxes: dict[str, Box], box: Box, at: int) -> str:
    _, target, step = box.rows[at]
    if not target:
        return ""
    to = boxes[target]
    x, y = box.x + box.width, box.y + HEAD + LINE * at + 12
    end_x, end_y = to.x, to.y + HEAD / 2
    bend = max(40.0, (end_x - x) / 2)
    colour = COLOURS[to.kind]
    return (
        f'<path class="{step}" d="M{x:.0f} {y:.0f} C{x + bend:.0f} {y:.0f} {end_x - bend:.0f} {end_y:.0f} {end_x - 2:.0f} {end_y:.0f}" '
        f'stroke="{colour}" marker-end="url(#{to.kind})"/>\n'
    )


def _drawn(one: Box) -> str:
    return box(one.x, one.y, one.width, one.height, COLOURS[one.kind], _short(one.name), [_short(text) for text, _, _ in one.rows])


def _short(text: str) -> str:
    """Hashes cut to what tells them apart."""
    return HASH.sub(r"\1\2", text)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture())
