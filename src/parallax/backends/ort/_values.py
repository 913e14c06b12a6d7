"""Tensors of ONNX Runtime's C extension as plain memory, for backends that are not ONNX Runtime's own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnxruntime.capi import onnxruntime_pybind11_state as C

Bytes = npt.NDArray[np.uint8]

_CPU: Final = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)
_READ_WRITE: Final = 0x200

_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype = ctypes.py_object
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


def host_bytes(value: Any) -> Bytes:
    """The bytes of a tensor in the processor's memory: a view, valid while ``value`` lives."""
    return bytes_at(value.data_ptr(), value.tensor_size_in_bytes())


def bytes_at(address: int, size_bytes: int) -> Bytes:
    """A writable view on memory whose owner the caller keeps alive, whatever its protection."""
    if not size_bytes:
        return np.empty(0, np.uint8)
    return np.frombuffer(_view(address, size_bytes, _READ_WRITE), np.uint8)


def empty_host_value(shape: Sequence[int], onnx_type: int) -> Any:
    """A fresh tensor in the processor's memory, which it owns. ``onnx_type`` as in ``onnx.TensorProto.DataType``."""
    return C.OrtValue.ortvalue_from_shape_and_onnx_type(list(shape), onnx_type, _CPU)


def is_on_host(value: Any) -> bool:
    """Whether the processor can read the tensor where it is."""
    return str(value.device_name()).lower() == "cpu"
