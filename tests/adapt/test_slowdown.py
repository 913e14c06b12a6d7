"""The estimated slow-down: it follows, is not led astray by one slow run, and goes over to a jump at once."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.adapt import CPU_NARROW, CPU_WIDE, NOMINAL, HardwareState, Slowdown, SlowdownEstimator
from parallax.errors import ConfigError
from tests.adapt._recorded import DEVICE, NARROW, WIDE


def after(ratios: list[float], start: Slowdown | None = None) -> Slowdown:
    estimate = start or Slowdown()
    for ratio in ratios:
        estimate = estimate.updated(ratio)
    return estimate


@given(level=st.floats(0.1, 50), seed=st.integers(0, 1000))
def test_it_comes_to_the_level_of_noisy_runs(level: float, seed: int) -> None:
    noise = random.Random(seed)
    estimate = after([level * noise.gauss(1, 0.03) for _ in range(40)])
    assert estimate.value == pytest.approx(level, rel=0.06)


def test_the_first_run_decides_nearly_alone() -> None:
    assert after([4.0]).value == pytest.approx(4.0, rel=0.05)


def test_one_slow_run_changes_nothing() -> None:
    nominal = after([1.0] * 20)
    assert after([8.0, 1.0, 1.0], nominal).value == pytest.approx(1.0, rel=0.01)
    # Neither do two that are far off in opposite directions.
    assert after([8.0, 0.1, 1.0], nominal).value == pytest.approx(1.0, rel=0.01)


@given(seed=st.integers(0, 1000))
def test_a_change_is_suspected_from_the_first_run_and_not_any_more_when_runs_are_as_before(seed: int) -> None:
    noise = random.Random(seed)
    steady = after([noise.gauss(1, 0.03) for _ in range(40)])
    assert not steady.is_suspected
    slow = steady.updated(4.0)
    assert slow.is_suspected
    assert not after([1.0] * 5, slow).is_suspected
    assert not after([4.0] * 10, slow).is_suspected  # it has changed, and is believed


@given(factor=st.sampled_from([0.2, 0.25, 2.0, 4.0, 8.0]))
def test_the_third_run_after_a_jump_is_believed(factor: float) -> None:
    nominal = after([1.0] * 20)
    assert after([factor] * 2, nominal).value == nominal.value
    assert after([factor] * 3, nominal).value == pytest.approx(factor, rel=0.05)
    back = after([factor] * 20, nominal)
    assert after([1.0] * 3, back).value == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("recorded", [WIDE, NARROW, DEVICE], ids=["wide", "narrow", "device"])
def test_noisy_runs_are_no_changes_of_the_machine(recorded: tuple[float, ...]) -> None:
    estimate, changes, values = after([statistics.median(recorded)] * 10), 0, list[float]()
    for ratio in recorded:
        before, estimate = estimate.runs, estimate.updated(ratio)
        changes += estimate.runs < before
        values.append(estimate.value)
    assert changes <= 3
    mean = statistics.geometric_mean(recorded)
    assert all(mean / 1.5 < value < 1.5 * mean for value in values[30:])
    # The nominal state is seen again soon.
    for _ in range(20):
        estimate = estimate.updated(1.0)
    assert estimate.value == pytest.approx(1.0, rel=0.25)


def test_slow_drift_is_followed_without_a_jump() -> None:
    estimate = after([1.0] * 20)
    level = 1.0
    for _ in range(100):
        level *= 1.01
        estimate = estimate.updated(level)
        assert estimate.outlier == 0
    assert estimate.value == pytest.approx(level, rel=0.1)


@given(st.lists(st.floats(1e-3, 1e3), max_size=60))
def test_it_stays_a_number(ratios: list[float]) -> None:
    estimate = after(ratios)
    assert 0 < estimate.value < math.inf
    assert 0 < estimate.variance < math.inf
    if ratios:
        assert min(1.0, *ratios) * 0.999 <= estimate.value <= max(1.0, *ratios) * 1.001


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="times its prediction"):
        Slowdown().updated(ratio)


def test_an_estimator_gives_the_state_of_all_processors() -> None:
    estimator = SlowdownEstimator()
    for _ in range(5):
        estimator.update({CPU_WIDE: 2.0, "emulated:pixel-6-gpu": 4.0})
    state = estimator.state(free_cores=1.5)
    assert state.slowdown(CPU_WIDE) == pytest.approx(2.0, rel=0.02)
    assert state.slowdown("emulated:pixel-6-gpu") == pytest.approx(4.0, rel=0.02)
    assert state.slowdown(CPU_NARROW) == state.slowdown(CPU_WIDE), "the same cores, as long as nothing else is known"
    assert state.slowdown("another") == 1.0
    assert state.free_cores == 1.5
    estimator.forget(CPU_WIDE)
    assert estimator.state().slowdown(CPU_WIDE) == 1.0
    assert estimator.estimate("emulated:pixel-6-gpu").runs == 5


def test_a_state_refuses_what_is_no_factor() -> None:
    with pytest.raises(ConfigError, match="slow-down of 0"):
        HardwareState(slowdowns={"cpu": 0.0})
    with pytest.raises(ConfigError, match="slow-down of nan"):
        NOMINAL.slowed("cpu", math.nan)
