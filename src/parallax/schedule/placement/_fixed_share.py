"""A fixed share of every large operator on a device, and the rest of it on the CPU, at the same time.

After CoDL (Jia and others, CoDL: Efficient CPU-GPU Co-execution for Deep Learning Inference on Mobile Devices, MobiSys
2022), which divides operators by a share that its latency predictor finds for each; here one share holds for all, and
the model is split by rows (`parallax.model.split_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallax.errors import ConfigError
from parallax.schedule.placement._problem import Placement, PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedShare:
    """The first device runs the first part of the rows of a model that was split for this placer, and the CPU the rest.

    Where sessions, `inspect` and `bench` ask it by name, they split the model by ``share`` before. Of a model that has
    no rows to split, nothing is proposed.

    Args:
        share: of the rows that the device computes, above 0 and below 1; None: that with which both sides would end
            together if all work could be shared.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not (isinstance(self.share, int | float) and 0 < self.share < 1):
            raise ConfigError(f"share={self.share!r:.40}", fix="give a share above 0 and below 1, or None to balance")

    def rows_share(self, balanced: float) -> float:
        """The share to split a model by, of which ``balanced`` is the one that balances both sides."""
        return min(max(balanced if self.share is None else self.share, 0.001), 0.999)

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement, where there is a part of the rows."""
        for label, groups in problem.row_parts.items():
            yield Placement.on_device(problem, f"fixed share, {label}", groups)
            return
