"""Exact zeros of weights: how many, and which output and input channels hold nothing else."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parallax._record import dataclass
from parallax.graph import Node

Array = npt.NDArray[Any]

CHANNELLED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose multiplications are those of a weight with channels."""

_NUMBERS: Final = "fiub"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCount:
    """What was counted in one weight. A zero is an element equal to 0 (-0.0 too); NaN is none."""

    elements: int
    zeros: int
    rows: int = 0
    """Output channels; 0 where the operator's weights have no such thing."""
    zero_rows: int = 0
    """Output channels whose weights are all 0: what they compute is their bias."""
    columns: int = 0
    """Input channels."""
    zero_columns: int = 0
    """Input channels that nothing is computed from."""

    @property
    def share(self) -> float:
        """Return the share of zeros among the elements, 0 to 1."""
        return self.zeros / self.elements if self.elements else 0.0


def zero_share(values: Array | None) -> float | None:
    """The share of exact zeros among the elements, 0 to 1; None for nothing, no elements, or what are no numbers.

    Args:
        values: of any shape and type.
    """
    if values is None or values.dtype.kind not in _NUMBERS or not values.size:
        return None
    return 1 - int(np.count_nonzero(values)) / int(values.size)


def count_weight(node: Node, position: int, values: Array) -> WeightCount | None:
    """The zeros of a weight of an operator; None for what are no numbers.

    It takes one byte per element meanwhile.

    Args:
        node: that reads it.
        position: of it among the inputs of the operator.
        values: the weight.
    """
    if values.dtype.kind not in _NUMBERS:
        return None
    elements = int(values.size)
    held = values != 0
    zeros = elements - int(np.count_nonzero(held))
    channels = _channels(node, position, held) if elements else None
    if channels is None:
        return WeightCount(elements=elements, zeros=zeros)
    outputs, inputs = channels
    return WeightCount(
        elements=elements,
        zeros=zeros,
        rows=outputs.size,
        zero_rows=outputs.size - int(np.count_nonzero(outputs)),
        columns=inputs.size,
        zero_columns=inputs.size - int(np.count_nonzero(inputs)),
    )


def _channels(node: Node, position: int, held: Array) -> tuple[Array, Array] | None:
    """Per output channel and per input channel, whether it holds anything but zeros; None where there are none.

    Layouts as in the ONNX operator specification. Channels of a grouped convolution are those of all its groups.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in CHANNELLED:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = node.attributes.get("group", 1)
        if position != 1 or held.ndim < 3 or not isinstance(groups, int) or groups < 1 or held.shape[0] % groups:
            return None
        # (groups, first axis of one group, second axis, window)
        parts = held.reshape(groups, held.shape[0] // groups, held.shape[1], -1)
        first, second = parts.any(axis=(2, 3)).ravel(), parts.any(axis=(1, 3)).ravel()
        return (first, second) if node.op_type == "Conv" else (second, first)
    if held.ndim < 2:
        return None
    matrix: Array = np.any(held.reshape(-1, *held.shape[-2:]), axis=0)
    if node.attributes.get("transB" if position else "transA", 0) == 1 and node.op_type == "Gemm":
        matrix = matrix.T
    rows, columns = np.any(matrix, axis=1), np.any(matrix, axis=0)
    # The right operand is (inputs, outputs), the left one (outputs, inputs).
    return (columns, rows) if position == 1 else (rows, columns)
