"""Carry types and small values through a graph where one pass of ONNX's shape inference stopped.

ONNX's inference follows values through only a few operators, so that exporters' shape arithmetic (Slice, Where,
Range, ConstantOfShape...) leaves everything after it without a shape. One sweep in topological order mends that: the
inputs of each node without static output types are evaluated as far as they are constants by now (``_arithmetic``), and
the node's types are inferred again, alone, if that or a predecessor's better type brought news. What is learnt follows
from ONNX's own inference functions and true values, so it holds whenever the types it started from do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.model._arithmetic import LARGEST, OPERATORS, Value, evaluate, readable
from parallax.model._attributes import constant_node_value, tensor_value

_log = logging.getLogger(__name__)

_ROOM_BYTES = 8 * LARGEST
_BODY_OPS = frozenset(("If", "Loop", "Scan", "SequenceMap"))
_ONNX = ("", "ai.onnx")
_SOURCES = frozenset(("Constant", "Shape", "Size"))
_MADE_UP = "unk__"
"""How inference names the sizes it knows nothing about: unique within one run of it, but not between runs."""

Infer = Callable[[onnx.ModelProto], onnx.ModelProto]


def propagate(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto], infer: Infer) -> dict[str, onnx.TypeProto]:
    """Types that are better than those in ``types``, by tensor name; empty when nothing was to learn.

    Never fails. Linear in the nodes, of which only those without static output types cost more than a look.

    Args:
        model: without functions, its nodes in topological order, its initializers constant. Nodes with bodies are
            annotated anew, in place, where more has become known of what they read.
        types: of intermediate tensors and outputs, as inference left them.
        infer: shape inference on a model, never failing.
    """
    unknown = [
        position
        for position, node in enumerate(model.graph.node)
        if node.op_type in _BODY_OPS or None in [_elements(types.get(name)) for name in node.output if name]
    ]
    return _Sweep(model, types, infer).run(unknown) if unknown else {}


def _elements(kind: onnx.TypeProto | None) -> int | None:
    """Elements of a tensor of this type; None unless it is a tensor type with all its sizes."""
    if kind is None:
        return None
    tensor = kind.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return None
    count = 1
    for dim in tensor.shape.dim:
        size = dim.dim_value
        if size < 0 or (size == 0 and not dim.HasField("dim_value")):
            return None
        count *= size
    return count


class _Sweep:
    def __init__(self, model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto], infer: Infer) -> None:
        graph = model.graph
        self._nodes = graph.node
        self._infer = infer
        self._shell = onnx.ModelProto(ir_version=max(model.ir_version, 4))
        self._shell.opset_import.extend(model.opset_import)
        self._types = dict(types)
        self._types.update((value.name, value.type) for value in graph.input)
        self._learned: dict[str, onnx.TypeProto] = {}
        self._producers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._values: dict[str, Value | None] = {}
        self._protos: dict[str, onnx.TensorProto] = {}
        self._waiting: list[onnx.NodeProto] = []
        """Nodes to infer again before anyone asks for the type of one of their outputs, ``_awaited``."""
        self._awaited: set[str] = set()

    def run(self, positions: Iterable[int]) -> dict[str, onnx.TypeProto]:
        for position in positions:
            node = self._nodes[position]
            outputs = [name for name in node.output if name]
            if node.op_type in OPERATORS:
                values = [value for name in outputs if (value := self._value(name)) is not None]
                if len(values) == len(outputs):
                    for name, value in zip(outputs, values, strict=True):
                        self._learn(name, _type_of(value))
                    continue
            # All values before any other question: asking may infer what waits, and so teach new types.
            news = [self._is_news(name) for name in node.input if name]
            reads = (*node.input, *_captures(node))
            if any(news) or any(name in self._learned or name in self._awaited for name in reads):
                self._waiting.append(node)
                self._awaited.update(outputs)
        self._infer_waiting()
        return self._learned

    def _is_news(self, name: str) -> bool:
        """Whether this is a value that inference may not have had: computed, not given."""
        value = self._value(name)
        position = self._producers.get(name)
        return value is not None and position is not None and self._nodes[position].op_type != "Constant"

    def _infer_waiting(self) -> None:
        """Infer the nodes put off so far, together: a call for each would cost ten times as much."""
        waiting, awaited = self._waiting, self._awaited
        if not waiting:
            return
        self._waiting, self._awaited = [], set()
        model = onnx.ModelProto()
        model.CopyFrom(self._shell)
        model.graph.node.extend(waiting)
        symbols: set[str] = set()
        for name in {name: None for node in waiting for name in (*node.input, *_captures(node)) if name}:
            if name in awaited:
                continue
            if (value := self._values.get(name)) is not None:
                model.graph.initializer.append(self._proto(name, value))
            elif (kind := self._type(name)) is not None:
                model.graph.input.add(name=name).type.CopyFrom(kind)
                symbols.update(_symbols(kind))
        for name in awaited:
            if (kind := self._types.get(name)) is not None:
                model.graph.value_info.add(name=name).type.CopyFrom(kind)
                symbols.update(_symbols(kind))
        graph = self._infer(model).graph
        _forget_made_up(graph, symbols)
        for value in graph.value_info:
            if value.name in awaited:
                self._learn(value.name, value.type)
        for node, annotated in zip(waiting, graph.node, strict=True):
            if node.op_type in _BODY_OPS:
                node.CopyFrom(annotated)

    def _learn(self, name: str, kind: onnx.TypeProto) -> None:
        better = _merged(self._types.get(name), kind)
        if better is not None:
            self._types[name] = self._learned[name] = better

    def _type(self, name: str) -> onnx.TypeProto | None:
        kind = self._types.get(name)
        if kind is None and (tensor := self._initializers.get(name)) is not None:
            kind = self._types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        return kind

    def _proto(self, name: str, value: Value) -> onnx.TensorProto:
        proto = self._protos.get(name)
        if proto is None:
            proto = self._protos[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return proto

    def _value(self, wanted: str) -> Value | None:
        """The value of a small tensor if it follows from constants and static shapes.

        Asked in topological order, so an answer is final: what it rests on will not become better known.
        """
        stack = [wanted]
        while stack:
            name = stack[-1]
            if name not in self._values:
                waits_for = self._try(name)
                if waits_for is not None:
                    stack.append(waits_for)
                    continue
            stack.pop()
        return self._values[wanted]

    def _try(self, name: str) -> str | None:
        """Settle the value of a tensor, or name an input to settle first."""
        position = self._producers.get(name)
        if position is None:
            tensor = self._initializers.get(name)
            self._values[name] = None if tensor is None else _readable(tensor)
            return None
        node = self._nodes[position]
        op_type = node.op_type
        outputs = tuple(node.output)
        results: tuple[Value | None, ...] = (None,) * len(outputs)
        if op_type in _SOURCES:
            if len(outputs) == 1 and node.domain in _ONNX:
                results = (self._source(node),)
        elif op_type in OPERATORS and node.domain in _ONNX and all(map(self._may_be_small, outputs)):
            inputs: list[Value | None] = []
            for read in node.input:
                if read and read not in self._values:
                    return str(read)
                inputs.append(self._values[read] if read else None)
                if read and inputs[-1] is None:
                    break
            else:
                results = evaluate(node, inputs) or results
        self._values.update(zip(outputs, results, strict=True))
        return None

    def _source(self, node: onnx.NodeProto) -> Value | None:
        """The output of a node that has a value without its inputs having one."""
        if node.op_type == "Constant":
            value = constant_node_value(node, most_bytes=_ROOM_BYTES)
            return value if value is not None and readable(value) else None
        if not node.input:
            return None
        if node.input[0] in self._awaited:
            self._infer_waiting()
        return _shape_value(node, self._type(node.input[0]))

    def _may_be_small(self, name: str) -> bool:
        count = _elements(self._types.get(name))
        return count is None or count <= LARGEST


def _readable(tensor: onnx.TensorProto) -> Value | None:
    if math.prod(tensor.dims) > LARGEST:
        return None
    value = tensor_value(tensor, most_bytes=_ROOM_BYTES)
    return value if value is not None and readable(value) else None


def _type_of(value: Value) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _shape_value(node: onnx.NodeProto, kind: onnx.TypeProto | None) -> Value | None:
    """What Shape or Size returns for an input of this type."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    dims = list(kind.tensor_type.shape.dim)
    if node.op_type == "Shape":
        # Bounds beyond the rank are clamped, negative ones count from its end, as slices do.
        dims = dims[bounds.get("start", 0) : bounds.get("end", len(dims))]
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    sizes = [dim.dim_value for dim in dims]
    if node.op_type == "Shape":
        return np.array(sizes, np.int64)
    size = math.prod(sizes)
    return np.array(size) if size < 2**63 else None


