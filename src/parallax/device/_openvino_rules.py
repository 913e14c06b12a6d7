"""Which nodes OpenVINO's processor plugin computes with the precision the model asks for.

It narrows 64-bit integers to 32 bits, wrapping in silence, and computes several operators on integers (Equal, Div,
ReduceSum, ReduceMax, MatMul) in float32, where only 24 bits are exact; doubles become floats, and bytes saturate where
ONNX wraps. All of this was seen with OpenVINO 2026.4. What depends on it is left to others, by the rules below:

* An integer that enters from outside is checked against `EXACT_INTEGER` when it is fed.
* What moves, compares or selects such integers stays within the bound.
* Arithmetic on sizes (from Shape and constants alone) and on what is only used as shape or index is trusted:
  a size or an index beyond 2**24 in a model would be a tensor of that many rows.
* All other integer arithmetic is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from parallax.device._backend import Refusal, RefusedNode
from parallax.device._kernel_lists import TYPE_NAMES
from parallax.model import Node, OpGraph, TensorInfo

EXACT_INTEGER: Final = 1 << 24
"""Integers up to this magnitude are exact in float32."""

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
_QUANTISES: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"}) | _MOVES
"""Operators that may touch bytes."""
_RANDOM: Final = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)

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


class _Range(enum.IntEnum):
    """What is known of an integer tensor; the larger, the less."""

    SIZE = 0
    """Made of sizes and constants."""
    BOUNDED = 1
    """Within `EXACT_INTEGER`."""
    UNKNOWN = 2


def refused_nodes(graph: OpGraph) -> Mapping[int, RefusedNode]:
    """The nodes that OpenVINO must not compute, by index. ``graph`` with its types inferred."""
    used_as_index = _used_as_index(graph)
    ranges: dict[str, _Range] = {}
    refused: dict[int, RefusedNode] = {}
    for node in graph.nodes:
        verdict = _structure(graph, node) or _integers(graph, node, ranges, used_as_index)
        if verdict is not None:
            refused[node.index] = RefusedNode(node=node.index, reason=verdict[0], detail=verdict[1])
            # Its outputs come from outside then, and are checked on entry.
            ranges.update((name, _Range.BOUNDED) for name in node.outputs)
    return refused


def _structure(graph: OpGraph, node: Node) -> tuple[Refusal, str] | None:
    if node.bodies:
        return Refusal.CONTROL_FLOW, f"{node.op_type} holds bodies"
    if node.op_type in _RANDOM:
        return Refusal.OTHER, f"{node.op_type} would draw other numbers"
    for name in filter(None, (*node.inputs, *node.outputs)):
        info = graph.tensors.get(name)
        if info is None or info.kind != "tensor" or not info.dtype:
            return Refusal.OTHER, f"the type of {name!r} is not known, or no tensor"
        if info.dtype not in _KNOWN:
            kind = Refusal.PRECISION if info.dtype in (11, 12, 13) else Refusal.DTYPE
            return kind, f"OpenVINO does not compute {TYPE_NAMES.get(info.dtype, info.dtype)} exactly, as {name!r} is"
        if info.dtype in _BYTES and node.op_type not in _QUANTISES:
            return Refusal.PRECISION, f"OpenVINO saturates bytes where {node.op_type} wraps or accumulates"
    return None


def _integers(
    graph: OpGraph, node: Node, ranges: dict[str, _Range], used_as_index: frozenset[str]
) -> tuple[Refusal, str] | None:
    """Whether the node's integers stay exact; notes the range of its outputs in ``ranges``."""
    indices = _INDEX_OPERANDS.get(node.op_type, ())
    data = [name for at, name in enumerate(node.inputs) if name and at not in indices and _is_integer(graph, name)]
    made = [name for name in node.outputs if name and _is_integer(graph, name)]
    if not data and not made:
        return None
    known = max((_range(graph, name, ranges) for name in data), default=_Range.SIZE)
    if made and all(name in used_as_index for name in made):
        ranges.update((name, _Range.SIZE) for name in made)
        return None
    if node.op_type in ("Shape", "Size", "Constant", "ConstantOfShape"):
        out = _Range.SIZE
    elif node.op_type in ("NonZero", "ArgMax", "ArgMin", "NonMaxSuppression", "TopK", "Unique"):
        out = _Range.BOUNDED
    elif node.op_type in _MOVES or node.op_type in _SELECTS:
        out = known
    elif node.op_type == "Cast":
        source = graph.tensors[node.inputs[0]].dtype
        if made and source in _FLOATS:
            return Refusal.PRECISION, "OpenVINO saturates at 32 bits where a float is cast to an integer"
        out = _Range.BOUNDED if source == _BOOL or source in _BYTES else known
    elif known is _Range.SIZE and (data or not made):
        out = _Range.SIZE
    else:
        return Refusal.PRECISION, f"OpenVINO computes {node.op_type} on integers in float32 or 32 bits"
    if known is _Range.UNKNOWN:
        return Refusal.PRECISION, f"integers of {node.op_type} may exceed 2**24, beyond which OpenVINO is not exact"
    ranges.update((name, out) for name in made)
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


def _range(graph: OpGraph, name: str, ranges: Mapping[str, _Range]) -> _Range:
    if name in graph.initializers:
        return _Range.SIZE  # its values are checked when it is compiled
    # What no node before this one made is fed, and checked then.
    return ranges.get(name, _Range.BOUNDED)


def _is_integer(graph: OpGraph, name: str) -> bool:
    info: TensorInfo | None = graph.tensors.get(name)
    return info is not None and info.dtype in _INTEGERS
