"""Weights and interfaces of sub-models for runtimes that know nothing of external initializers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from parallax.errors import InternalError
from parallax.model import Probe, SegmentModel, load_model, probe_model, proto_with_weights, segment_interface
from parallax.model._raw_tensors import store_raw

F32 = TensorProto.FLOAT


def _segment() -> tuple[SegmentModel, np.ndarray, np.ndarray]:
    large = np.arange(40 * 40, dtype=np.float32).reshape(40, 40)
    medium = np.arange(400, dtype=np.float32).reshape(1, 400)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "large"], ["m"]),
            helper.make_node("Add", ["m", "small"], ["y"]),
            helper.make_node("Neg", ["medium"], ["z"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", F32, ["rows", 40]),
            helper.make_tensor_value_info("small", F32, [1]),
        ],
        [helper.make_tensor_value_info("y", F32, ["rows", 40]), helper.make_tensor_value_info("z", F32, [1, 400])],
        [
            numpy_helper.from_array(large, "large"),
            numpy_helper.from_array(medium, "medium"),
            numpy_helper.from_array(np.array([5], np.float32), "small"),
        ],
    )
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return model.extract(range(3), ["x", "small"], ["y", "z"], name="s"), large, medium


def test_weights_become_inputs_where_asked_and_are_inside_elsewhere() -> None:
    segment, large, medium = _segment()
    assert set(segment.weights) == {"large", "medium"}
    session = onnxruntime.InferenceSession(
        proto_with_weights(segment, as_inputs=["large"]), providers=["CPUExecutionProvider"]
    )
    assert [entry.name for entry in session.get_inputs()] == ["x", "large"]
    x = np.ones((2, 40), np.float32)
    y, z = session.run(None, {"x": x, "large": large})
    np.testing.assert_array_equal(y, x @ large + 5)
    np.testing.assert_array_equal(z, -medium)


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        ("BFLOAT16", "int32_data"),
        ("FLOAT16", "int32_data"),
        ("INT8", "int32_data"),
        ("UINT4", "int32_data"),
        ("BOOL", "int32_data"),
        ("INT64", "int64_data"),
        ("UINT32", "uint64_data"),
        ("UINT64", "uint64_data"),
        ("FLOAT", "float_data"),
        ("DOUBLE", "double_data"),
        ("COMPLEX64", "float_data"),
    ],
)
def test_constants_of_every_stored_form_become_raw_bytes(dtype: str, field: str) -> None:
    number = getattr(TensorProto, dtype)
    typed = helper.make_tensor("t", number, [3], np.array([1, 0, 1]))
    assert len(getattr(typed, field))
    body = helper.make_graph([helper.make_node("Constant", [], ["b"], value=typed)], "body", [], [])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=typed),
        helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [typed]))
    store_raw(model)
    (then_branch, _) = (attribute.g for attribute in model.graph.node[1].attribute)
    for made in (
        model.graph.initializer[0],
        model.graph.node[0].attribute[0].t,
        then_branch.node[0].attribute[0].t,
    ):
        assert (made.data_type, list(made.dims), len(getattr(made, field))) == (number, [3], 0)
        expected = numpy_helper.to_array(typed)
        assert made.raw_data == numpy_helper.from_array(expected).raw_data
        np.testing.assert_array_equal(numpy_helper.to_array(made), expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value_int": 7}, np.array(7, np.int64)),
        ({"value_ints": [7, -8]}, np.array([7, -8], np.int64)),
        ({"value_float": 0.5}, np.array(0.5, np.float32)),
        ({"value_floats": [0.5, float("nan")]}, np.array([0.5, np.nan], np.float32)),
    ],
)
def test_constants_without_a_tensor_become_one(given: dict[str, object], expected: np.ndarray) -> None:
    model = helper.make_model(helper.make_graph([helper.make_node("Constant", [], ["c"], **given)], "g", [], []))
    store_raw(model)
    (attribute,) = model.graph.node[0].attribute
    assert attribute.name == "value"
    np.testing.assert_array_equal(numpy_helper.to_array(attribute.t), expected, strict=True)


def test_constants_that_have_no_raw_form_stay_as_they_are() -> None:
    kept = [
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]),
        TensorProto(name="e", data_type=F32, dims=[2], data_location=TensorProto.EXTERNAL),
    ]
    model = helper.make_model(helper.make_graph([], "g", [], [], kept))
    store_raw(model)
    assert list(model.graph.initializer) == kept


def test_a_weight_that_is_none_is_our_mistake() -> None:
    segment, _, _ = _segment()
    with pytest.raises(InternalError, match="'small'"):
        proto_with_weights(segment, as_inputs=["small"])


def test_an_interface_tells_what_must_be_fed_from_what_may_be() -> None:
    interface = segment_interface(_segment()[0])
    assert [(info.name, info.shape) for info in interface.inputs] == [("x", ("rows", 40))]
    assert [info.name for info in interface.overridable] == ["small"]
    assert [(info.name, info.dtype) for info in interface.outputs] == [("y", F32), ("z", F32)]


@pytest.mark.parametrize("probe", Probe)
def test_probes_are_models_of_one_operator(probe: Probe) -> None:
    proto = onnx.ModelProto.FromString(probe_model(probe).proto)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.op_type for entry in proto.graph.node] == [probe.value]
