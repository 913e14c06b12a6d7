"""Stretches of a graph in slices: each computes some rows of the last tensor, from the rows of the first they need.

Where windows of a convolution overlap, slices compute rows of each other once more; so the tensors inside a stretch are
never whole. This is how "fused-layer" accelerators go through networks (Alwani et al., MICRO 2016) and how MCUNetV2
(Lin et al., NeurIPS 2021) fits their first layers into small memories.

A rewrite of the graph alone. No weight is cut or copied, and every sum adds the same terms.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.errors import ConfigError
from parallax.graph import Node, OpGraph, tensor_bytes
from parallax.model._computed import read_by_outputs
from parallax.model._model import Model
from parallax.model._propagation import shape_value
from parallax.model._row_rules import Rows
from parallax.model._rows import LEAST_OPSET, is_dequantised
from parallax.model._tile_rules import NO_ROWS, Need, tile_need

MOST_KEPT_STEPS: Final = 100_000
"""Of slices that were found, so many are kept, or what a few stretches more take."""

MOST_CUT_BYTES: Final = 128 << 10
"""Of a weight that rows are taken of."""


class StretchLike(Protocol):
    """What a plan says of a part of a graph that is computed in slices."""

    @property
    def output(self) -> str:
        """The tensor that is made of slices."""
        ...

    @property
    def axis(self) -> int:
        """Of the output."""
        ...

    @property
    def slices(self) -> int:
        """How many, 2 at least."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """Tensors that are computed before."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of a graph that is computed in slices."""

    node: int | None
    """The graph's node that it is, or does a part of. None: it takes rows of a tensor, or joins slices."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of the outputs."""
    rows: Rows | None = None
    """Of a node's outputs; of what a step takes rows of, counted from its first. None: all of them."""
    need: Need | None = None
    """What these rows of a node's outputs need."""
    shape: tuple[int, ...] = ()
    """Of a node's first output, at these rows."""


@dataclass(frozen=True, slots=True)
class Slices:
    """What computes the slices of a stretch."""

    parts: tuple[tuple[Step, ...], ...]
    """Per slice its steps, the last of which makes its rows of the output."""
    inputs: tuple[frozenset[str], ...]
    """Per slice the tensors of the graph that it reads and does not make, weights left out."""
    stopped: frozenset[str]
    """Tensors at which slices begin because they are computed before."""
    passed: frozenset[str]
    """Tensors at which they would begin if those were computed before."""


