"""The rules of `Dispatcher`, one by one; the numbers are those of its docstring."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from parallax.errors import ConfigError, PlanError
from parallax.schedule import Dispatcher, DispatchTable, Start
from tests.schedule._dags import table_of, task

Make = Callable[..., Dispatcher]


def test_tie_breaks_in_order(dispatch: Make) -> None:
    # One lane free at a time, so that the order of starts is the order of preference:
    tasks = [
        task(0),  # reports on lane 0 and makes all others ready
        task(1, 0, peak=9),  # equal to 2 but for its index
        task(2, 0, peak=9),
        task(3, 0, peak=9),  # a higher priority
        task(4, 0, peak=9),  # the highest priority, but too wide for the cores
        task(5, 0, peak=99),  # beyond the budget, and the larger excess
        task(6, 0, peak=98),  # beyond the budget
    ]
    table = table_of(tasks, widths=[1, 1, 1, 1, 3, 1, 1], priorities=[0, 0, 0, 5, 7, 9, 1])
    dispatcher = dispatch(table, lanes=1, budget_bytes=50)
    order = []
    starts = dispatcher.start()
    while starts:
        order.extend(starts)
        starts = dispatcher.segment_done(starts[-1].segment)
    assert order == [
        Start(0, 0, 1),
        Start(3, 0, 1),  # 2: the higher priority; 4: it passes 5 and 4, which do not fit
        Start(1, 0, 1),  # 3: the lower index of two equals
        Start(2, 0, 1),
        Start(4, 0, 3),  # 6: nothing fits; this one exceeds only the cores
        Start(6, 0, 1),  # 6: the smaller excess of bytes, whatever the priority
        Start(5, 0, 1),
    ]
    assert dispatcher.finished


def test_segment_waits_for_all_its_predecessors(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1), task(2, 0, 1)]))
    assert [start.segment for start in dispatcher.start()] == [0, 1]
    assert dispatcher.segment_done(1) == ()
    assert dispatcher.segment_done(0) == (Start(2, 0, 1),)


def test_widths_in_flight_stay_within_the_cores(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1), task(2)], widths=[2, 1, 2]), cores=3, lanes=3)
    assert dispatcher.start() == (Start(0, 0, 2), Start(1, 1, 1))
    assert dispatcher.segment_done(1) == ()
    assert dispatcher.segment_done(0) == (Start(2, 0, 2),)


def test_peaks_in_flight_stay_within_the_budget(dispatch: Make) -> None:
    dispatcher = dispatch(
        table_of([task(0, peak=6), task(1, peak=5), task(2, peak=4)]), lanes=3, cores=3, budget_bytes=10
    )
    assert dispatcher.start() == (Start(0, 0, 1), Start(2, 1, 1))
    assert dispatcher.segment_done(2) == ()
    assert dispatcher.segment_done(0) == (Start(1, 0, 1),)


def test_backfill_passes_a_head_that_does_not_fit(dispatch: Make) -> None:
    tasks = [task(0), task(1), task(2)]
    settings = {"widths": [1, 2, 1], "priorities": [9, 5, 1]}
    assert [s.segment for s in dispatch(table_of(tasks, **settings)).start()] == [0, 2]
    assert [s.segment for s in dispatch(table_of(tasks, **settings, backfill=False)).start()] == [0]


def test_without_backfill_starts_follow_the_order_exactly(dispatch: Make) -> None:
    tasks = [task(0, peak=1), task(1, peak=9), task(2, peak=1), task(3, peak=1)]
    dispatcher = dispatch(table_of(tasks, backfill=False), cores=4, lanes=4, budget_bytes=3)
    order = [start.segment for start in dispatcher.start()]
    assert order == [0]
    while not dispatcher.finished:
        order += [start.segment for start in dispatcher.segment_done(dispatcher.running[0])]
    assert order == [0, 1, 2, 3]


def test_lane_that_reports_gets_the_next_segment(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1), task(2, 1), task(3, 1)]), cores=3, lanes=3)
    dispatcher.start()
    # Lane 2 is idle and lane 1 reports: the best goes to lane 1, without a hand-over, the next to lane 2.
    assert dispatcher.segment_done(1) == (Start(2, 1, 1), Start(3, 2, 1))


def test_lowest_idle_lane_where_no_lane_reported(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(n, peak=1) for n in range(3)]), cores=3, lanes=3, budget_bytes=1)
    assert dispatcher.start() == (Start(0, 0, 1),)
    assert dispatcher.budget_changed(3) == (Start(1, 1, 1), Start(2, 2, 1))


def test_fixed_lane_is_kept_even_if_another_is_idle(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1), task(2)], fixed=[1, 1, None]))
    assert dispatcher.start() == (Start(0, 1, 1), Start(2, 0, 1))
    assert dispatcher.segment_done(2) == ()
    assert dispatcher.segment_done(0) == (Start(1, 1, 1),)


def test_fixed_lane_that_is_not_there_counts_as_none(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1)], lanes=8, fixed=[7, 7]))
    assert dispatcher.start() == (Start(0, 0, 1), Start(1, 1, 1))


@pytest.mark.parametrize("budget", [None, 100])
def test_segment_wider_than_the_cores_runs_alone(dispatch: Make, budget: int | None) -> None:
    tasks = [task(0, peak=1), task(1, peak=1), task(2, 0, peak=1)]
    dispatcher = dispatch(table_of(tasks, widths=[1, 8, 1]), budget_bytes=budget)
    assert dispatcher.start() == (Start(0, 0, 1),)
    assert dispatcher.segment_done(0) == (Start(2, 0, 1),)
    assert dispatcher.segment_done(2) == (Start(1, 0, 8),)
    assert dispatcher.segment_done(1) == ()
    assert dispatcher.finished


def test_of_those_that_exceed_only_the_cores_the_highest_priority_runs_alone(dispatch: Make) -> None:
    tasks = [task(0, peak=1), task(1, peak=8), task(2, peak=99)]
    dispatcher = dispatch(table_of(tasks, widths=[4, 4, 1], priorities=[1, 2, 3]), budget_bytes=10)
    assert dispatcher.start() == (Start(1, 0, 4),)
    assert dispatcher.segment_done(1) == (Start(0, 0, 4),)
    assert dispatcher.segment_done(0) == (Start(2, 0, 1),)


def test_nothing_starts_beside_one_that_runs_beyond_the_budget(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0, peak=20), task(1, peak=30), task(2, 0, peak=0)]), budget_bytes=10)
    assert dispatcher.start() == (Start(0, 0, 1),)
    # Even what holds no bytes waited; now it fits, and passes the one that does not.
    assert dispatcher.segment_done(0) == (Start(2, 0, 1),)
    assert dispatcher.segment_done(2) == (Start(1, 0, 1),)


def test_failure_stops_the_run_and_waits_for_what_runs(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1), task(2), task(3, 0)]))
    dispatcher.start()
    assert dispatcher.segment_failed(0) == ()
    assert dispatcher.stopped
    assert not dispatcher.finished
    assert dispatcher.running == (1,)
    assert dispatcher.segment_done(1) == ()
    assert dispatcher.finished
    assert dispatcher.failed == (0,)
    assert [state.name for state in dispatcher.states] == ["FAILED", "DONE", "CANCELLED", "CANCELLED"]


def test_every_failure_is_kept_in_order(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1)]))
    dispatcher.start()
    dispatcher.segment_failed(1)
    dispatcher.segment_failed(0)
    assert dispatcher.failed == (1, 0)


def test_larger_budget_starts_what_waited_and_a_smaller_one_stops_nothing(dispatch: Make) -> None:
    dispatcher = dispatch(
        table_of([task(0, peak=5), task(1, peak=5), task(2, peak=5)]), cores=3, lanes=3, budget_bytes=5
    )
    assert dispatcher.start() == (Start(0, 0, 1),)
    assert dispatcher.budget_changed(10) == (Start(1, 1, 1),)
    assert dispatcher.budget_changed(1) == ()
    assert dispatcher.running == (0, 1)
    assert dispatcher.budget_changed(None) == (Start(2, 2, 1),)


def test_budget_may_appear_in_a_run_that_began_without(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(i, peak=4) for i in range(4)]))
    assert [start.segment for start in dispatcher.start()] == [0, 1]
    assert dispatcher.budget_changed(4) == ()
    assert dispatcher.segment_done(0) == ()
    assert dispatcher.segment_done(1) == (Start(2, 1, 1),)
    assert dispatcher.segment_done(2) == (Start(3, 1, 1),)


def test_budget_before_the_start_is_noted_only(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0, peak=1), task(1, peak=1)]))
    assert dispatcher.budget_changed(1) == ()
    assert dispatcher.start() == (Start(0, 0, 1),)


def test_plan_without_segments_is_finished_at_once(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([]))
    assert dispatcher.start() == ()
    assert dispatcher.finished


def test_runs_of_one_table_do_not_disturb_each_other(dispatch: Make) -> None:
    table = table_of([task(0), task(1, 0), task(2, 1)])
    first, second = dispatch(table), dispatch(table)
    first.start()
    first.segment_done(0)
    first.segment_failed(1)
    for segment, following in pairwise([0, 1, 2]):
        if segment == 0:
            second.start()
        assert [start.segment for start in second.segment_done(segment)] == [following]


@pytest.mark.parametrize("settings", [{"cores": 0}, {"lanes": 0}, {"budget_bytes": -1}])
def test_impossible_capacity_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1 core"):
        Dispatcher(table_of([task(0)]), **{"cores": 1, "lanes": 1, **settings})  # type: ignore[arg-type]


def test_impossible_capacity_is_refused_during_a_run(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0)]))
    with pytest.raises(ConfigError, match="-1 bytes"):
        dispatcher.budget_changed(-1)


@pytest.mark.parametrize("predecessors", [(1,), (2,), (-1,), (0, 0)])
def test_table_refuses_predecessors_that_are_not_distinct_lower_indices(predecessors: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match=r"segment 1.*topological"):
        table_of([task(0), task(1, *predecessors)])


@pytest.mark.parametrize(("width", "lane", "peak"), [(0, None, 0), (1, -1, 0), (1, None, -1), (1, None, 1 << 70)])
def test_table_refuses_figures_that_cannot_be_dispatched(width: int, lane: int | None, peak: int) -> None:
    with pytest.raises(PlanError, match="segment 0"):
        DispatchTable.build(
            predecessors=[()], widths=[width], priorities=[0], lanes=[lane], peaks=[peak], backfill=True
        )
