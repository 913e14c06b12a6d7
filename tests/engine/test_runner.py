"""Runners as values, and the handle by which their callers find the one in force."""

from __future__ import annotations

import threading
import weakref
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from parallax.engine import EventRecorder, EventStream, RunnerHandle, SplitRunner, compile_plan
from parallax.errors import ConfigError, PlanError
from parallax.events import PlanSwapped
from parallax.model import load_model
from tests.engine._graphs import QUIET, ladder_model, plan_of_nodes

PATIENCE_S = 60


def runner(rungs: int = 3, *, lanes: int = 2, events: EventStream | None = None) -> SplitRunner:
    model = load_model(ladder_model(rungs))
    plan = plan_of_nodes(model.graph, lanes=lanes)
    return SplitRunner.of(compile_plan(model, plan, QUIET), plan, model.graph, events or EventStream())


def feeds(size: int = 4) -> dict[str, Any]:
    return {"x": np.linspace(-1, 1, size, dtype=np.float32)}


def test_a_runner_is_a_value() -> None:
    made = runner()
    with pytest.raises(FrozenInstanceError):
        made.plan = made.plan  # type: ignore[misc]
    assert made.is_split
    assert made.input_names == ("x",)
    assert not made.requirement({}).is_known, "nobody asked for it"
    assert len(made.sessions) == len(made.plan.segments)


def test_a_handle_without_a_runner_says_so() -> None:
    handle = RunnerHandle(EventStream())
    for attempt in (lambda: handle.run(None, feeds()), lambda: handle.swap(runner())):
        with pytest.raises(ConfigError, match="no model is open"):
            attempt()
    with pytest.raises(AttributeError):
        handle.run(None, feeds())
    handle.put(runner())
    assert len(handle.run(None, feeds())) == 1
    handle.put(None)
    assert handle.current is None


def test_runs_take_the_runner_in_force_and_who_was_before_is_freed() -> None:
    recorder = EventRecorder()
    events = EventStream([recorder])
    first, second = runner(lanes=1, events=events), runner(events=events)
    handle = RunnerHandle(events, first)
    wanted = handle.run(None, feeds())[0]
    assert handle.swap(second, reason="to see it") is first
    assert handle.current is second
    np.testing.assert_array_equal(handle.run(None, feeds())[0], wanted)
    (swapped,) = (event for event in recorder.take() if isinstance(event, PlanSwapped))
    assert (swapped.previous, swapped.plan, swapped.reason) == (first.plan, second.plan, "to see it")
    gone = weakref.ref(first)
    del first
    assert gone() is None, "nothing else holds it, and it takes no garbage collection"


def test_a_runner_of_another_model_is_refused() -> None:
    handle = RunnerHandle(EventStream(), runner(3))
    before = handle.current
    with pytest.raises(PlanError, match="cannot take the place"):
        handle.swap(runner(2))
    assert handle.current is before


def test_swaps_from_many_threads_leave_one_of_theirs_in_force() -> None:
    recorder = EventRecorder()
    events = EventStream([recorder])
    handle = RunnerHandle(events, runner())
    offered = [runner() for _ in range(6)]
    threads = [
        threading.Thread(target=handle.swap, args=(one,), kwargs={"reason": str(n)}) for n, one in enumerate(offered)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    swaps = [event for event in recorder.take() if isinstance(event, PlanSwapped)]
    assert handle.current is offered[int(swaps[-1].reason)]
    assert sorted(event.reason for event in swaps) == [str(number) for number in range(6)]
