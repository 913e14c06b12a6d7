"""Verdicts: what ratios show, and the words for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.cli._verdict import LEAST_SAMPLES, Outcome, judge, speed


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1 / 1.3, "1.30x faster"),
        (1.3, "1.30x slower"),
        (1.0, "as fast"),
        (0.999, "as fast"),
        (1.004, "as fast"),
        (0.5, "2.00x faster"),
        (200.0, "200x slower"),
    ],
)
def test_ratios_are_said_as_factors_of_speed(ratio: float, words: str) -> None:
    assert speed(ratio) == words


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [
        ([0.7] * 10, Outcome.FASTER),
        ([1.4] * 10, Outcome.SLOWER),
        ([0.99, 1.01] * 10, Outcome.SAME),
        ([0.7, 1.4] * 10, Outcome.INCONCLUSIVE),
        ([0.5] * 5, Outcome.INCONCLUSIVE),
    ],
)
def test_what_ratios_show(ratios: list[float], outcome: Outcome) -> None:
    assert judge(ratios).outcome is outcome


def test_too_few_rounds_say_how_many_there_were() -> None:
    verdict = judge([0.5] * 5)
    assert verdict.interval is None
    assert verdict.why == f"5 of the {LEAST_SAMPLES} rounds that an interval needs were measured"


def test_an_obstacle_stands_against_any_conclusion() -> None:
    verdict = judge([0.5] * 20, obstacle="other programs used 2.0 of 2 cores")
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.interval == (0.5, 0.5)
    said = verdict.sentence("Parallax", "ONNX Runtime")
    assert said == (
        "inconclusive: Parallax against ONNX Runtime: 2.00x faster (95% interval of 20 rounds); "
        "other programs used 2.0 of 2 cores"
    )


def test_a_sentence_gives_the_interval() -> None:
    ratios = [1 / 1.3, 1 / 1.25, 1 / 1.36] * 10
    said = judge(ratios).sentence("Parallax", "ONNX Runtime")
    assert said == "Parallax is 1.30x faster than ONNX Runtime (95% interval: 1.25x to 1.36x faster; 30 rounds)"


def test_noise_larger_than_the_difference_is_named() -> None:
    said = judge([0.8, 1.2] * 10).sentence("Parallax", "ONNX Runtime")
    assert said.startswith("inconclusive: Parallax against ONNX Runtime: anything from 1.20x slower to 1.25x faster")
    assert said.endswith("the noise is larger than the difference")


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60))
def test_a_verdict_never_says_more_than_its_interval(ratios: list[float]) -> None:
    verdict = judge(ratios)
    if verdict.outcome is Outcome.FASTER:
        assert verdict.interval is not None
        assert verdict.ratio <= verdict.interval[1] < 1
    elif verdict.outcome is Outcome.SLOWER:
        assert verdict.interval is not None
        assert 1 < verdict.interval[0] <= verdict.ratio
    elif verdict.outcome is Outcome.SAME:
        assert verdict.interval is not None
        assert 0.98 <= verdict.interval[0] <= verdict.interval[1] <= 1.02
    else:
        assert verdict.why
    assert verdict.sentence("a", "b")


def test_two_equal_ones_are_rarely_called_different() -> None:
    generator = np.random.default_rng(5)
    outcomes = [judge(list(np.exp(generator.normal(0, 0.3, size=30)))).outcome for _ in range(400)]
    wrong = sum(outcome in (Outcome.FASTER, Outcome.SLOWER) for outcome in outcomes)
    assert wrong <= 0.05 * 400 + 8
