"""The rows, and what is demanded of them: sizes of a busy cluster, ratios that the project holds itself to.

A goal is a ratio to one peer. A row that misses one is still a row: whoever prints it says so.
"""

from __future__ import annotations

from msgspec import structs

from netpol.bench import audits, changes, execs, flows, packets, sets, tables, watching
from netpol.bench.measure import Case
from netpol.bench.members import networks, pod_addresses, scattered_addresses

MEMBERS, FEW = 60_000, 1_000
RULES = (1_000, 10_000)
POLICIES, ISOLATED, PEERS = 1_000, (10, 250, 2_000), (10, 1_000, 60_000)
CLUSTER = (10_000, 1_000, 250)  # pods, policies, pods on our node
LARGE = (100_000, 1_000, 250)

FILL_GOALS = {sets.RESTORE: 10.0, sets.RIGHT_SIZED: 9.0}
LOAD_GOAL = 7.0  # of 1,000 rules and more: of 100, starting a program and a process's first calls are most of either
# A flow's packet may cost so many times what it costs beside the peer; an event in a cluster of 8 times the size, too.
KNOWN_GOAL = 1 / 1.05
POLICIES_GOAL, DISPATCH_GOAL, FREE_GOAL, FLAT_GOAL, LINEAR_GOAL = 1 / 1.3, 1 / 1.05, 1 / 1.05, 1 / 1.2, 1 / (8 * 1.2)

AUDIT = (10_000, 1_000)  # members and rules, both families together
FOREIGN = (1_000, 10_000)

FLOWS = 100_000
SWEEP_GOAL, FEW_GOAL = 1 / 1.2, 1.5
LISTED = 300
"""So few flows that the kernel's list is read, and no dump asked for."""

FILLS, DELTAS, SETS = (10_000, 250_000), (100, 10_000), (250, 1_000, 5_000)
LOADS, CHANGED = (100, 50_000), (100, 1_000, 10_000, 50_000)
BESIDE, OTHERS = (100, 1_000, 10_000), 10_000  # rules of ours beside so many of others
PYROUTE2 = 10_000  # members that it adds in a few seconds, a call each: more are no more to learn from
CLUSTERS = (1_000, 10_000, 100_000)
EXEC_GOAL = 100.0  # at 10,000 pods and more

READ = 2_000  # pods read from bytes
WATCH_GOAL, LIST_GOAL = 2.0, 10.0

PACKET_PAIRS = 900  # of a millisecond each

MEMORY_GOAL = 85.0  # MiB for the large cluster


def cases(
    members: int = MEMBERS,
    few: int = FEW,
    rules: tuple[int, ...] = RULES,
    policies: int = POLICIES,
    isolated: tuple[int, ...] = ISOLATED,
    peers: tuple[int, ...] = PEERS,
    cluster: tuple[int, int, int] = CLUSTER,
    audit: tuple[int, int] = AUDIT,
    foreign: tuple[int, ...] = FOREIGN,
    read: int = READ,
    running: int = FLOWS,
) -> tuple[Case, ...]:
    """All cases, in the order of the table. Sizes other than the defaults are for those who test them; `rules` are tens."""
    return (
        *kernel_cases(members, few, rules),
        *(scale_cases(members) if members == MEMBERS else ()),
        *leaving_cases(members),
        *packet_cases(policies, isolated),
        *known_cases(policies, isolated),
        packets.peers_in_a_set(f"new flow, a set of {short(peers[-1])} peers", peers, PACKET_PAIRS, {}),
        *change_cases(*cluster),
        *audit_cases(*audit, foreign),
        *flow_cases(running, cluster),
        *read_cases(read),
    )


def leaving_cases(members: int) -> tuple[Case, ...]:
    """What it costs that members leave a live set."""
    return tuple(sets.leave(f"{share} % of {short(members)} members leave", members, share, 9) for share in (10, 90))


def packet_cases(policies: int, isolated: tuple[int, ...]) -> tuple[Case, ...]:
    """What a new flow pays, in milliseconds a packet."""
    many = short(isolated[-1])
    return (
        packets.policies_on_one_pod(f"new flow, {short(policies)} policies", policies, PACKET_PAIRS, {"1 policy": POLICIES_GOAL}),
        packets.isolated_pods(f"new flow, {many} isolated pods", isolated, PACKET_PAIRS, {f"{isolated[0]} pods": DISPATCH_GOAL}),
        packets.free_pod(f"new flow, free among {many}", isolated[-1], PACKET_PAIRS, {packets.MATCH_ONLY: FREE_GOAL}),
        packets.free_pods(f"new flow, to {many} free among {many}", isolated[-1], PACKET_PAIRS, {packets.MATCH_ONLY: FREE_GOAL}),
    )


