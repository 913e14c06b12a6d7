"""The demo of gains: its parts on made-up figures, and the whole of it."""

from __future__ import annotations

import numpy as np
import pytest

from examples import gains


def test_a_comparison_says_which_way_it_went_and_how_surely() -> None:
    assert gains.compared([1.2, 1.3, 1.4], [1.0] * 3) == "1.30x faster (half of the rounds between 1.20 and 1.40)"
    assert gains.compared([1.0] * 3, [1.2, 1.3, 1.4]).startswith("1.30x slower")
    assert gains.compared([0.5, 1.3, 2.0], [1.0] * 3).startswith("inconclusive: from 2.00x slower to 2.00x faster")


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = gains.in_turn({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert order == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_answers_are_the_same_up_to_the_last_digits() -> None:
    one = np.array([1.0, 100.0], np.float32)
    assert gains.same([one], [one + np.float32(1e-3)])
    assert not gains.same([one], [one + np.float32(1.0)])
    assert not gains.same([one], [one[:1]])


@pytest.mark.slow
def test_the_demo_shows_both_gains_and_right_answers(capsys: pytest.CaptureFixture[str]) -> None:
    status = gains.main([])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "answers: the same as ONNX Runtime's" in printed
    for word in ("onnxruntime:", "parallax:", "compiled into a bundle", gains.DEVICE, "all that it takes there"):
        assert word in printed
