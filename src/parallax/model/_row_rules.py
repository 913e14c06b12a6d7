"""Each operator's rule for splitting by rows: which rows of its inputs a part needs, and where its outputs are cut.

`_rows` writes the graph by these. A rule looks at the graph and at the cuts made so far,
and changes neither; ``CutGraph.numbers`` makes a constant that a node needs which it edits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import onnx

from parallax.graph import Node, OpGraph, constant_value
from parallax.model._node_axes import attribute_axis, int_attribute, ints_attribute, normalised_axes, softmax_axes

LEAST_FLOPS: Final = 10_000_000
"""Operators with less work than this are not split by themselves, only carried along."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a tensor is cut: rows before ``at`` of ``axis`` are the first part's."""

    axis: int
    at: int


class Rows(NamedTuple):
    """Rows ``low`` to ``high`` of an axis."""

    axis: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a node is computed in two parts."""

    inputs: tuple[tuple[Rows | None, Rows | None], ...]
    """Per input and part the rows it needs; None stands for all of it."""
    outputs: tuple[Cut, ...]
    edit: Callable[[onnx.NodeProto, int], None] | None = None
    """Changes the node of a part, beyond its inputs and outputs."""
    shaped: bool = False
    """Whether it becomes a Reshape to the shape of its output's part."""


