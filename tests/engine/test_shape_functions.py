from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from parallax.engine._lanes import LanePool
from parallax.engine._shape_functions import ENOUGH_SHAPES, ShapeFunction
from tests.engine._graphs import Cut, proto, value

SIZES = st.integers(1, 60)


@given(
    firsts=st.lists(SIZES, min_size=3, max_size=4, unique=True),
    seconds=st.lists(SIZES, min_size=3, max_size=4, unique=True),
    new=st.tuples(SIZES, SIZES),
    factor=st.integers(1, 9),
    offset=st.integers(-1, 9),
)
def test_what_follows_from_the_inputs_is_found(
    firsts: list[int], seconds: list[int], new: tuple[int, int], factor: int, offset: int
) -> None:
    def shape(a: int, b: int) -> tuple[int, ...]:
        return (factor, a, factor * b, b + offset, factor * a * b, a * a)

    function = ShapeFunction()
    for a in firsts:
        for b in seconds:
            function.observe({"a": a, "b": b}, shape(a, b))
    terms = function.terms
    assert terms is not None
    assert tuple(term.value({"a": new[0], "b": new[1]}) for term in terms) == shape(*new)


def test_nothing_is_believed_before_enough_different_shapes() -> None:
    function = ShapeFunction()
    for count in (5, 5, 5, 6, 6):
        function.observe({"a": count}, (count,))
    assert function.terms is None
    function.observe({"a": 7}, (7,))
    assert function.terms is not None
    assert ENOUGH_SHAPES == 3


def test_what_depends_on_data_has_no_law() -> None:
    function = ShapeFunction()
    for count, found in ((5, 3), (6, 1), (7, 7), (8, 2)):
        function.observe({"a": count}, (found,))
    assert function.terms is None


def test_another_rank_is_explained_by_nothing() -> None:
    function = ShapeFunction()
    for count in (5, 6, 7, 8):
        function.observe({"a": count}, (count,) if count < 8 else (count, 1))
    assert function.terms is None


def test_empty_inputs_teach_nothing_at_first() -> None:
    function = ShapeFunction()
    for count in (0, 5, 0, 6, 7):
        function.observe({"a": count}, (2 * count,))
    assert function.terms is not None
    assert function.terms[0].value({"a": 11}) == 22


@pytest.fixture
def cut() -> Cut:
    """Splits rows into heads by sizes that it computes, as exported attention does: inference loses track of them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["target"], axis=0),
        helper.make_node("Concat", ["x", "x"], ["twice"], axis=1),
        helper.make_node("Reshape", ["twice", "target"], ["heads"]),
        helper.make_node("Neg", ["heads"], ["n"]),
        helper.make_node("Abs", ["n"], ["y"]),
    ]
    constants = {"zero": [0], "rest": [2, -1]}
    initializers = [numpy_helper.from_array(np.array(array, np.int64), name) for name, array in constants.items()]
    model = proto(nodes, {"x": ["batch", "width"]}, ["y"], initializers=initializers)
    made = Cut(model, pool=LanePool(2), memory_model=False)
    made.check({"x": value(np.ones((1, 4)))})
    assert {"heads", "n"}.isdisjoint(made.places()), "or there is nothing to learn"
    return made


def test_tensors_that_inference_lost_lie_in_the_arena_at_shapes_never_met_before(
    cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    for batch, width in ((2, 8), (3, 16), (4, 4), (5, 12)):
        cut.check({"x": value(np.full((batch, width), batch))})
    cut.check({"x": value(np.ones((7, 40)))})
    places = cut.places()
    assert places["heads"].shape == (7, 2, 40)
    assert places["n"].shape == (7, 2, 40)
    assert not caplog.text


def test_a_dimension_that_never_varied_is_not_taken_for_a_constant(cut: Cut, caplog: pytest.LogCaptureFixture) -> None:
    for width in (8, 16, 24, 32):
        cut.check({"x": value(np.ones((1, width)))})
    assert {"heads", "n"} <= cut.places().keys()
    cut.check({"x": value(np.ones((6, 8)))})
    assert {"heads", "n"}.isdisjoint(cut.places()), "what more rows do is not known yet"
    cut.check({"x": value(np.ones((9, 8)))})
    assert {"heads", "n"} <= cut.places().keys()
    assert not caplog.text


def test_a_law_that_held_by_chance_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Neg", ["where"], ["n"]),
        helper.make_node("Abs", ["n"], ["y"]),
    ]
    cut = Cut(proto(nodes, {"x": ["n"]}, ["y"], output_types={"y": TensorProto.INT64}), pool=LanePool(2))
    for count in (3, 4, 5, 6):
        cut.check({"x": value(np.ones(count))})  # as an attention mask of ones
    assert set(cut.places()) == {"where", "n"}
    for seed in range(3):
        for count in (7, 8, 9, 10):
            cut.check({"x": value(np.random.default_rng(seed).integers(0, 2, count))})
    assert not cut.places()
    assert caplog.text.count("other sizes than planned") == 1
