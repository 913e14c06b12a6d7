"""Carry types and small values through a graph where one pass of ONNX's shape inference stopped.

ONNX's inference follows values through only a few operators, so that exporters' shape arithmetic (Slice, Where,
Range, ConstantOfShape...) leaves everything after it without a shape. One sweep in topological order fixes that: the
inputs of each node without static output types are evaluated as far as they are constants by now (``_arithmetic``), and
the node's types are inferred again, alone, if that or a predecessor's better type brought news. What is learnt follows
from ONNX's own inference functions and true values, so it holds whenever the types it started from do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from parallax.model._arithmetic import LARGEST, OPERATORS, Value, evaluate, readable, stored
from parallax.model._attributes import constant_node_value
from parallax.model._body_operators import BODY_OPERATORS

_log = logging.getLogger(__name__)

_BUDGET_BYTES = 64 << 20
"""Bytes of all values together that a sweep keeps; past that it learns no more of them."""
_ONNX = ("", "ai.onnx")
_SHAPES = frozenset(("Shape", "Size"))
_SOURCES = _SHAPES | {"Constant"}
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
        if node.op_type in BODY_OPERATORS or None in [_elements(types.get(name)) for name in node.output if name]
    ]
    return _Sweep(model, types, infer).run(unknown) if unknown else {}


def _elements(kind: onnx.TypeProto | None) -> int | None:
    """Elements of a tensor of this type; None unless it is a tensor type with all its sizes."""
    if kind is None:
        return None
    tensor = kind.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return None
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    if 0 in sizes and not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return math.prod(sizes) if min(sizes, default=0) >= 0 else None


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
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._op_types: list[str] = []
        self._inputs: list[tuple[str, ...]] = []
        self._producers: dict[str, int] = {}
        self._given = {"", *self._initializers}
        """Names of constants, and the empty one of what is omitted."""
        self._computable: set[str] = set()
        """Outputs that could have a value: computed by operators we evaluate from shapes and constants alone."""
        self._read_columns()
        self._values: dict[str, Value | None] = {}
        self._protos: dict[str, onnx.TensorProto] = {}
        self._left_bytes = _BUDGET_BYTES
        self._waiting: list[int] = []
        """Nodes to infer again before anyone asks for the type of one of their outputs, ``_awaited``."""
        self._awaited: set[str] = set()

    def _read_columns(self) -> None:
        """One look at every node; fields of messages are slow to read."""
        given, computable = self._given, self._computable
        for position, node in enumerate(self._nodes):
            op_type, inputs, outputs = node.op_type, tuple(node.input), node.output
            self._op_types.append(op_type)
            self._inputs.append(inputs)
            for name in outputs:
                self._producers[name] = position
            if op_type == "Constant":
                given.update(outputs)
            elif op_type in _SHAPES or (
                op_type in OPERATORS and all(name in computable or name in given for name in inputs)
            ):
                computable.update(outputs)
        self._producers.pop("", None)

    def run(self, positions: Iterable[int]) -> dict[str, onnx.TypeProto]:
        computable = self._computable
        for position in positions:
            outputs = [name for name in self._nodes[position].output if name]
            if computable.issuperset(outputs):
                values = [value for name in outputs if (value := self._value(name)) is not None]
                if len(values) == len(outputs):
                    for name, value in zip(outputs, values, strict=True):
                        self._learn(name, _type_of(value))
                    continue
            reads = self._inputs[position]
            # All values before any other question: asking may infer what waits, and so teach new types.
            news = [name for name in reads if name in computable and self._value(name) is not None]
            if self._op_types[position] in BODY_OPERATORS:
                reads = (*reads, *_captures(self._nodes[position]))
            if news or any(name in self._learned or name in self._awaited for name in reads):
                for name in reads:
                    if name in self._given:
                        self._value(name)
                self._waiting.append(position)
                self._awaited.update(outputs)
        self._infer_waiting()
        return self._learned

    def _infer_waiting(self) -> None:
        """Infer the nodes put off so far, together: a call for each would cost ten times as much."""
        positions, awaited = self._waiting, self._awaited
        if not positions:
            return
        self._waiting, self._awaited = [], set()
        waiting = [self._nodes[position] for position in positions]
        model = onnx.ModelProto()
        model.CopyFrom(self._shell)
        model.graph.node.extend(waiting)
        reads = {name: None for position in positions for name in self._inputs[position] if name}
        bodies = [position for position in positions if self._op_types[position] in BODY_OPERATORS]
        reads.update((name, None) for position in bodies for name in _captures(self._nodes[position]))
        symbols: set[str] = set()
        for name in reads:
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
        if bodies:
            for node, annotated in zip(waiting, graph.node, strict=True):
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
        values = self._values
        stack = [wanted]
        while stack:
            name = stack[-1]
            if name not in values and (first := self._settle(name)) is not None:
                stack.append(first)
            else:
                stack.pop()
        return values[wanted]

    def _settle(self, name: str) -> str | None:
        """Find the value of a tensor, or name an input whose value must be found first."""
        values = self._values
        position = self._producers.get(name)
        if position is None:
            tensor = self._initializers.get(name)
            values[name] = None if tensor is None else stored(tensor)
            return None
        node = self._nodes[position]
        outputs = tuple(node.output)
        results: Sequence[Value | None] = (None,) * len(outputs)
        if node.domain not in _ONNX:
            pass
        elif self._op_types[position] in _SOURCES:
            if len(outputs) == 1:
                results = (self._source(node),)
        elif name in self._computable and all(map(self._may_be_small, outputs)):
            inputs: list[Value | None] = []
            for read in self._inputs[position]:
                if read and read not in values and not self._is_source(read):
                    return read
                inputs.append(values[read] if read else None)
                if read and inputs[-1] is None:
                    break
            else:
                results = self._kept(evaluate(node, inputs)) or results
        values.update(zip(outputs, results, strict=True))
        return None

    def _is_source(self, name: str) -> bool:
        """Settle a tensor right away if no other has to be settled before it."""
        position = self._producers.get(name)
        if position is None or self._op_types[position] in _SOURCES:
            self._settle(name)
            return True
        return False

    def _kept(self, values: tuple[Value, ...] | None) -> tuple[Value, ...] | None:
        if values is not None:
            self._left_bytes -= sum(value.nbytes for value in values)
        return values if self._left_bytes >= 0 else None

    def _source(self, node: onnx.NodeProto) -> Value | None:
        """The output of a node that has a value without its inputs having one."""
        if node.op_type == "Constant":
            if len(node.attribute) == 1 and node.attribute[0].HasField("t"):
                return stored(node.attribute[0].t)
            value = constant_node_value(node)
            return value if value is not None and readable(value) else None
        if not node.input:
            return None
        if node.input[0] in self._awaited:
            self._infer_waiting()
        return shape_value(node, self._type(node.input[0]))

    def _may_be_small(self, name: str) -> bool:
        count = _elements(self._types.get(name))
        return count is None or count <= LARGEST


def _type_of(value: Value) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def shape_value(node: onnx.NodeProto, kind: onnx.TypeProto | None) -> Value | None:
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
    gained = not old.tensor_type.elem_type
    lost: list[tuple[int, onnx.TensorShapeProto.Dimension]] = []
    for axis, (had, has) in enumerate(zip(old.tensor_type.shape.dim, new.tensor_type.shape.dim, strict=True)):
        if had.HasField("dim_value"):
            if not has.HasField("dim_value"):
                lost.append((axis, had))
            elif had.dim_value != has.dim_value:
                _log.debug("inference contradicts itself on a size: %s, then %s", old, new)
                return None
        elif has.HasField("dim_value") or (_is_telling(has.dim_param) and not _is_telling(had.dim_param)):
            gained = True
        elif had.dim_param and (_is_telling(had.dim_param) or not has.dim_param):
            lost.append((axis, had))
    if not gained or not lost:
        return new if gained else None
    merged = onnx.TypeProto()
    merged.CopyFrom(new)
    for axis, dim in lost:
        merged.tensor_type.shape.dim[axis].CopyFrom(dim)
    return merged


def _is_telling(symbol: str) -> bool:
    return bool(symbol) and not symbol.startswith(_MADE_UP)


def _symbols(kind: onnx.TypeProto) -> set[str]:
    return {dim.dim_param for dim in kind.tensor_type.shape.dim if dim.dim_param}


def _captures(node: onnx.NodeProto) -> list[str]:
    """Tensors of outer scopes that a node's bodies read, in order of first use."""
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
            if node.op_type in BODY_OPERATORS:
                stack.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
