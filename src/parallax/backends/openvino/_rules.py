"""Which nodes OpenVINO's processor plugin computes with the precision the model asks for.

It narrows 64-bit integers to 32 bits, wrapping in silence, and computes several operators on integers (Equal, Div,
ReduceSum, ReduceMax, MatMul) in float32, where only 24 bits are exact; doubles become floats. All of this was seen with
OpenVINO 2026.4. What depends on the numbers, which no table of operators can tell, is left to others by rules. All else
is told by a table of what was run and compared (`unproven_nodes`). The rules:

* An integer that enters from outside is checked against `EXACT_INTEGER` when it is fed.
* What moves, compares or selects integers keeps their bound; that of sums and products is computed, and must not
  exceed `EXACT_INTEGER` either.
* Arithmetic on sizes (from Shape and constants alone) and on what is only used as shape or index is trusted:
  a size or an index beyond 2**24 in a model would be a tensor of that many rows.
* All other integer arithmetic is refused.

NaNs and infinities: kernels of OpenVINO compare as the processor's instructions do, so a NaN that goes into Relu, Clip,
Max or a pool comes out as a number. Operators that choose among numbers (Max, Min, ReduceMax, ReduceMin, IsNaN, IsInf)
are refused for it. Relu, Clip and pools are not, or hardly a model could run there: instead, a run that is fed a NaN or
an infinity is computed elsewhere (`OpenVinoModel`). What remains are NaNs that a model makes of finite numbers within a
part on OpenVINO, by 0/0 for example.

Empty tensors: ArgMax, pools, Concat, Flatten and LSTM give other answers for them, so a run that is fed one is computed
elsewhere, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from parallax.backends.openvino._table import operator_table
from parallax.backends.ort import TYPE_NAMES
from parallax.graph import Node, OpGraph, RefusedNode, TensorInfo, Verdict, constant_value

EXACT_INTEGER: Final = 1 << 24
"""Integers up to this magnitude are exact in float32."""

NO_LIMIT: Final = (1 << 31) - 1
"""Constants from here on are clamped to this: as operands that bound or are compared with, to the same effect."""

_FLOATS: Final = frozenset({1, 10, 16})  # float, float16, bfloat16: all computed in float32
_BOOL: Final = 9
_INTEGERS: Final = frozenset({6, 7})  # int32, int64
_BYTES: Final = frozenset({2, 3})  # uint8, int8
_KNOWN: Final = _FLOATS | _INTEGERS | _BYTES | {_BOOL}

_MOVES: Final = frozenset(
    [
        "Compress",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "OneHot",
        "Pad",
        "Reshape",
        "ReverseSequence",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    ]
)
"""Elements arrive as they left."""
_SELECTS: Final = frozenset(
    [
        "Abs",
        "ArgMax",
        "ArgMin",
        "Clip",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Neg",
        "NonZero",
        "ReduceMax",
        "ReduceMin",
        "Sign",
        "TopK",
    ]
)
"""Exact on exact integers, and within their bound."""
_LIMITS: Final = frozenset({"Clip", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
"""Operators that may be given a constant beyond all limits."""
_SIZES: Final = frozenset({"Constant", "ConstantOfShape", "Shape", "Size"})
_INDICES: Final = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK"})
_QUANTISES: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"}) | _MOVES
"""Operators that may touch bytes."""
_RANDOM: Final = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)

_ONE_AXIS: Final = 13
"""The opset since which these operators work along one axis."""

_INDEX_OPERANDS: Final[Mapping[str, tuple[int, ...]]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "NonMaxSuppression": (2,),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Resize": (3,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
"""Operands that are a shape, an axis or an index, by position."""


class _Integers:
    """What is known of the integer tensors seen so far: which are sizes, and how large the others can be."""

    def __init__(self, graph: OpGraph) -> None:
        self._graph = graph
        self._bounds: dict[str, int] = {}
        self._sizes: set[str] = set()
        self.used_as_index: Final = _used_as_index(graph)

    def bound(self, name: str) -> int:
        """The largest magnitude that the tensor can have."""
        known = self._bounds.get(name)
        if known is not None:
            return known
        constant = constant_value(self._graph, name)
        if constant is None:
            # A size, or checked elsewhere: weights when the part is compiled, what comes from outside when it is fed.
            return EXACT_INTEGER
        return max((abs(int(number)) for number in constant.reshape(-1)), default=0)

    def is_no_limit(self, name: str) -> bool:
        """Whether it is a constant that every exact integer lies below, or above, clamped or not."""
        constant = constant_value(self._graph, name)
        return constant is not None and all(abs(int(number)) >= NO_LIMIT for number in constant.reshape(-1))

    def is_size(self, name: str) -> bool:
        return name in self._sizes or name in self._graph.initializers

    def note_size(self, names: Sequence[str]) -> None:
        self._sizes.update(names)

    def note_bound(self, names: Sequence[str], bound: int) -> None:
        self._bounds.update((name, bound) for name in names)


def refused_nodes(graph: OpGraph, opsets: Mapping[str, int]) -> Mapping[int, RefusedNode]:
    """The nodes that OpenVINO must not compute, by index.

    Args:
        graph: with its types inferred.
        opsets: of the model, by domain.
    """
    opset = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    integers = _Integers(graph)
    refused: dict[int, RefusedNode] = {}
    for node in graph.nodes:
        verdict = _structure(graph, node, opset) or _follow_integers(graph, node, integers)
        if verdict is not None:
            refused[node.index] = RefusedNode(node=node.index, reason=verdict[0], detail=verdict[1])
            # Its outputs come from outside then, and are checked on entry.
            integers.note_bound(node.outputs, EXACT_INTEGER)
    return refused


def unproven_nodes(graph: OpGraph, opsets: Mapping[str, int], *, version: str) -> Mapping[int, RefusedNode]:
    """The nodes that are not known to come out right by the table of operators, by index; see `OperatorTable`.

    Args:
        graph: with its types inferred.
        opsets: of the model, by domain.
        version: of OpenVINO.
    """
    table = operator_table()
    if not table.is_for(version):
        detail = (
            f"the table of what OpenVINO computes right was made with its release {table.openvino}, and this is "
            f"{version}: install that one, or make the table anew with tools/openvino_table.py"
        )
        return {
            node.index: RefusedNode(node=node.index, reason=Verdict.UNSUPPORTED_FORM, detail=detail)
            for node in graph.nodes
        }
    found = {node.index: table.obstacle(graph, node, opsets) for node in graph.nodes}
    return {
        index: RefusedNode(
            node=index,
            reason=obstacle[0],
            detail=f"OpenVINO is not known to compute {graph.nodes[index].op_type} {obstacle[1]} as ONNX Runtime does",
        )
        for index, obstacle in found.items()
        if obstacle is not None
    }


def _structure(graph: OpGraph, node: Node, opset: int) -> tuple[Verdict, str] | None:
    if node.bodies:
        return Verdict.CONTROL_FLOW, f"{node.op_type} holds bodies"
    deviation = _deviation(graph, node, opset) or _edge_deviation(graph, node)
    if deviation is not None:
        return Verdict.UNSUPPORTED_FORM, f"OpenVINO {deviation}"
    for name in filter(None, (*node.inputs, *node.outputs)):
        info = graph.tensors.get(name)
        if info is None or info.kind != "tensor" or not info.dtype:
            return Verdict.UNSUPPORTED_FORM, f"the type of {name!r} is not known, or no tensor"
        if info.dtype not in _KNOWN:
            kind = Verdict.LOWER_PRECISION if info.dtype in (11, 12, 13) else Verdict.UNSUPPORTED_TYPE
            return kind, f"OpenVINO does not compute {TYPE_NAMES.get(info.dtype, info.dtype)} exactly, as {name!r} is"
        if info.dtype in _BYTES and node.op_type not in _QUANTISES:
            return Verdict.LOWER_PRECISION, f"OpenVINO saturates bytes where {node.op_type} wraps or accumulates"
    return None


def _deviation(graph: OpGraph, node: Node, opset: int) -> str | None:
    """How OpenVINO's answer would differ from ONNX's, if it would: found with ONNX's own backend tests, and by running
    models of one operator in both libraries with attributes and values at the edges of their ranges."""
    attributes = node.attributes
    extra = [name for name in node.outputs[1:] if name]
    match node.op_type:
        case kind if kind in _RANDOM:
            return "would draw other random numbers"
        case "Resize":
            if attributes.get("antialias") or attributes.get("exclude_outside"):
                return "weighs the samples at the edges in another way"
            if attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
                return "always stretches"
        case "AveragePool" | "LpPool" | "MaxPool" if attributes.get("ceil_mode"):
            return "pools windows that begin in the padding, too"
        case "RoiAlign" if not attributes.get("sampling_ratio") or attributes.get("mode", "avg") != "avg":
            return "takes samples at other places where their number follows from the region, or the largest is wanted"
        case "Max" | "Min" if _dtype(graph, node.inputs[0]) in _FLOATS:
            return "loses NaNs"
        case "Softmax" | "LogSoftmax" | "Hardmax" if opset < _ONE_AXIS:
            return "takes one axis, where this version takes all from that axis on"
        case "LSTM" | "GRU" if attributes.get("input_forget"):
            return "does not couple the gates"
        case kind if kind.startswith("Reduce") and len(node.inputs) > 1 and _is_computed(graph, node.inputs[1]):
            return "makes something else of, or ends the process with, axes that are computed"
        case "Tile" if constant_value(graph, node.inputs[1]) is None:
            return "repeats wrongly where the repeats are computed"
        case "TopK" if extra:
            return "gives equal elements in another order"
        case "NonMaxSuppression":
            return "keeps other boxes where overlaps are as large as the threshold"
        case "DFT" | "STFT":
            return "lays transforms out in another way"
        case "IsInf" | "IsNaN":
            return "loses NaNs and infinities on the way"
        case "Attention" if extra:
            return "masks scores in another way"
        case "ReduceMax" | "ReduceMin" if not _is_integer(graph, node.inputs[0]):
            return "has no infinities there, which masks and empty rows make"
    return None


_SWITCHES: Final = frozenset({"keepdims", "periodic", "select_last_index", "upper"})
"""Attributes that are 0 or 1; of other numbers ONNX Runtime and OpenVINO make different things."""
_WINDOWS: Final = frozenset({"BlackmanWindow", "HammingWindow", "HannWindow"})


def _edge_deviation(graph: OpGraph, node: Node) -> str | None:
    """As `_deviation`, for attributes at the edges of their ranges and for operands in unusual forms."""
    attributes = node.attributes
    switched = sorted(name for name in _SWITCHES & attributes.keys() if attributes[name] not in (0, 1))
    if switched:
        return f"takes a {switched[0]} other than 0 and 1 for something else"
    match node.op_type:
        case "MaxPool" if attributes.get("storage_order"):
            return "numbers maxima in one order of storage only"
        case "HardSigmoid" if 0 in (attributes.get("alpha"), attributes.get("beta")):
            return "takes its own default for an alpha or beta of 0"
        case "Celu" if attributes.get("alpha") == 0:
            return "makes numbers where an alpha of 0 makes NaNs"
        case "Attention" if any(node.inputs[4:]):
            return "masks scores in another way where keys of the past are given"
        case kind if kind in _WINDOWS and attributes.get("output_datatype", 1) != 1:
            return "rounds windows of other types than float in another way"
        case "Compress" if _rank(graph, node.inputs[1]) != 1:
            return "makes something else of conditions that are not known to have one dimension"
        case "GatherElements" if not _covers(graph, node):
            return "makes something else of, or ends the process with, indices that do not cover the other dimensions"
    return None


def _rank(graph: OpGraph, name: str) -> int | None:
    info = graph.tensors.get(name)
    return None if info is None or info.shape is None else len(info.shape)


def _covers(graph: OpGraph, node: Node) -> bool:
    """Whether the indices of GatherElements are known to be as large as the data in all dimensions but the axis."""
    infos = [graph.tensors.get(name) for name in node.inputs]
    data, indices = (None if info is None else info.shape for info in infos)
    if data is None or indices is None or len(data) != len(indices) or not data:
        return False
    axis = node.attributes.get("axis", 0)
    along = axis % len(data) if isinstance(axis, int) else 0
    return all(
        at == along or (isinstance(size, int) and size == other)
        for at, (size, other) in enumerate(zip(data, indices, strict=True))
    )


def _is_computed(graph: OpGraph, name: str) -> bool:
    return bool(name) and name not in graph.initializers and constant_value(graph, name) is None


def _follow_integers(graph: OpGraph, node: Node, integers: _Integers) -> tuple[Verdict, str] | None:
    """Whether the node's integers stay exact; notes what is then known of its outputs."""
    indices = _INDEX_OPERANDS.get(node.op_type, ())
    data = [name for at, name in enumerate(node.inputs) if name and at not in indices and _is_integer(graph, name)]
    made = [name for name in node.outputs if name and _is_integer(graph, name)]
    if not data and not made:
        return None
    if node.op_type in _SIZES or (made and all(name in integers.used_as_index for name in made)):
        integers.note_size(made)
        return None
    if node.op_type in _LIMITS:
        data = [name for name in data if not integers.is_no_limit(name)]
    bounds = [integers.bound(name) for name in data]
    if max(bounds, default=0) > EXACT_INTEGER:
        return (
            Verdict.LOWER_PRECISION,
            f"integers of {node.op_type} may exceed 2**24, beyond which OpenVINO is not exact",
        )
    if node.op_type in _INDICES:
        integers.note_bound(made, EXACT_INTEGER)
        return None
    if data and all(integers.is_size(name) for name in data):
        integers.note_size(made)
        return None
    bound = _result_bound(graph, node, bounds)
    if made and (bound is None or bound > EXACT_INTEGER):
        return (
            Verdict.LOWER_PRECISION,
            f"{node.op_type} may make integers beyond 2**24, which OpenVINO does not keep exact",
        )
    if not made and node.op_type not in _MOVES | _SELECTS | {"Cast"}:
        return Verdict.LOWER_PRECISION, f"OpenVINO is not known to read the integers of {node.op_type} exactly"
    if bound is not None:
        integers.note_bound(made, bound)
    return None


