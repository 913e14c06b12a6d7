"""Small models that are opened with a caller's options, to find out what those hold."""

from __future__ import annotations

from typing import Any, Final

from onnxruntime.capi import onnxruntime_pybind11_state as C

# The model y = Identity(x) of one byte: the smallest that the runtime opens.
IDENTITY: Final = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x02\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x02\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def open_quietly(session_options: Any, model: bytes) -> Any:
    """Return a C session of a small model with the caller's options. Raises: what ONNX Runtime raises."""
    session = C.InferenceSession(session_options, model, False, False)
    session.initialize_session(["CPUExecutionProvider"], [{}], set())
    return session