class SlicedGraph:
    """A graph of which parts are computed in slices. It follows which rows are needed, and changes nothing.

    What it found is kept, so that asking again for the same takes no time; not safe to use from several threads.

    Args:
        model: in the shapes to slice it for.
    """

    def __init__(self, model: Model) -> None:
        self.graph: OpGraph = model.inferred()
        self.opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
        self.fed: frozenset[str] = frozenset(info.name for info in (*self.graph.inputs, *self.graph.overridable))
        self.mark = _unlike((*self.graph.tensors, *self.graph.producers, *self.graph.consumers))
        """Part of the names of all that slices make, and of no tensor's."""
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._sliceable: dict[int, bool] = {}
        self._needs: dict[tuple[int, Rows], Need | None] = {}
        self._slices: dict[tuple[str, int, int], list[Slices]] = {}
        self._kept_steps = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a tensor; () where it is not known."""
        return self.known_shape(name) or ()

    def size(self, name: str, axis: int) -> int:
        """One size of it."""
        return self.shape(name)[axis]

    def known_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor if it is static and without empty axes."""
        if name not in self._shapes:
            info = self.graph.tensors.get(name)
            is_known = info is not None and info.kind == "tensor" and info.is_static and 0 not in (info.shape or ())
            sizes = info.shape if is_known and info is not None else None
            self._shapes[name] = None if sizes is None else tuple(int(size) for size in sizes if isinstance(size, int))
        return self._shapes[name]

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is there before anything runs."""
        producer = self.graph.producers.get(name)
        if producer is None:
            return name in self.graph.initializers and name not in self.fed
        return self.graph.nodes[producer].op_type == "Constant"

    def may_be_cut(self, name: str) -> bool:
        """Whether rows of a weight may be taken: a runtime takes them once, and holds them beside it."""
        return tensor_bytes(self.graph, name) <= MOST_CUT_BYTES

    def steps(self, stretch: StretchLike, stops: Container[str]) -> list[Step] | None:
        """What computes a stretch: slice after slice, then one step that joins them.

        Args:
            stops: tensors that are computed before; by themselves, those are ``stretch.inputs``.

        Returns: None where its output cannot be computed in such slices.
        """
        slices = self.slices(stretch, stops)
        return None if slices is None else self.joined(stretch, slices)

    def slices(self, stretch: StretchLike, stops: Container[str]) -> Slices | None:
        """What computes each slice of a stretch; see `steps`."""
        key = (stretch.output, stretch.axis, stretch.slices)
        for known in self._slices.get(key, ()):
            if all(name in stops for name in known.stopped) and not any(name in stops for name in known.passed):
                return known
        found = self._find_slices(stretch, stops)
        if found is not None:
            if self._kept_steps > MOST_KEPT_STEPS:
                self._slices.clear()
                self._kept_steps = 0
            self._kept_steps += sum(map(len, found.parts))
            self._slices.setdefault(key, []).append(found)
        return found

    def _find_slices(self, stretch: StretchLike, stops: Container[str]) -> Slices | None:
        shape = self.known_shape(stretch.output)
        if shape is None or stretch.axis >= len(shape) or shape[stretch.axis] < stretch.slices:
            return None
        if self.opset < LEAST_OPSET:
            return None
        size = shape[stretch.axis]
        bounds = [number * size // stretch.slices for number in range(stretch.slices + 1)]
        slices: list[_Slice] = []
        parts: list[tuple[Step, ...]] = []
        for number in range(stretch.slices):
            rows = Rows(stretch.axis, bounds[number], bounds[number + 1])
            slices.append(_Slice(self, stretch.output, rows, stops, f"{stretch.output}{self.mark}{number}"))
            made = slices[-1].steps()
            if made is None:
                return None
            parts.append(tuple(made))
        return Slices(
            parts=tuple(parts),
            inputs=tuple([frozenset(one.inputs) for one in slices]),
            stopped=frozenset().union(*[one.stopped for one in slices]),
            passed=frozenset().union(*[one.passed for one in slices]),
        )

    def joined(self, stretch: StretchLike, slices: Slices) -> list[Step]:
        """The steps of a stretch's slices, and one that makes its output of them."""
        names = tuple([made[-1].outputs[0] for made in slices.parts])
        total, size = tensor_bytes(self.graph, stretch.output), self.size(stretch.output, stretch.axis)
        join = Step(None, names, (stretch.output,), (total,), rows=Rows(stretch.axis, 0, size))
        return [*chain.from_iterable(slices.parts), join]

    def need(self, node: Node, rows: Rows) -> Need | None:
        """What rows of a node's outputs need; None where it cannot be computed in slices of them."""
        key = (node.index, rows)
        if key not in self._needs:
            self._needs[key] = self._find_need(node, rows)
        return self._needs[key]

    def _find_need(self, node: Node, rows: Rows) -> Need | None:
        if node.index not in self._sliceable:
            names = [name for name in (*node.inputs, *node.outputs) if name]
            self._sliceable[node.index] = (
                not node.captures
                and all(self.known_shape(name) is not None for name in names)
                and not any(is_dequantised(self.graph, name) for name in node.inputs)
            )
        if not self._sliceable[node.index] or self.size(node.outputs[0], rows.axis) <= 1:
            return None
        need = tile_need(self, node, rows)
        if need is None:
            return None
        for name, own in zip(node.inputs, need.inputs, strict=True):
            if own is not None and own != NO_ROWS and self.is_weight(name) and not self.may_be_cut(name):
                return None
        return need

    def bytes_of(self, name: str, rows: Rows | None) -> int:
        """What some rows of a tensor take."""
        whole = tensor_bytes(self.graph, name)
        return whole if rows is None else whole // self.size(name, rows.axis) * (rows.high - rows.low)


def _unlike(names: Collection[str]) -> str:
    """What no name has in it."""
    mark = "_slice"
    while any(mark in name for name in names):
        mark += "_"
    return mark