class ShapedGraph(Protocol):
    """A graph whose shapes are known, where a rule looks at them."""

    @property
    def graph(self) -> OpGraph:
        """As it was."""
        ...

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a tensor."""
        ...

    def size(self, name: str, axis: int) -> int:
        """One size of it."""
        ...


class CutGraph(ShapedGraph, Protocol):
    """The graph that is split, and where its tensors are cut so far."""

    @property
    def cuts(self) -> Mapping[str, Cut]:
        """Tensor -> where it is cut; others are whole."""
        ...

    def is_known(self, name: str) -> bool:
        """Whether a tensor has a static shape without empty axes."""
        ...

    def share_of(self, size: int, granule: int = 1) -> int | None:
        """Where to cut an axis, or None where a part would be empty or the axis is short."""
        ...

    def numbers(self, values: Iterable[int]) -> str:
        """The name of a constant, which is made for it."""
        ...


Rule = Callable[[CutGraph, Node], Recipe | None]
"""Returns None where a node cannot be computed in parts."""


def _both(cut: Cut, size: int) -> tuple[Rows, Rows]:
    return Rows(cut.axis, 0, cut.at), Rows(cut.axis, cut.at, size)


_ALL: Final[tuple[None, None]] = (None, None)


def _first_cut(writer: CutGraph, node: Node) -> tuple[int, Cut]:
    return next((place, writer.cuts[name]) for place, name in enumerate(node.inputs) if name in writer.cuts)


def _elementwise(writer: CutGraph, node: Node) -> Recipe | None:
    """Operands broadcast: the axis counts from the right."""
    place, cut = _first_cut(writer, node)
    shape = writer.shape(node.outputs[0])
    from_right = len(writer.shape(node.inputs[place])) - cut.axis
    axis = len(shape) - from_right
    size = shape[axis]
    if writer.size(node.inputs[place], cut.axis) != size:
        return None
    needs: list[tuple[Rows | None, Rows | None]] = []
    for name in node.inputs:
        own = writer.shape(name) if name else ()
        at = len(own) - from_right
        needs.append(_both(Cut(at, cut.at), size) if name and at >= 0 and own[at] == size else _ALL)
    return Recipe(tuple(needs), (Cut(axis, cut.at),))


def _along(axes: Callable[[CutGraph, Node], Sequence[int] | None]) -> Rule:
    """Operators that keep the shape, or shrink some axes to 1, and mix elements along ``axes`` only."""

    def rule(writer: CutGraph, node: Node) -> Recipe | None:
        place, cut = _first_cut(writer, node)
        rank = len(writer.shape(node.inputs[0]))
        mixed = axes(writer, node)
        if place != 0 or mixed is None or any(axis % rank == cut.axis for axis in mixed):
            return None
        size = writer.size(node.inputs[0], cut.axis)
        for name in node.outputs:
            if name and (len(writer.shape(name)) != rank or writer.size(name, cut.axis) != size):
                return None
        needs = (_both(cut, size), *[_ALL] * (len(node.inputs) - 1))
        return Recipe(needs, (cut,) * len(node.outputs))

    return rule


def _normalisation(writer: CutGraph, node: Node) -> Recipe | None:
    """Scale and bias are broadcast, and may have more axes than those that are normalised."""
    recipe, broadcast = _along(normalised_axes)(writer, node), _elementwise(writer, node)
    if recipe is None or broadcast is None:
        return None
    return Recipe((recipe.inputs[0], *broadcast.inputs[1:]), recipe.outputs)


def reduced_axes(graph: ShapedGraph, node: Node) -> Sequence[int] | None:
    if not int_attribute(node, "keepdims", 1):
        return None
    if "axes" in node.attributes:
        return ints_attribute(node, "axes", ())
    if len(node.inputs) > 1 and node.inputs[1]:
        value = constant_value(graph.graph, node.inputs[1])
        return None if value is None else [int(axis) for axis in value.ravel()]
    return None


def sliced_axes(graph: ShapedGraph, node: Node) -> Sequence[int] | None:
    if len(node.inputs) < 2:
        return None
    if len(node.inputs) > 3 and node.inputs[3]:
        value = constant_value(graph.graph, node.inputs[3])
        return None if value is None else [int(axis) for axis in value.ravel()]
    return range(graph.size(node.inputs[1], 0))


def padded_axes(graph: ShapedGraph, node: Node) -> Sequence[int] | None:
    if len(node.inputs) < 2 or (len(node.inputs) > 3 and node.inputs[3]):
        return None
    value = constant_value(graph.graph, node.inputs[1])
    if value is None:
        return None
    rank = value.size // 2
    pads = value.ravel()
    return [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]


def _expand(writer: CutGraph, node: Node) -> Recipe | None:
    place, cut = _first_cut(writer, node)
    shape = list(writer.shape(node.outputs[0]))
    own = writer.shape(node.inputs[0])
    axis = len(shape) - len(own) + cut.axis
    if place != 0 or shape[axis] != own[cut.axis]:
        return None

    def edit(proto: onnx.NodeProto, part: int) -> None:
        wanted = [*shape]
        wanted[axis] = cut.at if part == 0 else shape[axis] - cut.at
        proto.input[1] = writer.numbers(wanted)

    return Recipe((_both(cut, own[cut.axis]), _ALL), (Cut(axis, cut.at),), edit)


def _concat(writer: CutGraph, node: Node) -> Recipe | None:
    _, cut = _first_cut(writer, node)
    shape = writer.shape(node.outputs[0])
    if int_attribute(node, "axis", 0) % len(shape) == cut.axis:
        return None
    return Recipe((_both(cut, shape[cut.axis]),) * len(node.inputs), (cut,))


def _transpose(writer: CutGraph, node: Node) -> Recipe | None:
    _, cut = _first_cut(writer, node)
    shape = writer.shape(node.inputs[0])
    order = ints_attribute(node, "perm", tuple(reversed(range(len(shape)))))
    return Recipe((_both(cut, shape[cut.axis]),), (Cut(order.index(cut.axis), cut.at),))


def _reshape(writer: CutGraph, node: Node) -> Recipe | None:
    """The cut goes on where the axis is the outermost of a group of axes that becomes another such group."""
    place, cut = _first_cut(writer, node)
    if place != 0:
        return None
    old, new = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    found = _follow(old, new, cut)
    if found is None:
        return None
    rest = (_ALL,) * (len(node.inputs) - 1)
    return Recipe((_both(cut, old[cut.axis]), *rest), (found,), shaped=True)


def _follow(old: Sequence[int], new: Sequence[int], cut: Cut) -> Cut | None:
    """Where a cut lies after a reshape, or None where a part would not be one block of the other shape."""
    outer = math.prod(old[: cut.axis])
    if cut.axis and outer > 1 and not _divides_at(new, outer):
        # An axis before it is not whole in the new shape: parts of it would be interleaved.
        return None
    inner = math.prod(old[cut.axis + 1 :]) * cut.at
    before = 1
    for axis, size in enumerate(new):
        after = math.prod(new[axis + 1 :])
        if before == outer and size > 1 and inner % after == 0 and 0 < inner // after < size:
            return Cut(axis, inner // after)
        if before > outer:
            return None
        before *= size
    return None


def _divides_at(shape: Sequence[int], product: int) -> bool:
    total = 1
    for size in shape:
        if total == product:
            return True
        total *= size
    return total == product


def _matmul(writer: CutGraph, node: Node) -> Recipe | None:
    left, right = writer.shape(node.inputs[0]), writer.shape(node.inputs[1])
    out = writer.shape(node.outputs[0])
    if len(left) < 2 or len(right) < 2:
        return None
    rank = len(out)
    cuts = [writer.cuts.get(name) for name in node.inputs]
    if cuts[0] is not None and cuts[0].axis != len(left) - 1:
        axis, at = cuts[0].axis + rank - len(left), cuts[0].at
        if left[cuts[0].axis] != out[axis]:
            return None
    elif cuts[1] is not None and cuts[1].axis != len(right) - 2:
        axis, at = cuts[1].axis + rank - len(right), cuts[1].at
        if right[cuts[1].axis] != out[axis]:
            return None
    else:
        return None
    needs: list[tuple[Rows | None, Rows | None]] = []
    for shape, summed in ((left, rank - 1), (right, rank - 2)):
        own = axis - (rank - len(shape))
        takes = axis != summed and own >= 0 and shape[own] == out[axis]
        needs.append(_both(Cut(own, at), out[axis]) if takes else _ALL)
    return Recipe(tuple(needs), (Cut(axis, at),))


def _gemm(writer: CutGraph, node: Node) -> Recipe | None:
    cut = writer.cuts.get(node.inputs[0])
    rows = 1 if int_attribute(node, "transA", 0) else 0
    if cut is None or cut.axis != rows:
        return None
    size = writer.size(node.inputs[0], rows)
    needs: list[tuple[Rows | None, Rows | None]] = [_both(cut, size), _ALL]
    for name in node.inputs[2:]:
        added = writer.shape(name) if name else ()
        needs.append(_both(Cut(0, cut.at), size) if len(added) == 2 and added[0] == size > 1 else _ALL)
    return Recipe(tuple(needs), (Cut(0, cut.at),))


def _gather(writer: CutGraph, node: Node) -> Recipe | None:
    place, cut = _first_cut(writer, node)
    data, indices = (writer.shape(name) for name in node.inputs)
    axis = int_attribute(node, "axis", 0) % len(data)
    if place == 1:
        return Recipe((_ALL, _both(cut, indices[cut.axis])), (Cut(axis + cut.axis, cut.at),))
    if cut.axis == axis:
        return None
    moved = cut.axis if cut.axis < axis else cut.axis + len(indices) - 1
    return Recipe((_both(cut, data[cut.axis]), _ALL), (Cut(moved, cut.at),))


def _windowed(writer: CutGraph, node: Node) -> Recipe | None:
    """Convolution and pooling: each part needs some lines of the other, and is padded at the model's rims only."""
    place, cut = _first_cut(writer, node)
    shape, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    spatial = cut.axis - 2
    if place != 0 or spatial < 0 or len(node.outputs) > 1:
        return None
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or int_attribute(node, "ceil_mode", 0):
        return None
    if node.op_type == "Conv" and (
        node.inputs[1] in writer.cuts or any(name in writer.cuts for name in node.inputs[2:])
    ):
        return None
    count = len(shape) - 2
    kernel = ints_attribute(node, "kernel_shape", writer.shape(node.inputs[1])[2:] if node.op_type == "Conv" else ())
    stride = ints_attribute(node, "strides", (1,) * count)[spatial]
    pads = ints_attribute(node, "pads", (0,) * (2 * count))
    reach = (kernel[spatial] - 1) * ints_attribute(node, "dilations", (1,) * count)[spatial] + 1
    begin = pads[spatial]
    size, lines = shape[cut.axis], out[cut.axis]
    at = round(cut.at * lines / size)
    high = (at - 1) * stride - begin + reach
    low = at * stride - begin
    if not 0 < at < lines or high <= 0 or low >= size:
        return None
    below, above = max(high - size, 0), max(-low, 0)

    def edit(proto: onnx.NodeProto, part: int) -> None:
        own = [*pads]
        if part == 0:
            own[spatial + count] = below
        else:
            own[spatial] = above
        for attribute in [entry for entry in proto.attribute if entry.name in ("pads", "auto_pad")]:
            proto.attribute.remove(attribute)
        proto.attribute.append(onnx.helper.make_attribute("pads", own))

    needs = (Rows(cut.axis, 0, min(high, size)), Rows(cut.axis, max(low, 0), size))
    return Recipe((needs, *[_ALL] * (len(node.inputs) - 1)), (Cut(cut.axis, at),), edit)


