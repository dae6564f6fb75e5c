"""The typed face of csrc/np_judge: many flows judged at once, by an index of the rules in force.

`netpol.rules.cut` says what a flow's verdict is, and asks the interpreter of rules for each one that is new to it. On a busy node that
is a hundred thousand times: here the same rules are taken apart once, by the addresses they are about, and C looks each flow up. What the
index does not cover (ICMPv6, a pod that speaks to itself, rules of another form than netpol's) is handed back unjudged.

Invariants: whatever is judged here is judged as `Judge` judges it; where the rules as a whole have another form, there is no index
(None). Sets and chains that did not change since the last index are not taken apart again; where only sets changed nothing else is even
looked at. It reads no kernel and changes no mark.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from struct import Struct as Packing
from typing import Any, NamedTuple

from msgspec import Struct

from netpol.kernel._native import ffi, lib
from netpol.kernel.turns import Handle, exclusive
from netpol.model import FAMILIES, ICMPV6, SCTP, TCP, UDP, Address, Direction, Family, Network, family_of
from netpol.rules.flows import SIZE
from netpol.rules.ruleset import (
    ANY_PORT,
    DENY,
    DROP,
    EGRESS,
    INGRESS,
    NEW,
    RETURN,
    ROOT,
    Chain,
    Conntrack,
    Goto,
    Jump,
    Multiport,
    Nflog,
    PortRange,
    Reject,
    Rule,
    Ruleset,
    Sctp,
    SetMatch,
    Tcp,
    Udp,
    front_match,
    front_name,
    link_local_rules,
)
from netpol.rules.sets import Set, member_size

_RULE = Packing("=16sIIIIBBBBBB2x")
_CLASS = Packing("=II")
_END = Packing("=16sIIII")
_RANGE = Packing("=16sBBB")
_PASS, _DENY, _ASK, _RULES = lib.NP_JUDGE_PASS, lib.NP_JUDGE_DENY, lib.NP_JUDGE_ASK, lib.NP_JUDGE_RULES
_POD, _LOCAL = lib.NP_JUDGE_POD, lib.NP_JUDGE_LOCAL
_DIRECTIONS: tuple[Direction, Direction] = ("egress", "ingress")
_SIDES = (EGRESS, INGRESS)
_LINK_LOCAL = link_local_rules()


class _OtherForm(Exception):
    """The rules are none that netpol writes."""


class _Allowed(Struct, frozen=True):
    """A rule that lets packets through: all that it asks for. Empty `ports` are any; `sets` are names, with whether it is the source."""

    protocol: int
    ports: tuple[PortRange, ...]
    sets: tuple[tuple[str, bool], ...]
    net: Network | None
    of_source: bool


class _Side(Struct, frozen=True):
    """Whom one direction's rules are about: for each address its class chain, or "" where it is free; and ranges of unknown addresses."""

    chains: Mapping[Address, str]
    ranges: tuple[Network, ...]


_NOBODY = _Side({}, ())


class _Scope(NamedTuple):
    """Which packets go on to a tree: those with an address of the network and, where it has a set in front, of that."""

    net: Network
    has_front: bool


# A chain of a tree, and the network by which it is reached.
_Place = tuple[Chain, Network]


class _Branch(NamedTuple):
    """What a chain of a tree does, as `_Side` says it, and the chains that it goes on to, with their networks."""

    leaves: Mapping[Address, str]
    below: tuple[tuple[str, Network], ...]
    denied: tuple[Network, ...]


class _About(NamedTuple):
    """What all but the other sets of an index follows from; chains, and sets in front of trees, are the very same ones, or others. Only
    flows between `ends` are judged, where those are known."""

    hooked: list[Family]
    chains: list[Mapping[str, Chain]]
    fronts: list[tuple[Set | None, ...]]
    pods: frozenset[Address]
    local: frozenset[Address]
    ends: frozenset[Address] | None

    def same(self) -> tuple[object, ...]:
        """Equal where nothing is to be taken apart again. Chains and sets live as long as this, so their ids are theirs."""
        return self.hooked, list(map(id, self.chains)), [list(map(id, fronts)) for fronts in self.fronts], self.pods, self.local

    def covers(self, other: _About) -> bool:
        """Whether whatever the other one is to judge can be judged by what was taken apart for this one."""
        return self.same() == other.same() and (self.ends is None or (other.ends is not None and other.ends <= self.ends))


