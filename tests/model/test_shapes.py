from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper

from parallax.errors import ConfigError
from parallax.model import load_model
from tests.model._models import model, node, run, value, weight


def two_inputs() -> onnx.ModelProto:
    return model(
        [node("Add", "x y", "s"), node("Relu", "s", "z")],
        [value("x", ("batch", 3)), value("y", ("batch", 3)), value("free", None), value("w", (2,))],
        [value("z", ("batch", 3))],
        {"w": weight((2,))},
    )


def test_shapes_fix_inputs_and_the_symbols_they_bind() -> None:
    graph = load_model(two_inputs(), shapes={"x": (4, 3), "free": np.array([2, 5])}).graph  # type: ignore[dict-item]
    assert {info.name: info.shape for info in graph.inputs} == {"x": (4, 3), "y": (4, 3), "free": (2, 5)}
    assert graph.outputs[0].shape == (4, 3)


def test_fixed_shapes_reach_every_tensor() -> None:
    loaded = load_model(two_inputs(), shapes={"x": (4, 3)})
    assert loaded.inferred().tensors["s"].shape == (4, 3)


def test_a_symbol_bound_to_two_sizes_is_not_bound_elsewhere() -> None:
    proto = two_inputs()
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph = load_model(proto, shapes={"x": (4, 3), "y": (1, 3)}).graph
    assert [info.shape for info in graph.inputs[:2]] == [(4, 3), (1, 3)]
    assert graph.outputs[0].shape == ("batch", 3)


def test_with_shapes_leaves_the_model_as_it_was() -> None:
    loaded = load_model(two_inputs())
    fixed = loaded.with_shapes({"x": (4, 3)})
    assert loaded.graph.inputs[0].shape == ("batch", 3)
    assert fixed.graph.inputs[0].shape == (4, 3)
    assert (dict(loaded.shapes), dict(fixed.shapes)) == ({}, {"x": (4, 3)})
    with pytest.raises(ConfigError, match="is 4 in the model, not 5"):
        fixed.with_shapes({"x": (5, 3)})


def test_segments_have_the_fixed_shapes() -> None:
    loaded = load_model(two_inputs(), shapes={"x": (4, 3)})
    segment = loaded.extract([0], ["x", "y"], ["s"], name="first")
    feeds = {"x": weight((4, 3)), "y": weight((4, 3), 1)}
    np.testing.assert_array_equal(run(segment, feeds)[0], feeds["x"] + feeds["y"])
    proto = onnx.load_model_from_string(segment.proto)
    for info in (*proto.graph.input, *proto.graph.output):
        assert [dim.dim_value for dim in info.type.tensor_type.shape.dim] == [4, 3]


def test_zero_is_a_size() -> None:
    assert load_model(two_inputs(), shapes={"x": (0, 3)}).graph.inputs[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"nope": (1,)}, r"no input 'nope'.*its inputs are: 'x', 'y', 'free'$"),
        ({"w": (2,)}, "no input 'w'"),
        ({"x": (4,)}, "has 2 dimensions, but .* has 1"),
        ({"x": (4, 3, 1)}, "has 2 dimensions, but .* has 3"),
        ({"x": (4, 5)}, r"dimension 1 of input 'x' is 3 in the model, not 5 \(at shapes\['x'\]\)"),
        ({"x": (-1, 3)}, "-1 is not a size"),
        ({"x": (math.nan, 3)}, "nan is not a size"),
        ({"x": (4.0, 3)}, r"4\.0 is not a size"),
        ({"x": (True, 3)}, "True is not a size"),
        ({"x": ("4", 3)}, "'4' is not a size"),
        ({"x": (None, 3)}, "None is not a size"),
        ({"free": (2**63,)}, "is not a size"),
        ({"free": (2**40, 2**40)}, "is not a size"),
        ({"x": "43"}, "'43' is not a shape"),
        ({"x": 4}, "4 is not a shape"),
        ([("x", (4, 3))], "must map input names"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load_model(two_inputs(), shapes=shapes)  # type: ignore[arg-type]
    assert raised.value.fix


def test_a_sequence_has_no_shape_to_fix() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    proto = model([node("SequenceLength", "s", "n")], [sequence], [value("n", (), onnx.TensorProto.INT64)])
    with pytest.raises(ConfigError, match="not a tensor"):
        load_model(proto, shapes={"s": (1,)})