def _result_bound(graph: OpGraph, node: Node, bounds: Sequence[int]) -> int | None:
    """The largest magnitude of what a node makes of integers within ``bounds``, or None."""
    kind = node.op_type
    if kind in _MOVES or kind in _SELECTS:
        return max(bounds, default=0)
    if kind in ("Add", "Sub", "Sum"):
        return sum(bounds)
    if kind == "Mul":
        return math.prod(bounds)
    if kind in ("Div", "Mod"):
        return bounds[0]  # whole numbers: a divisor is at least 1
    if kind == "ReduceSum":
        shape = graph.tensors[node.inputs[0]].shape
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            return None
        return bounds[0] * math.prod(dim for dim in shape if isinstance(dim, int))
    if kind == "Cast":
        source = graph.tensors[node.inputs[0]].dtype
        if source == _BOOL:
            return 1
        if source in _BYTES:
            return 255
        return None if source in _FLOATS else bounds[0]
    return None


def _used_as_index(graph: OpGraph) -> frozenset[str]:
    """Integer tensors that, through whatever arithmetic, only ever become a shape or an index."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        for name in node.outputs:
            if name and name not in graph.output_names and _is_integer(graph, name):
                readers = graph.consumers.get(name, ())
                if readers and all(_reads_as_index(graph, graph.nodes[reader], name, found) for reader in readers):
                    found.add(name)
    return frozenset(found)


def _reads_as_index(graph: OpGraph, reader: Node, name: str, found: set[str]) -> bool:
    if name in reader.captures:
        return False
    indices = _INDEX_OPERANDS.get(reader.op_type, ())
    if all(at in indices for at, operand in enumerate(reader.inputs) if operand == name):
        return True
    outputs = [output for output in reader.outputs if output]
    return bool(outputs) and all(_is_integer(graph, output) and output in found for output in outputs)


def _is_integer(graph: OpGraph, name: str) -> bool:
    return _dtype(graph, name) in _INTEGERS


def _dtype(graph: OpGraph, name: str) -> int:
    info: TensorInfo | None = graph.tensors.get(name)
    return 0 if info is None else info.dtype
