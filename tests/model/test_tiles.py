"""Stretches of models in slices: the answers are the model's, whatever operators are sliced, wherever they begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from parallax.errors import ConfigError
from parallax.model import Model, SlicedGraph, cut_weight_bytes, load_model, slice_stretches
from parallax.schedule import Stretch

RANDOM = np.random.default_rng(7)


def make(nodes: Sequence[NodeProto], shape: Sequence[int], weights: dict[str, Any]) -> bytes:
    """A model from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "stretch",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = proto.SerializeToString()
    return made


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind}_{output}", **attributes)


def floats(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def check(proto: bytes, stretches: Sequence[Stretch]) -> Model:
    """Both models give the same answers; returns the sliced one."""
    model = load_model(proto)
    made = slice_stretches(model, stretches)
    shape = [int(size) for size in model.graph.inputs[0].shape or ()]
    fed = {"x": floats(*shape)}
    want = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, fed)[0]
    nodes = range(len(made.graph.nodes))
    part = made.extract(nodes, ["x"], ["y"], name="sliced")
    options = onnxruntime.SessionOptions()
    if part.weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for v in part.weights.values()]
        options.add_external_initializers(list(part.weights), values)
    got = onnxruntime.InferenceSession(part.proto, options, providers=["CPUExecutionProvider"]).run(None, fed)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    return made


def convolutions(*, stride: int = 2, dilation: int = 1, pads: Sequence[int] = (1, 1, 1, 1)) -> bytes:
    """A stem, a pool, a block with a way around it, and an enlargement."""
    weights = {"w0": floats(8, 3, 3, 3), "w1": floats(8, 8, 3, 3), "w2": floats(8, 1, 5, 5), "b": floats(8)}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        node("Conv", "x w0 b", "c0", strides=[stride, stride], pads=list(pads), dilations=[dilation, dilation]),
        node("Relu", "c0", "r0"),
        node("MaxPool", "r0", "p0", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "p0 w1", "c1", pads=[1, 1, 1, 1]),
        node("Sigmoid", "c1", "s1"),
        node("Mul", "c1 s1", "m1"),
        node("Conv", "m1 w2", "c2", pads=[2, 2, 2, 2], group=8),
        node("Add", "c2 p0", "a2"),
        node("AveragePool", "a2", "v2", kernel_shape=[2, 2], strides=[1, 1]),
        node("Concat", "v2 v2", "k2", axis=1),
        helper.make_node("Resize", ["k2", "", "scales"], ["y"], name="enlarge", mode="nearest",
                         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]  # fmt: skip
    return make(nodes, [1, 3, 45, 37], weights)


@pytest.mark.parametrize("slices", [2, 3, 5])
@pytest.mark.parametrize("output", ["p0", "m1", "a2", "v2"])
@pytest.mark.parametrize("axis", [2, 3])
def test_slices_of_convolutions_read_beyond_their_rims(output: str, axis: int, slices: int) -> None:
    made = check(convolutions(), [Stretch(output=output, axis=axis, slices=slices, inputs=())])
    whole = output == "m1"  # what goes around it needs the pool's rows, too
    assert sum(entry.op_type == "MaxPool" for entry in made.graph.nodes) == slices + whole
    assert any(entry.name == "Conv_c0" for entry in made.graph.nodes) == whole


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 2, 1)])
def test_windows_of_all_kinds(stride: int, dilation: int, pads: tuple[int, ...]) -> None:
    check(
        convolutions(stride=stride, dilation=dilation, pads=pads), [Stretch(output="a2", axis=2, slices=3, inputs=())]
    )


def test_an_enlargement_is_sliced_where_rows_come_from_one_row_each() -> None:
    proto = convolutions()
    size = (load_model(proto).inferred().tensors["y"].shape or ())[2]
    assert isinstance(size, int)
    slices = size // 2
    made = check(proto, [Stretch(output="y", axis=2, slices=slices, inputs=())])
    assert sum(entry.op_type == "Resize" for entry in made.graph.nodes) == slices


