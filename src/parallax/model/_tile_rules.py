"""Each operator's rule for slices: which rows of its inputs some rows of its outputs need.

The counterpart of `_row_rules`, which goes from inputs to outputs. Rows of neighbours are computed again where a window
reaches over them, so that a slice waits for no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from parallax.graph import Node
from parallax.model._node_axes import attribute_axis, int_attribute, ints_attribute, normalised_axes, softmax_axes
from parallax.model._row_rules import (
    ELEMENTWISE,
    Rows,
    ShapedGraph,
    enlarges_by,
    padded_axes,
    reduced_axes,
    sliced_axes,
)

NO_ROWS: Final = Rows(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Need:
    """What some rows of a node's outputs need."""

    inputs: tuple[Rows | None, ...]
    """Per input the rows; None stands for all of it, `NO_ROWS` for nothing: then the part has no such input."""
    pads: tuple[int, ...] | None = None
    """Of a window at these rows, where they are others than the node's."""
    shaped: bool = False
    """Whether the node becomes a Reshape to the shape of these rows."""
    expanded: bool = False
    """Whether it takes that shape for its second input."""


Rule = Callable[[ShapedGraph, Node, Rows], Need | None]
"""Of a graph, a node and rows of its outputs. Returns None where a node cannot be computed in slices of these rows."""


def _elementwise(graph: ShapedGraph, node: Node, rows: Rows) -> Need:
    """Operands broadcast: the axis counts from the right."""
    shape = graph.shape(node.outputs[0])
    from_right = len(shape) - rows.axis
    needs: list[Rows | None] = []
    for name in node.inputs:
        own = graph.shape(name) if name else ()
        at = len(own) - from_right
        takes = at >= 0 and own[at] == shape[rows.axis] > 1
        needs.append(Rows(at, rows.low, rows.high) if takes else None)
    return Need(tuple(needs))


