"""Names and numpy types of the element types that a model declares (``onnx.TensorProto.DataType``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def numpy_dtype(info: TensorInfo) -> np.dtype | None:
    """The array type that a value is fed as, or None where no array can be."""
    name = type_name(info)
    return np.dtype(_NUMPY_TYPES[name]) if name in _NUMPY_TYPES else None


def show_shape(shape: Sequence[object] | None) -> str:
    """``[batch, 3, ?, 224]``; ``[...]`` where not even the rank is known."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
