"""What slimming removes, what it leaves and why, and what has to be cut for it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Final

import numpy as np
import numpy.typing as npt

from parallax._record import dataclass

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

BIAS: Final = 2
"""Position of the bias among the inputs of convolutions and of Gemm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Channels that an operator no longer computes."""

    node: str
    op_type: str
    axis: int
    """Of its output."""
    count: int
    of: int
    """How many channels the operator had."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Channels that are constant, or may be, and stay."""

    node: str
    op_type: str
    count: int | None
    """None where it could not be looked at: no weights that could be read."""
    why: str
    """What stands in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slimming:
    """What was removed from a model, and what was not."""

    removals: tuple[Removal, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    parameters: int = 0
    """Elements of constants that are gone."""
    of_parameters: int = 0
    """How many there were."""
    flops: int = 0
    """Operations per run that are gone; sizes that are not known count as 1."""
    of_flops: int = 0

    @property
    def channels(self) -> int:
        """How many channels are gone, over all operators."""
        return sum(removal.count for removal in self.removals)

    @property
    def summary(self) -> str:
        """One line for people."""
        if not self.removals:
            stays = sum(refusal.count or 0 for refusal in self.refusals)
            if stays:
                return f"slim=True is of no effect: {stays} constant channels stay ({self.refusals[0].why})"
            why = next((refusal.why for refusal in self.refusals), "no channel is constant")
            return f"slim=True is of no effect: {why}"
        return (
            f"slimmed: {self.channels} channels of {len({removal.node for removal in self.removals})} operators, "
            f"{_share(self.parameters, self.of_parameters)} of the parameters and "
            f"{_share(self.flops, self.of_flops)} of the FLOPs removed"
        )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConstantCut:
    """What one reader of a constant needs of it."""

    node: int
    """The reader's index."""
    position: int
    """Among its inputs."""
    constant: str
    """The initializer, or the output of the Constant node, behind the input; Identity nodes may lie between."""
    axes: Mapping[int, Indices]
    """Axis -> what is kept along it, ascending. Axes of which all is kept are not here; of a bias that takes in a
    constant there are none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelCuts:
    """All that has to be done to a graph, by index of its nodes and name of its tensors."""

    removals: tuple[Removal, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    cuts: tuple[ConstantCut, ...] = ()
    readers: Mapping[str, int] = field(default_factory=dict)
    """Constant of `cuts` -> how many inputs read it in all; outputs of the graph and bodies count."""
    biases: Mapping[int, Values] = field(default_factory=dict)
    """Node -> what is to be added to each channel that it keeps. Where it has a bias, that is in `cuts`."""
    groups: Mapping[int, int] = field(default_factory=dict)
    """Convolution -> groups it keeps."""
    targets: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    """Reshape -> axis of its output -> size."""
    splits: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Split -> sizes of its outputs."""
    sizes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Tensor -> axis -> size, where it is another than before."""