def _along(axes: Callable[[ShapedGraph, Node], Sequence[int] | None]) -> Rule:
    """Operators that keep the shape but for some axes, along which alone they mix elements."""

    def rule(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
        shape = graph.shape(node.inputs[0])
        mixed = axes(graph, node)
        if mixed is None or any(axis % len(shape) == rows.axis for axis in mixed):
            return None
        for name in filter(None, node.outputs):
            if len(graph.shape(name)) != len(shape) or graph.size(name, rows.axis) != shape[rows.axis]:
                return None
        return Need((rows, *[None] * (len(node.inputs) - 1)))

    return rule


def _normalisation(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    """Scale and bias are broadcast, and may have more axes than those that are normalised."""
    need = _along(normalised_axes)(graph, node, rows)
    return None if need is None else Need((rows, *_elementwise(graph, node, rows).inputs[1:]))


def _concat(graph: ShapedGraph, node: Node, rows: Rows) -> Need:
    """Along the axis that is joined, some inputs may have none of the rows."""
    if int_attribute(node, "axis", 0) % len(graph.shape(node.outputs[0])) != rows.axis:
        return Need((rows,) * len(node.inputs))
    needs = []
    begin = 0
    for name in node.inputs:
        end = begin + graph.size(name, rows.axis)
        low, high = max(rows.low, begin), min(rows.high, end)
        needs.append(Rows(rows.axis, low - begin, high - begin) if low < high else NO_ROWS)
        begin = end
    return Need(tuple(needs))


def _expand(graph: ShapedGraph, node: Node, rows: Rows) -> Need:
    shape, own = graph.shape(node.outputs[0]), graph.shape(node.inputs[0])
    at = rows.axis - (len(shape) - len(own))
    takes = at >= 0 and own[at] == shape[rows.axis] > 1
    return Need((Rows(at, rows.low, rows.high) if takes else None, None), expanded=True)


def _transpose(graph: ShapedGraph, node: Node, rows: Rows) -> Need:
    rank = len(graph.shape(node.inputs[0]))
    order = ints_attribute(node, "perm", tuple(reversed(range(rank))))
    return Need((Rows(order[rows.axis], rows.low, rows.high),))


def _reshape(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    """Rows are followed where they are one block of the other shape, too, below the same outer axes."""
    old, new = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    outer, inner = math.prod(new[: rows.axis]), math.prod(new[rows.axis + 1 :])
    for axis, size in enumerate(old):
        after = math.prod(old[axis + 1 :])
        if math.prod(old[:axis]) != outer or size == 1:
            continue
        if rows.low * inner % after or rows.high * inner % after or rows.high * inner > size * after:
            return None
        found = Rows(axis, rows.low * inner // after, rows.high * inner // after)
        return Need((found, *[None] * (len(node.inputs) - 1)), shaped=True)
    return None


def _matmul(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    out = graph.shape(node.outputs[0])
    shapes = [graph.shape(name) for name in node.inputs]
    if min(map(len, shapes)) < 2 or rows.axis == len(out) - 1:
        return None
    needs: list[Rows | None] = []
    for shape, summed in zip(shapes, (len(out) - 1, len(out) - 2), strict=True):
        own = rows.axis - (len(out) - len(shape))
        takes = rows.axis != summed and own >= 0 and shape[own] == out[rows.axis] > 1
        needs.append(Rows(own, rows.low, rows.high) if takes else None)
    return Need(tuple(needs))


def _gemm(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    if rows.axis != 0 or int_attribute(node, "transA", 0):
        return None
    added = [graph.shape(name) if name else () for name in node.inputs[2:]]
    size = graph.size(node.outputs[0], 0)
    return Need((rows, None, *(rows if len(shape) == 2 and shape[0] == size > 1 else None for shape in added)))


def _gather(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    data, indices = (graph.shape(name) for name in node.inputs)
    axis = int_attribute(node, "axis", 0) % len(data)
    if rows.axis < axis:
        return Need((rows, None))
    if rows.axis < axis + len(indices):
        return Need((None, Rows(rows.axis - axis, rows.low, rows.high)))
    return Need((Rows(rows.axis - len(indices) + 1, rows.low, rows.high), None))


def _windowed(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    """Convolution and pooling: rows at the rims of others are read twice, and padded at the model's rims only."""
    shape = graph.shape(node.inputs[0])
    spatial, count = rows.axis - 2, len(shape) - 2
    if spatial < 0 or len(node.outputs) > 1 or int_attribute(node, "ceil_mode", 0):
        return None
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    own = graph.shape(node.inputs[1])[2:] if node.op_type == "Conv" else ()
    kernel = ints_attribute(node, "kernel_shape", own)
    stride = ints_attribute(node, "strides", (1,) * count)[spatial]
    pads = list(ints_attribute(node, "pads", (0,) * (2 * count)))
    reach = (kernel[spatial] - 1) * ints_attribute(node, "dilations", (1,) * count)[spatial] + 1
    size = shape[rows.axis]
    low = rows.low * stride - pads[spatial]
    high = (rows.high - 1) * stride - pads[spatial] + reach
    if high <= 0 or low >= size:
        return None
    pads[spatial], pads[spatial + count] = max(-low, 0), max(high - size, 0)
    need = Rows(rows.axis, max(low, 0), min(high, size))
    return Need((need, *[None] * (len(node.inputs) - 1)), pads=tuple(pads))


def _resize(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    """Enlarging by a whole factor to nearest neighbours: each row becomes rows of its own."""
    size, out = graph.size(node.inputs[0], rows.axis), graph.size(node.outputs[0], rows.axis)
    by_scales = len(node.inputs) == 3 and bool(node.inputs[2])
    if not by_scales or "axes" in node.attributes or node.attributes.get("mode", "nearest") != "nearest" or out % size:
        return None
    ways = {("half_pixel", "round_prefer_floor"), ("asymmetric", "floor")}
    way = (
        node.attributes.get("coordinate_transformation_mode", "half_pixel"),
        node.attributes.get("nearest_mode", "round_prefer_floor"),
    )
    factor = out // size
    if not enlarges_by(graph, node, rows.axis, factor):
        return None
    if way not in ways or rows.low % factor or rows.high % factor:
        return None
    return Need((Rows(rows.axis, rows.low // factor, rows.high // factor), None, None))


TILE_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _along(softmax_axes)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalisation),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _along(reduced_axes)),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("AveragePool", "Conv", "MaxPool"), _windowed),
    "LpNormalization": _along(attribute_axis(-1)),
    "Split": _along(attribute_axis(0)),
    "Slice": _along(sliced_axes),
    "Pad": _along(padded_axes),
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Resize": _resize,
    "Transpose": _transpose,
}


def tile_need(graph: ShapedGraph, node: Node, rows: Rows) -> Need | None:
    """What these rows of a node's outputs need; None where it cannot be computed in slices of them."""
    rule = TILE_RULES.get(node.op_type)
    if rule is None or node.domain or node.bodies:
        return None
    return rule(graph, node, rows)
