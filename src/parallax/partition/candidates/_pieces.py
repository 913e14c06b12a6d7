"""Pieces: a list schedule cut into runs of fusion groups that stay together on their lane.

A piece starts when its operands are there and hands over when it ends, so each cut costs overhead and
each cut left out may make another lane wait. Pieces form an acyclic graph at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.graph import Dag
from parallax.partition.candidates._list_schedule import ListSchedule

_MAX_DEGREE = 64
"""Merging looks at the neighbours of a piece; those with more are left as they are, which keeps it linear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Groups that run in one go. ``exclusive``: at full width, while nothing else runs."""

    groups: tuple[int, ...]
    lane: int
    exclusive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSection:
    """A section of the graph run side by side: its pieces in order of time, and when (ns) all is back on lane 0."""

    pieces: tuple[Piece, ...]
    makespan: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What cutting costs: ns per group on one lane and on all cores, and the price of hand-overs and segments."""

    narrow: Sequence[int]
    wide: Sequence[int]
    lanes: int
    handover_ns: int
    overhead_ns: int


class _Pieces:
    """The working state: pieces by number, with their edges, positions and estimated times.

    Invariants: ``position`` orders living pieces topologically, no two alike; ``preds`` and ``succs`` mirror each
    other and name living pieces only; a dead piece has no groups.
    """

    def __init__(self, dag: Dag, schedule: ListSchedule, terms: Terms) -> None:
        self.terms = terms
        self.groups: list[list[int]] = []
        self.lane: list[int] = []
        self.start: list[int] = []
        self.end: list[int] = []
        piece_of = self._cut(dag, schedule, terms.handover_ns)
        self.position = list(range(len(self.groups)))
        self.cost = [sum([terms.narrow[group] for group in members]) for members in self.groups]
        self.preds: list[set[int]] = [set() for _ in self.groups]
        self.succs: list[set[int]] = [set() for _ in self.groups]
        low = schedule.low
        for group in schedule.order:
            piece = piece_of[group - low]
            for pred in dag.predecessors[group]:
                if pred >= low and piece_of[pred - low] != piece:
                    self.preds[piece].add(piece_of[pred - low])
                    self.succs[piece_of[pred - low]].add(piece)

    def _cut(self, dag: Dag, schedule: ListSchedule, handover_ns: int) -> list[int]:
        """Keep groups of a lane together as long as it delays nothing in the schedule.

        A group joins the piece before it if the operands it gets from other lanes are there when that piece
        starts, and other lanes need the results of that piece only after the group is done. The first
        condition makes pieces acyclic: along an edge between them the start grows.
        """
        low, high = schedule.low, schedule.low + len(schedule.lane)
        piece_of = [-1] * len(schedule.lane)
        lanes, starts, finishes = schedule.lane, schedule.start, schedule.finish
        never = max(finishes) + handover_ns + 1
        current: dict[int, int] = {}
        due: dict[int, int] = {}
        for group in schedule.order:
            lane = lanes[group - low]
            arrival = 0
            for pred in dag.predecessors[group]:
                if pred >= low and lanes[pred - low] != lane and finishes[pred - low] + handover_ns > arrival:
                    arrival = finishes[pred - low] + handover_ns
            needed = never
            for target in dag.successors[group]:
                if target < high and lanes[target - low] != lane and starts[target - low] < needed:
                    needed = starts[target - low]
            finish = finishes[group - low]
            piece = current.get(lane, -1)
            if piece < 0 or arrival > self.start[piece] or finish + handover_ns > due[lane]:
                piece = current[lane] = len(self.groups)
                due[lane] = needed
                self.groups.append([])
                self.lane.append(lane)
                self.start.append(starts[group - low])
                self.end.append(finish)
            self.groups[piece].append(group)
            self.end[piece] = finish
            if needed < due[lane]:
                due[lane] = needed
            piece_of[group - low] = piece
        return piece_of

    def living(self) -> list[int]:
        """Pieces that were not merged into another, in topological order."""
        return sorted((piece for piece, groups in enumerate(self.groups) if groups), key=self.position.__getitem__)

    def merged_position(self, first: int, second: int) -> int | None:
        """Where a merger of two pieces would stand, or None if it is not known to be legal. O(degree).

        Legal if all that ``second`` needs stands no later than ``first``, or all that needs ``first`` stands no
        earlier than ``second``: either way no path leads from one through a third to the other, and
        the order stays topological.
        """
        position = self.position
        if len(self.preds[second]) <= _MAX_DEGREE and all(
            position[pred] <= position[first] for pred in self.preds[second]
        ):
            return position[first]
        if len(self.succs[first]) <= _MAX_DEGREE and all(
            position[target] >= position[second] for target in self.succs[first]
        ):
            return position[second]
        return None

    def merge(self, keep: int, gone: int, position: int) -> None:
        """Make two pieces one, under the number ``keep``. Times are the caller's to update."""
        for pred in self.preds[gone]:
            self.succs[pred].discard(gone)
            if pred != keep:
                self.succs[pred].add(keep)
                self.preds[keep].add(pred)
        for target in self.succs[gone]:
            self.preds[target].discard(gone)
            if target != keep:
                self.preds[target].add(keep)
                self.succs[keep].add(target)
        self.preds[gone].clear()
        self.succs[gone].clear()
        self.groups[keep].extend(self.groups[gone])
        self.groups[gone] = []
        self.cost[keep] += self.cost[gone]
        self.position[keep] = position

    def coarsen(self) -> bool:
        """Merge neighbours on a lane where that delays nobody by more than the overhead it saves. Whether any."""
        changed = False
        handover, tolerance = self.terms.handover_ns, self.terms.overhead_ns
        current: dict[int, int] = {}
        for piece in self.living():
            lane = self.lane[piece]
            before = current.get(lane)
            if before is None or len(self.succs[before]) > _MAX_DEGREE or len(self.preds[piece]) > _MAX_DEGREE:
                current[lane] = piece
                continue
            position = self.merged_position(before, piece)
            start = self.start[before]
            for pred in self.preds[piece]:
                if pred != before:
                    start = max(start, self.end[pred] + (handover if self.lane[pred] != lane else 0))
            end = start + self.cost[before] + self.cost[piece]
            late = max(
                (end + handover - self.start[target] for target in self.succs[before] if self.lane[target] != lane),
                default=0,
            )
            if position is None or start - self.start[before] > tolerance or late > tolerance:
                current[lane] = piece
                continue
            self.merge(before, piece, position)
            self.start[before], self.end[before] = start, end
            changed = True
        return changed

    def absorb_tiny(self) -> bool:
        """Give pieces not worth their overhead and hand-over to one they need or that needs them. Whether any."""
        changed = False
        worth = self.terms.overhead_ns + self.terms.handover_ns
        for piece in self.living():
            if not self.groups[piece] or self.cost[piece] > worth:
                continue
            if max(len(self.preds[piece]), len(self.succs[piece])) > _MAX_DEGREE:
                continue
            lane = self.lane[piece]
            before = sorted(self.preds[piece], key=lambda each: (self.lane[each] != lane, -self.end[each], each))
            after = sorted(self.succs[piece], key=lambda each: (self.lane[each] != lane, self.start[each], each))
            for neighbour in (*before, *after):
                is_before = self.position[neighbour] < self.position[piece]
                pair = (neighbour, piece) if is_before else (piece, neighbour)
                position = self.merged_position(*pair)
                if position is not None:
                    self.merge(neighbour, piece, position)
                    if is_before:
                        self.end[neighbour] += self.cost[piece]
                    else:
                        self.start[neighbour] -= self.cost[piece]
                    changed = True
                    break
        return changed

    def frozen(self) -> _Timeline:
        """The pieces as they are now, in topological order, and when each runs at a lane's width."""
        numbers = self.living()
        place_of = {number: place for place, number in enumerate(numbers)}
        cut = _Timeline(
            groups=[self.groups[number].copy() for number in numbers],
            lane=[self.lane[number] for number in numbers],
            cost=[self.cost[number] for number in numbers],
            preds=[[place_of[pred] for pred in self.preds[number]] for number in numbers],
            exclusive=[False] * len(numbers),
        )
        cut.run(self.terms)
        return cut


