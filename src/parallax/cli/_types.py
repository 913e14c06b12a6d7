"""Names and numpy types of the element types that a model declares (``onnx.TensorProto.DataType``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from parallax.graph import ELEMENT_TYPES, TensorInfo


def type_name(info: TensorInfo) -> str:
    """``float32``, ``sequence(int64)``; ``unknown`` where the model does not tell."""
    found = ELEMENT_TYPES.get(info.dtype)
    name = "unknown" if not info.dtype else f"type {info.dtype}" if found is None else found.name
    return name if info.kind == "tensor" else f"{info.kind}({name})"


_RUNTIME_TYPE = re.compile(r"(?:(?P<kind>seq|optional|sparse_tensor|map)\()?.*?(?P<element>[a-z0-9]+)\)+$")
# The runtime has spellings of its own for two.
_CODES = {
    spelling: element.code for element in ELEMENT_TYPES.values() for spelling in (element.name, element.runtime_name)
}


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
    found = ELEMENT_TYPES.get(info.dtype)
    return None if found is None or info.kind != "tensor" else found.dtype


def show_shape(shape: Sequence[object] | None) -> str:
    """``[batch, 3, ?, 224]``; ``[...]`` where not even the rank is known."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
