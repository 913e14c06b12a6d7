"""Segment states: only legal moves, a history for every illegal event, and a judge that sees broken states."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parallax.errors import InternalError
from parallax.schedule import Dispatcher
from parallax.schedule._table import LEGAL_MOVES, SegmentState
from parallax.schedule._verify_state import verify_state
from tests.schedule._dags import table_of, task

Make = Callable[..., Dispatcher]


def test_table_has_every_state_and_ends_are_ends() -> None:
    assert set(LEGAL_MOVES) == set(SegmentState)
    ends = {state for state, moves in LEGAL_MOVES.items() if not moves}
    assert ends == {SegmentState.DONE, SegmentState.FAILED, SegmentState.CANCELLED}
    assert {(old.name, new.name) for old, moves in LEGAL_MOVES.items() for new in moves} == {
        ("WAITING", "READY"),
        ("WAITING", "CANCELLED"),
        ("READY", "RUNNING"),
        ("READY", "CANCELLED"),
        ("RUNNING", "DONE"),
        ("RUNNING", "FAILED"),
    }


@pytest.mark.parametrize("event", ["segment_done", "segment_failed"])
@pytest.mark.parametrize("strict", [True, False])
def test_event_for_a_segment_that_does_not_run_is_refused(dispatch: Make, event: str, strict: bool) -> None:
    dispatcher = dispatch(table_of([task(0), task(1, 0), task(2, 1)]), lanes=1, strict=strict)
    report = getattr(dispatcher, event)
    for segment, state in [(0, "READY"), (1, "WAITING")]:
        with pytest.raises(InternalError, match=f"{event} while the segment is {state}"):
            report(segment)
    dispatcher.start()
    dispatcher.segment_done(0)
    with pytest.raises(InternalError, match=f"{event} while the segment is DONE"):
        report(0)
    dispatcher.segment_failed(1)
    with pytest.raises(InternalError, match=f"{event} while the segment is CANCELLED"):
        report(2)


@pytest.mark.parametrize("segment", [-1, 3])
def test_event_for_a_segment_that_is_not_there_is_refused(dispatch: Make, segment: int) -> None:
    dispatcher = dispatch(table_of([task(0)]))
    dispatcher.start()
    with pytest.raises(InternalError, match=f"segment {segment} of a plan of 1"):
        dispatcher.segment_done(segment)


def test_refused_event_changes_nothing(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1, 0)]))
    dispatcher.start()
    before = dispatcher.states
    with pytest.raises(InternalError):
        dispatcher.segment_done(1)
    assert dispatcher.states == before
    assert [start.segment for start in dispatcher.segment_done(0)] == [1]


def test_error_tells_the_story_of_its_segment_only(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0), task(1, 0)]))
    dispatcher.start()
    dispatcher.segment_done(0)
    dispatcher.segment_done(1)
    with pytest.raises(InternalError) as refusal:
        dispatcher.segment_done(1)
    assert dispatcher.history(1) == (
        "2: WAITING -> READY: its last predecessor 0 is done",
        "3: READY -> RUNNING: started on lane 0 at width 1",
        "4: RUNNING -> DONE: segment_done on lane 0",
    )
    assert refusal.value.where == "segment 1"
    assert all(line in refusal.value.what for line in dispatcher.history(1))
    assert "0: READY" not in refusal.value.what


def test_story_says_so_where_it_was_not_recorded(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0)]), strict=False)
    with pytest.raises(InternalError, match="not recorded"):
        dispatcher.segment_done(0)
    assert dispatcher.history(0) == ()


def test_starting_twice_is_refused(dispatch: Make) -> None:
    dispatcher = dispatch(table_of([task(0)]))
    dispatcher.start()
    with pytest.raises(InternalError, match="started twice"):
        dispatcher.start()


BREAKS: dict[str, tuple[Callable[[Dispatcher], object], str]] = {
    "lost lane": (lambda d: d._running.clear(), "RUNNING segments"),
    "shared lane": (lambda d: d._running.update({0: 1}), "one lane"),
    "unknown lane": (lambda d: d._running.update({0: 7}), "not there"),
    "idle lane": (lambda d: setattr(d, "_idle", 7), "idle lanes"),
    "cores": (lambda d: setattr(d, "_free_cores", 3), "free cores"),
    "bytes": (lambda d: setattr(d, "_free_bytes", 3), "free bytes"),
    "over-committed cores": (lambda d: (setattr(d, "_cores", 1), setattr(d, "_free_cores", -1)), "more cores"),
    "over-committed bytes": (lambda d: (setattr(d, "_budget_bytes", 1), setattr(d, "_free_bytes", -3)), "more bytes"),
    "early": (lambda d: d._states.__setitem__(3, SegmentState.READY), "before 1 of its predecessors"),
    "counter": (lambda d: d._remaining.__setitem__(3, 2), "waits for the wrong number"),
    "queue": (lambda d: d._fits[0].put(2, 1 << 64), "not those queued"),  # type: ignore[index]
    "ready count": (lambda d: setattr(d, "_ready", 0), "ready segments miscounted"),
    "pending count": (lambda d: setattr(d, "_pending", 1), "pending segments miscounted"),
    "unreported failure": (lambda d: setattr(d, "_failed", (0,)), "not those reported"),
    "not stopped": (lambda d: setattr(d, "_stopped", True), "stopped, yet"),
    "idle while one fits": (lambda d: (setattr(d, "_cores", 3), setattr(d, "_free_cores", 1)), "was not started"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_judge_sees_a_state_broken_on_purpose(name: str) -> None:
    # 0 and 1 run, 2 is ready, 3 waits for 0.
    tasks = [task(0, peak=2), task(1, peak=2), task(2, peak=2), task(3, 0, peak=2)]
    dispatcher = Dispatcher(table_of(tasks), cores=2, lanes=3, budget_bytes=8)
    dispatcher.start()
    verify_state(dispatcher)
    damage, complaint = BREAKS[name]
    damage(dispatcher)
    with pytest.raises(InternalError, match=complaint):
        verify_state(dispatcher)


def test_judge_sees_a_stalled_run() -> None:
    dispatcher = Dispatcher(table_of([task(0), task(1, 0)]), cores=1, lanes=1)
    dispatcher._started = True
    with pytest.raises(InternalError, match="nothing runs and nothing will"):
        verify_state(dispatcher)


def test_strict_mode_judges_after_each_event() -> None:
    dispatcher = Dispatcher(table_of([task(0), task(1, 0)]), cores=1, lanes=1, strict=True)
    dispatcher.start()
    dispatcher._remaining[1] = 2  # as a bug would leave it
    with pytest.raises(InternalError, match="segment 1 waits for the wrong number"):
        dispatcher.segment_done(0)


def test_strict_mode_refuses_an_illegal_move_at_the_move() -> None:
    dispatcher = Dispatcher(table_of([task(0), task(1, 0)]), cores=1, lanes=1, strict=True)
    dispatcher.start()
    dispatcher._states[1] = SegmentState.DONE
    with pytest.raises(InternalError, match="move to READY while the segment is DONE"):
        dispatcher.segment_done(0)
