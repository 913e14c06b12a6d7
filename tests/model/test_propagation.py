"""Types behind shape arithmetic: known where the operators imply them, and never false."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from parallax import zoo
from parallax.graph import OpGraph
from parallax.model import load_model
from parallax.zoo._card import read_structure_bytes
from parallax.zoo._structure import read_structure, recipe_of
from tests.model._models import Array, model, node, run, value, weight

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def expand_as_exported(shape: tuple[int | str, ...]) -> onnx.ModelProto:
    """How torch.onnx writes ``ones.expand(x.shape[0], -1)``, and a branch that reads the result."""
    return model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "batch"),
            node("Unsqueeze", "batch zeros", "b1"),
            node("Concat", "b1 minus", "target", axis=0),
            node("ConstantOfShape", "two", "ones", value=helper.make_tensor("v", INT64, [1], [1])),
            node("Mul", "ones minus", "negative"),
            node("Equal", "target negative", "kept"),
            node("Where", "kept ones target", "full"),
            node("Expand", "row full", "e"),
            node("Relu", "e", "y"),
            node("If", "yes", "z", then_branch=_body("y"), else_branch=_body("e")),
        ],
        [value("x", shape), value("yes", (), onnx.TensorProto.BOOL)],
        [value("y", None), value("z", None)],
        {
            "zero": np.array(0),
            "zeros": np.array([0]),
            "minus": np.array([-1]),
            "two": np.array([2]),
            "row": weight((1, 5)),
        },
    )


def _body(name: str) -> onnx.GraphProto:
    return helper.make_graph(
        [node("Transpose", name, f"{name}_t"), node("Relu", f"{name}_t", f"{name}_r")],
        "body",
        [],
        [onnx.ValueInfoProto(name=f"{name}_r")],
    )


def test_values_are_followed_through_shape_arithmetic() -> None:
    graph = load_model(expand_as_exported((3, 7))).inferred()
    assert graph.tensors["e"].shape == (3, 5)
    assert graph.tensors["y"].shape == (3, 5)


def test_bodies_learn_what_became_known_of_the_tensors_they_capture() -> None:
    graph = load_model(expand_as_exported((3, 7))).inferred()
    body = dict(graph.nodes[-1].bodies)["then_branch"]
    assert body.tensors["y_t"].shape == (5, 3)
    assert graph.tensors["z"].shape == (5, 3)


def test_the_graph_keeps_every_node() -> None:
    loaded = load_model(expand_as_exported((3, 7)))
    assert [node.name for node in loaded.inferred().nodes] == [node.name for node in loaded.graph.nodes]


def test_no_static_size_is_made_of_a_symbol() -> None:
    graph = load_model(expand_as_exported(("n", 7))).inferred()
    shape = graph.tensors["y"].shape
    assert shape is not None
    assert not isinstance(shape[0], int)


def test_values_that_a_caller_feeds_are_not_constants() -> None:
    proto = expand_as_exported((3, 7))
    proto.graph.input.append(value("row", (1, "k")))
    loaded = load_model(proto)
    assert loaded.inferred().tensors["y"].shape == (3, 5), "believed, for costs"
    cut = loaded.extract([9], ["e"], ["y"], name="cut")
    assert run(cut, {"e": weight((3, 9))})[0].shape == (3, 9)


def test_a_long_chain_of_blocks_is_followed_to_its_end() -> None:
    """Each block's shape hangs on the one before: rounds over the whole graph would need one for each."""
    blocks = 300
    nodes = []
    for i in range(blocks):
        nodes += [
            node("Shape", f"t{i}", f"s{i}"),
            node("Where", f"swap s{i} s{i}", f"w{i}"),
            node("Slice", f"w{i} last stop zero back", f"r{i}"),
            node("Reshape", f"t{i} r{i}", f"q{i}"),
            node("Relu", f"q{i}", f"t{i + 1}"),
        ]
    constants = {"swap": [True, False], "last": [-1], "stop": [-(2**63)], "zero": [0], "back": [-1]}
    proto = model(
        nodes,
        [value("t0", (3, 4))],
        [value(f"t{blocks}", None)],
        {name: np.array(items) for name, items in constants.items()},
    )
    graph = load_model(proto).inferred()
    assert graph.tensors["t299"].shape == (4, 3)
    assert graph.tensors["t300"].shape == (3, 4)