def known_cases(policies: int, isolated: tuple[int, ...]) -> tuple[Case, ...]:
    """What a packet of an established flow pays, whatever there is."""
    many = short(isolated[-1])
    return (
        packets.known_by_policies(f"established flow, {short(policies)} policies", policies, PACKET_PAIRS, {"1 policy": KNOWN_GOAL}),
        packets.known_by_pods(f"established flow, {many} isolated pods", isolated, PACKET_PAIRS, {f"{isolated[0]} pods": KNOWN_GOAL}),
    )


def change_cases(pods: int, policies: int, local: int) -> tuple[Case, ...]:
    """What an event costs in decisions, and how that grows."""
    first = f"at {pods} pods"
    return (
        changes.pod_event(f"pod event, {short(8 * pods)} pods", pods, policies, local, 7, {first: FLAT_GOAL}),
        changes.status_event(f"status event, {short(8 * pods)} pods", pods, policies, local, 7, {first: FLAT_GOAL}),
        changes.policy_event(
            f"policy event, {short(8 * policies)} policies", pods, policies, local, 7, {f"at {policies} policies": FLAT_GOAL}
        ),
        changes.team_event(f"a team's label, {short(8 * pods)} pods", pods, policies, local, 5, {first: LINEAR_GOAL}),
        changes.whole(f"whole compile, {short(8 * pods)} pods", pods, policies, local, 5, {first: LINEAR_GOAL}),
    )


def audit_cases(members: int, rules: int, foreign: tuple[int, ...]) -> tuple[Case, ...]:
    """What it costs to look after the kernel, to repair it, and others who wait for the lock meanwhile."""
    size = f"{short(members)} members and {short(rules)} rules"
    linear = {f"at {members} members": LINEAR_GOAL}
    return (
        audits.audit(f"audit of {size}", members, rules, 21, {audits.CPU: 1.0}),
        audits.growth(f"audit of {short(8 * members)} members and {short(8 * rules)} rules", members, rules, (1, 2, 4, 8), 11, linear),
        *(audits.repair(f"{kind}: found and repaired", kind, members, rules, 11) for kind in audits.DRIFTS),
        audits.notice("table flushed: noticed and repaired", members, rules, 7, {audits.NOTICE: 1.0}),
        *(audits.hold(f"lock held, 1 chain beside {short(count)} foreign rules", count, _pairs(count)) for count in foreign),
    )


def flow_cases(running: int, cluster: tuple[int, int, int]) -> tuple[Case, ...]:
    """What it costs to look whether running flows are to be cut."""
    all_of_them = {flows.BARE: SWEEP_GOAL}
    return (
        flows.sweep(f"{short(running)} flows swept, a tenth is our pods'", running, 0.1, cluster, 15, all_of_them),
        flows.sweep(f"{short(running)} flows swept, all are our pods'", running, 1.0, cluster, 15, all_of_them),
        flows.sweep_few(f"1 pod's of {short(running)} flows swept", running, 1, cluster, 15, {flows.BARE: FEW_GOAL}),
        flows.sweep_few(f"1 pod's of {short(LISTED)} flows swept", LISTED, 1, cluster, 15, {flows.BARE: FEW_GOAL}),
    )


def read_cases(pods: int) -> tuple[Case, ...]:
    """What an object of the API server costs until it is an event."""
    return (
        watching.watched(f"{short(pods)} pods watched", pods, 7, {watching.WATCH: WATCH_GOAL}),
        watching.listed(f"{short(pods)} pods listed", pods, 3, {watching.MODELS: LIST_GOAL}),
    )


