"""Inputs and outputs of parts that are no sessions of ONNX Runtime, stated as those state theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.graph import ELEMENT_TYPES, TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedArgument:
    """Looks like ONNX Runtime's ``NodeArg``."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def stated_argument(info: TensorInfo) -> StatedArgument:
    """A tensor's type as ONNX Runtime writes it."""
    return StatedArgument(name=info.name, type=ELEMENT_TYPES[info.dtype].runtime_type, shape=list(info.shape or ()))
