"""What a plan fixes for every run of it: the dispatcher's vocabulary and its precomputed table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from parallax._record import dataclass
from parallax.errors import PlanError
from parallax.schedule._plan import Plan
from parallax.schedule._tasks import Schedule, Task

ANY_LANE: Final = -1
"""As a bit mask, -1 has every lane's bit set."""


class SegmentState(IntEnum):
    """Where a segment of one run stands.

    ========= ======================================== ==========================================
    state     meaning                                  held in
    ========= ======================================== ==========================================
    WAITING   a predecessor is not done                `remaining` counts those predecessors
    READY     may start as soon as it fits             one of the ready queues
    RUNNING   a Start was issued, no answer yet        `running`: segment -> lane
    DONE      its outputs are there                    -
    FAILED    it raised, or was started and given up   `failed`
    CANCELLED will never start: the run has stopped    -
    ========= ======================================== ==========================================
    """

    WAITING = 0
    READY = 1
    RUNNING = 2
    DONE = 3
    FAILED = 4
    CANCELLED = 5


LEGAL_MOVES: Final[Mapping[SegmentState, frozenset[SegmentState]]] = {
    SegmentState.WAITING: frozenset({SegmentState.READY, SegmentState.CANCELLED}),
    SegmentState.READY: frozenset({SegmentState.RUNNING, SegmentState.CANCELLED}),
    SegmentState.RUNNING: frozenset({SegmentState.DONE, SegmentState.FAILED}),
    SegmentState.DONE: frozenset(),
    SegmentState.FAILED: frozenset(),
    SegmentState.CANCELLED: frozenset(),
}


