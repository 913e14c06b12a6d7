"""Constants in one form: an ONNX file may store the elements of a tensor in several, and not every reader knows all."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

_CONSTANT_FIELDS = {
    "value_int": (onnx.TensorProto.INT64, "i"),
    "value_ints": (onnx.TensorProto.INT64, "ints"),
    "value_float": (onnx.TensorProto.FLOAT, "f"),
    "value_floats": (onnx.TensorProto.FLOAT, "floats"),
}
"""Attributes of ``Constant`` that hold numbers without a tensor -> element type, field of the attribute."""


def store_raw(model: onnx.ModelProto) -> None:
    """Write every constant of ``model`` as a dense tensor with ``raw_data``, in place: initializers, and tensors of
    attributes, in bodies too.

    Strings, which have no raw form, sparse tensors and external data stay as they are.

    Raises: ValueError or TypeError if a tensor cannot be decoded.
    """
    _rewrite_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            _rewrite_node(node)


def _rewrite_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _rewrite_tensor(tensor)
    for node in graph.node:
        _rewrite_node(node)


def _rewrite_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        known = _CONSTANT_FIELDS.get(attribute.name) if node.op_type == "Constant" else None
        if known is not None and not attribute.ref_attr_name:
            dtype, field = known
            held = getattr(attribute, field)
            dims, values = ([len(held)], list(held)) if field.endswith("s") else ([], [held])
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.helper.make_tensor("", dtype, dims, values)))
        if attribute.HasField("t"):
            _rewrite_tensor(attribute.t)
        for tensor in attribute.tensors:
            _rewrite_tensor(tensor)
        if attribute.HasField("g"):
            _rewrite_graph(attribute.g)
        for graph in attribute.graphs:
            _rewrite_graph(graph)


def _rewrite_tensor(tensor: onnx.TensorProto) -> None:
    if (
        tensor.HasField("raw_data")
        or tensor.data_type == onnx.TensorProto.STRING
        or tensor.data_location == onnx.TensorProto.EXTERNAL
    ):
        return
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.raw_data = raw
