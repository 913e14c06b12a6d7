"""Small tasks and schedules: built by hand, or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from parallax.schedule import Assignment, DispatchTable, Schedule, Task

MAX_CORES = 5


def task(index: int, *predecessors: int, cost: int = 100, wide: int | None = None, peak: int = 0) -> Task:
    """A task that takes ``cost`` at width 1 and, if given, ``wide`` at width 2."""
    costs = ((1, cost),) if wide is None else ((1, cost), (2, wide))
    return Task(index=index, predecessors=predecessors, cost_ns=costs, peak_bytes=peak)


def schedule_of(
    tasks: Sequence[Task],
    *,
    cores: int = 2,
    lanes: int = 2,
    widths: Sequence[int] | None = None,
    priorities: Sequence[int] | None = None,
    fixed: Sequence[int | None] | None = None,
    backfill: bool = True,
) -> Schedule:
    """A schedule written by hand; by default width 1, equal priorities, free lanes."""
    return Schedule(
        policy="by hand",
        cores=cores,
        lanes=lanes,
        assignments=tuple(
            Assignment(
                segment=index,
                width=1 if widths is None else widths[index],
                priority=0 if priorities is None else priorities[index],
                lane=None if fixed is None else fixed[index],
            )
            for index in range(len(tasks))
        ),
        backfill=backfill,
    )


def table_of(tasks: Sequence[Task], **settings: object) -> DispatchTable:
    return DispatchTable.from_schedule(tasks, schedule_of(tasks, **settings))  # type: ignore[arg-type]


@st.composite
def task_lists(draw: st.DrawFn, *, max_size: int = 12, min_size: int = 0) -> tuple[Task, ...]:
    """Random DAGs with random costs (zero and equal ones too) and peaks."""
    count = draw(st.integers(min_size, max_size))
    # Chains and crowds alike: with three predecessors each, hardly ever do two run at once.
    most = draw(st.integers(0, 3))
    tasks = []
    for index in range(count):
        predecessors = draw(st.sets(st.integers(0, index - 1), max_size=most)) if index else set()
        widths = draw(st.sets(st.integers(2, MAX_CORES), max_size=3))
        tasks.append(
            Task(
                index=index,
                predecessors=tuple(sorted(predecessors)),
                cost_ns=tuple((width, draw(st.integers(0, 1000))) for width in (1, *sorted(widths))),
                peak_bytes=draw(st.integers(0, 20)),
            )
        )
    return tuple(tasks)


@st.composite
def schedules(draw: st.DrawFn, tasks: Sequence[Task], *, sane: bool = False) -> Schedule:
    """Random schedules; unless ``sane``, widths may exceed the cores and lanes may not be there."""
    cores = draw(st.integers(1, MAX_CORES))
    lanes = draw(st.integers(1, 4))
    widest = draw(st.sampled_from([1, MAX_CORES + 2]))
    assignments = []
    for item in tasks:
        if sane:
            width = draw(st.sampled_from([width for width, _ in item.cost_ns if width <= cores]))
        else:
            width = draw(st.integers(1, widest))
        lane = draw(st.none() | st.integers(0, lanes - 1 if sane else lanes + 1))
        assignments.append(Assignment(segment=item.index, width=width, priority=draw(st.integers(-2, 2)), lane=lane))
    return Schedule(
        policy="random", cores=cores, lanes=lanes, assignments=tuple(assignments), backfill=draw(st.booleans())
    )
