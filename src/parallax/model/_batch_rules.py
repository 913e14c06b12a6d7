"""Which operators keep the requests of a batch apart: where the batch axis of an operator's inputs goes.

Each rule is given a node whose shapes are known and at least one input of which has a batch axis. It answers with the
axis of each output, or None where the operator mixes requests, or may. A request takes a block of consecutive elements
of that axis, the same number in every tensor along it; so an operator keeps requests apart if each output block is
computed from the same block of its inputs, and of inputs without a batch axis from anything.

The batching rules of JAX's ``vmap`` (Bradbury et al., 2018) do the same for JAX's operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from parallax.graph import Node
from parallax.model._node_axes import attribute_axis, int_attribute, ints_attribute, normalised_axes, softmax_axes


class RowView(Protocol):
    """What rules see of a graph, in the shapes of a batch of two."""

    opset: int

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises: KeyError where it is not known."""
        ...

    def rows(self, name: str) -> int | None:
        """The batch axis of a tensor; None where it has none."""
        ...

    def is_free(self, name: str) -> bool:
        """Whether a tensor is the same, whatever the batch."""
        ...

    def value(self, name: str) -> Any:
        """A small array that is the same, whatever the batch; None where it is not known."""
        ...

    def values(self, name: str) -> tuple[Any, Any] | None:
        """A small array in a batch of two and in one of three, where it follows from sizes alone; else None."""
        ...

    def batch_axis_of(self, name: str) -> int | None:
        """The one axis of an output whose size grows with the batch; None where there is not just one."""
        ...


Axes = Sequence[int | None]
Rule = Callable[[RowView, Node], Axes | None]


def _same(axis: int | None, node: Node) -> Axes | None:
    return None if axis is None else [axis] * len(node.outputs)


def _rest_is_free(view: RowView, node: Node, used: Sequence[int]) -> bool:
    """Whether all inputs but those at these places are the same, whatever the batch."""
    return all(not name or place in used or view.is_free(name) for place, name in enumerate(node.inputs))


def _elementwise(view: RowView, node: Node) -> Axes | None:
    """Operands broadcast, from the right."""
    if "broadcast" in node.attributes or ("axis" in node.attributes and node.op_type in _BEFORE_BROADCASTING):
        return None
    out = len(view.shape(node.outputs[0]))
    axis: int | None = None
    for name in node.inputs:
        own = view.rows(name) if name else None
        if own is not None:
            place = out - len(view.shape(name)) + own
            if axis not in (None, place):
                return None
            axis = place
    assert axis is not None
    for name in node.inputs:
        if name and view.rows(name) is None:
            shape = view.shape(name)
            at = axis - (out - len(shape))
            if not view.is_free(name) or (at >= 0 and shape[at] != 1):
                return None
    return _same(axis, node)


_BEFORE_BROADCASTING: Final = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater"})


def _first_alone(view: RowView, node: Node) -> Axes | None:
    """The first input counts element by element; others are parameters."""
    axis = view.rows(node.inputs[0])
    return _same(axis, node) if axis is not None and _rest_is_free(view, node, (0,)) else None


def _along(axes: Callable[[RowView, Node], Sequence[int] | None]) -> Rule:
    """Operators that keep the rank and mix elements of their first input along some axes only."""

    def rule(view: RowView, node: Node) -> Axes | None:
        axis, mixed = view.rows(node.inputs[0]), axes(view, node)
        if axis is None or mixed is None or not _rest_is_free(view, node, (0,)):
            return None
        rank = len(view.shape(node.inputs[0]))
        return None if axis in {entry % rank for entry in mixed} else _same(axis, node)

    return rule


def _from_input(place: int, attribute: str) -> Callable[[RowView, Node], Sequence[int] | None]:
    """Axes that are an input in newer versions and an attribute in older ones; None where they are not said."""

    def axes(view: RowView, node: Node) -> Sequence[int] | None:
        if len(node.inputs) > place and node.inputs[place]:
            value = view.value(node.inputs[place])
            return None if value is None else [int(axis) for axis in value.reshape(-1)]
        return ints_attribute(node, attribute) or None

    return axes