class Sorting(Handle):
    """Packed flows as they are judged: those that are to get the bit, to lose it, and those to ask about; `judged` counts all."""

    def __init__(self, native: Any, alive: object, bit: int) -> None:
        """`native` is a struct np_judge; `alive` holds all that it points to."""
        super().__init__()
        self._native, self._alive, self._bit = native, alive, bit
        self.judged = 0
        self._kept: dict[int, list[bytes]] = {_PASS: [], _DENY: [], _ASK: []}
        self._verdicts = ffi.new("uint8_t[]", 0)

    @exclusive
    def take(self, flows: Any, count: int) -> None:
        """Judges an array of struct np_ct_flow, which is changed."""
        self.judged += count
        if len(self._verdicts) < count:
            self._verdicts = ffi.new("uint8_t[]", count)
        kept = int(lib.np_judge_sort(self._native, flows, count, self._bit, self._verdicts))
        if not kept:
            return
        found, verdicts = bytes(ffi.buffer(flows, kept * SIZE)), bytes(ffi.buffer(self._verdicts, kept))
        for verdict in set(verdicts):
            places = range(kept) if verdicts.count(verdict) == kept else [i for i, said in enumerate(verdicts) if said == verdict]
            self._kept[verdict] += [found[i * SIZE : (i + 1) * SIZE] for i in places]

    @property
    def mark(self) -> bytes:
        return b"".join(self._kept[_DENY])

    @property
    def unmark(self) -> bytes:
        return b"".join(self._kept[_PASS])

    @property
    def ask(self) -> bytes:
        return b"".join(self._kept[_ASK])