class _Slice:
    """One slice of a stretch: which rows of which tensors it needs, found from its output on."""

    def __init__(self, sliced: SlicedGraph, output: str, rows: Rows, stops: Container[str], label: str) -> None:
        self._sliced = sliced
        self._output = output
        self._stops = stops
        self._label = label
        self._rows: dict[str, Rows] = {output: rows}
        """Tensor -> the rows of it that are computed; those of several readers, and what lies between."""
        self._whole: set[str] = set()
        self._needs: dict[int, tuple[Need, Rows]] = {}
        self._taken: dict[tuple[str, Rows], str] = {}
        self.inputs: set[str] = set()
        """Tensors of the graph that are read and not made, weights left out."""
        self.stopped: set[str] = set()
        """Tensors at which it begins because they are computed before."""
        self.passed: set[str] = set()
        """Tensors at which it would begin if those were."""

    def steps(self) -> list[Step] | None:
        """In order, the last of which makes the slice; None where it cannot be made."""
        graph = self._sliced.graph
        waiting = [-graph.producers[self._output]] if self._output in graph.producers else []
        seen = set(waiting)
        while waiting:
            node = graph.nodes[-heapq.heappop(waiting)]
            if not self._follow(node):
                if self._output in node.outputs:
                    return None
                continue
            for name in node.inputs:
                producer = graph.producers.get(name)
                if producer is None or -producer in seen or name not in self._rows:
                    continue
                if name in self._stops:
                    self.stopped.add(name)
                    continue
                self.passed.add(name)
                seen.add(-producer)
                heapq.heappush(waiting, -producer)
        steps: list[Step] = []
        for index in sorted(self._needs):
            steps += self._write(graph.nodes[index])
        return steps

    def _follow(self, node: Node) -> bool:
        """Whether a node is computed in this slice. What it then needs is noted."""
        wanted = [self._rows[name] for name in node.outputs if name in self._rows]
        if len({rows.axis for rows in wanted}) != 1 or not self._whole.isdisjoint(node.outputs):
            return False
        hull = wanted[0]
        if len(wanted) > 1:
            hull = Rows(hull.axis, min(rows.low for rows in wanted), max(rows.high for rows in wanted))
        need = self._sliced.need(node, hull)
        if need is None:
            return False
        self._needs[node.index] = need, hull
        for name, rows in zip(node.inputs, need.inputs, strict=True):
            known = self._rows.get(name)
            if rows == NO_ROWS:
                continue
            if rows is None:
                self._whole.add(name)
            elif known is None:
                self._rows[name] = rows
            elif known.axis != rows.axis:
                self._whole.add(name)
            else:
                self._rows[name] = Rows(rows.axis, min(known.low, rows.low), max(known.high, rows.high))
        return True

    def _write(self, node: Node) -> list[Step]:
        need, hull = self._needs[node.index]
        steps: list[Step] = []
        inputs: list[str] = []
        for position, (name, rows) in enumerate(zip(node.inputs, need.inputs, strict=True)):
            if rows == NO_ROWS or ((need.shaped or need.expanded) and position):
                continue  # a shape is a constant of its own
            if not name or rows is None:
                inputs.append(name)
                self._read(name)
                continue
            inputs.append(self._take(name, rows, steps))
        outputs = tuple([self._part(name) if name else "" for name in node.outputs])
        sizes = tuple([self._sliced.bytes_of(name, hull) if name else 0 for name in node.outputs])
        shape = list(self._sliced.shape(node.outputs[0]))
        shape[hull.axis] = hull.high - hull.low
        steps.append(Step(node.index, tuple(inputs), outputs, sizes, rows=hull, need=need, shape=tuple(shape)))
        return steps

    def _take(self, name: str, rows: Rows, steps: list[Step]) -> str:
        """The name of some rows of a tensor; a step that takes them is added where they are not all there are."""
        producer = self._sliced.graph.producers.get(name)
        there, source = Rows(rows.axis, 0, self._sliced.size(name, rows.axis)), name
        if producer is not None and producer in self._needs:
            there, source = self._needs[producer][1], self._part(name)
        else:
            self._read(name)
        if rows == there:
            return source
        if (name, rows) not in self._taken:
            taken = self._taken[name, rows] = f"{self._label}_rows{rows.low}to{rows.high}/{name}"
            part = Rows(rows.axis, rows.low - there.low, rows.high - there.low)
            steps.append(Step(None, (source,), (taken,), (self._sliced.bytes_of(name, rows),), rows=part))
        return self._taken[name, rows]

    def _read(self, name: str) -> None:
        if name in self._sliced.graph.producers and not self._sliced.is_weight(name):
            self.inputs.add(name)

    def _part(self, name: str) -> str:
        return f"{self._label}/{name}"


