"""What a task costs at which width, and whether tasks are fit to be scheduled."""

from __future__ import annotations

from collections.abc import Sequence

from parallax.errors import ConfigError, PlanError
from parallax.schedule._tasks import Task


def best_width(task: Task, cores: int) -> int:
    """The width of at most ``cores`` at which the task is quickest; of equals the narrowest."""
    return min(((cost, width) for width, cost in task.cost_ns if width <= cores))[1]


def duration_ns(task: Task, width: int) -> int:
    """What a task costs at ``width``: the figure for the widest width known that is not wider.

    A width between two that were measured is taken to help no more than the lower one.
    """
    known = task.cost_ns[0][1]
    for at, cost in task.cost_ns:
        if at > width:
            break
        known = cost
    return known


def verify_tasks(tasks: Sequence[Task], *, cores: int, lanes: int) -> None:
    """Judge the arguments of a policy that schedules tasks. Raises: ConfigError, PlanError naming the task."""
    if cores < 1 or lanes < 1:
        raise ConfigError(f"cannot schedule on {cores} cores and {lanes} lanes", fix="give at least 1 of each")
    for position, task in enumerate(tasks):
        where = f"task {position}"
        if task.index != position:
            raise PlanError(f"index {task.index} is not its position", where=where, fix="number tasks in their order")
        before = task.predecessors
        if len(set(before)) != len(before) or any(not 0 <= other < position for other in before):
            raise PlanError(
                f"predecessors {before} are not distinct lower indices",
                where=where,
                fix="list tasks in a topological order",
            )
        widths = [width for width, _ in task.cost_ns]
        on_cores = widths[1:] if widths[:1] == [0] else widths
        if (
            not widths
            or on_cores[:1] not in ([], [1])
            or sorted(set(widths)) != widths
            or min(cost for _, cost in task.cost_ns) < 0
        ):
            raise PlanError(
                f"costs {task.cost_ns} do not start at width 1 (or 0: a device's queue), ascend, and stay at 0 or more",
                where=where,
                fix="give (width, duration in ns) pairs, width 1 first",
            )
        if task.peak_bytes < 0:
            raise PlanError(f"peak of {task.peak_bytes} bytes", where=where, fix="give 0 or more bytes")
