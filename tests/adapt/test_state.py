"""What plans take in another state of the machine, and what runs tell of that state."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.adapt import (
    CPU_NARROW,
    CPU_WIDE,
    NOMINAL,
    HardwareState,
    MeteredRun,
    RunMeter,
    in_state,
    predict_ns,
    processor_of,
    processors_of,
    segment_costs_ns,
)
from parallax.engine import EventRecorder
from parallax.events import Iteration, RunAdmitted, RunEvent, SegmentEnded
from parallax.model import load_model
from parallax.schedule.placement import PLACERS, find_placement
from tests.planner.test_placers import BOARD, CPU, PHONE, SIZE, problem_of, two_chains
from tests.schedule.test_plan_json import make_plan, make_segment


def side_by_side() -> Any:
    """A segment of 3 ms on a device beside one of 2 ms on one core, then one of 1 ms on both cores."""
    segments = (
        make_segment(0, backend="gpu", width=0, lane=2, cost_ns=3_000_000),
        make_segment(1, predecessors=(), inputs=("x",), width=1, cost_ns=2_000_000),
        make_segment(2, inputs=("t0", "t1"), predecessors=(0, 1), width=2, cost_ns=1_000_000),
    )
    return make_plan(segments, cores=2, lanes=3)


def slowed(**factors: float) -> HardwareState:
    names = {"narrow": CPU_NARROW, "wide": CPU_WIDE, "gpu": "gpu"}
    return HardwareState(slowdowns={names[name]: factor for name, factor in factors.items()})


def test_processors_are_told_apart_by_backend_and_width() -> None:
    plan = side_by_side()
    assert [processor_of(segment) for segment in plan.segments] == ["gpu", CPU_NARROW, CPU_WIDE]
    assert processors_of(plan) == {"gpu", CPU_NARROW, CPU_WIDE}


@pytest.mark.parametrize(
    ("state", "ms"),
    [
        (NOMINAL, 4),
        (slowed(gpu=2), 7),
        (slowed(narrow=2, wide=1), 5),
        (slowed(narrow=1, wide=3), 6),
        (slowed(gpu=0.5), 3),
        (slowed(gpu=2, narrow=4, wide=2), 10),
    ],
)
def test_a_plan_is_simulated_with_what_each_processor_takes(state: HardwareState, ms: int) -> None:
    plan = side_by_side()
    assert predict_ns(plan, state) == ms * 1_000_000
    assert predict_ns(plan, NOMINAL, cost_ns=segment_costs_ns(plan, state)) == ms * 1_000_000


def test_a_problem_in_a_state_is_answered_for_that_state() -> None:
    problem = problem_of(load_model(two_chains()), PHONE, BOARD)
    placers = [PLACERS[name]() for name in ("by-cost", "greedy")]
    nominal = find_placement(problem, placers)
    assert nominal.best.plan.regions, "both chains are quicker on a device"
    useless = in_state(problem, NOMINAL.slowed(PHONE, 1e6).slowed(BOARD, 1e6))
    found = find_placement(useless, placers)
    assert found.best.plan.is_cpu_only
    assert found.cpu_only_ns == nominal.cpu_only_ns
    one = find_placement(in_state(problem, NOMINAL.slowed(PHONE, 1e6)), placers)
    assert {problem.devices[device].device for device in one.best.regions.device_of} == {BOARD}
    busy = in_state(problem, HardwareState(slowdowns={CPU_NARROW: 3.0, CPU_WIDE: 5.0}))
    assert find_placement(busy, placers).cpu_only_ns == pytest.approx(5 * nominal.cpu_only_ns, rel=0.01)
    by_width = dict(zip(busy.costs.widths, busy.costs.durations_ns, strict=True))
    before = dict(zip(problem.costs.widths, problem.costs.durations_ns, strict=True))
    assert sum(by_width[1]) == pytest.approx(3 * sum(before[1]), rel=0.01)
    assert in_state(problem, NOMINAL).costs == problem.costs


def metered(session: Any, feeds: dict[str, Any], *, runs: int) -> list[MeteredRun]:
    recorder = EventRecorder()
    session.add_observer(recorder)
    for _ in range(runs):
        session.run(None, feeds)
    session.remove_observer(recorder)
    meter = RunMeter()
    return [run for event in recorder.take() if (run := meter.read(event)) is not None]


def test_runs_tell_how_slow_each_processor_is() -> None:
    model = two_chains()
    session = parallax.InferenceSession(model, providers=[PHONE, CPU], split="always", threads=2)
    feeds = {"x": np.ones((SIZE, SIZE), np.float32)}
    runs = metered(session, feeds, runs=4)
    assert len(runs) == 4
    for run in runs:
        assert run.plan == session.plan
        assert set(run.segment_ns) == {segment.index for segment in session.plan.segments}
        assert run.duration_ns > 0
        assert set(run.ratios()) == processors_of(session.plan)
        costs = [2 * segment.cost_ns for segment in session.plan.segments]
        halves = run.ratios(costs)
        assert halves == {name: pytest.approx(ratio / 2) for name, ratio in run.ratios().items()}


def test_whole_models_are_metered_too() -> None:
    session = parallax.InferenceSession(two_chains(), providers=[CPU], threads=2)
    (run,) = metered(session, {"x": np.ones((SIZE, SIZE), np.float32)}, runs=1)
    assert set(run.segment_ns) == {0}
    assert run.ratios([run.segment_ns[0]]) == {CPU_WIDE: 1.0}
    assert run.ratios([0]) == {}, "without a prediction there is no ratio"


def test_runs_that_fail_are_not_counted() -> None:
    session = parallax.InferenceSession(two_chains(), providers=[PHONE, CPU], split="always", threads=2)
    feeds = {"x": np.ones((SIZE, SIZE), np.float32)}
    recorder = EventRecorder()
    session.add_observer(recorder)
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(parallax.ParallaxError):
        session.run(None, feeds, options)
    meter = RunMeter()
    assert [run for event in recorder.take() if (run := meter.read(event)) is not None] == []


def test_what_stood_in_for_a_failed_backend_is_not_counted() -> None:
    session = parallax.InferenceSession(two_chains(), providers=[PHONE, CPU], split="always", threads=2)
    recorder = EventRecorder()
    session.add_observer(recorder)
    session.run(None, {"x": np.ones((SIZE, SIZE), np.float32)})
    meter = RunMeter()
    runs = []
    for event in recorder.take():
        if isinstance(event, SegmentEnded) and event.backend == PHONE:
            event = replace(event, backend="cpu")
        found = meter.read(event)
        if found is not None:
            runs.append(found)
    (run,) = runs
    assert PHONE not in run.ratios()


def test_a_body_of_a_loop_is_not_a_run_of_its_own() -> None:
    session = parallax.InferenceSession(two_chains(), providers=[CPU], threads=2)
    recorder = EventRecorder()
    session.add_observer(recorder)
    session.run(None, {"x": np.ones((SIZE, SIZE), np.float32)})
    events = recorder.take()
    inside = [
        replace(event, run=event.run + 1, parent=iteration_of(event.run))
        for event in events
        if isinstance(event, RunEvent)
    ]
    meter = RunMeter()
    assert isinstance(events[0], RunAdmitted)
    assert all(meter.read(event) is None for event in inside)


def iteration_of(run: int) -> Iteration:
    return Iteration(run=run, segment=0, body="body", number=0)


def test_a_state_cannot_be_changed_through_what_it_was_made_of() -> None:
    factors = {"gpu": 2.0}
    state = HardwareState(slowdowns=MappingProxyType(dict(factors)))
    factors["gpu"] = 9.0
    assert state.slowdown("gpu") == 2.0
    assert NOMINAL.slowed("gpu", 2.0) == state
    assert dict(NOMINAL.slowdowns) == {}
