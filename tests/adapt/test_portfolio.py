"""Plans kept ready: the fewest regrets that their number and their memory allow."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.adapt import CPU_NARROW, CPU_WIDE, choose_portfolio, crowded_states, state_grid
from parallax.errors import ConfigError


def tables(most: int = 7) -> st.SearchStrategy[list[list[int]]]:
    return st.integers(1, 5).flatmap(
        lambda states: st.lists(
            st.lists(st.integers(1, 10**9), min_size=states, max_size=states), min_size=1, max_size=most
        )
    )


def mean_regret(times: list[list[int]], chosen: tuple[int, ...]) -> float:
    best = [min(column) for column in zip(*times, strict=True)]
    found = [min(times[index][state] for index in chosen) for state in range(len(best))]
    return math.exp(sum(math.log(ns / least) for ns, least in zip(found, best, strict=True)) / len(best))


@given(times=tables(), most=st.integers(1, 3))
def test_no_other_choice_of_as_many_plans_regrets_less(times: list[list[int]], most: int) -> None:
    portfolio = choose_portfolio(times, most=most)
    assert 0 in portfolio.chosen
    assert len(portfolio.chosen) <= most
    assert portfolio.mean_regret == pytest.approx(mean_regret(times, portfolio.chosen))
    assert 1 <= portfolio.mean_regret <= portfolio.worst_regret * (1 + 1e-9)
    others = range(1, len(times))
    for count in range(min(most, len(times))):
        for chosen in itertools.combinations(others, count):
            assert portfolio.mean_regret <= mean_regret(times, (0, *chosen)) * (1 + 1e-6)


@given(times=tables(), sizes=st.lists(st.integers(0, 100), min_size=7, max_size=7), bound=st.integers(0, 200))
def test_plans_beyond_the_first_stay_within_the_bound(times: list[list[int]], sizes: list[int], bound: int) -> None:
    portfolio = choose_portfolio(times, sizes_bytes=sizes[: len(times)], bound_bytes=bound)
    assert sum(sizes[index] for index in portfolio.chosen if index) <= bound
    assert 0 in portfolio.chosen


def test_a_plan_that_helps_nowhere_is_not_kept() -> None:
    assert choose_portfolio([[10, 10], [10, 11], [12, 10]]).chosen == (0,)


def test_many_candidates_are_chosen_one_after_the_other() -> None:
    states = 40
    times = [[100] * states] + [[50 if state == index else 200 for state in range(states)] for index in range(states)]
    portfolio = choose_portfolio(times, most=6)
    assert len(portfolio.chosen) == 6
    assert portfolio.mean_regret == pytest.approx(2 ** ((states - 5) / states))


def test_there_must_be_a_plan_and_a_state() -> None:
    for times in ([], [[]]):
        with pytest.raises(ConfigError, match="no plan"):
            choose_portfolio(times)
    with pytest.raises(ConfigError, match="no plan"):
        choose_portfolio([[1]], most=0)


def test_the_grid_begins_with_the_nominal_state_and_holds_each_state_once() -> None:
    states = state_grid(["gpu"])
    assert len(states) == 12
    assert dict(states[0].slowdowns) == {}
    assert len({tuple(sorted(state.slowdowns.items())) for state in states}) == 12
    # Devices are slowed one at a time.
    assert len(state_grid(["gpu", "npu"])) == 3 * (1 + 3 + 3)
    assert len(state_grid([])) == 3


def test_crowds_come_with_every_slow_down_of_a_device() -> None:
    states = crowded_states(["gpu"], device_factors=(1.0, 4.0))
    assert len(set(map(str, states))) == len(states) == 4
    assert {state.slowdown("gpu") for state in states} == {1.0, 4.0}
    assert states[: len(crowded_states())] == crowded_states()
    for state in states:
        assert state.slowdown(CPU_WIDE) > state.slowdown(CPU_NARROW) >= 1
