"""Intervals of what benchmarks measure: they hold what they are to hold, and bounds that they cross are not shown."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from _figures import Figure, Verdict
from _intervals import (
    figure_of_medians,
    geometric_mean,
    interval_of,
    mean_reduction,
    median_interval,
    paired,
    rows_that_keep,
)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (9, 2), (20, 6), (30, 10), (100, 40)])
def test_interval_of_a_median_is_that_of_the_sign_test(count: int, rank: int) -> None:
    # The ranks are those of published tables of the sign test at 5%, two-sided.
    assert median_interval(list(range(1, count + 1))) == (rank, count + 1 - rank)


def test_too_few_samples_have_no_interval() -> None:
    assert median_interval([1.0] * 5) is None


def test_interval_of_a_median_holds_the_true_one_in_nineteen_of_twenty() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        interval = median_interval(list(generator.exponential(size=20)))
        assert interval is not None
        held += interval[0] <= math.log(2) <= interval[1]
    assert held >= 940


def test_runs_that_differ_make_the_interval_wide_however_many_rounds_they_have() -> None:
    alike = [[1.0 + 0.001 * number for number in range(20)] for _ in range(3)]
    apart = [[value * factor for value in run] for run, factor in zip(alike, (0.8, 1.0, 1.3), strict=True)]
    narrow, wide = interval_of([alike], geometric_mean), interval_of([apart], geometric_mean)
    assert narrow is not None
    assert wide is not None
    assert wide[1] - wide[0] > 10 * (narrow[1] - narrow[0])


def test_statistics_over_rows_are_of_the_rows_medians() -> None:
    rows = [[[0.5] * 6, [0.5] * 6], [[0.7] * 12]]
    figure = figure_of_medians("a", "a", rows, mean_reduction, unit="percent", bound=0.3, at_least=True)
    assert figure.value == pytest.approx(0.4)
    assert figure.interval == (pytest.approx(0.4), pytest.approx(0.4))
    assert figure.verdict is Verdict.MET


def test_rounds_are_compared_with_rounds_of_their_own() -> None:
    assert statistics.median(paired([1.0, 20.0, 3.0], [2.0, 40.0, 6.0])) == 0.5


@pytest.mark.parametrize(
    ("interval", "at_least", "verdict"),
    [
        ((0.9, 1.0), False, Verdict.MET),
        ((0.9, 1.1), False, Verdict.NOT_SHOWN),
        ((1.01, 1.1), False, Verdict.MISSED),
        ((1.0, 1.1), True, Verdict.MET),
        ((0.9, 1.1), True, Verdict.NOT_SHOWN),
        ((0.9, 0.99), True, Verdict.MISSED),
        (None, False, Verdict.NOT_SHOWN),
    ],
)
def test_verdict_is_that_of_the_whole_interval(
    interval: tuple[float, float] | None, at_least: bool, verdict: Verdict
) -> None:
    figure = Figure(name="a", what="a", value=1.0, unit="ratio", interval=interval, bound=1.0, at_least=at_least)
    assert figure.verdict is verdict


def test_rows_that_keep_their_bound_are_counted_with_those_that_might() -> None:
    rows = {
        name: Figure(name=name, what=name, value=1.0, unit="ratio", interval=interval, bound=1.0)
        for name, interval in (("good", (0.8, 0.9)), ("open", (0.9, 1.1)), ("bad", (1.1, 1.2)))
    }
    figure = rows_that_keep("a", "a", rows)
    assert (figure.value, figure.interval, figure.bound) == (1, (1, 2), 3)
    assert figure.verdict is Verdict.MISSED
    assert figure.note == "missed: bad; not shown: open"
    assert rows_that_keep("a", "a", {name: rows[name] for name in ("good", "open")}).verdict is Verdict.NOT_SHOWN
