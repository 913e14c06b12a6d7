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

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.errors import ConfigError
from parallax.graph import Node, OpGraph
from parallax.model._computed import read_by_outputs
from parallax.model._model import Model
from parallax.model._row_rules import MOVES, RULES, STARTS, Cut, Recipe, Rows

LEAST_OPSET: Final = 10
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


def split_rows(model: Model, share: float, *, whole: Collection[str] = (), joins_once: bool = False) -> RowSplit | None:
    """Split what can be split: ``share`` of the rows in the first part, the others in the second.

    Operators with enough work are cut (convolutions by lines, matrix products by rows or by batch), and the cut is
    carried on through what follows. Shapes must be known where something is split; everything else stays as it is.

    Args:
        share: above 0 and below 1.
        whole: names of tensors that stay whole: what makes one is not cut. Names that the model has not say nothing.
        joins_once: whether a tensor that both parts need all rows of is joined once, and what nobody reads any more is
            left out, which takes less memory; else each part joins its own, beside the other.

    Returns: None where nothing can be split. Linear in the graph.

    Raises: ConfigError if ``share`` is out of bounds.
    """
    if not 0 < share < 1:
        raise ConfigError(f"a share of {share}", fix="give a share above 0 and below 1")
    opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
    if opset < LEAST_OPSET:
        return None
    writer = _Writer(model.inferred(), model.protos, share, opset, frozenset(whole), joins_once)
    for node in writer.graph.nodes:
        writer.write(node)
    if not writer.cuts:
        return None
    for info in writer.graph.outputs:
        writer.whole(info.name)
    made = model.rewritten(writer.nodes, writer.constants.values())
    if joins_once:
        read = [made.protos[index] for index in read_by_outputs(made, set())]
        made = model.rewritten(read, writer.constants.values())
    return RowSplit(
        model=made,
        parts=(frozenset(writer.parts[0]), frozenset(writer.parts[1])),
        origins=writer.origins,
    )


def begins_rows(node: Node) -> bool:
    """Whether an operator is of a kind that is cut by itself where it has enough work; others are carried along."""
    return not node.domain and node.op_type in STARTS


def is_dequantised(graph: OpGraph, name: str) -> bool:
    """Whether a tensor is dequantised, and at most moved or cast since. O(nodes in between).

    What reads it is fused with its dequantisation into a kernel of another precision, which two readers, or a slice in
    between, prevent.
    """
    while (producer := graph.producers.get(name)) is not None:
        node = graph.nodes[producer]
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type not in MOVES:
            return False
        name = node.inputs[0]
    return False


@dataclass(slots=True)
class _Writer:
    """The new graph, as far as it is written; tensors of the old one are whole or cut."""

    graph: OpGraph
    protos: Sequence[onnx.NodeProto]
    share: float
    opset: int
    stays: frozenset[str] = frozenset()
    joins_once: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[int, ...], onnx.TensorProto] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
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
                    proto.input.append(self.rows(name, need or Rows(0, 0, self.size(name, 0)), part))
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

    def rows(self, name: str, rows: Rows, part: int) -> str:
        """Some rows of a tensor, for a part."""
        cut = self.cuts.get(name)
        size = self.size(name, rows.axis)
        if cut is None:
            if (rows.low, rows.high) == (0, size):
                return name
            return self._slice(name, rows, None)
        if cut.axis != rows.axis:
            if (rows.low, rows.high) != (0, size):
                everything = self.rows(name, Rows(cut.axis, 0, self.size(name, cut.axis)), part)
                return self._slice(everything, rows, part)
            rows = Rows(cut.axis, 0, self.size(name, cut.axis))
        if self.joins_once and (rows.low, rows.high) == (0, self.size(name, cut.axis)):
            self.whole(name)
            return name
        pieces = []
        for home, (begin, end) in enumerate(((0, cut.at), (cut.at, self.size(name, cut.axis)))):
            low, high = max(begin, rows.low), min(end, rows.high)
            if low >= high:
                continue
            piece = self.part(name, home)
            if (low, high) != (begin, end):
                # Cut where it was made, so that only these rows cross.
                piece = self._slice(piece, Rows(cut.axis, low - begin, high - begin), home)
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

    def _slice(self, name: str, rows: Rows, part: int | None) -> str:
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

    def _recipe(self, node: Node) -> Recipe | None:
        if not self.stays.isdisjoint(node.outputs):
            return None
        if node.domain or node.bodies or not all(self.is_known(name) for name in node.outputs if name):
            return None
        if not all(self.is_known(name) for name in node.inputs if name):
            return None
        rule = RULES.get(node.op_type)
        if rule is None or any(is_dequantised(self.graph, name) for name in node.inputs):
            return None
        if any(name in self.cuts for name in node.inputs):
            return rule(self, node)
        start = STARTS.get(node.op_type)
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

    def share_of(self, size: int, granule: int = 1) -> int | None:
        """Where to cut an axis, or None where a part would be empty or the axis is short."""
        count = size // granule
        at = min(max(round(self.share * count), 1), count - 1)
        return at * granule if size >= LEAST_ROWS and count >= 2 else None
