"""Growing convex regions: waves of what a device takes, and what of each wave is worth taking.

Everything rests on one number per fusion group, its *wave*: how often a path to it has gone from the device back to the
host. Edges never lead to a lower wave, and one from the device to the host always leads to a higher one. So if
each region lies within one wave, ordering by (wave, host before device) orders the contracted graph, which
therefore has no cycle. Within a wave, pieces that no edge connects are not connected at all (a path would have
to leave the device and so the wave), and may be regions of their own or one; and a piece may be cut at any
place of its topological order, since edges never lead to a lower index.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from parallax.graph import Dag, UnionFind
from parallax.partition.regions._problem import HOST, Assignment, RegionProblem

_ROUNDS = 3
"""Pieces are looked at again as long as that changes something, at most this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Where a wave ends on the device although nothing makes it: after some groups, and before others."""

    after: Collection[int] = frozenset()
    before: Collection[int] = frozenset()

    def between(self, tail: int, head: int) -> bool:
        """Whether that edge is cut, if the device runs both ends."""
        return tail in self.after or head in self.before


NO_CUTS = Cuts()


def find_waves(dag: Dag, takes: Sequence[bool], cuts: Cuts = NO_CUTS) -> list[int]:
    """The wave of each group. O(V + E).

    The waves that ONNX Runtime's greedy partitioning goes through (``CreateSupportedPartitionNodeGroups`` in
    ``core/providers/partitioning_utils.cc``): a wave takes all it can reach without passing through the host.
    """
    waves: list[int] = []
    for group, preds in enumerate(dag.predecessors):
        wave = 0
        mine = takes[group]
        for pred in preds:
            at = waves[pred] + (takes[pred] and (not mine or cuts.between(pred, group)))
            if at > wave:
                wave = at
        waves.append(wave)
    return waves


def find_fragments(waves: Sequence[int], takes: Sequence[bool]) -> list[list[int]]:
    """What a greedy partition makes: all that is taken in a wave, connected or not. In order of waves."""
    by_wave: dict[int, list[int]] = {}
    for group, wave in enumerate(waves):
        if takes[group]:
            by_wave.setdefault(wave, []).append(group)
    return [by_wave[wave] for wave in sorted(by_wave)]


def find_pieces(dag: Dag, takes: Sequence[bool], waves: list[int], cuts: Cuts = NO_CUTS) -> list[list[int]]:
    """Connected pieces of each wave, late rather than early; ``waves`` is brought up to date. O((V + E) log V).

    A piece that nobody waits for before some later wave, and that wave's device part is a reader, joins it there:
    computed early, it would be a launch of its own. Pieces come in order of waves, then of their first group.
    """
    joined = UnionFind(len(dag))
    for group, preds in enumerate(dag.predecessors):
        if takes[group]:
            for pred in preds:
                if takes[pred] and waves[pred] == waves[group]:
                    joined.union(pred, group)
    pieces: dict[int, list[int]] = {}
    for group, taken in enumerate(takes):
        if taken:
            pieces.setdefault(joined.find(group), []).append(group)
    for leader in sorted(pieces, key=lambda leader: (-waves[leader], -leader)):
        wave = waves[leader]
        latest: int | None = None
        joins: int | None = None
        for group in pieces[leader]:
            for target in dag.successors[group]:
                if takes[target] and not cuts.between(group, target):
                    at = waves[target]
                    if at == wave:
                        continue
                    may_join = True
                else:
                    at = waves[target] - 1
                    may_join = False
                if latest is None or at < latest:
                    latest, joins = at, None
                if may_join and at == latest and joins is None:
                    joins = target
        if latest is None or latest <= wave or joins is None:
            continue
        target_leader = joined.find(joins)
        for group in pieces[leader]:
            waves[group] = latest
        # It may link several pieces of that wave; all of them become one.
        linked = {target_leader}
        for group in pieces[leader]:
            for to in dag.successors[group]:
                if takes[to] and waves[to] == latest and not cuts.between(group, to):
                    linked.add(joined.find(to))
        linked.discard(leader)
        first = min(linked | {leader})
        merged = sorted(group for one in (*linked, leader) for group in pieces.pop(one))
        for one in (*linked, leader):
            joined.union(first, one)
        pieces[first] = merged
    return [pieces[leader] for leader in sorted(pieces, key=lambda leader: (waves[leader], leader))]


def grow(
    problem: RegionProblem, pieces: Sequence[Sequence[int]], waves: Sequence[int], *, join_siblings: bool
) -> Assignment:
    """Choose what of each piece becomes regions, so that the cost falls with every choice. About linear.

    Per piece the cheapest of: nothing, all of it, the intervals that a two-state dynamic program over its
    topological order picks (exact for a chain), each followed by peeling off groups at the boundary that are
    cheaper on the host. Tensors between two regions need not move, so pieces depend on each other: they are
    looked at in turn from all of them whole and from none, and the cheaper end counts. At last pieces of one wave
    that are short for a launch of their own share one; with ``join_siblings`` all of a wave do where that is
    cheaper.

    Returns: a placement that costs at most what the host alone does.
    """
    found: list[Assignment] = []
    for whole in (True, False):
        assignment = Assignment(problem)
        next_region = 0
        if whole:
            for piece in pieces:
                assignment.place(piece, next_region)
                next_region += 1
        for _ in range(_ROUNDS):
            before = assignment.cost_ns
            for piece in pieces:
                next_region = _choose(assignment, piece, next_region)
            if assignment.cost_ns >= before:
                break
        _share_launches(assignment, pieces, waves, next_region, join_siblings)
        found.append(assignment)
    return min(found, key=lambda assignment: assignment.cost_ns)


def peel(assignment: Assignment, groups: Sequence[int]) -> None:
    """Move groups at the boundary of their region to the host while that gains. ``groups``: one region's, ascending.

    A group is at the boundary if nothing before it, or nothing after it, is in its region: placed just before or just
    after the region, it closes no cycle.
    """
    dag, region_of = assignment.problem.dag, assignment.region_of
    for order, neighbours in ((groups, dag.predecessors), (tuple(reversed(groups)), dag.successors)):
        for group in order:
            region = region_of[group]
            if region < 0 or assignment.members[region] == 1:
                continue
            if any(region_of[other] == region for other in neighbours[group]):
                continue
            if assignment.place((group,), HOST) >= 0:
                assignment.place((group,), region)


def _choose(assignment: Assignment, piece: Sequence[int], next_region: int) -> int:
    """The best of a piece's forms, given where all else is; ties go to the earlier form, the host first."""
    best_cost = assignment.cost_ns
    best = assignment.snapshot(piece)
    assignment.place(piece, HOST)
    if assignment.cost_ns <= best_cost:
        best_cost, best = assignment.cost_ns, [HOST] * len(piece)
    for labels in (None, _intervals(assignment, piece)):
        assignment.place(piece, HOST)
        if labels is None:
            assignment.place(piece, next_region)
            next_region += 1
        else:
            next_region = _place_intervals(assignment, piece, labels, next_region)
        regions: dict[int, list[int]] = {}
        for group in piece:
            if assignment.region_of[group] >= 0:
                regions.setdefault(assignment.region_of[group], []).append(group)
        for groups in regions.values():
            peel(assignment, groups)
            kept = [group for group in groups if assignment.region_of[group] >= 0]
            region = assignment.region_of[kept[0]]
            if assignment.place(kept, HOST) > 0:
                assignment.place(kept, region)
        if assignment.cost_ns < best_cost:
            best_cost, best = assignment.cost_ns, assignment.snapshot(piece)
    assignment.restore(piece, best)
    return next_region