class _Timeline:
    """Pieces in topological order with their predicted timeline; a piece is known by its place."""

    def __init__(
        self,
        *,
        groups: list[list[int]],
        lane: list[int],
        cost: list[int],
        preds: list[list[int]],
        exclusive: list[bool],
    ) -> None:
        self.groups, self.lane, self.cost, self.preds, self.exclusive = groups, lane, cost, preds, exclusive
        self.start: list[int] = []
        self.end: list[int] = []
        self.makespan = 0

    def run(self, terms: Terms) -> None:
        """Each piece as soon as its lane and its operands allow, in order. Ends when all is back on lane 0."""
        handover, overhead = terms.handover_ns, terms.overhead_ns
        free_at = [0] * terms.lanes
        start: list[int] = []
        end: list[int] = []
        back = 0
        for lane, cost, preds, exclusive in zip(self.lane, self.cost, self.preds, self.exclusive, strict=True):
            # A section begins on lane 0; waking another lane is a hand-over.
            begin = max(free_at) if exclusive else max(free_at[lane], handover if lane else 0)
            for pred in preds:
                done = end[pred] if self.lane[pred] == lane else end[pred] + handover
                if done > begin:
                    begin = done
            done = begin + overhead + cost
            start.append(begin)
            end.append(done)
            if exclusive:
                free_at = [done] * terms.lanes
            free_at[lane] = done
            back = max(back, done if lane == 0 else done + handover)
        self.start, self.end, self.makespan = start, end, back

    def widen(self, terms: Terms) -> None:
        """Run again with full width for those pieces that turned out to run alone, where that is faster."""
        wide = terms.wide
        for place, is_alone in enumerate(_run_alone(self.start, self.end)):
            if is_alone:
                cost = sum([wide[group] for group in self.groups[place]])
                if cost < self.cost[place]:
                    self.cost[place], self.exclusive[place] = cost, True
        if any(self.exclusive):
            self.run(terms)

    def section(self) -> ParallelSection:
        order = sorted(range(len(self.groups)), key=lambda place: (self.start[place], place))
        return ParallelSection(
            pieces=tuple(
                [
                    Piece(
                        groups=tuple(sorted(self.groups[place])), lane=self.lane[place], exclusive=self.exclusive[place]
                    )
                    for place in order
                ]
            ),
            makespan=self.makespan,
        )


def _run_alone(start: Sequence[int], end: Sequence[int]) -> list[bool]:
    """Which of the intervals [start, end) meet no other."""
    order = sorted(range(len(start)), key=lambda place: (start[place], end[place]))
    alone = [True] * len(start)
    latest = -1
    for rank, place in enumerate(order):
        if start[place] < latest:
            alone[place] = False
        if rank + 1 < len(order) and start[order[rank + 1]] < end[place]:
            alone[place] = False
        latest = max(latest, end[place])
    return alone


def cut_schedule(dag: Dag, schedule: ListSchedule, terms: Terms) -> ParallelSection:
    """The best of three ways to cut a schedule: exactly, with short pieces merged, and with tiny ones absorbed."""
    pieces = _Pieces(dag, schedule, terms)
    best = pieces.frozen()
    for refine in (pieces.coarsen, pieces.absorb_tiny):
        if refine():
            refined = pieces.frozen()
            if refined.makespan <= best.makespan:
                best = refined
    best.widen(terms)
    return best.section()