def _reduce(view: RowView, node: Node) -> Axes | None:
    axis, axes = view.rows(node.inputs[0]), _from_input(1, "axes")(view, node)
    if axis is None:
        return None
    if not axes:
        return _same(axis, node) if axes is not None and int_attribute(node, "noop_with_empty_axes", 0) else None
    return _without(view, node, axis, axes)


def _arg_reduce(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    return None if axis is None else _without(view, node, axis, (int_attribute(node, "axis", 0),))


def _without(view: RowView, node: Node, axis: int, axes: Sequence[int]) -> Axes | None:
    rank = len(view.shape(node.inputs[0]))
    gone = {entry % rank for entry in axes}
    if axis in gone:
        return None
    before = sum(entry < axis for entry in gone)
    return _same(axis if int_attribute(node, "keepdims", 1) else axis - before, node)


def _by_channels(view: RowView, node: Node) -> Axes | None:
    """(batch, channels, ...): convolutions, pooling, normalisation over what is not the batch."""
    if any(node.outputs[1:]) or int_attribute(node, "training_mode", 0):
        return None
    return [0] if view.rows(node.inputs[0]) == 0 and _rest_is_free(view, node, (0,)) else None


def _resize(view: RowView, node: Node) -> Axes | None:
    """Sizes and scales may name the batch, as long as they leave it as it is."""
    if view.rows(node.inputs[0]) != 0 or view.shape(node.inputs[0])[0] != view.shape(node.outputs[0])[0]:
        return None
    if node.attributes.get("coordinate_transformation_mode") in ("tf_crop_and_resize", b"tf_crop_and_resize"):
        return None
    return [0] if not any(name and view.rows(name) is not None for name in node.inputs[1:]) else None


def _product(left_at: int, right_at: int) -> Rule:
    def rule(view: RowView, node: Node) -> Axes | None:
        left, right = node.inputs[left_at], node.inputs[right_at]
        shapes = view.shape(left), view.shape(right)
        if min(map(len, shapes)) < 2 or not _rest_is_free(view, node, (left_at, right_at)):
            return None
        rank = len(view.shape(node.outputs[0]))
        found: set[int] = set()
        # The last axis but one of the right operand is summed over, and so is the last of the left.
        for name, shape, summed in ((left, shapes[0], rank - 1), (right, shapes[1], rank - 2)):
            own = view.rows(name)
            if own is None:
                if not view.is_free(name):
                    return None
                continue
            place = own + rank - len(shape)
            if place == summed:
                return None
            found.add(place)
        if len(found) != 1:
            return None
        axis = found.pop()
        both = view.rows(left) is not None and view.rows(right) is not None
        if axis >= rank - 2:
            return None if both else [axis]
        for name, shape in ((left, shapes[0]), (right, shapes[1])):
            at = axis + len(shape) - rank
            if view.rows(name) is None and at >= 0 and shape[at] != 1:
                return None
        return [axis]

    return rule


def _gemm(view: RowView, node: Node) -> Axes | None:
    axis = 1 if int_attribute(node, "transA", 0) else 0
    if view.rows(node.inputs[0]) != axis or not view.is_free(node.inputs[1]):
        return None
    for name in node.inputs[2:]:
        if not name:
            continue
        shape = view.shape(name)
        if view.rows(name) is not None:
            if len(shape) != 2 or view.rows(name) != 0:
                return None
        elif not view.is_free(name) or (len(shape) == 2 and shape[0] != 1):
            return None
    return [0]


def _transpose(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None:
        return None
    return [ints_attribute(node, "perm", tuple(reversed(range(len(view.shape(node.inputs[0])))))).index(axis)]


def _reshape(view: RowView, node: Node) -> Axes | None:
    """Blocks stay blocks where as many elements lie before the axis in both shapes: order is kept."""
    axis, moved = view.rows(node.inputs[0]), view.batch_axis_of(node.outputs[0])
    if axis is None or moved is None or any(view.rows(name) is not None for name in node.inputs[1:] if name):
        return None
    old, new = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    return [moved] if math.prod(old[:axis]) == math.prod(new[:moved]) else None


def _expand(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or view.rows(node.inputs[1]) is not None:
        return None
    old, new = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    moved = axis + len(new) - len(old)
    return [moved] if old[axis] == new[moved] else None


def _tile(view: RowView, node: Node) -> Axes | None:
    axis, repeats = view.rows(node.inputs[0]), view.value(node.inputs[1])
    return None if axis is None or repeats is None or repeats.reshape(-1)[axis] != 1 else [axis]


def _concat(view: RowView, node: Node) -> Axes | None:
    axes = {view.rows(name) for name in node.inputs}
    if len(axes) != 1 or (axis := axes.pop()) is None:
        return None
    return None if int_attribute(node, "axis", 0) % len(view.shape(node.outputs[0])) == axis else [axis]


_TO_THE_END: Final = 2**31 - 1
"""An end of a Slice from which on exporters mean the end of the axis."""


def _slice(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or any(view.rows(name) is not None for name in node.inputs[1:] if name):
        return None
    old, new = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    if len(node.inputs) < 2:
        starts = ints_attribute(node, "starts")
        ends: Sequence[Sequence[int]] | None = [(entry, entry) for entry in ints_attribute(node, "ends")]
        touched, steps = ints_attribute(node, "axes", range(len(starts))), (1,) * len(starts)
    else:
        given = [view.value(name) if name else None for name in (*node.inputs, *[""] * 4)[1:5]]
        if given[0] is None or (len(node.inputs) > 3 and node.inputs[3] and given[2] is None):
            return None
        starts = tuple(int(entry) for entry in given[0].reshape(-1))
        both = view.values(node.inputs[2])
        ends = None if both is None else list(zip(*(array.reshape(-1).tolist() for array in both), strict=True))
        touched = tuple(range(len(starts))) if given[2] is None else tuple(int(e) for e in given[2].reshape(-1))
        steps = (1,) * len(starts) if given[3] is None else tuple(int(entry) for entry in given[3].reshape(-1))
        if len(node.inputs) > 4 and node.inputs[4] and given[3] is None:
            return None
    for place, entry in enumerate(touched):
        if entry % len(old) != axis:
            continue
        # What ends at a number that is stated is a part of larger batches.
        is_to_end = ends is not None and (len(set(ends[place])) > 1 or ends[place][0] >= _TO_THE_END)
        if starts[place] != 0 or steps[place] != 1 or old[axis] != new[axis] or not is_to_end:
            return None
    return [axis]


def _pad(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or not _rest_is_free(view, node, (0,)):
        return None
    old, new = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    pads = _from_input(1, "pads")(view, node)
    if pads is None or len(pads) != 2 * len(old) or (len(node.inputs) > 3 and node.inputs[3]):
        return None
    return [axis] if pads[axis] == pads[axis + len(old)] == 0 and old[axis] == new[axis] else None


def _gather(view: RowView, node: Node) -> Axes | None:
    data, indices = (view.rows(name) for name in node.inputs)
    shape = view.shape(node.inputs[0])
    axis = int_attribute(node, "axis", 0) % len(shape)
    if data == axis:
        return _gather_own(view, node, axis, shape[axis] // 2)
    if data is None and indices is not None:
        return [axis + indices] if view.is_free(node.inputs[0]) else None
    if data is None or indices is not None or not view.is_free(node.inputs[1]):
        return None
    return [data if data < axis else data + len(view.shape(node.inputs[1])) - 1]


def _gather_own(view: RowView, node: Node, axis: int, block: int) -> Axes | None:
    """Indices that were computed from the number of requests, such as ``request * length + place``: each block of them
    has to point into the block of the same request, and to the same places there."""
    values, moved = view.values(node.inputs[1]), view.batch_axis_of(node.inputs[1])
    if values is None or moved is None:
        return None
    for count, array in zip((2, 3), values, strict=True):
        parts = [part - number * block for number, part in enumerate(np.split(array, count, moved))]
        if parts[0].min(initial=0) < 0 or parts[0].max(initial=0) >= block:
            return None
        if not all(np.array_equal(part, parts[0]) for part in parts):
            return None
    return [axis + moved]


def _gather_elements(view: RowView, node: Node) -> Axes | None:
    """Also for scattering: all have one shape, but for the axis along which indices count."""
    axes = {view.rows(name) for name in node.inputs}
    if len(axes) != 1 or (axis := axes.pop()) is None:
        return None
    if node.attributes.get("reduction", "none") not in ("none", b"none", "add", "mul", "min", "max"):
        return None
    sizes = {view.shape(name)[axis] for name in node.inputs}
    return (
        [axis] if axis != int_attribute(node, "axis", 0) % len(view.shape(node.inputs[0])) and len(sizes) == 1 else None
    )


def _gather_nd(view: RowView, node: Node) -> Axes | None:
    data, indices = (view.rows(name) for name in node.inputs)
    count = int_attribute(node, "batch_dims", 0)
    if data is not None and data == indices and data < count:
        return [data]
    if data is None and indices is not None and not count and view.is_free(node.inputs[0]):
        return [indices] if indices < len(view.shape(node.inputs[1])) - 1 else None
    return None


def _one_hot(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or not _rest_is_free(view, node, (0,)):
        return None
    new = int_attribute(node, "axis", -1) % (len(view.shape(node.inputs[0])) + 1)
    return [axis if axis < new else axis + 1]


def _triangle(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or not _rest_is_free(view, node, (0,)):
        return None
    return [axis] if axis < len(view.shape(node.inputs[0])) - 2 else None


def _recurrent(view: RowView, node: Node) -> Axes | None:
    """X is (time, batch, features); states are (directions, batch, hidden)."""
    expected = (1, None, None, None, 0, 1, 1, None)
    if int_attribute(node, "layout", 0):
        return None
    for place, name in enumerate(node.inputs):
        if not name:
            continue
        if view.rows(name) != expected[place] or (expected[place] is None and not view.is_free(name)):
            return None
    return [2, 1, 1][: len(node.outputs)]


def _quantise(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or not _rest_is_free(view, node, (0,)) or int_attribute(node, "block_size", 0):
        return None
    shape = view.shape(node.inputs[0])
    if math.prod(view.shape(node.inputs[1])) != 1 and int_attribute(node, "axis", 1) % len(shape) == axis:
        return None
    return _same(axis, node)


def _dropout(view: RowView, node: Node) -> Axes | None:
    training = view.value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if len(node.inputs) > 2 and node.inputs[2] and (training is None or training.any()):
        return None
    return _first_alone(view, node)


def _skip_normalised(view: RowView, node: Node) -> Axes | None:
    axis = view.rows(node.inputs[0])
    if axis is None or any(node.outputs[1:]) or not _rest_is_free(view, node, (0, 1)):
        return None
    return [axis] if view.rows(node.inputs[1]) == axis < len(view.shape(node.inputs[0])) - 1 else None


_ELEMENTWISE: Final = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu "
    "Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
_CHANNELS: Final = (
    "AveragePool BatchNormalization Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool "
    "GlobalMaxPool GroupNormalization InstanceNormalization LRN LpPool MaxPool QLinearConv SpaceToDepth"
)
_REDUCTIONS: Final = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_CHANNELS.split(), _by_channels),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg_reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _along(softmax_axes)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _along(normalised_axes)),
    **dict.fromkeys(("LpNormalization", "TopK"), _along(attribute_axis(-1))),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("GatherElements", "ScatterElements"), _gather_elements),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantise),
    "Concat": _concat,
    "CumSum": _along(_from_input(1, "axis")),
    "Dropout": _dropout,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _product(0, 1),
    "MatMulInteger": _product(0, 1),
    "MeanVarianceNormalization": _along(lambda view, node: ints_attribute(node, "axes", (0, 2, 3))),
    "OneHot": _one_hot,
    "Pad": _pad,
    "QLinearMatMul": _product(0, 3),
    "Slice": _slice,
    "Split": _along(attribute_axis(0)),
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
}
"""By operator of ONNX's own domain."""

CONTRIB_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), _elementwise),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalised),
    "SimplifiedLayerNormalization": _along(normalised_axes),
}
"""By operator of ONNX Runtime's contributed ones."""
