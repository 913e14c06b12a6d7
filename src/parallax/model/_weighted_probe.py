"""Models of one operator with a constant operand, to find out what a backend makes of that constant's zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from parallax.model._segment_model import SegmentModel


def weighted_probe(
    op_type: str, weight: npt.NDArray[Any], input_shape: Sequence[int], **attributes: Any
) -> SegmentModel:
    """The part that computes ``y = op_type(x, weight)``.

    Args:
        op_type: of a standard operator of two operands, such as "Conv", "MatMul" or "Mul".
        weight: its second operand, float32; it is copied into the part as a constant.
        input_shape: of the input "x", float32.
        attributes: of the operator.
    """
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"], name=f"probe_{op_type}", **attributes)],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return SegmentModel(
        name=f"probe {op_type} with weights", proto=proto.SerializeToString(), weights={}, weight_types={}
    )
