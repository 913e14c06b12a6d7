"""The element types of ONNX, in one table: what each is called and by whom, and how much room an element takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from parallax._record import dataclass

STRING_TYPE: Final = 8
"""``onnx.TensorProto.STRING``: its elements own memory elsewhere, so such a tensor is no flat block of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """Describes one element type. ``ELEMENT_TYPES`` holds them all."""

    code: int
    """``onnx.TensorProto.DataType`` (numbers as in ``onnx.proto``)."""
    name: str
    """As numpy spells it where it has the type, else as ONNX does, in lower case."""
    bits: int
    """Of one element; elements of less than a byte are packed. Of a string, what ``std::string`` occupies without its
    characters."""
    dtype: np.dtype[Any] | None
    """Of arrays that ONNX Runtime takes and gives; None where numpy has no such type or the runtime no such tensors."""
    runtime_name: str
    """As ONNX Runtime writes it inside "tensor(...)"."""
    openvino_name: str | None
    """Of the attribute of ``openvino.Type`` whose elements lie in memory as ONNX's; None where none is used so."""
    is_wrapped: bool
    """Whether ONNX Runtime makes a tensor of memory that it does not own. Not of strings, nor of elements of less than
    a byte, which kernels pack differently; and it has no tensors of complex numbers or E8M0 scales."""

    @property
    def runtime_type(self) -> str:
        """Name of a tensor's type, as ONNX Runtime writes it: "tensor(float)"."""
        return f"tensor({self.runtime_name})"

    @property
    def is_packed(self) -> bool:
        """Whether several elements share a byte."""
        return self.bits % 8 != 0


def _numpy(
    code: int, name: str, bits: int, openvino: str | None = None, *, runtime_name: str | None = None
) -> ElementType:
    """A type that numpy has and the runtime takes."""
    return ElementType(
        code=code,
        name=name,
        bits=bits,
        dtype=np.dtype(name),
        runtime_name=name if runtime_name is None else runtime_name,
        openvino_name=openvino,
        is_wrapped=True,
    )


def _other(
    code: int, name: str, bits: int, openvino: str | None = None, *, is_wrapped: bool = False, dtype: type | None = None
) -> ElementType:
    return ElementType(
        code=code,
        name=name,
        bits=bits,
        dtype=None if dtype is None else np.dtype(dtype),
        runtime_name=name,
        openvino_name=openvino,
        is_wrapped=is_wrapped,
    )


_TABLE: Final = (
    _numpy(1, "float32", 32, "f32", runtime_name="float"),
    _numpy(2, "uint8", 8, "u8"),
    _numpy(3, "int8", 8, "i8"),
    _numpy(4, "uint16", 16),
    _numpy(5, "int16", 16),
    _numpy(6, "int32", 32, "i32"),
    _numpy(7, "int64", 64, "i64"),
    _other(STRING_TYPE, "string", 8 * 32, dtype=object),
    _numpy(9, "bool", 8, "boolean"),
    _numpy(10, "float16", 16, "f16"),
    _numpy(11, "float64", 64, runtime_name="double"),
    _numpy(12, "uint32", 32),
    _numpy(13, "uint64", 64),
    _other(14, "complex64", 64),
    _other(15, "complex128", 128),
    _other(16, "bfloat16", 16, "bf16", is_wrapped=True),
    _other(17, "float8e4m3fn", 8, is_wrapped=True),
    _other(18, "float8e4m3fnuz", 8, is_wrapped=True),
    _other(19, "float8e5m2", 8, is_wrapped=True),
    _other(20, "float8e5m2fnuz", 8, is_wrapped=True),
    _other(21, "uint4", 4),
    _other(22, "int4", 4),
    _other(23, "float4e2m1", 4),
    _other(24, "float8e8m0", 8),
    _other(25, "uint2", 2),
    _other(26, "int2", 2),
    _other(27, "float6e2m3", 6),
    _other(28, "float6e3m2", 6),
)

ELEMENT_TYPES: Final[Mapping[int, ElementType]] = MappingProxyType({element.code: element for element in _TABLE})
"""Every element type by its ``onnx.TensorProto.DataType``."""

RUNTIME_TYPES: Final[Mapping[str, ElementType]] = MappingProxyType(
    {element.runtime_type: element for element in _TABLE}
)
"""Every element type by what ONNX Runtime calls a tensor of it: "tensor(float)"."""

NUMPY_TYPES: Final[Mapping[int, np.dtype[Any]]] = MappingProxyType(
    {element.code: element.dtype for element in _TABLE if element.dtype is not None and element.code != STRING_TYPE}
)
"""Types that numpy computes with (booleans too) and ONNX Runtime takes arrays of, by ``onnx.TensorProto.DataType``."""


def wrapped_type(runtime_type: str) -> ElementType | None:
    """The element type behind "tensor(...)", if the runtime takes its memory as it is; else None."""
    element = RUNTIME_TYPES.get(runtime_type)
    return element if element is not None and element.is_wrapped else None


def packed_bytes(elements: int, bits: int) -> int:
    """The whole bytes that so many elements of so many bits take together. All who count bytes ask here."""
    return (elements * bits + 7) >> 3
