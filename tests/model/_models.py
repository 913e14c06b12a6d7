"""Models built by hand, and ONNX Runtime as the judge of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from parallax.model import SegmentModel

Array = npt.NDArray[np.generic]
FLOAT = onnx.TensorProto.FLOAT


def value(name: str, shape: Sequence[int | str | None] | None = (3,), dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Inputs and outputs as words; "-" stands for an omitted one."""
    words = [[("" if word == "-" else word) for word in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op_type, words[0], words[1], **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Mapping[str, Array] | Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 21,
    ir_version: int = 10,
    **graph_fields: object,
) -> onnx.ModelProto:
    tensors = (
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()]
        if isinstance(initializers, Mapping)
        else list(initializers)
    )
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), tensors, **graph_fields)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def weight(shape: Sequence[int], seed: int = 0, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def changed(proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    change(copy)
    return copy


def run(source: onnx.ModelProto | bytes | str | SegmentModel, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime computes, unoptimised, so that equality is exact."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    values = []
    if isinstance(source, SegmentModel):
        for name, array in source.weights.items():
            kind = source.weight_types[name]
            values.append(
                ort.OrtValue.ortvalue_from_numpy(array)
                if array.dtype.isbuiltin == 1
                else ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
            )
        options.add_external_initializers(list(source.weights), values)
        source = source.proto
    elif isinstance(source, onnx.ModelProto):
        source = source.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(feeds))
    return outputs


def conv_model() -> onnx.ModelProto:
    """A bit of everything: lifted and inline weights, a function, an If with captures, typed payloads, strings."""
    then_body = helper.make_graph(
        [node("Add", "r bias", "tb"), node("Identity", "tb", "to")], "then", [], [value("to", None)]
    )
    else_body = helper.make_graph([node("Identity", "r", "eo")], "else", [], [value("eo", None)])
    function = helper.make_function(
        "local", "Twice", ["a"], ["c"], [node("Relu", "a", "q"), node("Add", "q a", "c")], [helper.make_opsetid("", 21)]
    )
    proto = model(
        [
            node("Conv", "x w bias", "c0", name="conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            node("Twice", "c0", "c1", domain="local"),
            node("ReduceMean", "c1", "m", name="mean", keepdims=1),
            node("Reshape", "c1 shape", "r"),
            node("Constant", "", "cond", value=numpy_helper.from_array(np.array(True))),
            node("If", "cond", "y", then_branch=then_body, else_branch=else_body, name="branch"),
        ],
        [value("x", ("n", 3, 8, 8))],
        [value("y", None), value("m", None)],
        [
            numpy_helper.from_array(weight((16, 3, 3, 3)), "w"),
            numpy_helper.from_array(weight((16,)), "bias"),
            numpy_helper.from_array(np.array([-1, 16]), "shape"),
            numpy_helper.from_array(weight((32, 20), dtype=np.float16), "half"),
            helper.make_tensor("typed", FLOAT, [20, 20], weight((400,))),
            numpy_helper.from_array(np.array(["a", "b"], dtype=object), "words"),
        ],
        value_info=[value("c0", ("n", 16, 8, 8))],
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    return proto
