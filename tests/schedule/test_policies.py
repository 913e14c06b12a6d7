"""What each policy is for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.schedule import AdaptivePolicy, Task, simulate
from parallax.schedule._adaptive import idle_cores
from tests.schedule._dags import schedule_of, task, task_lists
from tests.schedule._policies import SequentialPolicy


def makespan(tasks: list[Task] | tuple[Task, ...], policy: AdaptivePolicy, *, cores: int = 2) -> int:
    schedule = policy.assign(tasks, cores=cores, lanes=cores)
    return simulate(
        tasks, schedule, handover_ns=policy.handover_ns, segment_overhead_ns=policy.segment_overhead_ns
    ).makespan_ns


def chains(count: int, length: int, *, cost: int, wide: int) -> list[Task]:
    tasks: list[Task] = []
    for _ in range(count):
        for step in range(length):
            index = len(tasks)
            tasks.append(task(index, *((index - 1,) if step else ()), cost=cost, wide=wide))
    return tasks


def test_sequential_takes_the_quickest_width_and_of_equals_the_narrowest() -> None:
    tasks = [task(0, cost=100, wide=60), task(1, cost=100, wide=100), task(2, cost=100, wide=130)]
    schedule = SequentialPolicy().assign(tasks, cores=2, lanes=4)
    assert [assignment.width for assignment in schedule.assignments] == [2, 1, 1]
    assert schedule.lanes == 1
    assert [a.width for a in SequentialPolicy().assign(tasks, cores=1, lanes=1).assignments] == [1, 1, 1]


def test_chains_that_do_not_scale_run_side_by_side_and_narrow() -> None:
    tasks = chains(4, 10, cost=1000, wide=1000)
    policy = AdaptivePolicy(handover_ns=15, segment_overhead_ns=10)
    schedule = policy.assign(tasks, cores=2, lanes=2)
    assert {assignment.width for assignment in schedule.assignments} == {1}
    assert makespan(tasks, policy) < 0.6 * 4 * 10 * 1010


def test_single_chain_that_scales_runs_wide() -> None:
    tasks = chains(1, 5, cost=1000, wide=500)
    schedule = AdaptivePolicy().assign(tasks, cores=2, lanes=2)
    assert [assignment.width for assignment in schedule.assignments] == [2] * 5


def test_task_that_would_run_alone_takes_all_cores_and_those_in_a_crowd_stay_narrow() -> None:
    tasks = [
        task(0, cost=1000, wide=510),
        *(task(index, 0, cost=1000, wide=700) for index in (1, 2, 3, 4)),
        task(5, 1, 2, 3, 4, cost=1000, wide=510),
    ]
    schedule = AdaptivePolicy().assign(tasks, cores=2, lanes=2)
    assert [assignment.width for assignment in schedule.assignments] == [2, 1, 1, 1, 1, 2]


def test_longest_remaining_path_goes_first() -> None:
    tasks = [task(0, cost=10), task(1, cost=10), task(2, 1, cost=500), task(3, cost=10)]
    priorities = [assignment.priority for assignment in AdaptivePolicy().assign(tasks, cores=1, lanes=1).assignments]
    assert priorities == [10, 510, 500, 10]


def test_hand_over_that_costs_more_than_it_gains_is_not_made() -> None:
    tasks = [task(0, cost=100), task(1, cost=100)]
    assert len({span.lane for span in simulate(tasks, AdaptivePolicy().assign(tasks, cores=2, lanes=2)).timeline}) == 2
    costly = AdaptivePolicy(handover_ns=1000)
    assert costly.assign(tasks, cores=2, lanes=2).lanes == 1


def test_decided_widths_are_kept_where_they_are_possible() -> None:
    tasks = [task(0, cost=100, wide=50), task(1, cost=100, wide=50), task(2, cost=100)]
    policy = AdaptivePolicy(widths={0: 1, 1: 2, 2: 2})
    widths = [assignment.width for assignment in policy.assign(tasks, cores=2, lanes=2).assignments]
    assert widths == [1, 2, 1]  # the last has no cost at width 2


@settings(max_examples=60)
@given(tasks=task_lists(), cores=st.integers(1, 5), handover=st.integers(0, 300), overhead=st.integers(0, 100))
def test_adaptive_is_never_predicted_slower_than_sequential(
    tasks: tuple[Task, ...], cores: int, handover: int, overhead: int
) -> None:
    costs = {"handover_ns": handover, "segment_overhead_ns": overhead}
    sequential = simulate(tasks, SequentialPolicy().assign(tasks, cores=cores, lanes=cores), **costs).makespan_ns
    assert makespan(tasks, AdaptivePolicy(**costs), cores=cores) <= sequential


@settings(max_examples=40)
@given(tasks=task_lists(max_size=7), data=st.data())
def test_idle_cores_are_those_a_count_per_nanosecond_finds(tasks: tuple[Task, ...], data: st.DataObject) -> None:
    costs = [data.draw(st.integers(0, 8)) for _ in tasks]
    run = simulate(tasks, schedule_of(tasks, cores=3, lanes=3), cost_ns=costs)
    expected = []
    for span in run.timeline:
        moments = range(span.start_ns, span.end_ns)
        idle = [3 - sum(o.width for o in run.timeline if o.start_ns <= t < o.end_ns) for t in moments]
        expected.append(sum(idle) / len(idle) if idle else 0.0)
    assert idle_cores(run, 3) == pytest.approx(expected)
