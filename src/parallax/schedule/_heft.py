"""HEFT: each task, in order of its longest path to the end, on the processor where it ends first.

Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for heterogeneous computing",
IEEE TPDS 13(3), 2002: upward ranks with mean costs and mean transfers, and insertion into the earliest gap. Over
whole regions, as onert and Band use it, it decides which regions go to the accelerator as well as when.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from parallax.schedule._tasks import Assignment, Schedule, Task
from parallax.schedule._widths import best_width, duration_ns, verify_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class HeftPolicy:
    """Processors are lanes of ``cpu_width`` cores and one device's queue, if some task can run there (width 0).

    By default the processor is one lane with all cores, which is how runtimes that schedule whole subgraphs see
    it. The queue is the last lane, and counts among the lanes given. O(tasks^2 processors) at worst, from
    looking for gaps.

    Args:
        cpu_width: cores per lane of the processor, or None for a single lane, on which each task is as wide
            as is quickest for it.
        transfer_ns: (producer, consumer) -> time to move what the one hands the other between host and
            device. An edge that is not there moves for free.
    """

    cpu_width: int | None = None
    transfer_ns: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def assign(self, tasks: Sequence[Task], *, cores: int, lanes: int) -> Schedule:
        """The schedule. Every assignment has a fixed lane, and priorities follow the planned starts."""
        verify_tasks(tasks, cores=cores, lanes=lanes)
        has_queue = any(task.cost_ns[0][0] == 0 for task in tasks)
        width = cores if self.cpu_width is None else max(1, min(self.cpu_width, cores))
        # With a single lane the queue and the processor share it.
        cpu_lanes = max(1, min(cores // width, lanes - 1 if has_queue else lanes))
        queue = cpu_lanes if has_queue and lanes > 1 else 0
        options = [_options(task, width) for task in tasks]
        ranks = self._ranks(tasks, options)
        order = sorted(range(len(tasks)), key=lambda index: (-ranks[index], index))
        busy: list[list[tuple[int, int]]] = [[] for _ in range(cpu_lanes + (queue > 0))]
        lane_of = [0] * len(tasks)
        width_of = [0] * len(tasks)
        start = [0] * len(tasks)
        end = [0] * len(tasks)
        for index in order:
            found: list[tuple[int, int, int, int]] = []
            for chosen, duration in options[index]:
                ready = 0
                for before in tasks[index].predecessors:
                    crosses = (width_of[before] == 0) != (chosen == 0)
                    moved = self.transfer_ns.get((before, index), 0) if crosses else 0
                    ready = max(ready, end[before] + moved)
                for lane in range(cpu_lanes) if chosen else (queue,):
                    begin = _earliest(busy[lane], ready, duration)
                    found.append((begin + duration, begin, lane, chosen))
            # The earliest end; of equals the first looked at, the processor before the queue.
            end[index], start[index], lane_of[index], width_of[index] = min(found, key=lambda option: option[0])
            if end[index] > start[index]:
                bisect.insort(busy[lane_of[index]], (start[index], end[index]))
        # Whatever starts earlier goes first; of equal starts whatever ranks higher.
        rank_in_order = {index: rank for rank, index in enumerate(order)}
        by_start = sorted(range(len(tasks)), key=lambda index: (start[index], rank_in_order[index]))
        priority = {index: len(tasks) - place for place, index in enumerate(by_start)}
        return Schedule(
            policy="heft",
            cores=cores,
            lanes=len(busy),
            assignments=tuple(
                Assignment(segment=index, width=width_of[index], priority=priority[index], lane=lane_of[index])
                for index in range(len(tasks))
            ),
        )

    def charged_ns(self, tasks: Sequence[Task], schedule: Schedule) -> tuple[int, ...]:
        """Duration of each task as scheduled, with the transfers that it waits for: what to simulate.

        HEFT itself lets transfers pass beside the work of either side; here each costs its reader's time, because
        the delegates that are compared copy in the call.
        """
        sides = [assignment.width == 0 for assignment in schedule.assignments]
        return tuple(
            duration_ns(task, assignment.width)
            + sum(
                self.transfer_ns.get((before, task.index), 0)
                for before in task.predecessors
                if sides[before] != sides[task.index]
            )
            for task, assignment in zip(tasks, schedule.assignments, strict=True)
        )

    def _ranks(self, tasks: Sequence[Task], options: Sequence[Sequence[tuple[int, int]]]) -> list[float]:
        """Upward ranks: mean cost, and the longest way on, a transfer counting half where either side is possible."""
        both = [len({width == 0 for width, _ in row}) for row in options]
        ranks = [0.0] * len(tasks)
        for task in reversed(tasks):
            index = task.index
            ranks[index] += sum(duration for _, duration in options[index]) / len(options[index])
            for before in task.predecessors:
                moved = self.transfer_ns.get((before, index), 0)
                if both[before] == both[index] == 1:
                    share = float((options[before][0][0] == 0) != (options[index][0][0] == 0))
                else:
                    share = 0.5
                ranks[before] = max(ranks[before], ranks[index] + moved * share)
        return ranks


def _options(task: Task, width: int) -> list[tuple[int, int]]:
    """(width, duration) on the processor, if it can run there, and on the queue."""
    found = []
    if task.cost_ns[-1][0] > 0:
        on_cpu = Task(index=0, predecessors=(), cost_ns=tuple(pair for pair in task.cost_ns if pair[0] > 0))
        chosen = best_width(on_cpu, width)
        found.append((chosen, duration_ns(on_cpu, chosen)))
    if task.cost_ns[0][0] == 0:
        found.append(task.cost_ns[0])
    return found


def _earliest(busy: Sequence[tuple[int, int]], ready: int, duration: int) -> int:
    """The first moment from ``ready`` on at which a lane is free for so long; ``busy`` ascends."""
    moment = ready
    position = bisect.bisect_left(busy, (ready, ready))
    if position and busy[position - 1][1] > moment:
        moment = busy[position - 1][1]
    for begin, end in busy[position:]:
        if moment + duration <= begin:
            break
        moment = max(moment, end)
    return moment
