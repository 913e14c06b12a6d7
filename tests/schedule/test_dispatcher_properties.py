"""Facts that hold for every plan and every order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallax.schedule import Dispatcher, DispatchTable, Schedule, SegmentState, Start, Task
from tests.schedule._dags import schedules, task_lists
from tests.schedule._reference import Reference

budgets = st.none() | st.integers(0, 60)


@st.composite
def plans(draw: st.DrawFn) -> tuple[tuple[Task, ...], Schedule]:
    tasks = draw(task_lists())
    return tasks, draw(schedules(tasks))


@given(plans(), budgets, st.data())
def test_starts_are_those_of_the_rules_written_down_again(
    plan: tuple[tuple[Task, ...], Schedule], budget: int | None, data: st.DataObject
) -> None:
    tasks, schedule = plan
    table = DispatchTable.from_schedule(tasks, schedule)
    capacity = {"cores": schedule.cores, "lanes": schedule.lanes}
    dispatcher = Dispatcher(table, **capacity, budget_bytes=budget, strict=True)
    reference = Reference(tasks, schedule, **capacity, budget=budget)
    starts, expected = dispatcher.start(), reference.start()
    while True:
        assert [(start.segment, start.lane) for start in starts] == expected
        assert all(start.width == schedule.assignments[start.segment].width for start in starts)
        assert dispatcher.running == tuple(reference.running)
        assert dispatcher.finished == reference.finished
        if dispatcher.finished:
            break
        segment = data.draw(st.sampled_from(dispatcher.running), label="ends")
        starts, expected = dispatcher.segment_done(segment), reference.segment_done(segment)
    assert all(state is SegmentState.DONE for state in dispatcher.states)


@given(plans(), budgets, st.data())
def test_capacity_that_changes_at_any_time_is_obeyed_by_every_later_start(
    plan: tuple[tuple[Task, ...], Schedule], budget: int | None, data: st.DataObject
) -> None:
    tasks, schedule = plan
    cores = schedule.cores
    dispatcher = Dispatcher(
        DispatchTable.from_schedule(tasks, schedule),
        cores=cores,
        lanes=schedule.lanes,
        budget_bytes=budget,
        strict=True,
    )
    started: list[int] = []
    in_flight: dict[int, Start] = {}
    starts = dispatcher.start()
    while True:
        for start in starts:
            assert start.lane not in {other.lane for other in in_flight.values()}
            alone = not in_flight
            in_flight[start.segment] = start
            used_bytes = sum(tasks[segment].peak_bytes for segment in in_flight)
            assert alone or sum(other.width for other in in_flight.values()) <= cores
            assert alone or budget is None or used_bytes <= budget
            started.append(start.segment)
        if dispatcher.finished:
            break
        assert in_flight, "a run that is not finished has something in flight"
        event = data.draw(st.sampled_from(["done", "done", "cores", "budget"]), label="event")
        if event == "done":
            segment = data.draw(st.sampled_from(sorted(in_flight)))
            del in_flight[segment]
            starts = dispatcher.segment_done(segment)
        elif event == "cores":
            cores = data.draw(st.integers(1, 8))
            starts = dispatcher.cores_changed(cores)
        else:
            budget = data.draw(budgets)
            starts = dispatcher.budget_changed(budget)
    assert sorted(started) == list(range(len(tasks)))


@given(plans(), budgets, st.data())
def test_failure_or_cancel_at_any_time_ends_the_run_cleanly(
    plan: tuple[tuple[Task, ...], Schedule], budget: int | None, data: st.DataObject
) -> None:
    tasks, schedule = plan
    dispatcher = Dispatcher(
        DispatchTable.from_schedule(tasks, schedule),
        cores=schedule.cores,
        lanes=schedule.lanes,
        budget_bytes=budget,
        strict=True,
    )
    dispatcher.start()
    failed: list[int] = []
    while not dispatcher.finished:
        segment = data.draw(st.sampled_from(dispatcher.running))
        event = data.draw(st.sampled_from(["done", "done", "failed", "cancel"]))
        if event == "cancel":
            starts = dispatcher.cancel()
        elif event == "failed":
            failed.append(segment)
            starts = dispatcher.segment_failed(segment)
        else:
            starts = dispatcher.segment_done(segment)
        assert not (dispatcher.stopped and starts)
    ends = {SegmentState.DONE, SegmentState.FAILED, SegmentState.CANCELLED}
    assert set(dispatcher.states) <= ends
    assert dispatcher.failed == tuple(failed)
    assert dispatcher.stopped or set(dispatcher.states) <= {SegmentState.DONE}


@given(plans(), budgets, st.data())
def test_replay_of_a_recorded_run_gives_the_same_instructions(
    plan: tuple[tuple[Task, ...], Schedule], budget: int | None, data: st.DataObject
) -> None:
    tasks, schedule = plan
    table = DispatchTable.from_schedule(tasks, schedule)

    def begin(strict: bool) -> Dispatcher:
        return Dispatcher(table, cores=schedule.cores, lanes=schedule.lanes, budget_bytes=budget, strict=strict)

    recorded = begin(strict=True)
    events: list[int] = []
    instructions = [recorded.start()]
    while not recorded.finished:
        events.append(data.draw(st.sampled_from(recorded.running)))
        instructions.append(recorded.segment_done(events[-1]))
    # Strict or not, the decisions are the same.
    replayed = begin(strict=False)
    assert [replayed.start(), *map(replayed.segment_done, events)] == instructions
