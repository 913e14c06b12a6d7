"""What the scheduler of a batcher knows: of each class of shapes, of what runs, and of what became of requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from parallax.serving.policy._cost_fit import CostFit
from parallax.serving.policy._limits import BatchLimit
from parallax.serving.policy._records import Batch

_GAP_WEIGHT: Final = 0.2
"""Of the last gap between two requests, in their mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the requests so far."""

    taken: int = 0
    refused_full: int = 0
    refused_late: int = 0
    dropped: int = 0
    cancelled: int = 0
    started: int = 0
    """Requests in batches that were started."""
    batches: int = 0
    largest: int = 0
    """Requests in the largest batch."""


@dataclass(slots=True)
class ClassState:
    """What is known of one class of shapes."""

    fits: list[CostFit]
    limits: list[BatchLimit]
    gap_s: float | None = None
    """Mean time between two requests; None before the second."""
    last_arrival_s: float | None = None
    running: int = 0

    def note_arrival(self, now_s: float) -> None:
        if self.last_arrival_s is not None:
            gap = max(0.0, now_s - self.last_arrival_s)
            self.gap_s = gap if self.gap_s is None else self.gap_s + _GAP_WEIGHT * (gap - self.gap_s)
        self.last_arrival_s = now_s


@dataclass(slots=True)
class Running:
    batch: Batch
    is_probe: bool
    end_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.end_s = self.batch.started_s + self.batch.predicted_s
