"""What is known of a value's type before anything is computed."""

from __future__ import annotations

from parallax._record import dataclass

Dim = int | str | None
"""A size, the name of a symbolic size, or None when nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Type of a value. ``kind`` is "tensor", "sparse", "sequence", "optional", "map" or "unknown"."""

    name: str
    kind: str = "tensor"
    dtype: int = 0
    """onnx.TensorProto.DataType of the (innermost) element; 0 when unknown."""
    shape: tuple[Dim, ...] | None = None
    """None when even the rank is unknown."""

    @property
    def is_static(self) -> bool:
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)
