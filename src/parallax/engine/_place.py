"""A tensor's place in an arena."""

from __future__ import annotations

from parallax._record import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a boundary tensor lives."""

    offset: int
    """From the arena's start, in bytes."""
    shape: Shape
    element_type: int
    """onnx.TensorProto.DataType."""
