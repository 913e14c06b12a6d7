"""Runs compared by modelled joules: what holds at the corners of the bands holds for all constants within them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.energy import Band, EnergyComparison, PowerModel, Usage
from parallax.errors import ConfigError

MS = 1_000_000
POWER = PowerModel(
    static_w=Band(low=0.5, typical=1.0, high=2.0),
    core_w=Band(low=1.0, typical=2.0, high=3.0),
    device_w={"gpu": Band(low=3.0, typical=4.0, high=6.0), "npu": Band(low=0.5, typical=1.0, high=9.0)},
    joules_per_byte=Band(low=1e-11, typical=5e-11, high=1e-10),
)


def bands_of(power: PowerModel) -> list[Band]:
    return [power.static_w, power.core_w, *power.device_w.values(), power.joules_per_byte]


def exactly(power: PowerModel, values: tuple[float, ...]) -> PowerModel:
    """The same machine with these constants, in the order of `bands_of`."""
    static_w, core_w, *device_w, per_byte = (Band.exactly(value) for value in values)
    return PowerModel(
        static_w=static_w,
        core_w=core_w,
        device_w=dict(zip(power.device_w, device_w, strict=True)),
        joules_per_byte=per_byte,
    )


def cost(usage: Usage, power: PowerModel, *, with_delay: bool = False) -> float:
    """Joules, or joules x seconds, of a machine whose constants are known: by the model, not by the comparison."""
    joules = usage.energy(power).total.typical
    return joules * usage.makespan_ns / 1e9 if with_delay else joules


def is_never_above(usage: Usage, baselines: list[Usage], power: PowerModel, *, with_delay: bool = False) -> bool:
    """Whether a run costs no more than any baseline at any corner of the bands."""
    for corner in itertools.product(*((band.low, band.high) for band in bands_of(power))):
        exact = exactly(power, corner)
        least = min(cost(other, exact, with_delay=with_delay) for other in baselines)
        if cost(usage, exact, with_delay=with_delay) > least * (1 + 1e-8):
            return False
    return True


times = st.integers(1, 10**9)
usages = st.builds(
    lambda makespan, core, gpu, npu, touched: Usage(
        makespan_ns=makespan, core_ns=core, device_ns={"gpu": gpu, "npu": npu}, touched_bytes=touched
    ),
    times,
    times,
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    times,
)
anywhere = st.tuples(*[st.floats(0, 1)] * 5)


def at(where: tuple[float, ...]) -> PowerModel:
    """The machine with constants so far from the low to the high end of their bands."""
    values = [band.low + share * (band.high - band.low) for band, share in zip(bands_of(POWER), where, strict=True)]
    return exactly(POWER, tuple(values))


@given(run=usages, baselines=st.lists(usages, min_size=1, max_size=4), where=anywhere, with_delay=st.booleans())
def test_no_constants_within_the_bands_make_a_run_cost_more_than_its_most_share(
    run: Usage, baselines: list[Usage], where: tuple[float, ...], with_delay: bool
) -> None:
    comparison = EnergyComparison(POWER, baselines, with_delay=with_delay)
    exact = at(where)
    least = min(cost(other, exact, with_delay=with_delay) for other in baselines)
    assert cost(run, exact, with_delay=with_delay) <= comparison.most_share(run) * least * (1 + 1e-8)
    assert is_never_above(run, baselines, POWER, with_delay=with_delay) == (comparison.most_share(run) <= 1)


@given(runs=st.lists(usages, min_size=1, max_size=6), with_delay=st.booleans())
def test_what_ranks_first_is_never_above_a_yardstick_if_anything_is(runs: list[Usage], with_delay: bool) -> None:
    baselines = runs[:3]
    comparison = EnergyComparison(POWER, baselines, with_delay=with_delay)
    best = min(runs, key=comparison.rank)
    sound = [run for run in runs if is_never_above(run, baselines, POWER, with_delay=with_delay)]
    if sound:
        assert is_never_above(best, baselines, POWER, with_delay=with_delay)
        least = min(cost(run, exactly_typical(), with_delay=with_delay) for run in sound)
        assert cost(best, exactly_typical(), with_delay=with_delay) == pytest.approx(least)
    else:
        assert comparison.most_share(best) == min(map(comparison.most_share, runs)) > 1


def exactly_typical() -> PowerModel:
    return exactly(POWER, tuple(band.typical for band in bands_of(POWER)))


@given(runs=st.lists(usages, min_size=1, max_size=6), where=anywhere, with_delay=st.booleans())
def test_with_known_constants_the_first_is_below_every_yardstick(
    runs: list[Usage], where: tuple[float, ...], with_delay: bool
) -> None:
    comparison = EnergyComparison(at(where), runs, with_delay=with_delay)
    assert comparison.most_share(min(runs, key=comparison.rank)) == 1


@given(run=usages, other=usages, where=anywhere)
def test_no_choice_of_constants_leaves_the_band_of_a_share(run: Usage, other: Usage, where: tuple[float, ...]) -> None:
    exact = at(where)
    band = EnergyComparison(POWER, [run]).share_of(run, other)
    share = cost(run, exact) / cost(other, exact)
    assert band.low * (1 - 1e-9) <= share <= band.high * (1 + 1e-9)


def test_a_run_is_exactly_its_own_share() -> None:
    run = Usage(makespan_ns=MS, core_ns=2 * MS, device_ns={"gpu": MS}, touched_bytes=10**6)
    share = EnergyComparison(POWER, [run]).share_of(run, run)
    assert (share.low, share.typical, share.high) == pytest.approx((1.0, 1.0, 1.0))


def test_the_product_with_the_delay_prefers_what_is_quicker() -> None:
    slow = Usage(makespan_ns=10 * MS, core_ns=10 * MS)
    quick = Usage(makespan_ns=6 * MS, core_ns=12 * MS)
    power = PowerModel(static_w=Band.exactly(0.0), core_w=Band.exactly(1.0))
    assert min((slow, quick), key=EnergyComparison(power, [slow]).rank) is slow
    assert min((slow, quick), key=EnergyComparison(power, [slow], with_delay=True).rank) is quick


def test_a_machine_that_draws_nothing_leaves_nothing_to_compare() -> None:
    power = PowerModel(static_w=Band.exactly(0.0), core_w=Band(low=0.0, typical=1.0, high=2.0))
    idle, busy = Usage(makespan_ns=MS, core_ns=0), Usage(makespan_ns=MS, core_ns=MS)
    assert EnergyComparison(power, [idle]).most_share(idle) == 1
    assert EnergyComparison(power, [idle]).most_share(busy) == float("inf")


def test_nothing_to_compare_with_and_unknown_devices_are_refused() -> None:
    run = Usage(makespan_ns=MS, core_ns=MS, device_ns={"tpu": MS})
    with pytest.raises(ConfigError, match="no baseline"):
        EnergyComparison(POWER, [])
    with pytest.raises(ConfigError, match="power of tpu is not known"):
        EnergyComparison(POWER, [run])


def test_a_slower_machine_is_busy_longer_and_moves_no_more_bytes() -> None:
    run = Usage(makespan_ns=MS, core_ns=2 * MS, device_ns={"gpu": 3 * MS}, touched_bytes=7)
    slower = run.times(2)
    assert (slower.makespan_ns, slower.core_ns, dict(slower.device_ns)) == (2 * MS, 4 * MS, {"gpu": 6 * MS})
    assert slower.touched_bytes == 7
