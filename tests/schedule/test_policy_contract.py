"""One contract for every policy, as they come and with settings of their own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import ConfigError, PlanError
from parallax.schedule import AdaptivePolicy, Assignment, Schedule, Task, simulate
from parallax.schedule._heft import HeftPolicy
from tests.schedule._dags import schedule_of, task, task_lists
from tests.schedule._policies import Policy, SequentialPolicy, verify_schedule

POLICIES: dict[str, Policy] = {
    "adaptive": AdaptivePolicy(),
    "heft": HeftPolicy(),
    "sequential": SequentialPolicy(),
    "adaptive with overheads": AdaptivePolicy(handover_ns=40, segment_overhead_ns=20, contention=1.3),
    "adaptive with widths": AdaptivePolicy(widths={0: 2, 1: 5, 7: 3}),
    "heft, one core per lane": HeftPolicy(cpu_width=1),
    "adaptive, out of breath": AdaptivePolicy(simulated_segments=0),
}

every_policy = pytest.mark.parametrize("name", POLICIES)


@every_policy
@settings(max_examples=40)
@given(tasks=task_lists(), cores=st.integers(1, 6), lanes=st.integers(1, 4))
def test_schedule_is_legal_and_runs_every_task_once(name: str, tasks: tuple[Task, ...], cores: int, lanes: int) -> None:
    schedule = POLICIES[name].assign(tasks, cores=cores, lanes=lanes)
    verify_schedule(tasks, schedule, cores=cores, lanes=lanes)
    run = simulate(tasks, schedule)
    assert sorted(span.segment for span in run.timeline) == list(range(len(tasks)))
    # Legal widths never need the rule that lets one run beyond the limits.
    for span in run.timeline:
        at_start = [other for other in run.timeline if other.start_ns <= span.start_ns < other.end_ns]
        assert sum(other.width for other in at_start) <= cores


@every_policy
@settings(max_examples=20)
@given(tasks=task_lists(), cores=st.integers(1, 4))
def test_equal_arguments_give_equal_schedules(name: str, tasks: tuple[Task, ...], cores: int) -> None:
    chosen = POLICIES[name]
    assert chosen.assign(tasks, cores=cores, lanes=2) == chosen.assign(list(tasks), cores=cores, lanes=2)


@every_policy
def test_no_tasks_no_assignments(name: str) -> None:
    assert POLICIES[name].assign((), cores=2, lanes=2).assignments == ()


@every_policy
@pytest.mark.parametrize(("cores", "lanes"), [(0, 1), (1, 0)])
def test_impossible_capacity_is_refused(name: str, cores: int, lanes: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 of each"):
        POLICIES[name].assign([task(0)], cores=cores, lanes=lanes)


BAD_TASKS: dict[str, tuple[Sequence[Task], str]] = {
    "misnumbered": ([task(1)], "not its position"),
    "forward edge": ([task(0, 1), task(1)], "distinct lower indices"),
    "double edge": ([task(0), task(1, 0, 0)], "distinct lower indices"),
    "no cost": ([Task(index=0, predecessors=(), cost_ns=())], "start at width 1"),
    "no width 1": ([Task(index=0, predecessors=(), cost_ns=((2, 5),))], "start at width 1"),
    "unsorted widths": ([Task(index=0, predecessors=(), cost_ns=((1, 5), (4, 2), (2, 3)))], "ascend"),
    "negative cost": ([Task(index=0, predecessors=(), cost_ns=((1, -5),))], "0 or more"),
    "negative peak": ([task(0, peak=-1)], "-1 bytes"),
}


@every_policy
@pytest.mark.parametrize("bad", BAD_TASKS)
def test_tasks_that_break_the_contract_are_refused(name: str, bad: str) -> None:
    tasks, complaint = BAD_TASKS[bad]
    with pytest.raises(PlanError, match=complaint):
        POLICIES[name].assign(tasks, cores=2, lanes=2)


BAD_SCHEDULES: dict[str, tuple[Schedule, str]] = {
    "cores": (schedule_of([task(0)], cores=3), "for 3 cores where 2"),
    "lanes": (schedule_of([task(0)], lanes=3), "for 3 lanes where up to 2"),
    "missing": (schedule_of([]), "0 assignments for 1"),
    "other task": (
        Schedule(policy="x", cores=2, lanes=2, assignments=(Assignment(segment=1, width=1, priority=0),)),
        "segment 1 in its place",
    ),
    "wide": (schedule_of([task(0)], widths=[3]), "width 3"),
    "unmeasured": (schedule_of([task(0)], widths=[2]), "width 2"),
    "lane": (schedule_of([task(0)], fixed=[2]), "lane 2"),
}


@pytest.mark.parametrize("bad", BAD_SCHEDULES)
def test_illegal_choice_is_refused_whoever_made_it(bad: str) -> None:
    schedule, complaint = BAD_SCHEDULES[bad]
    with pytest.raises(PlanError, match=complaint):
        verify_schedule([task(0)], schedule, cores=2, lanes=2)
