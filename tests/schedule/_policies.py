"""The contract of policies that schedule tasks (`AdaptivePolicy`, `HeftPolicy`), its judge, and a plain policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parallax.errors import PlanError
from parallax.schedule import Assignment, Schedule, Task
from parallax.schedule._widths import best_width, verify_tasks


class Policy(Protocol):
    """Chooses how tasks run: their widths, their order, and where it matters their lanes.

    Contract of ``assign``:

    * ``tasks`` are in a topological order: ``task.index`` is its position, predecessors are distinct lower
      indices, ``cost_ns`` starts at width 1, or at 0 where a device's queue can run the task. There may be none.
    * It returns one assignment per task, in task order. Widths are among those of the task's costs and at
      most ``cores``; a fixed lane is below the schedule's ``lanes``, and there is one where the width is 0; the
      schedule's ``cores`` is ``cores``, its ``lanes`` at most ``lanes``.
    * It is pure and deterministic: equal arguments, equal schedules, in any process.
    * It does not change its arguments and does not keep them.

    Raises: ConfigError if ``cores`` or ``lanes`` is below 1; PlanError if the tasks are not as above.
    """

    def assign(self, tasks: Sequence[Task], *, cores: int, lanes: int) -> Schedule:
        """Schedule ``tasks`` on up to ``cores`` threads and up to ``lanes`` lanes."""
        ...


class SequentialPolicy:
    """One segment after the other on one lane, in their order, each at the width that is quickest for it."""

    def assign(self, tasks: Sequence[Task], *, cores: int, lanes: int) -> Schedule:
        """See `Policy`. O(tasks)."""
        verify_tasks(tasks, cores=cores, lanes=lanes)
        return Schedule(
            policy="sequential",
            cores=cores,
            lanes=1,
            # Equal priorities: the lowest index that is ready goes first, and indices are topological.
            assignments=tuple(
                Assignment(segment=task.index, width=width, priority=0, lane=None if width else 0)
                for task in tasks
                for width in (best_width(task, cores),)
            ),
            backfill=False,
        )


def verify_schedule(tasks: Sequence[Task], schedule: Schedule, *, cores: int, lanes: int) -> None:
    """Judge a policy's answer against the contract of `Policy`. Raises: PlanError naming the task."""

    def refuse(what: str, index: int | None = None) -> PlanError:
        return PlanError(
            f"policy {schedule.policy!r}: {what}",
            where=None if index is None else f"task {index}",
            fix="the policy breaks its contract (see `Policy`); use another one",
        )

    if schedule.cores != cores:
        raise refuse(f"schedule for {schedule.cores} cores where {cores} were given")
    if not 1 <= schedule.lanes <= lanes:
        raise refuse(f"schedule for {schedule.lanes} lanes where up to {lanes} were given")
    if len(schedule.assignments) != len(tasks):
        raise refuse(f"{len(schedule.assignments)} assignments for {len(tasks)} tasks")
    for task, assignment in zip(tasks, schedule.assignments, strict=True):
        if assignment.segment != task.index:
            raise refuse(f"assignment of segment {assignment.segment} in its place", task.index)
        least = 1 if assignment.lane is None else 0
        if not least <= assignment.width <= cores or assignment.width not in dict(task.cost_ns):
            raise refuse(f"width {assignment.width} is not a width of the task within {cores} cores", task.index)
        if assignment.lane is not None and not 0 <= assignment.lane < schedule.lanes:
            raise refuse(f"lane {assignment.lane} is not among {schedule.lanes}", task.index)
