"""Modelled energy: static power for as long as a run lasts, busy power for what computes, and the band of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.energy import Band, ModelledEnergy, PowerModel, Usage
from parallax.errors import ConfigError
from parallax.schedule import Plan, simulate_plan
from tests.schedule.test_plan_json import make_plan, make_segment

MS = 1_000_000
POWER = PowerModel(
    static_w=Band(low=0.5, typical=1.0, high=2.0),
    core_w=Band.exactly(2.0),
    device_w={"gpu": Band(low=3.0, typical=4.0, high=6.0)},
    joules_per_byte=Band.exactly(1e-10),
)


def plan_of(*, in_turn: bool) -> Plan:
    """10 ms on a device and 10 ms on two cores; side by side, or one after the other."""
    segments = (
        make_segment(0, backend="gpu", width=0, lane=1, cost_ns=10 * MS),
        make_segment(1, predecessors=(0,) if in_turn else (), inputs=("x",), width=2, cost_ns=10 * MS),
    )
    return make_plan(segments, cores=2, lanes=2)


def of_run(plan: Plan, touched_bytes: int = 0) -> ModelledEnergy:
    usage = Usage.of_plan(plan, makespan_ns=simulate_plan(plan).makespan_ns, touched_bytes=touched_bytes)
    return usage.energy(POWER)


def test_it_is_the_sum_of_what_is_drawn() -> None:
    plan = plan_of(in_turn=False)
    energy = of_run(plan, touched_bytes=10**8)
    assert energy.static == Band(low=0.005, typical=0.01, high=0.02)
    assert energy.cores.typical == pytest.approx(0.04)
    assert energy.devices.low == pytest.approx(0.03)
    assert energy.devices.high == pytest.approx(0.06)
    assert energy.memory.typical == pytest.approx(0.01)
    assert energy.total.typical == pytest.approx(0.01 + 0.04 + 0.04 + 0.01)


def test_running_side_by_side_saves_static_power_only() -> None:
    apart, beside = plan_of(in_turn=True), plan_of(in_turn=False)
    first, second = map(of_run, (apart, beside))
    assert first.static.typical == pytest.approx(2 * second.static.typical)
    assert (first.cores, first.devices) == (second.cores, second.devices)


def test_a_device_of_unknown_power_is_refused() -> None:
    plan = plan_of(in_turn=False)
    with pytest.raises(ConfigError, match="power of gpu is not known"):
        Usage.of_plan(plan, makespan_ns=1).energy(replace(POWER, device_w={}))


@pytest.mark.parametrize("figures", [(-1, 0, 1), (2, 1, 3), (1, 3, 2)])
def test_a_band_is_in_order(figures: tuple[float, float, float]) -> None:
    low, typical, high = figures
    with pytest.raises(ConfigError, match="a band from"):
        Band(low=low, typical=typical, high=high)


@given(factor=st.floats(0, 1e6), figures=st.tuples(*[st.floats(0, 1e6)] * 3))
def test_a_multiple_of_a_band_is_one(factor: float, figures: tuple[float, float, float]) -> None:
    low, typical, high = sorted(figures)
    band = Band(low=low, typical=typical, high=high)
    assert (band.times(factor) + band).low <= (band.times(factor) + band).high