class Index(Handle):
    """The rules in force, taken apart: `build` again whenever they, the pods or the node's own addresses changed.

    For one thread at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sets: dict[str, tuple[Set, Any, tuple[Any, ...]]] = {}
        self._arrays = _Arrays()
        self._branches: dict[_Place, _Branch] = {}
        self._sides: dict[Family, tuple[Mapping[str, Chain], tuple[Set | None, ...], tuple[_Side, ...]]] = {}
        self._about: _About | None = None
        self._parts: dict[str, Any] = {}
        self._native: Any = None
        self._alive: tuple[Any, ...] = ()

    @exclusive
    def build(
        self, ruleset: Ruleset, pods: Collection[Address], local: Collection[Address], ends: frozenset[Address] | None = None
    ) -> bool:
        """Takes a ruleset apart; False where it has another form than what netpol writes.

        ends -- the only addresses between which there are flows to judge, where they are few; None: any.
        """
        self._native = None
        try:
            self._put_together(ruleset, _About([], [], [], frozenset(pods), frozenset(local), ends))
        except _OtherForm:
            return False
        return True

    @exclusive
    def sorting(self, bit: int) -> Sorting:
        """Ready to judge by what was built last, given the bit of the flows that are cut."""
        return Sorting(self._native, self._alive, bit)

    # -- rules -> what they ask for ------------------------------------------------------------------------------------

    def _sides_of(self, chains: Mapping[str, Chain], fronts: tuple[Set | None, ...], family: Family) -> tuple[_Side, ...]:
        known = self._sides.get(family)
        if known is not None and known[0] is chains and list(map(id, known[1])) == list(map(id, fronts)):
            return known[2]
        scopes = _scopes(_chain(chains, ROOT).rules, _chain(chains, NEW).rules, family)
        _check_deny(_chain(chains, DENY).rules, family)
        sides = tuple(
            self._side(chains, root, scopes[root], front) if root in scopes else _NOBODY for root, front in zip(_SIDES, fronts, strict=True)
        )
        self._sides[family] = (chains, fronts, sides)
        return sides

    def _side(self, chains: Mapping[str, Chain], root: str, scope: _Scope, front: Set | None) -> _Side:
        """Walks a tree. It is about no address outside its scope, nor of those outside the set in front, where there is one; and all its
        chains deny the same ranges at their ends."""
        found: dict[Address, str] = {}
        ranges: set[tuple[Network, ...]] = set()
        waiting = [(root, scope.net)]
        while waiting:
            name, within = waiting.pop()
            place = _chain(chains, name), within
            branch = self._branches.get(place)
            if branch is None:
                branch = self._branches[place] = _branch(place[0].rules, root, within)
            if not found.keys().isdisjoint(branch.leaves):
                raise _OtherForm
            found |= branch.leaves
            waiting += branch.below
            ranges.add(branch.denied)
        if len(ranges) != 1:
            raise _OtherForm
        denied = ranges.pop()
        if any(net.length < scope.net.length or net.address not in scope.net for net in denied):
            raise _OtherForm
        if not scope.has_front:
            return _Side(found, denied)
        if front is None or front.kind not in ("hash:ip", "bitmap:ip") or denied:
            raise _OtherForm
        return _Side({address: chain for address, chain in found.items() if address in front.members}, ())

    # -- what they ask for -> arrays -----------------------------------------------------------------------------------

    def _put_together(self, ruleset: Ruleset, asked: _About) -> None:
        hooked = [family for family in FAMILIES if family in ruleset.hooked]
        chains = [ruleset.chains.get(family, {}) for family in hooked]
        if not self._arrays.names.keys() <= ruleset.sets.keys() or len(self._arrays.codes) > 2 * sum(map(len, chains)):
            self._arrays, self._about = _Arrays(), None  # most of what they hold, or some of their sets, are of a time gone by
        fronts = [tuple([ruleset.sets.get(front_name(family, direction)) for direction in _DIRECTIONS]) for family in hooked]
        known, about = self._about, asked._replace(hooked=hooked, chains=chains, fronts=fronts)
        if known is None or not known.covers(about):
            self._about = None
            self._parts = self._take_apart(ruleset, about)
            self._about = about
        sets, keep = self._use_sets(ruleset.sets, self._arrays.names)
        slots = ffi.new("uint32_t[]", _slots(self._parts["end_count"]))
        native = ffi.new(
            "struct np_judge *",
            {**self._parts, "sets": sets, "slots": slots, "set_count": len(self._arrays.names), "slot_count": len(slots)},
        )
        if lib.np_judge_index(native) < 0:
            raise _OtherForm
        self._native, self._alive = native, (sets, slots, self._parts, keep)

    def _take_apart(self, ruleset: Ruleset, about: _About) -> dict[str, Any]:
        """All of a struct np_judge but its sets."""
        arrays = self._arrays
        hooked, _, all_fronts, pods, local, ends = about
        ours = pods | local if ends is None else (pods | local) & ends
        codes: tuple[dict[Address, int], ...] = ({}, {})  # of each direction, where it is not _PASS
        ranges: list[bytes] = []
        for family, fronts in zip(hooked, all_fronts, strict=True):
            by_name = ruleset.chains.get(family, {})
            sides = self._sides_of(by_name, fronts, family)
            all_chains = [_of(side.chains, ends) for side in sides]
            ours = ours.union(*all_chains)
            for number, (side, chains) in enumerate(zip(sides, all_chains, strict=True)):
                for net in side.ranges:
                    ranges.append(_RANGE.pack(net.address, net.length, family, number))
                    codes[number].update((address, _DENY) for address in ours if family_of(address) == family and address in net)
                classes = {name: arrays.code(_chain(by_name, name)) if name else _PASS for name in set(chains.values())}
                codes[number].update([(address, classes[name]) for address, name in chains.items()])
        there = {chain for family in hooked for chain in ruleset.chains.get(family, {}).values()}
        self._branches = {place: branch for place, branch in self._branches.items() if place[0] in there}
        egress, ingress = codes
        raw_ends = b"".join(
            [
                _END.pack(
                    a, egress.get(a, _PASS), ingress.get(a, _PASS), family_of(a), (_POD if a in pods else 0) | (_LOCAL if a in local else 0)
                )
                for a in ours
            ]
        )
        return {
            "rules": ffi.from_buffer("struct np_judge_rule[]", b"".join(arrays.rules)),
            "ports": ffi.from_buffer("uint16_t[]", arrays.ports.tobytes()),
            "classes": ffi.from_buffer("struct np_judge_class[]", b"".join(arrays.classes)),
            "ends": ffi.from_buffer("struct np_judge_end[]", raw_ends),
            "ranges": ffi.from_buffer("struct np_judge_range[]", b"".join(ranges)),
            "rule_count": len(arrays.rules),
            "port_count": len(arrays.ports),
            "class_count": len(arrays.classes),
            "end_count": len(ours),
            "range_count": len(ranges),
            "families": sum(1 << family for family in hooked),
        }

    def _use_sets(self, sets: Mapping[str, Set], names: Iterable[str]) -> tuple[Any, list[Any]]:
        used = list(names)
        native = ffi.new("struct np_judge_set[]", len(used))
        kept: dict[str, tuple[Set, Any, tuple[Any, ...]]] = {}
        for place, name in enumerate(used):
            if name not in sets:
                raise _OtherForm
            known = self._sets.get(name)
            kept[name] = known if known is not None and known[0] is sets[name] else _native_set(sets[name])
            native[place] = kept[name][1][0]
        self._sets = kept
        return native, [found[2] for found in kept.values()]


class _Arrays:
    """Rules and classes as they are packed; `names` are the sets they use, by the numbers they got. What is there stays."""

    def __init__(self) -> None:
        self.rules: list[bytes] = []
        self.classes: list[bytes] = []
        self.ports = array("H")
        self.names: dict[str, int] = {}
        self.codes: dict[Chain, int] = {}

    def code(self, chain: Chain) -> int:
        """The code of a class; one that cannot be taken apart is asked about."""
        found = self.codes.get(chain)
        if found is None:
            found = self.codes[chain] = self._add(_allowed(chain.rules))
        return found

    def _add(self, rules: tuple[_Allowed, ...] | None) -> int:
        if rules is None:
            return int(_ASK)
        first = len(self.rules)
        for rule in rules:
            ports, start = [port for pair in rule.ports for port in pair], len(self.ports)
            self.ports.extend(ports)
            numbers = [self.names.setdefault(name, len(self.names)) for name, _ in rule.sets] + [0, 0]
            sources = [of_source for _, of_source in rule.sets] + [False, False]
            net = (rule.net.address, 1 if rule.of_source else 2, rule.net.length) if rule.net is not None else (b"", 0, 0)
            self.rules.append(
                _RULE.pack(net[0], start, len(ports), *numbers[:2], *sources[:2], len(rule.sets), rule.protocol, net[1], net[2])
            )
        self.classes.append(_CLASS.pack(first, len(rules)))
        return int(_RULES) + len(self.classes) - 1


def _native_set(found: Set) -> tuple[Set, Any, tuple[Any, ...]]:
    members, count, record = found.packed, found.entries, member_size(found.kind, found.family)
    slots = ffi.new("uint32_t[]", _slots(count))
    native = ffi.new(
        "struct np_judge_set *",
        {
            "members": ffi.from_buffer("uint8_t[]", members),
            "count": count,
            "slots": slots,
            "slot_count": len(slots),
            "width": 4 if found.family == 4 else 16,
            "record": record,
            "is_net": "net" in found.kind,
            "has_port": "port" in found.kind,
        },
    )
    if len(members) != record * count or lib.np_judge_index_set(native) < 0:
        raise _OtherForm
    return found, native, (members, slots)


def _of(chains: Mapping[Address, str], ends: frozenset[Address] | None) -> Mapping[Address, str]:
    return chains if ends is None else {address: chains[address] for address in ends & chains.keys()}


def _slots(count: int) -> int:
    return 1 << (2 * count + 1).bit_length()


def _chain(chains: Mapping[str, Chain], name: str) -> Chain:
    if name not in chains:
        raise _OtherForm
    return chains[name]


def _scopes(root: tuple[Rule, ...], new: tuple[Rule, ...], family: Family) -> dict[str, _Scope]:
    """The sides to which a new flow's packet goes on, each with those sources, or destinations, for which it does."""
    if not root or root[0] != Rule(Goto(NEW), (Conntrack(("RELATED", "ESTABLISHED"), invert=True),)):
        raise _OtherForm
    found: dict[str, _Scope] = {}
    everywhere = Network(bytes(4 if family == 4 else 16), 0)
    # Link-local flows are asked about.
    for rule in [rule for rule in new if rule not in _LINK_LOCAL]:
        if rule == Rule(Jump(EGRESS), _front_match(rule, family, "egress"), source=rule.source) and not found:
            found[EGRESS] = _Scope(rule.source or everywhere, bool(rule.matches))
        elif rule == Rule(Goto(INGRESS), _front_match(rule, family, "ingress"), destination=rule.destination) and INGRESS not in found:
            found[INGRESS] = _Scope(rule.destination or everywhere, bool(rule.matches))
        else:
            raise _OtherForm
    return found


