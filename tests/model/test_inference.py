from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from parallax.model import load_model
from tests.model._models import conv_model, model, node, run, value, weight

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def test_every_tensor_is_typed_and_small_constants_decide_shapes() -> None:
    graph = load_model(conv_model(), shapes={"x": (2, 3, 8, 8)}).inferred()
    assert graph.tensors["c0"].shape == (2, 16, 8, 8)
    assert graph.tensors["r"].shape == (128, 16)
    assert all(graph.tensors[name].dtype for name in graph.producers)


def test_symbolic_sizes_keep_their_names() -> None:
    graph = load_model(conv_model()).inferred()
    assert graph.tensors["c0"].shape == ("n", 16, 8, 8)
    assert graph.tensors["m"].shape == (1, 1, 1, 1)


def test_the_cheap_graph_knows_only_what_the_file_states() -> None:
    loaded = load_model(conv_model())
    assert loaded.graph.tensors["c0"].shape == ("n", 16, 8, 8)
    assert "r" not in loaded.graph.tensors
    assert loaded.inferred().nodes[0] is loaded.graph.nodes[0]
    assert loaded.inferred() is loaded.inferred()


def test_types_inside_bodies_are_inferred_too() -> None:
    graph = load_model(conv_model(), shapes={"x": (2, 3, 8, 8)}).inferred()
    body = dict(graph.nodes[-1].bodies)["then_branch"]
    assert body.tensors["tb"].shape == (128, 16)


def test_a_file_out_of_order_is_inferred_all_the_same() -> None:
    proto = model([node("Relu", "a", "y"), node("Transpose", "x", "a")], [value("x", (2, 3))], [value("y", None)])
    assert load_model(proto).inferred().tensors["y"].shape == (3, 2)


def test_lifted_weights_keep_their_part_in_inference() -> None:
    proto = model([node("MatMul", "x w", "y")], [value("x", (2, 50))], [value("y", None)], {"w": weight((50, 70))})
    assert load_model(proto).inferred().tensors["y"].shape == (2, 70)


def stale() -> onnx.ModelProto:
    """Made for batch 7, then edited to be dynamic, as people do; what the file says of the middle is wrong."""
    return model(
        [node("Relu", "x", "a"), node("Neg", "a", "b"), node("Abs", "b", "y")],
        [value("x", ("n", 3))],
        [value("y", (7, 3)), value("b", (7, 3))],
        value_info=[value("a", (7, 3))],
    )


def test_what_operators_imply_outweighs_what_the_file_says() -> None:
    graph = load_model(stale()).inferred()
    assert graph.tensors["a"].shape == ("n", 3)
    assert load_model(stale()).graph.tensors["a"].shape == (7, 3)


@pytest.mark.parametrize("operator", ["AveragePool", "LpPool", "MaxPool"])
@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}, id="padding"),
        pytest.param({"kernel_shape": [3, 3], "strides": [3, 3], "pads": [0, 1, 2, 0]}, id="padding of one end"),
        pytest.param({"kernel_shape": [1, 2], "strides": [2, 3], "pads": [0, 1, 0, 0]}, id="stride beyond the window"),
        pytest.param({"kernel_shape": [2, 1], "strides": [4, 3]}, id="no padding"),
        pytest.param(
            {"kernel_shape": [3, 2], "dilations": [2, 1], "strides": [4, 2], "pads": [2, 1, 2, 1]}, id="dilated"
        ),
        pytest.param({"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, id="padded alike"),
    ],
)
def test_pools_have_no_windows_that_begin_in_the_padding_at_the_end(operator: str, attributes: dict[str, Any]) -> None:
    for rows in range(5, 17):
        proto = model(
            [node(operator, "x", "a", ceil_mode=1, **attributes), node("Relu", "a", "y")],
            [value("x", (1, 2, rows, rows + 3))],
            [value("y", None)],
        )
        proto.opset_import[0].version = 19
        feeds = {"x": weight((1, 2, rows, rows + 3))}
        found = load_model(proto).inferred().tensors["a"].shape
        assert found == onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)[0].shape


