"""HEFT: upward ranks, earliest finish, insertion; the published example; transfers count where sides differ."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.graph import critical_path
from parallax.schedule import Schedule, Task, simulate
from parallax.schedule._heft import HeftPolicy, _earliest
from parallax.schedule._widths import duration_ns
from tests.schedule._dags import task, task_lists


def either(index: int, *predecessors: int, cpu: int, queue: int) -> Task:
    return Task(index=index, predecessors=predecessors, cost_ns=((0, queue), (1, cpu)))


def lanes_of(schedule: Schedule) -> list[int | None]:
    return [assignment.lane for assignment in schedule.assignments]


def widths_of(schedule: Schedule) -> list[int]:
    return [assignment.width for assignment in schedule.assignments]


def test_region_goes_where_it_ends_first() -> None:
    schedule = HeftPolicy().assign([either(0, cpu=100, queue=30), either(1, cpu=20, queue=90)], cores=1, lanes=2)
    assert widths_of(schedule) == [0, 1]
    assert lanes_of(schedule) == [1, 0]


def test_transfer_that_costs_more_than_the_device_saves_keeps_a_region_on_the_processor() -> None:
    tasks = [task(0, cost=10), either(1, 0, cpu=100, queue=60), task(2, 1, cost=10)]
    cheap = HeftPolicy(transfer_ns={(0, 1): 10, (1, 2): 10})
    assert widths_of(cheap.assign(tasks, cores=1, lanes=2)) == [1, 0, 1]
    dear = HeftPolicy(transfer_ns={(0, 1): 50, (1, 2): 50})
    assert widths_of(dear.assign(tasks, cores=1, lanes=2)) == [1, 1, 1]


def test_transfers_are_charged_to_the_reader_where_sides_differ() -> None:
    tasks = [task(0, cost=10), either(1, 0, cpu=100, queue=60), task(2, 0, 1, cost=10)]
    policy = HeftPolicy(transfer_ns={(0, 1): 5, (1, 2): 7, (0, 2): 1000})
    schedule = policy.assign(tasks, cores=1, lanes=2)
    assert widths_of(schedule) == [1, 0, 1]
    assert policy.charged_ns(tasks, schedule) == (10, 65, 17)


def test_busy_device_sends_work_to_the_processor_beside_it() -> None:
    tasks = [either(index, cpu=70, queue=50) for index in range(2)]
    schedule = HeftPolicy().assign(tasks, cores=1, lanes=2)
    assert sorted(widths_of(schedule)) == [0, 1]
    assert simulate(tasks, schedule).makespan_ns == 70


def test_processor_is_one_lane_with_all_cores_unless_lanes_are_asked_for() -> None:
    tasks = [task(index, cost=100, wide=60) for index in range(2)]
    one = HeftPolicy().assign(tasks, cores=2, lanes=4)
    assert (one.lanes, widths_of(one)) == (1, [2, 2])
    several = HeftPolicy(cpu_width=1).assign(tasks, cores=2, lanes=4)
    assert (several.lanes, widths_of(several), sorted(map(str, lanes_of(several)))) == (2, [1, 1], ["0", "1"])


def test_gap_between_two_tasks_is_filled() -> None:
    # The long chain goes first; the short task fits while the processor waits for the device.
    tasks = [
        task(0, cost=10),
        Task(index=1, predecessors=(0,), cost_ns=((0, 100),)),
        task(2, 1, cost=10),
        task(3, cost=20),
    ]
    schedule = HeftPolicy().assign(tasks, cores=1, lanes=2)
    run = simulate(tasks, schedule)
    assert run.makespan_ns == 120
    assert {span.segment: span.start_ns for span in run.timeline}[3] == 10


@settings(max_examples=100)
@given(
    spans=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=6),
    ready=st.integers(0, 40),
    duration=st.integers(0, 10),
)
def test_earliest_gap_is_the_one_a_search_moment_by_moment_finds(
    spans: list[tuple[int, int]], ready: int, duration: int
) -> None:
    busy: list[tuple[int, int]] = []
    for begin, length in sorted(spans):
        begin = max(begin, busy[-1][1] if busy else 0)
        busy.append((begin, begin + length))
    taken = {moment for begin, end in busy for moment in range(begin, end)}
    expected = next(
        moment
        for moment in range(ready, 1000)
        # A task without duration may not sit inside another.
        if not taken.intersection(range(moment, moment + duration)) and not any(b < moment < e for b, e in busy)
    )
    assert _earliest(busy, ready, duration) == expected


@settings(max_examples=60)
@given(tasks=task_lists(), cores=st.integers(1, 4))
def test_simulated_run_is_never_quicker_than_its_critical_path(tasks: tuple[Task, ...], cores: int) -> None:
    schedule = HeftPolicy(cpu_width=1).assign(tasks, cores=cores, lanes=cores)
    run = simulate(tasks, schedule)
    durations = [duration_ns(item, width) for item, width in zip(tasks, widths_of(schedule), strict=True)]
    assert run.makespan_ns >= critical_path([item.predecessors for item in tasks], durations)


@pytest.mark.parametrize("lanes", [1, 2])
def test_single_lane_runs_device_and_processor_in_turn(lanes: int) -> None:
    tasks = [either(0, cpu=100, queue=30), task(1, cost=40)]
    schedule = HeftPolicy().assign(tasks, cores=1, lanes=lanes)
    assert schedule.lanes == lanes
    assert simulate(tasks, schedule).makespan_ns == (70 if lanes == 1 else 40)