def _front_match(rule: Rule, family: Family, direction: Direction) -> tuple[SetMatch, ...]:
    """The matches that a rule in front of a tree may have: none, or that of its set."""
    return (front_match(family, direction),) if rule.matches else ()


def _check_deny(rules: tuple[Rule, ...], family: Family) -> None:
    """Nothing comes back from NETPOL-DENY, but for ICMPv6, which is asked about."""
    for rule in rules:
        returns = rule.target == RETURN and family == 6 and rule.protocol == ICMPV6 and not rule.not_protocol
        if not returns and rule.target != DROP and not isinstance(rule.target, Nflog | Reject):
            raise _OtherForm
    if not rules or rules[-1] not in (Rule(DROP), Rule(rules[-1].target)) or isinstance(rules[-1].target, Nflog):
        raise _OtherForm


def _branch(rules: tuple[Rule, ...], root: str, within: Network) -> _Branch:
    """One chain of a tree: it tests networks that do not overlap, or addresses, inside that network by which it is reached."""
    width = len(within.address) * 8
    leaves: dict[Address, str] = {}
    below: list[tuple[str, Network]] = []
    denied: list[Network] = []
    spans: list[tuple[int, int]] = []
    for rule in rules:
        own, target = _dispatch(rule, root)
        is_leaf = target is None or rule.not_source or rule.not_destination
        if target == DENY and not is_leaf:
            denied.append(own)
            continue
        if target is None and leaves.get(own.address) and own.length == width:
            continue  # an isolated pod that speaks to itself
        if denied or target == DENY or own.length < within.length or own.address not in within or is_leaf != (own.length == width):
            raise _OtherForm
        if is_leaf:
            leaves[own.address] = target or ""
        elif target is not None and own.length > within.length:
            below.append((target, own))
        else:
            raise _OtherForm
        rest = (1 << width - own.length) - 1
        last = int.from_bytes(own.address, "big") | rest
        spans.append((last - rest, last))
    spans.sort()
    if any(later[0] <= earlier[1] for earlier, later in pairwise(spans)):
        raise _OtherForm
    return _Branch(leaves, tuple(below), tuple(denied))


