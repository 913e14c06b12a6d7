"""Splitting operators by rows: a model in which two independent halves do what one operator did.

Where a graph is a chain, nothing of it can run beside anything else. But most operators compute their rows apart (the
tokens of a text, the lines of an image), so a chain can be made two: the rows of one part are computed on one side, and
those of the other part on the other, until an operator needs rows of both. CoDL (Jia et al., MobiSys 2022) splits
single operators between processor and accelerator; here the cut is carried on through all that keeps rows apart, as
GSPMD (Xu et al., arXiv 2105.04663) carries shardings, so that only what is really needed crosses: keys and values of
attention, the lines at the rim of a convolution.

A rewrite of the graph alone. No weight is cut or copied, and every sum adds the same terms, so that results are equal
up to the kernels that a runtime chooses for other shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.errors import ConfigError
from parallax.graph import Node, OpGraph, constant_value
from parallax.model._model import Model

LEAST_FLOPS: Final = 10_000_000
"""Operators with less work than this are not split by themselves, only carried along."""

_LEAST_OPSET: Final = 10
"""Before, Slice took its bounds as attributes."""

LEAST_ROWS: Final = 8
"""Axes that are shorter are not split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSplit:
    """A model split by rows, and which of its nodes compute which part."""

    model: Model
    parts: tuple[frozenset[str], frozenset[str]]
    """Names of the nodes of either part. What is in neither is computed once, for both."""
    origins: Mapping[str, int]
    """Node of a part -> index of the model's node that it does a part of; what cuts and joins has none."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a tensor is cut: rows before ``at`` of ``axis`` are the first part's."""

    axis: int
    at: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows ``low`` to ``high`` of an axis."""

    axis: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a node is computed in two parts."""

    inputs: tuple[tuple[_Rows | None, _Rows | None], ...]
    """Per input and part the rows it needs; None stands for all of it."""
    outputs: tuple[_Cut, ...]
    edit: Callable[[onnx.NodeProto, int], None] | None = None
    """Changes the node of a part, beyond its inputs and outputs."""
    shaped: bool = False
    """Whether it becomes a Reshape to the shape of its output's part."""


def split_rows(model: Model, share: float) -> RowSplit | None:
    """Split what can be split: ``share`` of the rows in the first part, the others in the second.

    Operators with enough work are cut (convolutions by lines, matrix products by rows or by batch), and the cut is
    carried on through what follows. Shapes must be known where something is split; everything else stays as it is.

    Args:
        share: above 0 and below 1.

    Returns: None where nothing can be split. Linear in the graph.

    Raises: ConfigError if ``share`` is out of bounds.
    """
    if not 0 < share < 1:
        raise ConfigError(f"a share of {share}", fix="give a share above 0 and below 1")
    opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
    if opset < _LEAST_OPSET:
        return None
    writer = _Writer(model.inferred(), model.protos, share, opset)
    for node in writer.graph.nodes:
        writer.write(node)
    if not writer.cuts:
        return None
    for info in writer.graph.outputs:
        writer.whole(info.name)
    return RowSplit(
        model=model.rewritten(writer.nodes, writer.constants.values()),
        parts=(frozenset(writer.parts[0]), frozenset(writer.parts[1])),
        origins=writer.origins,
    )


