"""The adaptive policy: longest path first, each task as wide as the moment it runs in leaves cores idle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from parallax.graph import bottom_levels
from parallax.schedule._simulate import SimulatedRun, simulate
from parallax.schedule._tasks import Assignment, Schedule, Task
from parallax.schedule._widths import best_width, duration_ns, verify_tasks

# Shares of the cores that a task may take beyond those found idle around it; 0 takes only idle ones, 1 is full width.
_GREED: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePolicy:
    """List scheduling (longest remaining path first) with widths chosen by simulation.

    Widths trade two kinds of parallelism: threads inside a task against tasks side by side. Which is better
    where shows in the simulated run: a task beside which cores idle should take them, one in a crowd should
    stay narrow. So:

    1. All tasks narrow (the quickest way where there is enough to do at once), and all at full width (the
       quickest where there is not), are simulated over the real dispatcher.
    2. From each run, the cores idle around each task are measured, and schedules that widen the tasks into
       them, more or less greedily, are simulated; twice, as widening changes what runs beside what.
    3. Small schedules are then improved task by task, longest first.
    4. The quickest by simulation wins; of equals the earliest tried, and one lane comes first: the sequential
       schedule is always among the candidates, so the answer is never predicted to be slower than that.

    Steps 2 and 3 end when ``simulated_segments`` are spent, so the whole is O(n log n + edges) for n tasks.

    Args:
        widths: widths already decided (task index -> width), kept where the task has a cost for them.
        queues: per task that a device's queue runs, which queue (task index -> number); default the first. Queues have
            the last lanes, the first of them the very last; with fewer lanes they share the first.
        handover_ns: see `simulate`.
        segment_overhead_ns: see `simulate`.
        contention: see `simulate`.
        simulated_segments: bound on the work of steps 2 and 3, in segments simulated (about 10 us each).
    """

    widths: Mapping[int, int] = field(default_factory=dict)
    queues: Mapping[int, int] = field(default_factory=dict)
    handover_ns: int = 0
    segment_overhead_ns: int = 0
    contention: float = 1.0
    simulated_segments: int = 20_000

    def assign(self, tasks: Sequence[Task], *, cores: int, lanes: int) -> Schedule:
        """The schedule on up to ``cores`` threads and ``lanes`` lanes. Raises: as `verify_tasks`."""
        verify_tasks(tasks, cores=cores, lanes=lanes)
        search = _Search(self, tasks, cores=cores, lanes=lanes)
        narrow = search.limited([1] * len(tasks))
        full = search.limited([cores] * len(tasks))
        search.consider(full, lanes=1)
        starting_points = [search.consider(narrow), search.consider(full)]
        for greed in _GREED:
            for run in starting_points:
                if search.spent >= self.simulated_segments:
                    return search.best
                first = search.consider(search.widened(run, greed))
                search.consider(search.widened(first, greed))
        search.refine()
        return search.best


class _Search:
    """The candidates tried so far, and the best of them."""

    def __init__(self, policy: AdaptivePolicy, tasks: Sequence[Task], *, cores: int, lanes: int) -> None:
        self.policy = policy
        self.tasks = tasks
        self.cores = cores
        self.lanes = lanes
        self.runs: dict[tuple[tuple[int, ...], int], SimulatedRun] = {}
        self.best_ns = -1
        self.spent = 0  # segments simulated so far
        self.best: Schedule

    def limited(self, limits: Sequence[int]) -> tuple[int, ...]:
        """The quickest width of each task within its limit; one that the caller decided stays."""
        widths = []
        for task, limit in zip(self.tasks, limits, strict=True):
            decided = self.policy.widths.get(task.index)
            if decided is not None and decided <= self.cores and any(width == decided for width, _ in task.cost_ns):
                widths.append(decided)
            else:
                widths.append(best_width(task, limit))
        return tuple(widths)

    def consider(self, widths: tuple[int, ...], *, lanes: int | None = None) -> SimulatedRun:
        """Simulate these widths (once), and keep the schedule if it is the quickest so far."""
        lanes = self.lanes if lanes is None else lanes
        known = self.runs.get((widths, lanes))
        if known is not None:
            return known
        policy = self.policy
        durations = [duration_ns(task, width) for task, width in zip(self.tasks, widths, strict=True)]
        levels = bottom_levels([task.predecessors for task in self.tasks], durations)
        schedule = Schedule(
            policy="adaptive",
            cores=self.cores,
            lanes=lanes,
            assignments=tuple(
                Assignment(
                    segment=index,
                    width=width,
                    priority=levels[index],
                    lane=None if width else max(0, lanes - 1 - policy.queues.get(index, 0)),
                )
                for index, width in enumerate(widths)
            ),
        )
        run = simulate(
            self.tasks,
            schedule,
            handover_ns=policy.handover_ns,
            segment_overhead_ns=policy.segment_overhead_ns,
            contention=policy.contention,
            cost_ns=durations,
        )
        self.runs[widths, lanes] = run
        self.spent += len(self.tasks)
        if self.best_ns < 0 or run.makespan_ns < self.best_ns:
            self.best_ns, self.best = run.makespan_ns, schedule
        return run

    def widened(self, run: SimulatedRun, greed: float) -> tuple[int, ...]:
        """Widths that take up the cores found idle around each task in ``run``."""
        limits = [1] * len(self.tasks)
        idle = idle_cores(run, self.cores)
        for span, free in zip(run.timeline, idle, strict=True):
            # The epsilon is for the rounding of averages: two idle cores must not come out as one.
            limits[span.segment] = min(self.cores, int(span.width + free + greed * (self.cores - 1) + 1e-6))
        return self.limited(limits)

    def refine(self) -> None:
        """Change one task's width at a time, longest tasks first, while that helps and the bound allows."""
        by_length = sorted(self.tasks, key=lambda task: (-task.cost_ns[0][1], task.index))
        improved = True
        while improved:
            improved = False
            for task in by_length:
                if task.index in self.policy.widths:
                    continue
                for width, _ in task.cost_ns:
                    widths = [assignment.width for assignment in self.best.assignments]
                    if width > self.cores or width == widths[task.index]:
                        continue
                    if self.spent >= self.policy.simulated_segments:
                        return
                    widths[task.index] = width
                    before = self.best_ns
                    self.consider(tuple(widths), lanes=self.best.lanes)
                    improved = improved or self.best_ns < before


def idle_cores(run: SimulatedRun, cores: int) -> list[float]:
    """Per span of the timeline: the mean number of cores that no span used while it ran; 0 for an empty span.

    One sweep over the ends of the spans: O(n log n).
    """
    moments = sorted({moment for span in run.timeline for moment in (span.start_ns, span.end_ns)})
    change = dict.fromkeys(moments, 0)
    for span in run.timeline:
        change[span.start_ns] += span.width
        change[span.end_ns] -= span.width
    # Integral of the idle cores from 0 to each moment; a span's mean is a difference of two of them.
    integral: dict[int, int] = {}
    total = used = last = 0
    for moment in moments:
        total += max(0, cores - used) * (moment - last)
        integral[moment] = total
        used += change[moment]
        last = moment
    return [
        (integral[span.end_ns] - integral[span.start_ns]) / (span.end_ns - span.start_ns)
        if span.end_ns > span.start_ns
        else 0.0
        for span in run.timeline
    ]