def enlarges_by(graph: ShapedGraph, node: Node, axis: int, factor: int) -> bool:
    """Whether the scale of an axis is known and just this. Sizes do not tell: 500 rows scaled by 2.001 are 1000."""
    scales = constant_value(graph.graph, node.inputs[2])
    return scales is not None and scales.size > axis and float(scales.ravel()[axis]) == factor


def _resize(writer: CutGraph, node: Node) -> Recipe | None:
    """Enlarging by a whole factor to nearest neighbours: each line becomes lines of its own."""
    place, cut = _first_cut(writer, node)
    shape, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    if place != 0 or len(node.inputs) < 3 or not node.inputs[2] or (len(node.inputs) > 3 and node.inputs[3]):
        return None
    if node.attributes.get("mode", "nearest") != "nearest" or out[cut.axis] % shape[cut.axis]:
        return None
    if "axes" in node.attributes or node.attributes.get("coordinate_transformation_mode", "half_pixel") not in (
        "half_pixel",
        "asymmetric",
    ):
        return None
    if node.attributes.get("nearest_mode", "round_prefer_floor") not in ("round_prefer_floor", "floor"):
        return None
    half = node.attributes.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    floor = node.attributes.get("nearest_mode", "round_prefer_floor") == "floor"
    if half == floor:
        # Nearest to the centre of a line, rounded, or the line that a corner lies in: the others look at neighbours.
        return None
    factor = out[cut.axis] // shape[cut.axis]
    if not enlarges_by(writer, node, cut.axis, factor):
        return None
    needs = (_both(cut, shape[cut.axis]), *[_ALL] * (len(node.inputs) - 1))
    return Recipe(needs, (Cut(cut.axis, cut.at * factor),))


