"""From ONNX's type messages to ``TensorInfo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.graph import Dim, TensorInfo

if TYPE_CHECKING:
    import onnx

_INNER_LIMIT = 32
"""Deepest nesting of sequence, optional and map types that is looked through."""


def tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """The type of a graph input, output or value_info."""
    return type_info(value.name, value.type)


def type_info(name: str, proto: onnx.TypeProto) -> TensorInfo:
    """Type of a value; for containers, ``dtype`` is that of the innermost element and the shape is unknown."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        tensor = proto.tensor_type
        return TensorInfo(
            name=name,
            dtype=tensor.elem_type,
            shape=dims(tensor.shape) if tensor.HasField("shape") else None,
        )
    if kind is None:
        return TensorInfo(name=name, kind="unknown")
    if kind == "sparse_tensor_type":
        sparse = proto.sparse_tensor_type
        shape = dims(sparse.shape) if sparse.HasField("shape") else None
        return TensorInfo(name=name, kind="sparse", dtype=sparse.elem_type, shape=shape)
    outer = {"sequence_type": "sequence", "optional_type": "optional", "map_type": "map"}.get(kind, "unknown")
    dtype = 0
    inner = proto
    for _ in range(_INNER_LIMIT):
        kind = inner.WhichOneof("value")
        if kind == "sequence_type":
            inner = inner.sequence_type.elem_type
        elif kind == "optional_type":
            inner = inner.optional_type.elem_type
        elif kind == "map_type":
            inner = inner.map_type.value_type
        else:
            if kind == "tensor_type":
                dtype = inner.tensor_type.elem_type
            elif kind == "sparse_tensor_type":
                dtype = inner.sparse_tensor_type.elem_type
            break
    return TensorInfo(name=name, kind=outer, dtype=dtype)


def dims(shape: onnx.TensorShapeProto) -> tuple[Dim, ...]:
    """Sizes, symbols and unknowns; a negative size means unknown, as ONNX Runtime reads it."""
    out: list[Dim] = []
    for dim in shape.dim:
        if dim.HasField("dim_value"):
            out.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            out.append(text(dim.dim_param) or None)
    return tuple(out)


def text(value: str | bytes) -> str:
    """A string field as text: protobuf hands out bytes where a file holds something else than UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="backslashreplace")
