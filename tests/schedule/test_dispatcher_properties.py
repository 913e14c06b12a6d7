"""Facts that hold for every plan and every order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.schedule import Dispatcher, DispatchTable, Schedule, Start, Task
from parallax.schedule._table import SegmentState
from tests.schedule._dags import schedules, task_lists
from tests.schedule._reference import Reference

budgets = st.none() | st.integers(0, 60)


@st.composite
def limits(draw: st.DrawFn, tasks: tuple[Task, ...]) -> int:
    """A budget that some of the tasks fill exactly, or miss by a byte, or any other."""
    if not tasks or draw(st.booleans()):
        return draw(st.integers(0, 60))
    together = draw(st.sets(st.sampled_from(range(len(tasks))), min_size=1, max_size=3))
    return max(0, sum(tasks[index].peak_bytes for index in together) + draw(st.integers(-1, 1)))


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


@given(plans(), st.data())
@settings(max_examples=200)
def test_whatever_happens_the_rules_written_down_again_answer_the_same(
    plan: tuple[tuple[Task, ...], Schedule], data: st.DataObject
) -> None:
    """Ends, failures, fewer and more bytes, in any order, before the start as well."""
    tasks, schedule = plan
    budgets = st.none() | limits(tasks)
    budget = data.draw(budgets)
    capacity = {"cores": schedule.cores, "lanes": schedule.lanes}
    dispatcher = Dispatcher(DispatchTable.from_schedule(tasks, schedule), **capacity, budget_bytes=budget, strict=True)
    reference = Reference(tasks, schedule, **capacity, budget=budget)
    if data.draw(st.booleans(), label="budget before the start"):
        budget = data.draw(budgets)
        assert dispatcher.budget_changed(budget) == ()
        reference.budget = budget
    starts, expected = dispatcher.start(), reference.start()
    changes = 0
    while True:
        assert [(start.segment, start.lane) for start in starts] == expected
        assert dispatcher.running == tuple(reference.running)
        assert dispatcher.finished == reference.finished
        assert dispatcher.stopped == reference.stopped
        if dispatcher.finished:
            break
        events = ["done", "done", "done", "failed"]
        if changes < 12:
            events += ["budget", "budget"]
        event = data.draw(st.sampled_from(events), label="event")
        if event == "budget":
            changes += 1
            budget = data.draw(budgets)
            starts, expected = dispatcher.budget_changed(budget), reference.budget_changed(budget)
        else:
            segment = data.draw(st.sampled_from(dispatcher.running), label=event)
            if event == "done":
                starts, expected = dispatcher.segment_done(segment), reference.segment_done(segment)
            else:
                starts, expected = dispatcher.segment_failed(segment), reference.segment_failed(segment)


@given(plans(), st.data())
@settings(max_examples=200)
def test_what_runs_together_never_exceeds_the_budget_of_the_moment_it_was_joined_in(
    plan: tuple[tuple[Task, ...], Schedule], data: st.DataObject
) -> None:
    """No over-commit: beyond the budget there is at most one segment, or what ran before the budget fell."""
    tasks, schedule = plan
    budget = data.draw(limits(tasks))
    dispatcher = Dispatcher(
        DispatchTable.from_schedule(tasks, schedule),
        cores=schedule.cores,
        lanes=schedule.lanes,
        budget_bytes=budget,
        strict=True,
    )
    in_flight: set[int] = set()
    allowed: dict[frozenset[int], int] = {}
    starts = dispatcher.start()
    stopped = False
    while True:
        for start in starts:
            assert not stopped
            assert all(tasks[start.segment].peak_bytes <= budget for _ in in_flight), "what joins others fits"
            in_flight.add(start.segment)
            allowed[frozenset(in_flight)] = budget
        used = sum(tasks[segment].peak_bytes for segment in in_flight)
        # Whatever runs now ran together when the last of it was started, under the budget of that moment.
        latest = [limit for members, limit in allowed.items() if members >= in_flight]
        assert len(in_flight) <= 1 or used <= max(latest)
        if dispatcher.finished:
            break
        assert in_flight, "no deadlock"
        event = data.draw(st.sampled_from(["done", "done", "done", "failed", "budget"]), label="event")
        if event == "budget":
            budget = data.draw(limits(tasks))
            starts = dispatcher.budget_changed(budget)
            continue
        segment = data.draw(st.sampled_from(sorted(in_flight)), label=event)
        in_flight.remove(segment)
        if event == "done":
            starts = dispatcher.segment_done(segment)
        else:
            stopped = True
            starts = dispatcher.segment_failed(segment)


def test_random_runs_reach_the_corners_that_budgets_have() -> None:
    """The generators do produce runs that are held back, that exceed their budget alone, and that fall below it."""

    def corners(tasks: tuple[Task, ...], schedule: Schedule, budget: int) -> set[str]:
        seen = set()
        dispatcher = Dispatcher(
            DispatchTable.from_schedule(tasks, schedule),
            cores=schedule.cores,
            lanes=schedule.lanes,
            budget_bytes=budget,
        )
        dispatcher.start()
        while not dispatcher.finished:
            running = dispatcher.running
            used = sum(tasks[segment].peak_bytes for segment in running)
            ready = [index for index, state in enumerate(dispatcher.states) if state is SegmentState.READY]
            if len(running) == 1 and used > budget:
                seen.add("alone beyond the budget")
            if len(running) < schedule.lanes and any(used + tasks[index].peak_bytes > budget for index in ready):
                seen.add("held back")
            if len(running) > 1 and used == budget:
                seen.add("full")
            dispatcher.segment_done(running[-1])
        return seen

    reached: set[str] = set()

    @given(plans(), st.data())
    @settings(max_examples=200, derandomize=True, database=None)
    def collect(plan: tuple[tuple[Task, ...], Schedule], data: st.DataObject) -> None:
        reached.update(corners(*plan, data.draw(limits(plan[0]))))

    collect()
    assert reached == {"alone beyond the budget", "held back", "full"}


@given(plans(), budgets, st.data())
def test_a_budget_that_changes_at_any_time_is_obeyed_by_every_later_start(
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
        event = data.draw(st.sampled_from(["done", "done", "budget"]), label="event")
        if event == "done":
            segment = data.draw(st.sampled_from(sorted(in_flight)))
            del in_flight[segment]
            starts = dispatcher.segment_done(segment)
        else:
            budget = data.draw(budgets)
            starts = dispatcher.budget_changed(budget)
    assert sorted(started) == list(range(len(tasks)))


@given(plans(), budgets, st.data())
def test_failure_at_any_time_ends_the_run_cleanly(
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
        event = data.draw(st.sampled_from(["done", "done", "failed"]))
        if event == "failed":
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
