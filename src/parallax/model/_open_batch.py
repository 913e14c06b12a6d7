"""Models exported for one request, rewritten so that they take several.

Exporters write the leading 1 of a batch of one into the graph: into the inputs, the target of a Reshape, the shape of
a class token that is put before the tokens of an image. The rewrite replaces these. It does not ask whether the result
keeps requests apart: `parallax.model.find_batch_axis` does, operator by operator, and the caller tries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.errors import UnsupportedModelError
from parallax.graph import Node, OpGraph, constant_value
from parallax.model._model import Model

BATCH: Final = "batch"
"""What the open axis is called, unless the model has such a name."""

_LEAST_OPSET: Final = 8
"""Before, there was no Expand."""


def open_batch_axis(model: Model) -> Model:
    """The same model for any number of requests, joined along the leading axis of its inputs.

    Requires: every input is a tensor whose leading axis is 1, or open. Ensures: fed with a batch
    of one it computes what it did, bit for bit; weights are shared. `Model.whole` still gives the model as it was:
    extract or save the new one. Linear in the graph.

    Raises: UnsupportedModelError if what is required does not hold; names the input.
    """
    opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
    if opset < _LEAST_OPSET:
        raise UnsupportedModelError(f"the batch axis cannot be opened in operator set {opset}", fix="convert the model")
    if model.why_whole is not None:
        raise UnsupportedModelError(f"the model can only be run as it is: {model.why_whole}")
    graph = model.inferred()
    for info in graph.inputs:
        if info.kind != "tensor" or not info.shape or (isinstance(info.shape[0], int) and info.shape[0] != 1):
            shown = "no tensor" if info.kind != "tensor" else f"of shape {list(info.shape or ())}"
            raise UnsupportedModelError(
                f"the batch axis cannot be opened: input {info.name!r} is {shown}, with no leading axis of 1"
            )
    if not graph.inputs:
        raise UnsupportedModelError("the batch axis cannot be opened: the model has no inputs")
    writer = _Writer(graph, model.protos)
    for node in graph.nodes:
        writer.write(node)
    return model.rewritten(writer.all_nodes(), writer.constants, batch=writer.symbol)


@dataclass(slots=True)
class _Writer:
    """The new graph, as far as it is written."""

    graph: OpGraph
    protos: Sequence[onnx.NodeProto]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    symbol: str = BATCH
    fed: set[str] = field(init=False)
    """Tensors that depend on the model's inputs."""
    taken: set[str] = field(init=False)
    count: str = ""
    """The name of the number of requests, a tensor of one element; "" until it is needed."""
    spread: dict[tuple[str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        self.taken = {*graph.tensors, *graph.producers, *graph.consumers, *(node.name for node in graph.nodes)}
        self.fed = {info.name for info in graph.inputs}
        symbols = {size for info in graph.inputs for size in info.shape or () if isinstance(size, str)}
        while self.symbol in symbols:
            self.symbol += "_"

    def all_nodes(self) -> list[onnx.NodeProto]:
        """In an order in which they can run."""
        if not self.count:
            return self.nodes
        first = self.graph.inputs[0].name
        shape = self._new("batch_shape")
        made = [
            onnx.helper.make_node("Shape", [first], [shape], name=self._new("batch_shape_node")),
            onnx.helper.make_node(
                "Gather", [shape, self.numbers([0])], [self.count], name=self._new("batch_size_node"), axis=0
            ),
        ]
        return [*made, *self.nodes]

    def write(self, node: Node) -> None:
        """Write a node, changed where it names the one request."""
        proto = self.protos[node.index]
        if any(name in self.fed for name in (*node.inputs, *node.captures)):
            self.fed.update(name for name in node.outputs if name)
            if node.domain in ("", "ai.onnx"):
                change = _CHANGES.get(node.op_type)
                changed = None if change is None else change(self, node)
                if changed is not None:
                    proto = _with_inputs(proto, changed)
        self.nodes.append(proto)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of a tensor, for one request."""
        info = self.graph.tensors.get(name) or self.graph.initializers.get(name)
        if info is None or info.kind != "tensor" or not info.is_static:
            return None
        return tuple(size for size in info.shape or () if isinstance(size, int))

    def number_of_requests(self) -> str:
        """The name of a tensor of one element."""
        if not self.count:
            self.count = self._new("batch_size")
        return self.count

    def joined_shape(self, before: Sequence[int], after: Sequence[int]) -> str:
        """The name of a shape with the number of requests in it."""
        parts = [self.numbers(before)] if before else []
        parts.append(self.number_of_requests())
        parts += [self.numbers(after)] if after else []
        if len(parts) == 1:
            return parts[0]
        name = self._new("batch_target")
        self.nodes.append(onnx.helper.make_node("Concat", parts, [name], name=self._new("batch_target_node"), axis=0))
        return name

    def for_each(self, name: str, rank: int, axis: int) -> str:
        """The name of a tensor that repeats one with a size of 1 along ``axis`` for each request."""
        key = (name, axis)
        if key not in self.spread:
            target = self.joined_shape([1] * axis, [1] * (rank - axis - 1))
            self.spread[key] = self._new(f"{name}_for_each")
            self.nodes.append(
                onnx.helper.make_node(
                    "Expand", [name, target], [self.spread[key]], name=self._new(f"{name}_for_each_node")
                )
            )
        return self.spread[key]

    def numbers(self, values: Sequence[int]) -> str:
        """The name of a constant."""
        name = self._new("batch_numbers")
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _new(self, name: str) -> str:
        unique, number = name, 0
        while unique in self.taken:
            number += 1
            unique = f"{name}_{number}"
        self.taken.add(unique)
        return unique


def _with_inputs(proto: onnx.NodeProto, inputs: Sequence[str]) -> onnx.NodeProto:
    changed = onnx.NodeProto()
    changed.CopyFrom(proto)
    del changed.input[:]
    changed.input.extend(inputs)
    return changed


def _open_reshape(writer: _Writer, node: Node) -> list[str] | None:
    """The leading size of the target becomes what is left; the others are what they come to for one request."""
    if len(node.inputs) < 2 or constant_value(writer.graph, node.inputs[1]) is None:
        return None
    shape = writer.shape(node.outputs[0])
    if not shape or 0 in shape:
        return None
    return [node.inputs[0], writer.numbers([-1, *shape[1:]])]


def _open_expand(writer: _Writer, node: Node) -> list[str] | None:
    """Sizes that the operand has already need not be stated: 1 leaves them as they are, whatever the batch."""
    target, own = constant_value(writer.graph, node.inputs[1]), writer.shape(node.inputs[0])
    if target is None or own is None:
        return None
    sizes = [int(size) for size in target.reshape(-1)]
    first = len(sizes) - len(own)
    opened = [1 if place >= first and own[place - first] == size else size for place, size in enumerate(sizes)]
    return None if opened == sizes else [node.inputs[0], writer.numbers(opened)]


def _open_concat(writer: _Writer, node: Node) -> list[str] | None:
    """A class token, or whatever else is not fed, is repeated for each request."""
    out = writer.shape(node.outputs[0])
    axis = node.attributes.get("axis", 0)
    if not out or not isinstance(axis, int) or axis % len(out) == 0 or out[0] != 1:
        return None
    if all(name in writer.fed for name in node.inputs):
        return None
    return [name if name in writer.fed else writer.for_each(name, len(out), 0) for name in node.inputs]


def _open_resize(writer: _Writer, node: Node) -> list[str] | None:
    """Sizes that begin with 1 begin with the number of requests."""
    if len(node.inputs) < 4 or "axes" in node.attributes:
        return None
    sizes = constant_value(writer.graph, node.inputs[3])
    if sizes is None or not sizes.size or sizes.reshape(-1)[0] != 1:
        return None
    target = writer.joined_shape([], [int(size) for size in sizes.reshape(-1)[1:]])
    return [*node.inputs[:3], target]


def _open_recurrent(writer: _Writer, node: Node) -> list[str] | None:
    """Initial states are the same for each request."""
    inputs = list(node.inputs)
    for place in (5, 6):
        name = inputs[place] if place < len(inputs) else ""
        shape = writer.shape(name) if name else None
        if name and name not in writer.fed and shape is not None and len(shape) == 3 and shape[1] == 1:
            inputs[place] = writer.for_each(name, 3, 1)
    return inputs if inputs != list(node.inputs) else None


_CHANGES: Final = {
    "Concat": _open_concat,
    "Expand": _open_expand,
    "GRU": _open_recurrent,
    "LSTM": _open_recurrent,
    "RNN": _open_recurrent,
    "Reshape": _open_reshape,
    "Resize": _open_resize,
}
