"""Segments of width 0 run on a device's queue: a lane that takes no core, and that others stay off."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import PlanError
from parallax.schedule import AdaptivePolicy, Assignment, Dispatcher, DispatchTable, Schedule, Start, Task, simulate
from parallax.schedule._heft import HeftPolicy
from tests.schedule._dags import schedule_of, task, task_lists
from tests.schedule._policies import Policy, SequentialPolicy, verify_schedule

QUEUE = 2


def device_task(index: int, *predecessors: int, queue: int = 100) -> Task:
    return Task(index=index, predecessors=predecessors, cost_ns=((0, queue),))


def table(tasks: list[Task], *, widths: list[int], fixed: list[int | None]) -> DispatchTable:
    return DispatchTable.from_schedule(tasks, schedule_of(tasks, cores=2, lanes=3, widths=widths, fixed=fixed))


def test_queue_takes_no_core() -> None:
    tasks = [device_task(0), task(1), task(2)]
    dispatcher = Dispatcher(table(tasks, widths=[0, 1, 1], fixed=[QUEUE, None, None]), cores=2, lanes=3, strict=True)
    assert dispatcher.start() == (Start(0, QUEUE, 0), Start(1, 0, 1), Start(2, 1, 1))


def test_segments_that_may_choose_stay_off_the_queue() -> None:
    tasks = [task(0), task(1), task(2), device_task(3, 0)]
    dispatcher = Dispatcher(
        table(tasks, widths=[1, 1, 1, 0], fixed=[None, None, None, QUEUE]), cores=3, lanes=3, strict=True
    )
    # Three cores, three lanes, three segments: yet one waits, as the third lane is the device's.
    assert dispatcher.start() == (Start(0, 0, 1), Start(1, 1, 1))
    assert dispatcher.segment_done(0) == (Start(2, 0, 1), Start(3, QUEUE, 0))


def test_device_runs_one_thing_at_a_time() -> None:
    tasks = [device_task(0, queue=30), device_task(1, queue=50), task(2, cost=40)]
    run = simulate(tasks, schedule_of(tasks, cores=1, lanes=2, widths=[0, 0, 1], fixed=[1, 1, None]))
    assert run.makespan_ns == 80
    assert run.busy_ns == (40, 80)


def test_run_that_got_fewer_lanes_than_its_plan_ends_all_the_same() -> None:
    tasks = [task(0), device_task(1, 0), task(2, 1)]
    dispatcher = Dispatcher(table(tasks, widths=[1, 0, 1], fixed=[None, QUEUE, None]), cores=1, lanes=1, strict=True)
    assert dispatcher.start() == (Start(0, 0, 1),)
    assert dispatcher.segment_done(0) == (Start(1, 0, 0),)
    assert dispatcher.segment_done(1) == (Start(2, 0, 1),)
    dispatcher.segment_done(2)
    assert dispatcher.finished


def test_width_0_without_a_lane_is_refused() -> None:
    with pytest.raises(PlanError, match="width 0"):
        table([device_task(0)], widths=[0], fixed=[None])
    schedule = Schedule(policy="x", cores=1, lanes=1, assignments=(Assignment(segment=0, width=0, priority=0),))
    with pytest.raises(PlanError, match="width 0"):
        verify_schedule([device_task(0)], schedule, cores=1, lanes=1)


@pytest.mark.parametrize("costs", [((0, 5), (2, 5)), ((0, 5), (0, 6)), ((0, -5),)])
def test_costs_with_a_queue_ascend_and_go_on_at_width_1(costs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(PlanError, match="start at width 1"):
        SequentialPolicy().assign([Task(index=0, predecessors=(), cost_ns=costs)], cores=2, lanes=2)


@st.composite
def mixed_tasks(draw: st.DrawFn) -> tuple[Task, ...]:
    """Tasks for the processor, for the device, and for either."""
    found = []
    for item in draw(task_lists()):
        kind = draw(st.sampled_from(["cpu", "device", "either"]))
        queue = ((0, draw(st.integers(0, 1000))),)
        costs = {"cpu": item.cost_ns, "device": queue, "either": queue + item.cost_ns}[kind]
        found.append(Task(index=item.index, predecessors=item.predecessors, cost_ns=costs, peak_bytes=item.peak_bytes))
    return tuple(found)


@pytest.mark.parametrize(
    "policy",
    [SequentialPolicy(), AdaptivePolicy(), HeftPolicy(), HeftPolicy(cpu_width=1)],
    ids=["sequential", "adaptive", "heft", "heft, narrow lanes"],
)
@settings(max_examples=40)
@given(tasks=mixed_tasks(), cores=st.integers(1, 5), lanes=st.integers(1, 4))
def test_every_policy_schedules_devices_too(policy: Policy, tasks: tuple[Task, ...], cores: int, lanes: int) -> None:
    schedule = policy.assign(tasks, cores=cores, lanes=lanes)
    verify_schedule(tasks, schedule, cores=cores, lanes=lanes)
    run = simulate(tasks, schedule)
    assert sorted(span.segment for span in run.timeline) == list(range(len(tasks)))
    if schedule.lanes > 1:
        queues = {assignment.lane for assignment in schedule.assignments if assignment.width == 0}
        assert all(span.width == 0 for span in run.timeline if span.lane in queues)