def test_evaluation_is_not_stopped_by_the_recursion_limit() -> None:
    length = 5000
    nodes = [node("Shape", "x", "s0")]
    nodes += [node("Abs", f"s{i}", f"s{i + 1}") for i in range(length)]
    nodes += [node("Reshape", f"x s{length}", "y")]
    proto = model(nodes, [value("x", (3, 4))], [value("y", None)])
    assert load_model(proto).inferred().tensors["y"].shape == (3, 4)


def test_values_outweigh_the_shape_that_the_file_states() -> None:
    proto = model(
        [
            node("Shape", "x", "s"),
            node("Where", "yes s other", "t"),
            node("Reshape", "x t", "y"),
            node("Relu", "y", "z"),
        ],
        [value("x", (3, 4))],
        [value("z", (3, 4))],
        {"yes": np.array([False, False]), "other": np.array([6, 2])},
        value_info=[value("y", (3, 4))],
    )
    graph = load_model(proto).inferred()
    assert graph.tensors["y"].shape == (6, 2)
    assert graph.tensors["z"].shape == (6, 2)


LEARNING = ("clip-text", "distilbert", "nasnet-mobile", "swin-t", "whisper-tiny-decoder", "yolov8n", "lstm-if-loop")
"""Zoo models whose exporters wrote shape arithmetic or control flow."""


def with_all_outputs(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The zoo's graph with every tensor as an output and its large weights as inputs, which are fed zeros."""
    proto = read_structure(read_structure_bytes(name))
    drawn = [tensor for tensor in proto.graph.initializer if recipe_of(tensor) is not None]
    kept = [tensor for tensor in proto.graph.initializer if recipe_of(tensor) is None]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    zeros: dict[str, Array] = {}
    for tensor in drawn:
        proto.graph.input.append(value(tensor.name, tuple(tensor.dims), tensor.data_type))
        zeros[tensor.name] = np.zeros(tuple(tensor.dims), np.float32)
    present = {output.name for output in proto.graph.output}
    for producer in proto.graph.node:
        proto.graph.output.extend(
            [onnx.ValueInfoProto(name=tensor) for tensor in producer.output if tensor and tensor not in present]
        )
    return proto, zeros


def assert_true(graph: OpGraph, actual: dict[str, Array], symbols: dict[str, int]) -> int:
    """Every size and symbol of every type against what flowed; returns how many tensors had all sizes."""
    static = 0
    for name, array in actual.items():
        info = graph.tensors.get(name)
        if info is None or info.shape is None or not isinstance(array, np.ndarray):
            continue
        assert len(info.shape) == array.ndim, name
        for dim, size in zip(info.shape, array.shape, strict=True):
            if dim is not None and dim in symbols:
                dim = symbols[str(dim)]
            assert not isinstance(dim, int) or dim == size, (name, info.shape, array.shape)
        assert helper.tensor_dtype_to_np_dtype(info.dtype) == array.dtype, name
        static += info.is_static
    return static


@pytest.mark.parametrize("name", LEARNING)
def test_learnt_types_are_those_that_flow(name: str) -> None:
    proto, zeros = with_all_outputs(name)
    feeds = zoo.example_inputs(name, seed=0)
    actual = dict(zip((o.name for o in proto.graph.output), run(proto, {**feeds, **zeros}), strict=True))
    typical = {entry.name: entry.typical_shape for entry in zoo.info(name).inputs}
    static = assert_true(load_model(proto, shapes=typical).inferred(), actual, {})
    assert static > 0.85 * len(actual)


@pytest.mark.parametrize(
    ("name", "dims"),
    [("distilbert", {"batch": 2, "sequence": 9}), ("whisper-tiny-decoder", {"batch": 3, "decoder_sequence": 5})],
)
def test_types_of_a_dynamic_model_hold_for_sizes_that_nobody_told(name: str, dims: dict[str, int]) -> None:
    proto, zeros = with_all_outputs(name)
    feeds = zoo.example_inputs(name, seed=0, **dims)
    actual = dict(zip((o.name for o in proto.graph.output), run(proto, {**feeds, **zeros}), strict=True))
    assert assert_true(load_model(proto).inferred(), actual, dims) > 0