def _dispatch(rule: Rule, root: str) -> tuple[Network, str | None]:
    """The addresses that a rule of a tree is about, and the chain they go to; None for a pod that is free."""
    egress = root == EGRESS
    own, other = (rule.source, rule.destination) if egress else (rule.destination, rule.source)
    apart = rule.not_destination if egress else rule.not_source
    if own is None or other not in ((own,) if apart else (None,)):
        raise _OtherForm
    target = rule.target.chain if isinstance(rule.target, Goto) else None
    plain = Rule(rule.target, (), rule.source, rule.destination, not_source=apart and not egress, not_destination=apart and egress)
    if rule != plain or (target is None and (rule.target != RETURN or apart)):
        raise _OtherForm
    return own, target


def _allowed(rules: tuple[Rule, ...]) -> tuple[_Allowed, ...] | None:
    """What a class chain lets through before its end denies the rest; None for one of another form."""
    if not rules or rules[-1] != Rule(Goto(DENY)):
        return None
    found = [_ask_for(rule) for rule in rules[:-1]]
    known = tuple(rule for rule in found if rule is not None)
    return known if len(known) == len(found) else None


def _ask_for(rule: Rule) -> _Allowed | None:
    if rule != Rule(RETURN, rule.matches, rule.source, rule.destination, rule.protocol) or (rule.source and rule.destination):
        return None
    ports: list[tuple[PortRange, ...]] = []
    sets: list[tuple[str, bool]] = []
    for match in rule.matches:
        if isinstance(match, SetMatch) and not match.invert and match.directions[1:] in ((), ("dst",)):
            sets.append((match.name, match.directions[0] == "src"))
        elif isinstance(match, Tcp | Udp) and match == type(match)(destination=match.destination):
            ports.append((match.destination,))
        elif isinstance(match, Sctp) and match == Sctp(destination=match.destination):
            ports.append((match.destination or ANY_PORT,))
        elif isinstance(match, Multiport) and match == Multiport(match.ports):
            ports.append(match.ports)
        else:
            return None
    ports = [pairs for pairs in ports if pairs != (ANY_PORT,)]
    if len(ports) > 1 or len(sets) > lib.NP_JUDGE_MATCHES or (ports and rule.protocol not in (TCP, UDP, SCTP)):
        return None
    return _Allowed(rule.protocol, ports[0] if ports else (), tuple(sets), rule.source or rule.destination, rule.source is not None)