def test_a_cut_at_a_tensor_with_a_stale_shape_accepts_what_flows_there() -> None:
    feeds = {"x": weight((2, 3))}
    loaded = load_model(stale())
    first = run(loaded.extract([0], ["x"], ["a"], name="1"), feeds)
    second = run(loaded.extract([1], ["a"], ["b"], name="2"), {"a": first[0]})
    third = run(loaded.extract([2], ["b"], ["y"], name="3"), {"b": second[0]})
    np.testing.assert_array_equal(third[0], np.abs(feeds["x"].clip(0)))


def foreign() -> onnx.ModelProto:
    proto = model(
        [
            node("Gelu", "x", "a", domain="com.microsoft"),
            node("Relu", "a", "b"),
            node("Mystery", "b", "c", domain="unheard.of"),
            node("Relu", "c", "y"),
        ],
        [value("x", (2, 3))],
        [value("y", None)],
        value_info=[value("a", (2, 3))],
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.opset_import.append(helper.make_opsetid("unheard.of", 1))
    return proto


def test_the_file_fills_the_gaps_of_foreign_operators_for_what_follows_too() -> None:
    graph = load_model(foreign()).inferred()
    assert graph.tensors["a"].shape == (2, 3)
    assert graph.tensors["b"].shape == (2, 3)
    assert "c" not in graph.tensors


def test_only_dense_tensors_of_a_known_type_can_be_cut_at() -> None:
    loaded = load_model(foreign())
    assert [loaded.can_split_at(name) for name in ("x", "a", "b", "c", "unheard")] == [True, True, True, False, False]
    sequences = model(
        [node("SequenceConstruct", "x x", "s"), node("SequenceAt", "s i", "y"), node("Cast", "x", "t", to=8)],
        [value("x", (2, 3)), value("i", (), INT64)],
        [value("y", None), value("t", None, 8)],
    )
    loaded = load_model(sequences)
    assert {name: loaded.can_split_at(name) for name in "xsyt"} == {"x": True, "s": False, "y": True, "t": False}
    assert loaded.inferred().tensors["s"].kind == "sequence"


def test_initializers_can_be_cut_at_unless_they_are_strings() -> None:
    loaded = load_model(conv_model())
    assert [loaded.can_split_at(name) for name in ("w", "bias", "words")] == [True, True, False]


def test_a_model_that_inference_rejects_keeps_its_declared_types() -> None:
    proto = model(
        [node("MatMul", "x w", "a"), node("Relu", "a", "y")],
        [value("x", (2, 3))],
        [value("y", (2, 9))],
        {"w": weight((5, 7))},
        value_info=[value("a", (2, 9))],
    )
    graph = load_model(proto).inferred()
    assert graph.tensors["y"].dtype == FLOAT
    unknown_opset = model([node("Relu", "x", "y")], [value("x", (2, 3))], [value("y", None)])
    unknown_opset.graph.node[0].domain = "unheard.of"
    assert load_model(unknown_opset).inferred().tensors["y"].dtype == FLOAT


def test_data_propagates_through_shape_arithmetic() -> None:
    proto = model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s two", "g"),
            node("Unsqueeze", "g zero", "u"),
            node("Concat", "minus u", "target", axis=0),
            node("Reshape", "x target", "y"),
        ],
        [value("x", (2, 3, 4))],
        [value("y", None)],
        {"two": np.array(2), "zero": np.array([0]), "minus": np.array([-1])},
    )
    assert load_model(proto).inferred().tensors["y"].shape == (6, 4)


def test_huge_typed_initializers_do_not_stop_inference() -> None:
    tensor = helper.make_tensor("i", INT64, [3000], list(range(3000)))
    gather = node("Gather", "w i", "y")
    words = numpy_helper.from_array(weight((3000, 4)), "w")
    graph = load_model(model([gather], [], [value("y", None)], [tensor, words])).inferred()
    assert graph.tensors["y"].shape == (3000, 4)


def test_the_default_of_an_overridable_initializer_proves_nothing_but_is_believed() -> None:
    proto = model(
        [node("Reshape", "x target", "a"), node("Relu", "a", "y")],
        [value("x", (2, 6)), value("target", (2,), INT64)],
        [value("y", None)],
        {"target": np.array([3, 4])},
    )
    loaded = load_model(proto)
    assert loaded.inferred().tensors["y"].shape == (3, 4)
    cut = loaded.extract([1], ["a"], ["y"], name="cut")
    feeds = {"a": weight((4, 3))}  # as another target would make it
    np.testing.assert_array_equal(run(cut, feeds)[0], feeds["a"].clip(0))