def slice_stretches(model: Model, stretches: Sequence[StretchLike]) -> Model:
    """The same model with these stretches of it computed in slices, one slice after the other.

    What nobody reads any more is left out. Operators that ask for shapes are replaced by what they return, where that
    is proven: otherwise they would hold tensors that need not be whole.

    Args:
        model: in the shapes to slice it for.
        stretches: of different outputs.

    Raises: ConfigError if the model has no such stretch.
    """
    writer = _StepWriter(model)
    sliced = SlicedGraph(model)
    at = {sliced.graph.producers.get(stretch.output): stretch for stretch in stretches}
    if None in at or len(at) != len(stretches):
        raise ConfigError("stretches of tensors that no node computes, or of one node", fix="name each output once")
    for node in sliced.graph.nodes:
        stretch = at.get(node.index)
        if stretch is None:
            writer.keep(node)
            continue
        steps = sliced.steps(stretch, frozenset(stretch.inputs)) if len(node.outputs) == 1 else None
        if steps is None:
            raise ConfigError(f"{stretch.output!r} cannot be computed in {stretch.slices} slices", fix="plan again")
        for step in steps:
            writer.write(step)
    made = model.rewritten(writer.nodes, writer.constants.values())
    read = [made.protos[index] for index in read_by_outputs(made, set())]
    return model.rewritten(read, writer.constants.values())


def cut_weight_bytes(model: Model) -> int:
    """Bytes of rows that nodes take of weights: a runtime computes them when it opens the model."""
    graph = model.inferred()
    return sum(
        tensor_bytes(graph, node.outputs[0])
        for node in graph.nodes
        if node.op_type == "Slice" and not node.domain and node.inputs[0] in graph.initializers
    )


@dataclass(slots=True)
class _StepWriter:
    """Nodes and constants of the new graph."""

    model: Model
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[object, onnx.TensorProto] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Of what a step makes -> its name in the new graph."""
    taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.taken = {*graph.tensors, *graph.producers, *graph.consumers, *(node.name for node in graph.nodes)}

    def keep(self, node: Node) -> None:
        """Write a node as it is; a shape that is known becomes a constant."""
        value = None
        if is_shape_question(self.model.graph, node):
            value = shape_value(self.model.protos[node.index], self.model.proven_type(node.inputs[0]))
        if value is None:
            self.nodes.append(self.model.protos[node.index])
        else:
            self.constants[node.outputs[0]] = numpy_helper.from_array(np.asarray(value), node.outputs[0])

    def write(self, step: Step) -> None:
        inputs = [self.names.get(name, name) for name in step.inputs]
        is_join = step.node is None and len(inputs) > 1
        outputs = list(step.outputs) if is_join else [self._new(name) if name else "" for name in step.outputs]
        if step.node is not None:
            proto = self._part(self.model.protos[step.node], step, inputs)
        elif is_join:
            assert step.rows is not None
            proto = onnx.helper.make_node("Concat", inputs, [], axis=step.rows.axis)
        else:
            assert step.rows is not None
            bounds = ((step.rows.low,), (step.rows.high,), (step.rows.axis,))
            proto = onnx.helper.make_node("Slice", [*inputs, *map(self._numbers, bounds)], [])
        del proto.output[:]
        proto.output.extend(outputs)
        proto.name = self._unused(f"{proto.op_type}_{next(filter(None, outputs))}")
        self.nodes.append(proto)

    def _part(self, original: onnx.NodeProto, step: Step, inputs: Iterable[str]) -> onnx.NodeProto:
        """A node's part: the node with other inputs, pads or shapes."""
        proto = onnx.NodeProto()
        proto.CopyFrom(original)
        del proto.input[:]
        proto.input.extend(inputs)
        need = step.need
        assert need is not None
        if need.pads is not None:
            for attribute in [entry for entry in proto.attribute if entry.name in ("pads", "auto_pad")]:
                proto.attribute.remove(attribute)
            proto.attribute.append(onnx.helper.make_attribute("pads", need.pads))
        if need.shaped or need.expanded:
            proto.input.append(self._numbers(step.shape))
        if need.shaped:
            proto.op_type, proto.domain = "Reshape", ""
            del proto.attribute[:]
        return proto

    def _numbers(self, values: tuple[int, ...]) -> str:
        if values not in self.constants:
            name = self._unused(f"slices_constant{len(self.constants)}")
            self.constants[values] = numpy_helper.from_array(np.array(values, np.int64), name)
        return str(self.constants[values].name)

    def _new(self, name: str) -> str:
        made = self.names[name] = self._unused(name)
        return made

    def _unused(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def is_shape_question(graph: OpGraph, node: Node) -> bool:
    """Whether a node asks for the shape of a tensor, and may be answered before."""
    return (
        node.op_type in ("Shape", "Size")
        and node.domain in ("", "ai.onnx")
        and node.outputs[0] not in graph.output_names
    )
