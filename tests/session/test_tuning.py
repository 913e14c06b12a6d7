"""The rule by which a measured plan is kept, on series made up for the purpose."""

from __future__ import annotations

import numpy as np
import pytest

from parallax.planner._measuring import difference, pick_winner, promising

STEADY = [100] * 25


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ([50] * 25, 1),
        ([96] * 25, 0),
        ([100] * 25, 0),
        ([150] * 25, 0),
        ([90] * 13 + [150] * 12, 0),
    ],
    ids=["clear", "within-noise", "equal", "slower", "lucky-rounds"],
)
def test_another_plan_is_kept_only_where_it_clearly_wins(other: list[int], kept: int) -> None:
    assert pick_winner([STEADY, other]) == kept


def test_another_backend_wins_by_less_where_most_rounds_show_it() -> None:
    slightly = [97] * 25
    assert pick_winner([STEADY, slightly]) == 0
    assert pick_winner([STEADY, slightly], whole=[1]) == 1
    assert pick_winner([STEADY, [97] * 20 + [101] * 5], whole=[1]) == 1
    assert pick_winner([STEADY, [97] * 15 + [101] * 10], whole=[1]) == 1
    assert pick_winner([STEADY, [97] * 14 + [101] * 11], whole=[1]) == 0
    assert pick_winner([STEADY, [99] * 25], whole=[1]) == 0


def test_two_clusters_that_only_look_like_a_gain_are_not_one() -> None:
    default = [110, 110, 110, 350, 350] * 5
    other = [104] * 12 + [300] * 13
    assert pick_winner([default, other]) == 0


def test_what_is_as_quick_and_far_steadier_is_kept() -> None:
    default = [100, 400, 100, 400, 110] * 5
    assert pick_winner([default, [105] * 25]) == 1
    assert pick_winner([[105] * 25, default]) == 0


def test_the_best_of_several_is_kept() -> None:
    assert pick_winner([STEADY, [80] * 25, [60] * 25, [70] * 25]) == 2


def test_outputs_are_compared_by_shape_type_and_magnitude() -> None:
    want = [np.array([1.0, -1000.0], np.float32)]
    assert difference(want, [want[0].copy()]) == ""
    assert difference(want, [want[0] + np.float32(1e-3)]) == ""
    assert "beyond" in difference(want, [want[0] + np.float32(1.0)])
    assert "float64" in difference(want, [want[0].astype(np.float64)])
    assert "differs" in difference([np.array([1, 2])], [np.array([1, 3])])


def test_a_whole_model_elsewhere_that_only_wins_too_few_rounds_is_measured_once_more() -> None:
    doubtful = [93] * 14 + [110] * 11
    assert pick_winner([STEADY, doubtful], whole=[1]) == 0
    assert promising([STEADY, doubtful], [1]) == 1
    assert promising([STEADY, doubtful], []) == 0
    assert promising([STEADY, [99] * 25], [1]) == 0
    assert promising([STEADY, doubtful, [90] * 25], [1, 2]) == 2
