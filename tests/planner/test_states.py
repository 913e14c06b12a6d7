"""Plans for other states of the machine: which there are, what they cost in the nominal one, and that they run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest

from parallax.adapt import CPU_NARROW, CPU_WIDE, NOMINAL, HardwareState, ReadyPlan, choose_portfolio, state_grid
from parallax.backends import open_backend
from parallax.backends.ort import RuntimeOptions
from parallax.engine import compile_plan
from parallax.model import load_model
from parallax.planner import PlanDevice, PlanRequest, plan_model, plans_for_states
from parallax.planner._candidates import host_machine
from tests.planner.test_placers import BOARD, CPU, PHONE, SIZE, two_chains

MACHINE = host_machine(2)


def request_of(*devices: str) -> PlanRequest:
    opened = {name: PlanDevice(backend=open_backend(name)) for name in devices}
    return PlanRequest(model=load_model(two_chains()), cores=2, devices=opened)


def found(request: PlanRequest, states: Sequence[HardwareState]) -> list[ReadyPlan]:
    return list(plans_for_states(request, plan_model(request).plan, states))


def test_a_slow_device_has_a_plan_without_it() -> None:
    plans = found(request_of(PHONE), state_grid([PHONE]))
    assert plans[0].label == "the plan in force"
    slow = NOMINAL.slowed(PHONE, 1000.0)
    best = min(plans, key=lambda plan: plan.predict_ns(slow, MACHINE))
    assert all(segment.backend == "cpu" for segment in best.plan.segments)
    busy = HardwareState(slowdowns={CPU_NARROW: 1000.0, CPU_WIDE: 1000.0})
    there = min(plans, key=lambda plan: plan.predict_ns(busy, MACHINE))
    assert {segment.backend for segment in there.plan.segments} == {PHONE}


def test_the_plan_for_a_state_is_no_worse_in_it_than_that_of_the_nominal_one() -> None:
    states = state_grid([PHONE])
    plans = found(request_of(PHONE), states)
    for state in states:
        times = [plan.predict_ns(state, MACHINE) for plan in plans]
        # Costs are rounded, and joined segments start anew in another state: a hundredth.
        assert min(times) <= times[0] * 1.01
    table = [[plan.predict_ns(state, MACHINE) for state in states] for plan in plans]
    portfolio = choose_portfolio(table)
    assert portfolio.mean_regret < 1.1


def test_plans_are_given_once() -> None:
    plans = found(request_of(PHONE), [NOMINAL] * 4)
    keys = {tuple((segment.nodes, segment.backend, segment.width) for segment in plan.plan.segments) for plan in plans}
    assert len(keys) == len(plans)


def test_without_devices_there_are_the_widths_of_the_whole_model() -> None:
    plans = found(request_of(), state_grid([]))
    widths = [plan.plan.segments[0].width for plan in plans if plan.plan.is_whole]
    assert sorted(widths) == [1, 2]
    for plan in plans:
        assert all(ns > 0 for ns in plan.cost_ns)
    # Where a competitor has one of two cores, one thread waits for nobody.
    crowded = HardwareState(slowdowns={CPU_NARROW: 1.0, CPU_WIDE: 2.5})
    best = min(plans, key=lambda plan: plan.predict_ns(crowded, MACHINE))
    assert best.plan.segments[0].width == 1


@pytest.mark.parametrize("devices", [(PHONE,), (PHONE, BOARD)])
def test_every_plan_gives_the_runtimes_answer(devices: tuple[str, ...]) -> None:
    request = request_of(*devices)
    fed = {"x": np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)}
    (want,) = onnxruntime.InferenceSession(two_chains(), providers=[CPU]).run(None, fed)
    plans = found(request, state_grid(devices)[::3])
    assert len(plans) >= 2
    for plan in plans:
        executor = compile_plan(request.model, plan.plan, RuntimeOptions(), backends=request.open_backends)
        feeds = {"x": onnxruntime.OrtValue.ortvalue_from_numpy(fed["x"])._get_c_value()}
        (got,) = executor.run(feeds, ["y"])
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4)
