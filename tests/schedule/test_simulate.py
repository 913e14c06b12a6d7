"""The simulator: exact on cases small enough to work out by hand, lawful on all others."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import ConfigError, PlanError
from parallax.schedule import Schedule, Task, simulate
from parallax.schedule._simulate import Span
from tests.schedule._dags import schedule_of, schedules, task, task_lists
from tests.schedule._policies import SequentialPolicy


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[Task, ...], Schedule, dict[str, int]]:
    tasks = draw(task_lists())
    times = {"handover_ns": draw(st.integers(0, 50)), "segment_overhead_ns": draw(st.integers(0, 50))}
    return tasks, draw(schedules(tasks)), times


def test_two_lanes_with_hand_overs_by_hand() -> None:
    # 0 on lane 0; its end frees 1 (lane 0, no hand-over) and 2 (lane 1, handed over); 3 joins them.
    tasks = [task(0, cost=100), task(1, 0, cost=300), task(2, 0, cost=200), task(3, 1, 2, cost=50)]
    run = simulate(tasks, schedule_of(tasks), handover_ns=10, segment_overhead_ns=1)
    assert run.timeline == (
        Span(segment=0, lane=0, width=1, start_ns=1, end_ns=101),
        Span(segment=1, lane=0, width=1, start_ns=102, end_ns=402),
        Span(segment=2, lane=1, width=1, start_ns=112, end_ns=312),
        Span(segment=3, lane=0, width=1, start_ns=403, end_ns=453),
    )
    assert run.makespan_ns == 453
    assert run.critical_path_ns == 450
    assert run.busy_ns == (450, 200)


def test_join_stays_on_the_lane_of_the_predecessor_that_ended_last() -> None:
    tasks = [task(0, cost=10), task(1, cost=30), task(2, 0, 1, cost=5)]
    run = simulate(tasks, schedule_of(tasks), handover_ns=4)
    # Lane 1 was woken at the start, keeps the join, and tells lane 0 of the end.
    assert run.timeline[-1] == Span(segment=2, lane=1, width=1, start_ns=34, end_ns=39)
    assert run.makespan_ns == 39 + 4


def test_lane_that_fetches_a_segment_itself_pays_no_hand_over() -> None:
    # 2 was freed by 0, on lane 0, while lane 0 went on with 1; no core was left for it until then.
    tasks = [task(0, cost=10), task(1, 0, cost=100), task(2, 0, cost=10)]
    run = simulate(tasks, schedule_of(tasks, cores=1), handover_ns=7)
    assert [span.lane for span in run.timeline] == [0, 0, 0]
    assert run.makespan_ns == 120


def test_contention_slows_lanes_only_while_they_overlap() -> None:
    tasks = [task(0, cost=100), task(1, cost=300)]
    run = simulate(tasks, schedule_of(tasks), contention=1.5)
    # Both at 2/3 speed until 0 ends at 150; 1 has 200 left, at full speed.
    assert run.timeline == (
        Span(segment=0, lane=0, width=1, start_ns=0, end_ns=150),
        Span(segment=1, lane=1, width=1, start_ns=0, end_ns=350),
    )


def test_contention_begins_when_a_lane_begins_to_compute() -> None:
    tasks = [task(0, cost=100), task(1, cost=100)]
    run = simulate(tasks, schedule_of(tasks), contention=2.0, handover_ns=40)
    # Alone until 40; then half speed: 60 left take until 160, by then 1 did 60 and needs 40 more.
    assert [(span.start_ns, span.end_ns) for span in run.timeline] == [(0, 160), (40, 200)]


def test_segment_that_begins_amid_contention_finds_the_others_as_far_as_they_got() -> None:
    tasks = [task(0, cost=30), task(1, cost=200), task(2, cost=200), task(3, 0, cost=165)]
    run = simulate(tasks, schedule_of(tasks, cores=3, lanes=3), contention=2.0, segment_overhead_ns=10)
    # Three lanes at a third of their speed from 10, two at half for 10 ns from 100, three again from 110:
    # by then 1 and 2 did 30 + 5, and 165 are left of everything.
    assert [(span.start_ns, span.end_ns) for span in run.timeline] == [(10, 100), (10, 605), (10, 605), (110, 605)]


def test_given_costs_replace_those_of_the_tasks() -> None:
    tasks = [task(0, cost=100), task(1, 0, cost=100)]
    run = simulate(tasks, schedule_of(tasks), cost_ns=[7, 9])
    assert run.makespan_ns == run.critical_path_ns == 16


def test_width_between_two_known_costs_is_charged_as_the_narrower() -> None:
    tasks = [Task(index=0, predecessors=(), cost_ns=((1, 100), (4, 30)))]
    assert [simulate(tasks, schedule_of(tasks, cores=4, widths=[w])).makespan_ns for w in (1, 3, 4)] == [100, 100, 30]


def test_budget_keeps_segments_apart() -> None:
    tasks = [task(0, cost=10, peak=3), task(1, cost=10, peak=3)]
    together = simulate(tasks, schedule_of(tasks))
    apart = simulate(tasks, schedule_of(tasks), budget_bytes=5)
    assert (together.makespan_ns, together.peak_bytes) == (10, 6)
    assert (apart.makespan_ns, apart.peak_bytes) == (20, 3)


def test_nothing_to_run_takes_no_time() -> None:
    run = simulate([], schedule_of([]), handover_ns=5, segment_overhead_ns=5)
    assert (run.makespan_ns, run.timeline, run.critical_path_ns, run.busy_ns) == (0, (), 0, (0, 0))


@given(runs(), st.none() | st.integers(0, 60), st.sampled_from([1.0, 1.25, 3.0]))
def test_every_run_is_lawful(
    run: tuple[tuple[Task, ...], Schedule, dict[str, int]], budget: int | None, contention: float
) -> None:
    tasks, schedule, times = run
    result = simulate(tasks, schedule, budget_bytes=budget, contention=contention, **times)
    assert sorted(span.segment for span in result.timeline) == list(range(len(tasks)))
    spans = {span.segment: span for span in result.timeline}
    for item in tasks:
        assert all(spans[before].end_ns <= spans[item.index].start_ns for before in item.predecessors)
    for lane in range(schedule.lanes):
        on_lane = [span for span in result.timeline if span.lane == lane]
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(on_lane))
        assert result.busy_ns[lane] == sum(span.end_ns - span.start_ns for span in on_lane)
    # Rounding to whole ns may take half of one at either end of each span.
    slack = 0 if contention == 1 else len(tasks)
    assert result.makespan_ns >= result.critical_path_ns - slack
    assert result.makespan_ns * schedule.lanes >= sum(result.busy_ns)
    assert result.makespan_ns >= max((span.end_ns for span in result.timeline), default=0)
    if budget is not None:
        assert result.peak_bytes <= max([budget, *(item.peak_bytes for item in tasks)])


@given(runs())
def test_makespan_never_beats_the_work_shared_by_all_lanes(
    run: tuple[tuple[Task, ...], Schedule, dict[str, int]],
) -> None:
    tasks, schedule, times = run
    work = sum(item.cost_ns[0][1] for item in tasks)
    costs = [item.cost_ns[0][1] for item in tasks]
    assert simulate(tasks, schedule, cost_ns=costs, **times).makespan_ns * schedule.lanes >= work


@given(task_lists(), st.integers(1, 5), st.integers(0, 50), st.integers(0, 50))
def test_sequential_makespan_is_the_sum_of_costs_and_overheads(
    tasks: tuple[Task, ...], cores: int, overhead: int, handover: int
) -> None:
    schedule = SequentialPolicy().assign(tasks, cores=cores, lanes=3)
    run = simulate(tasks, schedule, segment_overhead_ns=overhead, handover_ns=handover, contention=2.0)
    best = [min(cost for width, cost in item.cost_ns if width <= cores) for item in tasks]
    assert run.makespan_ns == sum(best) + overhead * len(tasks)
    assert [span.segment for span in run.timeline] == list(range(len(tasks)))


@given(runs(), st.sampled_from([1.0, 1.5]))
def test_same_arguments_same_run(run: tuple[tuple[Task, ...], Schedule, dict[str, int]], contention: float) -> None:
    tasks, schedule, times = run
    first = simulate(tasks, schedule, contention=contention, **times)
    assert simulate(tasks, schedule, contention=contention, **times) == first


@given(runs())
def test_contention_of_one_equals_no_contention_to_the_nanosecond(
    run: tuple[tuple[Task, ...], Schedule, dict[str, int]],
) -> None:
    tasks, schedule, times = run
    assert simulate(tasks, schedule, contention=1, **times) == simulate(tasks, schedule, **times)


@pytest.mark.parametrize(
    "settings",
    [
        {"handover_ns": -1},
        {"segment_overhead_ns": -1},
        {"contention": 0.5},
        {"contention": float("nan")},
        {"contention": float("inf")},
        {"cost_ns": [-5]},
        {"cost_ns": [5, 5]},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    tasks = [task(0)]
    with pytest.raises(ConfigError, match=r"0 or more|one cost_ns per task"):
        simulate(tasks, schedule_of(tasks), **settings)  # type: ignore[arg-type]


def test_schedule_of_other_tasks_is_refused() -> None:
    tasks = [task(0), task(1)]
    with pytest.raises(PlanError, match="exactly one assignment per task"):
        simulate(tasks, schedule_of(tasks[:1]), cost_ns=[1, 1])
    with pytest.raises(PlanError, match="exactly one assignment per task"):
        simulate(tasks, schedule_of(tasks[:1]))


def test_ten_thousand_segments_keep_every_law_at_once() -> None:
    # A wide and a deep part; the size would show a quadratic step as minutes.
    tasks = [task(i, cost=1 + i % 7, peak=i % 5) for i in range(5000)]
    tasks += [task(i, i - 5000, i - 1, cost=1 + i % 3, peak=i % 4) for i in range(5000, 10_000)]
    schedule = schedule_of(tasks, cores=4, lanes=4, priorities=[i * 7919 % 1000 for i in range(10_000)])
    run = simulate(tasks, schedule, budget_bytes=7)
    assert len({span.segment for span in run.timeline}) == 10_000
    assert run.peak_bytes <= 7
    assert run.makespan_ns >= max(run.critical_path_ns, sum(run.busy_ns) // 4)
