"""What memory planning reads of a plan.

`parallax.schedule.Plan` is one; it lies above this package, so it is met through its shape alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class SegmentLike(Protocol):
    """One call of a backend. Fields as in `parallax.schedule.Segment`."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """Indices into ``OpGraph.nodes``, ascending."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Boundary tensors and model inputs it reads."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Tensors read by other segments, or outputs of the model."""

    @property
    def predecessors(self) -> tuple[int, ...]:
        """Segments that must be done before it starts: distinct lower positions."""

    @property
    def width(self) -> int:
        """Threads; 0 on the fixed lane of a device's queue."""

    @property
    def lane(self) -> int | None:
        """A fixed lane."""

    @property
    def priority(self) -> int:
        """Higher starts first."""

    @property
    def peak_bytes(self) -> int:
        """What admission counts for it."""


class PlanLike(Protocol):
    """Segments in a topological order, and how many of them may run at once."""

    @property
    def segments(self) -> Sequence[SegmentLike]:
        """In a topological order."""

    @property
    def lanes(self) -> int:
        """Segments that may run at once."""

    @property
    def cores(self) -> int:
        """Sum of widths that may run at once."""

    @property
    def backfill(self) -> bool:
        """Whether a segment that fits may pass one of higher priority that does not."""

    @property
    def has_branch_arenas(self) -> bool:
        """Whether each branch of segments has an arena of its own, instead of one for all."""