def _intervals(assignment: Assignment, piece: Sequence[int]) -> list[bool]:
    """Which groups of a piece the device should run: a two-state dynamic program over its topological order.

    The state is the side the group is on. A change of side costs the transfer of all that is alive there within
    the piece, one to the device a launch as well. Tensors from and to outside are charged to the first group
    that reads them, and to the one that makes them.
    """
    problem, region_of = assignment.problem, assignment.region_of
    tensors = problem.tensors
    position = {group: index for index, group in enumerate(piece)}
    size = len(piece)
    up = [0] * (size + 1)
    down = [0] * (size + 1)
    device = [0] * size
    host = [0] * size
    last_read: dict[int, int] = {}
    first_read: set[int] = set()
    for index, group in enumerate(piece):
        device[index] += problem.device_ns[group]
        host[index] += problem.cpu_ns[group]
        for number in problem.reads[group]:
            item = tensors[number]
            if item.producer in position:
                last_read[number] = index
            elif number not in first_read:
                first_read.add(number)
                if item.producer >= 0 and region_of[item.producer] >= 0:
                    host[index] += item.down_ns
                else:
                    device[index] += item.up_ns
    inside: dict[int, int] = dict.fromkeys(last_read, 0)
    for group in piece:
        for number in problem.reads[group]:
            if number in inside:
                inside[number] += 1
    for index, group in enumerate(piece):
        for number in problem.writes[group]:
            item = tensors[number]
            outside = item.readers - inside.get(number, 0)
            if item.returned or outside > assignment.device_readers[number]:
                device[index] += item.down_ns
            elif outside:
                host[index] += item.up_ns
            last = last_read.get(number)
            if last is not None:
                # Alive at the places between its maker and its last reader.
                up[index + 1] += item.up_ns
                up[last + 1] -= item.up_ns
                down[index + 1] += item.down_ns
                down[last + 1] -= item.down_ns
    on_host, on_device = host[0], device[0] + problem.launch_ns
    choices: list[tuple[bool, bool]] = [(False, True)]
    live_up = live_down = 0
    for index in range(1, size):
        live_up += up[index]
        live_down += down[index]
        back = on_device + live_down
        forth = on_host + live_up + problem.launch_ns
        # What came before, for each side: ties stay where they are.
        choices.append((back < on_host, on_device <= forth))
        on_host, on_device = min(on_host, back) + host[index], min(on_device, forth) + device[index]
    labels = [False] * size
    side = on_device < on_host
    for index in range(size - 1, -1, -1):
        labels[index] = side
        side = choices[index][side]
    return labels


