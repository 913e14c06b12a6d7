"""Which rule belongs to which operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from parallax.graph import Node
from parallax.partition.padding import _mixing as mixing
from parallax.partition.padding import _picking as picking
from parallax.partition.padding import _reshaping as reshaping
from parallax.partition.padding._elementwise import ELEMENTWISE, elementwise, like_first
from parallax.partition.padding._view import Rule

_OWN: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(("Shape", "Size"), reshaping.shape),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), mixing.softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), mixing.normalisation),
    **dict.fromkeys(("ArgMax", "ArgMin"), mixing.along(0)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), like_first),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        mixing.reduction,
    ),
    "Concat": reshaping.concat,
    "ConstantOfShape": reshaping.filled,
    "CumSum": mixing.running_sum,
    "Dropout": mixing.dropout,
    "Expand": reshaping.expand,
    "Flatten": reshaping.flatten,
    "Gather": picking.gather,
    "GatherElements": picking.gather_elements,
    "Gemm": mixing.gemm,
    "LpNormalization": mixing.along(-1),
    "MatMul": mixing.product_of,
    "Range": reshaping.counting,
    "Reshape": reshaping.reshape,
    "Slice": picking.cut_out,
    "Split": reshaping.split,
    "Squeeze": reshaping.squeeze,
    "Tile": reshaping.tile,
    "Transpose": reshaping.transpose,
    "Trilu": reshaping.triangle,
    "Unsqueeze": reshaping.unsqueeze,
}
"""Of ONNX's own operators."""

_CONTRIBUTED: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), elementwise),
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        mixing.skip_normalisation,
    ),
    "SimplifiedLayerNormalization": mixing.normalisation,
}
"""Of those that ONNX Runtime contributes. Its fused attentions have none: what their masks hide is the runtime's."""


def rule_of(node: Node) -> Rule | None:
    """The rule for a node; None where there is none."""
    table = {"": _OWN, "ai.onnx": _OWN, "com.microsoft": _CONTRIBUTED}.get(node.domain, {})
    return table.get(node.op_type)
