"""Sparse constants are dense once a model is loaded, with the values that ONNX Runtime gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parallax.model import load_model
from tests.model._models import model, node, run, value

X = np.zeros((2, 3), np.float32)


def sparse(
    places: Sequence[int], shape: Sequence[int], *, dims: Sequence[int] = (2, 3), kind: int = TensorProto.FLOAT
) -> onnx.SparseTensorProto:
    """Values 1, 2, ... at these places."""
    count = shape[0] if shape else 0
    values = helper.make_tensor("w", kind, [count], list(range(1, count + 1)))
    return helper.make_sparse_tensor(
        values, helper.make_tensor("places", TensorProto.INT64, list(shape), list(places)), list(dims)
    )


def check_same(proto: onnx.ModelProto) -> np.ndarray:
    loaded = load_model(proto)
    assert loaded.why_whole is None
    part = loaded.extract(range(len(loaded.graph.nodes)), ["x"], ["y"], name="all")
    assert not onnx.load_from_string(part.proto).graph.sparse_initializer
    found = run(part, {"x": X})[0]
    np.testing.assert_array_equal(found, run(proto, {"x": X})[0])
    return found


@pytest.mark.parametrize(
    "made",
    [
        sparse([5, 2, 0], [3]),
        sparse([1, 1, 4], [3]),
        sparse([0, 1, 1, 2], [2, 2]),
        sparse([], [0]),
        sparse([0], [1], dims=()),
        sparse([7], [1], dims=(2, 2, 3)),
        sparse([0, 5], [2], kind=TensorProto.INT64),
        sparse([0, 5], [2], kind=TensorProto.FLOAT16),
        sparse([0, 1], [2], kind=TensorProto.BOOL),
    ],
    ids=["unsorted", "repeated", "coordinates", "empty", "scalar", "rank 3", "int64", "float16", "bool"],
)
def test_a_sparse_initializer_has_the_values_of_the_runtime(made: onnx.SparseTensorProto) -> None:
    cast = [node("Cast", "w", "c", to=TensorProto.FLOAT), node("Add", "x c", "y")]
    check_same(model(cast, [value("x", (2, 3))], [value("y", None)], sparse_initializer=[made]))


def test_a_large_sparse_initializer_is_a_weight_like_any_other() -> None:
    made = sparse([0, 99_999], [2], dims=(100_000,))
    proto = model([node("Slice", "w from to", "s"), node("Add", "x s", "y")], [value("x", (2, 3))], [value("y", None)],
                  {"from": np.array([99_999]), "to": np.array([100_000])}, sparse_initializer=[made])  # fmt: skip
    assert load_model(proto).weight_bytes == 400_000 + 16
    np.testing.assert_array_equal(check_same(proto), X + 2)


def test_sparse_values_of_constants_and_of_bodies_are_dense_too() -> None:
    bodies = [
        helper.make_graph(
            [node("Add", "w c", "b")], name, [], [value("b", None)], sparse_initializer=[sparse([3], [1])]
        )
        for name in ("then", "else")
    ]
    proto = model(
        [
            node("Constant", "", "c", sparse_value=sparse([0, 1], [2])),
            node("If", "yes", "i", then_branch=bodies[0], else_branch=bodies[1]),
            node("Add", "x i", "y"),
        ],
        [value("x", (2, 3))],
        [value("y", None)],
        {"yes": np.array(True)},
    )
    np.testing.assert_array_equal(check_same(proto), np.float32([[1, 2, 0], [1, 0, 0]]))


@pytest.mark.parametrize(
    "made",
    [sparse([0, 6], [2]), sparse([0, -1], [2]), sparse([0, 3], [1, 2]), sparse([0], [1], dims=(1 << 20, 1 << 20))],
    ids=["past the end", "negative", "column past the end", "a tebibyte"],
)
def test_what_cannot_be_made_dense_is_left_to_the_runtime(made: onnx.SparseTensorProto) -> None:
    proto = model([node("Add", "x w", "y")], [value("x", (2, 3))], [value("y", None)], sparse_initializer=[made])
    assert load_model(proto).why_whole == "sparse initializer 'w' is left to the runtime"
