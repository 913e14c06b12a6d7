"""A session's budget: what of it is spent before anything runs, and whether a run fits into the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from parallax._record import dataclass
from parallax.errors import BudgetError
from parallax.memory._budget import DEFAULT_MARGIN, admission_budget, least_budget, show_bytes
from parallax.memory._requirement import MemoryRequirement

RUNTIME_BYTES: Final = 2 << 20
"""Of one session: the first block of the runtime's arena and buffers of its threads."""

SEGMENT_BYTES: Final = 16 << 10
"""Of each segment: what the runtime and the bindings keep for its next call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A budget in bytes, and what of it is spent before anything runs."""

    budget_bytes: int
    weight_bytes: int
    """Of private weights."""
    runtime_bytes: int
    """What the runtime takes for itself."""
    margin: float = DEFAULT_MARGIN
    """Share of the budget that is left free."""

    @classmethod
    def of(cls, budget_bytes: int, *, weight_bytes: int, segments: int = 1, margin: float = DEFAULT_MARGIN) -> Budget:
        """Make the budget of a session of so many segments with that many bytes of private weights."""
        return cls(
            budget_bytes=budget_bytes,
            weight_bytes=weight_bytes,
            runtime_bytes=RUNTIME_BYTES + segments * SEGMENT_BYTES,
            margin=margin,
        )

    @property
    def held_bytes(self) -> int:
        """Return the bytes that are held all the time."""
        return self.weight_bytes + self.runtime_bytes

    @property
    def limit_bytes(self) -> int:
        """What all runs together may hold. 0 for a budget that its margin, weights and runtime use up."""
        if self.budget_bytes < least_budget((), arena_bytes=self.held_bytes, margin=self.margin):
            return 0
        return admission_budget(self.budget_bytes, (), arena_bytes=self.held_bytes, margin=self.margin)

    def limit_of(self, segments: int) -> int:
        """What all runs of a session of so many segments may hold; 0 where nothing is left for them."""
        runtime = RUNTIME_BYTES + segments * SEGMENT_BYTES
        return replace(self, runtime_bytes=runtime).limit_bytes

    def least_bytes(self, requirement: MemoryRequirement) -> int:
        """The smallest budget in which such a run can go on, one segment at a time."""
        held = self.held_bytes + requirement.fixed_bytes
        return least_budget(requirement.peaks, arena_bytes=held, margin=self.margin)

    def allows(self, requirement: MemoryRequirement) -> bool:
        """Whether a run fits, one segment at a time."""
        return self.budget_bytes >= self.least_bytes(requirement)

    def check(
        self,
        requirement: MemoryRequirement,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        where: str = "memory_budget",
    ) -> None:
        """Refuse what cannot run even alone.

        Args:
            shapes: of the inputs that it is about, for the message; {} or None where there are none to name.
            where: what it is about otherwise.

        Raises: BudgetError with the budget that would do.
        """
        if self.allows(requirement):
            return
        least = self.least_bytes(requirement)
        weights = self.weight_bytes
        parts = []
        if requirement.least_bytes:
            parts.append(f"a run takes {show_bytes(requirement.least_bytes)} with one segment at a time")
        if weights:
            parts.append(f"weights {show_bytes(weights)}")
        parts.append(f"the runtime {show_bytes(self.runtime_bytes)}")
        mapped = "; a compiled bundle maps its weights, which then do not count" if weights else ""
        raise BudgetError(
            f"a budget of {self.budget_bytes} bytes ({show_bytes(self.budget_bytes)}) is too small: "
            f"{', '.join(parts)}, and {self.margin:.0%} is kept free",
            least_bytes=least,
            where=f"inputs {_describe_shapes(shapes)}" if shapes else where,
            fix=f"give at least memory_budget={least} ({show_bytes(least)}){mapped}",
        )


def _describe_shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    """``x [1, 3, 224, 224]``."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
