"""Names and numpy types of the element types that a model declares (``onnx.TensorProto.DataType``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from parallax.graph import ELEMENT_NAMES, TensorInfo

# Types that ONNX Runtime takes from a numpy array; numpy itself has no bfloat16, float8 or int4.
_NUMPY_TYPES: Mapping[str, DTypeLike] = {
    **{name: name for name in ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool")},
    **{name: name for name in ("float16", "float64", "uint32", "uint64")},
    "string": object,
}


def type_name(info: TensorInfo) -> str:
    """``float32``, ``sequence(int64)``; ``unknown`` where the model does not tell."""
    element = ELEMENT_NAMES.get(info.dtype, f"type {info.dtype}") if info.dtype else "unknown"
    return element if info.kind == "tensor" else f"{info.kind}({element})"


_RUNTIME_TYPE = re.compile(r"(?:(?P<kind>seq|optional|sparse_tensor|map)\()?.*?(?P<element>[a-z0-9]+)\)+$")
# The runtime's own spellings last: it has two.
_CODES = {name: code for code, name in ELEMENT_NAMES.items()} | {"float": 1, "double": 11}


def declared_by(argument: Any) -> TensorInfo:
    """What a session (``onnxruntime.NodeArg``) says of an input: all that is known of a compiled model's.

    An element type that the runtime spells in a way unknown here counts as unknown.
    """
    found = _RUNTIME_TYPE.match(argument.type)
    kind = (found and found["kind"]) or "tensor"
    element = found["element"] if found else ""
    return TensorInfo(
        name=argument.name,
        kind={"seq": "sequence"}.get(kind, kind),
        dtype=_CODES.get(element, 0),
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