def _start_rows(writer: CutGraph, node: Node) -> Cut | None:
    """Where to cut the left operand of a matrix product: its batch if it has one, else its rows."""
    left, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    if len(left) < 2 or int_attribute(node, "transA", 0):
        return None
    if 2 * math.prod(out) * left[-1] < LEAST_FLOPS:
        return None
    granule = 1
    producer = writer.graph.producers.get(node.inputs[0])
    if len(left) == 2 and producer is not None and writer.graph.nodes[producer].op_type == "Reshape":
        # Rows that were several axes are cut between the outermost ones, so that the cut is one there too.
        source = writer.graph.nodes[producer].inputs[0]
        if writer.is_known(source):
            sizes = [size for size in writer.shape(source)[:-1] if size > 1]
            if len(sizes) > 1 and math.prod(sizes) == left[0]:
                granule = math.prod(sizes[1:])
    axis = next((axis for axis, size in enumerate(left[:-1]) if size > 1), None)
    at = None if axis is None else writer.share_of(left[axis], granule)
    return None if axis is None or at is None else Cut(axis, at)


def _start_lines(writer: CutGraph, node: Node) -> Cut | None:
    """Where to cut the input of a convolution: the first of its spatial axes."""
    shape, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    kernel = writer.shape(node.inputs[1])
    if len(shape) < 3 or 2 * math.prod(out) * math.prod(kernel[1:]) < LEAST_FLOPS:
        return None
    at = writer.share_of(shape[2])
    return None if at is None else Cut(2, at)


STARTS: Final[Mapping[str, Callable[[CutGraph, Node], Cut | None]]] = {
    "Conv": _start_lines,
    "Gemm": _start_rows,
    "MatMul": _start_rows,
}

ELEMENTWISE: Final = (
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu"),
    *("Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log"),
    *("Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sin"),
    *("Softplus", "Sqrt", "Sub", "Tanh", "Where"),
)

MOVES: Final = frozenset(
    {
        "Cast",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators past which a runtime moves the dequantisation of what they read."""

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Softmax": _along(softmax_axes),
    "LogSoftmax": _along(softmax_axes),
    "LpNormalization": _along(attribute_axis(-1)),
    "LayerNormalization": _normalisation,
    "RMSNormalization": _normalisation,
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _along(reduced_axes)),
    "Split": _along(attribute_axis(0)),
    "Slice": _along(sliced_axes),
    "Pad": _along(padded_axes),
    "Concat": _concat,
    "Conv": _windowed,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _windowed,
    "AveragePool": _windowed,
    "Reshape": _reshape,
    "Resize": _resize,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
