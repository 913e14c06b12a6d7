"""Observers get every event of a run, and the events alone tell again what the dispatcher decided."""

from __future__ import annotations

import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.engine import EventRecorder, TraceRecorder, write_chrome_trace
from parallax.events import (
    BudgetChanged,
    Event,
    RunAdmitted,
    RunEnded,
    RunOutcome,
    SegmentEnded,
    SegmentStarted,
    TensorMoved,
)
from tests.engine._flow_models import nested
from tests.engine._replay import Replayed, verify_events
from tests.session._dropin import branches_answer, branches_model, ramp
from tests.session.test_devices import PHONE, two_branches
from tests.session.test_devices import feeds as device_feeds
from tests.session.test_memory_budget import least_budget, wide_model

CPU = "CPUExecutionProvider"
SPLIT: dict[str, Any] = {"threads": 2, "split": "always"}
MIB = 1 << 20
PATIENCE_S = 60

Feeds = Mapping[str, Any]
Opened = tuple[parallax.InferenceSession, Callable[[int], Feeds], bytes]


def on_cpu_lanes(observer: Any) -> Opened:
    model = branches_model(4, 3).SerializeToString()
    session = parallax.InferenceSession(model, observers=[observer], **SPLIT)
    assert session.plan.lanes == 2
    return session, lambda seed: {"x": ramp(2, 4, start=float(seed))}, model


def on_a_device(observer: Any) -> Opened:
    model = two_branches(batch=8, depth=3)
    session = parallax.InferenceSession(
        model, providers=[(PHONE, {"speed": 1000}), CPU], min_gain=0, threads=2, observers=[observer]
    )
    assert {segment.backend for segment in session.plan.segments} == {"cpu", PHONE}
    return session, lambda seed: device_feeds(8, seed=seed), model


def in_a_lowered_loop(observer: Any) -> Opened:
    model = nested().SerializeToString()
    session = parallax.InferenceSession(model, min_gain=0, threads=2, observers=[observer])
    assert any(segment.bodies for segment in session.plan.segments)

    def fed(seed: int) -> Feeds:
        return {"M": np.array(3, np.int64), "C": np.array(seed % 3 != 2), "x": np.float32([seed, 2, -1])}

    return session, fed, model


