"""The discrete-event simulator: the engine's dispatcher under a virtual clock.

It predicts what a schedule would take, from costs alone. Every decision is the dispatcher's own; this
module only answers "how long", so a policy judged here is judged by the code that will run it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from parallax.errors import ConfigError, InternalError
from parallax.graph import critical_path
from parallax.schedule._dispatcher import Dispatcher
from parallax.schedule._table import DispatchTable, Start
from parallax.schedule._tasks import Schedule, Task
from parallax.schedule._widths import duration_ns


class Span(NamedTuple):
    """One segment on the virtual clock: it computes in [start_ns, end_ns) on ``lane``."""

    segment: int
    lane: int
    width: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """What a schedule is predicted to do; all times in ns since the run began."""

    makespan_ns: int
    """When lane 0, which is the caller, knows that the run is over."""
    timeline: tuple[Span, ...]
    """One span per segment, in the order in which they were started."""
    critical_path_ns: int
    """Longest chain of durations at the widths assigned; no schedule with these widths is shorter."""
    busy_ns: tuple[int, ...]
    """Per lane: time spent computing (without overheads and hand-overs)."""
    peak_bytes: int
    """Largest sum of the peaks of segments in flight."""


def simulate(
    tasks: Sequence[Task],
    schedule: Schedule,
    *,
    handover_ns: int = 0,
    segment_overhead_ns: int = 0,
    contention: float = 1.0,
    budget_bytes: int | None = None,
    cost_ns: Sequence[int] | None = None,
) -> SimulatedRun:
    """Run a schedule on a virtual clock.

    The model of the engine: a segment begins ``segment_overhead_ns`` after its Start was issued, and
    ``handover_ns`` later still where another lane issued it (the lane that reports a segment asks for what
    comes next; a Start for itself costs nothing more). Lane 0 is the caller: it issues the first Starts,
    and is told of the end. The model of the machine: while k lanes compute, each is slowed by
    ``1 + (contention - 1) * (k - 1)``, whenever k changes; 1.0 means that lanes do not disturb each other.

    At equal times, ends come before beginnings, and what was issued first comes first. Deterministic and,
    for ``contention`` 1, exact in integers. O(segments log segments + edges), see `Dispatcher` for budgets.

    Args:
        tasks: the segments, in a topological order.
        schedule: a policy's answer for these tasks.
        handover_ns: time to wake another lane with a segment.
        segment_overhead_ns: fixed cost of starting a segment on any lane.
        contention: slow-down of a lane per other lane that computes, at least 1.
        budget_bytes: the dispatcher's budget, or None for none.
        cost_ns: duration of each segment as scheduled, in place of `duration_ns` of its task and width.

    Raises:
        ConfigError: a negative time, ``contention`` below 1, or ``cost_ns`` of another length.
        PlanError: tasks and schedule do not fit each other.
    """
    table = DispatchTable.from_schedule(tasks, schedule)
    durations = durations_ns(tasks, schedule) if cost_ns is None else tuple(cost_ns)
    shortest = min(durations, default=0)
    if handover_ns < 0 or segment_overhead_ns < 0 or shortest < 0 or not 1 <= contention < math.inf:
        raise ConfigError(
            f"cannot simulate handover_ns={handover_ns}, segment_overhead_ns={segment_overhead_ns}, "
            f"contention={contention}, shortest segment {shortest} ns",
            fix="times are 0 or more, contention is 1 or more and finite",
        )
    if len(durations) != len(tasks):
        raise ConfigError(f"{len(durations)} durations for {len(tasks)} tasks", fix="give one cost_ns per task")
    dispatcher = Dispatcher(table, cores=schedule.cores, lanes=schedule.lanes, budget_bytes=budget_bytes)
    clock = _Clock(table, durations, handover_ns, segment_overhead_ns, contention)
    clock.issue(dispatcher.start(), 0)
    last_lane = 0
    while (ended := clock.advance()) is not None:
        last_lane = ended.lane
        clock.issue(dispatcher.segment_done(ended.segment), last_lane)
    if not dispatcher.finished:
        raise InternalError("the simulated run stopped before its end")
    timeline = tuple(
        Span(start.segment, start.lane, start.width, clock.begun[start.segment], clock.ended[start.segment])
        for start in clock.issued
    )
    busy = [0] * schedule.lanes
    for span in timeline:
        busy[span.lane] += span.end_ns - span.start_ns
    return SimulatedRun(
        makespan_ns=round(clock.now) + (handover_ns if last_lane else 0),
        timeline=timeline,
        critical_path_ns=critical_path([task.predecessors for task in tasks], durations),
        busy_ns=tuple(busy),
        peak_bytes=clock.peak_bytes,
    )


class _Clock:
    """Virtual time, and what is due on it.

    All that computes does so at the same rate, so one counter of work done per lane since the start
    (``work``) orders the ends: a segment ends when ``work`` reaches its value at the beginning plus its duration.
    """

    __slots__ = (
        "begun",
        "bytes",
        "computing",
        "contention",
        "delay",
        "durations",
        "ended",
        "handover",
        "issued",
        "now",
        "peak_bytes",
        "peaks",
        "starting",
        "work",
    )

    def __init__(
        self, table: DispatchTable, durations: Sequence[int], handover: int, delay: int, contention: float
    ) -> None:
        self.durations = durations
        self.peaks = table.peaks
        self.handover = handover
        self.delay = delay
        self.contention = contention
        # Integers as long as nothing contends, so that sums are exact.
        self.now: int | float = 0
        self.work: int | float = 0
        self.starting: list[tuple[int | float, int, Start]] = []  # (time it begins, number issued, start)
        self.computing: list[tuple[int | float, int, Start]] = []  # (work at its end, number issued, start)
        self.issued: list[Start] = []
        self.begun = [0] * len(durations)
        self.ended = [0] * len(durations)
        self.bytes = 0
        self.peak_bytes = 0

    def issue(self, starts: Sequence[Start], lane: int) -> None:
        """Take over Starts that the event reported by ``lane`` brought."""
        for start in starts:
            number = len(self.issued)
            self.issued.append(start)
            self.bytes += self.peaks[start.segment]
            heappush(
                self.starting,
                (self.now + self.delay + (self.handover if start.lane != lane else 0), number, start),
            )
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def advance(self) -> Start | None:
        """Move to the next end of a segment; None where nothing is in flight."""
        starting, computing = self.starting, self.computing
        while starting or computing:
            slow = 1 if self.contention == 1 else 1 + (self.contention - 1) * (len(computing) - 1)
            if computing:
                end = self.now + (computing[0][0] - self.work) * slow
                if not starting or end <= starting[0][0]:
                    self.now = end
                    self.work, _, start = heappop(computing)
                    self.ended[start.segment] = round(end)
                    self.bytes -= self.peaks[start.segment]
                    return start
                elapsed = starting[0][0] - self.now
                self.work += elapsed if slow == 1 else elapsed / slow
            self.now, number, start = heappop(starting)
            self.begun[start.segment] = round(self.now)
            heappush(computing, (self.work + self.durations[start.segment], number, start))
        return None


def durations_ns(tasks: Sequence[Task], schedule: Schedule) -> tuple[int, ...]:
    """Duration of each task at the width it was assigned."""
    return tuple(
        duration_ns(task, assignment.width) for task, assignment in zip(tasks, schedule.assignments, strict=True)
    )
