"""Inputs and outputs of parts that are no sessions of ONNX Runtime, stated as those state theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.device._kernel_lists import TYPE_NAMES
from parallax.graph import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedArgument:
    """Looks like ONNX Runtime's ``NodeArg``."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def stated_argument(info: TensorInfo) -> StatedArgument:
    """A tensor's type as ONNX Runtime writes it."""
    return StatedArgument(name=info.name, type=f"tensor({TYPE_NAMES[info.dtype]})", shape=list(info.shape or ()))
