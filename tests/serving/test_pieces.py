"""Pieces around a batcher: made-up requests, the check of answers, padding, measuring, many requests in their order."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parallax.errors import BackendError, ConfigError
from parallax.model import BatchAxis
from parallax.serving import (
    best_size,
    example_feeds,
    find_padding,
    join_rows,
    measure_setting,
    request_s,
    run_in_order,
    split_rows_of,
    why_rows_differ,
)


def argument(name: str, shape: list[Any], kind: str = "tensor(float)") -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=shape, type=kind)


# -- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_joined_and_divided_along_their_axes() -> None:
    axis = BatchAxis(inputs={"x": 0, "h": 1}, outputs=(0, 2, None))
    requests = [{"x": np.full((1, 2), number), "h": np.full((3, 1, 2), number)} for number in range(3)]
    joined = join_rows(requests, axis)
    assert joined["x"].shape == (3, 2)
    assert joined["h"].shape == (3, 3, 2)
    outputs = [joined["x"], joined["h"].transpose(0, 2, 1), np.array([7.0])]
    for number, answer in enumerate(split_rows_of(outputs, axis, requests=3)):
        np.testing.assert_array_equal(answer[0], requests[number]["x"])
        np.testing.assert_array_equal(answer[1], requests[number]["h"].transpose(0, 2, 1))
        np.testing.assert_array_equal(answer[2], [7.0])
        assert all(array.base is None for array in answer)


def test_a_run_may_be_larger_than_its_requests() -> None:
    axis = BatchAxis(inputs={"x": 0}, outputs=(0,))
    requests = [{"x": np.full((2, 1), number)} for number in range(3)]
    joined = join_rows(requests, axis, size=4)
    assert joined["x"].shape == (8, 1)
    answers = split_rows_of([joined["x"]], axis, requests=3, size=4)
    assert [answer[0].tolist() for answer in answers] == [[[0], [0]], [[1], [1]], [[2], [2]]]


def test_outputs_that_cannot_be_divided_are_an_error() -> None:
    with pytest.raises(BackendError, match="4 rows, which 3 requests cannot share"):
        split_rows_of([np.zeros((4, 2))], BatchAxis(inputs={"x": 0}, outputs=(0,)), requests=3)


# -- the check -------------------------------------------------------------------------------------------------------

ONE, OTHER = {"x": np.ones(3)}, {"x": np.arange(3.0)}


def test_answers_that_are_the_same_together_pass() -> None:
    alone = lambda feeds: [2 * feeds["x"]]  # noqa: E731
    assert why_rows_differ(ONE, OTHER, alone=alone, together=lambda requests: [alone(fed) for fed in requests]) is None


def test_answers_that_go_to_another_or_depend_on_company_do_not() -> None:
    alone = lambda feeds: [2 * feeds["x"]]  # noqa: E731
    swapped = lambda requests: [alone(fed) for fed in requests[::-1]]  # noqa: E731
    assert "output 0 differs" in (why_rows_differ(ONE, OTHER, alone=alone, together=swapped) or "")

    def first_alone(requests: Any) -> Any:  # shows in one order only
        return [alone(requests[0]), [2 * requests[1]["x"] + requests[0]["x"].max() - 1]]

    assert "output 0 differs" in (why_rows_differ(ONE, OTHER, alone=alone, together=first_alone) or "")
    cut = lambda requests: [[fed["x"][:2]] for fed in requests]  # noqa: E731
    assert "is float64[2], not float64[3]" in (why_rows_differ(ONE, OTHER, alone=alone, together=cut) or "")
    counted = lambda feeds: [np.array([feeds["x"].sum()], np.int64)]  # noqa: E731
    off = lambda requests: [[counted(fed)[0] + 1] for fed in requests]  # noqa: E731
    assert "output 0 differs" in (why_rows_differ(ONE, {"x": np.arange(4.0)}, alone=counted, together=off) or "")


def test_answers_that_are_all_the_same_show_nothing() -> None:
    alone = lambda feeds: [np.zeros(2)]  # noqa: E731
    together = lambda requests: [alone(fed) for fed in requests]  # noqa: E731
    assert "same answers" in (why_rows_differ(ONE, OTHER, alone=alone, together=together) or "")


def test_infinities_have_to_stay_where_they_are() -> None:
    alone = lambda feeds: [np.where(feeds["x"] > 1, np.inf, feeds["x"])]  # noqa: E731
    fine = lambda requests: [alone(fed) for fed in requests]  # noqa: E731
    wrong = lambda requests: [[-alone(fed)[0]] for fed in requests]  # noqa: E731
    first, second = {"x": np.array([0.0, 2.0])}, {"x": np.array([2.0, 0.5])}
    assert why_rows_differ(first, second, alone=alone, together=fine) is None
    assert why_rows_differ(first, second, alone=alone, together=wrong) is not None


# -- made-up requests ------------------------------------------------------------------------------------------------


def test_made_up_requests_are_unlike_and_safe() -> None:
    inputs = [
        argument("input_ids", ["batch", "sequence"], "tensor(int64)"),
        argument("attention_mask", ["batch", "sequence"], "tensor(int64)"),
        argument("pixels", [1, 3, None, None]),
        argument("scale", [], "tensor(double)"),
    ]
    one, other = (example_feeds(inputs, seed=seed) for seed in (1, 2))
    assert one["input_ids"].shape == one["attention_mask"].shape == (1, 16)
    assert set(np.unique(one["input_ids"])) == {0, 1}
    assert one["attention_mask"].all()
    assert one["pixels"].shape == (1, 3, 224, 224)
    assert one["scale"].shape == ()
    assert one["scale"].dtype == np.float64
    assert not np.array_equal(one["pixels"], other["pixels"])
    assert example_feeds(inputs, seed=1, shapes={"pixels": (1, 3, 8, 8)})["pixels"].shape == (1, 3, 8, 8)
    with pytest.raises(ConfigError, match="examples="):
        example_feeds([argument("words", [1], "tensor(string)")], seed=1)


# -- padding ---------------------------------------------------------------------------------------------------------

TEXT = [argument("ids", ["batch", "length"], "tensor(int64)"), argument("mask", ["batch", "length"], "tensor(int64)")]
STATES = [argument("states", ["batch", "length", 4]), argument("logits", ["batch", 2])]


def test_requests_are_filled_up_and_answers_cut_back() -> None:
    padding = find_padding({"ids": 7, "mask": 0}, TEXT, STATES, batch_axes={"ids": 0, "mask": 0})
    assert padding.class_shape("ids", (1, 9)) == padding.class_shape("ids", (1, 16)) == (1, 16)
    short, long = ({"ids": np.ones((1, size), np.int64), "mask": np.ones((1, size), np.int64)} for size in (3, 5))
    filled = padding.filled([short, long])
    assert filled[0]["ids"].tolist() == [[1, 1, 1, 7, 7]]
    assert filled[0]["mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert filled[1]["ids"] is long["ids"]
    answer = padding.cut_back([np.zeros((1, 5, 4)), np.zeros((1, 2))], short)
    assert [array.shape for array in answer] == [(1, 3, 4), (1, 2)]


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        ({}, "says nothing"),
        ("zero", "says nothing"),
        ({"words": 0}, "'words', which is no input"),
        ({"ids": "0", "mask": 0}, "'ids' with '0'"),
        ({"ids": 0}, "'mask' has the open size 'length' too"),
        ({"ids": 0.5, "mask": 0}, r"'ids' with 0.5, which is no tensor\(int64\)"),
        ({"ids": float("nan"), "mask": 0}, r"'ids' with nan, which is no tensor\(int64\)"),
        ({"ids": 0, "mask": 2**63}, r"which is no tensor\(int64\)"),
    ],
)
def test_padding_that_says_too_little_is_refused(pad: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_padding(pad, TEXT, STATES, batch_axes={"ids": 0, "mask": 0})


def test_padding_may_be_any_number_of_the_input_s_type() -> None:
    def filled(kind: str, value: float) -> Any:
        axis = {"x": 0}
        return find_padding({"x": value}, [argument("x", ["batch", "length"], kind)], [], batch_axes=axis).values["x"]

    assert filled("tensor(float)", 0.5) == 0.5
    assert filled("tensor(int64)", -1.0) == -1
    assert filled("tensor(bool)", 1) == 1
    for kind, value in (("tensor(bool)", 2), ("tensor(uint8)", -1)):
        with pytest.raises(ConfigError, match="which is no tensor"):
            filled(kind, value)


def test_padding_needs_an_open_axis() -> None:
    with pytest.raises(ConfigError, match="no open axis"):
        find_padding({"x": 0}, [argument("x", ["batch", 4])], [], batch_axes={"x": 0})


# -- measuring -------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when something is said to take it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "measured", "best"),
    [
        (lambda size: 0.01 * size, [1, 2, 4], 1),
        (lambda size: 0.05 if size == 2 else 0.01 + 0.001 * size, [1, 2, 4, 8, 16, 32], 32),
        (lambda size: 0.01 + 0.001 * size, [1, 2, 4, 8, 16, 32], 32),
        (lambda size: 0.01 + 0.001 * size if size < 8 else 0.01 * size, [1, 2, 4, 8, 16], 4),
    ],
)
def test_sizes_are_measured_while_larger_ones_gain(seconds: Any, measured: list[int], best: int) -> None:
    clock = Clock()

    def run(size: int) -> None:
        clock.now += seconds(size)

    points = measure_setting(run, lanes=1, sizes=(1, 2, 4, 8, 16, 32), clock=clock)
    assert [size for size, _ in points] == measured
    assert best_size(points) == best
    assert request_s(points, 1) == pytest.approx(seconds(best) / best)


def test_no_size_is_tried_that_could_not_end_in_time() -> None:
    clock = Clock()

    def run(size: int) -> None:
        clock.now += 0.01 + 0.001 * size

    points = measure_setting(run, lanes=1, sizes=(1, 2, 4, 8), clock=clock, most_s=0.02)
    assert [size for size, _ in points] == [1]
    more = measure_setting(run, lanes=1, sizes=(2, 4), after=points, clock=clock, most_s=0.1)
    assert [size for size, _ in more] == [2, 4]


def test_errors_on_lanes_are_raised() -> None:
    def run(size: int) -> None:
        raise BackendError("broken")

    for lanes in (1, 3):
        with pytest.raises(BackendError, match="broken"):
            measure_setting(run, lanes=lanes, sizes=(1,))


# -- many requests ---------------------------------------------------------------------------------------------------


class Submitter:
    """A batcher that answers when it is asked for the answer."""

    def __init__(self) -> None:
        self.most = self.open = 0
        self.exits: list[Any] = []

    def submit(self, feeds: Any) -> Future[Any]:
        self.open += 1
        self.most = max(self.most, self.open)
        outer = self

        class Lazy(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                outer.open -= 1
                if feeds["x"] == "bad":
                    raise BackendError("bad")
                return [feeds["x"] * 2]

        return Lazy()

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        self.exits.append(kind)


def many(feeds: Any, *, seconds: float, patience_s: float = 1.0) -> tuple[list[Any], Submitter, int]:
    clock, submitter, alone = Clock(), Submitter(), 0

    def run(fed: Any) -> list[Any]:
        nonlocal alone
        alone += 1
        clock.now += seconds
        return [fed["x"] * 2]

    answers = run_in_order(feeds, run=run, open_batcher=lambda: submitter, clock=clock, patience_s=patience_s)
    return answers, submitter, alone


def test_few_requests_are_run_one_by_one() -> None:
    answers, submitter, alone = many([{"x": number} for number in range(20)], seconds=0.01)
    assert answers == [[2 * number] for number in range(20)]
    assert alone == 20
    assert not submitter.exits
    assert many([], seconds=1)[0] == []


def test_what_takes_longer_goes_through_a_batcher_in_order_and_is_read_as_it_goes() -> None:
    answers, submitter, alone = many(({"x": number} for number in range(1000)), seconds=0.1)
    assert answers == [[2 * number] for number in range(1000)]
    assert alone == 11
    assert submitter.most == 128
    assert submitter.exits == [None]


def test_a_list_that_is_nearly_done_is_done_one_by_one() -> None:
    answers, submitter, alone = many([{"x": number} for number in range(15)], seconds=0.1)
    assert len(answers) == alone == 15
    assert not submitter.exits


def test_the_first_failure_is_raised_and_closes() -> None:
    clock, submitter = Clock(), Submitter()

    def run(fed: Any) -> list[Any]:
        clock.now += 2
        return [0]

    feeds = [{"x": 1}, {"x": 2}, {"x": "bad"}, {"x": 4}]
    with pytest.raises(BackendError, match="bad"):
        run_in_order(feeds, run=run, open_batcher=lambda: submitter, clock=clock)
    assert submitter.exits == [BackendError]