def _merged(old: onnx.TypeProto | None, new: onnx.TypeProto) -> onnx.TypeProto | None:
    """What both say together if that is more than the old one says alone; None if not, or if they disagree."""
    which = new.WhichOneof("value")
    if which is None:
        return None
    if old is None or old.WhichOneof("value") is None:
        return new
    if which != "tensor_type" or old.WhichOneof("value") != which:
        return None
    if old.tensor_type.elem_type not in (0, new.tensor_type.elem_type) or not new.tensor_type.HasField("shape"):
        return None
    if not old.tensor_type.HasField("shape"):
        return new
    if len(old.tensor_type.shape.dim) != len(new.tensor_type.shape.dim):
        _log.debug("inference contradicts itself on a rank: %s, then %s", old, new)
        return None
    merged = onnx.TypeProto()
    merged.CopyFrom(old)
    gained = not old.tensor_type.elem_type
    merged.tensor_type.elem_type = new.tensor_type.elem_type
    for target, source in zip(merged.tensor_type.shape.dim, new.tensor_type.shape.dim, strict=True):
        if source.HasField("dim_value"):
            if not target.HasField("dim_value"):
                target.dim_value = source.dim_value
                gained = True
            elif target.dim_value != source.dim_value:
                _log.debug("inference contradicts itself on a size: %s, then %s", old, new)
                return None
        elif _is_telling(source.dim_param) and not target.HasField("dim_value") and not _is_telling(target.dim_param):
            target.dim_param = source.dim_param
            gained = True
    return merged if gained else None