def _place_intervals(assignment: Assignment, piece: Sequence[int], labels: Sequence[bool], next_region: int) -> int:
    """Each run of labelled groups becomes regions, one per connected part of it."""
    predecessors, region_of = assignment.problem.dag.predecessors, assignment.region_of
    run: list[int] = []
    for group, label in (*zip(piece, labels, strict=True), (-1, False)):
        if label:
            run.append(group)
            continue
        if run:
            low = next_region
            for member in run:
                # Placed in order, so whatever connects parts finds them placed.
                touching = {region_of[pred] for pred in predecessors[member]}
                parts = sorted(region for region in touching if region >= low)
                if not parts:
                    parts = [next_region]
                    next_region += 1
                assignment.place((member,), parts[0])
                if len(parts) > 1:
                    others = set(parts[1:])
                    assignment.place([other for other in run if region_of[other] in others], parts[0])
            run = []
    return next_region


def _share_launches(
    assignment: Assignment, pieces: Sequence[Sequence[int]], waves: Sequence[int], next_region: int, join_siblings: bool
) -> None:
    """Let pieces of one wave share a launch: the short ones and those dropped, or all of them, where that gains.

    Only pieces that are one region, or none, take part: no path leads from one to another, so any of them may
    be joined.
    """
    problem = assignment.problem
    by_wave: dict[int, list[Sequence[int]]] = {}
    for piece in pieces:
        by_wave.setdefault(waves[piece[0]], []).append(piece)
    for siblings in by_wave.values():
        if len(siblings) < 2:
            continue
        whole: list[Sequence[int]] = []
        for piece in siblings:
            places = {assignment.region_of[group] for group in piece} - {HOST}
            if len(places) <= 1:
                whole.append(piece)
        short = [piece for piece in whole if _work(assignment, piece) < problem.launch_ns]
        for together in (whole, short) if join_siblings else (short,):
            if len(together) < 2:
                continue
            # First what is on the device already, then with the dropped pieces as well.
            kept = [[group for group in piece if assignment.region_of[group] >= 0] for piece in together]
            for parts in ([part for part in kept if part], together):
                if len(parts) < 2:
                    continue
                groups = sorted(group for part in parts for group in part)
                before = assignment.snapshot(groups)
                gain = -assignment.place(groups, next_region)
                if parts is together:
                    cost = assignment.cost_ns
                    peel(assignment, groups)
                    gain += cost - assignment.cost_ns
                if gain > 0:
                    next_region += 1
                else:
                    assignment.restore(groups, before)


def _work(assignment: Assignment, piece: Sequence[int]) -> int:
    """Time of a piece on the device; all of it where none of it is there."""
    kept = [group for group in piece if assignment.region_of[group] >= 0]
    return sum(assignment.problem.device_ns[group] for group in kept or piece)
