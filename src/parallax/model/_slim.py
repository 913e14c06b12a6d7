"""A model without the channels that its zeros make superfluous: what `parallax.graph.slimming` finds, done.

Weights of which nothing goes stay where they lie. The others are copied without what goes, so that a slimmed model
holds in memory what is left of the weights that were cut.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from parallax.graph import OpGraph, Shapes, constant_value, shaped_work
from parallax.graph.slimming import BIAS, ChannelCuts, ConstantCut, Refusal, Slimming, find_cuts
from parallax.model._digests import skeleton_digest
from parallax.model._model import Model
from parallax.model._read import Parts
from parallax.model._weights import Weight
from parallax.model._wire import LIFT_BYTES, external_mark

Array = npt.NDArray[Any]

_FLOATS: Final = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
_MOST_BYTES: Final = (2 << 30) - (64 << 20)
"""A model that is slimmed and runs whole is handed to the runtime as one message, which ends at 2 GiB."""


def slim_model(model: Model) -> Model:
    """The same model without what its zeros make superfluous; `Model.slimming` says what went and what did not.

    Channels, neurons and attention heads go whose value is the same for every input (all weights of them are 0, say),
    or which nobody reads but by weights that are 0. Outputs agree up to the rounding of the runtime's kernels in
    other shapes. Inputs and weights are taken to be finite.

    Where nothing can go, the model is the one that was given: `Model.whole` is the same, byte for byte. Otherwise
    `Model.whole` is the slimmed model, and `Model.as_given` the one that was read.

    Cost: a look at every weight, and shape inference.

    Raises: ModelError if the graph makes no sense.
    """
    if model.slimming is not None:
        return model
    if model.why_whole is not None:
        return model.noting(_refused(f"the model can only be run as it is: {model.why_whole}"))
    graph = model.inferred()
    opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
    cuts = find_cuts(graph, opset=opset, constant=functools.partial(_numbers, model, graph))
    before = _elements(graph)
    if not cuts.removals:
        return model.noting(Slimming(refusals=cuts.refusals, of_parameters=before))
    parts = _Writer(model, graph, cuts).write()
    if parts.weight_bytes > _MOST_BYTES:
        return model.noting(_refused("what is left of the model is over 2 GiB"))
    slimmed = model.with_parts(parts)
    after, flops, left = _elements(slimmed.graph), _flops(graph), _flops(slimmed.inferred())
    return slimmed.noting(
        Slimming(
            removals=cuts.removals,
            refusals=cuts.refusals,
            parameters=before - after,
            of_parameters=before,
            flops=flops - left,
            of_flops=flops,
        )
    )


def _refused(why: str) -> Slimming:
    return Slimming(refusals=(Refusal(node="", op_type="", count=None, why=why),))


def _numbers(model: Model, graph: OpGraph, name: str) -> Array | None:
    """The values of an initializer of floating-point numbers; None for any other, and for what is none."""
    info = graph.initializers.get(name)
    if info is None or info.dtype not in _FLOATS:
        return None
    return model.initializer(name)


def _elements(graph: OpGraph) -> int:
    return sum(
        math.prod(size for size in info.shape or () if isinstance(size, int)) for info in graph.initializers.values()
    )


def _flops(graph: OpGraph) -> int:
    shapes = Shapes(graph, assumed_dim=1)
    return sum(shaped_work(shapes, node).flops or 0 for node in graph.nodes)


class _Writer:
    """The new skeleton and weights, as far as they are written."""

    def __init__(self, model: Model, graph: OpGraph, cuts: ChannelCuts) -> None:
        self._model = model
        self._graph = graph
        self._cuts = cuts
        self._skeleton = onnx.ModelProto()
        self._skeleton.CopyFrom(model.parts.skeleton)
        self._nodes: list[onnx.NodeProto] = []
        for proto in model.protos:
            copy = onnx.NodeProto()
            copy.CopyFrom(proto)
            self._nodes.append(copy)
        self._weights = dict(model.parts.weights)
        self._made: dict[str, Array] = {}
        self._appended: dict[int, onnx.NodeProto] = {}
        """Node -> one that comes right after it."""
        self._inserted: dict[int, onnx.NodeProto] = {}
        """Node -> one that comes right before it."""
        self._taken = {*graph.tensors, *graph.producers, *graph.consumers, *(node.name for node in graph.nodes)}

    def write(self) -> Parts:
        """The parts of the new model."""
        self._cut_constants()
        for index, groups in self._cuts.groups.items():
            _set_integer(self._nodes[index], "group", groups)
        for index, sizes in self._cuts.targets.items():
            self._change_target(index, sizes)
        for index, sizes_of_parts in self._cuts.splits.items():
            self._change_split(index, sizes_of_parts)
        for index, delta in self._cuts.biases.items():
            if not self._has_bias(index):
                self._add_bias(index, delta)
        nodes = self._all_nodes()
        graph = self._skeleton.graph
        del graph.node[:]
        graph.node.extend(nodes)
        self._replace_initializers(nodes)
        self._restate_sizes()
        parts = self._model.parts
        held = sum(weight.nbytes for weight in self._weights.values())
        nested = sum(weight.nbytes for weight in parts.nested.values())
        inline = sum(tensor.ByteSize() for tensor in graph.initializer if tensor.name not in self._weights)
        return replace(
            parts,
            skeleton=self._skeleton,
            digest=skeleton_digest(self._skeleton.SerializeToString(deterministic=True)),
            weights=self._weights,
            weight_bytes=held + nested + inline,
            is_inlined=False,
            given=parts,
        )

    # -- constants --------------------------------------------------------------------------------------

    def _has_bias(self, index: int) -> bool:
        node = self._graph.nodes[index]
        return node.op_type != "MatMul" and len(node.inputs) > BIAS and bool(node.inputs[BIAS])

    def _cut_constants(self) -> None:
        """Each constant once for all readers that need the same of it, under its own name where all of them do."""
        wanted: dict[str, dict[bytes, list[ConstantCut]]] = {}
        for cut in self._cuts.cuts:
            key = repr([(axis, kept.tobytes()) for axis, kept in sorted(cut.axes.items())]).encode()
            key += self._delta(cut).tobytes()
            wanted.setdefault(cut.constant, {}).setdefault(key, []).append(cut)
        for name, forms in wanted.items():
            whole = constant_value(self._graph, name)
            whole = self._model.initializer(name) if whole is None else whole
            assert whole is not None
            for cuts in forms.values():
                array = whole
                for axis, kept in cuts[0].axes.items():
                    array = np.take(array, kept, axis=axis)
                delta = self._delta(cuts[0])
                if delta.size:
                    array = (array + delta).astype(whole.dtype)
                is_all = len(cuts) == self._cuts.readers[name]
                made = name if is_all else self._new(f"{name}_slim")
                self._made[made] = array
                for cut in cuts:
                    self._nodes[cut.node].input[cut.position] = made

    def _delta(self, cut: ConstantCut) -> Array:
        """What is to be added to a bias, no elements where nothing is."""
        delta = self._cuts.biases.get(cut.node)
        is_bias = delta is not None and cut.position == BIAS and self._has_bias(cut.node)
        return delta if is_bias and delta is not None else np.empty(0)

    def _add_bias(self, index: int, delta: Array) -> None:
        """Give a product a bias that it did not have."""
        node, proto = self._graph.nodes[index], self._nodes[index]
        bias = self._constant(delta.astype(self._dtype(node.inputs[1])), f"{node.name}_slim_bias")
        if node.op_type != "MatMul":
            del proto.input[BIAS:]
            proto.input.append(bias)
            return
        output = proto.output[0]
        proto.output[0] = self._new(f"{output}_slim")
        self._appended[index] = onnx.helper.make_node(
            "Add", [proto.output[0], bias], [output], name=self._new(f"{node.name}_slim_add")
        )

    def _dtype(self, name: str) -> np.dtype[Any]:
        """Of the weights of a product, which are constant."""
        value = self._made.get(self._root(name))
        if value is None:
            value = self._value(name)
        assert value is not None
        return value.dtype

    def _root(self, name: str) -> str:
        graph = self._graph
        while name not in graph.initializers and name in graph.producers:
            node = graph.nodes[graph.producers[name]]
            if node.op_type != "Identity":
                break
            name = node.inputs[0]
        return name

    def _value(self, name: str) -> Array | None:
        root = self._root(name)
        small = constant_value(self._graph, root)
        return small if small is not None else self._model.initializer(root)

    def _constant(self, array: Array, hint: str) -> str:
        name = self._new(hint)
        self._made[name] = array
        return name

    def _new(self, hint: str) -> str:
        name = hint
        number = 0
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    # -- sizes that nodes state ---------------------------------------------------------------------------

    def _change_target(self, index: int, sizes: Mapping[int, int]) -> None:
        """Have a Reshape make axes of other sizes."""
        node, proto = self._graph.nodes[index], self._nodes[index]
        value = self._value(node.inputs[1])
        if value is not None:
            target = value.astype(np.int64).reshape(-1).copy()
            target[list(sizes)] = list(sizes.values())
            proto.input[1] = self._constant(target, f"{node.name}_slim_shape")
            return
        maker = self._graph.nodes[self._graph.producers[node.inputs[1]]]
        inputs: list[str] = []
        first = 0
        for name in maker.inputs:
            part = self._value(name)
            count = 1 if part is None else part.size
            changed = {axis - first: size for axis, size in sizes.items() if first <= axis < first + count}
            if changed and part is not None:
                part = part.astype(np.int64).reshape(-1).copy()
                part[list(changed)] = list(changed.values())
                name = self._constant(part, f"{node.name}_slim_size")
            inputs.append(name)
            first += count
        target_name = self._new(f"{node.name}_slim_shape")
        self._inserted[index] = onnx.helper.make_node(
            "Concat", inputs, [target_name], name=self._new(f"{node.name}_slim_concat"), axis=0
        )
        proto.input[1] = target_name

    def _change_split(self, index: int, parts: Sequence[int]) -> None:
        """Have a Split make outputs of these sizes."""
        node, proto = self._graph.nodes[index], self._nodes[index]
        stated = [entry for entry in proto.attribute if entry.name not in ("split", "num_outputs")]
        del proto.attribute[:]
        proto.attribute.extend(stated)
        opset = max(self._model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
        if opset < 13:
            proto.attribute.append(onnx.helper.make_attribute("split", list(parts)))
            return
        del proto.input[1:]
        proto.input.append(self._constant(np.array(parts, np.int64), f"{node.name}_slim_sizes"))

    # -- the whole ------------------------------------------------------------------------------------------

    def _all_nodes(self) -> list[onnx.NodeProto]:
        """The new nodes in order, without those that only made what is not read any more."""
        graph = self._graph
        ordered: list[tuple[int | None, onnx.NodeProto]] = []
        for index, proto in enumerate(self._nodes):
            if index in self._inserted:
                ordered.append((None, self._inserted[index]))
            ordered.append((index, proto))
            if index in self._appended:
                ordered.append((None, self._appended[index]))
        read = set(graph.output_names)
        kept: list[onnx.NodeProto] = []
        for place, proto in reversed(ordered):
            is_replaced = any(name in self._made for name in proto.output)
            was_read = place is not None and any(name in graph.consumers for name in graph.nodes[place].outputs)
            is_read = any(name in read for name in proto.output)
            if is_replaced or (was_read and not is_read):
                continue
            kept.append(proto)
            read.update(proto.input)
            if place is not None:
                read.update(graph.nodes[place].captures)
        return kept[::-1]

    def _replace_initializers(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put what was made in the place of what it was made from."""
        graph = self._skeleton.graph
        read = {name for node in nodes for name in node.input} | self._graph.output_names
        read.update(name for node in self._graph.nodes for name in node.captures)
        was_read = self._graph.consumers
        dropped = {
            tensor.name
            for tensor in graph.initializer
            if tensor.name in self._made or (tensor.name in was_read and tensor.name not in read)
        }
        kept = [tensor for tensor in graph.initializer if tensor.name not in dropped]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
        for name in dropped:
            self._weights.pop(name, None)
        for name, array in self._made.items():
            self._put(name, np.ascontiguousarray(array))
        sizes = {name: array.shape for name, array in self._made.items()}
        inputs = [value for value in graph.input if value.name not in dropped or value.name in sizes]
        copied = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
        del graph.input[:]
        graph.input.extend(copied)
        for value in graph.input:
            if value.name in sizes:
                _state(value, dict(enumerate(sizes[value.name])))

    def _put(self, name: str, array: Array) -> None:
        tensor = self._skeleton.graph.initializer.add()
        if array.nbytes < LIFT_BYTES:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
            return
        dtype = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.name, tensor.data_type = name, dtype
        tensor.dims.extend(array.shape)
        tensor.MergeFromString(external_mark())
        data = array.tobytes()
        self._weights[name] = Weight(
            name=name, dtype=dtype, dims=tuple(array.shape), buffer=data, offset=0, nbytes=len(data)
        )

    def _restate_sizes(self) -> None:
        """Correct what the file states of tensors that lost channels."""
        for value in self._skeleton.graph.value_info:
            if value.name in self._cuts.sizes:
                _state(value, self._cuts.sizes[value.name])


def _state(value: onnx.ValueInfoProto, sizes: Mapping[int, int]) -> None:
    shape = value.type.tensor_type.shape
    for axis, size in sizes.items():
        if axis < len(shape.dim):
            shape.dim[axis].dim_value = size


def _set_integer(proto: onnx.NodeProto, name: str, number: int) -> None:
    for attribute in proto.attribute:
        if attribute.name == name:
            attribute.i = number
            return
    proto.attribute.append(onnx.helper.make_attribute(name, number))
