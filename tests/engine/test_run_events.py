"""What a run costs without observers, and what a delegate that fails is told of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallax.backends import FaultPolicy
from parallax.backends.ort import RuntimeOptions
from parallax.engine import EventRecorder, RunBudget, compile_plan
from parallax.engine._lanes import LanePool
from parallax.errors import SegmentError
from parallax.events import (
    BackendSetAside,
    BudgetChanged,
    RunAdmitted,
    RunEnded,
    RunOutcome,
    SegmentEnded,
    SegmentStarted,
    TensorMoved,
)
from parallax.model import load_model
from tests.engine._faulty import installed
from tests.engine._graphs import value
from tests.engine._plans import executor, ladder
from tests.engine._replay import verify_events
from tests.engine.test_faults import COLUMNS, model, plan_on


@pytest.fixture
def pool() -> LanePool:
    return LanePool(2)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path):
        yield


def test_without_observers_nothing_is_called_for_them_and_no_clock_is_read(pool: LanePool) -> None:
    steps, top = ladder(4)
    made = executor(steps, [top], pool=pool, lanes=1, cores=1)
    feeds = {"x": value(np.ones(10))}
    made.run(feeds, [top])

    def called() -> list[str]:
        names: list[str] = []

        def note(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                names.append(Path(frame.f_code.co_filename).name)
            elif event == "c_call":
                names.append(argument.__name__)

        sys.setprofile(note)
        try:
            made.run(feeds, [top])
        finally:
            sys.setprofile(None)
        return [name for name in names if name in ("_observers.py", "_run_events.py", "_events.py", "perf_counter_ns")]

    assert called() == []
    recorder = EventRecorder()
    made.events.add(recorder)
    assert set(called()) == {"_observers.py", "_run_events.py", "perf_counter_ns"}
    verify_events(recorder.take())
    made.events.remove(recorder)
    assert called() == []


def test_a_backend_that_is_set_aside_is_told_once_and_who_computed_instead() -> None:
    recorder = EventRecorder()
    source = model()
    made = compile_plan(
        load_model(source), plan_on(source, "fails", queue=False), RuntimeOptions(), faults=FaultPolicy(tolerated=2)
    )
    made.events.add(recorder)
    x = value(np.random.default_rng(0).standard_normal((3, COLUMNS)))
    outputs = [made.plan.segments[-1].outputs[0]]
    for _ in range(4):
        made.run({"x": x}, outputs)
    events = recorder.take()
    verify_events(events)
    aside = [event for event in events if isinstance(event, BackendSetAside)]
    delegated = [segment.name for segment in made.plan.segments if segment.backend == "faulty:fails"]
    assert sorted(event.segment for event in aside) == sorted(delegated), "each part once"
    assert {(event.backend, event.retry_s) for event in aside} == {("faulty:fails", FaultPolicy().retry_s)}
    assert all(event.reason for event in aside)
    assert {event.backend for event in events if isinstance(event, SegmentStarted)} == {"cpu", "faulty:fails"}
    assert {event.backend for event in events if isinstance(event, SegmentEnded)} == {"cpu"}
    assert not any(isinstance(event, TensorMoved) for event in events), "what the device did not run, it was not sent"


def test_a_budget_that_changes_in_the_middle_of_a_run_is_decided_again(pool: LanePool) -> None:
    steps, top = ladder(6)
    made = executor(steps, [top], pool=pool, peak_bytes=100)
    recorder = EventRecorder()
    limits: list[RunBudget] = []

    def change(event: object) -> None:
        if isinstance(event, SegmentEnded):
            limits[-1].change(event.segment * 40 if event.segment % 3 else None)

    made.events.add(recorder)
    made.events.add(change)
    for _ in range(20):
        limits.append(RunBudget(10, waited_ns=7))
        made.run({"x": value([1.0])}, [top], budget=limits[-1])
    events = recorder.take()
    assert len(verify_events(events)) == 20
    changes = [event for event in events if isinstance(event, BudgetChanged)]
    assert {event.budget_bytes for event in changes} >= {None, 40, 80, 160}
    numbers = {event.sequence + 1 for event in changes}
    assert any(event.sequence in numbers for event in events if isinstance(event, SegmentStarted)), (
        "some let more start"
    )
    admitted = [event for event in events if isinstance(event, RunAdmitted)]
    assert {(event.budget_bytes, event.waited_ns) for event in admitted} == {(10, 7)}


def test_a_run_that_is_interrupted_ends_for_its_observers_too(pool: LanePool) -> None:
    steps, top = ladder(2)
    made = executor(steps, [top], pool=pool, lanes=1, cores=1)
    recorder = EventRecorder()

    def interrupt(event: object) -> None:
        if isinstance(event, SegmentEnded) and event.segment == 1:
            raise KeyboardInterrupt

    made.events.add(recorder)
    made.events.add(interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.run({"x": value([1.0])}, [top])
    events = recorder.take()
    last = events[-1]
    assert isinstance(last, RunEnded)
    assert (last.outcome, last.failure) == (RunOutcome.INTERRUPTED, "KeyboardInterrupt: ")
    made.events.remove(interrupt)
    made.run({"x": value([1.0])}, [top])
    assert [event.outcome for event in recorder.take() if isinstance(event, RunEnded)] == [RunOutcome.DONE]


def test_a_failed_segment_is_told_with_its_words(pool: LanePool) -> None:
    made = executor([("Relu", ["x"], "a"), ("MatMul", ["a", "a"], "b"), ("Neg", ["b"], "c")], ["c"], pool=pool)
    recorder = EventRecorder()
    made.events.add(recorder)
    with pytest.raises(SegmentError):
        made.run({"x": value(np.ones((2, 3)))}, ["c"])
    events = recorder.take()
    verify_events(events)
    (failed,) = (event for event in events if isinstance(event, SegmentEnded) and event.failure)
    assert failed.segment == 1
    assert "SegmentError" in str(failed.failure)
