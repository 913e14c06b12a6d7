"""What it takes to run a plan, or a part of a model on a device: one record for whoever plans, admits or refuses."""

from __future__ import annotations

from typing import ClassVar

from parallax._record import dataclass
from parallax.memory._protocols import PlanLike


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequirement:
    """What runs hold, in bytes.

    The caller's inputs are the caller's and count nowhere.
    """

    UNKNOWN: ClassVar[MemoryRequirement]
    """Of what nothing is known."""

    fixed_bytes: int
    """One run holds this from its beginning to its end: the arena of tensors between segments, and outputs."""
    peaks: tuple[int, ...]
    """Per segment, what it adds to that while it runs."""
    wanted_bytes: int
    """The most that one run holds, with as much running at once as the plan allows."""
    is_known: bool = True
    """False: sizes of some tensors are not known beforehand, so that this is but what is known."""
    weight_bytes: int = 0
    """What is held as long as the model is open, each weight once. 0 for plans of the processor: whether weights are
    mapped, and so cost nothing, is decided by how the model is opened (`Budget.weight_bytes`)."""

    @property
    def least_bytes(self) -> int:
        """What one run holds with one segment at a time."""
        return self.fixed_bytes + max(self.peaks, default=0)

    @property
    def total_bytes(self) -> int:
        """Weights, and the most that one run holds beside them."""
        return self.weight_bytes + self.wanted_bytes

    def dispatcher_budget(self, plan: PlanLike, granted_bytes: int) -> int | None:
        """What segments may hold inside at the same time in a run that was granted so much, in terms of the plan's own
        peaks, which are those of the shapes it was planned for.

        The dispatcher adds up the plan's peaks; what a run of other shapes holds is at most so many times that as the
        segment holds that grew most. Where sizes are not known, one segment at a time: 0. None: no limit.

        Args:
            plan: whose segments these peaks are of.
        """
        if not self.is_known:
            return 0
        if granted_bytes >= self.wanted_bytes:
            return None
        running_bytes = max(0, granted_bytes - self.fixed_bytes)
        pairs = zip(plan.segments, self.peaks, strict=True)
        return min((running_bytes * segment.peak_bytes // peak for segment, peak in pairs if peak), default=None)


MemoryRequirement.UNKNOWN = MemoryRequirement(fixed_bytes=0, peaks=(), wanted_bytes=0, is_known=False)