class Start(NamedTuple):
    """Instruction: run this segment on this lane, now. ``width`` is the plan's, in threads."""

    segment: int
    lane: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchTable:
    """Holds all that the dispatcher needs of a plan, computed once and shared by every run (and thread).

    A *rank* is a segment's place in the order (priority descending, then index ascending); ready queues
    hold ranks, so that comparing two segments is comparing two integers. A *class* is a set of segments
    that ask for the same width and the same lane: within one, either the best fits or (bytes apart) none
    does, which keeps a decision independent of how many segments are ready. A *place* is a segment's
    position by rank within its class.
    """

    successors: tuple[tuple[int, ...], ...]
    predecessors: tuple[tuple[int, ...], ...]
    remaining: tuple[int, ...]
    """Number of predecessors, per segment."""
    widths: tuple[int, ...]
    peaks: tuple[int, ...]
    """Bytes a segment holds while it runs."""
    has_peaks: bool
    order: tuple[int, ...]
    """Rank to segment."""
    ranks: tuple[int, ...]
    """Segment to rank: the inverse of ``order``."""
    class_of: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    """Per class: ranks of its segments, ascending; a segment's place is its index here."""
    places: tuple[int, ...]
    classes: tuple[tuple[tuple[int, ...], int, int], ...]
    """Per class: ranks ready at the start (ascending), width, bit mask of the lanes allowed."""
    states: bytes
    """Initial `SegmentState` per segment."""
    ready_count: int
    """Segments without predecessors."""
    backfill: bool
    queues: tuple[int, ...]
    """Lanes that are devices' queues: some segment of width 0 is fixed to them. Ascending."""
    starts: dict[int, Start]
    """Memo: ``lane * segments + segment`` -> its instruction. Filled as runs go; entries never change."""

    @classmethod
    def from_plan(cls, plan: Plan) -> DispatchTable:
        """The table of a plan. Raises: PlanError as `build`."""
        segments = plan.segments
        return cls.build(
            predecessors=[segment.predecessors for segment in segments],
            widths=[segment.width for segment in segments],
            priorities=[segment.priority for segment in segments],
            lanes=[segment.lane for segment in segments],
            peaks=[segment.peak_bytes for segment in segments],
            backfill=plan.backfill,
        )

    @classmethod
    def from_schedule(cls, tasks: Sequence[Task], schedule: Schedule) -> DispatchTable:
        """The table of a policy's answer. Raises: PlanError as `build`, or if tasks and assignments differ."""
        if [task.index for task in tasks] != [assignment.segment for assignment in schedule.assignments]:
            raise PlanError(
                f"policy {schedule.policy!r} answered {len(schedule.assignments)} assignments for {len(tasks)} tasks",
                fix="return exactly one assignment per task, in task order",
            )
        return cls.build(
            predecessors=[task.predecessors for task in tasks],
            widths=[assignment.width for assignment in schedule.assignments],
            priorities=[assignment.priority for assignment in schedule.assignments],
            lanes=[assignment.lane for assignment in schedule.assignments],
            peaks=[task.peak_bytes for task in tasks],
            backfill=schedule.backfill,
        )

    @classmethod
    def build(
        cls,
        *,
        predecessors: Sequence[Sequence[int]],
        widths: Sequence[int],
        priorities: Sequence[int],
        lanes: Sequence[int | None],
        peaks: Sequence[int],
        backfill: bool,
    ) -> DispatchTable:
        """Make a table with one entry of each sequence per segment; O(segments log segments + edges).

        Raises: PlanError naming the segment, if a predecessor is not a lower index or is named twice,
            a width is below 1, a lane or peak is negative, or a peak beyond any memory.
        """
        count = len(predecessors)
        successors: list[list[int]] = [[] for _ in range(count)]
        for segment, before in enumerate(predecessors):
            if len(set(before)) != len(before) or any(not 0 <= other < segment for other in before):
                raise PlanError(
                    f"predecessors {tuple(before)} are not distinct lower indices",
                    where=f"segment {segment}",
                    fix="list segments in a topological order",
                )
            for other in before:
                successors[other].append(segment)
        for segment, (width, lane, peak) in enumerate(zip(widths, lanes, peaks, strict=True)):
            if width < (1 if lane is None else 0) or not 0 <= peak <= sys.maxsize or (lane is not None and lane < 0):
                raise PlanError(
                    f"width {width}, lane {lane}, peak {peak} bytes cannot be dispatched",
                    where=f"segment {segment}",
                    fix="give a width of at least 1 (0 on a fixed lane: a queue), a lane and a peak of at least 0",
                )
        order = sorted(range(count), key=lambda segment: (-priorities[segment], segment))
        ranks = [0] * count
        for rank, segment in enumerate(order):
            ranks[segment] = rank
        # Lanes of devices' queues: nothing else may hold one up, where there are other lanes.
        queues = sorted({lane for width, lane in zip(widths, lanes, strict=True) if not width and lane is not None})
        queue_mask = sum(1 << lane for lane in queues)
        class_index: dict[tuple[int, int], int] = {}
        initial: list[list[int]] = []
        class_of: list[int] = []
        for segment in range(count):
            lane = lanes[segment]
            key = (widths[segment], ANY_LANE & ~queue_mask if lane is None else 1 << lane)
            index = class_index.setdefault(key, len(class_index))
            if index == len(initial):
                initial.append([])
            class_of.append(index)
            if not predecessors[segment]:
                initial[index].append(ranks[segment])
        members: list[list[int]] = [[] for _ in class_index]
        places = [0] * count
        for rank, segment in enumerate(order):
            places[segment] = len(members[class_of[segment]])
            members[class_of[segment]].append(rank)
        return cls(
            successors=tuple(map(tuple, successors)),
            predecessors=tuple(map(tuple, predecessors)),
            remaining=tuple(map(len, predecessors)),
            widths=tuple(widths),
            peaks=tuple(peaks),
            has_peaks=any(peaks),
            order=tuple(order),
            ranks=tuple(ranks),
            class_of=tuple(class_of),
            members=tuple(map(tuple, members)),
            places=tuple(places),
            classes=tuple((tuple(sorted(initial[index])), *key) for key, index in class_index.items()),
            states=bytes(SegmentState.WAITING if before else SegmentState.READY for before in predecessors),
            ready_count=sum(not before for before in predecessors),
            backfill=backfill,
            queues=tuple(queues),
            starts={},
        )