@dataclass(slots=True)
class _Writer:
    """The new graph, as far as it is written; tensors of the old one are whole or cut."""

    graph: OpGraph
    protos: Sequence[onnx.NodeProto]
    share: float
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[int, ...], onnx.TensorProto] = field(default_factory=dict)
    cuts: dict[str, _Cut] = field(default_factory=dict)
    parts: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    origins: dict[str, int] = field(default_factory=dict)
    made: dict[tuple[object, ...], str] = field(default_factory=dict)
    taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph
        self.taken = {*graph.tensors, *graph.producers, *graph.consumers, *(node.name for node in graph.nodes)}

    def write(self, node: Node) -> None:
        """Write a node, in two parts where that can be done."""
        recipe = self._recipe(node)
        if recipe is None:
            for name in (*node.inputs, *node.captures):
                self.whole(name)
            self.nodes.append(self.protos[node.index])
            return
        for name, cut in zip(node.outputs, recipe.outputs, strict=True):
            if name:
                self.cuts[name] = cut
        for part in (0, 1):
            proto = onnx.NodeProto()
            proto.CopyFrom(self.protos[node.index])
            proto.name = self._new(f"{node.name}_rows{part}")
            del proto.input[:], proto.output[:]
            for name, needs in zip(node.inputs, recipe.inputs, strict=True):
                need = needs[part]
                if not name or (need is None and name not in self.cuts):
                    proto.input.append(name)
                else:
                    proto.input.append(self.rows(name, need or _Rows(0, 0, self.size(name, 0)), part))
            proto.output.extend([self.part(name, part) if name else "" for name in node.outputs])
            if recipe.shaped:
                shape = list(self.shape(node.outputs[0]))
                cut = recipe.outputs[0]
                shape[cut.axis] = cut.at if part == 0 else shape[cut.axis] - cut.at
                proto.op_type, proto.domain = "Reshape", ""
                del proto.attribute[:]
                del proto.input[1:]
                proto.input.append(self.numbers(shape))
            if recipe.edit is not None:
                recipe.edit(proto, part)
            self.nodes.append(proto)
            self.parts[part].add(proto.name)
            self.origins[proto.name] = node.index

    # Tensors ---------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a tensor of the old graph."""
        info = self.graph.tensors[name]
        assert info.shape is not None
        return tuple(int(size) for size in info.shape if isinstance(size, int))

    def size(self, name: str, axis: int) -> int:
        return self.shape(name)[axis]

    def is_known(self, name: str) -> bool:
        """Whether a tensor has a static shape without empty axes."""
        info = self.graph.tensors.get(name)
        return info is not None and info.kind == "tensor" and info.is_static and 0 not in (info.shape or ())

    def part(self, name: str, part: int) -> str:
        """The name of a part of a tensor that is cut."""
        key = ("part", name, part)
        if key not in self.made:
            self.made[key] = self._new(f"{name}_rows{part}")
        return self.made[key]

    def whole(self, name: str) -> None:
        """See to it that a tensor is there under its own name."""
        if name not in self.cuts or ("whole", name) in self.made:
            return
        self.made["whole", name] = name
        self._concat([self.part(name, 0), self.part(name, 1)], self.cuts[name].axis, name, None)

    def rows(self, name: str, rows: _Rows, part: int) -> str:
        """Some rows of a tensor, for a part."""
        cut = self.cuts.get(name)
        size = self.size(name, rows.axis)
        if cut is None:
            if (rows.low, rows.high) == (0, size):
                return name
            return self._slice(name, rows, None)
        if cut.axis != rows.axis:
            if (rows.low, rows.high) != (0, size):
                everything = self.rows(name, _Rows(cut.axis, 0, self.size(name, cut.axis)), part)
                return self._slice(everything, rows, part)
            rows = _Rows(cut.axis, 0, self.size(name, cut.axis))
        pieces = []
        for home, (begin, end) in enumerate(((0, cut.at), (cut.at, self.size(name, cut.axis)))):
            low, high = max(begin, rows.low), min(end, rows.high)
            if low >= high:
                continue
            piece = self.part(name, home)
            if (low, high) != (begin, end):
                # Cut where it was made, so that only these rows cross.
                piece = self._slice(piece, _Rows(cut.axis, low - begin, high - begin), home)
            pieces.append(piece)
        if len(pieces) == 1:
            return pieces[0]
        key = ("rows", name, rows, part)
        if key not in self.made:
            self.made[key] = self._new(f"{name}_rows{rows.low}to{rows.high}_{part}")
            self._concat(pieces, cut.axis, self.made[key], part)
        return self.made[key]

    def numbers(self, values: Iterable[int]) -> str:
        """The name of a constant."""
        key = tuple(values)
        if key not in self.constants:
            name = self._new(f"rows_constant{len(self.constants)}")
            self.constants[key] = numpy_helper.from_array(np.array(key, np.int64), name)
        return str(self.constants[key].name)

    def _slice(self, name: str, rows: _Rows, part: int | None) -> str:
        key = ("slice", name, rows)
        if key not in self.made:
            self.made[key] = self._new(f"{name}_rows{rows.low}to{rows.high}")
            inputs = [name, *(self.numbers((number,)) for number in (rows.low, rows.high, rows.axis))]
            self._add(onnx.helper.make_node("Slice", inputs, [self.made[key]]), part)
        return self.made[key]

    def _concat(self, names: Sequence[str], axis: int, output: str, part: int | None) -> None:
        self._add(onnx.helper.make_node("Concat", names, [output], axis=axis), part)

    def _add(self, proto: onnx.NodeProto, part: int | None) -> None:
        proto.name = self._new(f"{proto.op_type}_{proto.output[0]}")
        self.nodes.append(proto)
        if part is not None:
            self.parts[part].add(proto.name)

    def _new(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    # Rules -----------------------------------------------------------------------------------------------

    def _recipe(self, node: Node) -> _Recipe | None:
        if node.domain or node.bodies or not all(self.is_known(name) for name in node.outputs if name):
            return None
        if not all(self.is_known(name) for name in node.inputs if name):
            return None
        rule = _RULES.get(node.op_type)
        if rule is None or any(self._is_dequantised(name) for name in node.inputs):
            return None
        if any(name in self.cuts for name in node.inputs):
            return rule(self, node)
        start = _STARTS.get(node.op_type)
        if start is None or node.inputs[0] in self.graph.initializers:
            return None
        cut = start(self, node)
        if cut is None:
            return None
        # As if its first input were cut there.
        name = node.inputs[0]
        self.cuts[name] = cut
        recipe = rule(self, node)
        del self.cuts[name]
        return recipe

    def _is_dequantised(self, name: str) -> bool:
        """Whether a tensor is dequantised, and at most moved or cast since. O(nodes in between).

        What reads it is fused with its dequantisation into a kernel of another precision, which two readers, or a slice
        in between, prevent.
        """
        while (producer := self.graph.producers.get(name)) is not None:
            node = self.graph.nodes[producer]
            if node.op_type == "DequantizeLinear":
                return True
            if node.op_type not in _MOVES:
                return False
            name = node.inputs[0]
        return False

    def share_of(self, size: int, granule: int = 1) -> int | None:
        """Where to cut an axis, or None where a part would be empty or the axis is short."""
        count = size // granule
        at = min(max(round(self.share * count), 1), count - 1)
        return at * granule if size >= LEAST_ROWS and count >= 2 else None

    def ints(self, node: Node, attribute: str, default: Sequence[int]) -> tuple[int, ...]:
        value = node.attributes.get(attribute)
        return tuple(value) if isinstance(value, tuple) else tuple(default)

    def int(self, node: Node, attribute: str, default: int) -> int:
        value = node.attributes.get(attribute)
        return value if isinstance(value, int) else default


_Rule = Callable[[_Writer, Node], _Recipe | None]


def _both(cut: _Cut, size: int) -> tuple[_Rows, _Rows]:
    return _Rows(cut.axis, 0, cut.at), _Rows(cut.axis, cut.at, size)


_ALL: Final[tuple[None, None]] = (None, None)


def _first_cut(writer: _Writer, node: Node) -> tuple[int, _Cut]:
    return next((place, writer.cuts[name]) for place, name in enumerate(node.inputs) if name in writer.cuts)


def _elementwise(writer: _Writer, node: Node) -> _Recipe | None:
    """Operands broadcast: the axis counts from the right."""
    place, cut = _first_cut(writer, node)
    shape = writer.shape(node.outputs[0])
    from_right = len(writer.shape(node.inputs[place])) - cut.axis
    axis = len(shape) - from_right
    size = shape[axis]
    if writer.size(node.inputs[place], cut.axis) != size:
        return None
    needs: list[tuple[_Rows | None, _Rows | None]] = []
    for name in node.inputs:
        own = writer.shape(name) if name else ()
        at = len(own) - from_right
        needs.append(_both(_Cut(at, cut.at), size) if name and at >= 0 and own[at] == size else _ALL)
    return _Recipe(tuple(needs), (_Cut(axis, cut.at),))


def _along(axes: Callable[[_Writer, Node], Sequence[int] | None]) -> _Rule:
    """Operators that keep the shape, or shrink some axes to 1, and mix elements along ``axes`` only."""

    def rule(writer: _Writer, node: Node) -> _Recipe | None:
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
        return _Recipe(needs, (cut,) * len(node.outputs))

    return rule


def _one_axis(default: int) -> Callable[[_Writer, Node], Sequence[int]]:
    return lambda writer, node: (writer.int(node, "axis", default),)


def _softmax_axes(writer: _Writer, node: Node) -> Sequence[int]:
    """Before opset 13 the axes from one on were taken for a single one."""
    if writer.opset >= 13:
        return (writer.int(node, "axis", -1),)
    rank = len(writer.shape(node.inputs[0]))
    return range(writer.int(node, "axis", 1) % rank, rank)


def _normalised_axes(writer: _Writer, node: Node) -> Sequence[int]:
    rank = len(writer.shape(node.inputs[0]))
    return range(writer.int(node, "axis", -1) % rank, rank)


def _reduced_axes(writer: _Writer, node: Node) -> Sequence[int] | None:
    if not writer.int(node, "keepdims", 1):
        return None
    if "axes" in node.attributes:
        return writer.ints(node, "axes", ())
    if len(node.inputs) > 1 and node.inputs[1]:
        value = constant_value(writer.graph, node.inputs[1])
        return None if value is None else [int(axis) for axis in value.ravel()]
    return None


def _sliced_axes(writer: _Writer, node: Node) -> Sequence[int] | None:
    if len(node.inputs) < 2:
        return None
    if len(node.inputs) > 3 and node.inputs[3]:
        value = constant_value(writer.graph, node.inputs[3])
        return None if value is None else [int(axis) for axis in value.ravel()]
    return range(writer.size(node.inputs[1], 0))


def _padded_axes(writer: _Writer, node: Node) -> Sequence[int] | None:
    if len(node.inputs) < 2 or (len(node.inputs) > 3 and node.inputs[3]):
        return None
    value = constant_value(writer.graph, node.inputs[1])
    if value is None:
        return None
    rank = value.size // 2
    pads = value.ravel()
    return [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]


def _expand(writer: _Writer, node: Node) -> _Recipe | None:
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

    return _Recipe((_both(cut, own[cut.axis]), _ALL), (_Cut(axis, cut.at),), edit)


def _concat(writer: _Writer, node: Node) -> _Recipe | None:
    _, cut = _first_cut(writer, node)
    shape = writer.shape(node.outputs[0])
    if writer.int(node, "axis", 0) % len(shape) == cut.axis:
        return None
    return _Recipe((_both(cut, shape[cut.axis]),) * len(node.inputs), (cut,))


def _transpose(writer: _Writer, node: Node) -> _Recipe | None:
    _, cut = _first_cut(writer, node)
    shape = writer.shape(node.inputs[0])
    order = writer.ints(node, "perm", tuple(reversed(range(len(shape)))))
    return _Recipe((_both(cut, shape[cut.axis]),), (_Cut(order.index(cut.axis), cut.at),))


def _reshape(writer: _Writer, node: Node) -> _Recipe | None:
    """The cut goes on where the axis is the outermost of a group of axes that becomes another such group."""
    place, cut = _first_cut(writer, node)
    if place != 0:
        return None
    old, new = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    found = _follow(old, new, cut)
    if found is None:
        return None
    rest = (_ALL,) * (len(node.inputs) - 1)
    return _Recipe((_both(cut, old[cut.axis]), *rest), (found,), shaped=True)


def _follow(old: Sequence[int], new: Sequence[int], cut: _Cut) -> _Cut | None:
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
            return _Cut(axis, inner // after)
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


def _matmul(writer: _Writer, node: Node) -> _Recipe | None:
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
    needs: list[tuple[_Rows | None, _Rows | None]] = []
    for shape, summed in ((left, rank - 1), (right, rank - 2)):
        own = axis - (rank - len(shape))
        takes = axis != summed and own >= 0 and shape[own] == out[axis]
        needs.append(_both(_Cut(own, at), out[axis]) if takes else _ALL)
    return _Recipe(tuple(needs), (_Cut(axis, at),))


def _gemm(writer: _Writer, node: Node) -> _Recipe | None:
    cut = writer.cuts.get(node.inputs[0])
    rows = 1 if writer.int(node, "transA", 0) else 0
    if cut is None or cut.axis != rows:
        return None
    size = writer.size(node.inputs[0], rows)
    needs: list[tuple[_Rows | None, _Rows | None]] = [_both(cut, size), _ALL]
    for name in node.inputs[2:]:
        added = writer.shape(name) if name else ()
        needs.append(_both(_Cut(0, cut.at), size) if len(added) == 2 and added[0] == size > 1 else _ALL)
    return _Recipe(tuple(needs), (_Cut(0, cut.at),))


def _gather(writer: _Writer, node: Node) -> _Recipe | None:
    place, cut = _first_cut(writer, node)
    data, indices = (writer.shape(name) for name in node.inputs)
    axis = writer.int(node, "axis", 0) % len(data)
    if place == 1:
        return _Recipe((_ALL, _both(cut, indices[cut.axis])), (_Cut(axis + cut.axis, cut.at),))
    if cut.axis == axis:
        return None
    moved = cut.axis if cut.axis < axis else cut.axis + len(indices) - 1
    return _Recipe((_both(cut, data[cut.axis]), _ALL), (_Cut(moved, cut.at),))


def _windowed(writer: _Writer, node: Node) -> _Recipe | None:
    """Convolution and pooling: each part needs some lines of the other, and is padded at the model's rims only."""
    place, cut = _first_cut(writer, node)
    shape, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    spatial = cut.axis - 2
    if place != 0 or spatial < 0 or len(node.outputs) > 1:
        return None
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or writer.int(node, "ceil_mode", 0):
        return None
    if node.op_type == "Conv" and (
        node.inputs[1] in writer.cuts or any(name in writer.cuts for name in node.inputs[2:])
    ):
        return None
    count = len(shape) - 2
    kernel = writer.ints(node, "kernel_shape", writer.shape(node.inputs[1])[2:] if node.op_type == "Conv" else ())
    stride = writer.ints(node, "strides", (1,) * count)[spatial]
    pads = writer.ints(node, "pads", (0,) * (2 * count))
    reach = (kernel[spatial] - 1) * writer.ints(node, "dilations", (1,) * count)[spatial] + 1
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

    needs = (_Rows(cut.axis, 0, min(high, size)), _Rows(cut.axis, max(low, 0), size))
    return _Recipe((needs, *[_ALL] * (len(node.inputs) - 1)), (_Cut(cut.axis, at),), edit)


def _resize(writer: _Writer, node: Node) -> _Recipe | None:
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
    needs = (_both(cut, shape[cut.axis]), *[_ALL] * (len(node.inputs) - 1))
    return _Recipe(needs, (_Cut(cut.axis, cut.at * factor),))


def _start_rows(writer: _Writer, node: Node) -> _Cut | None:
    """Where to cut the left operand of a matrix product: its batch if it has one, else its rows."""
    left, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    if len(left) < 2 or writer.int(node, "transA", 0):
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
    return None if axis is None or at is None else _Cut(axis, at)


def _start_lines(writer: _Writer, node: Node) -> _Cut | None:
    """Where to cut the input of a convolution: the first of its spatial axes."""
    shape, out = writer.shape(node.inputs[0]), writer.shape(node.outputs[0])
    kernel = writer.shape(node.inputs[1])
    if len(shape) < 3 or 2 * math.prod(out) * math.prod(kernel[1:]) < LEAST_FLOPS:
        return None
    at = writer.share_of(shape[2])
    return None if at is None else _Cut(2, at)


_STARTS: Final[Mapping[str, Callable[[_Writer, Node], _Cut | None]]] = {
    "Conv": _start_lines,
    "Gemm": _start_rows,
    "MatMul": _start_rows,
}

_ELEMENTWISE: Final = (
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu"),
    *("Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log"),
    *("Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sin"),
    *("Softplus", "Sqrt", "Sub", "Tanh", "Where"),
)

_MOVES: Final = frozenset(
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

_RULES: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "Softmax": _along(_softmax_axes),
    "LogSoftmax": _along(_softmax_axes),
    "LpNormalization": _along(_one_axis(-1)),
    "LayerNormalization": _along(_normalised_axes),
    "RMSNormalization": _along(_normalised_axes),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _along(_reduced_axes)),
    "Split": _along(_one_axis(0)),
    "Slice": _along(_sliced_axes),
    "Pad": _along(_padded_axes),
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
