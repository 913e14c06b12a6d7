"""Models with their constants computed: the same results, with values in place of what computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from parallax.errors import BackendError
from parallax.model import ComputedModel, Model, SegmentModel, compute_constants, load_model
from parallax.model import _computed as computed_module
from tests.model._models import Array, model, node, run, value, weight

INT64, BOOL = onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def numbers(*values: int) -> Array:
    return np.array(values, np.int64)


def compute(part: SegmentModel, fed: Mapping[str, Array]) -> Sequence[Array]:
    return run(part, fed)


def never(part: SegmentModel, fed: Mapping[str, Array]) -> Sequence[Array]:
    raise AssertionError(f"{part.name} was to be computed")


def operators(made: Model) -> list[str]:
    return [entry.op_type for entry in made.graph.nodes]


def compute_and_compare(loaded: Model, feeds: Mapping[str, Array]) -> ComputedModel:
    made = compute_constants(loaded, compute)
    assert made is not None
    expected = run(loaded.extract_whole(), feeds)
    for wanted, found in zip(expected, run(made.model.extract_whole(), feeds), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    names = {entry.name for entry in loaded.graph.nodes}
    assert {entry.name for entry in made.model.graph.nodes} <= names, "what stays keeps its name"
    assert made.model.structure_digest != loaded.structure_digest
    again = compute_constants(loaded, compute)
    assert again is not None
    assert again.model.structure_digest == made.model.structure_digest
    return made


def heads_split() -> onnx.ModelProto:
    """Exporters' way to cut (batch, length, 8) into 2 heads: the shape is put together from that of ``x``."""
    return model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "batch", axis=0),
            node("Gather", "shape one", "length", axis=0),
            node("Unsqueeze", "batch axis", "batch1"),
            node("Unsqueeze", "length axis", "length1"),
            node("Concat", "batch1 length1 heads", "target", axis=0),
            node("Reshape", "x target", "apart"),
            node("Softmax", "apart", "y"),
        ],
        [value("x", ("batch", "length", 8))],
        [value("y", ("batch", "length", 2, 4))],
        {
            "zero": np.array(0, np.int64),
            "one": np.array(1, np.int64),
            "axis": numbers(0),
            "heads": numbers(2, 4),
        },
    )


def test_a_shape_that_is_put_together_becomes_a_value() -> None:
    shaped = load_model(heads_split()).with_shapes({"x": (2, 5, 8)})
    made = compute_and_compare(shaped, {"x": weight((2, 5, 8))})
    assert operators(made.model) == ["Reshape", "Softmax"]
    assert made.by_shapes
    assert made.model.graph.constants["target"].tolist() == [2, 5, 2, 4]


def test_open_shapes_are_left_to_be_computed() -> None:
    assert compute_constants(load_model(heads_split()), never) is None
    half = load_model(heads_split()).with_shapes({"x": (2, 5, 8)})
    assert compute_constants(half, compute) is not None


def test_a_number_stays_a_number() -> None:
    """Gather by a scalar drops an axis, by a list of one it does not."""
    proto = model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape one", "width", axis=0),
            node("Sub", "width two", "place"),
            node("Gather", "x place", "y", axis=0),
        ],
        [value("x", (4, 3))],
        [value("y", (3,))],
        {"one": np.array(1, np.int64), "two": np.array(2, np.int64)},
    )
    made = compute_and_compare(load_model(proto), {"x": weight((4, 3))})
    assert operators(made.model) == ["Gather"]
    assert made.model.graph.constants["place"].shape == ()


def causal_mask(length: int) -> onnx.ModelProto:
    """``x`` (1, length, length) without what lies above its diagonal, by a mask made of two ranges."""
    return model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape one", "n", axis=0),
            node("Range", "first n step", "places"),
            node("Unsqueeze", "places columns", "column"),
            node("Unsqueeze", "places rows", "row"),
            node("LessOrEqual", "row column", "seen"),
            node("Expand", "seen shape", "mask"),
            node("Where", "mask x low", "y"),
        ],
        [value("x", (1, length, length))],
        [value("y", (1, length, length))],
        {
            "one": np.array(1, np.int64),
            "first": np.array(0, np.int64),
            "step": np.array(1, np.int64),
            "columns": numbers(1),
            "rows": numbers(0),
            "low": np.array(-1e9, np.float32),
        },
    )


def test_a_mask_becomes_a_value() -> None:
    made = compute_and_compare(load_model(causal_mask(7)), {"x": weight((1, 7, 7))})
    assert operators(made.model) == ["Where"]