def kernel_cases(members: int, few: int, rules: tuple[int, ...]) -> tuple[Case, ...]:
    """What the kernel calls cost beside other ways to the same end."""
    many, some, least = short(members), short(few), rules[0]
    return (
        sets.fill(f"{many} members into hash:ip", "hash:ip", pod_addresses, members, 15, FILL_GOALS),
        sets.fill(f"{many} scattered members into hash:ip", "hash:ip", scattered_addresses, members, 15, FILL_GOALS),
        sets.fill(f"{many} members into hash:net, 10% nomatch", "hash:net", networks, members, 15, FILL_GOALS),
        sets.fill(f"{some} members into hash:ip", "hash:ip", pod_addresses, few, 9, {}, pyroute2=True),
        sets.add_one(f"1 member added to {many}", members, 15),
        sets.swap(f"2 sets swapped, one of {some}", few, 15),
        sets.destroy(f"a set of {some} destroyed", few, 15),
        sets.read(f"{many} members read", pod_addresses, members, 15),
        *(tables.load(f"{short(count)} rules into a table", count, 4, _pairs(count), LOAD_GOAL) for count in rules),
        *(tables.load(f"{short(count)} rules into a table, IPv6", count, 6, _pairs(count), LOAD_GOAL) for count in rules),
        tables.change(f"1 chain changed in a table of {short(least)} rules", least, 21),
        *(tables.read(f"a table of {short(count)} rules read", count, _pairs(count)) for count in rules),
    )


def scale_cases(
    members: int = MEMBERS,
    fills: tuple[int, ...] = FILLS,
    deltas: tuple[int, ...] = DELTAS,
    many: tuple[int, ...] = SETS,
    loads: tuple[int, ...] = LOADS,
    changed: tuple[int, ...] = CHANGED,
    beside: tuple[int, ...] = BESIDE,
    others: int = OTHERS,
    clusters: tuple[int, ...] = CLUSTERS,
) -> tuple[Case, ...]:
    """How the main rows go on below and above the usual sizes, and a policy change by exec."""
    return (
        *(
            sets.fill(f"{short(count)} members into hash:ip", "hash:ip", pod_addresses, count, 7, {}, pyroute2=count <= PYROUTE2)
            for count in fills
        ),
        *(sets.grow(f"{short(count)} members added to {short(members)}", members, count, 9) for count in deltas),
        *(sets.make_many(f"{short(count)} sets of 10 made", count, 5 if count <= 1_000 else 2) for count in many),
        *(tables.load(f"{short(count)} rules into a table", count, 4, 5, _load_goal(count)) for count in loads),
        *(tables.append(f"1 rule appended in a table of {short(count)} rules", count, 9 if count <= 1_000 else 5) for count in changed),
        *(
            tables.change(f"1 chain changed in a table of {short(n)} rules", n, 9 if n <= 1_000 else 5)
            for n in changed
            if n not in RULES[:1]
        ),
        *(tables.load_beside(f"{short(n)} rules into a table with {short(others)} foreign ones", n, others, 7) for n in beside),
        *(tables.change(f"1 chain changed in {short(n)} rules beside {short(others)} foreign ones", n, 7, others) for n in beside),
        *(
            execs.policy_change(
                f"policy change, {short(pods)} pods",
                pods,
                max(1, pods // 10) if pods < LARGE[0] else LARGE[1],
                max(1, min(250, pods // 10)),
                5 if pods < LARGE[0] else 2,
                {execs.CALLS: EXEC_GOAL} if pods >= CLUSTER[0] else {},
            )
            for pods in clusters
        ),
    )


def node_cases(quick: bool = False) -> tuple[Case, ...]:
    """What `netpol bench` runs on a user's node: the main rows, in about a minute.

    quick -- at sizes that take seconds, and that no goal is for
    """
    members, few, rules = (600, 50, (100, 200)) if quick else (MEMBERS, FEW, RULES)
    policies, isolated = (20, (1, 5, 30)) if quick else (POLICIES, ISOLATED)
    pods = 200 if quick else 1_000
    found = (
        *kernel_cases(members, few, rules),
        *(sets.grow(f"{short(count)} members added to {short(members)}", members, count, 9) for count in (few // 10, few)),
        *(tables.append(f"1 rule appended in a table of {short(count)} rules", count, 9) for count in rules),
        execs.policy_change(f"policy change, {short(pods)} pods", pods, pods // 10, pods // 10, 3, {}),
        *packet_cases(policies, isolated),
    )
    return tuple(structs.replace(case, goals={}) for case in found) if quick else found


def short(count: int) -> str:
    """60000 -> "60k"; what is no whole number of thousands stays as it is."""
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)


def _load_goal(rules: int) -> float | None:
    return LOAD_GOAL if rules >= RULES[0] else None


def _pairs(rules: int) -> int:
    """Rounds: fewer where one takes longer."""
    return 21 if rules <= 1_000 else 11
