"""Modelled joules of simulated runs: what is busy is counted once, and copies are a core's."""

from __future__ import annotations

import pytest
from _joules import usage_of_run

from parallax.energy import Band, PowerModel
from parallax.schedule import simulate_plan
from tests.energy.test_model import MS, plan_of

POWER = PowerModel(
    static_w=Band(low=0.5, typical=1.0, high=2.0),
    core_w=Band(low=1.0, typical=2.0, high=3.0),
    device_w={"gpu": Band(low=3.0, typical=4.0, high=6.0)},
    joules_per_byte=Band(low=1e-11, typical=5e-11, high=1e-10),
)


def test_cores_count_by_width_and_copies_are_a_cores_and_not_the_devices() -> None:
    # 10 ms on the device beside 10 ms on two cores; 1 ms of the device's time is copying.
    run = simulate_plan(plan_of(in_turn=False))
    busy = usage_of_run(run, "gpu", transfer_ns=MS, touched_bytes=7)
    assert (busy.makespan_ns, busy.core_ns, busy.device_ns) == (run.makespan_ns, 21 * MS, {"gpu": 9 * MS})
    assert busy.energy(POWER).cores.typical == pytest.approx(2.0 * 0.021)
    assert busy.energy(POWER).devices.typical == pytest.approx(4.0 * 0.009)
