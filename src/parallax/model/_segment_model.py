"""A part of a model as a model of its own, for whoever compiles it; a record, so that it loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from parallax._record import dataclass

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from parallax.model._weights import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentModel:
    """A model of its own, cut out of a larger one.

    ``proto`` is a serialised ModelProto in which the tensors of ``weights`` are marked external
    without a usable location: hand them to ``SessionOptions.add_external_initializers``.
    """

    name: str
    proto: bytes = field(repr=False)
    weights: Mapping[str, npt.NDArray[np.generic]] = field(repr=False)
    """Read-only views on the model's file or bytes, possibly unaligned; they keep it alive."""
    weight_types: Mapping[str, int] = field(repr=False)
    """onnx.TensorProto.DataType of each weight, which numpy's dtype alone does not tell (bfloat16, float8)."""
    sources: Mapping[str, Weight] = field(default_factory=dict, repr=False)
    """Where each weight's bytes lie, for `save_segment`."""
