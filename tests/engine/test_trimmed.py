"""Feeds are cut where their mask is ones and then zeros, and left as they are everywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parallax.engine._trimmed import fill_outputs, trim_feeds
from parallax.partition.padding import PaddedOutput, Trimming
from parallax.partition.padding._trimming import CutInput

TRIMMING = Trimming(
    mask="mask",
    inputs=(CutInput(name="ids", axes=(1,)), CutInput(name="mask", axes=(1,)), CutInput(name="pairs", axes=(0, 1))),
    outputs=(PaddedOutput(name="y", axes=(1,), value="-1.5"),),
    shortest=1,
    longest=None,
)


def feeds(rows: Any, dtype: Any = np.int64) -> dict[str, Any]:
    mask = np.array(rows, dtype)
    size = mask.shape[-1]
    return {
        "ids": np.arange(mask.size).reshape(mask.shape),
        "mask": mask,
        "pairs": np.arange(size * size).reshape(size, size),
        "other": np.ones(3),
    }


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_, np.float32, np.uint8])
def test_all_that_has_the_axis_is_cut_to_the_longest_row(dtype: Any) -> None:
    fed = feeds([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype)
    made = trim_feeds(TRIMMING, fed)
    assert made is not None
    assert made.length == 5
    assert made.feeds["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert made.feeds["mask"].dtype == dtype
    assert made.feeds["ids"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert made.feeds["pairs"].tolist() == [[0, 1, 2], [5, 6, 7], [10, 11, 12]]
    assert made.feeds["other"] is fed["other"]
    assert all(value.flags.c_contiguous for value in made.feeds.values())
    assert fed["ids"].shape == (2, 5), "what the caller gave is left alone"


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 1, 1], [1, 0, 0]],  # nothing is padded in every row
        [[1, 0, 1, 0]],  # a hole
        [[0, 1, 1, 0]],  # padded at its beginning
        [[1, 1, 0], [0, 0, 0]],  # a row of nothing
        [[0, 0, 0]],
        [[2, 1, 0]],
        [[-1, 0, 0]],
        [],
        [[]],
    ],
    ids=str,
)
def test_other_masks_cut_nothing(rows: Any) -> None:
    fed = feeds(rows) if rows else {"mask": np.zeros((0, 4), np.int64), "ids": np.zeros((0, 4)), "pairs": np.eye(4)}
    assert trim_feeds(TRIMMING, fed) is None


def test_a_mask_of_broken_numbers_cuts_nothing() -> None:
    assert trim_feeds(TRIMMING, feeds([[1, np.nan, 0]], np.float32)) is None
    assert trim_feeds(TRIMMING, feeds([[1, 0.5, 0]], np.float32)) is None
    assert trim_feeds(TRIMMING, feeds([[1, np.inf, 0]], np.float32)) is None


def test_a_mask_of_one_row_counts() -> None:
    made = trim_feeds(TRIMMING, feeds([[1, 0, 0]]))
    assert made is not None
    assert made.feeds["ids"].shape == (1, 1)


@pytest.mark.parametrize("wrong", ["missing", "listed", "shorter", "flat", "text", "no mapping"])
def test_what_is_wrong_with_feeds_is_left_to_the_run_to_say(wrong: str) -> None:
    fed: Any = feeds([[1, 0, 0]])
    if wrong == "missing":
        del fed["mask"]
    elif wrong == "listed":
        fed["ids"] = fed["ids"].tolist()
    elif wrong == "shorter":
        fed["ids"] = fed["ids"][:, :2]
    elif wrong == "flat":
        fed["ids"] = fed["ids"].reshape(-1)
    elif wrong == "text":
        fed["mask"] = np.array([["1", "0", "0"]])
    else:
        fed = list(fed.items())
    assert trim_feeds(TRIMMING, fed) is None


def test_limits_of_the_model_are_kept() -> None:
    fed = feeds([[1, 1, 0, 0, 0, 0]])

    def kept(**limits: Any) -> int | None:
        made = trim_feeds(Trimming(mask="mask", inputs=TRIMMING.inputs, outputs=(), **limits), fed)
        return None if made is None else int(made.feeds["ids"].shape[1])

    assert kept(shortest=1, longest=6) == 2
    assert kept(shortest=4, longest=None) == 4
    assert kept(shortest=6, longest=None) is None
    assert kept(shortest=1, longest=5) is None, "the model is to refuse them"


def test_outputs_that_keep_the_axis_are_filled_up() -> None:
    y, z = np.ones((2, 3, 2), np.float32), np.ones((2, 3))
    made = fill_outputs(TRIMMING, ["z", "y"], [z, y], 5)
    assert made[0] is z
    assert made[1].shape == (2, 5, 2)
    assert made[1].dtype == np.float32
    assert (made[1][:, :3] == 1).all()
    assert (made[1][:, 3:] == -1.5).all()