def test_values_beyond_the_limit_are_left_to_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computed_module, "MOST_BYTES", 64 * 64 - 1)
    made = compute_and_compare(load_model(causal_mask(64)), {"x": weight((1, 64, 64))})
    left = operators(made.model)
    assert left == ["LessOrEqual", "Expand", "Where"], "what makes the mask stays, and reads values"
    monkeypatch.setattr(computed_module, "MOST_BYTES", 64 * 64)
    made = compute_and_compare(load_model(causal_mask(64)), {"x": weight((1, 64, 64))})
    assert operators(made.model) == ["Where"]


def test_of_many_values_the_largest_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (10, 40, 20)
    nodes = [node("Neg", f"w{size}", f"n{size}", name=f"neg{size}") for size in sizes]
    proto = model(
        [*nodes, node("Concat", "x n10 n40 n20", "y", axis=0)],
        [value("x", (1,))],
        [value("y", (71,))],
        {f"w{size}": weight((size,), size) for size in sizes},
    )
    monkeypatch.setattr(computed_module, "MOST_BYTES", 4 * 40)
    made = compute_and_compare(load_model(proto), {"x": weight((1,))})
    assert [entry.name for entry in made.model.graph.nodes if entry.op_type == "Neg"] == ["neg40"]


def test_what_follows_from_no_shape_says_so() -> None:
    proto = model(
        [node("Transpose", "w", "wt"), node("MatMul", "x wt", "y")],
        [value("x", ("n", 4))],
        [value("y", ("n", 3))],
        {"w": weight((3, 4))},
    )
    made = compute_and_compare(load_model(proto), {"x": weight((2, 4))})
    assert not made.by_shapes
    assert operators(made.model) == ["MatMul"]


def test_what_draws_numbers_dequantises_or_makes_an_output_stays() -> None:
    proto = model(
        [
            node("RandomUniformLike", "w", "drawn", name="drawing"),
            node("Mul", "drawn zero", "nothing", name="scaled"),
            node("DequantizeLinear", "q scale", "weights", name="dequantising"),
            node("Add", "x nothing", "x0", name="add"),
            node("MatMul", "x0 weights", "y", name="product"),
            node("Neg", "w", "z", name="output"),
        ],
        [value("x", (2, 2))],
        [value("y", (2, 2)), value("z", (2, 2))],
        {
            "w": weight((2, 2)),
            "zero": np.array(0, np.float32),
            "q": np.array([[1, 2], [3, 4]], np.int8),
            "scale": np.array(0.5, np.float32),
        },
    )
    assert compute_constants(load_model(proto), never) is None


def test_bodies_stay_and_read_values() -> None:
    branch = onnx.helper.make_graph([node("Reshape", "x target", "inside")], "branch", [], [value("inside", None)])
    other = onnx.helper.make_graph([node("Neg", "x", "otherwise")], "other", [], [value("otherwise", None)])
    proto = model(
        [
            node("Shape", "x", "shape"),
            node("Neg", "shape", "negative"),
            node("Abs", "negative", "target"),
            node("If", "condition", "y", then_branch=branch, else_branch=other, name="choice"),
        ],
        [value("x", (2, 3)), value("condition", (), BOOL)],
        [value("y", None)],
    )
    for condition in (True, False):
        made = compute_and_compare(load_model(proto), {"x": weight((2, 3)), "condition": np.array(condition)})
        assert operators(made.model) == ["If"]


def test_what_a_caller_may_override_is_no_constant() -> None:
    proto = model(
        [node("Neg", "w", "n"), node("Add", "x n", "y")],
        [value("x", (3,)), value("w", (3,))],
        [value("y", (3,))],
        {"w": weight((3,))},
    )
    assert compute_constants(load_model(proto), never) is None


def test_other_domains_and_strings_stay() -> None:
    proto = model(
        [
            node("Gelu", "w", "g", domain="com.microsoft"),
            node("Add", "x g", "y"),
            node("Identity", "words", "w1"),
            node("Equal", "w1 words", "same"),
            node("Cast", "same", "one", to=1),
            node("Mul", "x one", "z"),
        ],
        [value("x", (3,))],
        [value("y", (3,)), value("z", (3,))],
        [
            onnx.numpy_helper.from_array(weight((3,)), "w"),
            onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [3], [b"a", b"b", b"c"]),
        ],
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert compute_constants(load_model(proto), never) is None


def test_a_runtime_that_refuses_leaves_the_model_as_it_is() -> None:
    def refuse(part: SegmentModel, fed: Mapping[str, Any]) -> Sequence[Array]:
        raise BackendError("no kernel")

    shaped = load_model(heads_split()).with_shapes({"x": (2, 5, 8)})
    assert compute_constants(shaped, refuse) is None


def test_without_constants_there_is_nothing_to_compute() -> None:
    proto = model(
        [node("Constant", "", "c", value_float=2.0), node("Mul", "x c", "y")], [value("x", (3,))], [value("y", (3,))]
    )
    assert compute_constants(load_model(proto), never) is None
