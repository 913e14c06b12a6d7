"""Types of tensors that can lie in an arena, by the names that ONNX Runtime gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Bits are left out: types of less than a byte are packed differently by different kernels.
ELEMENT_TYPES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "tensor(float)": (1, 4),
        "tensor(uint8)": (2, 1),
        "tensor(int8)": (3, 1),
        "tensor(uint16)": (4, 2),
        "tensor(int16)": (5, 2),
        "tensor(int32)": (6, 4),
        "tensor(int64)": (7, 8),
        "tensor(bool)": (9, 1),
        "tensor(float16)": (10, 2),
        "tensor(double)": (11, 8),
        "tensor(uint32)": (12, 4),
        "tensor(uint64)": (13, 8),
        "tensor(bfloat16)": (16, 2),
        "tensor(float8e4m3fn)": (17, 1),
        "tensor(float8e4m3fnuz)": (18, 1),
        "tensor(float8e5m2)": (19, 1),
        "tensor(float8e5m2fnuz)": (20, 1),
    }
)
"""ONNX Runtime's name of a tensor type -> (onnx.TensorProto.DataType, bytes per element)."""