def test_stretches_begin_where_they_are_told_to_and_follow_one_another() -> None:
    first = Stretch(output="p0", axis=2, slices=4, inputs=())
    second = Stretch(output="a2", axis=3, slices=2, inputs=("p0",))
    made = check(convolutions(), [first, second])
    assert sum(entry.op_type == "MaxPool" for entry in made.graph.nodes) == 4
    assert sum(entry.op_type == "Sigmoid" for entry in made.graph.nodes) == 2


def attention() -> bytes:
    """Tokens, normalised, that look at one another; shapes are asked for, as exporters do."""
    weights = {name: floats(32, 32) for name in ("wq", "wk", "wv", "wo")}
    weights |= {"up": floats(32, 128), "down": floats(128, 32), "scale": floats(32), "shift": floats(32)}
    weights |= {"heads": ints(4), "width": ints(8), "two": ints(2), "one": ints(1), "zero": ints(0), "all": ints(32)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], name="norm"),
        helper.make_node("Shape", ["n"], ["shape"], name="shape"),
        node("Slice", "shape zero two", "lead"),
        node("Concat", "lead heads width", "split", axis=0),
        node("Concat", "lead all", "joined", axis=0),
    ]
    for name in "qkv":
        nodes += [
            node("MatMul", f"n w{name}", name),
            node("Reshape", f"{name} split", f"{name}4"),
            node("Transpose", f"{name}4", f"{name}h", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", "qh kh", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p vh", "o4"),
        node("Transpose", "o4", "o3", perm=[0, 2, 1, 3]),
        node("Reshape", "o3 joined", "o"),
        node("MatMul", "o wo", "d"),
        node("Add", "d x", "r"),
        node("MatMul", "r up", "u"),
        node("Erf", "u", "e"),
        node("Mul", "u e", "g"),
        node("MatMul", "g down", "f"),
        node("Add", "f r", "y"),
    ]
    return make(nodes, [2, 21, 32], weights)


@pytest.mark.parametrize("slices", [2, 4])
@pytest.mark.parametrize(("output", "axis"), [("r", 1), ("o4", 2), ("p", 1), ("vh", 2), ("y", 1), ("f", 0)])
def test_attention_is_sliced_by_tokens_heads_and_batch(output: str, axis: int, slices: int) -> None:
    model = load_model(attention())
    shape = model.inferred().tensors[output].shape or ()
    stretch = Stretch(output=output, axis=axis, slices=min(slices, int(shape[axis])), inputs=())
    made = check(attention(), [stretch])
    assert not any(entry.op_type == "Shape" for entry in made.graph.nodes), "what asks for shapes would hold tensors"


def test_what_all_rows_are_needed_of_is_computed_once() -> None:
    made = check(attention(), [Stretch(output="r", axis=1, slices=3, inputs=())])
    kinds = [(entry.op_type, entry.outputs[0]) for entry in made.graph.nodes]
    assert ("MatMul", "k") in kinds
    assert ("MatMul", "v") in kinds
    assert ("MatMul", "q") not in kinds
    assert sum(kind == "Softmax" for kind, _ in kinds) == 3


@pytest.mark.parametrize("slices", [2, 3, 7])
def test_rows_of_joined_tensors_are_taken_of_those_that_have_them(slices: int) -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Sigmoid", "x", "b"),
        node("Concat", "a b a", "c", axis=1),
        node("Mul", "c c", "y"),
    ]
    made = check(make(nodes, [2, 7, 5], {}), [Stretch(output="y", axis=1, slices=slices, inputs=())])
    assert any(entry.op_type == "Concat" and len(entry.inputs) < 3 for entry in made.graph.nodes)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(2, 1, 32), (2, 21, 32), (21, 1), (21, 32), (1, 32), (32,), (1,)])
