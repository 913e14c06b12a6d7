"""What policies decide on, and what they answer: tasks in, a schedule out."""

from __future__ import annotations

from parallax._record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a policy needs to know of a segment: its dependencies and what it costs.

    ``cost_ns[w]`` is the duration at width ``w``. Width 0 is a device's queue, which takes no core; a task has
    width 1, or that, or both.
    """

    index: int
    predecessors: tuple[int, ...]
    cost_ns: tuple[tuple[int, int], ...]
    """(width, duration) pairs, ascending in width."""
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A policy's decision for one segment.

    A lane that some segment of width 0 is fixed to is a device's queue: segments that may choose stay off it.
    """

    segment: int
    width: int
    """Threads; 0 on the lane of a device's queue, which must then be fixed."""
    priority: int
    """Higher starts first among those that are ready; ties fall to the lower segment index."""
    lane: int | None = None
    """A fixed lane, or None to let the dispatcher choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A policy's answer: one assignment per task, in task order.

    ``backfill`` lets a lower-priority segment that fits start before a higher one that does not.
    """

    policy: str
    cores: int
    lanes: int
    assignments: tuple[Assignment, ...]
    backfill: bool = True