def _is_telling(symbol: str) -> bool:
    return bool(symbol) and not symbol.startswith(_MADE_UP)


def _symbols(kind: onnx.TypeProto) -> set[str]:
    return {dim.dim_param for dim in kind.tensor_type.shape.dim if dim.dim_param}


def _captures(node: onnx.NodeProto) -> list[str]:
    """Tensors of outer scopes that a node's bodies read, in order of first use."""
    if node.op_type not in _BODY_OPS:
        return []
    reads: dict[str, None] = {}
    defined: set[str] = set()
    stack = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    while stack:
        graph = stack.pop()
        defined.update(tensor.name for tensor in (*graph.input, *graph.initializer))
        reads.update((value.name, None) for value in graph.output)
        for inner in graph.node:
            reads.update((name, None) for name in inner.input if name)
            defined.update(inner.output)
            stack.extend(attribute.g for attribute in inner.attribute if attribute.HasField("g"))
    return [name for name in reads if name not in defined]


def _forget_made_up(graph: onnx.GraphProto, symbols: set[str]) -> None:
    """Clear sizes that one run of inference named, which could be taken for another run's; bodies included."""
    stack = [graph]
    while stack:
        current = stack.pop()
        for value in (*current.value_info, *current.output):
            if value.type.WhichOneof("value") == "tensor_type":
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param.startswith(_MADE_UP) and dim.dim_param not in symbols:
                        dim.ClearField("dim_param")
        for node in current.node:
            if node.op_type in _BODY_OPS:
                stack.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