def test_scales_of_a_normalisation_may_have_axes_that_are_sliced(shape: tuple[int, ...], axis: int) -> None:
    """ONNX Runtime lets them broadcast against all axes."""
    weights = {"scale": floats(*shape), "shift": floats(*shape)}
    proto = make([node("Relu", "x", "a"), node("LayerNormalization", "a scale shift", "y")], [2, 21, 32], weights)
    made = check(proto, [Stretch(output="y", axis=axis, slices=2, inputs=())])
    assert sum(entry.op_type == "LayerNormalization" for entry in made.graph.nodes) == 2


@pytest.mark.parametrize(("factor", "is_sliced"), [(2.0, True), (2.0015, False), (1.0015, False)])
def test_an_enlargement_by_a_bit_more_than_its_sizes_tell_stays_whole(factor: float, is_sliced: bool) -> None:
    """Rows shift against one another, where the sizes are whole multiples all the same."""
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="enlarge", mode="nearest",
                              coordinate_transformation_mode="half_pixel")]  # fmt: skip
    model = load_model(make(nodes, [1, 1, 500, 2], {"scales": np.array([1, 1, factor, 1], np.float32)}))
    size = (model.inferred().tensors["y"].shape or ())[2]
    assert size in (500, 1000)
    stretch = Stretch(output="y", axis=2, slices=2, inputs=())
    assert (SlicedGraph(model).steps(stretch, ()) is not None) == is_sliced


def test_tensors_may_have_names_that_slices_would_get() -> None:
    nodes = [
        node("Sigmoid", "x", "y_slice0/m"),
        node("Relu", "x", "m_rows0to2"),
        node("Exp", "m_rows0to2", "m"),
        node("Sub", "m y_slice0/m", "y"),
    ]
    check(make(nodes, [1, 4, 8], {}), [Stretch(output="y", axis=1, slices=2, inputs=("y_slice0/m",))])


def test_rows_of_small_weights_are_counted() -> None:
    places = floats(1, 21, 32)
    proto = make([node("Add", "x places", "a"), node("Relu", "a", "y")], [1, 21, 32], {"places": places})
    made = check(proto, [Stretch(output="y", axis=1, slices=2, inputs=())])
    assert sum(entry.op_type == "Add" for entry in made.graph.nodes) == 2
    assert cut_weight_bytes(made) == places.nbytes
    assert cut_weight_bytes(load_model(proto)) == 0


def test_rows_of_large_weights_are_not_taken() -> None:
    """They would be weights beside them."""
    places = floats(1, 21, 2048)
    proto = make([node("Add", "x places", "a"), node("Relu", "a", "y")], [1, 21, 2048], {"places": places})
    made = check(proto, [Stretch(output="y", axis=1, slices=2, inputs=())])
    assert sum(entry.op_type == "Add" for entry in made.graph.nodes) == 1
    assert sum(entry.op_type == "Relu" for entry in made.graph.nodes) == 2


@pytest.mark.parametrize(
    "stretch",
    [
        pytest.param(Stretch(output="nobody", axis=1, slices=2, inputs=()), id="no such tensor"),
        pytest.param(Stretch(output="x", axis=1, slices=2, inputs=()), id="an input"),
        pytest.param(Stretch(output="r", axis=1, slices=22, inputs=()), id="more slices than rows"),
        pytest.param(Stretch(output="r", axis=3, slices=2, inputs=()), id="no such axis"),
        pytest.param(Stretch(output="d", axis=2, slices=2, inputs=()), id="columns of a product"),
    ],
)
def test_stretches_that_a_model_has_not_are_refused(stretch: Stretch) -> None:
    with pytest.raises(ConfigError):
        slice_stretches(load_model(attention()), [stretch])
    known = load_model(attention())
    if stretch.output in known.graph.producers:
        assert SlicedGraph(known).steps(stretch, ()) is None