def within_a_budget(observer: Any) -> Opened:
    """One run at a time fits, and two of its segments."""
    model = wide_model(64)
    least = least_budget(parallax.InferenceSession, model, **SPLIT)
    session = parallax.InferenceSession(model, memory_budget=least + MIB // 2, observers=[observer], **SPLIT)
    assert len(session.plan.segments) > 2
    return session, lambda seed: {"x": ramp(64, 1024, start=float(seed))}, model


PLACES = pytest.mark.parametrize("place", [on_cpu_lanes, on_a_device, in_a_lowered_loop, within_a_budget])


def check_answers(session: parallax.InferenceSession, fed: Feeds, model: bytes) -> None:
    reference = onnxruntime.InferenceSession(model, providers=[CPU])
    for ours, theirs in zip(session.run(None, fed), reference.run(None, fed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def outer(runs: Mapping[int, Replayed]) -> list[Replayed]:
    return [run for run in runs.values() if run.admitted.parent is None]


# -- every event, and the decisions again -----------------------------------------------------------------------------


@PLACES
def test_the_dispatchers_decisions_follow_from_the_events_alone(place: Callable[[Any], Opened]) -> None:
    recorder = EventRecorder()
    session, fed, model = place(recorder)
    for seed in range(4):
        check_answers(session, fed(seed), model)
    runs = verify_events(recorder.take())
    assert len(outer(runs)) == 4
    for run in outer(runs):
        assert run.admitted.plan == session._opened.split.executor.plan  # type: ignore[union-attr]
        assert sorted(start.segment for start in run.starts) == list(range(len(session.plan.segments)))
    assert recorder.take() == ()


@PLACES
def test_so_they_do_where_eight_threads_run_at_once(place: Callable[[Any], Opened]) -> None:
    recorder = EventRecorder()
    session, fed, model = place(recorder)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check_answers, session, fed(number), model) for number in range(32)]:
            done.result(PATIENCE_S)
    assert len(outer(verify_events(recorder.take()))) == 32


def test_all_events_of_a_run_have_come_when_it_returns() -> None:
    recorder = EventRecorder()
    session, fed, _ = on_cpu_lanes(recorder)
    for seed in range(200):
        session.run(None, fed(seed))
        kinds = Counter(type(event) for event in recorder.take())
        count = len(session.plan.segments)
        assert kinds == {RunAdmitted: 1, SegmentStarted: count, SegmentEnded: count, RunEnded: 1}


def test_what_led_to_an_event_comes_before_it() -> None:
    """As observers see them, unsorted."""
    seen: list[Event] = []
    session, fed, _ = on_cpu_lanes(seen.append)
    for seed in range(50):
        session.run(None, fed(seed))
    begun, started = set(), set()
    for event in seen:
        if isinstance(event, RunAdmitted):
            begun.add(event.run)
        elif isinstance(event, SegmentStarted):
            assert event.run in begun
            started.add((event.run, event.segment))
        elif isinstance(event, SegmentEnded):
            assert (event.run, event.segment) in started
    assert isinstance(seen[-1], RunEnded)


def test_the_judge_refuses_what_was_not_decided() -> None:
    recorder = EventRecorder()
    session, fed, _ = on_cpu_lanes(recorder)
    session.run(None, fed(0))
    events = list(recorder.take())
    verify_events(events)
    started = next(n for n, event in enumerate(events) if isinstance(event, SegmentStarted))
    ended = next(n for n, event in enumerate(events) if isinstance(event, SegmentEnded))
    spoilt = [
        replace(events[started], lane=1 - events[started].lane),  # type: ignore[attr-defined,call-arg]
        replace(events[started], segment=len(session.plan.segments) - 1),  # type: ignore[call-arg]
        replace(events[ended], failure="so it says"),  # type: ignore[call-arg]
        replace(events[0], lanes=1),  # type: ignore[call-arg]
    ]
    for event in spoilt:
        with pytest.raises(AssertionError):
            verify_events([event if event.sequence == other.sequence else other for other in events])
    with pytest.raises(AssertionError):
        verify_events([event for event in events if event is not events[ended]])
    with pytest.raises(AssertionError):
        verify_events(events[:-1])


# -- what they tell ---------------------------------------------------------------------------------------------------


def test_tensors_go_to_a_device_and_come_back() -> None:
    recorder = EventRecorder()
    session, fed, _ = on_a_device(recorder)
    session.run(None, fed(0))
    events = recorder.take()
    moved = [event for event in events if isinstance(event, TensorMoved)]
    assert {(event.source, event.target) for event in moved} == {("cpu", PHONE), (PHONE, "cpu")}
    assert {event.size_bytes for event in moved} == {fed(0)["x"].nbytes}, "all tensors have the shape of the input"
    assert len(moved) == len({event.tensor for event in moved}), "each once"
    assert "x" in {event.tensor for event in moved if event.target == PHONE}
    for event in moved:
        segment = session.plan.segments[event.segment]
        assert segment.backend == PHONE
        assert event.tensor in (segment.inputs if event.target == PHONE else segment.outputs)
    ended = [event for event in events if isinstance(event, SegmentEnded)]
    assert [event.backend for event in ended] == [session.plan.segments[event.segment].backend for event in ended]


def test_runs_of_bodies_say_where_they_belong() -> None:
    recorder = EventRecorder()
    session, fed, _ = in_a_lowered_loop(recorder)
    session.run(None, fed(0))
    runs = verify_events(recorder.take())
    bodies = Counter(
        (run.admitted.parent.body, run.admitted.parent.number) for run in runs.values() if run.admitted.parent
    )
    # The arm that is taken; three iterations in it; and in each of these an arm.
    assert bodies["body", 0] == bodies["body", 1] == bodies["body", 2] == 1
    assert bodies["then_branch", 0] + bodies["else_branch", 0] == 4
    assert len(runs) == 1 + 1 + 3 + 3
    depths = Counter(_depth(runs, number) for number in runs)
    assert depths == {0: 1, 1: 1, 2: 3, 3: 3}
    assert all(run.ended is not None and run.ended.outcome is RunOutcome.DONE for run in runs.values())


def _depth(runs: Mapping[int, Replayed], number: int) -> int:
    parent = runs[number].admitted.parent
    return 0 if parent is None else 1 + _depth(runs, parent.run)


def test_a_budget_is_told_when_a_run_begins_and_when_it_changes() -> None:
    recorder = EventRecorder()
    session, fed, model = within_a_budget(recorder)

    def squeeze(event: Event) -> None:
        """In the middle of each run, what is left for it becomes less, and more again."""
        gate = None if session._memory is None else session._memory.controller
        if isinstance(event, SegmentEnded) and event.segment == 0 and gate is not None:
            limit = gate.limit_bytes
            gate.set_limit(0)
            gate.set_limit(limit)

    session.add_observer(squeeze)
    for seed in range(3):
        check_answers(session, fed(seed), model)
    events = recorder.take()
    runs = verify_events(events)
    assert len(runs) == 3
    for number, run in runs.items():
        budgets = [event.budget_bytes for event in events if isinstance(event, BudgetChanged) and event.run == number]
        assert run.admitted.budget_bytes is not None
        assert run.admitted.waited_ns > 0
        assert len(budgets) == 2
        assert budgets[0] is not None
        assert budgets[0] < run.admitted.budget_bytes == budgets[1]


@pytest.mark.parametrize("options", [{}, {"split": "never"}, {"memory_budget": "1GiB", "split": "never"}])
def test_a_model_that_stays_whole_is_a_run_of_one_segment_whichever_way_it_is_run(options: dict[str, Any]) -> None:
    recorder = EventRecorder()
    model, x = branches_model().SerializeToString(), ramp(2, 4)
    session = parallax.InferenceSession(model, observers=[recorder], threads=2, **options)
    assert session.plan.is_whole
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output(session.get_outputs()[0].name)
    arrived = threading.Event()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    ways: list[Callable[[], Any]] = [
        lambda: session.run(None, {"x": x}),
        lambda: session.run_with_ort_values(None, {"x": value}),
        lambda: session.run_with_iobinding(binding),
        lambda: (session.run_async(None, {"x": x}, lambda *_: arrived.set(), None), arrived.wait(PATIENCE_S)),
    ]
    sizes = []
    for way in ways:
        way()
        events = recorder.take()
        assert [type(event) for event in events] == [RunAdmitted, SegmentStarted, SegmentEnded, RunEnded]
        (ended,) = (event for event in events if isinstance(event, SegmentEnded))
        sizes.append(ended.input_bytes)
        assert ended.failure is None
        first = events[0].sequence - 1
        verify_events([replace(event, sequence=event.sequence - first) for event in events])
    assert sizes == [x.nbytes, x.nbytes, 0, x.nbytes]
    with pytest.raises(parallax.InputError):
        session.run(None, {"x": x.astype(np.int32)})
    assert [event.outcome for event in recorder.take() if isinstance(event, RunEnded)] == [RunOutcome.FAILED]


def test_runs_that_a_split_model_leaves_to_the_whole_session_are_told_too() -> None:
    recorder = EventRecorder()
    session, fed, _ = on_cpu_lanes(recorder)
    binding = session.io_binding()
    binding.bind_cpu_input("x", fed(0)["x"])
    binding.bind_output(session.get_outputs()[0].name)
    session.run_with_iobinding(binding)
    (run,) = verify_events(recorder.take()).values()
    assert [segment.name for segment in run.admitted.plan.segments] == ["whole_model"]


def test_a_segment_that_fails_and_what_runs_beside_it_are_told() -> None:
    recorder = EventRecorder()
    session, _, _ = on_cpu_lanes(recorder)
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(parallax.RunCancelled):
        session.run(None, {"x": ramp(2, 4)}, options)
    events = recorder.take()
    (run,) = verify_events(events).values()
    assert run.ended is not None
    assert run.ended.outcome is RunOutcome.FAILED
    assert "RunCancelled" in str(run.ended.failure)
    assert any(event.failure for event in events if isinstance(event, SegmentEnded))


# -- observers --------------------------------------------------------------------------------------------------------


def test_observers_come_and_go_and_see_whole_runs() -> None:
    first, second = EventRecorder(), EventRecorder()
    session = parallax.InferenceSession(branches_model().SerializeToString(), observers=[first], **SPLIT)
    x = {"x": ramp(2, 4)}

    def join(event: Event) -> None:
        if isinstance(event, SegmentEnded):
            session.remove_observer(join)
            session.add_observer(second)

    session.add_observer(join)
    session.run(None, x)
    assert second.take() == (), "it came in the middle of that run"
    verify_events(first.take())
    session.run(None, x)
    events = second.take()
    assert len(events) == 2 + 2 * len(session.plan.segments)
    assert events == first.take(), "both are given the same records"
    assert session.remove_observer(first)
    assert not session.remove_observer(first)
    session.run(None, x)
    assert first.take() == ()
    assert second.take() != ()


def test_one_stream_serves_a_trace_and_observers_alike(tmp_path: Path) -> None:
    recorder, trace = EventRecorder(), TraceRecorder()
    session = parallax.InferenceSession(
        nested().SerializeToString(), min_gain=0, threads=2, observers=[recorder], trace=trace
    )
    session.run(None, {"M": np.array(3, np.int64), "C": np.array(True), "x": np.float32([1, 2])})
    spans = trace.take()
    ended = [event for event in recorder.take() if isinstance(event, SegmentEnded) and event.parent is None]
    assert {(s.run, s.segment, s.lane, s.start_ns, s.end_ns, s.input_bytes, s.output_bytes) for s in spans} == {
        (e.run, e.segment, e.lane, e.begin_ns, e.end_ns, e.input_bytes, e.output_bytes) for e in ended
    }
    write_chrome_trace(spans, tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_size


def test_an_observer_that_raises_is_detached_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise ValueError("no room")

    recorder = EventRecorder()
    session, fed, model = on_cpu_lanes(recorder)
    session.add_observer(broken)
    for seed in range(3):
        check_answers(session, fed(seed), model)
    assert [type(event) for event in calls] == [RunAdmitted]
    (record,) = caplog.records
    assert record.message.endswith("broken failed and is detached; the run goes on")
    assert len(outer(verify_events(recorder.take()))) == 3, "others are given all"


def test_observers_may_run_the_session_they_observe() -> None:
    inner: list[Any] = []

    def again(event: Event) -> None:
        if isinstance(event, SegmentEnded) and not inner:
            inner.append(None)
            inner[0] = session.run(None, {"x": ramp(2, 4)})

    recorder = EventRecorder()
    session = parallax.InferenceSession(branches_model().SerializeToString(), observers=[recorder, again], **SPLIT)
    (answer,) = session.run(None, {"x": ramp(2, 4)})
    np.testing.assert_allclose(answer, branches_answer(ramp(2, 4)), rtol=1e-6)
    np.testing.assert_array_equal(inner[0][0], answer)
    assert len(verify_events(recorder.take())) == 2


def test_observers_stay_behind_when_a_session_travels_and_hold_on_when_it_is_opened_again() -> None:
    recorder = EventRecorder()
    session, fed, model = on_cpu_lanes(recorder)
    copy = pickle.loads(pickle.dumps(session))
    copy.run(None, fed(0))
    assert recorder.take() == ()
    session.set_providers([CPU])
    check_answers(session, fed(0), model)
    assert len(recorder.take()) == 2 + 2 * len(session.plan.segments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_has_its_observers_even_if_the_parent_held_the_lock() -> None:
    recorder = EventRecorder()
    session, fed, _ = on_cpu_lanes(recorder)
    session.run(None, fed(0))
    recorder.take()
    with session._observers.events._lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                session.run(None, fed(0))
                code = 0 if len(recorder.take()) == 2 + 2 * len(session.plan.segments) else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("observers", [print, [3], {1: 2}])
def test_what_cannot_observe_is_refused(observers: Any) -> None:
    with pytest.raises(parallax.ConfigError, match="observers"):
        parallax.Options(observers=observers)
