"""Names and numpy types of the element types that a model declares (``onnx.TensorProto.DataType``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from parallax.model import TensorInfo

# In the order of DataType's values in onnx.proto; "" is 0, UNDEFINED.
_NAMES = (
    *("", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "float64"),
    *("uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2"),
    *("float8e5m2fnuz", "uint4", "int4", "float4e2m1", "float8e8m0", "uint2", "int2"),
)

# Types that ONNX Runtime takes from a numpy array; numpy itself has no bfloat16, float8 or int4.
_NUMPY_TYPES: Mapping[str, DTypeLike] = {
    **{name: name for name in ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool")},
    **{name: name for name in ("float16", "float64", "uint32", "uint64")},
    "string": object,
}


def type_name(info: TensorInfo) -> str:
    """``float32``, ``sequence(int64)``; ``unknown`` where the model does not tell."""
    element = _NAMES[info.dtype] if info.dtype < len(_NAMES) else f"type {info.dtype}"
    return (element or "unknown") if info.kind == "tensor" else f"{info.kind}({element or 'unknown'})"


_RUNTIME_TYPE = re.compile(r"(?:(?P<kind>seq|optional|sparse_tensor|map)\()?.*?(?P<element>[a-z0-9]+)\)+$")
_RUNTIME_NAMES = {"float": "float32", "double": "float64"}


def declared_by(argument: Any) -> TensorInfo:
    """What a session (``onnxruntime.NodeArg``) says of an input: all that is known of a compiled model's.

    An element type that the runtime spells in a way unknown here counts as unknown.
    """
    found = _RUNTIME_TYPE.match(argument.type)
    kind = (found and found["kind"]) or "tensor"
    element = found["element"] if found else ""
    name = _RUNTIME_NAMES.get(element, element)
    return TensorInfo(
        name=argument.name,
        kind={"seq": "sequence"}.get(kind, kind),
        dtype=_NAMES.index(name) if name in _NAMES else 0,
        shape=tuple(argument.shape) if kind == "tensor" else None,
    )


def numpy_dtype(info: TensorInfo) -> np.dtype | None:
    """The array type that a value is fed as, or None where no array can be."""
    name = type_name(info)
    return np.dtype(_NUMPY_TYPES[name]) if name in _NUMPY_TYPES else None


def show_shape(shape: Sequence[object] | None) -> str:
    """``[batch, 3, ?, 224]``; ``[...]`` where not even the rank is known."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
