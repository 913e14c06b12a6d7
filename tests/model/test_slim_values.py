"""The values that slimming takes constant channels to have are those that the runtime computes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from parallax.graph import Node
from parallax.graph.slimming._elementwise import UNARY
from tests.model._models import model, node, value
from tests.model.test_slim import IMAGE, assert_same, chain, removed, slim, weights


@pytest.mark.parametrize("op_type", sorted(UNARY))
def test_of_what_is_not_known_no_function_is_known(op_type: str) -> None:
    function = UNARY[op_type](Node(index=0, name="n", op_type=op_type, domain="", inputs=("a",), outputs=("b",)))
    with np.errstate(invalid="ignore"):
        assert np.isnan(function(np.full(3, np.nan))).all()


def test_channels_behind_a_threshold_are_not_taken_for_zeros() -> None:
    made = chain([node("ThresholdedRelu", "a", "b", alpha=0.5)])
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5}
    assert_same(slimmed, made, IMAGE)


@pytest.mark.parametrize("op_type", ["Floor", "Ceil", "Round"])
def test_a_step_is_left_to_the_runtime(op_type: str) -> None:
    """0.7 * 10 is 7 in float32, and less in float64."""
    made = chain(
        [node("Mul", "a ten", "t"), node(op_type, "t", "b")],
        {"ten": np.array(10, np.float32)},
        bias=np.full(8, 0.7, np.float32),
    )
    assert removed(slim(made)) == {}


def test_a_value_is_rounded_as_its_type_is() -> None:
    casts = [node("Cast", "a", "t", to=TensorProto.FLOAT16), node("Cast", "t", "b", to=TensorProto.FLOAT)]
    made = chain(casts, {"v": 1000 * weights(4, 8, 3, 3)}, bias=np.linspace(0.3, 0.7, 8, dtype=np.float32))
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5}
    bias = next(slimmed.initializer(name) for name in slimmed.graph.initializers if name.endswith("_slim_bias"))
    halves = np.linspace(0.3, 0.7, 8, dtype=np.float32).astype(np.float16).astype(np.float64)
    expected = 1000 * weights(4, 8, 3, 3).astype(np.float64).sum(axis=(2, 3))[:, 3:] @ halves[3:]
    np.testing.assert_allclose(bias, expected, rtol=1e-6)


@pytest.mark.parametrize("is_cast", [False, True])
def test_whole_numbers_are_divided_as_whole_numbers(is_cast: bool) -> None:
    kind, dtype = (TensorProto.FLOAT, np.float32) if is_cast else (TensorProto.INT64, np.int64)
    first = np.arange(1, 25).reshape(6, 4).astype(dtype)
    first[:, 1] = 0
    middle = [node("Add", "a five", "s"), node("Div", "s two", "b")]
    if is_cast:
        middle = [node("Cast", "f", "a", to=TensorProto.INT64), *middle, node("Cast", "b", "g", to=TensorProto.FLOAT)]
    made = model(
        [
            node("MatMul", "x w", "f" if is_cast else "a", name="first"),
            *middle,
            node("MatMul", "g v" if is_cast else "b v", "y", name="last"),
        ],
        [value("x", ("n", 6), kind)],
        [value("y", None, kind)],
        {"w": first, "v": np.full((4, 3), 2, dtype), "five": np.full(4, 5, np.int64), "two": np.array(2)},
        opset=17,
        ir_version=8,
    )
    assert removed(slim(made)) == {}


def test_a_product_of_a_tensor_with_itself_needs_all_of_it() -> None:
    made = model(
        [node("MatMul", "x w", "a", name="first"), node("MatMul", "a a", "b"), node("MatMul", "b v", "y")],
        [value("x", ("n", 8, 8))],
        [value("y", None)],
        {"w": weights(8, 8, zero=[2], axis=1), "v": weights(8, 4, seed=1)},
        opset=17,
        ir_version=8,
    )
    assert removed(slim(made)) == {}
