"""The element types of ONNX: their names, and how much room one element takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_NAMES = (
    *("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "float64"),
    *("uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2"),
    *("float8e5m2fnuz", "uint4", "int4", "float4e2m1", "float8e8m0", "uint2", "int2"),
)
ELEMENT_NAMES: Final[Mapping[int, str]] = MappingProxyType(dict(enumerate(_NAMES, start=1)))
"""Names, as numpy spells them where it has the type, by ``onnx.TensorProto.DataType``."""

STRING_TYPE: Final = 8
"""``onnx.TensorProto.STRING``: its elements own memory elsewhere, so such a tensor is no flat block of bytes."""

_BITS_8 = (2, 3, 9, 17, 18, 19, 20, 24)  # uint8, int8, bool, the float8 kinds
_BITS_16 = (4, 5, 10, 16)  # uint16, int16, float16, bfloat16
_BITS_32 = (1, 6, 12)  # float, int32, uint32
_BITS_64 = (7, 11, 13, 14)  # int64, double, uint64, complex64
_BITS_4 = (21, 22, 23)  # uint4, int4, float4e2m1, two per byte
_BITS_2 = (25, 26)  # uint2, int2, four per byte
_BITS_6 = (27, 28)  # float6e2m3, float6e3m2, four in three bytes
ELEMENT_BITS: Final[Mapping[int, int]] = MappingProxyType(
    {
        **dict.fromkeys(_BITS_8, 8),
        **dict.fromkeys(_BITS_16, 16),
        **dict.fromkeys(_BITS_32, 32),
        **dict.fromkeys(_BITS_64, 64),
        **dict.fromkeys(_BITS_4, 4),
        **dict.fromkeys(_BITS_2, 2),
        **dict.fromkeys(_BITS_6, 6),
        15: 128,  # complex128
        STRING_TYPE: 8 * 32,  # what std::string occupies, its characters not counted
    }
)
"""Bits per element by ``onnx.TensorProto.DataType`` (numbers as in ``onnx.proto``)."""
