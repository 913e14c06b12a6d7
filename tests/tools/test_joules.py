"""Modelled joules of simulated runs: what is busy is counted once, and shares hold whatever the constants are."""

from __future__ import annotations

import pytest
from _joules import Busy, share_of
from hypothesis import given
from hypothesis import strategies as st

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
    busy = Busy.of_run(run, transfer_ns=MS, touched_bytes=7)
    assert (busy.makespan_ns, busy.core_ns, busy.device_ns) == (run.makespan_ns, 21 * MS, 9 * MS)
    assert busy.energy(POWER).cores.typical == pytest.approx(2.0 * 0.021)
    assert busy.energy(POWER).devices.typical == pytest.approx(4.0 * 0.009)


def test_a_run_is_exactly_its_own_share() -> None:
    busy = Busy(makespan_ns=MS, core_ns=2 * MS, device_ns=MS, touched_bytes=10**6)
    share = share_of(busy, busy, POWER)
    assert (share.low, share.typical, share.high) == pytest.approx((1.0, 1.0, 1.0))


times = st.integers(1, 10**9)
runs = st.builds(Busy, makespan_ns=times, core_ns=times, device_ns=times, touched_bytes=times)
within = st.tuples(*[st.floats(0, 1)] * 4)


@given(run=runs, other=runs, where=within)
def test_no_choice_of_constants_leaves_the_band(run: Busy, other: Busy, where: tuple[float, ...]) -> None:
    bands = (POWER.static_w, POWER.core_w, POWER.device_w["gpu"], POWER.joules_per_byte)
    chosen = [Band.exactly(band.low + at * (band.high - band.low)) for band, at in zip(bands, where, strict=True)]
    power = PowerModel(static_w=chosen[0], core_w=chosen[1], device_w={"gpu": chosen[2]}, joules_per_byte=chosen[3])
    share = run.energy(power).total.typical / other.energy(power).total.typical
    band = share_of(run, other, POWER)
    assert band.low * (1 - 1e-9) <= share <= band.high * (1 + 1e-9)
